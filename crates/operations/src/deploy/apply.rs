//! Carries out a plan while holding the fleet's lock.

use kiln_config::model::{GroupName, RunnerVersion};
use kiln_github::OrgClient;

use super::lock::Lock;
use super::observe::fleet_runners;
use super::plan::missing;
use super::roll::{self, ONLINE_LIMIT};
use super::{Observed, Request, Session, Step, observe, plan, record};
use crate::code::Code;
use crate::error::{Error, Result};
use crate::fleet_stack::resolved;
use crate::launches::{self, BeyondStack, LaunchWatch};
use crate::orphans;
use crate::plan::{Plan, StepTracker, first_line};
use crate::ports::Cloud;
use crate::stacks::{self, StackStep};
use crate::wait::{PollBackoff, human};

/// Observes, plans, prints the plan and carries it out. With `dry` it stops after printing.
///
/// # Errors
/// The errors of [`observe()`] and [`apply()`].
pub async fn run(
    request: &Request<'_>,
    dry: bool,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<Plan<Step>> {
    let observed = observe(request, cloud, github, operator.progress).await?;
    let planned = plan(request, &observed)?;
    operator.progress.plan(&planned.texts());
    if let Some(soon) = observed.ends_soon() {
        operator.progress.warn(&soon);
    }
    if !dry && !planned.is_empty() {
        apply(request, &planned, cloud, github, operator).await?;
    }
    Ok(planned)
}

async fn look(
    request: &Request<'_>,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<Plan<Step>> {
    let observed: Observed = observe(request, cloud, github, operator.progress).await?;
    plan(request, &observed)
}

/// Carries out a plan while holding the fleet's lock. Plans again once it has the lock, because another run may have held the lock and
/// changed the fleet.
///
/// # Errors
/// The error of the first step that fails, with the steps done before it; [`crate::Kind::Precondition`] if another run holds the
/// lock.
pub async fn apply(
    request: &Request<'_>,
    planned: &Plan<Step>,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<()> {
    let Request { config, fleet, lock_wait, .. } = request;
    let lock = Lock::take(config, &fleet.name, operator.holder, *lock_wait, cloud, operator.progress).await?;
    let work = async {
        let now = look(request, cloud, github, operator).await?;
        if !same_work(&now, planned) {
            operator.progress.say(&format!("the state has changed since the plan was made; the new plan:\n{now}"));
        }
        steps(request, &now, cloud, github, operator).await
    };
    lock.keep(cloud, work).await
}

/// Whether two plans have the same steps. The number of busy runners changes constantly and does not count.
fn same_work(one: &Plan<Step>, other: &Plan<Step>) -> bool {
    let work = |plan: &Plan<Step>| -> Vec<Step> {
        let mut steps = plan.steps.clone();
        for step in &mut steps {
            if let Step::Roll { briefing, .. } = step {
                *briefing = super::RollSummary::default();
            }
        }
        steps
    };
    work(one) == work(other)
}

async fn steps(
    request: &Request<'_>,
    plan: &Plan<Step>,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<()> {
    let mut tally = StepTracker::new(plan, operator.progress);
    for step in &plan.steps {
        tally.begin(first_line(&step.to_string()));
        apply_step(request, step, cloud, github, operator).await.map_err(|error| tally.failed(error))?;
        if step.ends_the_plan() {
            let rest = look(request, cloud, github, operator).await?;
            operator.progress.say(&format!("the instance refresh has ended; remaining plan:\n{rest}"));
            return Box::pin(steps(request, &rest, cloud, github, operator)).await;
        }
    }
    Ok(())
}

async fn apply_step(
    request: &Request<'_>,
    step: &Step,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<()> {
    let Session { progress, consent, .. } = operator;
    let Request { config, fleet, .. } = request;
    match step {
        Step::Reject { ami } => record::reject(config, fleet, ami, cloud).await,
        Step::Accept { .. } => record::accept(config, fleet, cloud).await,
        Step::Clear(dead) => stacks::clear(cloud, dead, consent, progress).await,
        Step::Stack(step) => {
            let request = resolved(cloud, &step.request).await?;
            let step = StackStep { request, difference: step.difference.clone() };
            let group = config.group(&fleet.name);
            let watch = LaunchWatch::begin(&group, Some(github), cloud).await?;
            let mut beyond = BeyondStack { watch, cloud };
            stacks::apply_beyond(cloud, &step, &mut beyond, consent, progress).await
        }
        Step::Settle(wanted) => {
            let stack = cloud.stack(&wanted.name).await?;
            match stacks::difference(stack.as_ref(), wanted) {
                Some(difference) => {
                    let step = StackStep { request: wanted.clone(), difference };
                    stacks::apply_agreed(cloud, &step, consent, progress).await
                }
                None => Ok(()),
            }
        }
        Step::AwaitRefresh { group, id } => roll::resume(request, group, id, cloud, github, operator).await,
        Step::Roll { group, .. } => roll::roll(request, group, cloud, github, operator).await,
        Step::Verify { group, version, back_to } => {
            verify(request, group, version.as_ref(), back_to.as_deref(), cloud, github, operator).await
        }
        Step::Mark { ami, .. } => record::mark(config, fleet, ami, cloud).await,
        Step::CleanUp { orphans, .. } => {
            let removed = orphans::remove(config, &fleet.name, orphans, cloud, github, progress).await?;
            progress.say(&format!("{removed} runner(s) deleted"));
            Ok(())
        }
    }
}

async fn verify(
    request: &Request<'_>,
    name: &GroupName,
    wanted: Option<&RunnerVersion>,
    back_to: Option<&str>,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<()> {
    let progress = operator.progress;
    let mut pace = PollBackoff::new(ONLINE_LIMIT);
    let mut launches = LaunchWatch::begin(name, Some(github), cloud).await?;
    loop {
        let (group, version) = roll::group_and_version(request, name, cloud).await?;
        let runners = fleet_runners(request.fleet, None, github).await?;
        let Some(what) = missing(&group, Some(&version), &runners, wanted) else {
            progress.say(&format!("{} runner(s) of {name} online at GitHub", group.desired));
            return Ok(());
        };
        progress.state(&what);
        let failed = launches.look(cloud, progress).await?;
        if failed.is_some() || pace.pause().await.is_err() {
            let error = match failed {
                Some(why) => launches::failure(format!("the runners of {name} are not online: {what}: {why}")),
                None => {
                    let message = format!("the runners of {name} are not online after {}: {what}", human(ONLINE_LIMIT));
                    Error::new(Code::RunnersOffline, message).hint(roll::WHERE_TO_LOOK)
                }
            };
            return match back_to.filter(|former| **former != version.version) {
                Some(former) => {
                    Err(roll::cancel_and_roll_back(request, name, former, error.message, cloud, operator).await?)
                }
                None => Err(error),
            };
        }
    }
}
