//! A boot: identify → configure → mint → register; then the runner's life.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kiln_config::boot::{BootConfig, DockerAccess, MetadataAccess};
use kiln_config::model::Registration;
use kiln_github::{Deleted, OrgClient, Usage};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument as _;

use crate::aws::{Aws, Group};
use crate::guard;
use crate::identify::{Identity, Metadata};
use crate::life::{ASK_EVERY, End, LOOK_EVERY, Life, PIN_A_NEWER, Terms, Verdict};
use crate::machine::Machine;
use crate::outside::{Real, Signals};
use crate::phase::{phase, spent};
use crate::register::{Deprecated, Registered, register};
use crate::settings;
use crate::switch::{self, SWITCH_BOUND, Switch};

const USER_AGENT: &str = concat!("kiln-bootstrap/", env!("CARGO_PKG_VERSION"));

/// The metadata service may answer late while the network comes up.
const IDENTIFY_BOUND: Duration = Duration::from_secs(60);

/// Retries of KMS and GitHub within, three times the minute that a secondary limit asks for among them; together with the
/// phases beside it below the launch hook's ten minutes.
const MINT_BOUND: Duration = Duration::from_secs(240);

/// `config.sh` starts .NET twice, on the smallest instances a quarter of a minute.
const REGISTER_BOUND: Duration = Duration::from_secs(240);

/// A boot that failed is tried again so much later: what a person mends, such as a key, then needs no new instance.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// docker is up within seconds of its start; two minutes are for a disk that has been warmed by nobody.
const DOCKER_BOUND: Duration = Duration::from_secs(120);

/// Between two looks at docker's socket.
const DOCKER_LOOK: Duration = Duration::from_millis(200);

/// What an attempt is given to come to its end when the process is asked to end meanwhile.
const LAST_TRY: Duration = Duration::from_secs(10);

/// Runs it; the exit code is the process's.
pub(crate) async fn run(machine: &Machine) -> ExitCode {
    let born = Instant::now();
    let metadata = Metadata::connect();
    let identified = async {
        let found = phase("identify", IDENTIFY_BOUND, Box::pin(metadata.identify())).await?;
        let config = phase("configure", IDENTIFY_BOUND, async { found.0.configure() }).await?;
        settings::apply(&config.0.config.environment)?;
        settings::give_to_docker(machine, &config.0.config.environment).await?;
        anyhow::Ok((found, config, Signals::catch().context("catch signals")?))
    };
    let ((found, identify_ms), (identity, configure_ms), signals) = match identified.await {
        Ok((found, config, signals)) => (found, config, signals),
        // Nothing says which group to tell: the launch hook's own timeout gives the instance up.
        Err(error) => {
            tracing::error!(phase = "identify", error = %format!("{error:#}"), "this boot can't succeed");
            if switch::is_marked(machine) {
                // It was in service, and its runner is gone: nobody else would notice.
                tracing::error!(
                    phase = "identify",
                    "an earlier start has switched the metadata service off: powering off for the group to notice"
                );
                machine.power_off().await;
            }
            return ExitCode::FAILURE;
        }
    };
    let span =
        tracing::info_span!("runner", instance = %identity.instance, fleet = %identity.config.fleet, phase = "boot");
    let aws = Aws::connect(&found.region, &metadata);
    let off = identity.config.job_metadata_access == MetadataAccess::Off;
    let switch = off.then(|| Switch::new(machine, aws.ec2(&identity.instance)));
    let boot = Boot { machine, aws, metadata, identity, switch, signals, born };
    boot.run([identify_ms, configure_ms]).instrument(span).await
}

struct Boot<'a> {
    machine: &'a Machine,
    metadata: Metadata,
    identity: Identity,
    aws: Aws,
    /// Where the metadata service is to be off.
    switch: Option<Switch>,
    signals: Signals,
    born: Instant,
}

