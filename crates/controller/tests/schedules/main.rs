//! Ten thousand generated schedules of jobs, faults and restarts, on virtual time.
//!
//! A failure prints its seed and the shortest schedule found that still fails. `KILN_DEMAND_SEED=n` repeats one and prints what
//! happened; `KILN_DEMAND_RUNS=n` makes another number of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ec2;
mod github;
mod ports;
mod schedule;
mod world;

use std::sync::Arc;
use std::time::Duration;

use kiln_controller::clock::{Clock, Timestamp};
use kiln_controller::reconcile::Controller;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use ec2::EPOCH;
use github::{End, State};
use ports::{Disk, Port};
use schedule::{Fault, Schedule};
use world::{Inner, Without, World};

/// Once all jobs are over, all is at rest within this: what nobody ends is ended ten to fifteen minutes after it should
/// have ended itself, and an idle runner lingers first.
const REST: u64 = 25 * 60 * 1000;

/// No job waits longer than this, whatever happens: three times five minutes, what runs, and what the faults hold up.
const LONGEST: u64 = 4 * 60 * 60 * 1000;

/// What a run came to.
struct Run {
    violation: Option<String>,
    log: Vec<String>,
    ends: Vec<End>,
    polls: u32,
    calls: u32,
}

/// Keeps a controller running on its host: killed, stopped and started again as the schedule says.
async fn host(world: Arc<World>, who: usize, without: Without) {
    let began = Instant::now();
    let mut hosts = who * 100;
    let mut disk = Disk::new(hosts, without == Without::Intents);
    let restarts = world.lock().plan.faults.clone();
    let mut restarts: Vec<_> = restarts
        .iter()
        .filter_map(|fault| match *fault {
            Fault::Restart { at, down, new_host } if who == 0 => Some((at, down, new_host)),
            _ => None,
        })
        .collect();
    restarts.sort_unstable();
    restarts.reverse();
    loop {
        let port = || Arc::new(Port { world: Arc::clone(&world), who });
        let now = world.lock().now;
        let clock = Clock::starting_at(Timestamp(EPOCH.0 + now));
        let controller = Controller::new(port(), port(), port(), disk.clone(), format!("c{who}"), clock);
        let (stop, stopped) = watch::channel(false);
        let running = controller.run(stopped);
        tokio::pin!(running);
        let restart = restarts.last().copied();
        let at = restart.map_or(u64::MAX / 4000, |(at, ..)| at);
        let (down, new_host) = tokio::select! {
            () = &mut running => return,
            () = world.crash.notified(), if who == 0 => {
                let fault = world.lock().crashed.take();
                match fault {
                    Some(Fault::Crash { down, new_host, .. }) => (down, new_host),
                    _ => (5, false),
                }
            }
            () = sleep_until(began + Duration::from_secs(at.min(1_000_000))) => {
                restarts.pop();
                stop.send_replace(true);
                tokio::select! {
                    () = &mut running => {}
                    () = world.crash.notified() => {}
                }
                restart.map_or((5, false), |(_, down, new_host)| (down, new_host))
            }
        };
        world.lock().note(|| format!("controller {who} is down"));
        if new_host {
            hosts += 1;
            disk = Disk::new(hosts, without == Without::Intents);
        }
        // A future that is pinned here is dropped at the end of this scope, as a killed process's.
        sleep(Duration::from_secs(down)).await;
    }
}

async fn simulate(plan: Schedule, without: Without, logging: bool) -> Run {
    fastrand::seed(plan.seed);
    let world = World::new(plan.clone(), without, logging);
    let second = plan.faults.iter().find_map(|fault| match *fault {
        Fault::Second { at } => Some(at),
        _ => None,
    });
    let other = async {
        match second {
            Some(at) => {
                sleep(Duration::from_secs(at)).await;
                host(Arc::clone(&world), 1, without).await;
            }
            None => std::future::pending().await,
        }
    };
    let mut rested = None;
    let mut done = None;
    let over = std::cell::RefCell::new((&mut done, &mut rested));
    tokio::select! {
        () = world.drive(|world| is_over(world, &mut over.borrow_mut())) => {}
        () = host(Arc::clone(&world), 0, without) => {}
        () = other => {}
    }
    let world = world.lock();
    let ends = world.github.jobs.iter().filter_map(|job| match job.state {
        State::Done(end) => Some(end),
        _ => None,
    });
    Run {
        violation: world.violation.clone(),
        log: world.log.clone(),
        ends: ends.collect(),
        polls: world.github.polls,
        calls: world.mutations,
    }
}

