//! The world's clock and its judge: events in the order of their time, and what must never happen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kiln_controller::ids::InstanceId;
use kiln_controller::ports::Etag;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ec2::Vm;
use crate::github::Github;
use crate::schedule::{Fault, Schedule};

/// Milliseconds since the run began.
pub(crate) type Millis = u64;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Queue(usize),
    Cancel(usize),
    TakeAssignmentBack(usize, u32),
    SayStarted(usize),
    SayCompleted(usize),
    End(usize),
    NoticeLoss(usize),
    Ready(InstanceId),
    Fetch(InstanceId),
    Online(InstanceId),
    NoConfiguration(InstanceId),
    PowerOff(InstanceId),
    Terminated(InstanceId),
    Fault(usize),
}

/// Parts of the design that a test leaves out, to see that the judge misses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Without {
    Nothing,
    /// A new process knows nothing of launches.
    Intents,
    /// A runner is not asked before its machine is ended: whatever GitHub says, it counts as removed, and the machine is ended.
    Asking,
    /// What is announced is the gap, not the total: nothing while all runners are busy.
    Total,
    /// What is announced is the maximum, whether or not it can be had.
    BackPressure,
}

pub(crate) struct Inner {
    pub(crate) now: Millis,
    pub(crate) rng: fastrand::Rng,
    pub(crate) plan: Schedule,
    pub(crate) without: Without,
    events: BinaryHeap<Reverse<(Millis, u64, Event)>>,
    sequence: u64,
    pub(crate) github: Github,
    pub(crate) vms: BTreeMap<InstanceId, Vm>,
    pub(crate) launches: BTreeMap<String, Vec<InstanceId>>,
    pub(crate) objects: BTreeMap<InstanceId, i64>,
    pub(crate) documents: [Option<(Etag, Vec<u8>)>; 2],
    pub(crate) writes: u64,
    /// Calls that changed something, by kind.
    pub(crate) calls: BTreeMap<&'static str, u32>,
    pub(crate) mutations: u32,
    pub(crate) crashed: Option<Fault>,
    pub(crate) violation: Option<String>,
    pub(crate) log: Vec<String>,
    pub(crate) logging: bool,
}

pub(crate) struct World {
    inner: Mutex<Inner>,
    began: Instant,
    pub(crate) woken: Notify,
    pub(crate) news: Notify,
    pub(crate) crash: Notify,
}

impl World {
    pub(crate) fn new(plan: Schedule, without: Without, logging: bool) -> Arc<Self> {
        let mut inner = Inner {
            now: 0,
            rng: fastrand::Rng::with_seed(plan.seed ^ 0x5eed),
            without,
            events: BinaryHeap::new(),
            sequence: 0,
            github: Github::new(plan.jobs.len()),
            vms: BTreeMap::new(),
            launches: BTreeMap::new(),
            objects: BTreeMap::new(),
            documents: [None, None],
            writes: 0,
            calls: BTreeMap::new(),
            mutations: 0,
            crashed: None,
            violation: None,
            log: Vec::new(),
            logging,
            plan,
        };
        inner.documents[0] = Some((Etag("control".to_owned()), inner.control()));
        for (index, job) in inner.plan.jobs.clone().iter().enumerate() {
            inner.at(job.at * 1000, Event::Queue(index));
            if let Some(after) = job.cancel {
                inner.at((job.at + after) * 1000, Event::Cancel(index));
            }
        }
        for (index, fault) in inner.plan.faults.clone().into_iter().enumerate() {
            if let Some(at) = begins(&fault) {
                inner.at(at * 1000, Event::Fault(index));
            }
        }
        Arc::new(Self {
            inner: Mutex::new(inner),
            began: Instant::now(),
            woken: Notify::new(),
            news: Notify::new(),
            crash: Notify::new(),
        })
    }

    /// The world as it is now.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap();
        let mut inner = self.inner.lock().unwrap();
        inner.advance(now);
        inner
    }

    /// Does something in the world, and wakes whoever waits for news of it.
    pub(crate) fn act<T>(&self, what: impl FnOnce(&mut Inner) -> T) -> T {
        let answer = what(&mut self.lock());
        self.woken.notify_one();
        self.news.notify_waiters();
        answer
    }

    /// Lets things happen, until `over`.
    pub(crate) async fn drive(&self, over: impl Fn(&mut Inner) -> bool) {
        loop {
            let next = {
                let mut inner = self.lock();
                if inner.violation.is_some() || over(&mut inner) {
                    return;
                }
                inner.next()
            };
            self.news.notify_waiters();
            let until = self.began + Duration::from_millis(next);
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = self.woken.notified() => {}
            }
        }
    }
}

