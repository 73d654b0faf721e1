//! Makes the plan of `deploy` from what was observed. Pure functions.

use std::collections::{BTreeMap, BTreeSet};

use kiln_config::config::{Config, Network};
use kiln_config::model::RunnerVersion;
use kiln_github::Runner;

use super::{Canary, Observed, Request, RollSummary, Step};
use crate::code::Code;
use crate::error::{Error, Result};
use crate::fleet_stack::{LAUNCH_PARAMETERS, SERVING, keep_names, network_request, stack_request};
use crate::freshness::{Basis, Lifetime};
use crate::orphans::{self, is_of};
use crate::plan::Plan;
use crate::ports::{
    Group, GroupInstance, LaunchTemplateVersion, Refresh, RefreshStatus, Stack, StackRequest, Suspension,
};
use crate::stacks::{self, Difference, StackStep};

/// The steps that bring the fleet to its desired state; pure.
///
/// # Errors
/// [`crate::Kind::Configuration`] if the boot configuration is too large for a stack parameter.
pub fn plan(request: &Request<'_>, observed: &Observed) -> Result<Plan<Step>> {
    let planner = Planner::new(request, observed)?;
    let mut steps = planner.before();
    steps.extend(match (&observed.stack, &observed.group) {
        (Some(stack), Some(group)) => planner.there(stack, group)?,
        _ => planner.new_fleet(),
    });
    steps.extend(planner.after(&steps));
    let subject = format!("fleet {}", request.fleet.name);
    Ok(Plan { subject, steps, settled: planner.settled_because() })
}

struct Planner<'a> {
    request: &'a Request<'a>,
    observed: &'a Observed,
    /// The desired state of the stack at the end of the plan.
    settled: StackRequest,
}

impl<'a> Planner<'a> {
    fn new(request: &'a Request<'a>, observed: &'a Observed) -> Result<Self> {
        // The boot configuration names the runner version that the image contains.
        let mut config: Config = request.config.clone();
        if let Some(version) = observed.runner_version() {
            config.runner.version = version;
        }
        let mut settled = stack_request(&config, request.fleet, &observed.aim.ami, observed.network.as_ref(), "")?;
        if let Some(stack) = &observed.stack {
            keep_names(&mut settled, stack);
        }
        Ok(Self { request, observed, settled })
    }

    /// The first steps, which do not depend on the fleet's state.
    fn before(&self) -> Vec<Step> {
        let Observed { aim, dead, network, .. } = self.observed;
        let mut steps = Vec::new();
        if let Some(ami) = &aim.reject {
            steps.push(Step::Reject { ami: ami.clone() });
        }
        if aim.accept {
            steps.push(Step::Accept { ami: self.observed.record.rejected.clone() });
        }
        steps.extend(dead.iter().cloned().map(Step::Clear));
        if self.request.fleet.network == Network::NewVpc {
            let request = network_request(self.request.config);
            if let Some(difference) = stacks::difference(network.as_ref(), &request) {
                steps.push(Step::Stack(StackStep { request, difference }));
            }
        }
        steps
    }

    /// The steps for a fleet without a stack, or with a stack but no group.
    fn new_fleet(&self) -> Vec<Step> {
        let request = self.settled.clone();
        let difference = stacks::difference(self.observed.stack.as_ref(), &request);
        let stack = difference.map(|difference| Step::Stack(StackStep { request, difference }));
        stack.into_iter().chain([self.verify(None)]).collect()
    }

