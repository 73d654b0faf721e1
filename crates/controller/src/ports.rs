//! What the controller asks of the world. Each method is one call; a port neither repeats nor waits by itself.
//!
//! The futures are `Send`, so that pollers can be tasks. Implement them with `async fn`.

use std::future::Future;
use std::num::NonZeroU32;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::documents::LaunchSettings;
use crate::ids::{
    FleetName, InstanceId, JobId, LaunchToken, MessageId, RequestId, RunnerId, RunnerName, ScaleSetId, SessionId,
};

/// What GitHub counts for a scale set: the state now, not a difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Statistics {
    /// Jobs that fit and are nobody's.
    pub available: u32,
    /// Jobs that wait for a runner or run on one.
    pub assigned: u32,
    /// Of these, the running ones.
    pub running: u32,
    /// Runners that exist.
    pub registered: u32,
    /// Of these, the busy ones.
    pub busy: u32,
    /// And the idle ones.
    pub idle: u32,
}

/// A session on a scale set's queue. GitHub allows one at a time: whoever has it is the controller.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub set: ScaleSetId,
    /// Where to poll.
    pub queue_url: String,
    /// With which token.
    pub queue_token: SecretString,
    /// What GitHub counted when it was opened.
    pub statistics: Option<Statistics>,
}

/// What a poll brought.
#[derive(Debug, Clone)]
pub enum Polled {
    /// News.
    Message(Message),
    /// No news for the time that GitHub holds a poll.
    Nothing,
    /// A success without a body, which GitHub's queue has been seen to send.
    EmptyAnswer,
}

/// News of a scale set.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// The counts now.
    pub statistics: Option<Statistics>,
    /// At most fifty events. Never to be counted: what is more is cut off.
    pub jobs: Vec<JobEvent>,
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// It fits, and may be acquired. GitHub Enterprise Server asks so.
    Available(RequestId),
    /// It is this scale set's.
    Assigned(JobId),
    /// A runner took it.
    Started(JobId, RunnerName),
    /// It is over; without a runner where it never ran.
    Completed(JobId, Option<RunnerName>),
}

/// A runner that was just registered.
#[derive(Debug)]
pub struct Jit {
    /// Its id.
    pub runner: RunnerId,
    /// Its configuration: as good as the runner's credentials, and good for one job.
    pub config: SecretString,
}

/// A runner as GitHub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// Its id.
    pub id: RunnerId,
    /// Its name.
    pub name: RunnerName,
    /// Does GitHub hear from it?
    pub online: bool,
    /// Does it run a job?
    pub busy: bool,
}

/// What became of a request to remove a runner. This is the question that has no race: a runner that is removed gets no job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was idle, and is gone.
    Removed,
    /// It was gone already.
    Gone,
    /// It runs a job, and stays.
    Busy,
}

/// Why a call to GitHub failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// 409: another session is open.
    #[error("another controller has the session, or one that ended without closing it")]
    Conflict,
    /// The session does not exist any more.
    #[error("the session is gone")]
    SessionGone,
    /// The scale set does not exist any more.
    #[error("the scale set is gone")]
    SetGone,
    /// 401 of the queue: its token has expired.
    #[error("the queue's token has expired")]
    TokenExpired,
    /// A runner of that name exists.
    #[error("a runner of that name exists")]
    NameTaken,
    /// GitHub asks to wait.
    #[error("GitHub asks to wait {0:?}")]
    Limited(Duration),
    /// Anything else; the same call may work later.
    #[error("{0}")]
    Failed(String),
}

/// What a scale set is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleSetSpec {
    /// Its name, unique in its group.
    pub name: String,
    /// The runner group's id.
    pub group: i64,
    /// Its labels: a job fits if all it asks for are among them.
    pub labels: Vec<String>,
}

/// GitHub's scale set service.
pub trait Queue: Send + Sync + 'static {
    /// Finds the scale set, or creates it.
    fn ensure_set(&self, spec: &ScaleSetSpec) -> impl Future<Output = Result<ScaleSetId, QueueError>> + Send;
    /// Opens a session.
    fn open(&self, set: ScaleSetId, owner: &str) -> impl Future<Output = Result<Session, QueueError>> + Send;
    /// Renews a session's token.
    fn refresh(&self, session: &Session) -> impl Future<Output = Result<Session, QueueError>> + Send;
    /// Closes a session, so that the next controller need not wait for its end.
    fn close(&self, session: &Session) -> impl Future<Output = Result<(), QueueError>> + Send;
    /// Waits for news. `capacity` is how many jobs the scale set may hold altogether, running ones included. Never 0: a job
    /// that is queued meanwhile would wait for ever.
    fn poll(
        &self,
        session: &Session,
        last: Option<MessageId>,
        capacity: NonZeroU32,
    ) -> impl Future<Output = Result<Polled, QueueError>> + Send;
    /// Acknowledges a message; it is delivered again until then.
    fn acknowledge(&self, session: &Session, message: MessageId)
    -> impl Future<Output = Result<(), QueueError>> + Send;
    /// Acquires jobs, where GitHub asks for it.
    fn acquire(&self, session: &Session, jobs: &[RequestId]) -> impl Future<Output = Result<(), QueueError>> + Send;
    /// Registers a runner and gives its configuration.
    fn register(&self, set: ScaleSetId, name: &RunnerName) -> impl Future<Output = Result<Jit, QueueError>> + Send;
    /// Removes a runner, unless it is busy.
    fn remove(&self, runner: RunnerId) -> impl Future<Output = Result<Removal, QueueError>> + Send;
    /// The scale set's runners.
    fn runners(&self, set: ScaleSetId) -> impl Future<Output = Result<Vec<Runner>, QueueError>> + Send;
}