/// All jobs are over and all is at rest, twice a minute apart; or it never will be.
fn is_over(world: &mut Inner, state: &mut (&mut Option<u64>, &mut Option<u64>)) -> bool {
    let (done, rested) = state;
    let now = world.now;
    let last_fault = world.plan.faults.iter().map(|fault| match *fault {
        Fault::Restart { at, down, .. } => at + down,
        Fault::Partition { at, secs } | Fault::GithubDown { at, secs } | Fault::NoCapacity { at, secs, .. } => {
            at + secs
        }
        Fault::Second { at } => at,
        _ => 0,
    });
    if !world.github.all_done() || now < last_fault.max().unwrap_or_default() * 1000 {
        if now > LONGEST {
            let waiting: Vec<_> = world.github.jobs.iter().filter(|job| !matches!(job.state, State::Done(_))).collect();
            let text = format!("jobs that never end: {waiting:?}");
            world.violate(text);
        }
        return false;
    }
    let since = *done.get_or_insert(now);
    match world.unrest() {
        None => {
            let since = *rested.get_or_insert(now);
            if now - since >= 60_000 {
                world.check_ends();
                return true;
            }
        }
        Some(unrest) => {
            **rested = None;
            if now - since > REST {
                world.violate(format!("no rest: {unrest}"));
            }
        }
    }
    false
}

impl Inner {
    /// What became of the jobs, and at what cost.
    fn check_ends(&mut self) {
        let held_up: u64 = self.plan.faults.iter().map(Fault::holds_up).sum();
        let taken = self.plan.faults.iter().any(|fault| matches!(fault, Fault::Taken { .. }));
        for (index, job) in self.github.jobs.clone().iter().enumerate() {
            match job.state {
                // Without a fault that lasts nothing keeps a runner from a job for three times five minutes.
                State::Done(End::Dropped) if held_up < 600 => self.violate(format!("job {index} was dropped")),
                State::Done(End::Lost) if !taken => self.violate(format!("job {index} lost its machine")),
                _ => {}
            }
        }
        let jobs: u32 = self.github.jobs.iter().map(|job| 1 + job.tries).sum();
        let faults = u32::try_from(self.plan.faults.len()).unwrap();
        // An idle runner that is too old is replaced, and so is one that a fault took.
        #[allow(clippy::cast_possible_truncation, reason = "a run's minutes")]
        let ages = (self.now / 1000 / self.plan.max_age_secs) as u32;
        let most = CALLS_EACH * (jobs + self.plan.min_idle * (1 + ages) + faults * self.plan.max) + 10;
        if self.mutations > most {
            self.violate(format!(
                "{} calls that change something, and {most} are enough: {:?}",
                self.mutations, self.calls
            ));
        }
    }
}

/// Launch (twice where spot gives nothing), register, hand over, take back, remove, end.
const CALLS_EACH: u32 = 8;

fn run(plan: Schedule, without: Without, logging: bool) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(simulate(plan, without, logging))
}

/// The same failure with as few jobs and faults as can be found by leaving one out at a time.
fn shorten(mut plan: Schedule, without: Without) -> Schedule {
    loop {
        let mut shorter = Vec::new();
        for index in 0..plan.faults.len() {
            let mut one = plan.clone();
            one.faults.remove(index);
            shorter.push(one);
        }
        for index in 0..plan.jobs.len() {
            let mut one = plan.clone();
            one.jobs.remove(index);
            shorter.push(one);
        }
        match shorter.into_iter().find(|one| run(one.clone(), without, false).violation.is_some()) {
            Some(one) => plan = one,
            None => return plan,
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs seeds on all processors; the first seed that fails is shortened and shown.
fn search(seeds: std::ops::Range<u64>, without: Without) -> Result<u64, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let failed = std::sync::Mutex::new(None::<u64>);
    let polls = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let one = run(Schedule::generate(seed), without, false);
                    polls.fetch_add(u64::from(one.polls), std::sync::atomic::Ordering::Relaxed);
                    if one.violation.is_some() {
                        failed.lock().unwrap().get_or_insert(seed);
                    }
                }
            });
        }
    });
    let Some(seed) = *failed.lock().unwrap() else { return Ok(polls.into_inner()) };
    let plan = shorten(Schedule::generate(seed), without);
    let shown = run(plan.clone(), without, true);
    Err(format!("seed {seed}: {}\n{plan}{}", shown.violation.unwrap_or_default(), shown.log.join("\n")))
}

