//! `cargo xtask pin`.

use std::io::Write as _;
use std::path::Path;
use std::time::SystemTime;

use kiln_config::config::Config;
use kiln_operations::freshness::Lifetime;
use kiln_operations::pin::{self, Checkup, Finding, Place, Step};
use kiln_operations::plan::Plan;
use kiln_operations::{Code, Error, when};
use serde_json::{Value, json};

use crate::cloud;
use crate::ui::{Failure, Ui};

/// Move the pins in kiln.toml to the newest runner, or show how long GitHub still serves what is in use.
///
/// Asks GitHub, as the App, for the newest release of actions/runner that the organization is offered and for its
/// published digests, and where Amazon Linux 2 is in use the Node project for its builds, and writes them into kiln.toml;
/// comments and order stay. `ami` and `deploy` then roll it out.
///
/// With --check nothing is written: for the runner that is pinned, the ones in the recorded images and the ones that the
/// fleets launch, it tells until when they may register and get jobs. It ends with exit code 8 when one of them has to be
/// renewed within 14 days, so that a scheduled pipeline can open a pull request.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask pin --dry-run
  cargo xtask pin --check || cargo xtask pin
  cargo xtask pin --check --json

Results: changes and written; with --check urgency, newest_runner, runners, wrong_digests,
base_images")]
pub struct Args {
    /// Write nothing; exit with 8 when something has to be renewed within 14 days.
    #[arg(long)]
    check: bool,

    /// Print what would change in kiln.toml and change nothing.
    #[arg(long, conflicts_with = "check")]
    dry_run: bool,
}

pub(crate) async fn run(args: &Args, path: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(path)?;
    let aws = cloud::aws(&config).await;
    let github = cloud::github_by_any_key(&config, &aws).await?;
    if args.check {
        let checkup = pin::check(&config, &aws, &github).await?;
        return Ok(report(&checkup, ui)?);
    }
    let offer = pin::offer(&config, &github, &cloud::HttpClient::new()?).await?;
    let plan = pin::plan(&config, &offer);
    ui.plan(&plan);
    record(&planned(&plan, args.dry_run), ui);
    if args.dry_run || plan.is_empty() {
        return Ok(());
    }
    write(path, &plan)?;
    ui.talk("now run `cargo xtask ami`, then `cargo xtask deploy`");
    Ok(())
}

/// Each of an object's values as a result of its own.
fn record(values: &Value, ui: &Ui) {
    for (name, value) in values.as_object().into_iter().flatten() {
        ui.record(name, value.clone());
    }
}

fn planned(plan: &Plan<Step>, dry_run: bool) -> Value {
    let step = |step: &Step| json!({ "key": step.key.join("."), "from": step.from, "to": step.to });
    let steps: Vec<Value> = plan.steps.iter().map(step).collect();
    json!({ "changes": steps, "written": !dry_run && !plan.is_empty() })
}

/// The new text is read as kiln.toml before the old one is replaced, whole or not at all.
fn write(path: &Path, plan: &Plan<Step>) -> Result<(), Error> {
    let name = path.display().to_string();
    let cannot = |error: std::io::Error| {
        Error::new(Code::FileUnwritable, format!("can't write `{name}`")).caused_by(error).hint("nothing was changed")
    };
    let text = std::fs::read_to_string(path).map_err(cannot)?;
    let text = pin::rewritten(&text, plan)?;
    Config::from_toml(&name, &text).map_err(|error| Error::new(Code::ConfigInvalid, error.to_string()))?;
    // A link stays one: what it leads to is replaced.
    let path = path.canonicalize().map_err(cannot)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(cannot)?;
    file.write_all(text.as_bytes()).map_err(cannot)?;
    file.as_file().set_permissions(std::fs::metadata(&path).map_err(cannot)?.permissions()).map_err(cannot)?;
    file.persist(&path).map_err(|error| cannot(error.error))?;
    Ok(())
}

fn report(checkup: &Checkup, ui: &Ui) -> Result<(), Error> {
    let now = SystemTime::now();
    for line in checkup.lines(now) {
        ui.talk(&line);
    }
    record(&checked(checkup, now), ui);
    pin::require_fresh(checkup, now)
}

fn checked(checkup: &Checkup, now: SystemTime) -> Value {
    let findings: Vec<Value> = checkup.findings.iter().map(|finding| found(finding, now)).collect();
    let bases = checkup.bases.iter().map(|(image, baked, newest)| {
        json!({ "image": image.to_string(), "baked_from": baked.as_ref().map(ToString::to_string),
                "newest": newest.to_string() })
    });
    json!({
        "urgency": checkup.urgency(now),
        "newest_runner": checkup.offer.version.to_string(),
        "runners": findings,
        "wrong_digests": checkup.wrong_digests.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "base_images": bases.collect::<Vec<_>>(),
    })
}

fn found(finding: &Finding, now: SystemTime) -> Value {
    let mut value = match &finding.place {
        Place::Pinned => json!({ "place": "pinned" }),
        Place::Recorded { image, ami } => {
            json!({ "place": "recorded", "image": image.to_string(), "ami": ami.to_string() })
        }
        Place::Deployed { fleet, ami } => {
            json!({ "place": "deployed", "fleet": fleet.to_string(), "ami": ami.to_string() })
        }
    };
    value["lifetime"] = finding.lifetime.as_ref().map_or(Value::Null, |lifetime| lifetime_json(lifetime, now));
    value
}

/// A version's lifetime for machines.
pub(crate) fn lifetime_json(lifetime: &Lifetime, now: SystemTime) -> Value {
    json!({
        "version": lifetime.version.to_string(),
        "registers_until": lifetime.registers_until.map(when::stamp),
        "runs_until": lifetime.runs_until.map(when::stamp),
        "days_left": lifetime.end().map(|end| when::days_between(now, end)),
        "basis": lifetime.basis,
        "urgency": lifetime.urgency(now),
    })
}
