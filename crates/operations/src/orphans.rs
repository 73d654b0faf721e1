//! Orphaned runners: registered at GitHub, but their instance no longer exists.
//!
//! An instance deletes its runner before it terminates. An instance that is lost suddenly (failed hardware, an interrupted Spot
//! instance) can't, and GitHub keeps the offline runner for 14 days.

use std::collections::BTreeSet;
use std::fmt;

use kiln_config::config::{Config, Fleet};
use kiln_config::model::FleetName;
use kiln_github::{Deleted, OrgClient, Runner};
use serde_json::Value;

use crate::error::Result;
use crate::ports::{Group, Groups, Progress, Stack, Stacks};

/// A runner whose instance is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The runner's id at GitHub.
    pub id: u64,
    /// The runner's name. It ends with the instance's id, or with that and a suffix of the boot.
    pub name: String,
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The prefix of the names of a fleet's runners. It includes the beginning of an instance id, because another fleet's name may
/// begin with this fleet's name.
pub fn name_prefix(fleet: &FleetName) -> String {
    format!("{fleet}-i-")
}

/// The runner groups that a fleet's runners may be in: the one in kiln.toml, and the one in the boot configuration of its
/// instances. They differ until a change is rolled out. Empty if neither is known.
pub fn runner_groups(fleet: Option<&Fleet>, stack: Option<&Stack>) -> BTreeSet<String> {
    let told = stack.and_then(|stack| stack.parameters.get("BootConfig"));
    let told =
        told.and_then(|text| serde_json::from_str::<Value>(text).ok()?["runner_group"].as_str().map(str::to_owned));
    fleet.map(|fleet| fleet.runner_group.clone()).into_iter().chain(told).collect()
}

/// The runner groups that the runners of these fleets may be in. Empty, which means all groups, if the group of a fleet is
/// unknown.
///
/// # Errors
/// What AWS answers.
pub async fn runner_groups_of(
    config: &Config,
    fleets: impl IntoIterator<Item = &FleetName>,
    cloud: &impl Stacks,
) -> Result<BTreeSet<String>> {
    let mut groups = BTreeSet::new();
    for name in fleets {
        let stack = cloud.stack(&config.fleet_stack(name)).await?;
        let of_fleet = runner_groups(config.fleets.get(name), stack.as_ref());
        if of_fleet.is_empty() {
            return Ok(BTreeSet::new());
        }
        groups.extend(of_fleet);
    }
    Ok(groups)
}

/// Whether `instance` registered the runner. The runner's name contains the instance's id.
pub fn is_of(runner: &Runner, instance: &str) -> bool {
    runner.name.split_once(instance).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('-'))
}

/// The fleet's orphans among `runners`. The caller must read the runners *before* the group: then a new runner's instance is in the
/// group, and an instance that terminated in between has deleted its runner.
pub fn among(fleet: &FleetName, runners: &[Runner], group: Option<&Group>) -> Vec<Orphan> {
    let prefix = name_prefix(fleet);
    let instances = group.map_or(&[][..], |group| &group.instances);
    runners
        .iter()
        .filter(|runner| runner.name.starts_with(&prefix) && !runner.is_online() && !runner.busy)
        .filter(|runner| !instances.iter().any(|instance| is_of(runner, instance.id.as_str())))
        .map(|runner| Orphan { id: runner.id, name: runner.name.clone() })
        .collect()
}

/// Checks the orphans again and deletes those that still are. Returns the number of deleted runners.
///
/// # Errors
/// What AWS and GitHub answer.
pub async fn remove<C: Groups + Stacks>(
    config: &Config,
    fleet: &FleetName,
    orphans: &[Orphan],
    cloud: &C,
    github: &OrgClient,
    progress: &dyn Progress,
) -> Result<usize> {
    let runners = github.runners_in(&runner_groups_of(config, [fleet], cloud).await?).await?;
    let still = among(fleet, &runners, cloud.group(&config.group(fleet)).await?.as_ref());
    let mut removed = 0;
    for orphan in orphans.iter().filter(|orphan| still.contains(orphan)) {
        match github.delete_runner(orphan.id).await? {
            Deleted::Gone => removed += 1,
            Deleted::Absent => {}
            Deleted::Busy => progress.say(&format!("GitHub says that {orphan} runs a job: not deleted")),
        }
    }
    Ok(removed)
}
