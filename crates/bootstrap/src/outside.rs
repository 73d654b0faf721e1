//! The real outside of a life: GitHub, the group, the metadata service, the listener, systemd.

use kiln_github::{Deleted, OrgClient};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, OnceCell};

use crate::aws::Group;
use crate::identify::Metadata;
use crate::life::{Notice, Outside, Verdict};
use crate::machine::Machine;
use crate::register::Registered;
use crate::serve::Listener;
use crate::switch::Switch;

pub(crate) struct Real<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) metadata: &'a Metadata,
    pub(crate) group: Option<&'a Group>,
    /// Where the metadata service is off.
    pub(crate) switch: Option<&'a Switch>,
    pub(crate) github: OrgClient,
    pub(crate) registered: Registered,
    pub(crate) signals: &'a Signals,
}

/// The signals that end the process, caught from its start. Who was asked once stays asked.
#[derive(Debug)]
pub(crate) struct Signals {
    caught: Mutex<[(Signal, &'static str); 2]>,
    asked: OnceCell<&'static str>,
}

impl Signals {
    /// # Errors
    /// The system refuses.
    pub(crate) fn catch() -> std::io::Result<Self> {
        let terminate = (signal(SignalKind::terminate())?, "SIGTERM");
        let interrupt = (signal(SignalKind::interrupt())?, "SIGINT");
        Ok(Self { caught: Mutex::new([terminate, interrupt]), asked: OnceCell::new() })
    }

    /// Resolves with the first one's name.
    pub(crate) async fn asked(&self) -> &'static str {
        let next = async {
            let mut caught = self.caught.lock().await;
            let [(terminate, first), (interrupt, second)] = &mut *caught;
            tokio::select! {
                _ = terminate.recv() => *first,
                _ = interrupt.recv() => *second,
            }
        };
        self.asked.get_or_init(|| next).await
    }
}

impl Real<'_> {
    /// The runner's id; a persistent runner's is asked for by its name.
    async fn id(&self) -> anyhow::Result<Option<u64>> {
        if let Some(id) = self.registered.id {
            return Ok(Some(id));
        }
        Ok(self.github.runners(Some(&self.registered.name)).await?.first().map(|runner| runner.id))
    }
}

impl Outside for Real<'_> {
    type Listener = Listener;

    fn start(&self) -> anyhow::Result<Listener> {
        Listener::start(self.machine, &self.registered)
    }

    async fn delete_runner(&self) -> anyhow::Result<Deleted> {
        match self.id().await? {
            Some(id) => Ok(self.github.delete_runner(id).await?),
            None => Ok(Deleted::Absent),
        }
    }

    async fn is_registered(&self) -> anyhow::Result<bool> {
        match self.registered.id {
            Some(id) => Ok(self.github.runner(id).await?.is_some()),
            None => Ok(self.id().await?.is_some()),
        }
    }

    async fn notice(&self) -> anyhow::Result<Option<Notice>> {
        match (self.group, self.switch) {
            // A signal is all that asks an instance of no group to leave.
            (None, _) => Ok(None),
            (Some(_), None) => self.metadata.notice().await,
            (Some(group), Some(_)) => Ok(group.is_terminating().await?.then_some(Notice::Terminate)),
        }
    }

    async fn signalled(&self) -> &'static str {
        self.signals.asked().await
    }

    async fn complete_launch(&self, verdict: Verdict) -> bool {
        match self.group {
            Some(group) => group.complete_launch(verdict).await,
            None => true,
        }
    }

    async fn complete_termination(&self) {
        if let Some(group) = self.group {
            group.complete_termination().await;
        }
    }

    async fn heartbeat(&self) {
        if let Some(group) = self.group {
            group.heartbeat().await;
        }
    }

    async fn replace(&self) -> bool {
        let Some(group) = self.group else { return false };
        if group.terminate(false).await {
            return true;
        }
        if self.switch.is_some_and(Switch::is_lost) {
            tracing::error!("the credentials have expired, the group can't be asked: powering off for it to notice");
            self.machine.power_off().await;
        }
        false
    }

    async fn scale_in(&self) -> bool {
        match self.group {
            Some(group) => group.terminate(true).await,
            None => false,
        }
    }

    async fn mark_deprecated(&self) {
        if let Some(group) = self.group {
            group.mark_deprecated().await;
        }
    }

    fn ready(&self) {
        tracing::info!(phase = "serve", runner = self.registered.name, "online");
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    fn stopping(&self) {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
    }
}
