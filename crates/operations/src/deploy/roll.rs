//! Rolls a group with an instance refresh and checks the new runners at GitHub meanwhile.
//!
//! Auto Scaling considers an instance healthy once its launch hook is completed. Only GitHub knows whether its runner is online. So
//! each new instance's runner is checked while the old instances are still in service. If a new runner does not come online, the
//! refresh is rolled back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_config::model::{GroupName, InstanceId, RunnerVersion};
use kiln_github::{OrgClient, Runner};
use tokio::time::Instant;

use super::observe::{fleet_runners, take_equal_versions_for_newest};
use super::plan::{all_on, has_version, in_service, newest_version};
use super::{Canary, CanaryRunner, Request, Session};
use crate::code::Code;
use crate::error::{Error, Kind, Result};
use crate::launches::LaunchWatch;
use crate::orphans::is_of;
use crate::ports::{
    Cloud, Group, Groups, LaunchTemplateVersion, Progress, Refresh, RefreshPreferences, RefreshStatus, RefreshStop,
};
use crate::wait::{PollBackoff, bounded, human, paused};

/// How long a runner may take to be online. An instance in service has already registered (its launch hook is completed); what
/// remains is that GitHub's list shows it. Without an incident at GitHub that never took ten minutes.
pub(super) const ONLINE_LIMIT: Duration = Duration::from_secs(600);

/// The time for launching, registering and terminating, which a refresh needs in addition to the longest drain.
const REFRESH_MARGIN: Duration = Duration::from_secs(3600);

/// The longest pause between two lists of runners. A list takes one request for every 100 runners, and GitHub allows 5,000 requests
/// per hour. With this pause, ten lists in five minutes leave most requests to other programs, even with 1,000 runners.
const GITHUB_PAUSE: Duration = Duration::from_secs(30);

/// The pause after the first list. It doubles up to [`GITHUB_PAUSE`]. A runner is online 1 or 2 s after its registration.
const FIRST_GITHUB_PAUSE: Duration = Duration::from_secs(2);

/// How long the refresh pauses at its canary. The canary check may take 30 minutes, and a run that resumes after an interruption
/// should find the refresh still paused.
const CANARY_PAUSE: Duration = Duration::from_secs(2 * 3600);

pub(super) const WHERE_TO_LOOK: &str = "a new instance's journal (and its system log in the EC2 console) shows \
     its boot; fix the cause and run this command again";

