//! A runner's life after registration: it serves, and leaves without losing a job.
//!
//! What this machine knows itself counts for more than what GitHub says: while a job is known to run here, nothing is
//! deleted or stopped. GitHub's answers lag, and one of them is never the truth. Everything outside is behind [`Environment`],
//! so that a test can live through thousands of lives.

mod leave;

use std::cell::Cell;
use std::time::Duration;

use kiln_github::Deleted;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// Between two looks at the metadata service: Auto Scaling asks for one every few seconds at the least, and a spot notice
/// comes two minutes ahead.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// From the listener's start to its session. The listener itself gives up a conflict with an earlier session after eight
/// refusals, 30 s apart, and the answers take their time too.
///
/// Source: `BrokerMessageListener.CreateSessionAsync` of actions/runner.
const LISTEN_LIMIT: Duration = Duration::from_secs(300);

/// A listener that ends this often without having served is broken: the instance is replaced.
const MOST_STARTS: u32 = 5;

/// One that served this long is not counted as broken.
const SERVED: Duration = Duration::from_secs(600);

/// "Listening for Jobs" is said before the first poll, which GitHub refuses at once if it serves the version no more. A
/// listener that stays up this long after it has survived that poll, or waits in it.
///
/// Source: `Runner.RunAsync` of actions/runner.
const SETTLED: Duration = Duration::from_secs(5);

/// Between two looks whether GitHub still knows an idle runner: 500 runners ask a fifth of an installation's hourly limit.
const WATCH_EVERY: Duration = Duration::from_secs(1800);

/// The same for an ephemeral runner. One whose job is cancelled before it has it polls on, and gets no job any more
/// (actions/runner#4617). 500 idle ones ask three fifths of the hourly limit.
const WATCH_EPHEMERAL: Duration = Duration::from_secs(600);

/// GitHub's listings lag: a runner is gone when it is absent this often in a row, this long apart, and it was not
/// registered only just now (terraform-aws-github-runner#4391).
const ABSENCES: u32 = 3;
const ABSENT_PAUSE: Duration = Duration::from_secs(60);
const YOUNG: Duration = Duration::from_secs(300);

/// A request to the group that was refused, or not heard, is made again so much later.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Auto Scaling refuses to complete a lifecycle action that has not begun with the words for one that is over. It begins
/// seconds after the instance, in bad minutes later.
///
/// Source: amazon-ec2-auto-scaling-group-examples#3, PrairieLearn#15586.
const HOOK_AGAIN: Duration = Duration::from_secs(3);

/// How long a launch is completed again and again: the hook's own timeout is ten minutes, and what was not accepted by
/// then nobody waits for.
const LAUNCH_PATIENCE: Duration = Duration::from_secs(900);

/// The launch hook gives up a new instance that is silent for ten minutes.
pub(crate) const LAUNCH_HEARTBEAT: Duration = Duration::from_secs(200);

/// Between two tries while GitHub can't be reached; grows from the first to the second.
const OUTAGE_PAUSES: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(300));

/// An instance that has not reached GitHub for this long is replaced all the same: it may be its own network. The longest
/// outages of GitHub were over in a day.
const OUTAGE_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// A listener that does not reach GitHub for so long, though GitHub answers us, is started again: the broker may be away, or
/// the listener stuck.
const STUCK: Duration = Duration::from_secs(1200);

/// Between two tries with a version that GitHub has called deprecated; grows from the first to the second. It has said so
/// wrongly of the newest release, twice (actions/runner#3378, #4613).
pub(crate) const DEPRECATED_PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// Why an instance has to go, as its metadata service tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Auto Scaling terminates it and waits at the hook.
    Terminate,
    /// EC2 takes a spot instance back after so long.
    Spot(Duration),
    /// EC2 sees a spot instance at risk; nothing ends yet.
    Rebalance,
}

/// What a person does about a runner version that GitHub serves no more.
pub(crate) const PIN_A_NEWER: &str = "pin a newer runner in kiln.toml, then `cargo xtask ami` and `cargo xtask deploy`";

