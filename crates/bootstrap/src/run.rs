//! A runner's life, from process start to the instance's end.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use kiln_fleet::model::Registration;
use kiln_github::OrgClient;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Instrument as _;

use crate::aws::{Aws, Group, Verdict};
use crate::drain::drain;
use crate::identify::{Identity, Metadata};
use crate::machine::Machine;
use crate::phase::phase;
use crate::register::{Registered, register};
use crate::serve::{Ended, Listener, ended};

const USER_AGENT: &str = concat!("kiln-bootstrap/", env!("CARGO_PKG_VERSION"));

/// The metadata service may answer late while the network comes up.
const IDENTIFY_BOUND: Duration = Duration::from_secs(60);

/// Retries of KMS and GitHub within; well below the launch hook's ten minutes, together with the next.
const MINT_BOUND: Duration = Duration::from_secs(180);

/// `config.sh` starts .NET twice, on the smallest instances a quarter of a minute.
const REGISTER_BOUND: Duration = Duration::from_secs(240);

/// From the listener's start to its session. Connecting takes seconds; a session conflict GitHub clears in a minute or two.
const LISTEN_BOUND: Duration = Duration::from_secs(240);

/// Auto Scaling asks for a look every few seconds at the least; a spot notice comes two minutes ahead.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A listener that ends this often without having served is broken: the instance is replaced.
const MOST_STARTS: u32 = 5;

/// One that served this long is not counted as broken.
const SERVED: Duration = Duration::from_secs(600);

/// Runs it; the exit code is the process's.
pub(crate) async fn run(machine: &Machine) -> ExitCode {
    let metadata = Metadata::connect();
    let identity = match phase("identify", IDENTIFY_BOUND, Box::pin(metadata.identify())).await {
        Ok((identity, ms)) => (identity, ms),
        // Nothing says which group to tell: the launch hook's own timeout gives the instance up.
        Err(error) => {
            tracing::error!(phase = "identify", error = %format!("{error:#}"), "this boot can't succeed");
            return ExitCode::FAILURE;
        }
    };
    let (identity, identify_ms) = identity;
    let span = tracing::info_span!("runner", instance = %identity.instance, fleet = %identity.config.fleet);
    async {
        let aws = Aws::connect(&identity.region, &metadata);
        let group = identity.config.lifecycle.as_ref().map(|lifecycle| aws.group(lifecycle, &identity.instance));
        match boot(machine, &identity, &aws, identify_ms).await {
            Ok((github, registered)) => {
                Life { machine, metadata: &metadata, group, github, registered, identity: &identity }.live().await
            }
            Err(error) => {
                let hint = hint(&error).unwrap_or_default();
                tracing::error!(error = %format!("{error:#}"), hint, "this boot can't succeed");
                if let Some(group) = group {
                    group.complete_launch(Verdict::Abandon).await;
                }
                ExitCode::FAILURE
            }
        }
    }
    .instrument(span)
    .await
}

/// What GitHub's refusal asks of a person.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| cause.downcast_ref::<kiln_github::Error>()).and_then(kiln_github::Error::hint)
}

async fn boot(
    machine: &Machine,
    identity: &Identity,
    aws: &Aws,
    identify_ms: u64,
) -> anyhow::Result<(OrgClient, Registered)> {
    let config = &identity.config;
    let mint = async {
        let signer = aws.signer(&config.key, machine).await?;
        let github = OrgClient::new(
            &config.github.api_url,
            USER_AGENT,
            config.app.issuer.clone(),
            signer,
            config.organization.as_str(),
            config.app.installation_id,
        )?;
        github.mint().await?;
        Ok(github)
    };
    let (github, mint_ms) = phase("mint", MINT_BOUND, mint).await?;
    let clock_error_secs = github.app().clock_error_secs();
    if clock_error_secs != 0 {
        tracing::warn!(phase = "mint", clock_error_secs, "this machine's clock is off; GitHub's was used instead");
    }
    let (registered, register_ms) = phase("register", REGISTER_BOUND, register(machine, identity, &github)).await?;
    tracing::info!(runner = registered.name, identify_ms, mint_ms, register_ms, "registered");
    Ok((github, registered))
}

struct Life<'a> {
    machine: &'a Machine,
    metadata: &'a Metadata,
    group: Option<Group>,
    github: OrgClient,
    registered: Registered,
    identity: &'a Identity,
}

