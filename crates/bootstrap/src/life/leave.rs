//! How a life ends: the runner leaves GitHub, and the group hears of it.

use std::convert::Infallible;

use tokio::time::timeout_at;
use tracing::Instrument as _;

use super::*;

/// An idle listener ends within a second of SIGINT; half a minute is for a machine under load.
pub(super) const IDLE_GRACE: Duration = Duration::from_secs(30);

/// A cancelled job has ten seconds for its step, and then its `always()` steps, hooks and uploads.
///
/// Source: `ProcessInvoker` and `JobDispatcher` of actions/runner.
pub(super) const JOB_GRACE: Duration = Duration::from_secs(120);

/// A spot instance's job is cancelled this long before EC2 takes the instance, and the listener killed five seconds before.
const SPOT_AHEAD: Duration = Duration::from_secs(45);
const SPOT_GRACE: Duration = Duration::from_secs(40);

/// Between two tries to delete an idle runner: from a second, so that a short job's end is noticed, to fifteen, which a
/// fleet of 500 that drains at once can ask for an hour within GitHub's limits only in part: 429 is waited out.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// After GitHub has let a runner go, a job that it had given to it already may still show up here.
const IN_FLIGHT: Duration = Duration::from_secs(10);

/// A runner that GitHub does not find is looked for this long: its listings lag.
const ABSENT_FOR: Duration = Duration::from_secs(60);

/// How long GitHub is asked to forget a runner whose listener is stopped. A minute is what a secondary limit asks for.
pub(super) const FORGET_LIMIT: Duration = Duration::from_secs(75);

/// How long a termination is completed again and again. It begins seconds after the metadata service tells of it.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(900);

/// How long a launch is given up again and again. Where nobody waits for it by then, the instance is in service already.
const ABANDON_PATIENCE: Duration = Duration::from_secs(120);

/// A group that has granted a replacement says within seconds that the instance is to leave.
const GRANTED: Duration = Duration::from_secs(600);

/// An instance that can't ask its group for so long switches itself off, which the group sees.
pub(super) const POWER_OFF_AFTER: Duration = Duration::from_secs(1800);

/// GitHub's answers that the runner is not there. One of them is never the truth.
#[derive(Debug, Default)]
struct Absence(Option<(Instant, u32)>);

impl Absence {
    /// Takes one in; is it the truth now?
    fn is_certain(&mut self) -> bool {
        let (since, times) = self.0.get_or_insert((Instant::now(), 0));
        *times += 1;
        *times >= ABSENCES && since.elapsed() >= ABSENT_FOR
    }
}

/// How far a drain has come.
#[derive(Debug)]
struct Drain {
    deadline: Instant,
    /// GitHub has let the runner go, and since when no job was seen after that.
    gone: bool,
    quiet: Option<Instant>,
    /// The listener has ended, with its job.
    exited: bool,
    /// It ended by itself, and was heard to report its job's end: only then is it sure that GitHub knows of it. It also ends with
    /// 0 when its token is revoked, or its job was taken back.
    reported: bool,
    /// When GitHub is asked next, and the pause after that.
    ask: Instant,
    pause: Duration,
    absence: Absence,
}

