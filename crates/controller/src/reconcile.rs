//! Makes the calls: looks at the world, decides, begins what was decided, and takes in what came of it. All state has one
//! owner, and no call is waited for while another could be begun.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::clock::{Clock, Timestamp};
use crate::decide::{Action, BUSY_PAUSE, Budget, Why, announce, decide, may_act};
use crate::documents::{Control, FORMAT, FleetStatus, Settings, Status};
use crate::fleet::{Demand, Fleet, Registered, Request, State};
use crate::ids::{FleetName, InstanceId, LaunchToken, RunnerId, RunnerName, ScaleSetId};
use crate::intents::{Intent, Intents, UNSEEN};
use crate::poller::{News, Poller};
use crate::ports::{
    Document, Etag, Launch, Launched, Machine, Machines, MachinesError, Market, Queue, QueueError, Read, Removal,
    Runner, Shortage, Store, StoreError,
};

/// A call that is not answered by then is taken as failed, and a launch as one in doubt.
pub const CALL_LIMIT: Duration = Duration::from_secs(20);

/// The world is looked at this often at least.
const TICK: Duration = Duration::from_secs(15);

/// And sooner where something is missing.
const SOON: Duration = Duration::from_secs(5);

/// And after a call that failed.
const RETRY: Duration = Duration::from_secs(2);

/// GitHub's list of runners, while none is starting.
const LIST_EVERY: Duration = Duration::from_secs(60);

/// How soon a change of what the fleets are to be is noticed.
const CONTROL_EVERY: Duration = Duration::from_secs(10);

/// The status is written on change, but not more often than a tick, and at least this often.
const STATUS_EVERY: Duration = Duration::from_secs(60);

/// What came of a call.
enum Outcome {
    Swept(Timestamp, Result<Vec<Machine>, MachinesError>),
    Listed(FleetName, Timestamp, Result<Vec<Runner>, QueueError>),
    Launched(FleetName, Launch, Result<Launched, MachinesError>),
    HandedOver(FleetName, InstanceId, Result<(RunnerId, bool), QueueError>),
    Removed(FleetName, InstanceId, Why, Result<Removal, QueueError>),
    RemovedOrphan(FleetName, RunnerName, Result<Removal, QueueError>),
    Terminated(FleetName, Vec<InstanceId>, Result<(), MachinesError>),
    TookBack(FleetName, InstanceId, Result<(), StoreError>),
    Control(Result<Read, StoreError>),
    Status(Result<Read, StoreError>),
    Written(Vec<(FleetName, Timestamp)>, Box<Status>, Result<Etag, StoreError>),
}

type Call = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A fleet and its poller.
struct Entry {
    fleet: Fleet,
    /// With the next write of the status the fleet becomes ours, and may launch from then.
    claim: Option<Timestamp>,
    capacity: watch::Sender<NonZeroU32>,
    stop: watch::Sender<bool>,
}

/// The status document as it was last read or written.
#[derive(Default)]
struct Known {
    etag: Option<Etag>,
    status: Status,
    fresh: bool,
    in_flight: bool,
    written: Option<Timestamp>,
}

/// The controller of all fleets of an organization.
pub struct Controller<Q, M, S, I> {
    queue: Arc<Q>,
    machines: Arc<M>,
    store: Arc<S>,
    intents: I,
    owner: String,
    clock: Clock,
    fleets: BTreeMap<FleetName, Entry>,
    /// Of former processes; given to their fleets when these are known.
    former: Vec<Intent>,
    budget: Budget,
    calls: FuturesUnordered<Call>,
    news: mpsc::UnboundedSender<(FleetName, News)>,
    heard: Option<mpsc::UnboundedReceiver<(FleetName, News)>>,
    pollers: JoinSet<()>,
    sweeping: bool,
    swept: Option<Timestamp>,
    control: Option<Etag>,
    control_at: Option<Timestamp>,
    control_in_flight: bool,
    status: Known,
}

