//! `cargo xtask destroy`.

use std::path::Path;
use std::time::Duration;

use kiln_aws::Aws;
use kiln_config::config::Config;
use kiln_config::model::FleetName;
use kiln_operations::destroy::{self, Request, Session};
use kiln_operations::ports::Stacks as _;
use kiln_operations::{Code, Error};

use crate::cloud;
use crate::operator::{confirmed, holder};
use crate::ui::{Failure, Ui};

/// Take fleets down once their jobs are done: their instances, their runners at GitHub, their stacks.
///
/// Each group is scaled to nothing first: its instances end their jobs and leave, which takes as long as the longest job, and
/// `drain_timeout_secs` at most. Then what runners are left at GitHub are deleted, and the stack. It asks for the fleet's name, unless
/// --yes is given. Run again at any time, it goes on from where the last run stopped; a fleet that has begun to drain takes no job
/// any more, and the way back is to let this end and to deploy it anew.
///
/// What stays: the images, the bucket, the App's key; and without --all the network that fleets share.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).args(["fleet", "all"]),
    after_help = "\
Examples:
  cargo xtask destroy --fleet linux --dry-run   what would be done, and how many jobs run
  cargo xtask destroy --fleet linux             asks for the name, then waits for the jobs
  cargo xtask destroy --all --yes               every fleet of kiln.toml, and their network
  cargo xtask destroy --fleet linux --now       does not wait: jobs that run fail"
)]
pub struct Args {
    /// Take this fleet down; may be repeated. One that kiln.toml does not name any more can be named, too.
    #[arg(long, value_name = "NAME")]
    fleet: Vec<FleetName>,

    /// Take every fleet of kiln.toml down, and the network that they share.
    #[arg(long)]
    all: bool,

    /// Do not wait for jobs: the instances end at once, and what runs on them fails.
    #[arg(long)]
    now: bool,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,

    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// How long to wait while another run works on the same fleet, in seconds.
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    lock_wait: u32,
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(config)?;
    let aws = cloud::aws(&config).await;
    let request = Request {
        fleets: fleets(args, &config, &aws).await?,
        network: args.all,
        now: args.now,
        lock_wait: Duration::from_secs(args.lock_wait.into()),
        config: &config,
    };
    let github = match cloud::stored_key(&config, &aws).await? {
        Some(store) => Some(cloud::github(&config, &aws, store)?),
        None => None,
    };
    let holder = holder();
    let operator = Session { progress: ui, holder: &holder };
    let plan = Box::pin(destroy::run(&request, &aws, github.as_ref(), operator)).await?;
    if args.dry_run || plan.is_empty() {
        return Ok(());
    }
    if !args.yes {
        let names: Vec<&str> = request.fleets.iter().map(FleetName::as_str).collect();
        confirmed(&names.join(" "))?;
    }
    Box::pin(destroy::apply(&request, &aws, github.as_ref(), operator)).await?;
    ui.clear();
    ui.talk("the images, the bucket and the App's key are still there, and the App itself at GitHub");
    Ok(())
}

/// The fleets named, in kiln.toml or by a stack that is there, or those of kiln.toml.
async fn fleets(args: &Args, config: &Config, aws: &Aws) -> Result<Vec<FleetName>, Error> {
    if args.all {
        return Ok(config.fleets.keys().cloned().collect());
    }
    for name in args.fleet.iter().filter(|name| !config.fleets.contains_key(*name)) {
        let stack = config.fleet_stack(name);
        if aws.stack(&stack).await?.is_none() {
            return Err(Error::new(
                Code::UnknownFleet,
                format!("kiln.toml has no fleet `{name}`, and there is no stack {stack}"),
            )
            .hint("`cargo xtask status` tells which there are"));
        }
    }
    Ok(args.fleet.clone())
}
