//! What is to be done about a fleet. Pure: from what is known and the time to a list of calls.

use std::cmp::Reverse;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::fleet::{Fleet, State};
use crate::ids::{InstanceId, LaunchToken, RunnerId, RunnerName, ScaleSetId};
use crate::limits::{Bucket, Window};
use crate::ports::Market;

/// Instances per launch: small enough that fleets take turns.
const CHUNK: u32 = 25;

/// A controller that has not heard from GitHub for this long may have lost its session, and another may have it: it launches
/// and registers nothing. A poll is answered within fifty seconds.
pub const LEASE: Duration = Duration::from_secs(70);

/// A runner of another process whose configuration may not have been laid down: one that was is online within this.
const IN_DOUBT: Duration = Duration::from_secs(30);

/// A runner that has listened and is offline for this long is asked about.
const SILENT: Duration = Duration::from_secs(120);

/// A runner without an instance may have one that EC2 does not list yet.
const ORPHANED: Duration = Duration::from_secs(75);

/// A busy runner is asked about again after this.
pub const BUSY_PAUSE: Duration = Duration::from_secs(60);

/// EC2 may list an instance as running for a minute after it was ended.
const END_AGAIN: Duration = Duration::from_secs(120);

/// How long a launch whose answer was lost is sent again, with the same token.
const RESEND: Duration = Duration::from_secs(40);

/// A call to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Launch so many.
    Launch(u32, Market),
    /// Send a launch again.
    Resend(LaunchToken),
    /// Register an instance's runner, and lay its configuration down.
    HandOver(InstanceId, ScaleSetId),
    /// Remove an instance's runner.
    Remove(InstanceId, RunnerId, Why),
    /// Remove a runner that has no instance.
    RemoveOrphan(RunnerName, RunnerId),
    /// End instances.
    Terminate(Vec<InstanceId>),
    /// Delete an instance's configuration.
    TakeBack(InstanceId),
}

/// Why a runner is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nobody needs it, or it is too old.
    Surplus,
    /// It never listened.
    BootFailed,
    /// Its configuration was not laid down, or may not have been.
    NotHandedOver,
    /// It is missing where it should be.
    Asked,
    /// Its instance is gone.
    Lost,
}

/// What all fleets share.
#[derive(Debug)]
pub struct Budget {
    /// EC2's tokens for instances.
    pub instances: Bucket,
    /// EC2's tokens for calls that change something.
    pub calls: Bucket,
    /// Removals of idle runners.
    pub removals: Bucket,
    /// Registrations in flight.
    pub window: Window,
    /// How many there are.
    pub in_flight: usize,
}

impl Budget {
    /// Full.
    pub fn new(now: Timestamp) -> Self {
        Self {
            // source: https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html (RunInstances: 1,000
            // resource tokens, refilled with 2 a second).
            instances: Bucket::new(1000, 2.0, now),
            // assumption: what that page gives for most mutating actions (50, 5 a second) holds for CreateFleet and
            // TerminateInstances together.
            calls: Bucket::new(50, 5.0, now),
            removals: Bucket::new(10, 10.0, now),
            // assumption: no limit of the Actions service is published; the window finds it.
            window: Window::new(16, 64),
            in_flight: 0,
        }
    }
}

/// How many runners are wanted: those that jobs wait for or run on, and the idle ones.
pub fn target(min_idle: u32, max: u32, assigned: u32) -> u32 {
    min_idle.saturating_add(assigned).min(max)
}

/// How many jobs GitHub may assign altogether. Never 0, or a job that is queued meanwhile waits for ever; and no more than
/// can be had, or GitHub assigns jobs that no runner will take, and drops them after three times five minutes.
pub fn announce(fleet: &Fleet, now: Timestamp) -> NonZeroU32 {
    let settings = &fleet.settings;
    let count = |wanted: &dyn Fn(State) -> bool| {
        let those = fleet.instances.values().filter(|one| one.is_useful(now) && wanted(one.state(now))).count();
        u32::try_from(those).unwrap_or(u32::MAX)
    };
    let most = if settings.paused {
        1
    } else if fleet.boots.troubled() {
        count(&|state| matches!(state, State::Listening | State::Busy))
    } else if [&fleet.capacity, &fleet.quota, &fleet.refused].into_iter().any(crate::limits::Pauses::troubled) {
        // Once the pause is over, one more is the question whether there is capacity again.
        count(&|_| true).saturating_add(u32::from(!is_blocked(fleet, now)))
    } else {
        settings.max
    };
    NonZeroU32::new(most.min(settings.max)).unwrap_or(NonZeroU32::MIN)
}

