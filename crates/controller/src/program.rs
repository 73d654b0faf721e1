//! The program: controls the on-demand fleets of an organization from the instance that is its own.
//!
//! It learns what it is from its user data, and what the fleets are to be from the bucket. SIGTERM closes its sessions, so
//! that a successor need not wait for their end.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kiln_config::boot::{ControllerConfig, UserData};
use kiln_github::OrgClient;
use kiln_github::scale_set::{ClientInfo, ScaleSetClient};
use kiln_instance::aws::Aws;
use kiln_instance::metadata::{Metadata, Role};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::Instrument as _;

use crate::aws::{Ec2, S3, Signer};
use crate::clock::Clock;
use crate::github::GithubQueue;
use crate::intents::IntentFile;
use crate::reconcile::Controller;

const USER_AGENT: &str = concat!("kiln-controller/", env!("CARGO_PKG_VERSION"));

/// The metadata service may answer late while the network comes up.
const IDENTIFY_LIMIT: Duration = Duration::from_secs(60);

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(500);

/// Where the launch intents are kept from one start to the next.
const INTENTS: &str = "var/lib/kiln/launches";

/// Controls the fleets until it is asked to end. `root` is the machine's root directory; another one in rehearsals.
pub async fn run(root: &Path) -> ExitCode {
    match Box::pin(until_asked(root)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(phase = "end", error = %format!("{error:#}"), "the fleets are not controlled");
            ExitCode::FAILURE
        }
    }
}

async fn until_asked(root: &Path) -> anyhow::Result<()> {
    let stop = watch_signals().context("catch signals")?;
    let metadata = Metadata::new()?;
    let (instance, config) = identify(&metadata).await?;
    settle_environment(&config)?;
    let span = tracing::info_span!("controller", %instance, organization = %config.organization, phase = "control");
    control(root, &instance, &config, metadata, stop).instrument(span).await
}

/// True once the process is asked to end.
fn watch_signals() -> std::io::Result<watch::Receiver<bool>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (tell, stop) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(phase = "end", "asked to end: closing the sessions");
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        tell.send_replace(true);
    });
    Ok(stop)
}

/// Who this instance is, and what it is to control.
async fn identify(metadata: &Metadata) -> anyhow::Result<(String, ControllerConfig)> {
    let begin = Instant::now();
    let (instance, user_data) = loop {
        let asked = tokio::try_join!(metadata.required("meta-data/instance-id"), metadata.required("user-data"));
        match asked {
            Ok(found) => break found,
            Err(error) if begin.elapsed() >= IDENTIFY_LIMIT || error.http_status() == Some(404) => {
                return Err(error).context("ask the metadata service who this is");
            }
            Err(error) => tracing::warn!(phase = "identify", %error, "the metadata service does not answer"),
        }
        sleep(AGAIN).await;
    };
    match UserData::from_json(&user_data)? {
        UserData::Controller(config) => Ok((instance.trim().to_owned(), *config)),
        UserData::Boot(_) | UserData::OnDemand(_) => bail!("the user data is that of a runner's instance"),
    }
}

/// Starts this process once more where its environment lacks a proxy or certificates: its clients read them from there.
fn settle_environment(config: &ControllerConfig) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt as _;
    let lacking = config.environment.iter().any(|(name, value)| std::env::var(name).ok().as_ref() != Some(value));
    if !lacking {
        return Ok(());
    }
    tracing::info!(phase = "configure", "starting once more with the proxy and certificates of its user data");
    let mut again = std::process::Command::new("/proc/self/exe");
    let error = again.args(std::env::args_os().skip(1)).envs(&config.environment).exec();
    Err(error).context("start this binary once more")
}

async fn control(
    root: &Path,
    instance: &str,
    config: &ControllerConfig,
    metadata: Metadata,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let aws = Aws::new(config.region.as_str(), Arc::new(Role::new(metadata)))?;
    let queue = Arc::new(GithubQueue(scale_sets(config, &aws)?));
    let machines = Arc::new(Ec2 { aws: aws.clone(), organization: config.organization.prefix() });
    let store = Arc::new(S3 { aws, bucket: config.bucket.clone() });
    let path = root.join(INTENTS);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let intents = IntentFile::open(&path).with_context(|| format!("open the launch intents in {}", path.display()))?;
    let owner = format!("kiln-controller/{instance}");
    let controller = Controller::new(queue, machines, store, intents, owner, Clock::start());
    tracing::info!("controlling");
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    tokio::select! {
        () = Box::pin(controller.run(stop)) => {}
        never = watchdog() => match never {},
    }
    tracing::info!(phase = "end", "ended");
    Ok(())
}

fn scale_sets(config: &ControllerConfig, aws: &Aws) -> anyhow::Result<ScaleSetClient> {
    let signer = Arc::new(Signer::new(aws.clone(), &config.key));
    let organization = config.organization.as_str();
    let (issuer, installation) = (config.app.issuer.clone(), config.app.installation_id);
    let org = OrgClient::new(&config.github.api_url, USER_AGENT, issuer, signer, organization, installation)?;
    let page = format!("{}/{organization}", config.github.url.as_str().trim_end_matches('/'));
    let info = ClientInfo {
        system: "kiln".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        subsystem: "controller".to_owned(),
    };
    Ok(ScaleSetClient::new(&config.github.api_url, &page.parse()?, &info, org)?)
}

/// Lets systemd see that the process is alive, at twice the rate it asks for.
async fn watchdog() -> std::convert::Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        sleep(limit / 2).await;
    }
}