impl Boot<'_> {
    fn config(&self) -> &BootConfig {
        &self.identity.config
    }

    async fn run(&self, before_ms: [u64; 2]) -> ExitCode {
        let group = self.config().lifecycle.as_ref().map(|own| self.aws.group(own, &self.identity.instance));
        let terms = self.terms();
        let (github, registered) = match self.registered(before_ms, &terms, group.as_ref()).await {
            Ok(done) => done,
            Err(error) => {
                if let Some(group) = group {
                    group.complete_launch(Verdict::Abandon).await;
                }
                tracing::error!(error = %format!("{error:#}"), "given up");
                return ExitCode::FAILURE;
            }
        };
        if self.config().wait_for_docker
            && let Err(error) = phase("docker", DOCKER_BOUND, docker(self.machine)).await
        {
            // Jobs without containers run; those with some fail, and say so themselves.
            tracing::error!(error = %format!("{error:#}"), "serving without docker");
        }
        let outside = Real {
            machine: self.machine,
            metadata: &self.metadata,
            group: group.as_ref(),
            switch: self.switch.as_ref(),
            github,
            registered,
            signals: &self.signals,
        };
        let life = Life { outside: &outside, terms: &terms, born: self.born };
        let serving = tracing::info_span!("life", phase = "serve");
        let end = tokio::select! {
            end = Box::pin(life.live().instrument(serving)) => end,
            never = watchdog() => match never {},
            never = keep_credentials(self.switch.as_ref()) => match never {},
        };
        match end {
            End::Left => ExitCode::SUCCESS,
            End::Broken => ExitCode::from(3),
        }
    }

    fn terms(&self) -> Terms {
        let config = self.config();
        let secs = |secs: u32| Duration::from_secs(secs.into());
        let retirement = config.retirement.unwrap_or_default();
        let own = config.lifecycle.as_ref();
        // Without a group nobody waits for a sign of life, and a job may take Auto Scaling's own longest.
        let heartbeat = secs(own.map_or(7200, |own| own.heartbeat_secs));
        let off = self.switch.is_some();
        Terms {
            look_every: if off { (heartbeat / 3).min(ASK_EVERY) } else { LOOK_EVERY },
            hears_spot: !off,
            ephemeral: config.registration == Registration::Ephemeral,
            in_group: own.is_some(),
            heartbeat,
            drain_limit: secs(own.map_or(48 * 3600, |own| own.drain_limit_secs)),
            replace_pause: secs(own.map_or(0, |own| own.replace_pause_secs)),
            max_age: retirement.max_age_secs.map(secs),
            idle_limit: retirement.idle_limit_secs.map(secs),
        }
    }

    /// Registers, again and again until the pause before a replacement is over.
    async fn registered(
        &self,
        before_ms: [u64; 2],
        terms: &Terms,
        group: Option<&Group>,
    ) -> anyhow::Result<(OrgClient, Registered)> {
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
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if error.is::<Deprecated>() {
                return Err(self.retired(error, terms, group).await);
            }
            let hint = hint(&error).unwrap_or_default();
            let shown = format!("{error:#}");
            if self.born.elapsed() + TRY_AGAIN > terms.replace_pause {
                tracing::error!(error = shown, hint, "this boot can't succeed");
                return Err(error);
            }
            tracing::error!(
                phase = "register",
                error = shown,
                hint,
                again_in_secs = TRY_AGAIN.as_secs(),
                "not registered"
            );
            tokio::select! {
                () = sleep(TRY_AGAIN) => {}
                why = self.signals.asked() => return Err(error.context(why)),
            }
        }
    }

    /// Tries no more, and waits until a replacement, which fares no better, may be asked for.
    async fn retired(&self, error: anyhow::Error, terms: &Terms, group: Option<&Group>) -> anyhow::Error {
        tracing::error!(error = %format!("{error:#}"), hint = PIN_A_NEWER, "this boot can't succeed");
        let wait = async {
            if let Some(group) = group {
                group.mark_deprecated().await;
            }
            sleep_until(self.born + terms.replace_pause).await;
        };
        tokio::select! {
            () = wait => error,
            why = self.signals.asked() => error.context(why),
        }
    }

    async fn attempt(&self, [identify_ms, configure_ms]: [u64; 2]) -> anyhow::Result<(OrgClient, Registered)> {
        let config = self.config();
        let mut user = self.machine.user(&config.runner.user)?;
        if config.job_docker_access == DockerAccess::Blocked {
            self.machine.bar_from_docker(&mut user).await?;
        }
        let guarded = async {
            match config.job_metadata_access {
                MetadataAccess::Blocked | MetadataAccess::Off => guard::check(self.machine, &user).await,
                MetadataAccess::Allowed => guard::lift(self.machine).await,
            }
        };
        // Independent of each other: the connection to GitHub, the key, and whether a job could get at the key.
        let mint = async {
            let signer = self.aws.signer(&config.key, self.machine);
            let github = OrgClient::new(
                &config.github.api_url,
                USER_AGENT,
                config.app.issuer.clone(),
                std::sync::Arc::new(signer),
                config.organization.as_str(),
                config.app.installation_id,
            )?;
            github.app().open_ahead().await;
            github.mint().await?;
            anyhow::Ok(github)
        };
        let both = async { Ok(tokio::try_join!(mint, guarded)?.0) };
        let (github, mint_ms) = phase("mint", MINT_BOUND, Box::pin(both)).await?;
        let clock_error_secs = github.app().clock_error_secs();
        if clock_error_secs != 0 {
            tracing::warn!(phase = "mint", clock_error_secs, "this machine's clock is off; GitHub's was used instead");
        }
        let register = Box::pin(register(self.machine, &self.identity, user, &github));
        let (registered, register_ms) = phase("register", REGISTER_BOUND, register).await?;
        if let Some(switch) = &self.switch
            && let Err(error) = phase("metadata", SWITCH_BOUND, Box::pin(switch.off())).await
        {
            // It takes no job like this.
            forget(&github, &registered).await;
            return Err(error);
        }
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

/// Takes a registration back that no listener has used.
async fn forget(github: &OrgClient, registered: &Registered) {
    let Some(id) = registered.id else { return };
    match github.delete_runner(id).await {
        Ok(Deleted::Gone | Deleted::Absent) => {}
        Ok(Deleted::Busy) => tracing::error!(phase = "metadata", "GitHub takes the runner for busy; it stays, offline"),
        Err(error) => tracing::error!(phase = "metadata", %error, "the runner stays registered at GitHub, offline"),
    }
}

async fn keep_credentials(switch: Option<&Switch>) -> Infallible {
    match switch {
        Some(switch) => switch.keep_credentials().await,
        None => std::future::pending().await,
    }
}

/// What a refusal asks of a person.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| cause.downcast_ref::<kiln_github::Error>()).and_then(kiln_github::Error::hint)
}

/// Waits until docker answers at its socket.
async fn docker(machine: &Machine) -> anyhow::Result<()> {
    let socket = machine.path("/var/run/docker.sock");
    while tokio::net::UnixStream::connect(&socket).await.is_err() {
        sleep(DOCKER_LOOK).await;
    }
    Ok(())
}

/// Lets systemd see that the binary is alive, at twice the rate it asks for, for as long as the life goes on.
async fn watchdog() -> Infallible {
    let Some(bound) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        sleep(bound / 2).await;
    }
}
