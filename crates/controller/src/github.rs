//! The port on GitHub, by `kiln-github`'s client of the scale set service.

use std::num::NonZeroU32;

use kiln_github::scale_set::{
    JobEvent as WireEvent, ScaleSetClient, ScaleSetError, ScaleSetErrorKind as Kind, ScaleSetSession,
    ScaleSetStatistics,
};

use crate::ids::{JobId, MessageId, RequestId, RunnerId, RunnerName, ScaleSetId, SessionId};
use crate::ports::{
    Jit, JobEvent, Message, Polled, Queue, QueueError, Removal, Runner, ScaleSetSpec, Session, Statistics,
};

/// GitHub, by its scale set service.
#[derive(Debug, Clone)]
pub struct GithubQueue(pub ScaleSetClient);

impl From<ScaleSetError> for QueueError {
    fn from(error: ScaleSetError) -> Self {
        match error.kind {
            Kind::SessionConflict => Self::Conflict,
            Kind::SessionGone => Self::SessionGone,
            Kind::SetGone => Self::SetGone,
            Kind::QueueToken => Self::TokenExpired,
            Kind::RunnerExists => Self::NameTaken,
            Kind::Limited(time) => Self::Limited(time),
            Kind::RunnerGone | Kind::RunnerBusy | Kind::EmptyBody | Kind::Other => Self::Failed(error.to_string()),
        }
    }
}

/// Counts are never negative, whatever is sent.
fn counts(wire: ScaleSetStatistics) -> Statistics {
    let count = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
    Statistics {
        available: count(wire.total_available_jobs),
        assigned: count(wire.total_assigned_jobs),
        running: count(wire.total_running_jobs),
        registered: count(wire.total_registered_runners),
        busy: count(wire.total_busy_runners),
        idle: count(wire.total_idle_runners),
    }
}

fn session(set: ScaleSetId, wire: ScaleSetSession) -> Session {
    Session {
        id: SessionId::new(wire.session_id),
        set,
        queue_url: wire.message_queue_url,
        queue_token: wire.message_queue_access_token,
        statistics: wire.statistics.map(counts),
    }
}

fn event(wire: WireEvent) -> JobEvent {
    match wire {
        WireEvent::Available { runner_request_id } => JobEvent::Available(RequestId(runner_request_id)),
        WireEvent::Assigned { job_id } => JobEvent::Assigned(JobId::new(job_id)),
        WireEvent::Started { job_id, runner_name } => {
            JobEvent::Started(JobId::new(job_id), RunnerName::new(runner_name))
        }
        WireEvent::Completed { job_id, runner_name } => {
            let runner = (!runner_name.is_empty()).then(|| RunnerName::new(runner_name));
            JobEvent::Completed(JobId::new(job_id), runner)
        }
    }
}

impl Queue for GithubQueue {
    async fn ensure_set(&self, spec: &ScaleSetSpec) -> Result<ScaleSetId, QueueError> {
        if let Some(found) = self.0.find(spec.group, &spec.name).await.map_err(QueueError::from)? {
            return Ok(ScaleSetId(found.id));
        }
        let created = self.0.create(spec.group, &spec.name, &spec.labels).await.map_err(QueueError::from)?;
        let kept: Vec<&str> = created.labels.iter().map(|label| label.name.as_str()).collect();
        if spec.labels.iter().any(|label| !kept.contains(&label.as_str())) {
            tracing::warn!("GitHub kept the labels {kept:?} of {:?}: jobs that ask for the others wait", spec.labels);
        }
        Ok(ScaleSetId(created.id))
    }

    async fn open(&self, set: ScaleSetId, owner: &str) -> Result<Session, QueueError> {
        self.0.open(set.0, owner).await.map(|wire| session(set, wire)).map_err(QueueError::from)
    }

    async fn refresh(&self, old: &Session) -> Result<Session, QueueError> {
        let renewed = self.0.refresh(old.set.0, old.id.as_str()).await;
        renewed.map(|wire| session(old.set, wire)).map_err(QueueError::from)
    }

    async fn close(&self, session: &Session) -> Result<(), QueueError> {
        self.0.close(session.set.0, session.id.as_str()).await.map_err(QueueError::from)
    }

    async fn poll(
        &self,
        session: &Session,
        last: Option<MessageId>,
        capacity: NonZeroU32,
    ) -> Result<Polled, QueueError> {
        let last = last.map(|last| last.0);
        match self.0.poll(&session.queue_url, &session.queue_token, last, capacity.get()).await {
            Ok(None) => Ok(Polled::Nothing),
            Ok(Some(wire)) => Ok(Polled::Message(Message {
                id: MessageId(wire.id),
                statistics: wire.statistics.map(counts),
                jobs: wire.events.into_iter().map(event).collect(),
            })),
            Err(error) if error.kind == Kind::EmptyBody => Ok(Polled::EmptyAnswer),
            Err(error) => Err(error.into()),
        }
    }

    async fn acknowledge(&self, session: &Session, message: MessageId) -> Result<(), QueueError> {
        self.0.acknowledge(&session.queue_url, &session.queue_token, message.0).await.map_err(QueueError::from)
    }

    async fn acquire(&self, session: &Session, jobs: &[RequestId]) -> Result<(), QueueError> {
        let ids: Vec<i64> = jobs.iter().map(|job| job.0).collect();
        self.0.acquire(session.set.0, &session.queue_token, &ids).await.map(drop).map_err(QueueError::from)
    }

    async fn register(&self, set: ScaleSetId, name: &RunnerName) -> Result<Jit, QueueError> {
        let jit = self.0.register(set.0, name.as_str()).await.map_err(QueueError::from)?;
        Ok(Jit { runner: RunnerId(jit.runner.id), config: jit.encoded })
    }

    async fn remove(&self, runner: RunnerId) -> Result<Removal, QueueError> {
        match self.0.remove(runner.0).await {
            Ok(()) => Ok(Removal::Removed),
            Err(error) if error.kind == Kind::RunnerGone => Ok(Removal::Gone),
            Err(error) if error.kind == Kind::RunnerBusy => Ok(Removal::Busy),
            Err(error) => Err(error.into()),
        }
    }

    async fn runners(&self, set: ScaleSetId) -> Result<Vec<Runner>, QueueError> {
        let all = self.0.runners().await.map_err(QueueError::from)?;
        let ours = all.into_iter().filter(|runner| runner.runner_scale_set_id == set.0);
        Ok(ours
            .map(|runner| Runner {
                id: RunnerId(runner.id),
                online: runner.is_online(),
                busy: runner.busy,
                name: RunnerName::new(runner.name),
            })
            .collect())
    }
}
