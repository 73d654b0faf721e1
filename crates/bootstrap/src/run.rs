//! A boot: identify → configure → mint → register; then the runner's life.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kiln_config::boot::{BootConfig, DockerAccess, GITHUB_UNREACHABLE, MetadataAccess, RUNNER_DEPRECATED, SERVING};
use kiln_config::model::Registration;
use kiln_github::{ErrorKind, OrgClient, Usage};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument as _;

use crate::aws::{Aws, Group};
use crate::environment::{LiveEnvironment, Signals, served};
use crate::guard;
use crate::identify::{Identity, Metadata, Role};
use crate::life::{
    DEPRECATED_PAUSES, End, Hook, LAUNCH_HEARTBEAT, LOOK_EVERY, Life, LifecycleSettings, Notice, PIN_A_NEWER, Served,
    growing,
};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::on_demand::OnDemand;
use crate::phase::{phase, spent};
use crate::register::{Deprecated, Registered, Unreachable, register};
use crate::settings;

const USER_AGENT: &str = concat!("kiln-bootstrap/", env!("CARGO_PKG_VERSION"));

/// The service of the controller of on-demand fleets.
const CONTROLLER_UNIT: &str = "kiln-controller.service";

/// The metadata service may answer late while the network comes up.
const IDENTIFY_LIMIT: Duration = Duration::from_secs(60);

/// Retries of KMS and GitHub within, three times the minute that a secondary limit asks for among them; together with the
/// phases beside it below the launch hook's ten minutes.
const MINT_LIMIT: Duration = Duration::from_secs(240);

/// `config.sh` starts .NET twice, on the smallest instances a quarter of a minute.
const REGISTER_LIMIT: Duration = Duration::from_secs(240);

/// A boot that failed is tried again so much later: what a person mends, such as a key, then needs no new instance.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// So many tries in a row that do not reach GitHub, a minute and a half, are shown to whoever looks at the group.
const SHOWN_OUTAGES: u32 = 3;

/// docker is up within seconds of its start; two minutes are for a disk that has been warmed by nobody.
pub(crate) const DOCKER_LIMIT: Duration = Duration::from_secs(120);

/// Between two looks at docker's socket.
const DOCKER_LOOK: Duration = Duration::from_millis(200);

/// What an attempt is given to come to its end when the process is asked to end meanwhile.
const LAST_TRY: Duration = Duration::from_secs(10);

/// Runs it; the exit code is the process's.
pub(crate) async fn run(machine: &Machine) -> ExitCode {
    match identified(machine).await {
        Some(Start::Boot(boot, took_ms)) => Box::pin(boot.run(took_ms)).instrument(boot.span.clone()).await,
        Some(Start::OnDemand(instance)) => {
            let span = instance.span();
            Box::pin(instance.run()).instrument(span).await
        }
        Some(Start::Controller) => start_controller(machine).await,
        None => ExitCode::FAILURE,
    }
}

/// Leaves the instance to the controller's own service.
async fn start_controller(machine: &Machine) -> ExitCode {
    tracing::info!(phase = "configure", unit = CONTROLLER_UNIT, "this instance is the controller's");
    match machine.start_unit(CONTROLLER_UNIT).await {
        Ok(()) => {
            // Without this word systemd takes the service's end for a failure.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(phase = "configure", error = %format!("{error:#}"), "this boot can't succeed");
            ExitCode::FAILURE
        }
    }
}

