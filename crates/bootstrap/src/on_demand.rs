//! An instance of an on-demand fleet: it gets its runner's configuration from the bucket, runs one job, and switches itself
//! off, which terminates it.
//!
//! It has no right at GitHub but that of its single-use runner, and none at AWS but to its own hand-over object. Nobody has to
//! be asked before it goes: whatever ends the listener ends the machine.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kiln_config::boot::{DockerAccess, MetadataAccess, OnDemandConfig, hand_over_key};
use kiln_config::model::InstanceId;
use kiln_instance::aws::{Aws, Error};
use kiln_instance::metadata::{Metadata as SmallMetadata, Role};
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::directory::RunnerDirectory;
use crate::environment::Signals;
use crate::guard;
use crate::identify::Metadata;
use crate::life::{LOOK_EVERY, ListenerState, Notice, Process as _};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::phase::phase;
use crate::register::{Registered, environment};
use crate::run::{DOCKER_LIMIT, docker, watchdog};
use crate::serve::Listener;

/// Between two looks for the configuration: it follows the launch within seconds, mostly before this machine is up.
const LOOKS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// A listener that is idle ends within a second of SIGINT.
const IDLE_GRACE: Duration = Duration::from_secs(30);

/// A cancelled job has ten seconds for its step, and then its `always()` steps, hooks and uploads.
const JOB_GRACE: Duration = Duration::from_secs(120);

/// A spot instance's job is cancelled this long before EC2 takes the instance, and the listener killed five seconds before.
const SPOT_AHEAD: Duration = Duration::from_secs(45);
const SPOT_GRACE: Duration = Duration::from_secs(40);

/// How often the object is deleted again where that fails: the bucket's own rule deletes what is left after a day.
const DELETIONS: u32 = 5;
const DELETE_AGAIN: Duration = Duration::from_secs(10);

/// Such an instance.
#[derive(Debug)]
pub(crate) struct OnDemand<'a> {
    machine: &'a Machine,
    metadata: Metadata,
    instance: InstanceId,
    config: OnDemandConfig,
    memory: Memory,
    signals: Signals,
    born: Instant,
}

/// The instance's object.
#[derive(Debug, Clone)]
struct HandOver {
    aws: Aws,
    bucket: String,
    key: String,
}

/// Why the listener is ended.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// By itself, with this code.
    Exit(Option<i32>),
    /// It never came online.
    Silent,
    /// Its job took too long.
    TooLong,
    /// Somebody asks: a signal, or EC2.
    Asked(&'static str, Duration),
}

impl<'a> OnDemand<'a> {
    pub(crate) fn new(
        machine: &'a Machine,
        region: &str,
        metadata: Metadata,
        (instance, config): (InstanceId, OnDemandConfig),
        signals: Signals,
        born: Instant,
    ) -> Self {
        let memory = Memory::open(machine, instance.as_str(), region, None);
        Self { machine, metadata, instance, config, memory, signals, born }
    }

    /// Where each line of the log belongs.
    pub(crate) fn span(&self) -> tracing::Span {
        tracing::info_span!("runner", instance = %self.instance, fleet = %self.config.fleet, phase = "boot")
    }

    /// From the boot to the end of the machine.
    pub(crate) async fn run(&self) -> ExitCode {
        let life = async {
            if self.memory.kept().listener_started {
                return self.end("an earlier start has used this single-use instance").await;
            }
            let why = match self.serve().await {
                Ok(why) => why,
                Err(error) => {
                    tracing::error!(error = %format!("{error:#}"), "this boot can't succeed");
                    "this boot can't succeed"
                }
            };
            self.end(why).await
        };
        tokio::select! {
            code = life => code,
            never = watchdog() => match never {},
        }
    }

    /// Switches the machine off. Its launch template has EC2 terminate it then.
    pub(crate) async fn end(&self, why: &str) -> ExitCode {
        let ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(phase = "end", why, ms, "left: switching the machine off");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.machine.power_off().await;
        ExitCode::SUCCESS
    }

