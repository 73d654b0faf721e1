//! `cargo xtask deploy`: brings a fleet's stack to the desired state and rolls its group to the recorded image.
//!
//! CloudFormation creates the new launch template version, but must not assign it to the group: Auto Scaling can roll back only to
//! the version that the group had when the refresh began. So, before a roll, the stack's parameter `ServingLaunchTemplateVersion` pins
//! the group to the version in service. The refresh then moves the group to the new version, and Kiln checks at GitHub whether the
//! new runners are online. Only then the parameter is cleared ("settled"), which no longer changes anything, and the image is recorded
//! as the current one. An interrupted run leaves one of these states, and the next plan resumes from it.

mod apply;
mod lock;
mod observe;
mod plan;
pub(crate) mod record;
mod roll;

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use kiln_config::config::{Config, Fleet};
use kiln_config::model::{AmiId, GroupName, InstanceId, RunnerVersion};

use crate::orphans::Orphan;
use crate::ports::{Consent, KeyNames, Progress, StackRequest};
use crate::stacks::{DeadStack, StackStep};
use crate::wait::human;

pub use apply::{apply, run};
pub use lock::{Held, LockOwner, held};
pub(crate) use lock::{Lock, bucket};
pub use observe::{Observed, observe, require_key};
pub(crate) use observe::{found, recorded_image, tags_of, version_in};
pub use plan::{plan, resume_command};
pub(crate) use record::forget;
pub use record::{Record, TargetImage};

/// What to deploy.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    pub fleet: &'a Fleet,
    /// Which image.
    pub target: Target,
    /// Check one instance before the others are replaced. On by default: Auto Scaling considers an instance healthy once its launch
    /// hook is completed. Without a canary it would replace all instances before GitHub could report that no runner is online.
    pub canary: Option<Canary>,
    /// How long to wait for another run's lock.
    pub lock_wait: Duration,
}

impl<'a> Request<'a> {
    /// Deploys the newest image with a canary that must be online, without waiting for a lock.
    pub fn new(config: &'a Config, fleet: &'a Fleet) -> Self {
        let canary = Some(Canary { check: None });
        Self { config, fleet, target: Target::Latest, canary, lock_wait: Duration::ZERO }
    }
}

/// The image that a fleet should get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The newest image, unless a rollback rejected it.
    Latest,
    /// The newest image, even if a rollback rejected it.
    RetryLatest,
    /// The previous image.
    Previous,
}

/// The check of the first new instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// A command that checks the runner. Without one, the runner only has to be online.
    pub check: Option<String>,
}

/// The runner that a canary check checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryRunner {
    /// The command.
    pub check: String,
    /// The fleet's name.
    pub fleet: String,
    /// Its name at GitHub.
    pub runner: String,
    pub instance: InstanceId,
}

/// The result of a running check.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// Runs canary checks. The error of a check is the reason of its failure.
pub trait Check: Send + Sync {
    /// Checks a runner, with a timeout.
    fn check<'a>(&'a self, canary: &'a CanaryRunner) -> Checking<'a>;
}

/// The user's side of a rollout: output, confirmations, the canary check, and the name on the lock.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    /// Prints the progress.
    pub progress: &'a dyn Progress,
    /// Asks for confirmations.
    pub consent: &'a dyn Consent,
    /// Runs the canary check.
    pub check: &'a dyn Check,
    /// Identifies this run on the lock.
    pub holder: &'a LockOwner,
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("holder", self.holder).finish_non_exhaustive()
    }
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Record an image as rejected by a rollback.
    Reject {
        /// The image.
        ami: AmiId,
    },
    /// Delete that record.
    Accept {
        /// The image that was rejected.
        ami: Option<AmiId>,
    },
    /// Delete a stack that has no instance in service.
    Clear(DeadStack),
    /// Wait for a refresh that an earlier run, or someone else, started.
    AwaitRefresh {
        group: GroupName,
        /// The refresh.
        id: String,
    },
    /// Create or update one of the fleet's stacks.
    Stack(StackStep),
    /// Roll the group to the stack's newest launch template version, unless all instances have it.
    Roll {
        group: GroupName,
        /// One instance first.
        canary: Option<Canary>,
        /// Facts about the roll for the person who reads the plan.
        briefing: RollSummary,
    },
    /// Wait until every instance's runner is online at GitHub.
    Verify {
        group: GroupName,
        /// The version that they must have, if the image's tags name it.
        version: Option<RunnerVersion>,
        /// The launch template version to roll back to if they are not.
        back_to: Option<String>,
    },
    /// Let the stack follow its newest launch template version again.
    Settle(StackRequest),
    /// Record the image as the current one.
    Mark {
        /// The image.
        ami: AmiId,
        /// The image that was recorded before.
        former: Option<AmiId>,
    },
    /// Delete runners whose instance is gone.
    CleanUp {
        group: GroupName,
        /// The runners.
        orphans: Vec<Orphan>,
    },
}

