//! What is known of a fleet, and what follows from it. No call is made here, and nothing is kept but what was seen: each state
//! is derived on each tick.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::documents::Settings;
use crate::ids::{FleetName, InstanceId, LaunchToken, RunnerId, RunnerName, ScaleSetId};
use crate::intents::{Intent, UNSEEN};
use crate::limits::Pauses;
use crate::ports::{Launch, Machine, Runner, Shortage, Statistics};

/// EC2's list is at most this late, so an instance that is older and not in it is gone.
///
/// assumption: a minute, as [`UNSEEN`] says.
const LIST_LAG: Duration = Duration::from_secs(60);

/// An instance without a configuration powers off after ten minutes; none is made for one that is about to.
const HAND_OVER_UNTIL: Duration = Duration::from_secs(9 * 60);

/// An instance that somebody else launched, without a runner: younger than this it waits for its configuration (a
/// configuration follows a launch within seconds), older it has done its job and is leaving.
const FRESH: Duration = Duration::from_secs(120);

/// How late a removed runner's machine may still be the one that ran a job: GitHub's word that it was idle can be wrong.
pub const AFTER_REMOVAL: Duration = Duration::from_secs(10 * 60);

/// The same after GitHub has said that the job is over and the runner gone.
pub const AFTER_COMPLETION: Duration = Duration::from_secs(15 * 60);

/// The same where GitHub lost the scale set, and what it knew of a job: the longest job that GitHub allows on a runner of ours.
///
/// source: <https://docs.github.com/en/actions/reference/limits> (a job on a self-hosted runner: five days).
pub const AFTER_ALL: Duration = Duration::from_secs(5 * 24 * 60 * 60);

/// The same for a runner that never listened. `JobStarted` would have come by then if it had.
pub const AFTER_FAILED_BOOT: Duration = Duration::from_secs(60);

/// An instance that was forgotten may be listed once more by a list that is late.
const TOMBSTONE: Duration = Duration::from_secs(5 * 60);

/// What the queue says is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demand {
    /// The scale set, once there is one.
    pub set: Option<ScaleSetId>,
    /// The last counts.
    pub statistics: Statistics,
    /// Jobs that wait or run.
    pub assigned: u32,
    /// Is a session open?
    pub session: bool,
    /// When GitHub last answered on it.
    pub heard: Timestamp,
}

/// A runner of an instance.
#[derive(Debug, Clone)]
pub struct Registered {
    /// Its id.
    pub id: RunnerId,
    /// When it was registered, or first seen.
    pub since: Timestamp,
    /// Is its configuration laid down? `None` where another process registered it, which can't be known.
    pub handed: Option<bool>,
    /// Was it ever online?
    pub seen_online: bool,
    /// Is it online now, and since when not?
    pub offline_since: Option<Timestamp>,
    /// Does it run a job?
    pub busy: bool,
    /// In how many listings in a row it was missing.
    pub missed: u8,
}

/// What is known of an instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its launch.
    pub token: LaunchToken,
    /// When it was launched.
    pub launched: Timestamp,
    /// When this process first saw it.
    pub first_seen: Timestamp,
    /// Of which version of the launch template.
    pub version: u64,
    /// Has EC2 listed it?
    pub listed: bool,
    /// In how many lists in a row it was missing.
    pub missed: u8,
    /// Is it shutting down?
    pub ending: bool,
    /// When EC2 was found not to have it any more.
    pub lost: Option<Timestamp>,
    /// Has this process asked for a runner and got no answer?
    pub unanswered: bool,
    /// Has it never had a configuration? Certain only of what this process launched.
    pub fresh: bool,
    /// Its runner.
    pub runner: Option<Registered>,
    /// When its runner was removed by us.
    pub removed: Option<Timestamp>,
    /// Was that because it never listened?
    pub boot_failed: bool,
    /// When its runner was found gone.
    pub gone: Option<Timestamp>,
    /// When it took a job.
    pub started: Option<Timestamp>,
    /// Has GitHub said that its job is over?
    pub completed: bool,
    /// Its scale set is gone, and with it what GitHub knew of a job on it.
    pub unknown: bool,
    /// When we ended it.
    pub ended: Option<Timestamp>,
    /// Is there, or may there be, an object with its configuration?
    pub object: bool,
    /// Nothing more is asked about it before this.
    pub not_before: Timestamp,
    /// Failures in a row of what was asked.
    pub failures: u32,
    /// A call about it is under way.
    pub in_flight: bool,
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It has no runner yet.
    Launched,
    /// It has a runner, which has not listened yet.
    Handed,
    /// Its runner waits for a job.
    Listening,
    /// Its runner runs a job.
    Busy,
    /// We removed its runner; it powers off by itself.
    Removing,
    /// Its runner is gone; it powers off by itself.
    Leaving,
    /// EC2 does not have it any more.
    Lost,
}

