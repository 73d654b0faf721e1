//! EC2, the instances on it, and the hand-over between them and the controller.

use kiln_controller::clock::Timestamp;
use kiln_controller::documents::{Control, FORMAT, LaunchSettings, Settings};
use kiln_controller::ids::{InstanceId, LaunchToken};
use kiln_controller::ports::{Launch, Launched, Machine, Market, PoolError, ScaleSetSpec, Shortage};

use crate::github::{State, fleet};
use crate::schedule::Fault;
use crate::world::{Event, Inner, Millis};

/// The run begins at this moment of the controller's clock.
pub(crate) const EPOCH: Timestamp = Timestamp(1_700_000_000_000);

#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) id: InstanceId,
    pub(crate) token: LaunchToken,
    pub(crate) launched: Millis,
    /// EC2 lists it from then on.
    listed_from: Millis,
    pub(crate) ready: bool,
    /// The runner whose configuration it has read.
    pub(crate) fetched: Option<i64>,
    pub(crate) fetching: bool,
    /// It shuts down.
    pub(crate) ended: Option<Millis>,
    pub(crate) terminated: Option<Millis>,
    pub(crate) never_boots: bool,
}

impl Vm {
    pub(crate) fn is_alive(&self) -> bool {
        self.ended.is_none()
    }
}

impl Inner {
    pub(crate) fn control(&self) -> Vec<u8> {
        let settings = Settings {
            set: ScaleSetSpec { name: "linux".to_owned(), group: 1, labels: vec!["linux".to_owned()] },
            min_idle: self.plan.min_idle,
            max: self.plan.max,
            version: 1,
            launch: LaunchSettings::default(),
            spot: self.plan.spot,
            paused: false,
            linger_secs: self.plan.linger_secs,
            boot_limit_secs: 240,
            max_age_secs: self.plan.max_age_secs,
        };
        serde_json::to_vec(&Control { format: FORMAT, fleets: [(fleet(), settings)].into() }).unwrap()
    }

    /// Launches, as CreateFleet of type `instant` does.
    ///
    /// source: the model of EC2's API: the same ClientToken is the same launch; ids and errors per pool are in the answer;
    /// fewer than asked for is a success.
    pub(crate) fn launch(&mut self, launch: &Launch) -> Launched {
        if let Some(ids) = self.launches.get(launch.token.as_str()) {
            return Launched { ids: ids.clone(), errors: Vec::new() };
        }
        let mut count = launch.count;
        let short = |wanted: bool| {
            self.during(|fault| match *fault {
                Fault::NoCapacity { at, secs, partial } if partial == wanted => Some((at, secs)),
                _ => None,
            })
        };
        if short(false) {
            count = 0;
        } else if short(true) {
            count = count.min(1);
        }
        // assumption: spot is short one time in five.
        if launch.market == Market::Spot && self.rng.u32(0..5) == 0 {
            count = 0;
        }
        let ids: Vec<_> = (0..count).map(|_| self.begin_vm(&launch.token)).collect();
        self.launches.insert(launch.token.as_str().to_owned(), ids.clone());
        let mut errors = Vec::new();
        if count < launch.count {
            errors.push(PoolError {
                pool: "c7g.large in a".to_owned(),
                kind: Shortage::Capacity,
                message: "InsufficientInstanceCapacity".to_owned(),
            });
        }
        Launched { ids, errors }
    }

    fn begin_vm(&mut self, token: &LaunchToken) -> InstanceId {
        *self.calls.entry("instance").or_default() += 1;
        let never_boots = self.nth("instance", |fault| match *fault {
            Fault::NeverBoots { nth } => Some(nth),
            _ => None,
        });
        let id = InstanceId::new(format!("i-{:017x}", self.vms.len() + 1));
        // source: EC2's API is eventually consistent. assumption: within a minute.
        let listed_from = self.now + self.rng.u64(0..=self.plan.lag * 1000);
        let vm = Vm {
            id: id.clone(),
            token: token.clone(),
            launched: self.now,
            listed_from,
            ready: false,
            fetched: None,
            fetching: false,
            ended: None,
            terminated: None,
            never_boots,
        };
        self.vms.insert(id.clone(), vm);
        if !never_boots {
            let boot = self.between(8.0, 25.0);
            self.after(boot, Event::Ready(id.clone()));
        }
        id
    }

    /// The list, in any order; of each instance as it was up to a minute ago.
    pub(crate) fn list(&mut self) -> Vec<Machine> {
        let mut machines = Vec::new();
        for vm in self.vms.values() {
            let late = if self.plan.lag == 0 || self.rng.bool() { 0 } else { self.rng.u64(0..=self.plan.lag * 1000) };
            let as_of = self.now.saturating_sub(late);
            let over = vm.terminated.is_some_and(|at| at <= as_of);
            if self.now < vm.listed_from || over {
                continue;
            }
            machines.push(Machine {
                id: vm.id.clone(),
                fleet: fleet(),
                token: vm.token.clone(),
                launched: Timestamp(EPOCH.0 + vm.launched),
                version: 1,
                ending: vm.ended.is_some_and(|at| at <= as_of),
            });
        }
        self.rng.shuffle(&mut machines);
        machines
    }