/// Why the serving ended.
enum Turn {
    Listener(Option<i32>),
    Leave(&'static str),
    Silent,
}

impl Life<'_> {
    async fn live(self) -> ExitCode {
        let ephemeral = self.identity.config.registration == Registration::Ephemeral;
        let mut starts = 0;
        let mut launched = false;
        loop {
            let begin = Instant::now();
            let mut listener = match Listener::start(self.machine, &self.registered) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(phase = "serve", error = %format!("{error:#}"), "this boot can't succeed");
                    return self.give_up(launched).await;
                }
            };
            let turn = self.serve(&mut listener, &mut launched).await;
            let code = match turn {
                Turn::Leave(why) => return self.leave(why, &mut listener).await,
                Turn::Silent => {
                    tracing::error!(phase = "serve", "no session within {} s", LISTEN_BOUND.as_secs());
                    listener.stop().await;
                    Some(2)
                }
                Turn::Listener(code) => code,
            };
            starts = if begin.elapsed() >= SERVED { 1 } else { starts + 1 };
            match ended(code, ephemeral) {
                Ended::JobDone => {
                    tracing::info!(phase = "serve", "the one job is done");
                    return self.replaced(&mut listener).await;
                }
                Ended::Deprecated => return self.retired(&mut listener, launched).await,
                // A just-in-time configuration is good for one start once it has had a session.
                Ended::Again(why) if starts >= MOST_STARTS || ephemeral && launched => {
                    tracing::error!(phase = "serve", why, starts, "the listener does not stay up");
                    let _ = drain(&self.github, &self.registered.name, self.registered.id, &mut listener, None).await;
                    return self.give_up(launched).await;
                }
                Ended::Again(why) => {
                    let pause = Duration::from_secs(1 << starts);
                    tracing::warn!(phase = "serve", why, starts, pause_secs = pause.as_secs(), "the listener ended");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Serves until the listener ends or the instance has to leave.
    async fn serve(&self, listener: &mut Listener, launched: &mut bool) -> Turn {
        let listening = listener.listening();
        let mut listening = std::pin::pin!(listening);
        let leave = self.must_leave();
        let mut leave = std::pin::pin!(leave);
        let silent = tokio::time::sleep(LISTEN_BOUND);
        let mut silent = std::pin::pin!(silent);
        let mut online = false;
        loop {
            tokio::select! {
                () = &mut listening, if !online => {
                    online = true;
                    if !std::mem::replace(launched, true) {
                        tracing::info!(phase = "serve", runner = self.registered.name, "online");
                        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                        if let Some(group) = &self.group {
                            group.complete_launch(Verdict::Continue).await;
                        }
                    }
                }
                () = &mut silent, if !online => return Turn::Silent,
                code = listener.exit() => return Turn::Listener(code),
                why = &mut leave => return Turn::Leave(why),
            }
        }
    }

    /// Resolves when the instance has to leave, with the reason.
    async fn must_leave(&self) -> &'static str {
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return "signals can't be handled";
        };
        let told = async {
            if self.group.is_none() {
                return std::future::pending().await;
            }
            loop {
                match self.metadata.leaving().await {
                    Ok(Some(why)) => return why,
                    Ok(None) => {}
                    Err(error) => tracing::warn!(error = %format!("{error:#}"), "the metadata service does not answer"),
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            why = told => why,
        }
    }

    async fn leave(self, why: &'static str, listener: &mut Listener) -> ExitCode {
        tracing::info!(phase = "drain", why, "leaving");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        drain(&self.github, &self.registered.name, self.registered.id, listener, self.group.as_ref()).await;
        if let Some(group) = &self.group {
            group.complete_termination().await;
        }
        ExitCode::SUCCESS
    }

    /// Asks for a fresh instance, and leaves when the group says so.
    async fn replaced(self, listener: &mut Listener) -> ExitCode {
        if let Some(group) = &self.group {
            group.replace().await;
            let why = self.must_leave().await;
            return self.leave(why, listener).await;
        }
        self.leave("the one job is done", listener).await
    }

    /// Stays, registered no more and idle: a fresh instance of the same image would fare no better, and would replace
    /// itself for ever.
    async fn retired(self, listener: &mut Listener, launched: bool) -> ExitCode {
        let version = &self.identity.config.runner.version;
        tracing::error!(
            phase = "serve",
            %version,
            hint = "pin a newer runner in kiln.toml, then `cargo xtask ami` and `cargo xtask deploy`",
            "GitHub serves this runner version no more"
        );
        drain(&self.github, &self.registered.name, self.registered.id, listener, None).await;
        if let Some(group) = self.group.as_ref().filter(|_| !launched) {
            group.complete_launch(Verdict::Abandon).await;
        }
        let why = self.must_leave().await;
        self.leave(why, listener).await
    }

    async fn give_up(self, launched: bool) -> ExitCode {
        if let Some(group) = &self.group {
            if launched {
                group.replace().await;
            } else {
                group.complete_launch(Verdict::Abandon).await;
            }
        }
        ExitCode::from(3)
    }
}