impl<O: Environment> Life<'_, O> {
    /// Resolves when the instance has to leave.
    pub(super) async fn must_leave(&self) -> Leave {
        let told = async {
            let mut advised = false;
            loop {
                match self.environment.notice().await {
                    Ok(Some(Notice::Terminate)) => {
                        return Leave { known: true, ..self.whenever("Auto Scaling terminates it") };
                    }
                    Ok(Some(Notice::Spot(left))) => {
                        let bound = left.saturating_sub(SPOT_AHEAD);
                        return Leave { why: "spot interruption", bound, grace: SPOT_GRACE, known: true };
                    }
                    // A replacement is asked for ahead of the interruption; the group then says when to leave.
                    Ok(Some(Notice::Rebalance)) if !advised => {
                        tracing::info!("EC2 recommends to rebalance: asking for a replacement");
                        if !self.terms.in_group {
                            return self.whenever("rebalance recommendation");
                        }
                        advised = self.environment.replace().await;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(error = %format!("{error:#}"), "the metadata service does not say whether this instance has to leave");
                    }
                }
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            why = self.environment.signalled() => self.whenever(why),
            leave = told => leave,
        }
    }

    pub(super) async fn leave(&self, leave: Leave, listener: &mut O::Listener, launched: bool) -> End {
        let going = async {
            tracing::info!(why = leave.why, bound_secs = leave.bound.as_secs(), "leaving");
            self.environment.stopping();
            self.drain(leave, listener).await;
            self.let_go(leave, launched).await;
        };
        let going = going.instrument(tracing::info_span!("leave", phase = "drain"));
        tokio::select! {
            () = going => End::Left,
            never = self.heartbeats() => match never {},
        }
    }

    /// Shows the group signs of life.
    async fn heartbeats(&self) -> Infallible {
        if !self.terms.in_group {
            return std::future::pending().await;
        }
        loop {
            sleep(self.terms.heartbeat / 2).await;
            self.environment.heartbeat(Hook::Termination).await;
        }
    }

    /// Waits until no job runs and the runner is gone from GitHub, then ends the listener.
    pub(super) async fn drain(&self, leave: Leave, listener: &mut O::Listener) {
        let begin = Instant::now();
        let mut grace = leave.grace;
        let mut drain = Drain {
            deadline: begin + leave.bound,
            gone: false,
            quiet: None,
            exited: false,
            reported: false,
            ask: begin,
            pause: PAUSES.0,
            absence: Absence::default(),
        };
        let mut waits = false;
        let done = loop {
            let busy = !drain.exited && is_busy(listener);
            if busy && !std::mem::replace(&mut waits, true) {
                tracing::info!(phase = "drain", "a job is running: waiting for its end");
            }
            waits = busy;
            let wake = if busy {
                // Whatever GitHub says meanwhile.
                (drain.quiet, drain.ask, drain.pause) = (None, Instant::now(), PAUSES.0);
                drain.deadline
            } else if drain.gone {
                let quiet = *drain.quiet.get_or_insert(Instant::now() + IN_FLIGHT);
                if drain.exited || Instant::now() >= quiet {
                    break true;
                }
                quiet
            } else {
                self.ask_to_go(&mut drain).await;
                drain.ask
            };
            if Instant::now() >= drain.deadline {
                break drain.gone && !busy;
            }
            let mut heard = listener.heard();
            tokio::select! {
                () = sleep_until(wake.min(drain.deadline).min(Instant::now() + LOOK_EVERY)) => {}
                Ok(()) = heard.changed(), if !drain.exited => {}
                // Its job has ended with it.
                code = listener.exit(), if !drain.exited => {
                    (drain.exited, drain.ask, drain.pause) = (true, Instant::now(), PAUSES.0);
                    let ListenerState { jobs, busy, .. } = *listener.heard().borrow();
                    drain.reported = code == Some(0) && jobs > 0 && !busy;
                }
            }
            // A spot instance that was draining already has two minutes left from now on.
            if let Ok(Some(Notice::Spot(left))) = self.environment.notice().await {
                drain.deadline = drain.deadline.min(Instant::now() + left.saturating_sub(SPOT_AHEAD));
                grace = SPOT_GRACE;
            }
        };
        let busy = !drain.exited && is_busy(listener);
        if !done {
            let message = if busy { "the limit is reached: a running job is lost" } else { "the limit is reached" };
            tracing::error!(phase = "drain", why = leave.why, busy, "{message}");
        }
        listener.stop(if busy { grace } else { IDLE_GRACE }).await;
        if !drain.gone {
            self.forget().await;
        }
        tracing::info!(gone = drain.gone, ms = ms(begin), "left");
    }

    /// Asks GitHub to let the idle runner go, if it is time to.
    async fn ask_to_go(&self, drain: &mut Drain) {
        if Instant::now() < drain.ask {
            return;
        }
        let Ok(answer) = timeout_at(drain.deadline, self.environment.delete_runner()).await else { return };
        match answer {
            Ok(Deleted::Gone) => drain.gone = true,
            // GitHub itself removes an ephemeral runner that has done its job.
            Ok(Deleted::Absent) if drain.reported && self.terms.ephemeral => drain.gone = true,
            Ok(Deleted::Absent) => drain.gone = drain.absence.is_certain(),
            Ok(Deleted::Busy) => {
                drain.absence = Absence::default();
                tracing::info!(phase = "drain", "GitHub takes the runner for busy; asking again");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(phase = "drain", error, "GitHub could not be asked; trying again");
            }
        }
        drain.ask = Instant::now() + drain.pause;
        drain.pause = (drain.pause * 3 / 2).min(PAUSES.1);
    }

    /// Deletes a runner whose listener is stopped: GitHub believes its job to run for a moment yet.
    pub(crate) async fn forget(&self) {
        let deadline = Instant::now() + FORGET_LIMIT;
        let mut absence = Absence::default();
        while Instant::now() < deadline {
            match timeout_at(deadline, self.environment.delete_runner()).await {
                Ok(Ok(Deleted::Gone)) => return,
                Ok(Ok(Deleted::Absent)) if absence.is_certain() => return,
                _ => sleep(PAUSES.0 * 2).await,
            }
        }
        tracing::error!(phase = "drain", "the runner may stay registered at GitHub, offline");
    }

    /// The runner is gone: the group is told, whoever wished it.
    pub(super) async fn let_go(&self, leave: Leave, launched: bool) {
        if !self.terms.in_group {
            return;
        }
        if !leave.known && !matches!(self.environment.notice().await, Ok(Some(Notice::Terminate))) {
            if self.environment.machine_stops().await {
                tracing::info!(phase = "drain", "the machine stops: the group sees it, or it serves again");
                return;
            }
            if !launched {
                self.abandon().await;
                return;
            }
            tracing::warn!(phase = "drain", why = leave.why, "the group does not know: asking for a replacement");
            if !self.ask_for_replacement(Instant::now()).await {
                return;
            }
        }
        self.say_goodbye().await;
    }

    /// Gives the launch up, unless the group ends the instance first.
    async fn abandon(&self) {
        let ended = async {
            while !matches!(self.environment.notice().await, Ok(Some(Notice::Terminate | Notice::Spot(_)))) {
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            accepted = self.settle(Verdict::Abandon, ABANDON_PATIENCE) => if accepted {
                return;
            },
            () = ended => return self.say_goodbye().await,
        }
        // Nobody waits: an earlier start may have completed the launch, and ended before it could note that.
        if self.ask_for_replacement(Instant::now()).await {
            self.say_goodbye().await;
        }
    }

    /// Completes the termination until the group has accepted it.
    async fn say_goodbye(&self) {
        let end = Instant::now() + GOODBYE_PATIENCE;
        while self.environment.complete_termination().await != Completion::Done {
            if Instant::now() >= end {
                tracing::warn!(
                    phase = "drain",
                    "the group never waited for this instance's end, or did not hear of it"
                );
                return;
            }
            sleep(HOOK_AGAIN).await;
        }
    }

    /// Asks until it was heard. At last the machine is switched off, and the group not asked: `false`.
    async fn ask_for_replacement(&self, since: Instant) -> bool {
        while !self.environment.replace().await && !self.environment.mark_unhealthy().await {
            if since.elapsed() >= POWER_OFF_AFTER {
                tracing::error!("the group can't be asked for a replacement: switching the machine off, which it sees");
                self.environment.power_off().await;
                return false;
            }
            sleep(ASK_AGAIN).await;
        }
        true
    }

    /// Completes the launch until the group has accepted it, or certainly waits no more. Was it accepted?
    async fn settle(&self, verdict: Verdict, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        loop {
            match self.environment.complete_launch(verdict).await {
                Completion::Done => return true,
                Completion::NoneActive if Instant::now() >= end => {
                    tracing::warn!(?verdict, "the group never waited for this instance's launch");
                    return false;
                }
                Completion::NoneActive => sleep(HOOK_AGAIN).await,
                Completion::Unheard => sleep(HOOK_AGAIN * 2).await,
            }
        }
    }

    /// Brings the instance into service once its listener has survived the first poll.
    pub(super) async fn finish_launch(&self, mut heard: watch::Receiver<ListenerState>) {
        let online = heard.wait_for(|heard| heard.online).await.is_ok();
        if !online {
            return std::future::pending().await;
        }
        tokio::select! {
            () = sleep(SETTLED) => {}
            // It has one already.
            Ok(_) = heard.wait_for(|heard| heard.jobs > 0) => {}
        }
        self.launch().await;
    }

    async fn launch(&self) {
        if self.terms.in_group {
            self.settle(Verdict::Continue, LAUNCH_PATIENCE).await;
        }
        self.environment.in_service();
    }

    /// Asks for a fresh instance, and leaves when the group says so.
    pub(super) async fn replaced(&self, why: &'static str, listener: &mut O::Listener, launched: bool) -> End {
        let leave = if self.terms.in_group {
            let asked = async {
                // One that leaves while its launch waits would be a launch that failed.
                if !launched {
                    self.launch().await;
                }
                self.insist().await
            };
            tokio::select! {
                leave = asked => leave,
                leave = self.must_leave() => leave,
            }
        } else {
            self.whenever(why)
        };
        self.leave(leave, listener, true).await
    }

    /// Asks to be replaced, until the group says that the instance is to leave.
    async fn insist(&self) -> Leave {
        let since = Instant::now();
        loop {
            self.ask_for_replacement(since).await;
            tokio::select! {
                () = sleep(GRANTED) => {}
                leave = self.must_leave() => return leave,
            }
        }
    }

    /// GitHub seems to know the runner no more. Should it have a job all the same, that is waited for.
    pub(super) async fn vanished(&self, listener: &mut O::Listener, launched: bool) -> End {
        tracing::error!("GitHub knows this runner no more");
        self.drain(self.whenever("GitHub knows this runner no more"), listener).await;
        self.give_up(None, launched).await
    }

    /// Gives the instance up, no earlier after its boot than BootConfig allows: a fault that every instance has would
    /// otherwise replace them as fast as they boot, which EC2 bills by the minute.
    pub(crate) async fn give_up(&self, listener: Option<&mut O::Listener>, launched: bool) -> End {
        if let Some(listener) = listener {
            listener.stop(IDLE_GRACE).await;
            self.forget().await;
        }
        if !self.terms.in_group {
            return End::Broken;
        }
        let pause = if launched { self.terms.failed_boot_grace * 3 } else { self.terms.failed_boot_grace };
        tokio::select! {
            () = sleep_until(self.born + pause) => {}
            leave = self.must_leave() => {
                self.let_go(leave, launched).await;
                return End::Broken;
            }
        }
        if launched {
            let leave = tokio::select! {
                leave = self.insist() => leave,
                leave = self.must_leave() => leave,
            };
            self.let_go(leave, true).await;
        } else {
            self.abandon().await;
        }
        End::Broken
    }
}
