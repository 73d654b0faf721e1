//! `cargo xtask destroy`: deletes fleets without cancelling a job.
//!
//! First it scales the group to zero. Instances terminate through the termination hook: each deletes its runner at GitHub, which
//! GitHub refuses while a job runs, and completes the hook afterwards. Only then the stack is deleted. The state of an interrupted
//! run shows in AWS (a group of size zero, or a stack that is being deleted), and the next run resumes from it.

mod apply;
mod plan;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use kiln_config::config::Config;
use kiln_config::model::{FleetName, GroupName};
use kiln_controller::ports::ScaleSetSpec;
use kiln_github::{OrgClient, Runner};

use crate::deploy::{LockOwner, Record, bucket};
use crate::error::Result;
use crate::on_demand::{self, Ending};
use crate::orphans::runner_groups_of;
use crate::ports::{Cloud, Group, Progress};
use crate::wait::human;

pub use apply::{apply, run};
pub(crate) use plan::delete;
pub use plan::{plan, require_alone, require_time};

/// What to destroy.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    /// The fleets; they need not be in kiln.toml.
    pub fleets: Vec<FleetName>,
    /// Also delete the network that fleets share.
    pub network: bool,
    /// Do not wait for jobs: they fail.
    pub now: bool,
    /// How long to wait for another run's lock.
    pub lock_wait: Duration,
}

/// The user's terminal, and the name of this run on the locks.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    /// Prints the progress.
    pub progress: &'a dyn Progress,
    /// Identifies this run on the locks.
    pub holder: &'a LockOwner,
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("holder", self.holder).finish_non_exhaustive()
    }
}

/// A stack and its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedStack {
    pub name: String,
    pub status: String,
}

/// A fleet as `destroy` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedFleet {
    pub name: FleetName,
    pub stack: Option<ObservedStack>,
    pub group: Option<Group>,
    /// What `deploy` recorded about the fleet.
    pub record: Record,
}

/// The state that `destroy` observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The requested fleets.
    pub fleets: Vec<ObservedFleet>,
    /// The fleets' runners, possibly with others; `None` if GitHub did not answer.
    pub runners: Option<Vec<Runner>>,
    /// The network's stack, if its deletion is requested.
    pub network: Option<ObservedStack>,
    /// The stacks of other fleets.
    pub others: Vec<String>,
    /// The organization's bucket, which is not deleted.
    pub bucket: String,
    /// What there is of on-demand fleets.
    pub ending: Option<Ending>,
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Scale a group to zero, so that its instances drain.
    Drain {
        group: GroupName,
        /// How many instances it has.
        instances: usize,
        /// How many of them run a job, if that is known.
        busy: Option<usize>,
    },
    /// Wait until its instances are gone.
    AwaitDrained {
        group: GroupName,
        /// How long a job may delay the termination of its instance.
        drain_timeout: Duration,
    },
    /// Delete a group with its instances, without waiting for jobs.
    Abandon {
        group: GroupName,
        /// How many instances it has.
        instances: usize,
        /// How many of them run a job, if that is known.
        busy: Option<usize>,
    },
    /// Delete the remaining runners of a fleet at GitHub.
    RemoveRunners { fleet: FleetName },
    /// Have the controller launch no more for an on-demand fleet, and remove what is idle.
    Pause {
        /// The fleet.
        fleet: FleetName,
        /// Its scale set.
        set: String,
        /// How many instances it has.
        instances: usize,
    },
    /// Wait until an on-demand fleet has no instance.
    AwaitEnded {
        /// The fleet.
        fleet: FleetName,
    },
    /// Delete a scale set at GitHub.
    RemoveScaleSet {
        /// The scale set.
        set: ScaleSetSpec,
    },
    /// Take a fleet out of the control document.
    Leave {
        /// The fleet.
        fleet: FleetName,
    },
    /// End the controller, which has no fleet left.
    StopController {
        /// Its group.
        group: GroupName,
    },
    /// Delete what is in the controller's bucket.
    EmptyBucket {
        /// The bucket.
        bucket: String,
    },
    /// Delete a stack, and wait until it is gone.
    DeleteStack {
        name: String,
        /// The deletion is already in progress.
        begun: bool,
    },
    /// Delete what `deploy` recorded about a fleet, so that a later fleet of the same name has no history.
    Forget { fleet: FleetName },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_work = |busy: &Option<usize>| {
            busy.map_or("the number of busy runners is unknown".to_owned(), |busy| {
                format!("{busy} of them run a job now")
            })
        };
        match self {
            Self::Drain { group, instances, busy } => {
                let busy = at_work(busy);
                write!(f, "scale {group} to zero\n{instances} instance(s) terminate when their jobs end, {busy}")
            }
            Self::AwaitDrained { group, drain_timeout } => {
                write!(f, "wait until {group} is empty\na job may delay its instance for {}", human(*drain_timeout))
            }
            Self::Abandon { group, instances, busy } => {
                let busy = at_work(busy);
                write!(f, "delete {group} with {instances} instance(s) at once\nrunning jobs fail: {busy}")
            }
            Self::RemoveRunners { fleet } => write!(f, "delete the remaining runners of fleet {fleet} at GitHub"),
            Self::Pause { fleet, set, instances } => {
                write!(
                    f,
                    "pause fleet {fleet}: scale set {set} gets no more jobs\n{instances} instance(s) end with their jobs"
                )
            }
            Self::AwaitEnded { fleet } => write!(f, "wait until fleet {fleet} has no instance"),
            Self::RemoveScaleSet { set } => write!(f, "delete scale set {} at GitHub", set.name),
            Self::Leave { fleet } => write!(f, "take fleet {fleet} out of the control document"),
            Self::StopController { group } => write!(f, "end the instance of {group}, which has no fleet left"),
            Self::EmptyBucket { bucket } => write!(f, "delete the documents in {bucket}"),
            Self::DeleteStack { name, begun: false } => write!(f, "delete stack {name}"),
            Self::DeleteStack { name, begun: true } => write!(f, "wait until stack {name} is deleted"),
            Self::Forget { fleet } => write!(f, "delete the record of the images of fleet {fleet}"),
        }
    }
}

/// Observes the state. Makes no mutating call. If GitHub does not answer, it prints that and continues: instances delete their
/// runners themselves.
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
    let controller = stack_of(&config.controller_stack(), cloud).await?;
    let ending = on_demand::destroy::observe(config, &request.fleets, controller, cloud).await?;
    Ok(Observed { fleets, runners, network, others, bucket, ending })
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
        None => "the App's key is not installed".to_owned(),
    };
    progress.say(&format!("GitHub did not answer, so remaining runners are not deleted there: {why}"));
    None
}

async fn stack_of(name: &str, cloud: &impl Cloud) -> Result<Option<ObservedStack>> {
    Ok(cloud.stack(name).await?.map(|stack| ObservedStack { name: stack.name, status: stack.status }))
}