impl Instance {
    fn new(token: LaunchToken, launched: Timestamp, version: u64, now: Timestamp) -> Self {
        Self {
            token,
            launched,
            first_seen: now,
            version,
            listed: false,
            missed: 0,
            ending: false,
            lost: None,
            unanswered: false,
            fresh: true,
            runner: None,
            removed: None,
            boot_failed: false,
            gone: None,
            started: None,
            completed: false,
            unknown: false,
            ended: None,
            object: true,
            not_before: now,
            failures: 0,
            in_flight: false,
        }
    }

    /// What it is doing.
    pub fn state(&self, now: Timestamp) -> State {
        if self.ending || (self.missed >= 2 && now.since(self.launched) >= LIST_LAG) {
            return State::Lost;
        }
        let busy = self.started.is_some() && !self.completed;
        match &self.runner {
            Some(runner) if runner.busy || busy => State::Busy,
            Some(runner) if runner.seen_online => State::Listening,
            Some(_) => State::Handed,
            // GitHub removed it as idle, and then it took a job after all; or GitHub lost the whole scale set. Nobody says when
            // the job is over: the machine ends by itself.
            None if busy => State::Busy,
            None if self.removed.is_some() => State::Removing,
            None if self.gone.is_some() || !(self.fresh || now.since(self.launched) < FRESH) => State::Leaving,
            None if now.since(self.launched) >= HAND_OVER_UNTIL => State::Leaving,
            None => State::Launched,
        }
    }

    /// Will it run one more job, or does it run one?
    pub fn is_useful(&self, now: Timestamp) -> bool {
        let unknown = self.runner.is_none() && self.gone.is_some();
        match self.state(now) {
            State::Launched | State::Handed | State::Listening => !self.completed,
            // A job whose runner GitHub does not know is not among those that it counts.
            State::Busy => !self.completed && !unknown,
            State::Removing | State::Leaving | State::Lost => false,
        }
    }

    /// Has it, or will it have, a runner at GitHub?
    fn holds_a_runner(&self, now: Timestamp) -> bool {
        self.runner.is_some() || self.in_flight || self.state(now) == State::Launched
    }

    /// When we may end it, if it does not end by itself. Never on the word that its job is over alone: GitHub has said so of
    /// jobs that still ran.
    pub fn end_after(&self, now: Timestamp) -> Option<Timestamp> {
        if self.unknown {
            // It may run a job of which nobody speaks any more. Idle, it ends by itself; busy, after the job.
            return Some(self.first_seen.plus(AFTER_ALL));
        }
        match (self.state(now), self.removed) {
            (State::Removing, Some(at)) if self.boot_failed => Some(at.plus(AFTER_FAILED_BOOT)),
            (State::Removing, Some(at)) => Some(at.plus(AFTER_REMOVAL)),
            (State::Leaving, _) if self.completed => Some(self.gone.unwrap_or(self.first_seen).plus(AFTER_COMPLETION)),
            (State::Leaving, _) => Some(self.gone.unwrap_or(self.first_seen).plus(AFTER_REMOVAL)),
            _ => None,
        }
    }

    /// The next try is later with each failure in a row: 2, 4, 8, 16, 30 s.
    pub fn failed(&mut self, now: Timestamp) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = now.plus(Duration::from_secs((1_u64 << self.failures.min(5)).min(30)));
    }
}

/// A launch under way, or not yet seen.
#[derive(Debug, Clone)]
pub struct Request {
    /// As it is on the disk.
    pub intent: Intent,
    /// As it was sent, so that it can be sent again; `None` where another process sent it.
    pub launch: Option<Launch>,
    /// A call is under way.
    pub in_flight: bool,
    /// When it is sent again, if its answer was lost.
    pub again: Timestamp,
}

/// A runner of ours whose instance is not known.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// Its id.
    pub id: RunnerId,
    /// When it was first seen.
    pub since: Timestamp,
    /// Nothing more is asked about it before this.
    pub not_before: Timestamp,
    /// As GitHub lists it.
    listed: Runner,
    /// A call about it is under way.
    pub in_flight: bool,
}