    /// Everything but the machine's end.
    async fn serve(&self) -> anyhow::Result<&'static str> {
        let config = &self.config;
        let mut user = self.machine.user(&config.runner.user)?;
        if config.job_docker_access == DockerAccess::Blocked {
            self.machine.bar_from_docker(&mut user).await?;
        }
        let directory = RunnerDirectory::new(self.machine.path(&config.runner.directory), &user);
        let environment = environment(self.machine, &config.environment);
        directory.clear(&environment)?;
        let guarded = async {
            match config.job_metadata_access {
                MetadataAccess::Blocked => guard::check(self.machine, &user).await,
                MetadataAccess::Allowed => guard::lift(self.machine).await,
            }
        };
        let limit = Duration::from_secs(config.hand_over_limit_secs.into());
        let wait = async { tokio::try_join!(guarded, self.configuration()) };
        let waited = tokio::select! {
            waited = phase("configure", limit.saturating_sub(self.born.elapsed()), Box::pin(wait)) => waited,
            why = self.signals.asked() => bail!("{why} before there was a configuration"),
        };
        let (((), (hand_over, jit)), configure_ms) = waited?;
        if config.wait_for_docker
            && let Err(error) = phase("docker", DOCKER_LIMIT, docker(self.machine)).await
        {
            // Jobs without containers run; those with some fail, and say so themselves.
            tracing::error!(error = %format!("{error:#}"), "serving without docker");
        }
        let registered = Registered {
            name: format!("{}-{}", config.fleet, self.instance),
            id: None,
            jit: Some(jit),
            config_sh_ms: None,
            user,
            directory,
            environment,
            guarded: config.job_metadata_access == MetadataAccess::Blocked,
        };
        // Before the start: what is not on the disk then, a later start would not know.
        self.memory.keep(|kept| kept.listener_started = true)?;
        let mut listener = Listener::start(self.machine, &registered)?;
        let ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(phase = "serve", runner = registered.name, ms, configure_ms, "the listener is started");
        drop(registered);
        Ok(self.listen(&mut listener, hand_over).await)
    }

    /// Waits for the configuration. Until it is there S3 answers with 403, as the role may not list the bucket: not yet there,
    /// and not allowed, look the same.
    ///
    /// Source: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html> (permissions).
    async fn configuration(&self) -> anyhow::Result<(HandOver, SecretString)> {
        let config = &self.config;
        let role = Arc::new(Role::new(SmallMetadata::new()?));
        let aws = Aws::new(config.region.as_str(), role)?;
        let user = match &config.role_id {
            Some(role) => format!("{role}:{}", self.instance),
            None => self.ask(|| aws.user_id(), "STS can't be asked who this is").await,
        };
        let hand_over = HandOver { key: hand_over_key(&user), bucket: config.bucket.clone(), aws };
        let get = || async {
            match hand_over.aws.get_object(&hand_over.bucket, &hand_over.key, None).await {
                Ok(object) => Ok(object),
                Err(error) if matches!(error.code(), "AccessDenied" | "NoSuchKey") => Ok(None),
                Err(error) => Err(error),
            }
        };
        let mut pause = LOOKS.0;
        loop {
            if let Some(object) = self.ask(get, "the bucket can't be read").await {
                let text = String::from_utf8(object.bytes).context("the configuration is no text")?;
                return Ok((hand_over, text.into()));
            }
            sleep(pause).await;
            pause = (pause * 5 / 4).min(LOOKS.1);
        }
    }

    /// Asks until there is an answer; the caller has the limit.
    async fn ask<T, F: Future<Output = Result<T, Error>>>(&self, call: impl Fn() -> F, what: &str) -> T {
        let mut said = String::new();
        loop {
            let error = match call().await {
                Ok(answer) => return answer,
                Err(error) => error.to_string(),
            };
            if error != said {
                tracing::warn!(error, "{what}: trying again");
                said = error;
            }
            sleep(LOOKS.1).await;
        }
    }

    /// Looks after the listener until it has ended.
    async fn listen(&self, listener: &mut Listener, hand_over: HandOver) -> &'static str {
        let ending = self.ending(listener, hand_over).await;
        let heard = *listener.heard().borrow();
        let (why, grace) = match ending {
            Ending::Exit(code) => {
                tracing::info!(code, jobs = heard.jobs, "the listener has ended");
                let why = if heard.jobs > 0 { "the one job is done" } else { "the listener has ended without a job" };
                (why, IDLE_GRACE)
            }
            Ending::Silent => ("the listener did not come online in time", IDLE_GRACE),
            Ending::TooLong => ("the job has reached its time limit", JOB_GRACE),
            Ending::Asked(why, grace) => (why, grace),
        };
        listener.stop(grace).await;
        why
    }

    async fn ending(&self, listener: &mut Listener, hand_over: HandOver) -> Ending {
        let begin = Instant::now();
        let seconds = |secs: u32| Duration::from_secs(secs.into());
        let mut heard = listener.heard();
        let mut state = ListenerState::default();
        let mut limit = Some(begin + seconds(self.config.boot_limit_secs));
        let mut asked = std::pin::pin!(self.asked(listener.heard()));
        let mut deletion = std::pin::pin!(take_back(hand_over, listener.heard()));
        let mut deleted = false;
        loop {
            tokio::select! {
                Ok(()) = heard.changed() => {
                    let now = *heard.borrow_and_update();
                    if now.online && !state.online {
                        let ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
                        tracing::info!(phase = "serve", ms, "online");
                        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                        limit = None;
                    }
                    if now.jobs > state.jobs {
                        self.memory.keep_or_warn(|kept| kept.took_job = true);
                        limit = Some(Instant::now() + seconds(self.config.job_limit_secs));
                    }
                    state = now;
                }
                code = listener.exit() => return Ending::Exit(code),
                ending = &mut asked => return ending,
                () = &mut deletion, if !deleted => deleted = true,
                () = until(limit) => return if state.jobs > 0 { Ending::TooLong } else { Ending::Silent },
            }
        }
    }

    /// Resolves when the listener has to end: at once while it is idle, and as late as can be while it runs a job.
    async fn asked(&self, mut heard: watch::Receiver<ListenerState>) -> Ending {
        tokio::select! {
            why = self.signals.asked() => {
                tracing::info!(phase = "drain", why, "asked to end: waiting for a running job");
                let _ = heard.wait_for(|heard| !heard.busy).await;
                Ending::Asked(why, IDLE_GRACE)
            }
            left = self.spot() => {
                tracing::warn!(phase = "drain", left_secs = left.as_secs(), "EC2 takes this spot instance back");
                let _ = tokio::time::timeout(left.saturating_sub(SPOT_AHEAD), heard.wait_for(|heard| !heard.busy)).await;
                Ending::Asked("spot interruption", SPOT_GRACE)
            }
        }
    }

    /// Resolves when EC2 is about to take the instance, with the time that is left.
    async fn spot(&self) -> Duration {
        loop {
            if let Ok(Some(Notice::Spot(left))) = self.metadata.notice().await {
                return left;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Deletes the object once the listener is online. It has been read, and is good for nothing more.
async fn take_back(hand_over: HandOver, mut heard: watch::Receiver<ListenerState>) {
    if heard.wait_for(|heard| heard.online).await.is_err() {
        return;
    }
    for _ in 0..DELETIONS {
        match hand_over.aws.delete_object(&hand_over.bucket, &hand_over.key).await {
            Ok(()) => return tracing::info!(phase = "serve", "the hand-over object is deleted"),
            Err(error) => tracing::warn!(phase = "serve", %error, "the hand-over object can't be deleted"),
        }
        sleep(DELETE_AGAIN).await;
    }
}

async fn until(limit: Option<Instant>) {
    match limit {
        Some(limit) => sleep_until(limit).await,
        None => std::future::pending().await,
    }
}