fn is_blocked(fleet: &Fleet, now: Timestamp) -> bool {
    [&fleet.boots, &fleet.capacity, &fleet.quota, &fleet.refused].into_iter().any(|pauses| pauses.paused(now))
}

/// May this controller act for the fleet? It has the session, GitHub was heard lately, and no other controller's launches can
/// be unseen.
pub fn may_act(fleet: &Fleet, now: Timestamp) -> bool {
    let demand = &fleet.demand;
    let seen = |at: Option<Timestamp>| at.is_some_and(|at| at >= fleet.ready_at);
    demand.session
        && now.since(demand.heard) < LEASE
        && fleet.claimed
        && now >= fleet.ready_at
        && seen(fleet.swept)
        && seen(fleet.listed)
}

/// What is to be done now.
pub fn decide(fleet: &mut Fleet, budget: &mut Budget, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    if !may_act(fleet, now) {
        return actions;
    }
    let wanted = wanted(fleet, now);
    launch(fleet, budget, wanted, now, &mut actions);
    hand_over(fleet, budget, now, &mut actions);
    surplus(fleet, budget, wanted, now, &mut actions);
    repair(fleet, now, &mut actions);
    orphans(fleet, now, &mut actions);
    terminate(fleet, budget, now, &mut actions);
    forget(fleet, now);
    actions
}

/// What EC2 and GitHub both do not have any more.
fn forget(fleet: &mut Fleet, now: Timestamp) {
    let over = fleet.instances.extract_if(.., |_, one| {
        one.state(now) == State::Lost && one.runner.is_none() && !one.object && !one.in_flight
    });
    fleet.tombstones.extend(over.map(|(id, _)| (id, now)));
}

fn wanted(fleet: &Fleet, now: Timestamp) -> u32 {
    let settings = &fleet.settings;
    if settings.paused {
        // What runs is finished; idle ones are surplus.
        return fleet.demand.statistics.running;
    }
    let target = target(settings.min_idle, settings.max, fleet.demand.assigned);
    // An idle runner that is too old is replaced by one that listens, one at a time.
    let aged = fleet.instances.values().any(|one| is_aged(fleet, one, now));
    target.saturating_add(u32::from(aged)).min(settings.max)
}

fn is_aged(fleet: &Fleet, instance: &crate::fleet::Instance, now: Timestamp) -> bool {
    instance.state(now) == State::Listening
        && now.since(instance.launched) >= Duration::from_secs(fleet.settings.max_age_secs)
}

fn launch(fleet: &mut Fleet, budget: &mut Budget, wanted: u32, now: Timestamp, actions: &mut Vec<Action>) {
    for request in &mut fleet.requests {
        let in_doubt = request.launch.is_some() && !request.intent.settled && !request.in_flight;
        if in_doubt && now >= request.again && now.since(request.intent.at) < RESEND && budget.calls.take(1, now) == 1 {
            request.in_flight = true;
            actions.push(Action::Resend(request.intent.token.clone()));
        }
    }
    let missing = wanted.saturating_sub(fleet.useful(now));
    if missing == 0 {
        fleet.waiting_because = None;
        return;
    }
    if is_blocked(fleet, now) {
        return;
    }
    let room = fleet.settings.max.saturating_sub(fleet.held(now));
    // After trouble one chunk asks whether it is over; after failed boots one instance does.
    let chunk = if fleet.boots.troubled() { 1 } else { CHUNK };
    let count = missing.min(room).min(chunk);
    if count == 0 || budget.calls.take(1, now) == 0 {
        return;
    }
    let count = budget.instances.take(count, now);
    if count > 0 {
        let spot = fleet.settings.spot && !fleet.spot.paused(now);
        actions.push(Action::Launch(count, if spot { Market::Spot } else { Market::OnDemand }));
    }
}

fn hand_over(fleet: &mut Fleet, budget: &mut Budget, now: Timestamp, actions: &mut Vec<Action>) {
    let Some(set) = fleet.demand.set else { return };
    for (id, instance) in &mut fleet.instances {
        if budget.in_flight >= budget.window.size() {
            return;
        }
        if instance.state(now) == State::Launched && !instance.in_flight && now >= instance.not_before {
            instance.in_flight = true;
            budget.in_flight += 1;
            actions.push(Action::HandOver(id.clone(), set));
        }
    }
}

