//! Runners whose instance is gone: registered at GitHub, offline for good.
//!
//! An instance deletes its runner itself before it ends. One that is lost without a word (its hardware, a spot instance cut
//! off) can't, and GitHub keeps the runner for a fortnight.

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
    /// Its id at GitHub.
    pub id: u64,
    /// Its name, which ends with the instance's id or with that and a boot's suffix.
    pub name: String,
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What every runner's name of a fleet begins with. Another fleet's name may begin with this one's: an instance's id
/// follows.
pub fn name_prefix(fleet: &FleetName) -> String {
    format!("{fleet}-i-")
}

/// The runner groups that a fleet's runners may be in: kiln.toml's, and the one that its instances were told of, which is
/// another until a change of it is rolled out. None where neither is known.
pub fn runner_groups(fleet: Option<&Fleet>, stack: Option<&Stack>) -> BTreeSet<String> {
    let told = stack.and_then(|stack| stack.parameters.get("BootConfig"));
    let told =
        told.and_then(|text| serde_json::from_str::<Value>(text).ok()?["runner_group"].as_str().map(str::to_owned));
    fleet.map(|fleet| fleet.runner_group.clone()).into_iter().chain(told).collect()
}

/// The runner groups that the fleets of these names may have runners in; none, and so all, where one of them is unknown.
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

/// Is the runner an instance's?
pub fn is_of(runner: &Runner, instance: &str) -> bool {
    runner.name.split_once(instance).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('-'))
}

/// The fleet's orphans among runners. The runners must have been read *before* the group was: an instance that is new since
/// is in the group then, and an instance that is gone since has deleted its runner.
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

/// Deletes orphans that still are some when looked at again. Says how many there were.
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
            Deleted::Busy => progress.say(&format!("{orphan} runs a job, GitHub says: left alone")),
        }
    }
    Ok(removed)
}
