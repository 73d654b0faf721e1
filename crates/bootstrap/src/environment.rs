//! The real environment of a life: GitHub, the group, the metadata service, the listener, systemd.

use std::time::{Duration, SystemTime};

use crate::aws::{DateTime, DateTimeFormat};
use anyhow::Context as _;
use kiln_config::model::RunnerVersion;
use kiln_github::{Deleted, OrgClient, Runner};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, OnceCell};

use crate::aws::Group;
use crate::identify::Metadata;
use crate::life::{Completion, Environment, Hook, Listed, Notice, Served, Verdict};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::register::Registered;
use crate::serve::Listener;

pub(crate) struct LiveEnvironment<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) metadata: &'a Metadata,
    pub(crate) memory: &'a Memory,
    pub(crate) group: Option<&'a Group>,
    pub(crate) github: &'a OrgClient,
    /// What the listener is started with; `None` where there is nothing left but to end.
    pub(crate) registered: Option<&'a Registered>,
    /// The runner at GitHub: its name, and its id where that is known.
    pub(crate) runner: Option<(String, Option<u64>)>,
    /// The runner's version.
    pub(crate) version: &'a str,
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

impl LiveEnvironment<'_> {
    /// The runner as GitHub lists it. One of another name is never ours, whatever the server makes of the question.
    async fn find(&self) -> anyhow::Result<Option<Runner>> {
        let Some((name, id)) = &self.runner else { return Ok(None) };
        let found = match id {
            Some(id) => self.github.runner(*id).await?,
            None => self.github.runners(Some(name)).await?.into_iter().find(|runner| runner.name == *name),
        };
        Ok(found.filter(|runner| runner.name == *name))
    }

    /// Remembers that the group knows of this instance's end.
    fn told(&self, told: bool) -> bool {
        if told {
            self.memory.keep_or_warn(|kept| kept.group_told = true);
        }
        told
    }
}

/// Does GitHub serve this version, by its own list? `registering`: for a registration, rather than for a job.
pub(crate) async fn served(github: &OrgClient, version: &str, registering: bool) -> Served {
    let deprecation = match github.runner_deprecation(version).await {
        Ok(Some(deprecation)) => deprecation,
        Ok(None) => return served_by_age(github, version).await,
        Err(error) => {
            tracing::warn!(%error, "GitHub's list of versions can't be had");
            return Served::Unknown;
        }
    };
    let end = deprecation.runtime_deprecates_at;
    let end = if registering { deprecation.registration_deprecates_at.or(end) } else { end };
    let Some(end) = end else { return Served::Yes };
    match point(&end) {
        Some(end) if end > SystemTime::now() => Served::Yes,
        Some(_) => Served::No,
        None => Served::Unknown,
    }
}

/// What GitHub serves a runner that does not update itself, after a newer release.
///
/// Source: <https://docs.github.com/en/actions/reference/runners/self-hosted-runners>
const SERVED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// The same where GitHub has no word on the version: by its age.
async fn served_by_age(github: &OrgClient, version: &str) -> Served {
    let Ok(version) = version.parse::<RunnerVersion>() else { return Served::Unknown };
    let downloads = match github.runner_downloads().await {
        Ok(downloads) => downloads,
        Err(error) => {
            tracing::warn!(%error, "GitHub's newest version can't be had");
            return Served::Unknown;
        }
    };
    let offered = downloads.iter().filter_map(|download| version_in(&download.filename)).max();
    let Some(offered) = offered else { return Served::Unknown };
    if offered <= version {
        return Served::Yes;
    }
    let releases = github.runner_releases().await.unwrap_or_default();
    let newer = releases.iter().filter(|release| !release.prerelease).filter_map(|release| {
        let newer: RunnerVersion = release.tag_name.trim_start_matches('v').parse().ok()?;
        (newer > version).then(|| point(release.published_at.as_deref()?)).flatten()
    });
    match newer.min() {
        Some(newer) if newer + SERVED_FOR > SystemTime::now() => Served::Yes,
        Some(_) => Served::No,
        None => Served::Unknown,
    }
}