/// Rolls a group to its stack's newest version, the canary first.
pub(super) async fn roll(
    request: &Request<'_>,
    name: &GroupName,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<()> {
    let (group, version) = group_and_version(request, name, cloud).await?;
    if all_on(&group, Some(&version)) {
        operator.progress.say(&format!("{name} has launch template version {} already", version.version));
        return Ok(());
    }
    let mut watch = RefreshMonitor::new(request, name, version, cloud, github, operator).await?;
    if let Some(canary) = request.canary.as_ref().filter(|canary| canary.is_of_use(group.desired)) {
        watch.canary = Some(canary.clone());
        if !watch.check_existing_canary().await? {
            let stop = RefreshStop { percent: Canary::checkpoint_percent(group.desired), pause: CANARY_PAUSE };
            watch.start(&group, Some(stop)).await?;
            watch.wait_until_done().await?;
        }
        watch.canary = None;
    }
    let group = current_group(name, cloud).await?;
    if !all_on(&group, Some(&watch.version)) {
        watch.start(&group, None).await?;
        watch.wait_until_done().await?;
    }
    Ok(())
}

/// Resumes a running refresh: waits for its end, or for the end of its canary.
pub(super) async fn resume(
    request: &Request<'_>,
    name: &GroupName,
    id: &str,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Session<'_>,
) -> Result<()> {
    let (_, newest) = group_and_version(request, name, cloud).await?;
    let refresh = cloud.refresh(name, id).await?;
    let forward = matches!(&refresh.status, RefreshStatus::Running(status) if goes_forward(status));
    let ours = forward && refresh.to.as_ref() == Some(&newest);
    let mut watch = RefreshMonitor::new(request, name, newest, cloud, github, operator).await?;
    id.clone_into(&mut watch.id);
    if refresh.stops && ours {
        watch.canary = Some(request.canary.clone().unwrap_or(Canary { check: None }));
    }
    // A refresh to another version, or one that rolls back, is only waited for: the roll that follows brings the group to the new
    // version, whatever the result.
    watch.ignores_github = !ours;
    match watch.wait_until_done().await {
        Err(error) if watch.ignores_github && error.kind() == Kind::Failed => Ok(()),
        result => result,
    }
}

/// Rolls the group back to a version with another refresh, and returns the error to fail with.
pub(super) async fn cancel_and_roll_back(
    request: &Request<'_>,
    name: &GroupName,
    former: &str,
    why: String,
    cloud: &impl Cloud,
    operator: Session<'_>,
) -> Result<Error> {
    operator.progress.say(&format!("{why}: rolling back to launch template version {former}"));
    let group = current_group(name, cloud).await?;
    let Some(live) = &group.launch_template else {
        return Ok(Error::new(Code::RefreshFailed, why).hint(WHERE_TO_LOOK));
    };
    let to = LaunchTemplateVersion { id: live.id.clone(), version: former.to_owned() };
    let id = cloud.start_refresh(name, &to, &preferences(&group, None)).await?;
    let refresh = follow(request, name, &id, cloud, operator.progress).await?;
    Ok(match refresh.status {
        RefreshStatus::Successful => Error::new(
            Code::RefreshFailed,
            format!("{why}; rolled back: launch template version {former} is in service again"),
        )
        .hint(WHERE_TO_LOOK),
        RefreshStatus::Ended(status) | RefreshStatus::Running(status) => {
            let reason = refresh.reason.unwrap_or_default();
            Error::new(
                Code::RefreshFailed,
                format!("{why}; the refresh {id} back to version {former} ended in {status}: {reason}"),
            )
            .hint("`cargo xtask deploy --rollback` tries the rollback again")
        }
    })
}

pub(super) async fn group_and_version(
    request: &Request<'_>,
    name: &GroupName,
    cloud: &impl Cloud,
) -> Result<(Group, LaunchTemplateVersion)> {
    let stack_name = request.config.fleet_stack(&request.fleet.name);
    let stack = cloud.stack(&stack_name).await?;
    let Some(version) = stack.as_ref().and_then(newest_version) else {
        return Err(Error::new(Code::StackDrifted, format!("stack `{stack_name}` does not name its launch template")));
    };
    let Some(mut group) = cloud.group(name).await? else {
        return Err(Error::new(
            Code::GroupMissing,
            format!("Auto Scaling group `{name}` does not exist, though its stack does"),
        )
        .hint(format!("`aws cloudformation detect-stack-drift --stack-name {stack_name}` shows what was removed")));
    };
    take_equal_versions_for_newest(&mut group, &version, cloud).await?;
    Ok((group, version))
}

/// Whether the refresh is neither being cancelled nor being rolled back.
fn goes_forward(status: &str) -> bool {
    matches!(status, "Pending" | "InProgress" | "Baking")
}

async fn current_group(name: &GroupName, cloud: &impl Groups) -> Result<Group> {
    let group = cloud.group(name).await?;
    group.ok_or_else(|| Error::new(Code::StackDrifted, format!("Auto Scaling group `{name}` was deleted meanwhile")))
}

/// Launch before terminate, 10 % of the group at a time but at least one instance; exactly one instance before a `stop`.
///
/// The warm-up is zero because an instance counts as healthy only after its registered runner has completed the launch hook.
fn preferences(group: &Group, stop: Option<RefreshStop>) -> RefreshPreferences {
    let one = Canary::surplus_percent(group.desired);
    let more = if stop.is_some() { one } else { one.max(10) };
    RefreshPreferences {
        min_healthy_percent: 100,
        max_healthy_percent: 100 + more,
        instance_warmup: Duration::ZERO,
        stop,
    }
}

/// Monitors a refresh, and the state of its new runners at GitHub.
struct RefreshMonitor<'a, C: Cloud> {
    request: &'a Request<'a>,
    name: &'a GroupName,
    cloud: &'a C,
    github: &'a OrgClient,
    operator: Session<'a>,
    /// The version to roll to.
    version: LaunchTemplateVersion,
    /// The runner version that the new runners must have.
    wanted: Option<RunnerVersion>,
    /// The refresh's id.
    id: String,
    /// The check of the first new instance, before the others are replaced.
    canary: Option<Canary>,
    /// Do not check GitHub: this refresh is not ours.
    ignores_github: bool,
    /// New instances whose runner was seen online.
    proved: BTreeSet<InstanceId>,
    /// The other new instances in service, and since when.
    waiting: BTreeMap<InstanceId, Instant>,
    next_look: Instant,
    look_pause: Duration,
    launches: LaunchWatch<'a>,
}

