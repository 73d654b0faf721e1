//! Listens to one scale set's queue, and does nothing else: what a poll brings goes to the reconciler at once.
//!
//! Whatever GitHub answers, there is a pause before the same call is made again, unless the answer was news.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::ids::{FleetName, MessageId, RequestId, RunnerName, ScaleSetId};
use crate::ports::{JobEvent, Message, Polled, Queue, QueueError, ScaleSetSpec, Session, Statistics};

/// GitHub holds a poll for fifty seconds; one that is not answered by then never is.
///
/// source: the official client's repository, actions/scaleset, which waits as long as GitHub holds the poll.
pub const POLL_LIMIT: Duration = Duration::from_secs(65);

/// Any other call of the poller.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// While another session is open. A fixed pause and no last try: GitHub has kept a dead controller's session for a minute, and
/// for hours in bad times.
const CONFLICT_PAUSE: Duration = Duration::from_secs(5);

/// After a failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// At most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A poll is cut short to announce another capacity, but not before this.
const SHORTEST_POLL: Duration = Duration::from_secs(5);

/// After so many failures of a session in a row another one is opened.
const MOST_FAILURES: u32 = 5;

/// What the reconciler is to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A session is open.
    Opened(ScaleSetId, Option<Statistics>),
    /// GitHub answered, and has nothing new.
    Quiet,
    /// GitHub answered.
    Jobs {
        /// The counts now.
        statistics: Option<Statistics>,
        /// How many jobs wait for runners at least, whatever the counts say.
        assigned: u32,
        /// Who took a job.
        started: Vec<RunnerName>,
        /// Whose job is over.
        completed: Vec<RunnerName>,
    },
    /// There is no session. Why.
    Closed(String),
}

impl News {
    /// Counts without events.
    fn counts(statistics: Option<Statistics>) -> Self {
        Self::Jobs { statistics, assigned: 0, started: Vec::new(), completed: Vec::new() }
    }
}

/// A poller of one fleet.
#[derive(Debug)]
pub struct Poller<Q> {
    /// GitHub.
    pub queue: Arc<Q>,
    /// The fleet.
    pub fleet: FleetName,
    /// Its scale set.
    pub spec: ScaleSetSpec,
    /// Who asks, as GitHub shows it.
    pub owner: String,
    /// Where news goes.
    pub news: mpsc::UnboundedSender<(FleetName, News)>,
    /// How many jobs GitHub may assign.
    pub capacity: watch::Receiver<NonZeroU32>,
    /// True once the controller is to end.
    pub stop: watch::Receiver<bool>,
}

/// Why a session's polls ended.
enum End {
    Stop,
    SessionGone,
    SetGone,
}

impl<Q: Queue> Poller<Q> {
    /// Listens until it is stopped, and closes its session then.
    pub async fn run(mut self) {
        let mut pause = Pause::default();
        let mut set = None;
        // Kept from one session to the next, so that nothing is delivered twice.
        let mut last = None;
        while !*self.stop.borrow() {
            match self.session(&mut set).await {
                Ok(session) => {
                    pause = Pause::default();
                    let end = self.listen(session, &mut last).await;
                    if matches!(end, End::SetGone) {
                        (set, last) = (None, None);
                    }
                }
                Err(error) => {
                    if error == QueueError::SetGone {
                        (set, last) = (None, None);
                    }
                    self.say(News::Closed(error.to_string()));
                    let time = match error {
                        QueueError::Conflict => CONFLICT_PAUSE,
                        error => pause.after(&error),
                    };
                    self.wait(time).await;
                }
            }
        }
    }

    async fn session(&mut self, set: &mut Option<ScaleSetId>) -> Result<Session, QueueError> {
        let id = match *set {
            Some(id) => id,
            None => *set.insert(limited(self.queue.ensure_set(&self.spec)).await?),
        };
        let session = limited(self.queue.open(id, &self.owner)).await?;
        self.say(News::Opened(id, session.statistics));
        Ok(session)
    }