/// What a listener has said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ListenerState {
    /// It has a session.
    pub(crate) online: bool,
    /// It runs a job.
    pub(crate) busy: bool,
    /// How many jobs it has begun.
    pub(crate) jobs: u32,
    /// It can't reach GitHub, and tries on.
    pub(crate) unreachable: bool,
}

/// How a lifecycle action ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Continue,
    Abandon,
}

/// A lifecycle hook of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Launch,
    Termination,
}

/// What came of completing a lifecycle action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completion {
    /// It is completed, or nobody waits for it.
    Done,
    /// There is none: not yet, or no longer.
    NoneActive,
    /// The group was not heard.
    Unheard,
}

/// How GitHub lists the runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listed {
    Idle,
    Busy,
    Absent,
}

/// What GitHub's own list of versions says of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    Yes,
    No,
    /// There is no such list, or it can't be had.
    Unknown,
}

/// The listener's process.
pub(crate) trait Process {
    /// What it says, as it says it.
    fn heard(&self) -> watch::Receiver<ListenerState>;
    /// Is a worker of it seen, and so a job?
    fn works(&self) -> bool;
    /// Its exit code, when it has ended; `None` for a signal. May be asked again.
    async fn exit(&mut self) -> Option<i32>;
    /// Ends it, within `grace` by itself, and what its job left running. A running job is cancelled.
    async fn stop(&mut self, grace: Duration);
}

/// What a life is lived among.
pub(crate) trait Environment {
    /// The listener.
    type Listener: Process;
    /// Starts it.
    fn start(&self) -> anyhow::Result<Self::Listener>;
    /// Deletes the runner at GitHub.
    async fn delete_runner(&self) -> anyhow::Result<Deleted>;
    /// How does GitHub list the runner?
    async fn listed(&self) -> anyhow::Result<Listed>;
    /// Does GitHub serve this version, by its own list?
    async fn served(&self) -> Served;
    /// One look at the metadata service.
    async fn notice(&self) -> anyhow::Result<Option<Notice>>;
    /// Resolves when the process is asked to end, with the signal's name.
    async fn signalled(&self) -> &'static str;
    /// Does the whole machine stop, or start again?
    async fn machine_stops(&self) -> bool;
    /// Lets a new instance into service, or gives it up.
    async fn complete_launch(&self, verdict: Verdict) -> Completion;
    /// Lets a leaving instance go.
    async fn complete_termination(&self) -> Completion;
    /// Shows the group that the instance is still at work.
    async fn heartbeat(&self, hook: Hook);
    /// Asks for another instance in this one's place. Was it granted?
    async fn replace(&self) -> bool;
    /// Marks the instance as unhealthy, which has the group replace it. Was it heard?
    async fn mark_unhealthy(&self) -> bool;
    /// Switches the machine off, which the group notices.
    async fn power_off(&self);
    /// Marks the instance for its operator, as well as it can.
    async fn show_state(&self, state: &'static str);
    /// Asks the group to do without this instance. Was it granted? Not at the group's least size.
    async fn scale_in(&self) -> bool;
    /// The runner is online, for whoever waits for the service.
    fn ready(&self);
    /// The instance is in service from now on.
    fn in_service(&self);
    /// The runner has taken a job.
    fn took_job(&self);
    /// The instance is leaving.
    fn stopping(&self);
}

/// A life's settings, from BootConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LifecycleSettings {
    /// One job only.
    pub(crate) ephemeral: bool,
    /// It belongs to a group, which is asked for a replacement and told of the end.
    pub(crate) in_group: bool,
    /// The termination hook's heartbeat timeout.
    pub(crate) heartbeat: Duration,
    /// How long a running job may delay the end.
    pub(crate) drain_timeout: Duration,
    /// A launch that can't succeed is given up no earlier after the boot; one that was in service, three times that.
    pub(crate) failed_boot_grace: Duration,
    /// One that is older asks to be replaced.
    pub(crate) max_age: Option<Duration>,
    /// One that has had no job for so long asks to be done without.
    pub(crate) idle_limit: Option<Duration>,
}

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Drained and left.
    Left,
    /// The listener did not stay up.
    Broken,
}

/// What an end of the listener asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its one job is done.
    JobDone,
    /// Start it again.
    Again(&'static str),
    /// GitHub says that it serves this version no more.
    Deprecated,
}

