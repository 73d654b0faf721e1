//! `cargo xtask deploy`: brings a fleet's stack to the wanted state and rolls its group to the recorded image.
//!
//! CloudFormation makes the new launch template version, but must not hand it to the group: Auto Scaling can only roll
//! back to the version the group had when the refresh began. So while a roll is due, the stack's parameter
//! `ServingLaunchTemplateVersion` holds the group at the version that serves; the refresh moves the group on; GitHub is
//! asked whether the new runners are online; and only then the parameter is let go ("settled"), which changes nothing any
//! more, and the image is recorded as the current one. Whatever an interrupted run left is one of these states, and the
//! plan goes on from it.

mod apply;
mod lock;
mod observe;
mod plan;
mod record;
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
pub use lock::{Held, Holder, held};
pub(crate) use lock::{Lock, bucket};
pub use observe::{Observed, observe, require_key};
pub use plan::{plan, resume_command};
pub(crate) use record::forget;
pub use record::{Aim, Record};

/// What is to be deployed.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    pub fleet: &'a Fleet,
    /// Which image.
    pub goal: Goal,
    /// Try one instance before the rest. On by default: Auto Scaling takes an instance for good once its runner is
    /// registered, and would have replaced all before GitHub could say that none of them is heard from.
    pub canary: Option<Canary>,
    /// How long to wait for another run's lock.
    pub lock_wait: Duration,
}

impl<'a> Request<'a> {
    /// The newest image, its first runner to be seen online, waiting for nobody.
    pub fn new(config: &'a Config, fleet: &'a Fleet) -> Self {
        let canary = Some(Canary { check: None });
        Self { config, fleet, goal: Goal::Baked, canary, lock_wait: Duration::ZERO }
    }
}

/// Which image a fleet is to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The newest one, unless it was rolled back from.
    Baked,
    /// The newest one, even so.
    Again,
    /// The last one that served well before this one.
    Back,
}

/// One instance before the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// A command that tries its runner; without one it is enough that the runner is online.
    pub check: Option<String>,
}

/// The runner a canary check is about.
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

/// A future of a check.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// Runs canary checks; a text says why a runner is not good.
pub trait Check: Send + Sync {
    /// Tries a runner. Bounds itself.
    fn check<'a>(&'a self, canary: &'a CanaryRunner) -> Checking<'a>;
}

/// Who runs a roll-out: what they see, what they agree to, the check they brought, their name on the lock.
#[derive(Clone, Copy)]
pub struct Operator<'a> {
    /// What they see.
    pub progress: &'a dyn Progress,
    /// What they agree to.
    pub consent: &'a dyn Consent,
    /// How canaries are tried.
    pub check: &'a dyn Check,
    /// Their name on the lock.
    pub holder: &'a Holder,
}

impl fmt::Debug for Operator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("holder", self.holder).finish_non_exhaustive()
    }
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Record that an image is rolled back from.
    Reject {
        /// The image.
        ami: AmiId,
    },
    /// Take that back.
    Accept {
        /// The image that was rejected.
        ami: Option<AmiId>,
    },
    /// Delete a stack that serves nobody.
    Clear(DeadStack),
    /// Wait for a refresh that an earlier run, or someone else, started.
    AwaitRefresh {
        group: GroupName,
        /// The refresh.
        id: String,
    },
    /// Create or update one of the fleet's stacks.
    Stack(StackStep),
    /// Roll the group to the stack's newest launch template version, unless all of it is there.
    Roll {
        group: GroupName,
        /// One instance first.
        canary: Option<Canary>,
        /// What there is to know beforehand.
        briefing: Briefing,
    },
    /// See every instance's runner online at GitHub.
    Verify {
        group: GroupName,
        /// The version they must have, where the image tells.
        version: Option<RunnerVersion>,
        /// The launch template version to go back to when they are not.
        back_to: Option<String>,
    },
    /// Let the stack follow its newest launch template version again.
    Settle(StackRequest),
    /// Record the image as the one that serves.
    Mark {
        /// The image.
        ami: AmiId,
        /// The one recorded so far.
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
    /// The steps after this one are a forecast: they are planned again once it is done. A refresh that succeeds moves the
    /// group to its version, and a stack that was planned before would move the group back.
    pub fn ends_the_plan(&self) -> bool {
        matches!(self, Self::AwaitRefresh { .. })
    }
}

/// What no single service shows of a roll: what is in the images, who is at work, what it costs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Briefing {
    /// A tag of the image's: name, value now, value then.
    pub image: Vec<(String, Option<String>, Option<String>)>,
    /// Instances to be replaced.
    pub instances: u32,
    /// How many of them run a job now.
    pub busy: u32,
    /// How long a job may hold one up.
    pub drain_limit_secs: u32,
    /// Until when GitHub serves the image's runner, where that could be learnt.
    pub served: Option<String>,
    /// Number and types of instances, now and then, where they differ.
    pub capacity: Option<(String, String)>,
}

impl fmt::Display for Briefing {
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
        let limit = human(Duration::from_secs(self.drain_limit_secs.into()));
        write!(f, "\n{} instance(s) to replace, {} of them at work now", self.instances, self.busy)?;
        if self.busy > 0 {
            write!(f, ": each leaves when its job is done, {limit} at most")?;
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