/// What is known of a fleet.
#[derive(Debug)]
pub struct Fleet {
    /// Its name.
    pub name: FleetName,
    /// What it is to be.
    pub settings: Settings,
    /// What its queue says.
    pub demand: Demand,
    /// Its instances.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Instances that are gone, so that a late list does not bring them back.
    pub tombstones: BTreeMap<InstanceId, Timestamp>,
    /// Instances that may run a job of which GitHub does not know any more; handed on to the next process by the status.
    pub spared: BTreeSet<InstanceId>,
    /// The scale sets that this process has seen.
    pub sets: BTreeSet<ScaleSetId>,
    /// What was launched before this belongs to a scale set that is gone.
    pub spared_before: Option<Timestamp>,
    /// When this process began to know of the fleet.
    pub known_since: Timestamp,
    /// Its runners without an instance.
    pub orphans: BTreeMap<RunnerName, Orphan>,
    /// Its launches.
    pub requests: Vec<Request>,
    /// Failed boots.
    pub boots: Pauses,
    /// AWS has no capacity.
    pub capacity: Pauses,
    /// The account may have no more.
    pub quota: Pauses,
    /// The request is refused.
    pub refused: Pauses,
    /// Spot gives too little.
    pub spot: Pauses,
    /// Since when there are more than wanted.
    pub surplus_since: Option<Timestamp>,
    /// Nothing is launched before this: launches of another controller may be unseen.
    pub ready_at: Timestamp,
    /// Is the fleet's entry in the status ours?
    pub claimed: bool,
    /// When EC2's list was last read, and begun.
    pub swept: Option<Timestamp>,
    /// When GitHub's list was last read, and begun.
    pub listed: Option<Timestamp>,
    /// GitHub's list is being read.
    pub listing: bool,
    /// Somebody needs GitHub's list soon.
    pub list_soon: bool,
    /// The last failures, newest first.
    pub errors: Vec<String>,
    /// What jobs wait for.
    pub waiting_because: Option<String>,
}

/// How many failures are kept for the status.
const KEPT_ERRORS: usize = 5;

impl Fleet {
    /// A fleet of which nothing is known yet but what a former process launched.
    pub fn new(name: FleetName, settings: Settings, former: Vec<Intent>, now: Timestamp) -> Self {
        let requests = former
            .into_iter()
            // The machine's clock may have been set meanwhile: counted from now, nothing is forgotten too early.
            .map(|intent| Request { intent: Intent { at: now, ..intent }, launch: None, in_flight: false, again: now })
            .collect();
        Self {
            name,
            settings,
            demand: Demand::default(),
            instances: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            spared: BTreeSet::new(),
            spared_before: None,
            sets: BTreeSet::new(),
            known_since: now,
            orphans: BTreeMap::new(),
            requests,
            boots: Pauses::after(&[60, 120, 300, 600, 900], 2),
            capacity: Pauses::new(&[15, 30, 60, 120, 300]),
            quota: Pauses::new(&[60, 120, 300, 900]),
            refused: Pauses::new(&[60]),
            spot: Pauses::new(&[120, 300, 900, 1800]),
            surplus_since: None,
            ready_at: now,
            claimed: false,
            swept: None,
            listed: None,
            listing: false,
            list_soon: true,
            errors: Vec::new(),
            waiting_because: None,
        }
    }

    /// What launches wait for after a shortage of this kind.
    pub fn pauses(&mut self, kind: Shortage) -> &mut Pauses {
        match kind {
            Shortage::Capacity => &mut self.capacity,
            Shortage::Quota => &mut self.quota,
            Shortage::Refused => &mut self.refused,
        }
    }

    /// Keeps a failure for the status.
    pub fn error(&mut self, text: String) {
        tracing::warn!(fleet = %self.name, "{text}");
        if self.errors.first() != Some(&text) {
            self.errors.insert(0, text);
            self.errors.truncate(KEPT_ERRORS);
        }
    }

    /// Launches that are not seen yet.
    pub fn unseen(&self) -> u32 {
        self.requests.iter().map(|request| self.unseen_of(request)).sum()
    }

    fn unseen_of(&self, request: &Request) -> u32 {
        let known = self.instances.values().filter(|instance| instance.token == request.intent.token).count();
        request.intent.count.saturating_sub(u32::try_from(known).unwrap_or(u32::MAX))
    }

    /// Instances that run a job or will run one, launches that are not seen yet among them.
    pub fn useful(&self, now: Timestamp) -> u32 {
        let seen = self.instances.values().filter(|instance| instance.is_useful(now)).count();
        u32::try_from(seen).unwrap_or(u32::MAX).saturating_add(self.unseen())
    }