/// Acts on the listener's exit code, which `run.sh` would hide. A job is done only if one was heard: the listener also ends
/// with 0 when its registration is gone, its token revoked, or its job was taken back.
///
/// Source: `Constants.Runner.ReturnCode` and `Runner.RunAsync` of actions/runner.
pub(crate) fn ended(code: Option<i32>, ephemeral: bool, jobs: u32) -> Ended {
    match code {
        Some(7) => Ended::Deprecated,
        _ if ephemeral && jobs > 0 => Ended::JobDone,
        Some(0) => Ended::Again("ended without being asked to"),
        Some(1) => Ended::Again("terminated, or its registration is gone"),
        Some(2) => Ended::Again("retryable error"),
        Some(3 | 4) => Ended::Again("wanted to update itself, which the image does for it"),
        Some(5) => Ended::Again("another session of this runner exists"),
        Some(6) => Ended::Again("its configuration was refreshed"),
        Some(_) => Ended::Again("unknown exit code"),
        None => Ended::Again("killed by a signal"),
    }
}

/// Why the serving ended.
#[derive(Debug)]
enum Turn {
    Exit(Option<i32>),
    Leave(Leave),
    /// No session.
    Silent,
    /// GitHub knows the runner no more.
    Vanished,
}

/// Why, and how long it may take at most.
#[derive(Debug, Clone, Copy)]
struct Leave {
    why: &'static str,
    bound: Duration,
    /// How long a running job is given to end itself once it is cancelled.
    grace: Duration,
    /// The group knows that the instance leaves.
    known: bool,
}

pub(crate) struct Life<'a, O> {
    pub(crate) environment: &'a O,
    pub(crate) terms: &'a LifecycleSettings,
    /// When the process began.
    pub(crate) born: Instant,
    /// When the runner was registered.
    pub(crate) registered: Instant,
}

/// What a life remembers from one start of the listener to the next.
#[derive(Debug, Default)]
struct Past {
    /// The instance is in service.
    launched: bool,
    /// Starts in a row that did not serve.
    starts: u32,
    /// Since when GitHub can't be reached, and how often that was met.
    outage: Option<(Instant, u32)>,
    /// How often in a row GitHub has called the version deprecated.
    deprecated: u32,
}

/// Does a job run, as far as this machine knows?
fn is_busy(listener: &impl Process) -> bool {
    listener.heard().borrow().busy || listener.works()
}

