//! Makes the plan of `destroy` from what was observed. Pure functions.

use std::time::Duration;

use kiln_config::model::FleetName;

use super::{Observed, ObservedFleet, ObservedStack, Request, Step};
use crate::code::Code;
use crate::error::{Error, Result};
use crate::orphans::{self, is_of};
use crate::plan::Plan;
use crate::ports::Group;

/// The longest time that Auto Scaling's hooks allow, for a fleet that is no longer in kiln.toml.
const LONGEST_DRAIN: Duration = Duration::from_secs(48 * 3600);

/// The steps that delete the fleets; pure.
pub fn plan(request: &Request<'_>, observed: &Observed) -> Plan<Step> {
    let fleets = &observed.fleets;
    // All fleets start to drain before the command waits for the first.
    let mut steps: Vec<Step> = fleets.iter().filter_map(|fleet| empty(request, observed, fleet)).collect();
    let ending = observed.ending.iter();
    steps.extend(fleets.iter().flat_map(|fleet| ending.clone().filter_map(|ending| ending.pause(&fleet.name))));
    steps.extend(fleets.iter().filter_map(|fleet| await_empty(request, fleet)));
    steps.extend(fleets.iter().flat_map(|fleet| ending.clone().filter_map(|ending| ending.await_ended(&fleet.name))));
    for fleet in fleets {
        steps.extend(ending.clone().flat_map(|ending| ending.leave(&fleet.name)));
        if leaves_runners(observed, fleet) {
            steps.push(Step::RemoveRunners { fleet: fleet.name.clone() });
        }
        steps.extend(fleet.stack.as_ref().map(delete));
        if fleet.record != crate::deploy::Record::default() {
            steps.push(Step::Forget { fleet: fleet.name.clone() });
        }
    }
    steps.extend(ending.flat_map(|ending| ending.end(&request.fleets)));
    steps.extend(observed.network.as_ref().map(delete));
    let names: Vec<&str> = request.fleets.iter().map(FleetName::as_str).collect();
    let settled = format!(
        "nothing of {} is there; the images, the App's key and the bucket {} stay",
        if names.len() == 1 { "it" } else { "them" },
        observed.bucket
    );
    Plan { subject: format!("destroy fleet {}", names.join(", ")), steps, settled }
}

/// Fails if other fleets use the network that is to be deleted.
///
/// # Errors
/// [`crate::Kind::Precondition`] with the stacks of those fleets.
pub fn require_alone(observed: &Observed) -> Result<()> {
    if observed.network.is_none() || observed.others.is_empty() {
        return Ok(());
    }
    let message = format!("fleets that are not in kiln.toml use the network: {}", observed.others.join(", "));
    Err(Error::new(Code::NetworkInUse, message).hint("destroy them first, with `--fleet NAME`"))
}

/// Refuses to end at once what it can't.
///
/// # Errors
/// [`crate::Kind::Precondition`] with the first on-demand fleet of the request.
pub fn require_time(request: &Request<'_>, observed: &Observed) -> Result<()> {
    match &observed.ending {
        Some(ending) if request.now => ending.require_time(&request.fleets),
        _ => Ok(()),
    }
}

fn empty(request: &Request<'_>, observed: &Observed, fleet: &ObservedFleet) -> Option<Step> {
    let group = fleet.group.as_ref()?;
    let (name, instances, busy) = (group.name.clone(), group.instances.len(), busy(observed, group));
    if request.now {
        return Some(Step::Abandon { group: name, instances, busy });
    }
    (group.max > 0 || group.desired > 0).then_some(Step::Drain { group: name, instances, busy })
}

fn await_empty(request: &Request<'_>, fleet: &ObservedFleet) -> Option<Step> {
    let group = fleet.group.as_ref().filter(|group| !request.now && !group.instances.is_empty())?;
    let known = request.config.fleets.get(&fleet.name);
    let drain_timeout = known.map_or(LONGEST_DRAIN, |fleet| Duration::from_secs(fleet.drain_timeout_secs.into()));
    Some(Step::AwaitDrained { group: group.name.clone(), drain_timeout })
}

fn busy(observed: &Observed, group: &Group) -> Option<usize> {
    let runners = observed.runners.as_ref()?;
    let at_work = |id: &str| runners.iter().any(|runner| runner.busy && is_of(runner, id));
    Some(group.instances.iter().filter(|instance| at_work(instance.id.as_str())).count())
}

/// Whether the fleet may have runners at GitHub that no instance deletes.
fn leaves_runners(observed: &Observed, fleet: &ObservedFleet) -> bool {
    // A runner of a scale set that has not come online yet is no leftover: the controller removes those that are.
    if observed.ending.as_ref().is_some_and(|ending| ending.has(&fleet.name)) {
        return false;
    }
    let Some(runners) = &observed.runners else { return false };
    let instances = fleet.group.as_ref().is_some_and(|group| !group.instances.is_empty());
    instances || !orphans::among(&fleet.name, runners, fleet.group.as_ref()).is_empty()
}

pub(crate) fn delete(stack: &ObservedStack) -> Step {
    Step::DeleteStack { name: stack.name.clone(), begun: stack.status == "DELETE_IN_PROGRESS" }
}
