//! The controller's ports on the model. A call that changes something may be the one at which the controller is killed, before
//! or after it has its effect.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_controller::ids::{
    ControllerId, InstanceId, LaunchToken, MessageId, RequestId, RunnerId, RunnerName, ScaleSetId, SessionId,
};
use kiln_controller::intents::{Intent, Intents};
use kiln_controller::ports::{
    Document, Etag, Jit, Launch, Launched, Machine, Machines, MachinesError, Polled, Queue, QueueError, Read, Removal,
    Runner, ScaleSetSpec, Session, Store, StoreError,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep};

use crate::github;
use crate::schedule::Fault;
use crate::world::{Inner, Without, World};

/// GitHub holds a poll for so long.
const HOLD: Duration = Duration::from_secs(50);

/// One controller's view of the world.
pub(crate) struct Port {
    pub(crate) world: Arc<World>,
    /// The first one is 0.
    pub(crate) who: usize,
}

impl Port {
    /// A call that changes something.
    async fn mutate<T>(&self, kind: &'static str, millis: u64, what: impl FnOnce(&mut Inner) -> T) -> T {
        let (before, after) = self.world.act(|world| {
            *world.calls.entry(kind).or_default() += 1;
            world.mutations += 1;
            let nth = world.mutations;
            let crash = world.plan.faults.iter().find_map(|fault| match fault {
                Fault::Crash { nth: at, after, .. } if *at == nth => Some((fault.clone(), *after)),
                _ => None,
            });
            // Only the first controller is killed.
            let crash = crash.filter(|_| self.who == 0);
            if let Some((fault, _)) = &crash {
                world.crashed = Some(fault.clone());
            }
            (crash.as_ref().is_some_and(|(_, after)| !after), crash.is_some_and(|(_, after)| after))
        });
        if before {
            self.world.crash.notify_one();
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(millis)).await;
        let answer = self.world.act(|world| {
            let answer = what(world);
            world.judge();
            answer
        });
        if after {
            self.world.crash.notify_one();
            std::future::pending::<()>().await;
        }
        answer
    }

    async fn reach_github(&self) -> Result<(), QueueError> {
        sleep(Duration::from_millis(80)).await;
        if self.world.lock().github_fails(self.who) {
            return Err(QueueError::Failed("503".to_owned()));
        }
        Ok(())
    }

    fn check(world: &mut Inner, session: &Session) -> Result<(), QueueError> {
        if world.github.set != Some(session.set.0) {
            return Err(QueueError::SetGone);
        }
        let over = world.session_is_over();
        let ours = world.github.session.as_mut().filter(|one| !over && one.id.to_string() == session.id.as_str());
        let Some(ours) = ours else { return Err(QueueError::SessionGone) };
        if ours.token_expired {
            return Err(QueueError::TokenExpired);
        }
        Ok(())
    }
}

impl Queue for Port {
    async fn ensure_set(&self, _: &ScaleSetSpec) -> Result<ScaleSetId, QueueError> {
        self.reach_github().await?;
        Ok(ScaleSetId(self.world.act(Inner::ensure_set)))
    }

    async fn open(&self, set: ScaleSetId, _: &str) -> Result<Session, QueueError> {
        self.reach_github().await?;
        self.world.act(|world| {
            if world.github.set != Some(set.0) {
                return Err(QueueError::SetGone);
            }
            if !world.session_is_over() {
                return Err(QueueError::Conflict);
            }
            world.github.next += 1;
            let id = u64::try_from(world.github.next).unwrap();
            world.github.session = Some(github::Session { id, token_expired: false, heard: world.now });
            world.note(|| format!("controller {} has session {id}", self.who));
            Ok(session(set, id, world))
        })
    }

    async fn refresh(&self, session: &Session) -> Result<Session, QueueError> {
        self.reach_github().await?;
        self.world.act(|world| match Self::check(world, session) {
            Ok(()) | Err(QueueError::TokenExpired) => {
                if let Some(ours) = &mut world.github.session {
                    ours.token_expired = false;
                }
                Ok(self::session(session.set, session.id.as_str().parse().unwrap(), world))
            }
            Err(error) => Err(error),
        })
    }

    async fn close(&self, session: &Session) -> Result<(), QueueError> {
        self.reach_github().await?;
        self.world.act(|world| {
            Self::check(world, session)?;
            world.github.session = None;
            Ok(())
        })
    }

