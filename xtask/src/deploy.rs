//! `cargo xtask deploy`.

use std::path::Path;

use kiln_fleet::config::{Config, Fleet};
use kiln_fleet::model::FleetName;
use kiln_release::deploy::{self, Request};

use crate::cloud;
use crate::ui::{Failure, Ui};

/// Bring a fleet's infrastructure to the wanted state and roll it to the recorded image.
///
/// Shows what changes, executes it, rolls the group by an instance refresh that goes back by itself when new instances
/// do not register, and succeeds only when the new runners are online at GitHub. Running jobs are never cancelled.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask deploy --dry-run
  cargo xtask deploy --fleet linux")]
pub(crate) struct Args {
    /// Deploy this fleet only; may be repeated.
    #[arg(long, value_name = "NAME")]
    fleet: Vec<FleetName>,

    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(config)?;
    let fleets = cloud::fleets(&config, &args.fleet)?;
    let aws = cloud::aws(&config).await;
    for fleet in fleets {
        roll_out(args, &config, fleet, &aws, ui).await?;
    }
    Ok(())
}

async fn roll_out(args: &Args, config: &Config, fleet: &Fleet, aws: &kiln_aws::Aws, ui: &Ui) -> Result<(), Failure> {
    let request = Request { config, fleet };
    deploy::require_key(&request, aws).await?;
    let github = cloud::github(config, aws, fleet.key_store)?;
    let observed = deploy::observe(&request, aws, &github, ui).await?;
    let plan = deploy::plan(&request, &observed)?;
    ui.talk(&plan.to_string());
    if args.dry_run {
        return Ok(());
    }
    deploy::apply(&request, &plan, aws, &github, ui).await?;
    ui.clear();
    Ok(())
}
