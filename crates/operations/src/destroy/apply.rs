//! Carries out a plan while holding the locks of all its fleets.

use std::pin::Pin;
use std::time::Duration;

use kiln_config::model::{FleetName, GroupName};
use kiln_github::{Deleted, OrgClient, Runner};

use super::{Observed, Request, Session, Step, observe, plan, require_alone, require_time};
use crate::code::Code;
use crate::deploy::{Lock, bucket, forget};
use crate::error::{Error, Result};
use crate::on_demand;
use crate::orphans::{is_of, name_prefix, runner_groups_of};
use crate::plan::{Plan, StepTracker, first_line};
use crate::ports::{Cloud, CloudErrorKind, Group};
use crate::stacks;
use crate::wait::{PollBackoff, human};

/// How long draining may take in addition to the longest job: Auto Scaling terminates an instance that sends no heartbeat after at most
/// two hours, and EC2 gets 30 minutes.
const DRAIN_MARGIN: Duration = Duration::from_secs(9000);

/// Observes, plans and prints the plan, for a dry run or for confirmation.
///
/// # Errors
/// [`crate::Kind::Precondition`] if other fleets use the network; AWS's errors.
pub async fn run(
    request: &Request<'_>,
    cloud: &impl Cloud,
    github: Option<&OrgClient>,
    operator: Session<'_>,
) -> Result<Plan<Step>> {
    let observed: Observed = observe(request, cloud, github, operator.progress).await?;
    require_alone(&observed)?;
    require_time(request, &observed)?;
    let planned = plan(request, &observed);
    operator.progress.plan(&planned.texts());
    Ok(planned)
}

/// Takes the locks of the fleets, observes and plans again, and carries out the plan.
///
/// # Errors
/// The error of the first step that fails, with the steps done before it; [`crate::Kind::Precondition`] if another run holds a lock.
/// The same command then resumes.
pub async fn apply(
    request: &Request<'_>,
    cloud: &impl Cloud,
    github: Option<&OrgClient>,
    operator: Session<'_>,
) -> Result<()> {
    match cloud.document(&bucket(request.config, cloud).await?, "lock/none").await {
        // The bucket was deleted. Without it no `deploy` can run, so no lock is needed.
        Err(error) if error.kind == CloudErrorKind::NotFound => steps(request, cloud, github, operator).await,
        _ => under_locks(&request.fleets, request, cloud, github, operator).await,
    }
}

type Work<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// Takes the locks one after another and holds each while it waits for the next.
fn under_locks<'a, C: Cloud>(
    fleets: &'a [FleetName],
    request: &'a Request<'a>,
    cloud: &'a C,
    github: Option<&'a OrgClient>,
    operator: Session<'a>,
) -> Work<'a> {
    let Some((first, rest)) = fleets.split_first() else { return Box::pin(steps(request, cloud, github, operator)) };
    Box::pin(async move {
        let Session { progress, holder } = operator;
        let lock = Lock::take(request.config, first, holder, request.lock_wait, cloud, progress).await?;
        lock.keep(cloud, under_locks(rest, request, cloud, github, operator)).await
    })
}

async fn steps<C: Cloud>(
    request: &Request<'_>,
    cloud: &C,
    github: Option<&OrgClient>,
    operator: Session<'_>,
) -> Result<()> {
    let observed = observe(request, cloud, github, operator.progress).await?;
    require_alone(&observed)?;
    require_time(request, &observed)?;
    let plan = plan(request, &observed);
    let mut tally = StepTracker::new(&plan, operator.progress);
    for step in &plan.steps {
        tally.begin(first_line(&step.to_string()));
        apply_step(request, step, cloud, github, operator).await.map_err(|error| tally.failed(error))?;
    }
    Ok(())
}

async fn apply_step<C: Cloud>(
    request: &Request<'_>,
    step: &Step,
    cloud: &C,
    github: Option<&OrgClient>,
    operator: Session<'_>,
) -> Result<()> {
    match step {
        Step::Drain { group, .. } => {
            // A running refresh would continue to launch instances.
            cloud.cancel_refresh(group).await?;
            Ok(cloud.scale_to_zero(group).await?)
        }
        Step::AwaitDrained { group, drain_timeout } => drained(group, *drain_timeout, cloud, operator).await,
        Step::Abandon { group, .. } => Ok(cloud.abandon(group).await?),
        Step::RemoveRunners { fleet } => match github {
            Some(github) => remove_runners(request, fleet, cloud, github, operator).await,
            None => Ok(()),
        },
        Step::DeleteStack { name, .. } => stacks::delete(cloud, name, operator.progress).await,
        Step::Forget { fleet } => forget(request.config, fleet, cloud).await,
        Step::Pause { .. }
        | Step::AwaitEnded { .. }
        | Step::RemoveScaleSet { .. }
        | Step::Leave { .. }
        | Step::StopController { .. }
        | Step::EmptyBucket { .. } => {
            on_demand::destroy::apply(request.config, step, cloud, github, operator.progress).await
        }
    }
}

async fn drained(name: &GroupName, limit: Duration, cloud: &impl Cloud, operator: Session<'_>) -> Result<()> {
    let bound = limit + DRAIN_MARGIN;
    let mut pace = PollBackoff::new(bound);
    let mut left = usize::MAX;
    loop {
        let Some(group) = cloud.group(name).await? else { return Ok(()) };
        if group.instances.is_empty() {
            return Ok(());
        }
        if group.instances.len() < left {
            left = group.instances.len();
            pace.reset();
        }
        operator.progress.state(&format!("{name} has {left} instance(s) left"));
        if pace.pause().await.is_err() {
            return Err(never_empty(&group, bound));
        }
    }
}

fn never_empty(group: &Group, bound: Duration) -> Error {
    let ids: Vec<&str> = group.instances.iter().map(|instance| instance.id.as_str()).collect();
    Error::new(Code::DrainTimeout, format!("{} still had {} after {}", group.name, ids.join(", "), human(bound))).hint(
        "run the same command again: it keeps waiting. `--now` does not wait, and jobs fail. An instance with scale-in \
         protection does not terminate by itself",
    )
}

/// Deletes runners whose instances are gone, whether they are offline at GitHub yet or not. GitHub refuses while a job runs.
async fn remove_runners(
    request: &Request<'_>,
    fleet: &FleetName,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<()> {
    let prefix = name_prefix(fleet);
    // Before the group: the instance of a runner that registers after this call is in the group.
    let groups = runner_groups_of(request.config, [fleet], cloud).await?;
    let runners = github.runners_in(&groups).await?;
    let group = cloud.group(&request.config.group(fleet)).await?;
    let instances = group.map(|group| group.instances).unwrap_or_default();
    let of_none = |runner: &Runner| !instances.iter().any(|instance| is_of(runner, instance.id.as_str()));
    for runner in runners.iter().filter(|runner| runner.name.starts_with(&prefix) && of_none(runner)) {
        match github.delete_runner(runner.id).await? {
            Deleted::Gone => operator.progress.say(&format!("runner {} deleted", runner.name)),
            Deleted::Absent => {}
            Deleted::Busy => operator.progress.say(&format!(
                "GitHub still assigns a job to runner {}: run this command again in 15 minutes, or leave it to GitHub, which \
                 deletes the runner after 14 days",
                runner.name
            )),
        }
    }
    Ok(())
}
