//! Runners whose instance is gone: registered at GitHub, offline for good.
//!
//! An instance deletes its runner itself before it ends. One that is lost without a word (its hardware, a spot instance cut
//! off) can't, and GitHub keeps the runner for a fortnight.

use std::fmt;

use kiln_config::model::{FleetName, GroupName};
use kiln_github::{Deleted, OrgClient, Runner};

use crate::error::Result;
use crate::ports::{Group, Groups, Progress};

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
pub async fn remove(
    fleet: &FleetName,
    orphans: &[Orphan],
    name: &GroupName,
    cloud: &impl Groups,
    github: &OrgClient,
    progress: &dyn Progress,
) -> Result<usize> {
    let runners = github.runners(None).await?;
    let still = among(fleet, &runners, cloud.group(name).await?.as_ref());
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