impl<Q, M, S, I> std::fmt::Debug for Controller<Q, M, S, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl<Q: Queue, M: Machines, S: Store, I: Intents> Controller<Q, M, S, I> {
    /// A controller. Makes no call yet. `owner` is what GitHub shows as the session's owner.
    pub fn new(queue: Arc<Q>, machines: Arc<M>, store: Arc<S>, intents: I, owner: String, clock: Clock) -> Self {
        let (news, heard) = mpsc::unbounded_channel();
        let former = intents.outstanding();
        Self {
            queue,
            machines,
            store,
            intents,
            owner,
            clock,
            fleets: BTreeMap::new(),
            former,
            budget: Budget::new(clock.now()),
            calls: FuturesUnordered::new(),
            news,
            heard: Some(heard),
            pollers: JoinSet::new(),
            sweeping: false,
            swept: None,
            control: None,
            control_at: None,
            control_in_flight: false,
            status: Known::default(),
        }
    }

    /// Controls the fleets until it is stopped. Then it launches nothing more, closes its sessions, and writes down what a
    /// successor must know. Dropped instead, it leaves the world as a killed process does.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let Some(mut heard) = self.heard.take() else { return };
        loop {
            let wake = self.tick();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                Some((fleet, news)) = heard.recv() => self.hear(&fleet, news),
                Some(outcome) = self.calls.next(), if !self.calls.is_empty() => self.apply(outcome),
                () = sleep_until(self.clock.instant(wake)) => {}
            }
            // One look at the world for all that is there to be heard.
            while let Ok((fleet, news)) = heard.try_recv() {
                self.hear(&fleet, news);
            }
        }
        self.finish().await;
    }

    /// Begins what is due, and says when to look again.
    fn tick(&mut self) -> Timestamp {
        let now = self.clock.now();
        let mut wake = now.plus(TICK);
        self.read_control(now);
        self.sweep(now);
        for name in self.fleets.keys().cloned().collect::<Vec<_>>() {
            let Some(entry) = self.fleets.get_mut(&name) else { continue };
            for token in entry.fleet.tidy(now) {
                log_disk(self.intents.end(&token));
            }
            let actions = decide(&mut entry.fleet, &mut self.budget, now);
            let announced = announce(&entry.fleet, now);
            entry.capacity.send_if_modified(|capacity| std::mem::replace(capacity, announced) != announced);
            wake = wake.min(now.plus(urgency(&entry.fleet, now)));
            for action in actions {
                self.begin(&name, action, now);
            }
            self.list(&name, now);
        }
        self.keep_status(now);
        wake
    }

    fn hear(&mut self, name: &FleetName, news: News) {
        let now = self.clock.now();
        let Some(entry) = self.fleets.get_mut(name) else { return };
        if let News::Opened(set, _) = news {
            entry.fleet.see_set(set);
        }
        let demand = &mut entry.fleet.demand;
        match news {
            News::Opened(set, statistics) => {
                let statistics = statistics.unwrap_or_default();
                let assigned = statistics.assigned;
                *demand = Demand { set: Some(set), statistics, assigned, session: true, heard: now };
                // Another controller may have had the session before: its entry in the status says so.
                entry.fleet.claimed = false;
                entry.claim = None;
                entry.fleet.list_soon = true;
                self.status.fresh = false;
            }
            News::Quiet => demand.heard = now,
            News::Jobs { statistics, assigned, started, completed } => {
                demand.heard = now;
                if let Some(statistics) = statistics {
                    demand.statistics = statistics;
                    demand.assigned = statistics.assigned;
                }
                if demand.assigned == 0 {
                    // GitHub has sent counts of nothing with jobs in the same message.
                    demand.assigned = assigned;
                }
                for runner in started {
                    entry.fleet.see_started(&runner, now);
                }
                for runner in completed {
                    entry.fleet.see_completed(&runner, now);
                }
            }
            News::Closed(why) => {
                demand.session = false;
                entry.fleet.claimed = false;
                entry.claim = None;
                entry.fleet.error(format!("no session at GitHub: {why}"));
            }
        }
    }

    fn sweep(&mut self, now: Timestamp) {
        let hurried = self.fleets.values().any(|entry| entry.fleet.instances.values().any(|one| one.missed == 1));
        let every = if hurried { SOON } else { TICK };
        // A fleet that has just become ours waits for a list that was begun since.
        let wanted = self.fleets.values().any(|entry| {
            let fleet = &entry.fleet;
            fleet.claimed && now >= fleet.ready_at && fleet.swept.is_none_or(|at| at < fleet.ready_at)
        });
        let due = self.swept.is_none_or(|at| now.since(at) >= every || (wanted && now.since(at) >= RETRY));
        if self.sweeping || !due || self.fleets.is_empty() {
            return;
        }
        self.sweeping = true;
        self.swept = Some(now);
        let machines = Arc::clone(&self.machines);
        self.calls.push(Box::pin(async move {
            let result = timeout(CALL_LIMIT, machines.list()).await;
            Outcome::Swept(now, result.unwrap_or_else(|_| Err(MachinesError::InDoubt("no answer in time".to_owned()))))
        }));
    }

    fn list(&mut self, name: &FleetName, now: Timestamp) {
        let Some(Entry { fleet, .. }) = self.fleets.get_mut(name) else { return };
        let Some(set) = fleet.demand.set else { return };
        let starting = fleet
            .instances
            .values()
            .any(|one| one.runner.as_ref().is_some_and(|runner| runner.offline_since.is_some() || runner.missed > 0));
        let wanted = fleet.listed.is_none_or(|at| at < fleet.ready_at) && now >= fleet.ready_at;
        let every = match () {
            () if wanted => RETRY,
            () if fleet.list_soon => SOON,
            () if starting || !fleet.orphans.is_empty() => TICK,
            () => LIST_EVERY,
        };
        if fleet.listing || !fleet.demand.session || fleet.listed.is_some_and(|at| now.since(at) < every) {
            return;
        }
        fleet.listing = true;
        fleet.list_soon = false;
        let (queue, name) = (Arc::clone(&self.queue), name.clone());
        self.calls.push(Box::pin(async move {
            let result = in_time(queue.runners(set)).await;
            Outcome::Listed(name, now, result)
        }));
    }

    fn begin(&mut self, name: &FleetName, action: Action, now: Timestamp) {
        let (queue, store) = (Arc::clone(&self.queue), Arc::clone(&self.store));
        let name = name.clone();
        match action {
            Action::Launch(count, market) => self.launch(&name, count, market, now),
            Action::Resend(token) => self.resend(&name, &token),
            Action::HandOver(id, set) => {
                let role = self.role(&name);
                self.calls.push(Box::pin(async move {
                    let result = hand_over(&*queue, &*store, &name, &id, (set, &role)).await;
                    Outcome::HandedOver(name, id, result)
                }));
            }
            Action::Remove(id, runner, why) => self.calls.push(Box::pin(async move {
                let result = in_time(queue.remove(runner)).await;
                Outcome::Removed(name, id, why, result)
            })),
            Action::RemoveOrphan(runner, id) => self.calls.push(Box::pin(async move {
                let result = in_time(queue.remove(id)).await;
                Outcome::RemovedOrphan(name, runner, result)
            })),
            Action::Terminate(ids) => {
                let machines = Arc::clone(&self.machines);
                self.calls.push(Box::pin(async move {
                    let result = timeout(CALL_LIMIT, machines.terminate(&ids)).await;
                    let result = result.unwrap_or_else(|_| Err(MachinesError::InDoubt("no answer in time".to_owned())));
                    Outcome::Terminated(name, ids, result)
                }));
            }
            Action::TakeBack(id) => {
                let role = self.role(&name);
                self.calls.push(Box::pin(async move {
                    let result = stored_in_time(store.take_back(&role, &id)).await;
                    Outcome::TookBack(name, id, result)
                }));
            }
        }
    }

    /// The id of the role that a fleet's instances have.
    fn role(&self, name: &FleetName) -> String {
        self.fleets.get(name).map(|entry| entry.fleet.settings.launch.role_id.clone()).unwrap_or_default()
    }

    fn launch(&mut self, name: &FleetName, count: u32, market: Market, now: Timestamp) {
        let Some(Entry { fleet, .. }) = self.fleets.get_mut(name) else { return };
        let token = LaunchToken::new(format!("kiln-{:032x}", fastrand::u128(..)));
        let intent = Intent { token: token.clone(), fleet: name.clone(), count, at: now, settled: false };
        if let Err(error) = self.intents.begin(&intent) {
            fleet.error(format!("the launch intents can't be written, so nothing is launched: {error}"));
            fleet.refused.fail(now);
            self.budget.instances.give_back(count);
            return;
        }
        let (version, from) = (fleet.settings.version, fleet.settings.launch.clone());
        let launch = Launch { token: token.clone(), fleet: name.clone(), count, market, version, from };
        fleet.requests.push(Request { intent, launch: Some(launch), in_flight: true, again: now });
        self.resend(name, &token);
    }

    fn resend(&mut self, name: &FleetName, token: &LaunchToken) {
        let Some(Entry { fleet, .. }) = self.fleets.get_mut(name) else { return };
        let Some(request) = fleet.requests.iter().find(|request| request.intent.token == *token) else { return };
        // The very same: EC2 refuses a token that comes with other parameters.
        let Some(launch) = request.launch.clone() else { return };
        let (machines, name) = (Arc::clone(&self.machines), name.clone());
        self.calls.push(Box::pin(async move {
            let result = timeout(CALL_LIMIT, machines.launch(&launch)).await;
            let result = result.unwrap_or_else(|_| Err(MachinesError::InDoubt("no answer in time".to_owned())));
            Outcome::Launched(name, launch, result)
        }));
    }

    fn read_control(&mut self, now: Timestamp) {
        if self.control_in_flight || self.control_at.is_some_and(|at| now.since(at) < CONTROL_EVERY) {
            return;
        }
        self.control_in_flight = true;
        self.control_at = Some(now);
        let (store, known) = (Arc::clone(&self.store), self.control.clone());
        self.calls.push(Box::pin(async move {
            Outcome::Control(stored_in_time(store.read(Document::Control, known.as_ref())).await)
        }));
    }

    fn apply(&mut self, outcome: Outcome) {
        let now = self.clock.now();
        match outcome {
            Outcome::Swept(began, result) => {
                self.sweeping = false;
                match result {
                    Ok(machines) => {
                        for entry in self.fleets.values_mut() {
                            entry.fleet.see_machines(&machines, began, now);
                        }
                    }
                    Err(error) => tracing::warn!("EC2's list can't be read: {error}"),
                }
            }
            Outcome::Listed(name, began, result) => {
                let Some(Entry { fleet, .. }) = self.fleets.get_mut(&name) else { return };
                fleet.listing = false;
                match result {
                    Ok(runners) => fleet.see_runners(&runners, began, now),
                    Err(error) => {
                        fleet.error(format!("GitHub's list of runners can't be read: {error}"));
                        // Not at once again.
                        fleet.listed = fleet.listed.max(Some(Timestamp::default()));
                    }
                }
            }
            Outcome::Control(result) => self.apply_control(result, now),
            Outcome::Status(result) => self.apply_status(result, now),
            Outcome::Written(claimed, status, result) => self.apply_written(&claimed, *status, result),
            Outcome::Launched(name, launch, result) => self.apply_launch(&name, &launch, result, now),
            outcome => self.apply_instance(outcome, now),
        }
    }

    fn apply_instance(&mut self, outcome: Outcome, now: Timestamp) {
        match outcome {
            Outcome::HandedOver(name, id, result) => {
                self.budget.in_flight = self.budget.in_flight.saturating_sub(1);
                match &result {
                    Ok(_) => self.budget.window.grow(),
                    Err(QueueError::Limited(_)) => self.budget.window.shrink(),
                    Err(_) => {}
                }
                if let Some(entry) = self.fleets.get_mut(&name) {
                    handed_over(&mut entry.fleet, &id, result, now);
                }
            }
            Outcome::Removed(name, id, why, result) => {
                if let Some(entry) = self.fleets.get_mut(&name) {
                    removed(&mut entry.fleet, &id, why, &result, now);
                }
            }
            Outcome::RemovedOrphan(name, runner, result) => {
                let Some(Entry { fleet, .. }) = self.fleets.get_mut(&name) else { return };
                if let Ok(Removal::Removed | Removal::Gone) = result {
                    fleet.orphans.remove(&runner);
                } else if let Some(orphan) = fleet.orphans.get_mut(&runner) {
                    orphan.in_flight = false;
                    orphan.not_before = now.plus(BUSY_PAUSE);
                }
            }
            Outcome::Terminated(name, ids, result) => {
                let Some(Entry { fleet, .. }) = self.fleets.get_mut(&name) else { return };
                let Err(error) = result else { return };
                fleet.error(format!("instances can't be ended: {error}"));
                for id in ids {
                    if let Some(instance) = fleet.instances.get_mut(&id) {
                        instance.ended = None;
                        instance.failed(now);
                    }
                }
            }
            Outcome::TookBack(name, id, result) => {
                let Some(entry) = self.fleets.get_mut(&name) else { return };
                let Some(instance) = entry.fleet.instances.get_mut(&id) else { return };
                instance.in_flight = false;
                match result {
                    Ok(()) => instance.object = false,
                    Err(_) => instance.failed(now),
                }
            }
            _ => {}
        }
    }

    fn apply_launch(
        &mut self,
        name: &FleetName,
        launch: &Launch,
        result: Result<Launched, MachinesError>,
        now: Timestamp,
    ) {
        let Some(Entry { fleet, .. }) = self.fleets.get_mut(name) else { return };
        let token = &launch.token;
        match result {
            Ok(launched) => {
                let count = u32::try_from(launched.ids.len()).unwrap_or(u32::MAX);
                fleet.see_launch(token, &launched.ids, now);
                if let Some(request) = fleet.requests.iter_mut().find(|request| request.intent.token == *token) {
                    request.in_flight = false;
                    request.intent.count = count;
                    request.intent.settled = true;
                }
                log_disk(self.intents.settle(token, count));
                self.budget.instances.give_back(launch.count.saturating_sub(count));
                answered(fleet, launch, &launched, now);
            }
            Err(MachinesError::InDoubt(why)) => {
                fleet.error(format!("a launch of {} is in doubt, and is sent again: {why}", launch.count));
                if let Some(request) = fleet.requests.iter_mut().find(|request| request.intent.token == *token) {
                    request.in_flight = false;
                    request.again = now.plus(RETRY);
                }
            }
            Err(error) => {
                // A launch whose first answer was lost may have happened, whatever is said of the second.
                let first = fleet.requests.iter().any(|one| one.intent.token == *token && one.again == one.intent.at);
                if first {
                    fleet.requests.retain(|request| request.intent.token != *token);
                    log_disk(self.intents.end(token));
                    self.budget.instances.give_back(launch.count);
                } else if let Some(request) = fleet.requests.iter_mut().find(|one| one.intent.token == *token) {
                    request.in_flight = false;
                    request.again = now.plus(SOON);
                }
                if error == MachinesError::Throttled {
                    self.budget.calls.empty(now);
                }
                let kind = if let MachinesError::Refused(kind, _) = &error { *kind } else { Shortage::Capacity };
                fleet.pauses(kind).fail(now);
                fleet.waiting_because = Some(error.to_string());
                fleet.error(format!("a launch failed: {error}"));
            }
        }
    }

    fn apply_control(&mut self, result: Result<Read, StoreError>, now: Timestamp) {
        self.control_in_flight = false;
        let (etag, bytes) = match result {
            Ok(Read::Found(etag, bytes)) => (etag, bytes),
            Ok(Read::Unchanged | Read::Missing) => return,
            Err(error) => return tracing::warn!("what the fleets are to be can't be read: {error}"),
        };
        let control: Control = match serde_json::from_slice(&bytes) {
            Ok(control) => control,
            Err(error) => return tracing::error!("what the fleets are to be is not understood: {error}"),
        };
        if control.format > FORMAT {
            return tracing::error!("what the fleets are to be has format {}, newer than {FORMAT}", control.format);
        }
        self.control = Some(etag);
        self.fleets.retain(|name, entry| {
            let kept = control.fleets.get(name).is_some_and(|settings| settings.set == entry.fleet.settings.set);
            if !kept {
                entry.stop.send_replace(true);
            }
            kept
        });
        for (name, settings) in control.fleets {
            match self.fleets.get_mut(&name) {
                Some(entry) => entry.fleet.settings = settings,
                None => self.add(name, settings, now),
            }
        }
    }

    fn add(&mut self, name: FleetName, settings: Settings, now: Timestamp) {
        let (former, others) = std::mem::take(&mut self.former).into_iter().partition(|one| one.fleet == name);
        self.former = others;
        let capacity = watch::Sender::new(NonZeroU32::new(settings.max).unwrap_or(NonZeroU32::MIN));
        let stop = watch::Sender::new(false);
        let poller = Poller {
            queue: Arc::clone(&self.queue),
            fleet: name.clone(),
            spec: settings.set.clone(),
            owner: self.owner.clone(),
            news: self.news.clone(),
            capacity: capacity.subscribe(),
            stop: stop.subscribe(),
        };
        self.pollers.spawn(poller.run());
        let fleet = Fleet::new(name.clone(), settings, former, now);
        self.fleets.insert(name, Entry { fleet, claim: None, capacity, stop });
    }

    /// Reads or writes the status, if either is due.
    fn keep_status(&mut self, now: Timestamp) {
        if self.status.in_flight {
            return;
        }
        let unclaimed = self.fleets.values().any(|entry| entry.fleet.demand.session && !entry.fleet.claimed);
        if unclaimed && !self.status.fresh {
            self.status.in_flight = true;
            let store = Arc::clone(&self.store);
            self.calls.push(Box::pin(async move {
                Outcome::Status(stored_in_time(store.read(Document::Status, None)).await)
            }));
            return;
        }
        let any = self.fleets.values().any(|entry| entry.fleet.claimed || entry.claim.is_some());
        let age = self.status.written.map(|at| now.since(at));
        if !any || !(unclaimed || age.is_none_or(|age| age >= TICK)) {
            return;
        }
        let (status, claims) = self.status_now(now, false);
        let same = |one: &Status| one.fleets.values().map(|f| (f.announced, f.instances.clone())).collect::<Vec<_>>();
        if !unclaimed && age.is_some_and(|age| age < STATUS_EVERY) && same(&status) == same(&self.status.status) {
            return;
        }
        self.status.in_flight = true;
        self.status.written = Some(now);
        let call = self.write(status, claims);
        self.calls.push(Box::pin(call));
    }

    fn write(
        &self,
        status: Status,
        claims: Vec<(FleetName, Timestamp)>,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let (store, replaces) = (Arc::clone(&self.store), self.status.etag.clone());
        async move {
            let bytes = serde_json::to_vec(&status).unwrap_or_default();
            let result = stored_in_time(store.write(Document::Status, replaces.as_ref(), bytes)).await;
            Outcome::Written(claims, Box::new(status), result)
        }
    }

    /// The status with our fleets' entries as they are now, and the fleets that become ours with it.
    fn status_now(&self, now: Timestamp, closed: bool) -> (Status, Vec<(FleetName, Timestamp)>) {
        let mut status = self.status.status.clone();
        status.format = FORMAT;
        let mut claims = Vec::new();
        for (name, entry) in &self.fleets {
            let fleet = &entry.fleet;
            match entry.claim {
                Some(ready) => claims.push((name.clone(), ready)),
                None if fleet.claimed => {}
                None => continue,
            }
            let mut instances = BTreeMap::new();
            for one in fleet.instances.values() {
                *instances.entry(format!("{:?}", one.state(now)).to_lowercase()).or_default() += 1;
            }
            let unseen = fleet.requests.iter().map(|request| request.intent.clone()).collect();
            status.fleets.insert(
                name.clone(),
                FleetStatus {
                    controller: self.intents.controller().clone(),
                    set: fleet.demand.set,
                    at: now,
                    closed,
                    unseen,
                    spared: fleet.spared(now),
                    statistics: fleet.demand.statistics,
                    announced: entry.capacity.borrow().get(),
                    instances,
                    waiting_because: fleet.waiting_because.clone(),
                    last_errors: fleet.errors.clone(),
                },
            );
        }
        (status, claims)
    }

    fn apply_status(&mut self, result: Result<Read, StoreError>, now: Timestamp) {
        self.status.in_flight = false;
        let (etag, status) = match result {
            Ok(Read::Found(etag, bytes)) => (Some(etag), serde_json::from_slice(&bytes).unwrap_or_default()),
            Ok(Read::Missing) => (None, Status::default()),
            Ok(Read::Unchanged) => return,
            Err(error) => return tracing::warn!("the status can't be read: {error}"),
        };
        self.status.etag = etag;
        self.status.status = status;
        self.status.fresh = true;
        for (name, entry) in &mut self.fleets {
            let fleet = &mut entry.fleet;
            let of = self.status.status.fleets.get(name);
            let ours = of.is_some_and(|of| of.controller == *self.intents.controller());
            if fleet.claimed && !ours {
                fleet.claimed = false;
                fleet.demand.session = false;
                fleet.error("another controller has taken the fleet over".to_owned());
            }
            if !fleet.demand.session || fleet.claimed || entry.claim.is_some() {
                continue;
            }
            if let Some(of) = of {
                fleet.spare(&of.spared);
                if of.set.is_some_and(|set| !fleet.sets.contains(&set)) {
                    fleet.spare_all(now);
                }
            }
            entry.claim = Some(match of {
                Some(of) if !ours && !of.closed => now.plus(UNSEEN),
                Some(of) if !ours => {
                    for intent in &of.unseen {
                        let intent = Intent { at: now, ..intent.clone() };
                        log_disk(self.intents.begin(&intent));
                        fleet.requests.push(Request { intent, launch: None, in_flight: false, again: now });
                    }
                    now
                }
                _ => now,
            });
        }
    }

    fn apply_written(&mut self, claims: &[(FleetName, Timestamp)], status: Status, result: Result<Etag, StoreError>) {
        self.status.in_flight = false;
        match result {
            Ok(etag) => {
                self.status.etag = Some(etag);
                self.status.status = status;
                for (name, ready) in claims {
                    let Some(entry) = self.fleets.get_mut(name) else { continue };
                    // The session may have ended meanwhile.
                    if entry.claim == Some(*ready) {
                        entry.fleet.claimed = true;
                        entry.fleet.ready_at = *ready;
                        entry.claim = None;
                    }
                }
            }
            Err(error) => {
                tracing::info!("the status was not written: {error}");
                // Whoever wrote it may have taken a fleet over: read it again first.
                self.status.fresh = false;
                for entry in self.fleets.values_mut() {
                    entry.claim = None;
                    entry.fleet.claimed = false;
                }
            }
        }
    }

    async fn finish(mut self) {
        for entry in self.fleets.values() {
            entry.stop.send_replace(true);
        }
        let all = async {
            let pollers = async { while self.pollers.join_next().await.is_some() {} };
            let calls = async { self.calls.by_ref().collect::<Vec<_>>().await };
            tokio::join!(pollers, calls).1
        };
        // No launch may be without an answer when the entry says that all are known.
        let Ok(outcomes) = timeout(CALL_LIMIT * 2, all).await else { return };
        for outcome in outcomes {
            self.apply(outcome);
        }
        let now = self.clock.now();
        let (status, claims) = self.status_now(now, true);
        if !status.fleets.is_empty() && self.fleets.values().any(|entry| entry.fleet.claimed) {
            self.write(status, claims).await;
        }
    }
}