/// How an instance is paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Market {
    /// Cheap, and may be taken away.
    Spot,
    /// Neither.
    OnDemand,
}

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The same token twice is the same launch.
    pub token: LaunchToken,
    /// For which fleet.
    pub fleet: FleetName,
    /// How many instances.
    pub count: u32,
    /// How they are paid for.
    pub market: Market,
    /// Of which version of the launch template.
    pub version: u64,
    /// From what.
    pub from: LaunchSettings,
}

/// What came of a launch: less than what was asked for is usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launched {
    /// The instances.
    pub ids: Vec<InstanceId>,
    /// What each pool said that gave none.
    pub errors: Vec<PoolError>,
}

/// Why a pool gave no instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolError {
    /// Its type and zone.
    pub pool: String,
    /// What kind of reason it is.
    pub kind: Shortage,
    /// AWS's own words.
    pub message: String,
}

/// Kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// AWS has none of that type there now.
    Capacity,
    /// The account may have no more.
    Quota,
    /// The request is wrong, or not allowed: it fails until somebody changes something.
    Refused,
}

/// Why a call to EC2 failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachinesError {
    /// No answer: it may have happened.
    #[error("no answer from EC2: {0}")]
    InDoubt(String),
    /// Too many calls; it did not happen.
    #[error("EC2 throttles")]
    Throttled,
    /// It did not happen.
    #[error("{1}")]
    Refused(Shortage, String),
}

/// An instance as EC2 lists it, which can be a minute late and out of order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its id.
    pub id: InstanceId,
    /// Its fleet, from a tag.
    pub fleet: FleetName,
    /// Its launch, from a tag.
    pub token: LaunchToken,
    /// When it was launched.
    pub launched: Timestamp,
    /// The version of the launch template it came from.
    pub version: u64,
    /// Is it shutting down?
    pub ending: bool,
}

/// EC2.
pub trait Machines: Send + Sync + 'static {
    /// Launches at most as many instances as asked for.
    fn launch(&self, launch: &Launch) -> impl Future<Output = Result<Launched, MachinesError>> + Send;
    /// All instances of the organization's fleets that are not terminated.
    fn list(&self) -> impl Future<Output = Result<Vec<Machine>, MachinesError>> + Send;
    /// Ends instances.
    fn terminate(&self, ids: &[InstanceId]) -> impl Future<Output = Result<(), MachinesError>> + Send;
}

/// The documents between `deploy` and the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Document {
    /// What the fleets are to be; `deploy` writes it.
    Control,
    /// How they are; the controller writes it.
    Status,
}

/// A document's version: a write names the one it replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etag(pub String);

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// There is none.
    Missing,
    /// It is the version that the reader has.
    Unchanged,
    /// The document.
    Found(Etag, Vec<u8>),
}

/// Why a call to the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The document was changed by another since it was read.
    #[error("another has written it")]
    Conflict,
    /// Anything else; the same call may work later.
    #[error("{0}")]
    Failed(String),
}

/// Objects: each instance's hand-over, and the documents.
pub trait Store: Send + Sync + 'static {
    /// Lays down the configuration of an instance that has the role of this id, where it alone may read it.
    fn hand_over(
        &self,
        role: &str,
        instance: &InstanceId,
        config: &SecretString,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Deletes it; one that is not there is deleted already.
    fn take_back(&self, role: &str, instance: &InstanceId) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Reads a document, unless it is `known`.
    fn read(&self, document: Document, known: Option<&Etag>) -> impl Future<Output = Result<Read, StoreError>> + Send;
    /// Writes a document in place of the version `replaces`; without one, only where there is none.
    fn write(
        &self,
        document: Document,
        replaces: Option<&Etag>,
        bytes: Vec<u8>,
    ) -> impl Future<Output = Result<Etag, StoreError>> + Send;
}