    pub(crate) fn terminate(&mut self, ids: &[InstanceId]) {
        for id in ids {
            let running = self.running_on(id);
            if let (Some(job), true) = (running, self.vms.get(id).is_some_and(Vm::is_alive)) {
                self.violate(format!("{id} was ended while it ran job {job}"));
            }
            self.power_off(id);
        }
    }

    pub(crate) fn running_on(&self, id: &InstanceId) -> Option<usize> {
        let mut jobs = self.github.jobs.iter();
        jobs.position(|job| matches!(job.state, State::Running(_)) && job.machine.as_ref() == Some(id))
    }

    pub(crate) fn ready(&mut self, id: &InstanceId) {
        let Some(vm) = self.vms.get_mut(id).filter(|vm| vm.is_alive()) else { return };
        vm.ready = true;
        self.after(600.0, Event::NoConfiguration(id.clone()));
        self.look_for_configuration(id);
    }

    pub(crate) fn look_for_configuration(&mut self, id: &InstanceId) {
        if !self.objects.contains_key(id) {
            return;
        }
        let Some(vm) = self.vms.get_mut(id).filter(|vm| vm.is_alive() && vm.ready && !vm.fetching) else { return };
        vm.fetching = true;
        let time = self.between(0.1, 2.0);
        self.after(time, Event::Fetch(id.clone()));
    }

    pub(crate) fn fetch(&mut self, id: &InstanceId) {
        let object = self.objects.get(id).copied();
        let Some(vm) = self.vms.get_mut(id).filter(|vm| vm.is_alive()) else { return };
        vm.fetched = object;
        if object.is_some() {
            let time = self.between(2.0, 4.0);
            self.after(time, Event::Online(id.clone()));
        } else {
            vm.fetching = false;
        }
    }

    pub(crate) fn come_online(&mut self, id: &InstanceId) {
        let Some(vm) = self.vms.get(id).filter(|vm| vm.is_alive()) else { return };
        let Some(runner) = vm.fetched else { return };
        match self.github.runners.get_mut(&runner) {
            Some(runner) => {
                runner.online = true;
                self.objects.remove(id);
                self.match_up();
            }
            // Whatever ends the listener ends the machine.
            None => self.after(5.0, Event::PowerOff(id.clone())),
        }
    }

    pub(crate) fn no_configuration(&mut self, id: &InstanceId) {
        if self.vms.get(id).is_some_and(|vm| vm.fetched.is_none()) {
            self.power_off(id);
        }
    }

    pub(crate) fn power_off(&mut self, id: &InstanceId) {
        let Some(vm) = self.vms.get_mut(id).filter(|vm| vm.is_alive()) else { return };
        vm.ended = Some(self.now);
        let runner = vm.fetched;
        let time = self.between(2.0, 40.0);
        self.after(time, Event::Terminated(id.clone()));
        if let Some(job) = self.running_on(id) {
            // assumption: GitHub gives a silent runner up within ten minutes.
            let time = self.between(60.0, 600.0);
            self.after(time, Event::NoticeLoss(job));
        }
        if let Some(runner) = runner.and_then(|runner| self.github.runners.get_mut(&runner)) {
            runner.online = false;
        }
    }

    pub(crate) fn terminated(&mut self, id: &InstanceId) {
        if let Some(vm) = self.vms.get_mut(id) {
            vm.terminated = Some(self.now);
        }
    }

    /// What must hold once all is over; `None` if it does.
    pub(crate) fn unrest(&self) -> Option<String> {
        let idle = self.github.runners.values().filter(|one| one.online && one.busy.is_none()).count();
        let wanted = self.plan.min_idle as usize;
        if idle != wanted || self.github.runners.len() != wanted {
            return Some(format!("{idle} idle of {} runners, and min_idle is {wanted}", self.github.runners.len()));
        }
        // One that never ran when its scale set was lost is kept for days: it might run a job.
        let lost = self.plan.faults.iter().any(|fault| matches!(fault, Fault::SetGone { .. }));
        for vm in self.vms.values().filter(|vm| vm.is_alive() && !(lost && vm.never_boots)) {
            let registered = vm.fetched.is_some_and(|runner| self.github.runners.contains_key(&runner));
            if !registered {
                return Some(format!("{} has no runner", vm.id));
            }
        }
        for runner in self.github.runners.values() {
            let machine = runner.name.instance(&fleet());
            if !machine.is_some_and(|id| self.vms.get(&id).is_some_and(Vm::is_alive)) {
                return Some(format!("{} has no instance", runner.name));
            }
        }
        // source: the design: a rule of the bucket deletes what a killed controller left of machines that it did not see again.
        let killed = self.plan.faults.iter().any(|fault| matches!(fault, Fault::Crash { .. } | Fault::Second { .. }));
        let left = self.objects.keys().filter(|id| !killed || self.vms.get(*id).is_some_and(Vm::is_alive)).count();
        (left > 0).then(|| format!("{left} configurations are left"))
    }
}