/// How soon something may be due that nothing else wakes the controller for.
fn urgency(fleet: &Fleet, now: Timestamp) -> Duration {
    if !may_act(fleet, now) {
        return if fleet.claimed && fleet.demand.session { RETRY } else { TICK };
    }
    let in_doubt =
        fleet.requests.iter().any(|request| !request.in_flight && !request.intent.settled && request.launch.is_some());
    let waits = fleet.instances.values().any(|one| one.state(now) == State::Launched && !one.in_flight);
    let missed = fleet.list_soon || fleet.instances.values().any(|one| one.missed == 1 || one.lost.is_some());
    match () {
        () if in_doubt || waits => RETRY,
        () if missed => SOON,
        () => TICK,
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, QueueError>>) -> Result<T, QueueError> {
    timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(QueueError::Failed("no answer in time".to_owned())))
}

async fn stored_in_time<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(StoreError::Failed("no answer in time".to_owned())))
}

/// A launch intent that can't be ended counts for longer than it needs to, and no more.
fn log_disk(result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!("the launch intents can't be written: {error}");
    }
}

async fn hand_over(
    queue: &impl Queue,
    store: &impl Store,
    fleet: &FleetName,
    id: &InstanceId,
    (set, role): (ScaleSetId, &str),
) -> Result<(RunnerId, bool), QueueError> {
    let jit = in_time(queue.register(set, &RunnerName::of(fleet, id))).await?;
    match stored_in_time(store.hand_over(role, id, &jit.config)).await {
        Ok(()) => Ok((jit.runner, true)),
        Err(error) => {
            tracing::warn!(%fleet, instance = %id, "the configuration was not laid down: {error}");
            Ok((jit.runner, false))
        }
    }
}