/// The result of a check of the new instances.
enum CanaryDecision {
    GoOn,
    CanaryIsGood,
    Bad(String),
}

impl<'a, C: Cloud> RefreshMonitor<'a, C> {
    async fn new(
        request: &'a Request<'a>,
        name: &'a GroupName,
        version: LaunchTemplateVersion,
        cloud: &'a C,
        github: &'a OrgClient,
        operator: Session<'a>,
    ) -> Result<Self> {
        let stack = cloud.stack(&request.config.fleet_stack(&request.fleet.name)).await?;
        let ami = stack.and_then(|stack| stack.parameters.get("AmiId")?.parse().ok());
        let ami = match ami {
            Some(id) => cloud.ami(&id).await?,
            None => None,
        };
        let wanted = ami.and_then(|ami| ami.tags.get("kiln:runner-version")?.parse().ok());
        Ok(Self {
            request,
            name,
            cloud,
            github,
            operator,
            version,
            wanted,
            id: String::new(),
            canary: None,
            ignores_github: false,
            proved: BTreeSet::new(),
            waiting: BTreeMap::new(),
            next_look: Instant::now(),
            look_pause: FIRST_GITHUB_PAUSE,
            launches: LaunchWatch::begin(name, Some(github), cloud).await?,
        })
    }

    async fn start(&mut self, group: &Group, stop: Option<RefreshStop>) -> Result<()> {
        self.id = self.cloud.start_refresh(self.name, &self.version, &preferences(group, stop)).await?;
        let (id, version) = (&self.id, &self.version.version);
        self.operator.progress.say(&format!("instance refresh {id} to launch template version {version}"));
        Ok(())
    }

    /// Waits for the refresh's end, or for the end of its canary. Fails if the refresh fails.
    async fn wait_until_done(&mut self) -> Result<()> {
        let mut watched = RefreshPoll::new(self.request);
        loop {
            let refresh = self.cloud.refresh(self.name, &self.id).await?;
            let RefreshStatus::Running(status) = &refresh.status else { return self.ended(&refresh).await };
            watched.tell(&refresh, status, self.operator.progress);
            if goes_forward(status) && !self.ignores_github {
                if let Some(why) = self.launches.look(self.cloud, self.operator.progress).await? {
                    let error = self.roll_back(why).await?;
                    return Err(Error { code: Code::LaunchesFail, ..error });
                }
                match self.look().await? {
                    CanaryDecision::GoOn => {}
                    CanaryDecision::CanaryIsGood => return self.release_group().await,
                    CanaryDecision::Bad(why) => return Err(self.roll_back(why).await?),
                }
            }
            watched.pause(&self.id, self.name).await?;
        }
    }

    /// Checks an instance that an earlier run launched. Returns false if there is none.
    async fn check_existing_canary(&mut self) -> Result<bool> {
        let mut pace = PollBackoff::new(2 * ONLINE_LIMIT);
        loop {
            let group = current_group(self.name, self.cloud).await?;
            if in_service(&group, Some(&self.version)).next().is_none() {
                return Ok(false);
            }
            match self.look().await? {
                CanaryDecision::CanaryIsGood => return Ok(true),
                CanaryDecision::Bad(why) => {
                    let live = group.launch_template.map(|live| live.version).unwrap_or_default();
                    return Err(
                        cancel_and_roll_back(self.request, self.name, &live, why, self.cloud, self.operator).await?
                    );
                }
                CanaryDecision::GoOn => {}
            }
            if pace.pause().await.is_err() {
                return Ok(false);
            }
        }
    }