    async fn listen(&mut self, mut session: Session, last: &mut Option<MessageId>) -> End {
        let mut pause = Pause::default();
        while !*self.stop.borrow() {
            let began = Instant::now();
            let capacity = *self.capacity.borrow_and_update();
            let polled = tokio::select! {
                polled = timeout(POLL_LIMIT, self.queue.poll(&session, *last, capacity)) => {
                    polled.unwrap_or_else(|_| Err(QueueError::Failed("no answer to a poll in time".to_owned())))
                }
                () = changed(&mut self.capacity, began) => continue,
                _ = self.stop.wait_for(|stop| *stop) => break,
            };
            let failure = match polled {
                Ok(Polled::Message(message)) => {
                    let id = message.id;
                    let repeated = last.is_some_and(|last| id <= last);
                    if !self.handle(&session, message).await {
                        // It comes again.
                        self.wait(pause.next()).await;
                        continue;
                    }
                    *last = Some(id);
                    pause = Pause::default();
                    if repeated {
                        self.wait(FIRST_PAUSE).await;
                    }
                    continue;
                }
                Ok(quiet) => {
                    self.say(News::Quiet);
                    if matches!(quiet, Polled::EmptyAnswer) || began.elapsed() < FIRST_PAUSE {
                        self.wait(FIRST_PAUSE).await;
                    }
                    pause = Pause::default();
                    continue;
                }
                Err(QueueError::TokenExpired) => match limited(self.queue.refresh(&session)).await {
                    Ok(renewed) => {
                        self.say(News::counts(renewed.statistics));
                        session = renewed;
                        // A token that is refused as soon as it is there must not become a loop.
                        self.wait(pause.next()).await;
                        continue;
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            tracing::info!(fleet = %self.fleet, "a poll failed: {failure}");
            let end = match failure {
                QueueError::SetGone => Some(End::SetGone),
                QueueError::SessionGone | QueueError::Conflict => Some(End::SessionGone),
                _ if pause.failures >= MOST_FAILURES => Some(End::SessionGone),
                _ => None,
            };
            let time = pause.after(&failure);
            if let Some(end) = end {
                self.say(News::Closed(failure.to_string()));
                if pause.failures > MOST_FAILURES {
                    // It may not be gone, and would keep the next one from being opened.
                    self.close(&session).await;
                }
                self.wait(time).await;
                return end;
            }
            self.wait(time).await;
        }
        self.close(&session).await;
        End::Stop
    }

    /// The counts go to the reconciler first; acknowledging costs a round trip that a launch need not wait for.
    async fn handle(&self, session: &Session, message: Message) -> bool {
        let id = message.id;
        let available = available(&message);
        self.say(jobs(message));
        if !available.is_empty()
            && let Err(error) = limited(self.queue.acquire(session, &available)).await
        {
            tracing::warn!(fleet = %self.fleet, "jobs could not be acquired: {error}");
            return false;
        }
        if let Err(error) = limited(self.queue.acknowledge(session, id)).await {
            tracing::info!(fleet = %self.fleet, "a message could not be acknowledged: {error}");
        }
        true
    }

    async fn close(&self, session: &Session) {
        if let Err(error) = limited(self.queue.close(session)).await {
            tracing::info!(fleet = %self.fleet, "the session was not closed: {error}");
        }
    }

    fn say(&self, news: News) {
        // Without a reconciler there is nobody to listen for.
        let _ = self.news.send((self.fleet.clone(), news));
    }

    async fn wait(&mut self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            _ = self.stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// Ends when another capacity is to be announced.
async fn changed(capacity: &mut watch::Receiver<NonZeroU32>, began: Instant) {
    if capacity.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep_until(began + SHORTEST_POLL).await;
}

async fn limited<T>(call: impl Future<Output = Result<T, QueueError>>) -> Result<T, QueueError> {
    timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(QueueError::Failed("no answer in time".to_owned())))
}

fn available(message: &Message) -> Vec<RequestId> {
    let ids = message.jobs.iter().filter_map(|job| match job {
        JobEvent::Available(id) => Some(*id),
        _ => None,
    });
    ids.collect()
}

fn jobs(message: Message) -> News {
    let (mut waiting, mut started, mut completed) = (BTreeSet::new(), Vec::new(), Vec::new());
    for job in message.jobs {
        match job {
            JobEvent::Available(_) => {}
            JobEvent::Assigned(job) => drop(waiting.insert(job)),
            JobEvent::Started(_, runner) => started.push(runner),
            JobEvent::Completed(job, runner) => {
                waiting.remove(&job);
                completed.extend(runner);
            }
        }
    }
    let assigned = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
    News::Jobs { statistics: message.statistics, assigned, started, completed }
}

/// A pause that doubles.
#[derive(Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn next(&mut self) -> Duration {
        let time = FIRST_PAUSE.saturating_mul(1 << self.failures.min(5)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        time
    }

    fn after(&mut self, error: &QueueError) -> Duration {
        let time = self.next();
        match error {
            QueueError::Limited(asked) => time.max(*asked),
            _ => time,
        }
    }
}
