//! GitHub's scale set service: one scale set, its session and queue, its jobs and runners.

use std::collections::{BTreeMap, VecDeque};

use kiln_controller::ids::MessageId;
use kiln_controller::ids::{FleetName, InstanceId, JobId, RequestId, RunnerId, RunnerName};
use kiln_controller::ports::{JobEvent, Message, Runner, Statistics};

use crate::schedule::{Fault, Started};
use crate::world::{Event, Inner, Millis, Without};

/// GitHub takes an assignment back that no runner has picked up, and drops the job the third time.
///
/// source: actions-runner-controller issue 4602, where it happened at intervals of five minutes.
const PICKED_UP_WITHIN: Millis = 5 * 60 * 1000;
const MOST_TRIES: u32 = 3;

/// source: the README of actions/scaleset: a message has at most fifty elements.
const MOST_ELEMENTS: usize = 50;

/// A session ends by itself when nobody polls.
///
/// assumption: 75 s after the last poll began. Measured elsewhere: about 50 s after a poll's end, with reports of much more.
pub(crate) const SESSION_ENDS: Millis = 75_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not there yet.
    Future,
    /// It waits, and is nobody's.
    Queued,
    /// It is the scale set's, and waits for a runner.
    Assigned,
    Running(i64),
    Done(End),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Cancelled,
    /// No runner picked it up, three times.
    Dropped,
    /// Its machine is gone.
    Lost,
}

#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) state: State,
    pub(crate) tries: u32,
    pub(crate) queued: Millis,
    /// What was announced when it was queued was 0.
    ///
    /// source: measured by others: such a job stays queued for ever, whatever is announced later.
    pub(crate) stuck: bool,
    /// It may be acquired.
    pub(crate) offered: bool,
    pub(crate) said_completed: bool,
    pub(crate) machine: Option<InstanceId>,
    pub(crate) runner: Option<RunnerName>,
}

#[derive(Debug, Clone)]
pub(crate) struct RunnerState {
    pub(crate) name: RunnerName,
    pub(crate) online: bool,
    pub(crate) busy: Option<usize>,
    pub(crate) since: Millis,
}

#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) token_expired: bool,
    pub(crate) heard: Millis,
}

pub(crate) struct Github {
    pub(crate) set: Option<i64>,
    pub(crate) session: Option<Session>,
    pub(crate) next: i64,
    pub(crate) jobs: Vec<Job>,
    pub(crate) runners: BTreeMap<i64, RunnerState>,
    pub(crate) announced: Option<u32>,
    pending: VecDeque<JobEvent>,
    unacknowledged: BTreeMap<i64, Vec<JobEvent>>,
    pub(crate) empty_polls: u32,
    pub(crate) hanging_polls: u32,
    pub(crate) zero_counts: u32,
    pub(crate) unlisted: u32,
    pub(crate) polls: u32,
}

impl Github {
    pub(crate) fn new(jobs: usize) -> Self {
        let job = Job {
            state: State::Future,
            tries: 0,
            queued: 0,
            stuck: false,
            offered: false,
            said_completed: false,
            machine: None,
            runner: None,
        };
        Self {
            set: None,
            session: None,
            next: 100,
            jobs: vec![job; jobs],
            runners: BTreeMap::new(),
            announced: None,
            pending: VecDeque::new(),
            unacknowledged: BTreeMap::new(),
            empty_polls: 0,
            hanging_polls: 0,
            zero_counts: 0,
            unlisted: 0,
            polls: 0,
        }
    }

    pub(crate) fn statistics(&self) -> Statistics {
        // assumption: what GitHub said to be over it does not count any more, though the runner may still work.
        let count = |wanted: fn(&State) -> bool| {
            let jobs = self.jobs.iter().filter(|job| wanted(&job.state) && !job.said_completed);
            u32::try_from(jobs.count()).unwrap()
        };
        let running = count(|state| matches!(state, State::Running(_)));
        let registered = u32::try_from(self.runners.len()).unwrap();
        let busy = u32::try_from(self.runners.values().filter(|one| one.busy.is_some()).count()).unwrap();
        Statistics {
            available: count(|state| *state == State::Queued),
            assigned: running + count(|state| *state == State::Assigned),
            running,
            registered,
            busy,
            idle: u32::try_from(self.runners.values().filter(|one| one.online && one.busy.is_none()).count()).unwrap(),
        }
    }