    fn there(&self, stack: &Stack, group: &Group) -> Result<Vec<Step>> {
        let held_at = stack.parameters.get(SERVING).cloned().unwrap_or_default();
        let live = group.launch_template.as_ref().map(|live| live.version.clone()).unwrap_or_default();
        let newest = newest_version(stack);
        let launches_anew = stacks::difference(Some(stack), &self.serving(&held_at))
            .is_some_and(|difference| difference.touches(LAUNCH_PARAMETERS));
        let running = self.observed.refresh.as_ref().filter(|refresh| is_running(refresh));
        let mut steps = Vec::new();
        if let Some(refresh) = running {
            steps.push(Step::AwaitRefresh { group: group.name.clone(), id: refresh.id.clone() });
        }
        if launches_anew || running.is_some() || !all_on(group, newest.as_ref()) {
            // Auto Scaling changes the group's own version only after a successful refresh.
            let request = self.serving(&live);
            if let Some(difference) = stacks::difference(Some(stack), &request).filter(|_| launches_anew) {
                steps.push(Step::Stack(StackStep { request, difference }));
            }
            require_unsuspended(group)?;
            steps.push(Step::Roll {
                group: group.name.clone(),
                canary: self.request.canary.clone().filter(|canary| canary.is_of_use(group.desired)),
                briefing: self.briefing(stack, group),
            });
            steps.push(self.verify(Some(live)));
            if launches_anew || !held_at.is_empty() {
                steps.push(Step::Settle(self.settled.clone()));
            }
            return Ok(steps);
        }
        if let Some(difference) = stacks::difference(Some(stack), &self.settled) {
            // The stack still pins the previous version although no instance runs it: an earlier run finished the refresh, but was
            // interrupted before it verified the result.
            if only_serving(&difference) {
                steps.extend([self.verify(Some(held_at)), Step::Settle(self.settled.clone())]);
            } else {
                steps.push(Step::Stack(StackStep { request: self.settled.clone(), difference }));
                steps.push(self.verify(None));
            }
        } else if missing(group, newest.as_ref(), &self.observed.runners, self.version().as_ref()).is_some() {
            steps.push(self.verify(None));
        }
        Ok(steps)
    }

    /// The last steps: record the image, and delete orphaned runners.
    fn after(&self, steps: &[Step]) -> Vec<Step> {
        let Observed { aim, record, runners, group, .. } = self.observed;
        let mut after = Vec::new();
        let marked = record.current.as_ref() == Some(&aim.ami);
        if !marked {
            if !steps.iter().any(|step| matches!(step, Step::Verify { .. })) {
                after.push(self.verify(None));
            }
            after.push(Step::Mark { ami: aim.ami.clone(), former: record.current.clone() });
        }
        let orphans = orphans::among(&self.request.fleet.name, runners, group.as_ref());
        if !orphans.is_empty() {
            after.push(Step::CleanUp { group: self.request.config.group(&self.request.fleet.name), orphans });
        }
        after
    }

    fn verify(&self, back_to: Option<String>) -> Step {
        Step::Verify {
            group: self.request.config.group(&self.request.fleet.name),
            version: self.version(),
            // An empty value names no version.
            back_to: back_to.filter(|version| !version.is_empty()),
        }
    }

    fn version(&self) -> Option<RunnerVersion> {
        self.observed.runner_version()
    }

    fn serving(&self, version: &str) -> StackRequest {
        let mut request = self.settled.clone();
        request.parameters.insert(SERVING.to_owned(), version.to_owned());
        request
    }

    fn briefing(&self, stack: &Stack, group: &Group) -> RollSummary {
        let Observed { tags, tags_now, runners, .. } = self.observed;
        let told =
            |name: &&String| name.starts_with("kiln:") && !matches!(name.as_str(), "kiln:managed" | "kiln:image");
        let names: BTreeSet<&String> = tags.keys().chain(tags_now.keys()).filter(told).collect();
        let image = names
            .into_iter()
            .filter(|_| !tags_now.is_empty())
            .map(|name| (name.clone(), tags_now.get(name).cloned(), tags.get(name).cloned()))
            .filter(|(_, now, wanted)| now != wanted)
            .collect();
        let newest = newest_version(stack);
        let to_drain: Vec<&GroupInstance> = staying(group)
            .filter(|instance| self.launches_anew(stack) || instance.launch_template.as_ref() != newest.as_ref())
            .collect();
        let runs_a_job =
            |instance: &GroupInstance| runners.iter().any(|runner| runner.busy && is_of(runner, instance.id.as_str()));
        RollSummary {
            image,
            instances: u32::try_from(to_drain.len()).unwrap_or(u32::MAX),
            busy: u32::try_from(to_drain.iter().filter(|instance| runs_a_job(instance)).count()).unwrap_or(u32::MAX),
            drain_timeout_secs: self.request.fleet.drain_timeout_secs,
            served: self.observed.lifetime.as_ref().map(|lifetime| self.served(lifetime)),
            capacity: self.capacity(stack, group),
        }
    }

