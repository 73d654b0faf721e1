//! Carrying a plan out, under the fleet's lock.

use std::time::Duration;

use kiln_config::model::{FleetName, GroupName};
use kiln_controller::documents::Settings;
use kiln_github::OrgClient;

use super::control::{change, read_status};
use super::observe::{named, now};
use super::{Entry, Observed, Step, observe, plan};
use crate::code::Code;
use crate::deploy::{Lock, Request, Session, record};
use crate::error::{Error, Result};
use crate::fleet_stack::{resolve, resolved};
use crate::plan::{Plan, StepTracker, first_line};
use crate::ports::{Cloud, LaunchTemplateVersion, ObjectStore, Progress, RefreshPreferences, RefreshStatus};
use crate::stacks::{self, StackStep};
use crate::wait::{PollBackoff, human};

/// A new controller is launched and booted within two minutes, and waits for the session of one that was lost for as long as
/// GitHub keeps it, a minute as measured by others. The rest is for their bad minutes.
const AT_WORK_LIMIT: Duration = Duration::from_secs(600);

/// One instance is ended and another launched.
const REPLACED_LIMIT: Duration = Duration::from_secs(1800);

/// Observes, plans, shows the plan and carries it out; `dry` stops after showing it.
///
/// # Errors
/// What [`observe()`], [`plan()`] and the steps fail with.
pub async fn run(
    request: &Request<'_>,
    dry: bool,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<Plan<Step>> {
    let observed: Observed = observe(request, cloud, github, operator.progress).await?;
    let planned = plan(request, &observed)?;
    operator.progress.plan(&planned.texts());
    if dry || planned.is_empty() {
        return Ok(planned);
    }
    let Request { config, fleet, lock_wait, .. } = request;
    let lock = Lock::take(config, &fleet.name, operator.holder, *lock_wait, cloud, operator.progress).await?;
    let work = async {
        let observed = observe(request, cloud, github, operator.progress).await?;
        let now = plan(request, &observed)?;
        if now.steps != planned.steps {
            operator.progress.say(&format!("the world has changed since, and with it the plan:\n{now}"));
        }
        steps(request, &now, &observed.bucket, cloud, operator).await
    };
    lock.keep(cloud, work).await?;
    Ok(planned)
}

async fn steps(
    request: &Request<'_>,
    plan: &Plan<Step>,
    bucket: &str,
    cloud: &impl Cloud,
    operator: Session<'_>,
) -> Result<()> {
    let mut tally = StepTracker::new(plan, operator.progress);
    for step in &plan.steps {
        tally.begin(first_line(&step.to_string()));
        apply_step(request, step, bucket, cloud, operator).await.map_err(|error| tally.failed(error))?;
    }
    Ok(())
}

async fn apply_step(
    request: &Request<'_>,
    step: &Step,
    bucket: &str,
    cloud: &impl Cloud,
    operator: Session<'_>,
) -> Result<()> {
    let Session { progress, consent, .. } = operator;
    let Request { config, fleet, .. } = request;
    match step {
        Step::Reject { ami } => record::reject(config, fleet, ami, cloud).await,
        Step::Accept { .. } => record::accept(config, fleet, cloud).await,
        Step::Clear(dead) => stacks::clear(cloud, dead, consent, progress).await,
        Step::PointBack { version, .. } => {
            let name = named(&fleet.name);
            let edit = |control: &mut kiln_controller::documents::Control| {
                if let Some(settings) = control.fleets.get_mut(&name) {
                    settings.version = *version;
                }
            };
            change(bucket, edit, cloud).await
        }
        Step::Stack(step) => {
            let request = resolved(cloud, &step.request).await?;
            let step = StackStep { request, difference: step.difference.clone() };
            stacks::apply_agreed(cloud, &step, consent, progress).await
        }
        Step::Control { entry, .. } => {
            let settings = settled(entry, cloud).await?;
            let name = named(&fleet.name);
            let edit = |control: &mut kiln_controller::documents::Control| {
                control.fleets.insert(name.clone(), settings.clone());
            };
            change(bucket, edit, cloud).await
        }
        Step::RollController { group } => replace(group, &config.controller_stack(), cloud, progress).await,
        Step::AwaitController { fleet } => at_work(fleet, bucket, cloud, progress).await,
        Step::Mark { ami, .. } => record::mark(config, fleet, ami, cloud).await,
    }
}

/// With the outputs in the place of references to them.
async fn settled(entry: &Entry, cloud: &impl Cloud) -> Result<Settings> {
    let mut entry = entry.clone();
    for value in [&mut entry.template, &mut entry.version, &mut entry.subnets, &mut entry.role_id] {
        *value = resolve(cloud, value).await?;
    }
    let odd = || format!("launch template version `{}` of {} is no number", entry.version, entry.template);
    entry.settings().ok_or_else(|| Error::new(Code::StackDrifted, odd()))
}

/// Ends the controller's instance and has another launched. Two at a time would wait for each other: GitHub lets one
/// controller listen for a scale set.
async fn replace(name: &GroupName, stack: &str, cloud: &impl Cloud, progress: &dyn Progress) -> Result<()> {
    let output =
        |key: &'static str| async move { resolve(cloud, &crate::fleet_stack::output_reference(stack, key)).await };
    let to = LaunchTemplateVersion {
        id: output("LaunchTemplateId").await?,
        version: output("LaunchTemplateVersion").await?,
    };
    let preferences = RefreshPreferences {
        min_healthy_percent: 0,
        max_healthy_percent: 100,
        instance_warmup: Duration::ZERO,
        stop: None,
    };
    let running = cloud.newest_refresh(name).await?.filter(|newest| matches!(newest.status, RefreshStatus::Running(_)));
    let id = match running {
        Some(running) => running.id,
        None => cloud.start_refresh(name, &to, &preferences).await?,
    };
    let mut pace = PollBackoff::new(REPLACED_LIMIT);
    loop {
        let refresh = cloud.refresh(name, &id).await?;
        let state = match refresh.status {
            RefreshStatus::Successful => return Ok(()),
            RefreshStatus::Running(state) => state,
            RefreshStatus::Ended(state) => {
                let reason = refresh.reason.unwrap_or_else(|| "no reason given".to_owned());
                let message = format!("the instance of {name} was not replaced: the refresh is {state}: {reason}");
                return Err(Error::new(Code::RefreshFailed, message).hint("run the same command again"));
            }
        };
        progress.state(&format!("{name} is being replaced: {state}"));
        if pace.pause().await.is_err() {
            let message = format!("the instance of {name} was not replaced within {}", human(REPLACED_LIMIT));
            return Err(Error::new(Code::RefreshTimeout, message).hint("run the same command again: it waits on"));
        }
    }
}

/// Waits until the controller has said of the fleet what it knew after this step began.
async fn at_work(fleet: &FleetName, bucket: &str, cloud: &impl ObjectStore, progress: &dyn Progress) -> Result<()> {
    let (name, since) = (named(fleet), now());
    let mut pace = PollBackoff::new(AT_WORK_LIMIT);
    loop {
        let status = read_status(bucket, cloud).await?.fleets.remove(&name);
        let seen = match &status {
            Some(status) if status.at > since && status.set.is_some() => {
                progress.say(&format!("the controller serves fleet {fleet}"));
                return Ok(());
            }
            Some(status) if status.at > since => {
                let why = status.last_errors.first().map_or("it does not say why", String::as_str);
                format!("the controller has no scale set for fleet {fleet} yet: {why}")
            }
            Some(status) => format!("the controller has been silent for {} s", since.since(status.at).as_secs()),
            None => format!("the controller has said nothing of fleet {fleet} yet"),
        };
        progress.state(&seen);
        if pace.pause().await.is_err() {
            let message = format!("{seen}, after {}", human(AT_WORK_LIMIT));
            return Err(Error::new(Code::ControllerSilent, message).hint(
                "the stacks and the control document are as wanted. Its own account is in the journal of the controller's \
                 instance, and in the EC2 console's system log; then run the same command again",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_config::model::Sha256;
    use tokio::time::Instant;

    use super::*;
    use crate::ports::{self, Document};

    /// What the controller has said, if anything.
    struct Said(Option<String>);

    impl ObjectStore for Said {
        async fn empty_bucket(&self, _: &str) -> ports::Result<()> {
            panic!("nothing is deleted here")
        }
        async fn has_blob(&self, _: &str, _: &str) -> ports::Result<bool> {
            Ok(true)
        }
        async fn put_blob(&self, _: &str, _: &str, _: Vec<u8>, _: &Sha256) -> ports::Result<()> {
            Ok(())
        }
        async fn document(&self, _: &str, _: &str) -> ports::Result<Option<Document>> {
            Ok(self.0.clone().map(|text| Document { text, version: "1".to_owned(), written: None }))
        }
        async fn put_document(&self, _: &str, _: &str, _: &str, _: Option<&str>) -> ports::Result<Option<String>> {
            panic!("waiting writes nothing")
        }
    }

    struct Silent;

    impl Progress for Silent {
        fn say(&self, _: &str) {}
        fn state(&self, _: &str) {}
    }

    fn said(at: u64, set: &str, error: &str) -> Said {
        Said(Some(format!(
            r#"{{"format":1,"fleets":{{"ci":{{"controller":"i-1","set":{set},"at":{at},"closed":false,"unseen":[],
               "statistics":{{}},"announced":1,"instances":{{}},"waiting_because":null,"last_errors":[{error}]}}}}}}"#
        )))
    }

    async fn wait(said: &Said) -> Result<()> {
        at_work(&"ci".parse().unwrap(), "bucket", said, &Silent).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_serves_is_not_waited_for() {
        wait(&said(u64::MAX, "12", "")).await.unwrap();
    }

    /// The message says what was seen last, and the wait has an end.
    #[tokio::test(start_paused = true)]
    async fn a_controller_that_does_not_serve_is_given_up_with_what_it_said() {
        for (said, why) in [
            (Said(None), "the controller has said nothing of fleet ci yet"),
            (said(0, "12", ""), "the controller has been silent for"),
            (said(u64::MAX, "null", ""), "has no scale set for fleet ci yet: it does not say why"),
            (said(u64::MAX, "null", "\"GitHub said 401\""), "has no scale set for fleet ci yet: GitHub said 401"),
        ] {
            let begun = Instant::now();
            let error = wait(&said).await.unwrap_err();
            assert_eq!(error.code, Code::ControllerSilent);
            assert!(error.message.contains(why), "{error}");
            assert!(begun.elapsed() >= AT_WORK_LIMIT && begun.elapsed() < AT_WORK_LIMIT + Duration::from_secs(30));
        }
    }
}