    pub(crate) fn all_done(&self) -> bool {
        self.jobs.iter().all(|job| matches!(job.state, State::Done(_)))
    }
}

fn job_id(job: usize) -> JobId {
    JobId::new(format!("job-{job}"))
}

pub(crate) fn fleet() -> FleetName {
    FleetName::new("linux")
}

impl Inner {
    pub(crate) fn queue_job(&mut self, index: usize) {
        let announced = self.github.announced;
        let job = &mut self.github.jobs[index];
        if job.state != State::Future {
            return;
        }
        job.state = State::Queued;
        job.queued = self.now;
        job.stuck = announced == Some(0);
        self.assign();
    }

    pub(crate) fn cancel(&mut self, index: usize) {
        match self.github.jobs[index].state {
            State::Future | State::Queued | State::Assigned => {
                self.finish(index, End::Cancelled);
                self.github.pending.push_back(JobEvent::Completed(job_id(index), None));
                self.assign();
            }
            // Its steps are stopped.
            State::Running(_) => self.after(5.0, Event::End(index)),
            State::Done(_) => {}
        }
    }

    /// Jobs that fit become the scale set's, up to what was announced.
    pub(crate) fn assign(&mut self) {
        let Some(announced) = self.github.announced.filter(|_| self.github.set.is_some()) else { return };
        for index in 0..self.github.jobs.len() {
            let offered = self.github.jobs.iter().filter(|job| job.offered && job.state == State::Queued).count();
            if self.github.statistics().assigned + u32::try_from(offered).unwrap() >= announced {
                return;
            }
            let job = &mut self.github.jobs[index];
            if job.state != State::Queued || job.stuck || job.offered {
                continue;
            }
            if self.plan.acquire {
                // assumption: no more jobs are offered than were announced, as no more are assigned.
                job.offered = true;
                self.github.pending.push_back(JobEvent::Available(RequestId(i64::try_from(index).unwrap() + 1)));
            } else {
                self.give(index);
            }
        }
    }

    pub(crate) fn give(&mut self, index: usize) {
        if self.github.jobs[index].state != State::Queued {
            return;
        }
        let tries = self.github.jobs[index].tries;
        self.github.jobs[index].offered = false;
        self.github.jobs[index].state = State::Assigned;
        self.github.pending.push_back(JobEvent::Assigned(job_id(index)));
        self.at(self.now + PICKED_UP_WITHIN, Event::TakeAssignmentBack(index, tries));
        self.match_up();
    }

    pub(crate) fn take_assignment_back(&mut self, index: usize, tries: u32) {
        let job = &mut self.github.jobs[index];
        if job.state != State::Assigned || job.tries != tries {
            return;
        }
        job.tries += 1;
        job.state = State::Queued;
        let dropped = job.tries == MOST_TRIES;
        self.github.pending.push_back(JobEvent::Completed(job_id(index), None));
        if dropped {
            self.finish(index, End::Dropped);
        }
        self.assign();
    }

    /// Jobs go to idle runners, any job to any.
    pub(crate) fn match_up(&mut self) {
        for index in 0..self.github.jobs.len() {
            if self.github.jobs[index].state != State::Assigned {
                continue;
            }
            let idle = self.github.runners.iter().filter(|(_, one)| one.online && one.busy.is_none());
            let idle: Vec<i64> = idle.map(|(id, _)| *id).collect();
            let Some(id) = self.rng.choice(idle) else { return };
            self.start(index, id);
        }
    }