/// The version in an asset's name: `actions-runner-linux-x64-2.338.0.tar.gz`.
fn version_in(filename: &str) -> Option<RunnerVersion> {
    filename.strip_suffix(".tar.gz")?.rsplit('-').next()?.parse().ok()
}

fn point(text: &str) -> Option<SystemTime> {
    DateTime::from_str(text, DateTimeFormat::DateTimeWithOffset).ok()?.try_into().ok()
}

impl Environment for LiveEnvironment<'_> {
    type Listener = Listener;

    fn start(&self) -> anyhow::Result<Listener> {
        let registered = self.registered.context("this instance is not registered")?;
        // Before the start: what is not on the disk then, a later start would not know.
        self.memory.keep(|kept| {
            kept.runner.clone_from(&self.runner);
            kept.listener_started = true;
        })?;
        Listener::start(self.machine, registered)
    }

    async fn delete_runner(&self) -> anyhow::Result<Deleted> {
        let id = match &self.runner {
            Some((_, Some(id))) => Some(*id),
            _ => self.find().await?.map(|runner| runner.id),
        };
        match id {
            Some(id) => Ok(self.github.delete_runner(id).await?),
            None => Ok(Deleted::Absent),
        }
    }

    async fn listed(&self) -> anyhow::Result<Listed> {
        Ok(match self.find().await? {
            Some(runner) if runner.busy => Listed::Busy,
            Some(_) => Listed::Idle,
            None => Listed::Absent,
        })
    }

    async fn served(&self) -> Served {
        served(self.github, self.version, false).await
    }

    async fn notice(&self) -> anyhow::Result<Option<Notice>> {
        match self.group {
            Some(_) => self.metadata.notice().await,
            // A signal is all that asks an instance of no group to leave.
            None => Ok(None),
        }
    }

    async fn signalled(&self) -> &'static str {
        self.signals.asked().await
    }

    async fn machine_stops(&self) -> bool {
        self.machine.stops().await
    }

    async fn complete_launch(&self, verdict: Verdict) -> Completion {
        let Some(group) = self.group else { return Completion::Done };
        let done = group.complete_launch(verdict).await;
        self.told(done == Completion::Done && verdict == Verdict::Abandon);
        done
    }

    async fn complete_termination(&self) -> Completion {
        let Some(group) = self.group else { return Completion::Done };
        let done = group.complete_termination().await;
        self.told(done == Completion::Done);
        done
    }

    async fn heartbeat(&self, hook: Hook) {
        if let Some(group) = self.group {
            group.heartbeat(hook).await;
        }
    }

    async fn replace(&self) -> bool {
        match self.group {
            Some(group) => self.told(group.terminate(false).await),
            None => false,
        }
    }

    async fn mark_unhealthy(&self) -> bool {
        match self.group {
            Some(group) => self.told(group.mark_unhealthy().await),
            None => false,
        }
    }

    async fn power_off(&self) {
        self.machine.power_off().await;
    }

    async fn show_state(&self, state: &'static str) {
        if let Some(group) = self.group {
            group.show_state(state).await;
        }
    }

    async fn scale_in(&self) -> bool {
        match self.group {
            Some(group) => group.terminate(true).await,
            None => false,
        }
    }

    fn ready(&self) {
        let runner = self.runner.as_ref().map(|(name, _)| name);
        tracing::info!(phase = "serve", runner, "online");
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    fn in_service(&self) {
        self.memory.keep_or_warn(|kept| kept.in_service = true);
        tracing::info!(phase = "serve", "in service");
    }

    fn took_job(&self) {
        self.memory.keep_or_warn(|kept| kept.took_job = true);
    }

    fn stopping(&self) {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
    }
}
