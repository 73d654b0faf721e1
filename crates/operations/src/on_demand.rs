//! On-demand fleets: no group, but a launch template that the organization's controller launches from.
//!
//! `deploy` makes two stacks, the controller's and the fleet's, and writes what the fleet is to be into the control document
//! in the controller's bucket. A rollout is one write of that document: new instances come from the version it names, those
//! that run jobs end with them. So a rollback is one write too, and the stack follows it.
//!
//! The controller lives where the first on-demand fleet by name does, the *host*: its image, its network, its proxy.

mod apply;
mod control;
pub(crate) mod destroy;
mod observe;
mod plan;
mod requests;
mod status;

use std::fmt;

use kiln_config::model::{AmiId, FleetName, GroupName};
use kiln_controller::documents::{LaunchSettings, Settings};
use kiln_controller::ports::ScaleSetSpec;

use crate::fleet_stack::is_reference;
use crate::stacks::{DeadStack, StackStep};

pub use apply::run;
pub use control::{Read, read_control, read_status};
pub use destroy::Ending;
pub use kiln_controller::ports::Statistics;
pub use observe::{Observed, observe};
pub use plan::{CONTROLLERS_LAUNCH_PARAMETERS, plan};
pub use requests::{
    CONTROLLER_TEMPLATE, ON_DEMAND_TEMPLATE, control_bucket, controller_request, fleet_request, require_kind,
};
pub use status::{Health, health};

/// What the control document is to say of a fleet. What a stack has yet to make is a reference to its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The scale set.
    pub set: ScaleSetSpec,
    /// Runners that wait for jobs while nothing is queued.
    pub min_idle: u32,
    /// The most runners.
    pub max: u32,
    /// Is spot tried first?
    pub spot: bool,
    /// How long a runner that nobody needs is kept.
    pub linger_secs: u64,
    /// An idle runner older than this is replaced.
    pub max_age_secs: u64,
    /// The instance types.
    pub types: Vec<String>,
    /// The launch template.
    pub template: String,
    /// Its version.
    pub version: String,
    /// The subnets, with commas between them.
    pub subnets: String,
    /// The unique id of the instances' role.
    pub role_id: String,
}

/// From the hand-over to a runner that listens: below the five minutes after which GitHub takes an assignment back.
///
/// Source: <https://github.com/actions/actions-runner-controller/issues/4602>
const BOOT_LIMIT_SECS: u64 = 240;

impl Entry {
    /// The document's own form, once every stack is there.
    pub fn settings(&self) -> Option<Settings> {
        let Self { template, version, subnets, role_id, .. } = self;
        if [template, version, subnets, role_id].into_iter().any(|value| is_reference(value)) {
            return None;
        }
        Some(Settings {
            set: self.set.clone(),
            min_idle: self.min_idle,
            max: self.max,
            version: version.parse().ok()?,
            launch: LaunchSettings {
                template: template.clone(),
                types: self.types.clone(),
                subnets: subnets.split(',').map(str::to_owned).collect(),
                role_id: role_id.clone(),
            },
            spot: self.spot,
            paused: false,
            linger_secs: self.linger_secs,
            boot_limit_secs: BOOT_LIMIT_SECS,
            max_age_secs: self.max_age_secs,
        })
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
    /// Launch from a version that is there already, before anything else.
    PointBack {
        /// The version.
        version: u64,
        /// Its image.
        ami: AmiId,
    },
    /// Create or update the network's stack, the controller's, or the fleet's.
    Stack(StackStep),
    /// Say in the control document what the fleet is to be.
    Control {
        /// What it is to be.
        entry: Entry,
        /// What is another now: setting, value now, value then.
        changes: Vec<(String, String)>,
    },
    /// Replace the controller's instance by one of the newest launch template version.
    RollController {
        /// Its group.
        group: GroupName,
    },
    /// See the controller at work on the fleet, by its own status.
    AwaitController {
        /// The fleet.
        fleet: FleetName,
    },
    /// Record the image as the one that serves.
    Mark {
        /// The image.
        ami: AmiId,
        /// The one recorded so far.
        former: Option<AmiId>,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reject { ami } => write!(f, "record {ami} as rolled back from"),
            Self::Accept { ami: Some(ami) } => write!(f, "forget that {ami} was rolled back from"),
            Self::Accept { ami: None } => f.write_str("forget what was rolled back from"),
            Self::Clear(DeadStack { name, status, reason }) => {
                write!(f, "delete stack {name}, which is in {status} and holds nothing that serves\n{reason}")
            }
            Self::PointBack { version, ami } => {
                write!(f, "launch from launch template version {version}, which has {ami}, from now on")
            }
            Self::Stack(step) => step.fmt(f),
            Self::Control { entry, changes } => {
                write!(f, "say in the control document what scale set {} is to be", entry.set.name)?;
                changes.iter().try_for_each(|(name, change)| write!(f, "\n~ {name}: {change}"))
            }
            Self::RollController { group } => {
                write!(f, "replace the instance of {group}\nrunning jobs continue; jobs that are queued meanwhile wait")
            }
            Self::AwaitController { fleet } => write!(f, "see the controller at work on fleet {fleet}"),
            Self::Mark { ami, former: None } => write!(f, "record {ami} as the image that serves"),
            Self::Mark { ami, former: Some(former) } => {
                write!(f, "record {ami} as the image that serves, and {former} as the one to go back to")
            }
        }
    }
}