fn surplus(fleet: &mut Fleet, budget: &mut Budget, wanted: u32, now: Timestamp, actions: &mut Vec<Action>) {
    let surplus = fleet.useful(now).saturating_sub(wanted);
    // With one that is too old, one more is wanted. Once it listens there is one too many, and no reason to wait.
    let any_aged = fleet.instances.values().any(|one| is_aged(fleet, one, now));
    let base = wanted.saturating_sub(u32::from(any_aged && !fleet.settings.paused));
    let ready = fleet.instances.values().filter(|one| matches!(one.state(now), State::Listening | State::Busy)).count();
    let replaced = any_aged && u32::try_from(ready).unwrap_or(u32::MAX) > base;
    if surplus == 0 && !replaced {
        fleet.surplus_since = None;
        return;
    }
    let since = *fleet.surplus_since.get_or_insert(now);
    let lingered = now.since(since) >= Duration::from_secs(fleet.settings.linger_secs);
    if !lingered && !replaced {
        return;
    }
    let count = if lingered { surplus.max(u32::from(replaced)) } else { 1 };
    let max_age = Duration::from_secs(fleet.settings.max_age_secs);
    let mut idle: Vec<_> = fleet
        .instances
        .iter_mut()
        .filter(|(_, one)| one.state(now) == State::Listening && !one.in_flight && now >= one.not_before)
        .filter(|(_, one)| lingered || now.since(one.launched) >= max_age)
        .collect();
    // The oldest version first, then the oldest instance.
    idle.sort_by_key(|(_, one)| (one.version, one.launched, Reverse(one.first_seen)));
    let count = (count as usize).min(idle.len());
    let count = budget.removals.take(u32::try_from(count).unwrap_or(u32::MAX), now) as usize;
    for (id, instance) in idle.into_iter().take(count) {
        let Some(runner) = &instance.runner else { continue };
        instance.in_flight = true;
        actions.push(Action::Remove(id.clone(), runner.id, Why::Surplus));
    }
}

/// Runners that are not what they should be: asked about by removing them, which a busy one refuses.
fn repair(fleet: &mut Fleet, now: Timestamp, actions: &mut Vec<Action>) {
    let limit = Duration::from_secs(fleet.settings.boot_limit_secs);
    let listed = fleet.listed;
    for (id, instance) in &mut fleet.instances {
        if instance.in_flight || now < instance.not_before {
            continue;
        }
        let state = instance.state(now);
        // It was read, or never will be.
        let useless = match &instance.runner {
            Some(runner) => runner.seen_online,
            None => state != State::Launched,
        };
        if instance.object && useless {
            instance.in_flight = true;
            actions.push(Action::TakeBack(id.clone()));
            continue;
        }
        let Some(runner) = &instance.runner else { continue };
        let silent = runner.offline_since.is_some_and(|since| now.since(since) >= SILENT);
        let waited = now.since(runner.since);
        let why = match (state, runner.handed) {
            // An instance ends after its job; that its runner is gone shows in the next listing.
            (State::Lost, _) if instance.lost.is_some_and(|lost| listed.is_some_and(|at| at >= lost)) => Why::Lost,
            (State::Lost, _) => continue,
            (State::Handed, Some(false)) => Why::NotHandedOver,
            (State::Handed, None) if waited >= IN_DOUBT && now.since(instance.launched) < limit => Why::NotHandedOver,
            (State::Handed, _) if waited >= limit => Why::BootFailed,
            (State::Listening, _) if silent => Why::Asked,
            _ if runner.missed >= 2 => Why::Asked,
            _ => continue,
        };
        instance.in_flight = true;
        actions.push(Action::Remove(id.clone(), runner.id, why));
    }
}

fn orphans(fleet: &mut Fleet, now: Timestamp, actions: &mut Vec<Action>) {
    let swept = fleet.swept;
    for (name, orphan) in &mut fleet.orphans {
        let unseen = swept.is_some_and(|at| at >= orphan.since.plus(ORPHANED));
        if unseen && !orphan.in_flight && now >= orphan.not_before {
            orphan.in_flight = true;
            actions.push(Action::RemoveOrphan(name.clone(), orphan.id));
        }
    }
}

fn terminate(fleet: &mut Fleet, budget: &mut Budget, now: Timestamp, actions: &mut Vec<Action>) {
    let mut ids = Vec::new();
    for (id, instance) in &mut fleet.instances {
        let due = instance.end_after(now).is_some_and(|at| now >= at);
        let again = instance.ended.is_none_or(|at| now.since(at) >= END_AGAIN);
        if due && again && !instance.in_flight && now >= instance.not_before {
            ids.push(id.clone());
        }
    }
    if ids.is_empty() || budget.calls.take(1, now) == 0 {
        return;
    }
    for id in &ids {
        if let Some(instance) = fleet.instances.get_mut(id) {
            instance.ended = Some(now);
        }
    }
    actions.push(Action::Terminate(ids));
}