    fn start(&mut self, index: usize, id: i64) {
        let plan = self.plan.jobs[index].clone();
        let runner = self.github.runners.get_mut(&id).unwrap();
        runner.busy = Some(index);
        runner.since = self.now;
        let name = runner.name.clone();
        let job = &mut self.github.jobs[index];
        job.state = State::Running(id);
        job.machine = name.instance(&fleet());
        job.runner = Some(name.clone());
        self.note(|| format!("job {index} runs on {name}"));
        #[allow(clippy::cast_precision_loss, reason = "seconds of a run")]
        let secs = plan.secs as f64;
        self.after(secs, Event::End(index));
        match plan.started {
            Started::Now => self.say_started(index),
            #[allow(clippy::cast_precision_loss, reason = "seconds of a run")]
            Started::Late(late) => self.after(late as f64, Event::SayStarted(index)),
            Started::Never => {}
        }
        if let Some(part) = plan.early {
            // source: actions/runner issue 4492: a job is said to be over while its runner works.
            #[allow(clippy::cast_precision_loss, reason = "seconds of a run")]
            self.after(secs * part as f64 / 100.0, Event::SayCompleted(index));
        }
    }

    pub(crate) fn say_started(&mut self, index: usize) {
        let lost = |id: i64| !self.github.runners.contains_key(&id);
        let job = &self.github.jobs[index];
        if job.said_completed && matches!(job.state, State::Running(id) if lost(id)) {
            return;
        }
        if let Some(name) = job.runner.clone() {
            self.github.pending.push_back(JobEvent::Started(job_id(index), name));
        }
    }

    pub(crate) fn say_completed(&mut self, index: usize) {
        let job = &mut self.github.jobs[index];
        if job.said_completed {
            return;
        }
        job.said_completed = true;
        let name = job.runner.clone();
        self.github.pending.push_back(JobEvent::Completed(job_id(index), name));
    }

    pub(crate) fn end_job(&mut self, index: usize) {
        let job = &self.github.jobs[index];
        let State::Running(id) = job.state else { return };
        let machine = job.machine.clone().unwrap();
        if !self.vms.get(&machine).is_some_and(crate::ec2::Vm::is_alive) {
            // Its machine went first.
            return;
        }
        self.finish(index, End::Finished);
        self.say_completed(index);
        // Single use: GitHub removes the runner, and the machine powers off.
        self.github.runners.remove(&id);
        let time = self.between(1.0, 10.0);
        self.after(time, Event::PowerOff(machine));
        self.assign();
    }

    pub(crate) fn notice_loss(&mut self, index: usize) {
        let State::Running(id) = self.github.jobs[index].state else { return };
        self.finish(index, End::Lost);
        self.say_completed(index);
        // assumption: the runner stays registered, offline and idle, until somebody removes it.
        if let Some(runner) = self.github.runners.get_mut(&id) {
            runner.busy = None;
        }
        self.assign();
    }

    fn finish(&mut self, index: usize, end: End) {
        if let State::Done(before) = self.github.jobs[index].state {
            self.violate(format!("job {index} ended twice: {before:?}, {end:?}"));
        }
        self.github.jobs[index].state = State::Done(end);
        self.note(|| format!("job {index}: {end:?}"));
    }

    /// The next message of the queue, if there is one.
    pub(crate) fn message(&mut self, last: i64) -> Option<Message> {
        let statistics = if self.github.zero_counts > 0 {
            // source: actions-runner-controller issues 3420 and 3204: counts of nothing with jobs in the same message.
            Statistics::default()
        } else {
            self.github.statistics()
        };
        let waiting = self.github.unacknowledged.range(last + 1..).next().map(|(id, jobs)| (*id, jobs.clone()));
        let (id, jobs) = match waiting {
            Some(waiting) => waiting,
            None if self.github.pending.is_empty() => return None,
            None => {
                let count = self.github.pending.len().min(MOST_ELEMENTS);
                let jobs: Vec<_> = self.github.pending.drain(..count).collect();
                self.github.next += self.rng.i64(1..5);
                self.github.unacknowledged.insert(self.github.next, jobs.clone());
                (self.github.next, jobs)
            }
        };
        let zero = self.github.zero_counts > 0 && jobs.iter().any(|job| matches!(job, JobEvent::Assigned(_)));
        self.github.zero_counts -= u32::from(zero);
        let statistics = if zero { statistics } else { self.github.statistics() };
        Some(Message { id: MessageId(id), statistics: Some(statistics), jobs })
    }

    pub(crate) fn acknowledge(&mut self, id: i64) {
        self.github.unacknowledged.remove(&id);
    }

