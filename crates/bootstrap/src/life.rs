//! A runner's life after registration: it serves, and leaves without losing a job.
//!
//! Deleting the runner at GitHub is the race-free question whether it is idle: GitHub refuses while a job runs, and gives
//! a deleted runner no other. Everything outside is behind [`Outside`], so that a test can live through thousands of lives.

use std::time::Duration;

use kiln_github::Deleted;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::Instrument as _;

/// Between two looks at the metadata service: Auto Scaling asks for one every few seconds at the least, and a spot notice
/// comes two minutes ahead.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Between two questions to the group, where there is no metadata service: 500 instances then ask eight times a second,
/// while a job runs or is waited for.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(60);

/// From the listener's start to its session. Connecting takes seconds; a session conflict GitHub clears in a minute or two.
const LISTEN_BOUND: Duration = Duration::from_secs(240);

/// A listener that ends this often without having served is broken: the instance is replaced.
const MOST_STARTS: u32 = 5;

/// One that served this long is not counted as broken.
const SERVED: Duration = Duration::from_secs(600);

/// Between two tries to delete a busy runner: from a second, so that a short job's end is noticed, to fifteen, which a
/// fleet of 500 that drains at once can ask for an hour within GitHub's limits only in part: 429 is waited out.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// EC2 takes a spot instance two minutes after its notice; ten seconds are left for the last words.
///
/// Source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>
const SPOT_BOUND: Duration = Duration::from_secs(110);

/// How long GitHub is asked to forget a runner whose listener is stopped. A minute is what a secondary limit asks for.
const FORGET_BOUND: Duration = Duration::from_secs(75);

/// Between two looks whether GitHub still knows the runner: 500 runners ask a fifth of an installation's hourly limit.
const WATCH_EVERY: Duration = Duration::from_secs(1800);

/// A request to the group that was refused, or not heard, is made again so much later.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Why an instance has to go, as its metadata service tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Auto Scaling terminates it and waits at the hook.
    Terminate,
    /// EC2 takes a spot instance back in two minutes.
    Spot,
    /// EC2 sees a spot instance at risk; nothing ends yet.
    Rebalance,
}

/// What a person does about a runner version that GitHub serves no more.
pub(crate) const PIN_A_NEWER: &str = "pin a newer runner in kiln.toml, then `cargo xtask ami` and `cargo xtask deploy`";

/// What a listener has said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Heard {
    /// It has a session.
    pub(crate) online: bool,
    /// It runs a job.
    pub(crate) busy: bool,
}

/// How a lifecycle action ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Continue,
    Abandon,
}

/// The listener's process.
pub(crate) trait Process {
    /// What it says, as it says it.
    fn heard(&self) -> watch::Receiver<Heard>;
    /// Its exit code, when it has ended; `None` for a signal. May be asked again.
    async fn exit(&mut self) -> Option<i32>;
    /// Ends it and what its job left running. A running job is cancelled.
    async fn stop(&mut self);
}

/// What a life is lived among.
pub(crate) trait Outside {
    /// The listener.
    type Listener: Process;
    /// Starts it.
    fn start(&self) -> anyhow::Result<Self::Listener>;
    /// Deletes the runner at GitHub.
    async fn delete_runner(&self) -> anyhow::Result<Deleted>;
    /// Does GitHub know the runner?
    async fn is_registered(&self) -> anyhow::Result<bool>;
    /// One look at the metadata service, or a question to the group where there is none.
    async fn notice(&self) -> anyhow::Result<Option<Notice>>;
    /// Resolves when the process is asked to end, with the signal's name.
    async fn signalled(&self) -> &'static str;
    /// Lets a new instance into service, or gives it up. Was it heard?
    async fn complete_launch(&self, verdict: Verdict) -> bool;
    /// Lets a leaving instance go.
    async fn complete_termination(&self);
    /// Tells the group that the leaving instance is still busy.
    async fn heartbeat(&self);
    /// Asks for another instance in this one's place. Was it granted?
    async fn replace(&self) -> bool;
    /// Marks the instance as one whose runner GitHub serves no more, as well as it can.
    async fn mark_deprecated(&self);
    /// Asks the group to do without this instance. Was it granted? Not at the group's least size.
    async fn scale_in(&self) -> bool;
    /// The runner is online, for whoever waits for the service.
    fn ready(&self);
    /// The instance is leaving.
    fn stopping(&self);
}