    fn served(&self, lifetime: &Lifetime) -> String {
        let described = lifetime.describe(self.observed.at);
        if lifetime.basis == Basis::Newest { format!("is {described}") } else { described }
    }

    fn launches_anew(&self, stack: &Stack) -> bool {
        let held_at = stack.parameters.get(SERVING).cloned().unwrap_or_default();
        stacks::difference(Some(stack), &self.serving(&held_at))
            .is_some_and(|difference| difference.touches(LAUNCH_PARAMETERS))
    }

    /// The number and types of instances now and after the rollout, if they differ. They determine the fleet's cost.
    fn capacity(&self, stack: &Stack, group: &Group) -> Option<(String, String)> {
        let fleet = self.request.fleet;
        let types = |parameters: &BTreeMap<String, String>| {
            let types = parameters.iter().filter(|(name, value)| name.starts_with("InstanceType") && !value.is_empty());
            types.map(|(_, value)| value.clone()).collect::<Vec<_>>().join(" or ")
        };
        let now = format!("{} x {}", group.desired, types(&stack.parameters));
        let desired = group.desired.clamp(fleet.min, fleet.max);
        let then = format!("{desired} x {}", types(&self.settled.parameters));
        (now != then).then_some((now, then))
    }

    fn settled_because(&self) -> String {
        let Observed { aim, group, .. } = self.observed;
        let Some(group) = group else { return String::new() };
        let kept = aim.kept_from.as_ref().map(|ami| {
            format!("; {ami} is skipped because a rollback rejected it: `--retry` rolls it out again, a newer image is rolled out as usual")
        });
        let kept = kept.unwrap_or_default();
        format!("{} has {} instance(s) with {}{kept}", group.name, group.desired, aim.ami)
    }
}

impl Canary {
    /// Whether the rollout needs a canary step. In a group of one the canary is the whole group, and the Verify step covers it.
    pub(super) fn is_of_use(&self, desired: u32) -> bool {
        desired > 1 || (desired == 1 && self.check.is_some())
    }

    /// The percentage of a group at which a refresh stops after its first instance.
    ///
    /// Auto Scaling reaches a checkpoint once at least this percentage of the group is new. The value is rounded down so that one
    /// instance is enough. Auto Scaling accepts whole percentages from 1 on, so 1 % of a group of more than 100 instances is
    /// replaced.
    ///
    /// Source: <https://docs.aws.amazon.com/autoscaling/ec2/userguide/asg-adding-checkpoints-instance-refresh.html>
    pub fn checkpoint_percent(desired: u32) -> u32 {
        (100 / desired.max(1)).max(1)
    }

    /// The smallest percentage of a group that is at least one instance: this much extra capacity allows one extra instance.
    pub(super) fn surplus_percent(desired: u32) -> u32 {
        100_u32.div_ceil(desired.max(1)).min(100)
    }
}

/// Fails if suspended processes of the group prevent an instance refresh.
fn require_unsuspended(group: &Group) -> Result<()> {
    let needed = |suspension: &&Suspension| REPLACING.contains(&suspension.process.as_str());
    let Some(Suspension { process, reason }) = group.suspended.iter().find(needed) else { return Ok(()) };
    let message = format!("{process} of {} is suspended, so no instance can be replaced: {reason}", group.name);
    Err(Error::new(Code::GroupSuspended, message)
        .hint(format!("fix the cause of the failed launches, then run `{}`", resume_command(group))))
}