impl<O: Environment> Life<'_, O> {
    /// From the first start of the listener to the end. `launched`: an earlier start of this service has brought the
    /// instance into service.
    pub(crate) async fn live(&self, launched: bool) -> End {
        let mut past = Past { launched, ..Past::default() };
        loop {
            let begin = Instant::now();
            let mut listener = match self.environment.start() {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(error = %format!("{error:#}"), "the listener can't be started");
                    return self.give_up(None, past.launched).await;
                }
            };
            let code = match self.serve(&mut listener, &mut past).await {
                Turn::Leave(leave) => return self.leave(leave, &mut listener, past.launched).await,
                Turn::Vanished => return self.vanished(&mut listener, past.launched).await,
                Turn::Silent => {
                    tracing::error!("no session within {} s", LISTEN_LIMIT.as_secs());
                    listener.stop(leave::IDLE_GRACE).await;
                    Some(2)
                }
                Turn::Exit(code) => code,
            };
            past.starts = if begin.elapsed() >= SERVED { 1 } else { past.starts + 1 };
            let next = match ended(code, self.terms.ephemeral, listener.heard().borrow().jobs) {
                Ended::JobDone => {
                    tracing::info!(ms = ms(begin), code, "the one job is done");
                    return self.replaced("the one job is done", &mut listener, past.launched).await;
                }
                Ended::Deprecated => self.deprecated(&mut listener, &mut past).await,
                Ended::Again(why) => self.again(why, code, begin, &mut listener, &mut past).await,
            };
            if let Some(end) = next {
                return end;
            }
        }
    }

    /// Waits before the listener's next start, or ends the life instead.
    async fn again(
        &self,
        why: &'static str,
        code: Option<i32>,
        begin: Instant,
        listener: &mut O::Listener,
        past: &mut Past,
    ) -> Option<End> {
        let listed = tokio::select! {
            listed = self.environment.listed() => listed,
            leave = self.must_leave() => return Some(self.leave(leave, listener, past.launched).await),
        };
        let out = listener.heard().borrow().unreachable || listed.is_err();
        let pause = if out {
            past.starts -= 1;
            let (since, times) = past.outage.get_or_insert((Instant::now(), 0));
            if since.elapsed() >= OUTAGE_LIMIT {
                tracing::error!(hours = OUTAGE_LIMIT.as_secs() / 3600, "GitHub was not reached for too long");
                return Some(self.give_up(Some(listener), past.launched).await);
            }
            let pause = growing(OUTAGE_PAUSES, *times);
            *times += 1;
            tracing::warn!(why, code, pause_secs = pause.as_secs(), "GitHub can't be reached: waiting for it");
            pause
        } else {
            past.outage = None;
            if past.starts >= MOST_STARTS {
                tracing::error!(why, code, starts = past.starts, ms = ms(begin), "the listener does not stay up");
                return Some(self.give_up(Some(listener), past.launched).await);
            }
            let pause = Duration::from_secs(1 << past.starts);
            let (starts, pause_secs) = (past.starts, pause.as_secs());
            tracing::warn!(why, code, starts, pause_secs, ms = ms(begin), "the listener ended");
            pause
        };
        // Its first look is the one above.
        let absent = matches!(listed, Ok(Listed::Absent)) && self.registered.elapsed() >= YOUNG;
        let wait = async {
            if absent && self.is_gone().await {
                return true;
            }
            self.sleep_launching(pause, past.launched, out).await;
            false
        };
        tokio::select! {
            gone = wait => if gone { Some(self.vanished(listener, past.launched).await) } else { None },
            leave = self.must_leave() => Some(self.leave(leave, listener, past.launched).await),
        }
    }

    /// GitHub calls the version deprecated. It has been wrong, so that this instance tries on, and the less often the surer
    /// it is. A fresh instance of the same image would fare no better: this one is not replaced.
    async fn deprecated(&self, listener: &mut O::Listener, past: &mut Past) -> Option<End> {
        let served = self.environment.served().await;
        let pause =
            if served == Served::No { DEPRECATED_PAUSES.1 } else { growing(DEPRECATED_PAUSES, past.deprecated) };
        (past.deprecated, past.starts) = (past.deprecated + 1, 0);
        tracing::error!(
            ?served,
            again_in_secs = pause.as_secs(),
            hint = PIN_A_NEWER,
            "GitHub serves this runner version no more"
        );
        if served != Served::Yes {
            self.environment.show_state(kiln_config::boot::RUNNER_DEPRECATED).await;
        }
        let give_up_at = (self.terms.in_group && !past.launched && served != Served::Yes)
            .then(|| self.born + self.terms.failed_boot_grace);
        let mut wait = std::pin::pin!(self.sleep_launching(pause, past.launched, served == Served::Yes));
        let mut must_leave = std::pin::pin!(self.must_leave());
        tokio::select! {
            () = &mut wait => None,
            // A refresh that brought this version here has to fail; no sooner, or the group would launch the next.
            () = until(give_up_at) => Some(self.give_up(Some(listener), false).await),
            leave = &mut must_leave => Some(self.leave(leave, listener, past.launched).await),
        }
    }

    /// Sleeps; an instance that is not in service yet meanwhile keeps its launch waiting, if it is to.
    async fn sleep_launching(&self, pause: Duration, launched: bool, extend: bool) {
        let end = Instant::now() + pause;
        while extend && self.terms.in_group && !launched && Instant::now() < end {
            self.environment.heartbeat(Hook::Launch).await;
            sleep_until(end.min(Instant::now() + LAUNCH_HEARTBEAT)).await;
        }
        sleep_until(end).await;
    }

    /// GitHub has just said that the runner is not there. Is that sure?
    async fn is_gone(&self) -> bool {
        if self.registered.elapsed() < YOUNG {
            return false;
        }
        let mut absences = 1;
        while absences < ABSENCES {
            sleep(ABSENT_PAUSE).await;
            match self.environment.listed().await {
                Ok(Listed::Absent) => absences += 1,
                Ok(_) => return false,
                // Nothing to do about it before GitHub is there again.
                Err(_) => {}
            }
        }
        true
    }

    /// Serves until the listener ends or the instance has to leave.
    async fn serve(&self, listener: &mut O::Listener, past: &mut Past) -> Turn {
        let mut heard = listener.heard();
        let mut leave = std::pin::pin!(self.must_leave());
        let mut launch = std::pin::pin!(self.finish_launch(listener.heard()));
        let mut silence = std::pin::pin!(self.silence(listener.heard(), past.launched));
        let idles = Cell::new(true);
        let mut watch = std::pin::pin!(self.watch(&idles));
        let mut retire = self.terms.max_age.map(|age| self.born + age);
        let mut idle = None;
        let mut state = ListenerState::default();
        let mut launching = !past.launched;
        loop {
            tokio::select! {
                Ok(()) = heard.changed() => {
                    let now = *heard.borrow_and_update();
                    if now.online && !state.online {
                        self.environment.ready();
                    }
                    if now.jobs > state.jobs {
                        self.environment.took_job();
                    }
                    state = now;
                    idles.set(!now.busy);
                    idle = self.terms.idle_limit.filter(|_| now.online && idles.get()).map(|limit| Instant::now() + limit);
                }
                code = listener.exit() => return Turn::Exit(code),
                leave = &mut leave => return Turn::Leave(leave),
                () = &mut launch, if launching => {
                    (launching, past.launched, past.deprecated, past.outage) = (false, true, 0, None);
                }
                () = &mut silence, if !state.online => return Turn::Silent,
                () = &mut watch, if state.online && !is_busy(listener) => return Turn::Vanished,
                () = until(retire), if state.online => {
                    tracing::info!("the maximum age is reached");
                    if !self.terms.in_group {
                        return Turn::Leave(self.whenever("the maximum age is reached"));
                    }
                    // Once granted, the group says when to leave.
                    retire = (!self.environment.replace().await).then(|| Instant::now() + ASK_AGAIN);
                }
                () = until(idle), if state.online => {
                    if is_busy(listener) {
                        idle = self.terms.idle_limit.map(|limit| Instant::now() + limit);
                    } else if self.terms.in_group {
                        let granted = self.environment.scale_in().await;
                        idle = self.terms.idle_limit.filter(|_| !granted).map(|limit| Instant::now() + limit.max(ASK_AGAIN));
                    } else {
                        return Turn::Leave(self.whenever("idle"));
                    }
                }
            }
        }
    }

    /// Resolves when the listener has had no session for too long. It tries on by itself for as long as GitHub can't be
    /// reached, and so long it is left alone.
    async fn silence(&self, heard: watch::Receiver<ListenerState>, launched: bool) {
        self.sleep_launching(LISTEN_LIMIT, launched, false).await;
        let since = Instant::now();
        while since.elapsed() < OUTAGE_LIMIT {
            let answers = self.environment.listed().await.is_ok();
            if answers && (!heard.borrow().unreachable || since.elapsed() >= STUCK) {
                return;
            }
            tracing::warn!(minutes = since.elapsed().as_secs() / 60, "GitHub can't be reached: the listener tries on");
            self.sleep_launching(OUTAGE_PAUSES.1, launched, true).await;
        }
    }

    /// Resolves when GitHub knows an idle runner no more.
    async fn watch(&self, idles: &Cell<bool>) {
        let every = if self.terms.ephemeral { WATCH_EPHEMERAL } else { WATCH_EVERY };
        let mut pause = every;
        loop {
            sleep(pause).await;
            pause = every;
            match self.environment.listed().await {
                _ if !idles.get() => {}
                Ok(Listed::Absent) if self.is_gone().await && idles.get() => return,
                Ok(_) => {}
                Err(_) => pause = ABSENT_PAUSE * 2,
            }
        }
    }

    fn whenever(&self, why: &'static str) -> Leave {
        Leave { why, bound: self.terms.drain_timeout, grace: leave::JOB_GRACE, known: false }
    }
}

/// How long ago that was, in milliseconds.
fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A pause that doubles from the first to the second.
pub(crate) fn growing((first, longest): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
