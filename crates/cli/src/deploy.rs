//! `cargo xtask deploy`.

use std::path::Path;
use std::time::Duration;

use kiln_config::config::{Config, Fleet};
use kiln_config::model::FleetName;
use kiln_operations::deploy::{self, Canary, LockOwner, Request, Session, Target};
use kiln_operations::{Code, Error, doctor, on_demand};

use crate::cloud;
use crate::operator::{TerminalUser, holder};
use crate::ui::{Failure, Ui};

/// Bring a fleet's infrastructure to the desired state and roll it to the recorded image.
///
/// Shows what changes, executes it, rolls the group by an instance refresh, one instance first, and succeeds only when the
/// new runners are online at GitHub with the image's version. New instances that do not get there are rolled back while
/// the ones before still serve. Running jobs are never cancelled. Run again at any time, it goes on from where the last run stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask deploy --dry-run                       what would be done
  cargo xtask deploy --fleet linux                   one fleet; all of them without the flag
  cargo xtask deploy --canary-check ./try-runner.sh  the rest only once the script ends well;
                                                     it has KILN_RUNNER and KILN_INSTANCE
  cargo xtask deploy --rollback                      back to the image that served well before
  cargo xtask deploy --retry                         on again to the image rolled back from

What a run leaves when it fails:
  the stack's change fails      CloudFormation went back; the instances were not touched
  new instances do not serve    rolled back; the version before serves (exit code 6)
  somebody cancels the refresh  both versions serve; run it again, or with --rollback
  the run is killed             AWS goes on with the step under way; run it again

It asks before the group or what holds data is replaced; off a terminal it stops there, unless
--yes is given.")]
pub struct Args {
    /// Deploy this fleet only; may be repeated.
    #[arg(long, value_name = "NAME")]
    fleet: Vec<FleetName>,

    /// Deploy every fleet of kiln.toml, one after the other; so it does without `--fleet`, too.
    #[arg(long, conflicts_with = "fleet")]
    all: bool,

    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// Agree beforehand to what it would ask about.
    #[arg(long, short)]
    yes: bool,

    /// Go back to the image that served well before this one, and keep pipelines from rolling this one out again.
    #[arg(long, conflicts_with_all = ["retry"])]
    rollback: bool,

    /// Roll out the newest image even if it was rolled back from.
    #[arg(long)]
    retry: bool,

    /// Replace the other instances only once this command, run by `sh -c`, has ended well within half an hour; in the
    /// place of the fleet's `canary_check`.
    #[arg(long, value_name = "COMMAND")]
    canary_check: Option<String>,

    /// Replace a tenth of the instances at a time from the beginning, not one of them first.
    #[arg(long, conflicts_with = "canary_check")]
    no_canary: bool,

    /// How long to wait while another run deploys the same fleet, in seconds. A run that died is waited for no longer than
    /// 90 s.
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    lock_wait: u32,

    /// Deploy a fleet whose runner group is open to public repositories: whoever opens a pull request there runs code on
    /// its instances.
    #[arg(long)]
    allow_public_repositories: bool,
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(config)?;
    let fleets = cloud::fleets(&config, &args.fleet)?;
    let aws = cloud::aws(&config).await;
    let holder = holder();
    for fleet in fleets {
        Box::pin(rollout(args, &config, fleet, &aws, &holder, ui)).await?;
    }
    ui.clear();
    Ok(())
}

async fn rollout(
    args: &Args,
    config: &Config,
    fleet: &Fleet,
    aws: &kiln_aws::Aws,
    holder: &LockOwner,
    ui: &Ui,
) -> Result<(), Failure> {
    let request = request(args, config, fleet);
    deploy::require_key(config, fleet, aws).await?;
    let github = cloud::github(config, aws, fleet.key_store)?;
    if !args.allow_public_repositories {
        doctor::require_private_group(fleet, &github).await?;
    }
    let person = TerminalUser { yes: args.yes };
    let operator = Session { progress: ui, consent: &person, check: &person, holder };
    if fleet.on_demand.is_some() {
        require_no_canary_check(args, fleet)?;
        Box::pin(on_demand::run(&request, args.dry_run, aws, &github, operator)).await?;
        return Ok(());
    }
    Box::pin(deploy::run(&request, args.dry_run, aws, &github, operator)).await?;
    Ok(())
}

/// A flag that would do nothing is refused.
fn require_no_canary_check(args: &Args, fleet: &Fleet) -> Result<(), Error> {
    if args.canary_check.is_none() {
        return Ok(());
    }
    let message = format!("fleet {} is on demand, which has no canary to check yet", fleet.name);
    Err(Error::new(Code::PreconditionsUnmet, message)
        .hint("leave out `--canary-check`, or name other fleets by `--fleet`"))
}

fn request<'a>(args: &Args, config: &'a Config, fleet: &'a Fleet) -> Request<'a> {
    let target = match (args.rollback, args.retry) {
        (true, _) => Target::Previous,
        (_, true) => Target::RetryLatest,
        _ => Target::Latest,
    };
    let canary =
        (!args.no_canary).then(|| Canary { check: args.canary_check.clone().or_else(|| fleet.canary_check.clone()) });
    let lock_wait = Duration::from_secs(args.lock_wait.into());
    Request { target, canary, lock_wait, ..Request::new(config, fleet) }
}
