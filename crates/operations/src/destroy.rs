//! `cargo xtask destroy`: takes fleets down without cancelling a job.
//!
//! A group is scaled to nothing first. Its instances leave through the termination hook: each deletes its runner at GitHub,
//! which GitHub refuses while a job runs, and goes once the job is done. Only then its stack is deleted. What an interrupted
//! run left shows in AWS, a group of size nothing or a stack on its way out, and the next run goes on from it.

mod apply;
mod plan;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use kiln_config::config::Config;
use kiln_config::model::{FleetName, GroupName};
use kiln_github::{OrgClient, Runner};

use crate::deploy::{Holder, Record, bucket};
use crate::error::Result;
use crate::orphans::runner_groups_of;
use crate::ports::{Cloud, Group, Progress};
use crate::wait::human;

pub use apply::{apply, run};
pub use plan::{plan, require_alone};

/// What is to be destroyed.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    /// The fleets, named there or not.
    pub fleets: Vec<FleetName>,
    /// The network that fleets share, too.
    pub network: bool,
    /// Do not wait for jobs: they are lost.
    pub now: bool,
    /// How long to wait for another run's lock.
    pub lock_wait: Duration,
}

/// Who destroys.
#[derive(Clone, Copy)]
pub struct Operator<'a> {
    /// What they see.
    pub progress: &'a dyn Progress,
    /// Their name on the locks.
    pub holder: &'a Holder,
}

impl fmt::Debug for Operator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("holder", self.holder).finish_non_exhaustive()
    }
}

/// A stack, as far as its end is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedStack {
    pub name: String,
    pub status: String,
}

/// A fleet as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedFleet {
    pub name: FleetName,
    pub stack: Option<ObservedStack>,
    pub group: Option<Group>,
    /// What `deploy` recorded of it.
    pub record: Record,
}

/// The world as `destroy` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The fleets asked for.
    pub fleets: Vec<ObservedFleet>,
    /// The fleets' runners, and perhaps others', where GitHub could be asked.
    pub runners: Option<Vec<Runner>>,
    /// The network's stack, where it is asked for.
    pub network: Option<ObservedStack>,
    /// The stacks of fleets that are not asked for.
    pub others: Vec<String>,
    /// The organization's bucket, which stays.
    pub bucket: String,
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Scale a group to nothing, so that its instances drain.
    Drain {
        group: GroupName,
        /// How many instances it has.
        instances: usize,
        /// How many of them run a job, where that is known.
        busy: Option<usize>,
    },
    /// Wait until its instances are gone.
    AwaitDrained {
        group: GroupName,
        /// The longest a job may hold an instance up.
        drain_limit: Duration,
    },
    /// Delete a group with its instances, whatever they do.
    Abandon {
        group: GroupName,
        /// How many instances it has.
        instances: usize,
        /// How many of them run a job, where that is known.
        busy: Option<usize>,
    },
    /// Delete what runners of a fleet are left at GitHub.
    RemoveRunners { fleet: FleetName },
    /// Delete a stack, and wait until it is gone.
    DeleteStack {
        name: String,
        /// An earlier run, or somebody, has begun it.
        begun: bool,
    },
    /// Delete what `deploy` recorded of a fleet: one of that name that is made later has no history.
    Forget { fleet: FleetName },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_work = |busy: &Option<usize>| {
            busy.map_or("how many of them are at work is not known".to_owned(), |busy| {
                format!("{busy} of them at work now")
            })
        };
        match self {
            Self::Drain { group, instances, busy } => {
                let busy = at_work(busy);
                write!(f, "scale {group} to nothing\n{instances} instance(s) leave when their jobs are done, {busy}")
            }
            Self::AwaitDrained { group, drain_limit } => {
                write!(f, "wait until {group} is empty\na job may hold an instance up for {}", human(*drain_limit))
            }
            Self::Abandon { group, instances, busy } => {
                let busy = at_work(busy);
                write!(f, "delete {group} with {instances} instance(s) at once\nrunning jobs fail: {busy}")
            }
            Self::RemoveRunners { fleet } => write!(f, "delete the runners of fleet {fleet} that are left at GitHub"),
            Self::DeleteStack { name, begun: false } => write!(f, "delete stack {name}"),
            Self::DeleteStack { name, begun: true } => write!(f, "wait until stack {name} is deleted"),
            Self::Forget { fleet } => write!(f, "forget which images fleet {fleet} served with"),
        }
    }
}

/// Looks at the world. Makes no mutating call. Where GitHub can't be asked that is said, and goes on: instances delete
/// their runners themselves.
///
/// # Errors
/// What AWS answers.
pub async fn observe(
    request: &Request<'_>,
    cloud: &impl Cloud,
    github: Option<&OrgClient>,
    progress: &dyn Progress,
) -> Result<Observed> {
    let config = request.config;
    let bucket = bucket(config, cloud).await?;
    let groups = runner_groups_of(config, &request.fleets, cloud).await?;
    let runners = runners(github, &groups, progress).await;
    let mut fleets = Vec::new();
    for name in &request.fleets {
        let stack = stack_of(&config.fleet_stack(name), cloud).await?;
        let group = cloud.group(&config.group(name)).await?;
        let record = Record::read(config, name, cloud).await?;
        fleets.push(ObservedFleet { name: name.clone(), stack, group, record });
    }
    let (mut network, mut others) = (None, Vec::new());
    if request.network {
        network = stack_of(&config.network_stack(), cloud).await?;
        let asked: Vec<String> = request.fleets.iter().map(|name| config.fleet_stack(name)).collect();
        others = cloud.stacks_named(&config.fleet_stack_prefix()).await?;
        others.retain(|name| !asked.contains(name));
    }
    Ok(Observed { fleets, runners, network, others, bucket })
}

async fn runners(
    github: Option<&OrgClient>,
    groups: &BTreeSet<String>,
    progress: &dyn Progress,
) -> Option<Vec<Runner>> {
    let why = match github {
        Some(github) => match github.runners_in(groups).await {
            Ok(runners) => return Some(runners),
            Err(error) => error.to_string(),
        },
        None => "no key of the App is installed".to_owned(),
    };
    progress.say(&format!("GitHub could not be asked, so runners that are left there stay: {why}"));
    None
}

async fn stack_of(name: &str, cloud: &impl Cloud) -> Result<Option<ObservedStack>> {
    Ok(cloud.stack(name).await?.map(|stack| ObservedStack { name: stack.name, status: stack.status }))
}