    async fn poll(
        &self,
        session: &Session,
        last: Option<MessageId>,
        capacity: NonZeroU32,
    ) -> Result<Polled, QueueError> {
        self.reach_github().await?;
        let began = Instant::now();
        let fault = self.world.act(|world| {
            Self::check(world, session)?;
            world.github.polls += 1;
            let now = world.now;
            if let Some(ours) = &mut world.github.session {
                ours.heard = now;
            }
            world.announce(capacity.get());
            for (left, fault) in [
                (&mut world.github.empty_polls, Some(Ok(Polled::EmptyAnswer))),
                (&mut world.github.hanging_polls, None),
            ] {
                if *left > 0 {
                    *left -= 1;
                    return Ok(Some(fault));
                }
            }
            Ok::<_, QueueError>(None)
        })?;
        match fault {
            Some(Some(answer)) => return answer,
            Some(None) => std::future::pending::<()>().await,
            None => {}
        }
        loop {
            let news = self.world.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let message = {
                let mut world = self.world.lock();
                Self::check(&mut world, session)?;
                if world.github_fails(self.who) {
                    return Err(QueueError::Failed("503".to_owned()));
                }
                world.message(last.map_or(0, |last| last.0))
            };
            if let Some(message) = message {
                sleep(Duration::from_millis(80)).await;
                return Ok(Polled::Message(message));
            }
            tokio::select! {
                () = news => {}
                () = tokio::time::sleep_until(began + HOLD) => return Ok(Polled::Nothing),
            }
        }
    }

    async fn acknowledge(&self, session: &Session, message: MessageId) -> Result<(), QueueError> {
        self.reach_github().await?;
        self.world.act(|world| {
            Self::check(world, session)?;
            world.acknowledge(message.0);
            Ok(())
        })
    }

    async fn acquire(&self, session: &Session, jobs: &[RequestId]) -> Result<(), QueueError> {
        self.reach_github().await?;
        self.mutate("acquire", 80, |world| {
            Self::check(world, session)?;
            for job in jobs {
                world.give(usize::try_from(job.0 - 1).unwrap());
            }
            Ok(())
        })
        .await
    }

    async fn register(&self, set: ScaleSetId, name: &RunnerName) -> Result<Jit, QueueError> {
        self.reach_github().await?;
        let answer = self
            .mutate("register", 80, |world| {
                if world.github.set != Some(set.0) {
                    return Err(QueueError::SetGone);
                }
                let lost = world.nth("register", |fault| match *fault {
                    Fault::RegisterLost { nth } => Some(nth),
                    _ => None,
                });
                let id = world.register(name).ok_or(QueueError::NameTaken)?;
                if lost {
                    return Err(QueueError::Failed("the connection broke off".to_owned()));
                }
                Ok(id)
            })
            .await?;
        Ok(Jit { runner: RunnerId(answer), config: SecretString::from(answer.to_string()) })
    }

    async fn remove(&self, runner: RunnerId) -> Result<Removal, QueueError> {
        self.reach_github().await?;
        self.mutate("remove", 80, |world| {
            if world.without == Without::Asking {
                let name = world.github.runners.get(&runner.0).map(|one| one.name.clone());
                if let Some(machine) = name.and_then(|name| name.instance(&github::fleet())) {
                    world.terminate(&[machine]);
                }
                world.github.runners.remove(&runner.0);
                return Ok(Removal::Removed);
            }
            Ok(match world.remove_runner(runner.0) {
                None => Removal::Gone,
                Some(true) => Removal::Removed,
                Some(false) => Removal::Busy,
            })
        })
        .await
    }

    async fn runners(&self, set: ScaleSetId) -> Result<Vec<Runner>, QueueError> {
        self.reach_github().await?;
        self.world.act(|world| {
            if world.github.set != Some(set.0) {
                return Err(QueueError::SetGone);
            }
            Ok(world.list_runners())
        })
    }
}

fn session(set: ScaleSetId, id: u64, world: &Inner) -> Session {
    Session {
        id: SessionId::new(id.to_string()),
        set,
        queue_url: "https://queue.test".to_owned(),
        queue_token: SecretString::from("token"),
        statistics: Some(world.github.statistics()),
    }
}