/// What a life is bound by, from BootConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Between two looks whether it has to leave. A few of them are in a heartbeat's timeout.
    pub(crate) look_every: Duration,
    /// A spot notice can be heard.
    pub(crate) hears_spot: bool,
    /// One job only.
    pub(crate) ephemeral: bool,
    /// It belongs to a group, which is asked for a replacement and told of the end.
    pub(crate) in_group: bool,
    /// The termination hook's heartbeat timeout.
    pub(crate) heartbeat: Duration,
    /// How long a running job may delay the end.
    pub(crate) drain_limit: Duration,
    /// An instance that can't serve asks to be replaced no earlier after its boot.
    pub(crate) replace_pause: Duration,
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
    /// GitHub serves this version no more: starting it again would burn registrations.
    Deprecated,
}

/// Acts on the listener's exit code, which `run.sh` would hide.
///
/// Source: `Constants.Runner.ReturnCode` of actions/runner.
pub(crate) fn ended(code: Option<i32>, ephemeral: bool) -> Ended {
    match code {
        Some(0) if ephemeral => Ended::JobDone,
        Some(0) => Ended::Again("ended without being asked to"),
        Some(1) => Ended::Again("terminated, or its registration is gone"),
        Some(2) => Ended::Again("retryable error"),
        Some(3 | 4) => Ended::Again("wanted to update itself, which the image does for it"),
        Some(5) => Ended::Again("another session of this runner exists"),
        Some(6) => Ended::Again("its configuration was refreshed"),
        Some(7) => Ended::Deprecated,
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
}

pub(crate) struct Life<'a, O> {
    pub(crate) outside: &'a O,
    pub(crate) terms: &'a Terms,
    /// When the process began.
    pub(crate) born: Instant,
}