    /// Reads the new instances and, after its own pause, the state of their runners at GitHub.
    async fn look(&mut self) -> Result<CanaryDecision> {
        let now = Instant::now();
        let group = current_group(self.name, self.cloud).await?;
        let new: BTreeSet<InstanceId> =
            in_service(&group, Some(&self.version)).map(|instance| instance.id.clone()).collect();
        // An instance that terminated meanwhile does not matter: its job ended, or Auto Scaling replaced it.
        self.waiting.retain(|id, _| new.contains(id));
        self.proved.retain(|id| new.contains(id));
        for id in new.iter().filter(|id| !self.proved.contains(*id)) {
            self.waiting.entry(id.clone()).or_insert(now);
        }
        if self.waiting.is_empty() || now < self.next_look {
            return Ok(CanaryDecision::GoOn);
        }
        self.next_look = now + paused(self.look_pause);
        self.look_pause = (2 * self.look_pause).min(GITHUB_PAUSE);
        let runners = fleet_runners(self.request.fleet, None, self.github).await?;
        let mut good = None;
        for (id, since) in std::mem::take(&mut self.waiting) {
            match runners.iter().find(|runner| is_of(runner, id.as_str()) && runner.is_online()) {
                Some(runner) if has_version(runner, self.wanted.as_ref()) => {
                    good.get_or_insert_with(|| runner.clone());
                    self.proved.insert(id);
                }
                Some(runner) => {
                    let (has, wanted) = (runner.version.as_deref().unwrap_or_default(), self.wanted.as_ref());
                    let wanted = wanted.map(ToString::to_string).unwrap_or_default();
                    return Ok(CanaryDecision::Bad(format!("runner {} has version {has}, not {wanted}", runner.name)));
                }
                None if since.elapsed() >= bounded(ONLINE_LIMIT) => {
                    let bound = human(ONLINE_LIMIT);
                    return Ok(CanaryDecision::Bad(format!(
                        "the runner of {id} was not online at GitHub within {bound}"
                    )));
                }
                None => {
                    self.waiting.insert(id, since);
                }
            }
        }
        match (self.canary.clone(), good) {
            (Some(canary), Some(runner)) => self.try_canary(&canary, &runner).await,
            _ => Ok(CanaryDecision::GoOn),
        }
    }

    async fn try_canary(&self, canary: &Canary, runner: &Runner) -> Result<CanaryDecision> {
        let progress = self.operator.progress;
        progress.say(&format!("canary {} is online", runner.name));
        let Some(check) = canary.check.clone() else { return Ok(CanaryDecision::CanaryIsGood) };
        let Some(instance) = self.proved.iter().find(|id| is_of(runner, id.as_str())) else {
            return Ok(CanaryDecision::GoOn);
        };
        let subject = CanaryRunner {
            check,
            fleet: self.request.fleet.name.to_string(),
            runner: runner.name.clone(),
            instance: instance.clone(),
        };
        match self.operator.check.check(&subject).await {
            Ok(()) => {
                progress.say(&format!("canary {} passed its check", runner.name));
                Ok(CanaryDecision::CanaryIsGood)
            }
            Err(why) => Ok(CanaryDecision::Bad(format!("canary {} failed its check: {why}", runner.name))),
        }
    }

    /// Cancels the canary's refresh at its checkpoint. The replaced instances stay; another refresh rolls the others.
    async fn release_group(&self) -> Result<()> {
        self.cloud.cancel_refresh(self.name).await?;
        follow(self.request, self.name, &self.id, self.cloud, self.operator.progress).await.map(drop)
    }