impl Machines for Port {
    async fn launch(&self, launch: &Launch) -> Result<Launched, MachinesError> {
        let millis = self.world.act(|world| world.rng.u64(1000..5000));
        self.mutate("launch", millis, |world| {
            let throttled = world.nth("launch", |fault| match *fault {
                Fault::LaunchThrottled { nth } => Some(nth),
                _ => None,
            });
            if throttled {
                return Err(MachinesError::Throttled);
            }
            let launched = world.launch(launch);
            world.note(|| format!("controller {} launched {launched:?} of {}", self.who, launch.count));
            let lost = world.nth("launch", |fault| match *fault {
                Fault::LaunchLost { nth } => Some(nth),
                _ => None,
            });
            if lost {
                return Err(MachinesError::InDoubt("the connection broke off".to_owned()));
            }
            Ok(launched)
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Machine>, MachinesError> {
        sleep(Duration::from_millis(100)).await;
        Ok(self.world.act(Inner::list))
    }

    async fn terminate(&self, ids: &[InstanceId]) -> Result<(), MachinesError> {
        self.mutate("terminate", 200, |world| {
            world.note(|| format!("controller {} ends {ids:?}", self.who));
            world.terminate(ids);
        })
        .await;
        Ok(())
    }
}

impl Store for Port {
    async fn hand_over(&self, _: &str, instance: &InstanceId, config: &SecretString) -> Result<(), StoreError> {
        let runner: i64 = config.expose_secret().parse().unwrap();
        self.mutate("hand-over", 30, |world| {
            let fails = |world: &mut Inner, late: bool| {
                world.nth("hand-over", |fault| match *fault {
                    Fault::HandOverFails { nth, after } if after == late => Some(nth),
                    _ => None,
                })
            };
            if fails(world, false) {
                return Err(StoreError::Failed("503".to_owned()));
            }
            world.objects.insert(instance.clone(), runner);
            world.look_for_configuration(instance);
            if fails(world, true) {
                return Err(StoreError::Failed("the connection broke off".to_owned()));
            }
            Ok(())
        })
        .await
    }

    async fn take_back(&self, _: &str, instance: &InstanceId) -> Result<(), StoreError> {
        self.mutate("take-back", 30, |world| {
            world.objects.remove(instance);
        })
        .await;
        Ok(())
    }

    async fn read(&self, document: Document, known: Option<&Etag>) -> Result<Read, StoreError> {
        sleep(Duration::from_millis(30)).await;
        let world = self.world.lock();
        Ok(match &world.documents[document as usize] {
            None => Read::Missing,
            Some((etag, _)) if Some(etag) == known => Read::Unchanged,
            Some((etag, bytes)) => Read::Found(etag.clone(), bytes.clone()),
        })
    }

    async fn write(&self, document: Document, replaces: Option<&Etag>, bytes: Vec<u8>) -> Result<Etag, StoreError> {
        sleep(Duration::from_millis(30)).await;
        self.world.act(|world| {
            let there = world.documents[document as usize].as_ref().map(|(etag, _)| etag);
            if there != replaces {
                return Err(StoreError::Conflict);
            }
            world.writes += 1;
            let etag = Etag(world.writes.to_string());
            world.documents[document as usize] = Some((etag.clone(), bytes));
            Ok(etag)
        })
    }
}

/// A host's disk: what a process wrote is there for the next one.
#[derive(Clone)]
pub(crate) struct Disk {
    controller: ControllerId,
    intents: Arc<Mutex<Vec<Intent>>>,
    forgets: bool,
}

impl Disk {
    pub(crate) fn new(host: usize, forgets: bool) -> Self {
        Self { controller: ControllerId::new(format!("host-{host}")), intents: Arc::default(), forgets }
    }
}

impl Intents for Disk {
    fn controller(&self) -> &ControllerId {
        &self.controller
    }

    fn outstanding(&self) -> Vec<Intent> {
        if self.forgets { Vec::new() } else { self.intents.lock().unwrap().clone() }
    }

    fn begin(&mut self, intent: &Intent) -> std::io::Result<()> {
        self.intents.lock().unwrap().push(intent.clone());
        Ok(())
    }

    fn settle(&mut self, token: &LaunchToken, count: u32) -> std::io::Result<()> {
        for intent in self.intents.lock().unwrap().iter_mut().filter(|intent| intent.token == *token) {
            intent.count = count;
            intent.settled = true;
        }
        Ok(())
    }

    fn end(&mut self, token: &LaunchToken) -> std::io::Result<()> {
        self.intents.lock().unwrap().retain(|intent| intent.token != *token);
        Ok(())
    }
}
