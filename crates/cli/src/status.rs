//! `cargo xtask status`.

mod table;

use std::path::Path;
use std::time::SystemTime;

use kiln_aws::Aws;
use kiln_config::config::Config;
use kiln_config::model::FleetName;
use kiln_github::OrgClient;
use kiln_operations::on_demand::Health;
use kiln_operations::orphans;
use kiln_operations::ports::{Group, GroupInstance, Refresh, RefreshStatus};
use kiln_operations::status::{self, FleetStatus, ImageStatus, Report, RunnerState, RunnerStatus};
use kiln_operations::{Code, Error, when};
use serde_json::{Map, Value, json};

use crate::cloud;
use crate::pin::lifetime_json;
use crate::ui::{Failure, Ui};

/// Show what there is and how it is: fleets, images, instances, runners, keys.
///
/// Reads AWS and GitHub; ends well when it could look, whatever it saw. What somebody should look at is told as warnings. Where
/// GitHub can't be asked, what only it knows is left open. A runner is orphaned when it is offline, runs no job, and its instance is
/// gone: --fix deletes such runners, after a second look.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask status
  cargo xtask status --fleet linux    its instances, too
  cargo xtask status --fix            delete runners whose instances are gone
  cargo xtask status --json | jq '.result.fleets[] | {name, runners: .counts}'

Results: fleets, images, keys, unknown_stacks, github; with --fix removed (a number)")]
pub struct Args {
    /// Show this fleet only, and of each of its instances; may be repeated.
    #[arg(long, value_name = "NAME")]
    fleet: Vec<FleetName>,

    /// Delete the runners at GitHub whose instances are gone.
    #[arg(long)]
    fix: bool,
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(config)?;
    let fleets = cloud::fleets(&config, &args.fleet)?;
    let aws = cloud::aws(&config).await;
    let github = match cloud::stored_key(&config, &aws).await? {
        Some(store) => Some(cloud::github(&config, &aws, store)?),
        None => None,
    };
    let report = Box::pin(status::observe(&config, &fleets, &aws, github.as_ref(), SystemTime::now())).await?;
    ui.data(&table::of(&report, !args.fleet.is_empty()));
    record(&report, ui);
    for note in report.notes() {
        ui.warn(&note);
    }
    if args.fix {
        Box::pin(fix(&config, &report, &aws, github.as_ref(), ui)).await?;
    }
    Ok(())
}

async fn fix(config: &Config, report: &Report, aws: &Aws, github: Option<&OrgClient>, ui: &Ui) -> Result<(), Error> {
    let (Some(github), None) = (github, &report.github) else {
        let why = report.github.clone().unwrap_or_default();
        return Err(Error::new(Code::GitHubNotAsked, format!("GitHub could not be asked for runners: {why}"))
            .hint("`cargo xtask doctor` looks at what keeps GitHub from answering"));
    };
    let mut removed = 0;
    for fleet in &report.fleets {
        let orphans = fleet.orphans();
        if !orphans.is_empty() {
            removed += orphans::remove(config, &fleet.name, &orphans, aws, github, ui).await?;
        }
    }
    ui.clear();
    ui.talk(&format!("{removed} runner(s) without an instance deleted"));
    ui.record("removed", removed);
    Ok(())
}

fn record(report: &Report, ui: &Ui) {
    ui.record("fleets", report.fleets.iter().map(fleet).collect::<Vec<_>>());
    ui.record("images", report.images.iter().map(|one| image(one, report.at)).collect::<Vec<_>>());
    let keys = report.keys.iter().map(
        |(store, key)| json!({ "store": store.to_string(), "fingerprint": key.as_ref().map(ToString::to_string) }),
    );
    ui.record("keys", keys.collect::<Vec<_>>());
    ui.record("unknown_stacks", report.strangers.clone());
    ui.record("github", json!({ "asked": report.github.is_none(), "why_not": report.github }));
}

fn fleet(fleet: &FleetStatus) -> Value {
    let counts: Map<String, Value> =
        RunnerState::ALL.iter().map(|state| (state.as_str().to_owned(), json!(fleet.count(*state)))).collect();
    let lock = fleet.lock.as_ref().map(|lock| json!({ "holder": lock.holder, "left_secs": lock.left_secs }));
    json!({
        "name": fleet.name,
        "stack": fleet.stack,
        "image": fleet.image,
        "newest_image": fleet.baked,
        "recorded": {
            "current": fleet.record.current, "former": fleet.record.former, "rejected": fleet.record.rejected,
        },
        "group": fleet.group.as_ref().map(group),
        "refresh": fleet.refresh.as_ref().map(refresh),
        "lock": lock,
        "runners": fleet.runners.as_ref().map(|runners| runners.iter().map(runner).collect::<Vec<_>>()),
        "counts": counts,
        "silent_instances": fleet.silent(),
        "shown_states": fleet.shown.iter().map(|shown| (shown.instance.to_string(), json!(shown.state))).collect::<Map<_, _>>(),
        "on_demand": fleet.on_demand.as_ref().map(on_demand),
    })
}

fn on_demand(health: &Health) -> Value {
    json!({
        "wanted": health.settings, "said": health.said, "jobs_waiting": health.waiting(),
        "silent_secs": health.silent_for().map(|silent| silent.as_secs()),
    })
}

fn group(group: &Group) -> Value {
    let instance = |instance: &GroupInstance| {
        json!({
            "id": instance.id, "state": instance.state, "healthy": instance.healthy,
            "launch_template_version": instance.launch_template.as_ref().map(|template| &template.version),
        })
    };
    json!({
        "name": group.name, "min": group.min, "max": group.max, "desired": group.desired,
        "launch_template_version": group.launch_template.as_ref().map(|template| &template.version),
        "instances": group.instances.iter().map(instance).collect::<Vec<_>>(),
    })
}

/// The service's word for a refresh's state, and whether it runs.
fn state_of(refresh: &Refresh) -> (&str, bool) {
    match &refresh.status {
        RefreshStatus::Running(state) => (state, true),
        RefreshStatus::Successful => ("Successful", false),
        RefreshStatus::Ended(state) => (state, false),
    }
}

fn refresh(refresh: &Refresh) -> Value {
    let (state, running) = state_of(refresh);
    json!({
        "id": refresh.id, "state": state, "running": running, "percent": refresh.percent,
        "remaining": refresh.remaining, "reason": refresh.reason,
    })
}

fn runner(runner: &RunnerStatus) -> Value {
    let RunnerStatus { id, name, state, instance, version } = runner;
    json!({ "id": id, "name": name, "state": state, "instance": instance, "version": version })
}

fn image(image: &ImageStatus, at: SystemTime) -> Value {
    json!({
        "ami": image.ami,
        "newest_of": image.newest_of.as_ref().map(ToString::to_string),
        "exists": image.exists,
        "created": image.created.map(when::stamp),
        "age_days": image.created.map(|created| when::days_between(created, at)),
        "runner": image.version,
        "lifetime": image.lifetime.as_ref().map(|lifetime| lifetime_json(lifetime, at)),
    })
}