fn handed_over(fleet: &mut Fleet, id: &InstanceId, result: Result<(RunnerId, bool), QueueError>, now: Timestamp) {
    let Some(instance) = fleet.instances.get_mut(id) else { return };
    instance.in_flight = false;
    match result {
        Ok((runner, handed)) => {
            instance.failures = 0;
            instance.object = true;
            instance.runner = Some(Registered {
                id: runner,
                since: now,
                handed: Some(handed),
                seen_online: instance.started.is_some(),
                offline_since: instance.started.is_none().then_some(now),
                busy: instance.started.is_some() && !instance.completed,
                missed: 0,
            });
        }
        Err(error) => {
            instance.failed(now);
            // Where the answer was lost, the runner is there; GitHub's list says so.
            instance.unanswered = !matches!(error, QueueError::Limited(_) | QueueError::SetGone);
            fleet.list_soon |= instance.unanswered;
            fleet.error(format!("a runner can't be registered: {error}"));
        }
    }
}

fn removed(fleet: &mut Fleet, id: &InstanceId, why: Why, result: &Result<Removal, QueueError>, now: Timestamp) {
    let Some(instance) = fleet.instances.get_mut(id) else { return };
    instance.in_flight = false;
    match result {
        Ok(Removal::Removed) => {
            instance.runner = None;
            match why {
                // It waits for another one.
                Why::NotHandedOver => instance.fresh = true,
                Why::Lost => instance.gone = Some(now),
                Why::Surplus | Why::Asked => instance.removed = Some(now),
                Why::BootFailed => {
                    instance.removed = Some(now);
                    instance.boot_failed = true;
                    fleet.boots.fail(now);
                    fleet.error(format!("{id} did not listen in time"));
                }
            }
        }
        Ok(Removal::Gone) => {
            instance.runner = None;
            instance.gone = Some(now);
        }
        Ok(Removal::Busy) => {
            instance.started.get_or_insert(now);
            instance.not_before = now.plus(BUSY_PAUSE);
            if let Some(runner) = &mut instance.runner {
                runner.busy = true;
                runner.missed = 0;
                runner.come_online();
            }
        }
        Err(_) => instance.failed(now),
    }
}

/// What an answered launch says about capacity.
fn answered(fleet: &mut Fleet, launch: &Launch, launched: &Launched, now: Timestamp) {
    if launched.ids.len() >= launch.count as usize {
        for pauses in [&mut fleet.capacity, &mut fleet.quota, &mut fleet.refused] {
            pauses.succeed();
        }
        if launch.market == Market::Spot {
            fleet.spot.succeed();
        }
        return;
    }
    let worst = launched.errors.iter().max_by_key(|error| error.kind);
    if let Some(error) = worst {
        fleet.waiting_because = Some(format!("{}: {}", error.pool, error.message));
        fleet.error(format!("{} of {} launched; {}: {}", launched.ids.len(), launch.count, error.pool, error.message));
    }
    let kind = worst.map_or(Shortage::Capacity, |error| error.kind);
    if launch.market == Market::Spot && kind != Shortage::Refused {
        // What is missing is launched on demand, in the same second.
        fleet.spot.fail(now);
        return;
    }
    if !launched.ids.is_empty() {
        // Not nothing: the next pause is a short one.
        fleet.pauses(kind).succeed();
    }
    fleet.pauses(kind).fail(now);
}