    /// Runners that exist at GitHub or may come to: never more than the maximum.
    pub fn held(&self, now: Timestamp) -> u32 {
        let seen = self.instances.values().filter(|instance| instance.holds_a_runner(now)).count();
        u32::try_from(seen + self.orphans.len()).unwrap_or(u32::MAX).saturating_add(self.unseen())
    }

    /// EC2's list, which was begun at `began`.
    pub fn see_machines(&mut self, machines: &[Machine], began: Timestamp, now: Timestamp) {
        let listed: BTreeMap<&InstanceId, &Machine> = machines
            .iter()
            .filter(|machine| machine.fleet == self.name)
            .map(|machine| (&machine.id, machine))
            .collect();
        for (id, machine) in &listed {
            if let Some(instance) = self.instances.get_mut(*id) {
                instance.listed = true;
                instance.missed = 0;
                instance.ending |= machine.ending;
            } else if !self.tombstones.contains_key(*id) && !machine.ending {
                self.adopt(machine, now);
            }
        }
        for (id, instance) in &mut self.instances {
            if !listed.contains_key(id) && began.since(instance.launched) >= LIST_LAG {
                instance.missed = instance.missed.saturating_add(1);
            }
            if instance.state(now) == State::Lost && instance.lost.is_none() {
                instance.lost = Some(now);
                self.list_soon |= instance.runner.is_some();
            }
        }
        self.tombstones.retain(|_, at| now.since(*at) < TOMBSTONE);
        self.swept = Some(began);
    }

    fn adopt(&mut self, machine: &Machine, now: Timestamp) {
        // Whoever has no answer to a launch has registered no runner for its instances.
        let unanswered =
            self.requests.iter().any(|request| request.intent.token == machine.token && !request.intent.settled);
        let name = RunnerName::of(&self.name, &machine.id);
        let mut instance = Instance::new(machine.token.clone(), machine.launched, machine.version, now);
        instance.listed = true;
        instance.unknown =
            self.spared.contains(&machine.id) || self.spared_before.is_some_and(|before| machine.launched < before);
        instance.fresh = unanswered;
        if let Some(orphan) = self.orphans.remove(&name) {
            instance.runner = Some(Registered {
                id: orphan.id,
                since: orphan.since,
                handed: None,
                seen_online: orphan.listed.online,
                offline_since: (!orphan.listed.online).then_some(now),
                busy: orphan.listed.busy,
                missed: 0,
            });
        }
        self.instances.insert(machine.id.clone(), instance);
    }

    /// Another process, or this one before, spared these instances.
    pub fn spare(&mut self, ids: &[InstanceId]) {
        for id in ids {
            self.spared.insert(id.clone());
            if let Some(instance) = self.instances.get_mut(id) {
                instance.unknown = true;
            }
        }
    }

    /// The process before knew another scale set: it vanished while nobody looked, and which of its runners were busy nobody
    /// knows.
    pub fn spare_all(&mut self, now: Timestamp) {
        self.spared_before = Some(now);
        for instance in self.instances.values_mut() {
            instance.unknown = true;
        }
    }

    /// Instances that may run a job of which GitHub does not know any more.
    pub fn spared(&self, now: Timestamp) -> Vec<InstanceId> {
        let busy = |one: &Instance| one.unknown || (one.runner.is_none() && one.state(now) == State::Busy);
        let here = self.instances.iter().filter(|(_, one)| busy(one)).map(|(id, _)| id);
        // One that this process has not seen yet may still be there.
        let young = now.since(self.known_since) < UNSEEN * 2;
        let unseen = self.spared.iter().filter(|id| young && !self.instances.contains_key(*id));
        here.chain(unseen).cloned().collect()
    }

    /// EC2 answered a launch.
    pub fn see_launch(&mut self, token: &LaunchToken, ids: &[InstanceId], now: Timestamp) {
        for id in ids {
            let version = self.settings.version;
            // One that a list has brought before its launch's answer is known already.
            let instance =
                self.instances.entry(id.clone()).or_insert_with(|| Instance::new(token.clone(), now, version, now));
            instance.fresh = true;
        }
    }