    pub(crate) fn announce(&mut self, capacity: u32) {
        let busy = u32::try_from(self.github.runners.values().filter(|one| one.busy.is_some()).count()).unwrap();
        let capacity = match self.without {
            Without::Total => self.plan.max.saturating_sub(busy),
            Without::BackPressure => self.plan.max,
            _ => capacity,
        };
        self.github.announced = Some(capacity);
        self.assign();
    }

    pub(crate) fn session_is_over(&self) -> bool {
        self.github.session.as_ref().is_none_or(|session| self.now - session.heard > SESSION_ENDS)
    }

    pub(crate) fn register(&mut self, name: &RunnerName) -> Option<i64> {
        if self.github.runners.values().any(|one| one.name == *name) {
            return None;
        }
        self.github.next += 1;
        let id = self.github.next;
        self.github.runners.insert(id, RunnerState { name: name.clone(), online: false, busy: None, since: self.now });
        self.judge();
        Some(id)
    }

    /// Removes a runner, unless it is busy; `None` if there is none.
    pub(crate) fn remove_runner(&mut self, id: i64) -> Option<bool> {
        let runner = self.github.runners.get(&id)?;
        if let Some(job) = runner.busy {
            let called_idle = self.plan.jobs[job].called_idle;
            if !called_idle {
                return Some(false);
            }
            // source: reports that a busy runner was called idle; its job goes on with a token of its own.
            self.github.runners.remove(&id);
            return Some(true);
        }
        let machine = runner.name.instance(&fleet());
        let online = runner.online;
        self.github.runners.remove(&id);
        if let (true, Some(machine)) = (online, machine) {
            // source: the runner's code: its next poll says that it is not known, and it ends. A poll lasts up to 50 s.
            let time = self.between(1.0, 80.0);
            self.after(time, Event::PowerOff(machine));
        }
        Some(true)
    }

    pub(crate) fn list_runners(&mut self) -> Vec<Runner> {
        let mut left_out = None;
        if self.github.unlisted > 0 {
            // source: cloudbase/garm issue 834: a runner that had just taken a job was missing in a list.
            let just = self.github.runners.iter().find(|(_, one)| one.busy.is_some() && self.now - one.since < 20_000);
            left_out = just.map(|(id, _)| *id);
            self.github.unlisted -= u32::from(left_out.is_some());
        }
        let all = self.github.runners.iter().filter(|(id, _)| Some(**id) != left_out);
        all.map(|(id, one)| Runner {
            id: RunnerId(*id),
            name: one.name.clone(),
            online: one.online,
            busy: one.busy.is_some(),
        })
        .collect()
    }

    /// source: actions-runner-controller pull request 4571: scale sets vanished in an incident, and their runners with them.
    pub(crate) fn lose_set(&mut self) {
        if self.github.set.take().is_none() {
            return;
        }
        self.github.session = None;
        self.github.pending.clear();
        self.github.unacknowledged.clear();
        self.github.announced = None;
        for (_, runner) in std::mem::take(&mut self.github.runners) {
            let machine = runner.name.instance(&fleet());
            if let (true, None, Some(machine)) = (runner.online, runner.busy, machine) {
                let time = self.between(1.0, 80.0);
                self.after(time, Event::PowerOff(machine));
            }
        }
        // assumption: jobs that wait find the new scale set by its labels; running ones go on with their own tokens.
        for job in &mut self.github.jobs {
            job.offered = false;
            // Of these the new scale set knows nothing, and nothing more is said.
            job.said_completed |= matches!(job.state, State::Running(_));
            if job.state == State::Assigned {
                job.state = State::Queued;
                job.tries += 1;
            }
        }
    }

    pub(crate) fn ensure_set(&mut self) -> i64 {
        if self.github.set.is_none() {
            self.github.next += 1;
            self.github.set = Some(self.github.next);
        }
        self.github.set.unwrap()
    }

    pub(crate) fn github_fails(&self, who: usize) -> bool {
        let down = |fault: &Fault| match *fault {
            Fault::GithubDown { at, secs } => Some((at, secs)),
            _ => None,
        };
        let partition = |fault: &Fault| match *fault {
            Fault::Partition { at, secs } if who == 0 => Some((at, secs)),
            _ => None,
        };
        self.during(down) || self.during(partition)
    }
}
