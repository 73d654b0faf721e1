//! Rolling a group by an instance refresh, with an eye on GitHub all the while.
//!
//! Auto Scaling takes an instance for good once its launch hook is completed. Whether its runner serves only GitHub knows:
//! so each new instance's runner is looked for while the old instances still serve, and a refresh that brings up runners
//! which do not is rolled back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_config::model::{GroupName, InstanceId, RunnerVersion};
use kiln_github::{OrgClient, Runner};
use tokio::time::Instant;

use super::observe::{fleet_runners, take_equal_versions_for_newest};
use super::plan::{all_on, has_version, in_service, newest_version};
use super::{Canary, CanaryRunner, Operator, Request};
use crate::code::Code;
use crate::error::{Error, Kind, Result};
use crate::launches::LaunchWatch;
use crate::orphans::is_of;
use crate::ports::{
    Cloud, Group, Groups, LaunchTemplateVersion, Progress, Refresh, RefreshPreferences, RefreshStatus, RefreshStop,
};
use crate::wait::{Pace, bounded, human, paused};

/// An instance in service has registered already (its launch hook says so); what remains is GitHub's list being read. Ten
/// minutes is beyond any delay GitHub has had there without an incident of its own.
pub(super) const ONLINE_BOUND: Duration = Duration::from_secs(600);

/// What a refresh may take beyond the longest drain: launching, registering, terminating.
const REFRESH_MARGIN: Duration = Duration::from_secs(3600);

/// A look at GitHub takes a request for every hundred of the organization's runners, of 5,000 an hour: at this pause ten
/// looks in five minutes leave most of them to others even with a thousand runners.
const GITHUB_PAUSE: Duration = Duration::from_secs(30);

/// The pause after the first look, doubled up to the one above: a runner is online a second or two after its registration.
const FIRST_GITHUB_PAUSE: Duration = Duration::from_secs(2);

/// How long a refresh stops for its canary: the canary's check has half an hour, and a run that was interrupted finds the
/// refresh where it left it.
const CANARY_PAUSE: Duration = Duration::from_secs(2 * 3600);

pub(super) const WHERE_TO_LOOK: &str = "a new instance's own account of its boot is in its journal (and in the EC2 \
     console's system log); mend it and run this again";

/// Rolls a group to its stack's newest version, the canary first.
pub(super) async fn roll(
    request: &Request<'_>,
    name: &GroupName,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Operator<'_>,
) -> Result<()> {
    let (group, version) = group_and_version(request, name, cloud).await?;
    if all_on(&group, Some(&version)) {
        operator.progress.say(&format!("{name} has launch template version {} already", version.version));
        return Ok(());
    }
    let mut watch = Watch::new(request, name, version, cloud, github, operator).await?;
    if let Some(canary) = request.canary.as_ref().filter(|canary| canary.is_of_use(group.desired)) {
        watch.canary = Some(canary.clone());
        if !watch.try_one_that_is_there().await? {
            let stop = RefreshStop { percent: Canary::checkpoint_percent(group.desired), pause: CANARY_PAUSE };
            watch.start(&group, Some(stop)).await?;
            watch.see_through().await?;
        }
        watch.canary = None;
    }
    let group = current_group(name, cloud).await?;
    if !all_on(&group, Some(&watch.version)) {
        watch.start(&group, None).await?;
        watch.see_through().await?;
    }
    Ok(())
}

/// Goes on with a refresh that runs: to its end, or to the end of its canary.
pub(super) async fn go_on(
    request: &Request<'_>,
    name: &GroupName,
    id: &str,
    cloud: &impl Cloud,
    github: &OrgClient,
    operator: Operator<'_>,
) -> Result<()> {
    let (_, newest) = group_and_version(request, name, cloud).await?;
    let refresh = cloud.refresh(name, id).await?;
    let forward = matches!(&refresh.status, RefreshStatus::Running(status) if goes_forward(status));
    let ours = forward && refresh.to.as_ref() == Some(&newest);
    let mut watch = Watch::new(request, name, newest, cloud, github, operator).await?;
    id.clone_into(&mut watch.id);
    if refresh.stops && ours {
        watch.canary = Some(request.canary.clone().unwrap_or(Canary { check: None }));
    }
    // To another version, or on its way back, it is left alone: whatever it comes to, the roll that follows brings the
    // group on.
    watch.blind = !ours;
    match watch.see_through().await {
        Err(error) if watch.blind && error.kind() == Kind::Failed => Ok(()),
        result => result,
    }
}