impl<O: Outside> Life<'_, O> {
    /// From the first start of the listener to the end.
    pub(crate) async fn live(&self) -> End {
        let mut starts = 0;
        let mut launched = false;
        loop {
            let begin = Instant::now();
            let mut listener = match self.outside.start() {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(error = %format!("{error:#}"), "the listener can't be started");
                    return self.give_up(None, launched).await;
                }
            };
            let code = match self.serve(&mut listener, &mut launched).await {
                Turn::Leave(leave) => return self.leave(leave, &mut listener).await,
                Turn::Vanished => {
                    tracing::error!("GitHub knows this runner no more");
                    return self.give_up(Some(&mut listener), launched).await;
                }
                Turn::Silent => {
                    tracing::error!("no session within {} s", LISTEN_BOUND.as_secs());
                    listener.stop().await;
                    Some(2)
                }
                Turn::Exit(code) => code,
            };
            starts = if begin.elapsed() >= SERVED { 1 } else { starts + 1 };
            match ended(code, self.terms.ephemeral) {
                Ended::JobDone => {
                    tracing::info!(ms = ms(begin), "the one job is done");
                    return self.replaced("the one job is done", &mut listener).await;
                }
                Ended::Deprecated => return self.retired(&mut listener, launched).await,
                // A just-in-time configuration is good for one start once it has had a session.
                Ended::Again(why) if starts >= MOST_STARTS || self.terms.ephemeral && launched => {
                    tracing::error!(why, starts, ms = ms(begin), "the listener does not stay up");
                    return self.give_up(Some(&mut listener), launched).await;
                }
                Ended::Again(why) => {
                    let pause = Duration::from_secs(1 << starts);
                    tracing::warn!(why, starts, pause_secs = pause.as_secs(), ms = ms(begin), "the listener ended");
                    if code == Some(1) && matches!(self.outside.is_registered().await, Ok(false)) {
                        tracing::error!("GitHub knows this runner no more");
                        return self.give_up(Some(&mut listener), launched).await;
                    }
                    tokio::select! {
                        () = sleep(pause) => {}
                        leave = self.must_leave() => return self.leave(leave, &mut listener).await,
                    }
                }
            }
        }
    }

    /// Serves until the listener ends or the instance has to leave.
    async fn serve(&self, listener: &mut O::Listener, launched: &mut bool) -> Turn {
        let mut heard = listener.heard();
        let mut leave = std::pin::pin!(self.must_leave());
        let silent = Instant::now() + LISTEN_BOUND;
        let mut watch = Instant::now() + WATCH_EVERY;
        let mut retire = self.terms.max_age.map(|age| self.born + age);
        let mut idle = None;
        let mut complete = None;
        let mut state = Heard::default();
        loop {
            tokio::select! {
                Ok(()) = heard.changed() => {
                    let now = *heard.borrow_and_update();
                    if now.online && !std::mem::replace(launched, true) {
                        self.outside.ready();
                        complete = Some(Instant::now());
                    }
                    idle = self.terms.idle_limit.filter(|_| now.online && !now.busy).map(|limit| Instant::now() + limit);
                    state = now;
                }
                code = listener.exit() => return Turn::Exit(code),
                leave = &mut leave => return Turn::Leave(leave),
                // Auto Scaling terminates an instance whose launch is not completed, with its job.
                () = until(complete) => {
                    let heard = self.outside.complete_launch(Verdict::Continue).await;
                    complete = (!heard).then(|| Instant::now() + ASK_AGAIN);
                }
                () = sleep_until(silent), if !state.online => return Turn::Silent,
                () = sleep_until(watch), if state.online && !state.busy => {
                    watch = Instant::now() + WATCH_EVERY;
                    let known = self.outside.is_registered().await;
                    if matches!(known, Ok(false)) && !heard.borrow().busy {
                        return Turn::Vanished;
                    }
                }
                () = until(retire), if state.online => {
                    tracing::info!("the maximum age is reached");
                    if !self.terms.in_group {
                        return Turn::Leave(self.whenever("the maximum age is reached"));
                    }
                    // Once granted, the group says when to leave.
                    retire = (!self.outside.replace().await).then(|| Instant::now() + ASK_AGAIN);
                }
                () = until(idle), if state.online => {
                    if !self.terms.in_group {
                        return Turn::Leave(self.whenever("idle"));
                    }
                    let granted = self.outside.scale_in().await;
                    idle = self.terms.idle_limit.filter(|_| !granted).map(|limit| Instant::now() + limit.max(ASK_AGAIN));
                }
            }
        }
    }

    fn whenever(&self, why: &'static str) -> Leave {
        Leave { why, bound: self.terms.drain_limit }
    }

    /// Resolves when the instance has to leave.
    async fn must_leave(&self) -> Leave {
        let told = async {
            let mut advised = false;
            loop {
                match self.outside.notice().await {
                    Ok(Some(Notice::Terminate)) => return self.whenever("Auto Scaling terminates it"),
                    Ok(Some(Notice::Spot)) => return Leave { why: "spot interruption", bound: SPOT_BOUND },
                    // A replacement is asked for ahead of the interruption; the group then says when to leave.
                    Ok(Some(Notice::Rebalance)) if !advised => {
                        tracing::info!("EC2 recommends to rebalance: asking for a replacement");
                        if !self.terms.in_group {
                            return self.whenever("rebalance recommendation");
                        }
                        advised = self.outside.replace().await;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(error = %format!("{error:#}"), "it can't be told whether this instance has to leave");
                    }
                }
                sleep(self.terms.look_every).await;
            }
        };
        tokio::select! {
            why = self.outside.signalled() => self.whenever(why),
            leave = told => leave,
        }
    }

    async fn leave(&self, leave: Leave, listener: &mut O::Listener) -> End {
        let going = async {
            tracing::info!(why = leave.why, bound_secs = leave.bound.as_secs(), "leaving");
            self.outside.stopping();
            self.drain(leave, listener).await;
            self.outside.complete_termination().await;
        };
        going.instrument(tracing::info_span!("leave", phase = "drain")).await;
        End::Left
    }

    /// Waits until the runner is idle and gone from GitHub, then ends the listener.
    async fn drain(&self, leave: Leave, listener: &mut O::Listener) {
        let begin = Instant::now();
        let mut deadline = begin + leave.bound;
        let half = self.terms.heartbeat / 2;
        let mut next_heartbeat = Instant::now() + half;
        let mut pause = PAUSES.0;
        let mut exited = false;
        let gone = loop {
            let answer = timeout_at(deadline, self.outside.delete_runner()).await;
            // A person can force a busy runner's deletion; its job goes on.
            let busy = listener.heard().borrow().busy && !exited;
            match answer {
                Ok(Ok(Deleted::Gone)) => break true,
                Ok(Ok(Deleted::Absent)) if !busy => break true,
                Ok(Ok(Deleted::Busy | Deleted::Absent)) => {
                    tracing::info!(phase = "drain", "a job is running: waiting for its end");
                }
                Ok(Err(error)) => {
                    let error = format!("{error:#}");
                    tracing::warn!(phase = "drain", error, "GitHub could not be asked; trying again");
                }
                Err(_) => break false,
            }
            let until = (Instant::now() + pause).min(deadline);
            while Instant::now() < until {
                if self.terms.in_group && Instant::now() >= next_heartbeat {
                    next_heartbeat = Instant::now() + half;
                    self.outside.heartbeat().await;
                }
                let wake = if self.terms.in_group { until.min(next_heartbeat) } else { until };
                tokio::select! {
                    () = sleep_until(wake) => {}
                    // Its job has ended with it.
                    _ = listener.exit(), if !exited => {
                        exited = true;
                        pause = PAUSES.0;
                        break;
                    }
                }
            }
            if Instant::now() >= deadline {
                break false;
            }
            // A spot instance that was draining already has two minutes left from now on.
            if self.terms.hears_spot && matches!(self.outside.notice().await, Ok(Some(Notice::Spot))) {
                deadline = deadline.min(Instant::now() + SPOT_BOUND);
            }
            pause = (pause * 3 / 2).min(PAUSES.1);
        };
        if !gone {
            let busy = listener.heard().borrow().busy && !exited;
            tracing::error!(phase = "drain", why = leave.why, busy, "the bound is reached: a running job is lost");
        }
        listener.stop().await;
        if !gone {
            self.forget().await;
        }
        tracing::info!(gone, ms = ms(begin), "left");
    }

    /// Deletes a runner whose listener is stopped: GitHub believes its job to run for a moment yet.
    async fn forget(&self) {
        let deadline = Instant::now() + FORGET_BOUND;
        while let Ok(answer) = timeout_at(deadline, self.outside.delete_runner()).await {
            if matches!(answer, Ok(Deleted::Gone | Deleted::Absent)) {
                return;
            }
            sleep(PAUSES.0 * 2).await;
        }
        tracing::error!(phase = "drain", "the runner stays registered at GitHub, offline");
    }

    /// Asks for a fresh instance, and leaves when the group says so.
    async fn replaced(&self, why: &'static str, listener: &mut O::Listener) -> End {
        let leave = if self.terms.in_group {
            tokio::select! {
                () = self.insist() => self.must_leave().await,
                leave = self.must_leave() => leave,
            }
        } else {
            self.whenever(why)
        };
        self.leave(leave, listener).await
    }

    /// Asks to be replaced until it is granted. Auto Scaling's own limits pass.
    async fn insist(&self) {
        while !self.outside.replace().await {
            sleep(ASK_AGAIN).await;
        }
    }

    /// Stays, registered no more and idle: a fresh instance of the same image would fare no better, and would replace
    /// itself for ever.
    async fn retired(&self, listener: &mut O::Listener, launched: bool) -> End {
        tracing::error!(hint = PIN_A_NEWER, "GitHub serves this runner version no more");
        tokio::join!(self.forget(), self.outside.mark_deprecated());
        let mut leave = std::pin::pin!(self.must_leave());
        if self.terms.in_group && !launched {
            // A refresh that brought this version here has to fail; no sooner, or the group would launch the next.
            tokio::select! {
                () = sleep_until(self.born + self.terms.replace_pause) => {
                    self.outside.complete_launch(Verdict::Abandon).await;
                }
                leave = &mut leave => return self.leave(leave, listener).await,
            }
        }
        let leave = leave.await;
        self.leave(leave, listener).await
    }

    /// Gives the instance up, no earlier after its boot than BootConfig allows: a fault that every instance has would
    /// otherwise replace them as fast as they boot, which EC2 bills by the minute.
    async fn give_up(&self, listener: Option<&mut O::Listener>, launched: bool) -> End {
        if let Some(listener) = listener {
            listener.stop().await;
        }
        self.forget().await;
        if self.terms.in_group {
            let pause = sleep_until(self.born + self.terms.replace_pause);
            tokio::select! {
                () = pause => {}
                _ = self.must_leave() => {
                    self.outside.complete_termination().await;
                    return End::Broken;
                }
            }
            if !launched {
                self.outside.complete_launch(Verdict::Abandon).await;
                return End::Broken;
            }
            tokio::select! {
                () = self.insist() => { self.must_leave().await; }
                _ = self.must_leave() => {}
            }
            self.outside.complete_termination().await;
        }
        End::Broken
    }
}

/// How long ago that was, in milliseconds.
fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
