//! The two documents between `deploy` and the controller. A reader accepts the format before its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::{ControllerId, FleetName, InstanceId, ScaleSetId};
use crate::intents::Intent;
use crate::ports::{ScaleSetSpec, Statistics};

/// The format that this version writes. It reads no newer one.
pub const FORMAT: u32 = 1;

/// What the fleets are to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// [`FORMAT`].
    pub format: u32,
    /// By name.
    pub fleets: BTreeMap<FleetName, Settings>,
}

/// What one fleet is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its scale set.
    pub set: ScaleSetSpec,
    /// Runners that wait for jobs while nothing is queued.
    pub min_idle: u32,
    /// The most runners at any moment.
    pub max: u32,
    /// The version of the launch template that new instances come from.
    pub version: u64,
    /// What EC2 launches them from.
    pub launch: LaunchSettings,
    /// Is spot tried first?
    #[serde(default)]
    pub spot: bool,
    /// No new jobs; those that run are finished.
    #[serde(default)]
    pub paused: bool,
    /// How long a runner that nobody needs is kept: jobs come in bursts, and EC2 bills a minute at least.
    #[serde(default = "linger")]
    pub linger_secs: u64,
    /// From the hand-over to a runner that listens. Below the five minutes after which GitHub takes an assignment back.
    #[serde(default = "boot_limit")]
    pub boot_limit_secs: u64,
    /// An idle runner older than this is replaced.
    #[serde(default = "max_age")]
    pub max_age_secs: u64,
}

/// What a fleet's instances are launched from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSettings {
    /// The launch template's id.
    pub template: String,
    /// The instance types, the preferred first.
    pub types: Vec<String>,
    /// The subnets' ids. Each type is tried in each of them.
    pub subnets: Vec<String>,
    /// The unique id of the instances' role, `AROA…`: the first part of `aws:userid`, and so of a hand-over object's key.
    pub role_id: String,
}

fn linger() -> u64 {
    120
}

fn boot_limit() -> u64 {
    240
}

fn max_age() -> u64 {
    24 * 60 * 60
}

/// How the fleets are. Each controller writes the entries of the fleets whose session it has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`FORMAT`].
    pub format: u32,
    /// By name.
    pub fleets: BTreeMap<FleetName, FleetStatus>,
}

/// How one fleet is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// Who controls it. A controller that finds another's name here has lost it.
    pub controller: ControllerId,
    /// The scale set.
    pub set: Option<ScaleSetId>,
    /// When this was written.
    pub at: Timestamp,
    /// Did that controller end in order? Then `unseen` is all that a successor must know.
    pub closed: bool,
    /// Launches that EC2 may not list yet.
    pub unseen: Vec<Intent>,
    /// Instances that nobody may end: they may run jobs of which GitHub does not know any more.
    #[serde(default)]
    pub spared: Vec<InstanceId>,
    /// What GitHub counts.
    pub statistics: Statistics,
    /// How many jobs GitHub may assign.
    pub announced: u32,
    /// Instances by state.
    pub instances: BTreeMap<String, u32>,
    /// Why jobs wait, if they do.
    pub waiting_because: Option<String>,
    /// The last failures, newest first.
    pub last_errors: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_usual_value() {
        let text = r#"{"format":1,"fleets":{"linux":{"set":{"name":"linux","group":1,"labels":["linux"]},
            "min_idle":0,"max":10,"version":1,
            "launch":{"template":"lt-0a","types":["m7i.large"],"subnets":["subnet-0a"],"role_id":"AROAEXAMPLE"}}}}"#;
        let control: Control = serde_json::from_str(text).unwrap();
        let linux = &control.fleets[&FleetName::new("linux")];
        assert_eq!((linux.linger_secs, linux.boot_limit_secs, linux.max_age_secs), (120, 240, 86_400));
        assert!(!linux.paused && !linux.spot);
    }
}