impl Step {
    /// Whether the steps after this one are only a forecast, and are planned again once it is done. A successful refresh moves the group
    /// to its version; a stack step that was planned before would move it back.
    pub fn ends_the_plan(&self) -> bool {
        matches!(self, Self::AwaitRefresh { .. })
    }
}

/// Facts about a roll that no single service shows: the contents of the images, busy runners, cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RollSummary {
    /// Tags of the image that change: name, current value, new value.
    pub image: Vec<(String, Option<String>, Option<String>)>,
    /// Instances to be replaced.
    pub instances: u32,
    /// How many of them run a job now.
    pub busy: u32,
    /// How long a job may delay its instance, in seconds.
    pub drain_timeout_secs: u32,
    /// Until when GitHub supports the image's runner, if that is known.
    pub served: Option<String>,
    /// Number and types of instances now and afterwards, if they differ.
    pub capacity: Option<(String, String)>,
}

impl fmt::Display for RollSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, now, then) in &self.image {
            let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
            write!(f, "\n~ {name}: {} -> {}", shown(now), shown(then))?;
        }
        if let Some(served) = &self.served {
            write!(f, "\nits runner {served}")?;
        }
        if let Some((now, then)) = &self.capacity {
            write!(f, "\n~ instances: {now} -> {then}")?;
        }
        let limit = human(Duration::from_secs(self.drain_timeout_secs.into()));
        write!(f, "\n{} instance(s) to replace, {} of them run a job now", self.instances, self.busy)?;
        if self.busy > 0 {
            write!(f, ": each terminates when its job ends, after at most {limit}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reject { ami } => write!(f, "record {ami} as rolled back from"),
            Self::Accept { ami: Some(ami) } => write!(f, "forget that {ami} was rolled back from"),
            Self::Accept { ami: None } => f.write_str("forget what was rolled back from"),
            Self::Clear(DeadStack { name, status, reason }) => {
                write!(f, "delete stack {name}, which is in {status} and has no instance in service\n{reason}")
            }
            Self::AwaitRefresh { group, id } => {
                write!(f, "wait for instance refresh {id} of {group}, which is running")
            }
            Self::Stack(step) => step.fmt(f),
            Self::Roll { group, canary, briefing } => {
                write!(f, "roll {group} to the stack's newest launch template version")?;
                match canary {
                    Some(Canary { check: Some(check) }) => write!(f, "\none instance first, tried by: {check}")?,
                    Some(Canary { check: None }) => f.write_str("\none instance first, until its runner is online")?,
                    None => {}
                }
                briefing.fmt(f)
            }
            Self::Verify { group, version, .. } => {
                write!(f, "see the runners of {group} online at GitHub")?;
                version.as_ref().map_or(Ok(()), |version| write!(f, " with version {version}"))
            }
            Self::Settle(request) => {
                write!(f, "settle stack {}: it follows its newest launch template version again", request.name)
            }
            Self::Mark { ami, former: None } => write!(f, "record {ami} as the image that serves"),
            Self::Mark { ami, former: Some(former) } => {
                write!(f, "record {ami} as the image that serves, and {former} as the one to go back to")
            }
            Self::CleanUp { orphans, .. } => {
                write!(f, "delete {} runner(s) at GitHub whose instance is gone", orphans.len())?;
                orphans.iter().try_for_each(|orphan| write!(f, "\n- {orphan}"))
            }
        }
    }
}

/// The key's names in the stores.
pub fn key_names(config: &Config) -> KeyNames {
    KeyNames { alias: config.key_alias(), secret: config.key_secret(), tags: config.tags.clone() }
}