#[test]
fn ten_thousand_schedules_end_as_they_should() {
    if let Some(seed) = number("KILN_DEMAND_SEED") {
        let plan = Schedule::generate(seed);
        let shown = run(plan.clone(), Without::Nothing, true);
        println!("{plan}{}\n{:?} after {} calls", shown.log.join("\n"), shown.ends, shown.calls);
        assert_eq!(shown.violation, None);
        return;
    }
    let runs = number("KILN_DEMAND_RUNS").unwrap_or(10_000);
    match search(0..runs, Without::Nothing) {
        Ok(polls) => assert!(polls > runs, "the controllers did not poll"),
        Err(failure) => panic!("{failure}"),
    }
}

/// Seeds that the design as it is passes, and one without a part of it does not.
fn is_missed(without: Without, what: &str) {
    let failure = search(0..2000, without).expect_err("nobody missed it");
    assert!(failure.contains(what), "{failure}");
}

#[test]
fn without_the_intents_there_are_too_many() {
    is_missed(Without::Intents, "and the maximum is");
}

#[test]
fn without_asking_first_busy_machines_are_ended() {
    is_missed(Without::Asking, "was ended while it ran job");
}

#[test]
fn with_the_gap_announced_jobs_wait_for_ever() {
    is_missed(Without::Total, "jobs that never end");
}

/// A crash between a launch and its answer, with an EC2 that does not list the instance yet: the shortest such schedule.
#[test]
fn a_launch_without_an_answer_counts() {
    let mut plan = Schedule { lag: 60, ..Schedule::quiet(1) }.with_jobs([(10, 60), (20, 60)]);
    plan.faults = vec![Fault::Crash { nth: 1, after: true, new_host: false, down: 1 }];
    for seed in 0..20 {
        plan.seed = seed;
        let shown = run(plan.clone(), Without::Nothing, true);
        assert_eq!(shown.violation, None, "{plan}{}", shown.log.join("\n"));
    }
}

/// While AWS gives nothing, jobs wait unassigned, and only the few that were assigned are dropped.
#[test]
fn jobs_wait_unassigned_while_nothing_can_be_had() {
    let mut plan = Schedule::quiet(6).with_jobs((0..10).map(|job| (60 + job, 30)));
    plan.faults = vec![Fault::NoCapacity { at: 30, secs: 2400, partial: false }];
    let dropped = |without| {
        let shown = run(plan.clone(), without, true);
        assert_eq!(shown.violation, None, "{}", shown.log.join("\n"));
        shown.ends.into_iter().filter(|end| *end == End::Dropped).count()
    };
    let (with, without) = (dropped(Without::Nothing), dropped(Without::BackPressure));
    assert!(with <= 3 && without >= 6, "{with} with what can be had announced, {without} without");
}

/// A busy fleet at its maximum takes one job after the other, and is empty in the end.
#[test]
fn more_jobs_than_runners_are_all_run() {
    let plan = Schedule::quiet(3).with_jobs((0..30).map(|job| (job, 20)));
    let shown = run(plan, Without::Nothing, true);
    assert_eq!(shown.violation, None, "{}", shown.log.join("\n"));
    assert_eq!(shown.ends, [End::Finished; 30]);
}

/// Nothing to do for two hours and a half: the queue is polled at its own pace, and nothing is changed.
#[test]
fn a_quiet_time_costs_nothing() {
    let plan = Schedule::quiet(3).with_jobs([(24 * 60 * 60 / 10, 1)]);
    let shown = run(plan, Without::Nothing, true);
    assert_eq!(shown.violation, None, "{}", shown.log.join("\n"));
    assert!(shown.polls < 24 * 60 * 60 / 10 / 50 + 30, "{} polls", shown.polls);
    assert!(shown.calls <= 6, "{} calls that change something", shown.calls);
}