/// A refresh back to a version, and the failure to end with.
pub(super) async fn take_back(
    request: &Request<'_>,
    name: &GroupName,
    former: &str,
    why: String,
    cloud: &impl Cloud,
    operator: Operator<'_>,
) -> Result<Error> {
    operator.progress.say(&format!("{why}: going back to launch template version {former}"));
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
            format!("{why}; rolled back: launch template version {former} serves again"),
        )
        .hint(WHERE_TO_LOOK),
        RefreshStatus::Ended(status) | RefreshStatus::Running(status) => {
            let reason = refresh.reason.unwrap_or_default();
            Error::new(
                Code::RefreshFailed,
                format!("{why}; the refresh {id} back to version {former} ended in {status}: {reason}"),
            )
            .hint("`cargo xtask deploy --rollback` tries again to go back")
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

/// Neither cancelled nor rolled back.
fn goes_forward(status: &str) -> bool {
    matches!(status, "Pending" | "InProgress" | "Baking")
}

async fn current_group(name: &GroupName, cloud: &impl Groups) -> Result<Group> {
    let group = cloud.group(name).await?;
    group.ok_or_else(|| Error::new(Code::StackDrifted, format!("Auto Scaling group `{name}` was deleted meanwhile")))
}

/// Launch before terminate, a tenth of the group at a time but at least one instance; one alone up to a stop.
///
/// The warm-up is zero because an instance counts only once its launch hook is completed, by its registered runner.
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

/// A refresh that is watched, and with it what GitHub knows of its new instances.
struct Watch<'a, C: Cloud> {
    request: &'a Request<'a>,
    name: &'a GroupName,
    cloud: &'a C,
    github: &'a OrgClient,
    operator: Operator<'a>,
    /// What is rolled to.
    version: LaunchTemplateVersion,
    /// What its runners must have.
    wanted: Option<RunnerVersion>,
    /// The refresh.
    id: String,
    /// To be tried before the rest.
    canary: Option<Canary>,
    /// Without an eye on GitHub.
    blind: bool,
    /// New instances whose runner was seen online.
    proved: BTreeSet<InstanceId>,
    /// The others in service, and since when.
    waiting: BTreeMap<InstanceId, Instant>,
    next_look: Instant,
    look_pause: Duration,
    launches: LaunchWatch<'a>,
}

/// What a look at the new instances comes to.
enum Verdict {
    GoOn,
    CanaryIsGood,
    Bad(String),
}