    /// Rolls the refresh back, and returns the error to fail with.
    async fn roll_back(&self, why: String) -> Result<Error> {
        let progress = self.operator.progress;
        progress.say(&format!("{why}: rolling instance refresh {} back", self.id));
        if !self.cloud.roll_back_refresh(self.name).await? {
            // The refresh ended just now. The group has either the previous version or the new one.
            let stack = self.cloud.stack(&self.request.config.fleet_stack(&self.request.fleet.name)).await?;
            let held = stack.and_then(|stack| stack.parameters.get(crate::fleet_stack::SERVING).cloned());
            let Some(held) = held.filter(|version| !version.is_empty()) else {
                return Ok(Error::new(Code::RefreshFailed, why).hint("`cargo xtask deploy --rollback` rolls back"));
            };
            return cancel_and_roll_back(self.request, self.name, &held, why, self.cloud, self.operator).await;
        }
        let refresh = follow(self.request, self.name, &self.id, self.cloud, progress).await?;
        let status = match &refresh.status {
            RefreshStatus::Ended(status) | RefreshStatus::Running(status) => status.as_str(),
            RefreshStatus::Successful => "Successful",
        };
        Ok(if status == "RollbackSuccessful" {
            Error::new(Code::RefreshFailed, format!("{why}; rolled back: the previous version is in service"))
                .hint(WHERE_TO_LOOK)
        } else {
            let reason = refresh.reason.unwrap_or_default();
            Error::new(Code::RefreshFailed, format!("{why}; the rollback of {} ended in {status}: {reason}", self.id))
                .hint("instances of the previous version that were not replaced are still in service; `cargo xtask deploy --rollback` rolls back")
        })
    }

    /// The result of a refresh that has ended.
    async fn ended(&self, refresh: &Refresh) -> Result<()> {
        let RefreshStatus::Ended(status) = &refresh.status else { return Ok(()) };
        let (id, name) = (&self.id, self.name);
        let reason = refresh.reason.clone().unwrap_or_else(|| "Auto Scaling gives no reason".to_owned());
        let message = format!("instance refresh {id} of {name} ended in {status}: {reason}");
        if status == "Cancelled" {
            let group = current_group(name, self.cloud).await?;
            let new = in_service(&group, Some(&self.version)).count();
            return Err(Error::new(
                Code::RefreshCancelled,
                format!(
                    "instance refresh {id} of {name} was cancelled by someone else: {new} of {} instance(s) have the new \
                     version; the others, and new launches, have the previous version",
                    group.desired
                ),
            )
            .hint("run the same command again to resume, or `cargo xtask deploy --rollback` to roll back"));
        }
        let hint = match status.as_str() {
            "RollbackSuccessful" => format!("rolled back: the previous version is in service; {WHERE_TO_LOOK}"),
            _ => "the instances of the previous version that were not replaced are still in service; `cargo xtask deploy \
                  --rollback` rolls back, the same command again resumes"
                .to_owned(),
        };
        Err(Error::new(Code::RefreshFailed, message).hint(hint))
    }
}

/// A wait for a refresh that prints its progress. It times out only if the refresh makes no progress: a refresh of a large group
/// waits for jobs many times, so the whole refresh has no fixed limit.
struct RefreshPoll {
    pace: PollBackoff,
    bound: Duration,
    told: String,
    progress: (u32, u32),
}

impl RefreshPoll {
    fn new(request: &Request<'_>) -> Self {
        let bound = Duration::from_secs(u64::from(request.fleet.drain_timeout_secs)) + REFRESH_MARGIN;
        Self { pace: PollBackoff::new(bound), bound, told: String::new(), progress: (0, 0) }
    }

    fn tell(&mut self, refresh: &Refresh, status: &str, progress: &dyn Progress) {
        let reason = refresh.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let line = format!("refresh is {status}, {}%, {} to go{reason}", refresh.percent, refresh.remaining);
        if line != self.told {
            progress.state(&line);
            self.told = line;
            self.pace.reset();
        }
        let now = (refresh.percent, refresh.remaining);
        if now != self.progress {
            self.progress = now;
            self.pace = PollBackoff::new(self.bound);
        }
    }

    async fn pause(&mut self, id: &str, group: &GroupName) -> Result<()> {
        self.pace.pause().await.map_err(|_| {
            let bound = human(self.bound);
            Error::new(Code::RefreshTimeout, format!("instance refresh {id} of {group} made no progress for {bound}"))
                .hint("run the same command again: it waits for the same refresh")
        })
    }
}

/// Waits until a refresh has ended, with whatever result.
async fn follow(
    request: &Request<'_>,
    group: &GroupName,
    id: &str,
    cloud: &impl Groups,
    progress: &dyn Progress,
) -> Result<Refresh> {
    let mut watched = RefreshPoll::new(request);
    loop {
        let refresh = cloud.refresh(group, id).await?;
        let RefreshStatus::Running(status) = &refresh.status else { return Ok(refresh) };
        watched.tell(&refresh, status, progress);
        watched.pause(id, group).await?;
    }
}