    /// GitHub's list, which was begun at `began`.
    pub fn see_runners(&mut self, runners: &[Runner], began: Timestamp, now: Timestamp) {
        let mut orphans = std::mem::take(&mut self.orphans);
        let mut seen = Vec::new();
        for runner in runners {
            let Some(id) = runner.name.instance(&self.name) else { continue };
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.see_runner(runner, began, now);
                seen.push(id);
            } else {
                let mut orphan =
                    orphans.remove(&runner.name).filter(|orphan| orphan.id == runner.id).unwrap_or(Orphan {
                        id: runner.id,
                        since: now,
                        not_before: now,
                        listed: runner.clone(),
                        in_flight: false,
                    });
                orphan.listed = runner.clone();
                self.orphans.insert(runner.name.clone(), orphan);
            }
        }
        for (id, instance) in &mut self.instances {
            if !seen.contains(id) {
                instance.miss_runner(began, now);
                let missing = |runner: &Registered| instance.completed && runner.missed == 1;
                self.list_soon |= instance.runner.as_ref().is_some_and(missing);
            }
        }
        if self.instances.values().any(|one| one.runner.as_ref().is_some_and(|r| r.seen_online && r.since >= began)) {
            self.boots.succeed();
        }
        self.listed = Some(began);
    }

    /// The queue is of this scale set; if it is another than before, that one's runners are gone.
    pub fn see_set(&mut self, set: ScaleSetId) {
        self.sets.insert(set);
        if self.demand.set.is_some_and(|before| before != set) {
            for instance in self.instances.values_mut() {
                // One that has just come online may have taken a job before a listing could say so.
                instance.unknown |= instance.runner.is_some();
            }
        }
    }

    /// A job was taken by a runner.
    pub fn see_started(&mut self, name: &RunnerName, now: Timestamp) {
        let Some(instance) = name.instance(&self.name).and_then(|id| self.instances.get_mut(&id)) else { return };
        if instance.completed {
            // The news comes late.
            return;
        }
        instance.started.get_or_insert(now);
        if let Some(runner) = &mut instance.runner {
            runner.busy = true;
            runner.come_online();
        }
        self.boots.succeed();
    }

    /// A runner's job is over, or so GitHub says.
    pub fn see_completed(&mut self, name: &RunnerName, now: Timestamp) {
        let Some(instance) = name.instance(&self.name).and_then(|id| self.instances.get_mut(&id)) else { return };
        instance.started.get_or_insert(now);
        instance.completed = true;
        if instance.runner.is_none() {
            instance.gone.get_or_insert(now);
        }
        self.list_soon = true;
    }

    /// Forgets what was seen to its end.
    pub fn tidy(&mut self, now: Timestamp) -> Vec<LaunchToken> {
        let mut ended = Vec::new();
        let mut requests = std::mem::take(&mut self.requests);
        requests.retain(|request| {
            let mut known = self.instances.values().filter(|one| one.token == request.intent.token);
            let all_listed = known.all(|one| one.listed || now.since(one.launched) >= UNSEEN);
            let seen = self.unseen_of(request) == 0 && all_listed;
            let keep = request.in_flight || (!seen && now.since(request.intent.at) < UNSEEN);
            if !keep {
                ended.push(request.intent.token.clone());
            }
            keep
        });
        self.requests = requests;
        ended
    }
}

impl Registered {
    /// It listens.
    pub fn come_online(&mut self) {
        self.seen_online = true;
        self.offline_since = None;
    }
}

impl Instance {
    fn see_runner(&mut self, listed: &Runner, began: Timestamp, now: Timestamp) {
        // The list may be older than what we did meanwhile.
        let older = |at: Option<Timestamp>| at.is_some_and(|at| at >= began);
        if self.in_flight || older(self.removed) || older(self.gone) {
            return;
        }
        let unanswered = self.unanswered;
        let runner = self.runner.get_or_insert_with(|| Registered {
            id: listed.id,
            since: now,
            handed: unanswered.then_some(false),
            seen_online: false,
            offline_since: Some(now),
            busy: false,
            missed: 0,
        });
        runner.id = listed.id;
        runner.missed = 0;
        runner.busy = listed.busy || (self.started.is_some() && !self.completed);
        if listed.busy {
            self.started.get_or_insert(now);
        }
        if listed.online {
            runner.come_online();
        } else {
            runner.offline_since.get_or_insert(now);
        }
    }

    fn miss_runner(&mut self, began: Timestamp, now: Timestamp) {
        let Some(runner) = &mut self.runner else { return };
        if self.in_flight || runner.since >= began {
            return;
        }
        runner.missed = runner.missed.saturating_add(1);
        // A listing has left out a runner that had just taken a job, and GitHub has called jobs over that still ran. So twice;
        // and where nothing else says that it is gone, GitHub is asked by its id.
        if self.lost.is_some() || (self.completed && runner.missed >= 2) {
            self.runner = None;
            self.gone = Some(now);
        }
    }
}
