//! Carrying a plan out, under the locks of all its fleets.

use std::pin::Pin;
use std::time::Duration;

use kiln_config::model::{FleetName, GroupName};
use kiln_github::{Deleted, OrgClient, Runner};

use super::{Observed, Operator, Request, Step, observe, plan, require_alone};
use crate::code::Code;
use crate::deploy::{Lock, bucket, forget};
use crate::error::{Error, Result};
use crate::orphans::{is_of, name_prefix, runner_groups_of};
use crate::plan::{Plan, Tally, first_line};
use crate::ports::{Cloud, CloudErrorKind, Group};
use crate::stacks;
use crate::wait::{Pace, human};

/// What draining may take beyond the longest job: an instance that does not answer is given up by its hook within two
/// hours at most, and half an hour is for EC2.
const DRAIN_MARGIN: Duration = Duration::from_secs(9000);

/// Observes, plans and shows the plan: what a dry run does, and what somebody confirms.
///
/// # Errors
/// [`crate::Kind::Precondition`] when other fleets use what is to go; what AWS answers.
pub async fn run(
    request: &Request<'_>,
    cloud: &impl Cloud,
    github: Option<&OrgClient>,
    operator: Operator<'_>,
) -> Result<Plan<Step>> {
    let observed: Observed = observe(request, cloud, github, operator.progress).await?;
    require_alone(&observed)?;
    let planned = plan(request, &observed);
    operator.progress.plan(&planned.texts());
    Ok(planned)
}

/// Carries the plan out under the locks of the fleets, once it has looked again.
///
/// # Errors
/// The first step that fails, with the steps done before it; [`crate::Kind::Precondition`] when another run holds a lock. The same
/// command again goes on from there.
pub async fn apply(
    request: &Request<'_>,
    cloud: &impl Cloud,
    github: Option<&OrgClient>,
    operator: Operator<'_>,
) -> Result<()> {
    match cloud.document(&bucket(request.config, cloud).await?, "lock/none").await {
        // Somebody has deleted the bucket already, and no `deploy` can run without it.
        Err(error) if error.kind == CloudErrorKind::NotFound => steps(request, cloud, github, operator).await,
        _ => under_locks(&request.fleets, request, cloud, github, operator).await,
    }
}

type Work<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A fleet's lock is kept while the next one's is waited for.
fn under_locks<'a, C: Cloud>(
    fleets: &'a [FleetName],
    request: &'a Request<'a>,
    cloud: &'a C,
    github: Option<&'a OrgClient>,
    operator: Operator<'a>,
) -> Work<'a> {
    let Some((first, rest)) = fleets.split_first() else { return Box::pin(steps(request, cloud, github, operator)) };
    Box::pin(async move {
        let Operator { progress, holder } = operator;
        let lock = Lock::take(request.config, first, holder, request.lock_wait, cloud, progress).await?;
        lock.keep(cloud, under_locks(rest, request, cloud, github, operator)).await
    })
}

async fn steps<C: Cloud>(
    request: &Request<'_>,
    cloud: &C,
    github: Option<&OrgClient>,
    operator: Operator<'_>,
) -> Result<()> {
    let observed = observe(request, cloud, github, operator.progress).await?;
    require_alone(&observed)?;
    let plan = plan(request, &observed);
    let mut tally = Tally::new(&plan, operator.progress);
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
    operator: Operator<'_>,
) -> Result<()> {
    match step {
        Step::Drain { group, .. } => {
            // One that runs would go on to launch what it replaces.
            cloud.cancel_refresh(group).await?;
            Ok(cloud.scale_to_zero(group).await?)
        }
        Step::AwaitDrained { group, drain_limit } => drained(group, *drain_limit, cloud, operator).await,
        Step::Abandon { group, .. } => Ok(cloud.abandon(group).await?),
        Step::RemoveRunners { fleet } => match github {
            Some(github) => remove_runners(request, fleet, cloud, github, operator).await,
            None => Ok(()),
        },
        Step::DeleteStack { name, .. } => stacks::delete(cloud, name, operator.progress).await,
        Step::Forget { fleet } => forget(request.config, fleet, cloud).await,
    }
}

async fn drained(name: &GroupName, limit: Duration, cloud: &impl Cloud, operator: Operator<'_>) -> Result<()> {
    let bound = limit + DRAIN_MARGIN;
    let mut pace = Pace::new(bound);
    let mut left = usize::MAX;
    loop {
        let Some(group) = cloud.group(name).await? else { return Ok(()) };
        if group.instances.is_empty() {
            return Ok(());
        }
        if group.instances.len() < left {
            left = group.instances.len();
            pace.quicken();
        }
        operator.progress.state(&format!("{name} has {left} instance(s) left"));
        if pace.pause().await.is_err() {
            return Err(never_empty(&group, bound));
        }
    }
}

fn never_empty(group: &Group, bound: Duration) -> Error {
    let ids: Vec<&str> = group.instances.iter().map(|instance| instance.id.as_str()).collect();
    Error::new(Code::DrainSlow, format!("{} still had {} after {}", group.name, ids.join(", "), human(bound))).hint(
        "the same command again waits on; `--now` does not wait, and its jobs fail. An instance that is protected from \
         scale-in does not leave by itself",
    )
}

/// Deletes runners whose instances are gone, whether GitHub has missed them already or not. It refuses where a job runs.
async fn remove_runners(
    request: &Request<'_>,
    fleet: &FleetName,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Operator<'_>,
) -> Result<()> {
    let prefix = name_prefix(fleet);
    // Before the group: whoever registers after this look is in the group then.
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
                "runner {} has a job that GitHub has not given up yet: run this again in a quarter of an hour, or leave it \
                 to GitHub, which deletes it in a fortnight",
                runner.name
            )),
        }
    }
    Ok(())
}
