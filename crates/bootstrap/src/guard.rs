//! Whoever reaches the metadata service has the instance's role, and whoever has the role signs as the App.
//!
//! The image lays down rules that keep the runner's user and containers away from it (`kiln-metadata-guard.service`). This
//! sees, as that user, whether they hold.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::machine::{Machine, User};

/// The unit that lays the rules down.
pub(crate) const UNIT: &str = "kiln-metadata-guard.service";

/// The service is on the same host: a connection that has not come after so long does not come.
const REACH_BOUND: Duration = Duration::from_millis(300);

/// The probe's verdict; any other end is no verdict.
const OUT_OF_REACH: u8 = 0;
const IN_REACH: u8 = 10;

/// Refuses to go on where the runner's user reaches the metadata service.
///
/// # Errors
/// It does, or it can't be told.
pub(crate) async fn check(machine: &Machine, user: &User) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("find this executable")?;
    let mut probe = machine.command_as(user, &own, &machine.path("/"))?.arg("probe-metadata");
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        probe = probe.env(ENDPOINT, &endpoint);
    }
    let status = probe.output().await.context("probe the metadata service")?.status;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(OUT_OF_REACH) => Ok(()),
        Some(IN_REACH) => bail!(
            "the runner's user reaches the metadata service, and with it the App's key: is {UNIT} running? \
             (`job_metadata_access = \"allowed\"` in kiln.toml lets jobs have it)"
        ),
        _ => bail!("the probe of the metadata service ended with {status}"),
    }
}

/// Takes the rules back, for a fleet whose jobs use the instance's role.
///
/// # Errors
/// systemd refuses.
pub(crate) async fn lift(machine: &Machine) -> anyhow::Result<()> {
    if !machine.is_whole() {
        return Ok(());
    }
    let status = tokio::process::Command::new("/usr/bin/systemctl").args(["stop", UNIT]).status().await;
    let status = status.with_context(|| format!("stop {UNIT}"))?;
    if !status.success() {
        bail!("systemctl stop {UNIT} ended with {status}");
    }
    Ok(())
}

/// The commands that see whether each of the unit's rules is in force.
pub(crate) fn rules(unit: &str) -> Vec<Vec<String>> {
    let starts = unit.lines().filter_map(|line| line.trim().strip_prefix("ExecStart="));
    let asks =
        |word: &str| if matches!(word, "--insert" | "--append") { "--check".to_owned() } else { word.to_owned() };
    starts.map(|start| start.split_whitespace().map(asks).collect()).collect()
}

/// The variable that every AWS SDK reads.
const ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// Where the service is.
pub(crate) fn endpoint() -> String {
    let endpoint = std::env::var(ENDPOINT).unwrap_or_else(|_| "http://169.254.169.254".to_owned());
    endpoint.trim_end_matches('/').to_owned()
}

/// Its host, where it is elsewhere than on every instance.
pub(crate) fn endpoint_host() -> Option<String> {
    let endpoint: url::Url = std::env::var(ENDPOINT).ok()?.parse().ok()?;
    endpoint.host_str().map(|host| host.trim_matches(['[', ']']).to_owned())
}

/// Tries to connect, as whoever runs it.
pub(crate) fn probe() -> ExitCode {
    let endpoint = endpoint();
    let host = endpoint.trim_start_matches("http://");
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let Ok(addresses) = host.to_socket_addrs() else { return ExitCode::from(1) };
    let reached = |address: SocketAddr| TcpStream::connect_timeout(&address, REACH_BOUND).is_ok();
    ExitCode::from(if addresses.into_iter().any(reached) { IN_REACH } else { OUT_OF_REACH })
}