impl<'a, C: Cloud> Watch<'a, C> {
    async fn new(
        request: &'a Request<'a>,
        name: &'a GroupName,
        version: LaunchTemplateVersion,
        cloud: &'a C,
        github: &'a OrgClient,
        operator: Operator<'a>,
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
            blind: false,
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

    /// Watches the refresh to its end, or to its canary's, and fails as it does.
    async fn see_through(&mut self) -> Result<()> {
        let mut watched = Watched::new(self.request);
        loop {
            let refresh = self.cloud.refresh(self.name, &self.id).await?;
            let RefreshStatus::Running(status) = &refresh.status else { return self.ended(&refresh).await };
            watched.tell(&refresh, status, self.operator.progress);
            if goes_forward(status) && !self.blind {
                if let Some(why) = self.launches.look(self.cloud, self.operator.progress).await? {
                    let error = self.roll_back(why).await?;
                    return Err(Error { code: Code::LaunchesFail, ..error });
                }
                match self.look().await? {
                    Verdict::GoOn => {}
                    Verdict::CanaryIsGood => return self.let_go().await,
                    Verdict::Bad(why) => return Err(self.roll_back(why).await?),
                }
            }
            watched.pause(&self.id, self.name).await?;
        }
    }

    /// Tries an instance that an earlier run has brought up, or tells that there is none.
    async fn try_one_that_is_there(&mut self) -> Result<bool> {
        let mut pace = Pace::new(2 * ONLINE_BOUND);
        loop {
            let group = current_group(self.name, self.cloud).await?;
            if in_service(&group, Some(&self.version)).next().is_none() {
                return Ok(false);
            }
            match self.look().await? {
                Verdict::CanaryIsGood => return Ok(true),
                Verdict::Bad(why) => {
                    let live = group.launch_template.map(|live| live.version).unwrap_or_default();
                    return Err(take_back(self.request, self.name, &live, why, self.cloud, self.operator).await?);
                }
                Verdict::GoOn => {}
            }
            if pace.pause().await.is_err() {
                return Ok(false);
            }
        }
    }

    /// The new instances, and at a pause of its own what GitHub knows of them.
    async fn look(&mut self) -> Result<Verdict> {
        let now = Instant::now();
        let group = current_group(self.name, self.cloud).await?;
        let new: BTreeSet<InstanceId> =
            in_service(&group, Some(&self.version)).map(|instance| instance.id.clone()).collect();
        // One that left meanwhile is nobody's concern: its job was done, or Auto Scaling replaced it.
        self.waiting.retain(|id, _| new.contains(id));
        self.proved.retain(|id| new.contains(id));
        for id in new.iter().filter(|id| !self.proved.contains(*id)) {
            self.waiting.entry(id.clone()).or_insert(now);
        }
        if self.waiting.is_empty() || now < self.next_look {
            return Ok(Verdict::GoOn);
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
                    return Ok(Verdict::Bad(format!("runner {} has version {has}, not {wanted}", runner.name)));
                }
                None if since.elapsed() >= bounded(ONLINE_BOUND) => {
                    let bound = human(ONLINE_BOUND);
                    return Ok(Verdict::Bad(format!(
                        "no runner of {id} is online at GitHub {bound} after it was to be"
                    )));
                }
                None => {
                    self.waiting.insert(id, since);
                }
            }
        }
        match (self.canary.clone(), good) {
            (Some(canary), Some(runner)) => self.try_canary(&canary, &runner).await,
            _ => Ok(Verdict::GoOn),
        }
    }

    async fn try_canary(&self, canary: &Canary, runner: &Runner) -> Result<Verdict> {
        let progress = self.operator.progress;
        progress.say(&format!("canary {} is online", runner.name));
        let Some(check) = canary.check.clone() else { return Ok(Verdict::CanaryIsGood) };
        let Some(instance) = self.proved.iter().find(|id| is_of(runner, id.as_str())) else { return Ok(Verdict::GoOn) };
        let subject = CanaryRunner {
            check,
            fleet: self.request.fleet.name.to_string(),
            runner: runner.name.clone(),
            instance: instance.clone(),
        };
        match self.operator.check.check(&subject).await {
            Ok(()) => {
                progress.say(&format!("canary {} is good", runner.name));
                Ok(Verdict::CanaryIsGood)
            }
            Err(why) => Ok(Verdict::Bad(format!("canary {} is not good: {why}", runner.name))),
        }
    }

    /// Ends a canary's refresh where it stands: what it replaced stays, and the rest is rolled by another.
    async fn let_go(&self) -> Result<()> {
        self.cloud.cancel_refresh(self.name).await?;
        follow(self.request, self.name, &self.id, self.cloud, self.operator.progress).await.map(drop)
    }

    /// Takes the refresh back, and gives the failure to end with.
    async fn roll_back(&self, why: String) -> Result<Error> {
        let progress = self.operator.progress;
        progress.say(&format!("{why}: rolling instance refresh {} back", self.id));
        if !self.cloud.roll_back_refresh(self.name).await? {
            // It ended in this very moment; the group still has the version before, or the new one.
            let stack = self.cloud.stack(&self.request.config.fleet_stack(&self.request.fleet.name)).await?;
            let held = stack.and_then(|stack| stack.parameters.get(crate::fleet_stack::SERVING).cloned());
            let Some(held) = held.filter(|version| !version.is_empty()) else {
                return Ok(Error::new(Code::RefreshFailed, why).hint("`cargo xtask deploy --rollback` goes back"));
            };
            return take_back(self.request, self.name, &held, why, self.cloud, self.operator).await;
        }
        let refresh = follow(self.request, self.name, &self.id, self.cloud, progress).await?;
        let status = match &refresh.status {
            RefreshStatus::Ended(status) | RefreshStatus::Running(status) => status.as_str(),
            RefreshStatus::Successful => "Successful",
        };
        Ok(if status == "RollbackSuccessful" {
            Error::new(Code::RefreshFailed, format!("{why}; rolled back: the version before serves"))
                .hint(WHERE_TO_LOOK)
        } else {
            let reason = refresh.reason.unwrap_or_default();
            Error::new(Code::RefreshFailed, format!("{why}; the rollback of {} ended in {status}: {reason}", self.id))
                .hint("instances of the version before that were not replaced still serve; `cargo xtask deploy --rollback` goes back")
        })
    }

    /// What an ended refresh means.
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
                     version, the rest and whatever is launched now have the one before",
                    group.desired
                ),
            )
            .hint("the same command again goes on, `cargo xtask deploy --rollback` goes back"));
        }
        let hint = match status.as_str() {
            "RollbackSuccessful" => format!("rolled back: the version before still serves; {WHERE_TO_LOOK}"),
            _ => "the instances of the version before that were not replaced still serve; `cargo xtask deploy --rollback` \
                  goes back, the same command again goes on"
                .to_owned(),
        };
        Err(Error::new(Code::RefreshFailed, message).hint(hint))
    }
}