fn begins(fault: &Fault) -> Option<u64> {
    match *fault {
        Fault::Taken { at }
        | Fault::SessionGone { at }
        | Fault::TokenExpired { at }
        | Fault::SetGone { at }
        | Fault::EmptyPoll { at }
        | Fault::HangingPoll { at }
        | Fault::ZeroCounts { at }
        | Fault::Conflict { at }
        | Fault::Unlisted { at } => Some(at),
        _ => None,
    }
}

impl Inner {
    pub(crate) fn at(&mut self, at: Millis, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    pub(crate) fn after(&mut self, seconds: f64, event: Event) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a run")]
        let millis = (seconds * 1000.0) as u64;
        self.at(self.now + millis, event);
    }

    pub(crate) fn between(&mut self, least: f64, most: f64) -> f64 {
        least + self.rng.f64() * (most - least)
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.logging {
            let text = format!("{:>8.1} {}", self.now as f64 / 1000.0, text());
            self.log.push(text);
        }
    }

    pub(crate) fn violate(&mut self, what: String) {
        self.note(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    fn next(&self) -> Millis {
        // Whether a run is over is looked at every ten seconds.
        let soon = self.now + 10_000;
        self.events.peek().map_or(soon, |Reverse((at, ..))| (*at).min(soon))
    }

    fn advance(&mut self, now: Millis) {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Some(Reverse((at, _, event))) = self.events.pop() else { return };
            self.now = self.now.max(at);
            self.note(|| format!("{event:?}"));
            self.happen(event);
            self.judge();
        }
        self.now = self.now.max(now);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Queue(job) => self.queue_job(job),
            Event::Cancel(job) => self.cancel(job),
            Event::TakeAssignmentBack(job, tries) => self.take_assignment_back(job, tries),
            Event::SayStarted(job) => self.say_started(job),
            Event::SayCompleted(job) => self.say_completed(job),
            Event::End(job) => self.end_job(job),
            Event::NoticeLoss(job) => self.notice_loss(job),
            Event::Ready(id) => self.ready(&id),
            Event::Fetch(id) => self.fetch(&id),
            Event::Online(id) => self.come_online(&id),
            Event::NoConfiguration(id) => self.no_configuration(&id),
            Event::PowerOff(id) => self.power_off(&id),
            Event::Terminated(id) => self.terminated(&id),
            Event::Fault(index) => self.fault(index),
        }
    }

    fn fault(&mut self, index: usize) {
        match self.plan.faults[index].clone() {
            Fault::Taken { .. } => {
                let alive: Vec<_> = self.vms.values().filter(|vm| vm.is_alive()).map(|vm| vm.id.clone()).collect();
                if let Some(id) = self.rng.choice(alive) {
                    self.power_off(&id);
                }
            }
            Fault::SessionGone { .. } => self.github.session = None,
            Fault::TokenExpired { .. } => {
                if let Some(session) = &mut self.github.session {
                    session.token_expired = true;
                }
            }
            Fault::SetGone { .. } => self.lose_set(),
            Fault::EmptyPoll { .. } => self.github.empty_polls += 1,
            Fault::HangingPoll { .. } => self.github.hanging_polls += 1,
            Fault::ZeroCounts { .. } => self.github.zero_counts += 1,
            Fault::Unlisted { .. } => self.github.unlisted += 1,
            Fault::Conflict { .. } => {
                if let Some((etag, _)) = &mut self.documents[1] {
                    etag.0.push('x');
                }
            }
            _ => {}
        }
    }

    /// What must hold at every moment.
    pub(crate) fn judge(&mut self) {
        let runners = self.github.runners.len();
        if runners > self.plan.max as usize {
            self.violate(format!("{runners} runners, and the maximum is {}", self.plan.max));
        }
    }

    /// Is a fault that lasts under way?
    pub(crate) fn during(&self, which: impl Fn(&Fault) -> Option<(u64, u64)>) -> bool {
        let now = self.now / 1000;
        self.plan.faults.iter().filter_map(which).any(|(at, secs)| (at..at + secs).contains(&now))
    }

    /// Is this the nth of its kind, for one of the faults?
    pub(crate) fn nth(&mut self, kind: &'static str, which: impl Fn(&Fault) -> Option<u32>) -> bool {
        let count = self.calls.get(kind).copied().unwrap_or_default();
        self.plan.faults.iter().filter_map(which).any(|nth| nth == count)
    }
}