/// The processes of a group that an instance refresh needs.
///
/// Source: <https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-suspend-resume-processes.html>
const REPLACING: [&str; 3] = ["Launch", "Terminate", "InstanceRefresh"];

/// The AWS CLI command that resumes the suspended processes of a group.
pub fn resume_command(group: &Group) -> String {
    let processes: Vec<&str> = group.suspended.iter().map(|suspension| suspension.process.as_str()).collect();
    let processes = processes.join(" ");
    format!("aws autoscaling resume-processes --auto-scaling-group-name {} --scaling-processes {processes}", group.name)
}

pub(super) fn is_running(refresh: &Refresh) -> bool {
    matches!(refresh.status, RefreshStatus::Running(_))
}

fn only_serving(difference: &Difference) -> bool {
    matches!(difference, Difference::Changed { template: false, parameters, tags }
        if tags.is_empty() && parameters.iter().all(|(name, _, _)| name == SERVING))
}

/// The newest launch template version of the stack.
pub(super) fn newest_version(stack: &Stack) -> Option<LaunchTemplateVersion> {
    Some(LaunchTemplateVersion {
        id: stack.outputs.get("LaunchTemplateId")?.clone(),
        version: stack.outputs.get("LaunchTemplateVersion")?.clone(),
    })
}

/// Whether the group, and all its instances that are not terminating, have this version.
pub(super) fn all_on(group: &Group, version: Option<&LaunchTemplateVersion>) -> bool {
    version.is_some()
        && group.launch_template.as_ref() == version
        && staying(group).all(|instance| instance.launch_template.as_ref() == version)
}

pub(super) fn staying(group: &Group) -> impl Iterator<Item = &GroupInstance> {
    group.instances.iter().filter(|instance| !instance.state.starts_with("Terminat"))
}

/// Instances in service with this version.
pub(super) fn in_service<'a>(
    group: &'a Group,
    version: Option<&LaunchTemplateVersion>,
) -> impl Iterator<Item = &'a GroupInstance> {
    staying(group).filter(move |instance| instance.state == "InService" && instance.launch_template.as_ref() == version)
}

/// What is missing until all runners are online with the desired version, as a state for people; `None` if nothing is.
pub(super) fn missing(
    group: &Group,
    version: Option<&LaunchTemplateVersion>,
    runners: &[Runner],
    wanted: Option<&RunnerVersion>,
) -> Option<String> {
    let serving: Vec<&GroupInstance> = in_service(group, version).collect();
    if serving.len() < group.desired as usize {
        return Some(format!("{} of {} instances in service", serving.len(), group.desired));
    }
    let offline: Vec<&str> = serving
        .iter()
        .map(|instance| instance.id.as_str())
        .filter(|id| !runners.iter().any(|runner| is_of(runner, id) && runner.is_online()))
        .collect();
    if !offline.is_empty() {
        return Some(format!("no runner online at GitHub for {}", some_of(&offline)));
    }
    let old: Vec<&str> = serving
        .iter()
        .flat_map(|instance| runners.iter().filter(|runner| is_of(runner, instance.id.as_str())))
        .filter(|runner| !has_version(runner, wanted))
        .map(|runner| runner.name.as_str())
        .collect();
    (!old.is_empty()).then(|| format!("another runner version than the image's on {}", some_of(&old)))
}

/// Whether the runner has the desired version. GitHub does not report the version of every runner; an unknown version passes.
pub(super) fn has_version(runner: &Runner, wanted: Option<&RunnerVersion>) -> bool {
    match (&runner.version, wanted) {
        (Some(has), Some(wanted)) => has.is_empty() || has == wanted.as_str(),
        _ => true,
    }
}

/// Joins the first five names, so that a line does not list hundreds.
pub(super) fn some_of(names: &[&str]) -> String {
    const MOST: usize = 5;
    match names.len().saturating_sub(MOST) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..MOST].join(", ")),
    }
}