/// A wait for a refresh, told as it goes on. It ends where the refresh makes no progress: with a group's size grows how
/// often it waits for jobs, so there is no time that all of it takes at most.
struct Watched {
    pace: Pace,
    bound: Duration,
    told: String,
    progress: (u32, u32),
}

impl Watched {
    fn new(request: &Request<'_>) -> Self {
        let bound = Duration::from_secs(u64::from(request.fleet.drain_limit_secs)) + REFRESH_MARGIN;
        Self { pace: Pace::new(bound), bound, told: String::new(), progress: (0, 0) }
    }

    fn tell(&mut self, refresh: &Refresh, status: &str, progress: &dyn Progress) {
        let reason = refresh.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let line = format!("refresh is {status}, {}%, {} to go{reason}", refresh.percent, refresh.remaining);
        if line != self.told {
            progress.state(&line);
            self.told = line;
            self.pace.quicken();
        }
        let now = (refresh.percent, refresh.remaining);
        if now != self.progress {
            self.progress = now;
            self.pace = Pace::new(self.bound);
        }
    }

    async fn pause(&mut self, id: &str, group: &GroupName) -> Result<()> {
        self.pace.pause().await.map_err(|_| {
            let bound = human(self.bound);
            Error::new(Code::RefreshSlow, format!("instance refresh {id} of {group} made no progress for {bound}"))
                .hint("run the same command again: it waits for this very refresh")
        })
    }
}

/// Waits for a refresh's end, whatever it is.
async fn follow(
    request: &Request<'_>,
    group: &GroupName,
    id: &str,
    cloud: &impl Groups,
    progress: &dyn Progress,
) -> Result<Refresh> {
    let mut watched = Watched::new(request);
    loop {
        let refresh = cloud.refresh(group, id).await?;
        let RefreshStatus::Running(status) = &refresh.status else { return Ok(refresh) };
        watched.tell(&refresh, status, progress);
        watched.pause(id, group).await?;
    }
}