/// Has the group replace an instance whose service has ended for good.
pub(crate) async fn mark_unhealthy(machine: &Machine) -> ExitCode {
    match identified(machine).await {
        Some(Start::Boot(boot, _)) => Box::pin(boot.mark_unhealthy()).instrument(boot.span.clone()).await,
        Some(Start::OnDemand(instance)) => instance.end("its service has failed").await,
        Some(Start::Controller) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

/// What this instance turned out to be.
enum Start<'a> {
    /// A runner that registers by itself, and how long it took to learn that.
    Boot(Box<Boot<'a>>, [u64; 2]),
    OnDemand(Box<OnDemand<'a>>),
    Controller,
}

/// Learns who this instance is.
async fn identified(machine: &Machine) -> Option<Start<'_>> {
    let born = Instant::now();
    let metadata = Metadata::connect();
    let identified = async {
        let found = phase("identify", IDENTIFY_LIMIT, Box::pin(metadata.identify())).await?;
        let config = phase("configure", IDENTIFY_LIMIT, async { found.0.configure() }).await?;
        if let Some(environment) = config.0.environment() {
            settings::apply(environment)?;
            settings::give_to_docker(machine, environment).await?;
        }
        anyhow::Ok((found, config, Signals::catch().context("catch signals")?))
    };
    let ((found, identify_ms), (role, configure_ms), signals) = match identified.await {
        Ok(found) => found,
        // Nothing says which group to tell: the launch hook's own timeout gives the instance up.
        Err(error) => {
            tracing::error!(phase = "identify", error = %format!("{error:#}"), "this boot can't succeed");
            return None;
        }
    };
    let identity = match role {
        Role::Runner(identity) => *identity,
        Role::OnDemand(instance, config) => {
            let there = OnDemand::new(machine, &found.region, metadata, (instance, *config), signals, born);
            return Some(Start::OnDemand(Box::new(there)));
        }
        Role::Controller => return Some(Start::Controller),
    };
    let span =
        tracing::info_span!("runner", instance = %identity.instance, fleet = %identity.config.fleet, phase = "boot");
    let aws = Aws::connect(&found.region, &metadata);
    let lifecycle = identity.config.lifecycle.as_ref();
    let memory = span.in_scope(|| Memory::open(machine, identity.instance.as_str(), &found.region, lifecycle));
    let group = lifecycle.map(|own| aws.group(own, &identity.instance));
    let boot = Boot { machine, aws, group, memory, metadata, identity, signals, born, span };
    Some(Start::Boot(Box::new(boot), [identify_ms, configure_ms]))
}

struct Boot<'a> {
    machine: &'a Machine,
    metadata: Metadata,
    identity: Identity,
    aws: Aws,
    group: Option<Group>,
    memory: Memory,
    signals: Signals,
    born: Instant,
    span: tracing::Span,
}

impl Boot<'_> {
    fn config(&self) -> &BootConfig {
        &self.identity.config
    }

    async fn run(&self, before_ms: [u64; 2]) -> ExitCode {
        let terms = self.terms();
        let before = self.memory.kept();
        if terms.ephemeral && before.listener_started {
            tracing::error!("an earlier start has used this single-use instance: it registers no more");
            return Box::pin(self.end(&terms, before.took_job)).await;
        }
        let (github, registered) = match Box::pin(self.registered(before_ms, &terms)).await {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "given up");
                Box::pin(self.end(&terms, false)).await;
                return ExitCode::FAILURE;
            }
        };
        if self.config().wait_for_docker
            && let Err(error) = phase("docker", DOCKER_LIMIT, docker(self.machine)).await
        {
            // Jobs without containers run; those with some fail, and say so themselves.
            tracing::error!(error = %format!("{error:#}"), "serving without docker");
        }
        let environment = self.environment(&github, Some(&registered));
        let life = Life { environment: &environment, terms: &terms, born: self.born, registered: Instant::now() };
        let serving = tracing::info_span!("life", phase = "serve");
        let end = tokio::select! {
            end = Box::pin(life.live(before.in_service).instrument(serving)) => end,
            never = watchdog() => match never {},
        };
        match end {
            End::Left => ExitCode::SUCCESS,
            End::Broken => ExitCode::from(3),
        }
    }

    /// Nothing serves here any more. The group is told, unless it knows.
    async fn mark_unhealthy(&self) -> ExitCode {
        let before = self.memory.kept();
        if self.group.is_none() || before.group_told {
            tracing::info!(phase = "end", "nobody has to be told of this service's end");
            return ExitCode::SUCCESS;
        }
        tracing::error!(phase = "end", in_service = before.in_service, "the service has ended for good");
        Box::pin(self.end(&self.terms(), before.took_job && self.terms().ephemeral)).await
    }

    /// Ends an instance that does not serve: its runner is deleted, and the group asked for another one. `done`: it has done
    /// what it was for, so that this is no fault that fresh instances would have too.
    async fn end(&self, terms: &LifecycleSettings, done: bool) -> ExitCode {
        let github = match self.github() {
            Ok(github) => github,
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "no connection to GitHub can be set up");
                return ExitCode::FAILURE;
            }
        };
        let mut terms = terms.clone();
        if done {
            terms.failed_boot_grace = Duration::ZERO;
        }
        let environment = self.environment(&github, None);
        let life = Life { environment: &environment, terms: &terms, born: self.born, registered: self.born };
        let end = async {
            if environment.runner.is_some() {
                life.forget().await;
            }
            Box::pin(life.give_up(None, self.memory.kept().in_service)).await;
        };
        tokio::select! {
            () = end.instrument(tracing::info_span!("life", phase = "end")) => ExitCode::SUCCESS,
            never = watchdog() => match never {},
        }
    }

    fn environment<'b>(&'b self, github: &'b OrgClient, registered: Option<&'b Registered>) -> LiveEnvironment<'b> {
        let runner = match registered {
            Some(registered) => Some((registered.name.clone(), registered.id.or_else(|| own_id(registered)))),
            None => self.memory.kept().runner,
        };
        LiveEnvironment {
            machine: self.machine,
            metadata: &self.metadata,
            memory: &self.memory,
            group: self.group.as_ref(),
            github,
            registered,
            runner,
            version: self.config().runner.version.as_str(),
            signals: &self.signals,
        }
    }

    fn terms(&self) -> LifecycleSettings {
        let config = self.config();
        let secs = |secs: u32| Duration::from_secs(secs.into());
        let retirement = config.retirement.unwrap_or_default();
        let own = config.lifecycle.as_ref();
        LifecycleSettings {
            ephemeral: config.registration == Registration::Ephemeral,
            in_group: own.is_some(),
            // Without a group nobody waits for a sign of life, and a job may take Auto Scaling's own longest.
            heartbeat: secs(own.map_or(7200, |own| own.termination_heartbeat_timeout_secs)),
            drain_timeout: secs(own.map_or(48 * 3600, |own| own.drain_timeout_secs)),
            failed_boot_grace: secs(own.map_or(0, |own| own.failed_boot_grace_secs)),
            max_age: retirement.max_age_secs.map(secs),
            idle_limit: retirement.idle_limit_secs.map(secs),
        }
    }

    /// Registers, again and again until the pause before a replacement is over. Neither an outage of GitHub nor a version
    /// that GitHub refuses against its own list ends it.
    async fn registered(
        &self,
        before_ms: [u64; 2],
        terms: &LifecycleSettings,
    ) -> anyhow::Result<(OrgClient, Registered)> {
        let (mut outages, mut refusals) = (0, 0);
        loop {
            let mut attempt = std::pin::pin!(self.attempt(before_ms));
            let done = tokio::select! {
                done = &mut attempt => done,
                // A runner that is half registered would stay behind: it is given the time to be whole, and then leaves.
                why = self.signals.asked() => {
                    let done = tokio::time::timeout(LAST_TRY, attempt).await;
                    return done.unwrap_or_else(|_| Err(anyhow!("{why} before it was registered")));
                }
            };
            let error = match done {
                Ok(done) => {
                    if outages >= SHOWN_OUTAGES {
                        self.show_state(SERVING).await;
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            let (pause, extend) = if error.is::<Deprecated>() {
                refusals += 1;
                let served = self.shown_as_deprecated().await;
                let growing = growing(DEPRECATED_PAUSES, refusals - 1);
                (if served == Served::No { DEPRECATED_PAUSES.1 } else { growing }, served == Served::Yes)
            } else if is_outage(&error) && self.group.is_some() {
                outages += 1;
                if outages == SHOWN_OUTAGES {
                    self.show_state(GITHUB_UNREACHABLE).await;
                }
                (TRY_AGAIN * outages.min(10), true)
            } else {
                (TRY_AGAIN, false)
            };
            Box::pin(self.before_the_next(error, pause, extend, terms)).await?;
        }
    }

    /// Waits until the next try to register.
    ///
    /// # Errors
    /// There is none.
    async fn before_the_next(
        &self,
        error: anyhow::Error,
        pause: Duration,
        extend: bool,
        terms: &LifecycleSettings,
    ) -> anyhow::Result<()> {
        let deprecated = error.is::<Deprecated>();
        let hint = if deprecated { Some(PIN_A_NEWER.to_owned()) } else { hint(&error) }.unwrap_or_default();
        let shown = format!("{error:#}");
        let in_service = self.memory.kept().in_service;
        // A version that is refused is refused on a fresh instance, too: one in service stays, and tries on.
        let patient = extend || deprecated && in_service;
        let last = self.born + terms.failed_boot_grace;
        let ends = !patient && Instant::now() + if deprecated { Duration::ZERO } else { pause } > last;
        if ends {
            tracing::error!(error = shown, hint, "this boot can't succeed");
            return Err(error);
        }
        let again_in_secs = pause.as_secs();
        tracing::error!(phase = "register", error = shown, hint, again_in_secs, "not registered");
        let end = Instant::now() + if patient { pause } else { pause.min(last.duration_since(Instant::now())) };
        let wait = async {
            while extend
                && !in_service
                && let Some(group) = &self.group
            {
                tracing::warn!(phase = "register", "keeping the launch waiting: this is no fault of this instance");
                group.heartbeat(Hook::Launch).await;
                if end <= Instant::now() + LAUNCH_HEARTBEAT {
                    break;
                }
                sleep(LAUNCH_HEARTBEAT).await;
            }
            sleep_until(end).await;
        };
        tokio::select! {
            () = wait => Ok(()),
            why = self.signals.asked() => Err(error.context(why)),
            () = self.is_terminated() => Err(error.context("Auto Scaling terminates it")),
        }
    }

    /// Resolves when Auto Scaling terminates the instance.
    async fn is_terminated(&self) {
        if self.group.is_none() {
            std::future::pending::<()>().await;
        }
        while !matches!(self.metadata.notice().await, Ok(Some(Notice::Terminate))) {
            sleep(LOOK_EVERY).await;
        }
    }

    /// GitHub has refused the version: what does its own list say?
    async fn shown_as_deprecated(&self) -> Served {
        let served = match self.github() {
            Ok(github) => served(&github, self.config().runner.version.as_str(), true).await,
            Err(_) => Served::Unknown,
        };
        if served != Served::Yes {
            self.show_state(RUNNER_DEPRECATED).await;
        }
        served
    }

    async fn show_state(&self, state: &str) {
        if let Some(group) = &self.group {
            group.show_state(state).await;
        }
    }

    fn github(&self) -> anyhow::Result<OrgClient> {
        let config = self.config();
        let signer = self.aws.signer(&config.key, self.machine);
        Ok(OrgClient::new(
            &config.github.api_url,
            USER_AGENT,
            config.app.issuer.clone(),
            std::sync::Arc::new(signer),
            config.organization.as_str(),
            config.app.installation_id,
        )?)
    }

    async fn attempt(&self, [identify_ms, configure_ms]: [u64; 2]) -> anyhow::Result<(OrgClient, Registered)> {
        let config = self.config();
        let mut user = self.machine.user(&config.runner.user)?;
        if config.job_docker_access == DockerAccess::Blocked {
            self.machine.bar_from_docker(&mut user).await?;
        }
        let guarded = async {
            match config.job_metadata_access {
                MetadataAccess::Blocked => guard::check(self.machine, &user).await,
                MetadataAccess::Allowed => guard::lift(self.machine).await,
            }
        };
        // Independent of each other: the connection to GitHub, the key, and whether a job could get at the key.
        let mint = async {
            let github = self.github()?;
            github.app().open_ahead().await;
            github.mint().await?;
            anyhow::Ok(github)
        };
        let both = async { Ok(tokio::try_join!(mint, guarded)?.0) };
        let (github, mint_ms) = phase("mint", MINT_LIMIT, Box::pin(both)).await?;
        let clock_error_secs = github.app().clock_error_secs();
        if clock_error_secs != 0 {
            tracing::warn!(phase = "mint", clock_error_secs, "this machine's clock is off; GitHub's was used instead");
        }
        let register = Box::pin(register(self.machine, &self.identity, user, &github));
        let (registered, register_ms) = phase("register", REGISTER_LIMIT, register).await?;
        let Usage { requests, connections, bytes, limited, limited_in_a_row } = github.app().usage();
        let (cpu_ms, peak_kib) = spent();
        tracing::info!(
            phase = "register",
            runner = registered.name,
            ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX),
            identify_ms,
            configure_ms,
            mint_ms,
            register_ms,
            config_sh_ms = registered.config_sh_ms,
            requests,
            connections,
            bytes,
            limited,
            limited_in_a_row,
            cpu_ms,
            peak_kib,
            "registered"
        );
        Ok((github, registered))
    }
}

/// The id that `config.sh` has written down for this runner. Nothing but it has run here since.
fn own_id(registered: &Registered) -> Option<u64> {
    let text = std::fs::read_to_string(registered.directory.path().join(".runner")).ok()?;
    let settings: serde_json::Value = serde_json::from_str(text.trim_start_matches('\u{feff}')).ok()?;
    let field = |name: &str| {
        settings.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    let id = field("agentId")?;
    let id = id.as_u64().or_else(|| id.as_str()?.parse().ok());
    id.filter(|_| field("agentName").and_then(serde_json::Value::as_str) == Some(&registered.name))
}

/// Is it GitHub, or the way to it, that fails, rather than what this instance asks?
fn is_outage(error: &anyhow::Error) -> bool {
    error.is::<Unreachable>()
        || error.chain().any(|cause| {
            cause.downcast_ref::<kiln_github::Error>().is_some_and(|error| {
                matches!(
                    error.kind,
                    ErrorKind::Connect
                        | ErrorKind::Timeout
                        | ErrorKind::Server(_)
                        | ErrorKind::Body
                        | ErrorKind::RateLimited { .. }
                )
            })
        })
}

/// What a refusal asks of a person.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| cause.downcast_ref::<kiln_github::Error>()).and_then(kiln_github::Error::hint)
}

/// Waits until docker answers at its socket.
pub(crate) async fn docker(machine: &Machine) -> anyhow::Result<()> {
    let socket = machine.path("/var/run/docker.sock");
    while tokio::net::UnixStream::connect(&socket).await.is_err() {
        sleep(DOCKER_LOOK).await;
    }
    Ok(())
}

/// Lets systemd see that the binary is alive, at twice the rate it asks for, for as long as the life goes on.
pub(crate) async fn watchdog() -> Infallible {
    let Some(bound) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        sleep(bound / 2).await;
    }
}
