//! Whoever reaches the metadata service has the instance's role, and whoever has the role signs as the App.
//!
//! The image lays down rules that keep the runner's user and containers away from it (`kiln-metadata-guard.service`). This
//! sees, as that user, whether they hold.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::between_jobs::leave_service;
use crate::machine::{Machine, User};

/// The unit that lays the rules down.
pub(crate) const UNIT: &str = "kiln-metadata-guard.service";

/// The service is on the same host, and a rule of ours refuses at once. What says nothing for so long is no verdict.
const REACH_LIMIT: Duration = Duration::from_secs(2);

/// The probe's verdict; any other end is no verdict.
const OUT_OF_REACH: u8 = 0;
const IN_REACH: u8 = 10;
const NO_ANSWER: u8 = 11;

/// The service's other address, which EC2 has off unless it is asked for.
///
/// Source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>
const BY_IPV6: &str = "[fd00:ec2::254]:80";

/// Between two looks whether the rules still hold: a job with docker is root, and a package may reload the firewall.
const WATCH_EVERY: Duration = Duration::from_secs(60);

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
        Some(NO_ANSWER) => {
            bail!("it can't be seen whether {UNIT} holds: the metadata service neither answers nor is refused")
        }
        _ => bail!("the probe of the metadata service ended with {status}"),
    }
}

/// Looks again and again while what is returned is kept.
#[derive(Debug)]
pub(crate) struct Watching(JoinHandle<()>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sees that the rules hold for as long as a runner serves: they are laid down again once, and where that does not help the
/// instance leaves.
pub(crate) fn watch(machine: Machine, user: User) -> Watching {
    let watching = async move {
        let look = || {
            let (machine, user) = (machine.clone(), user.clone());
            async move { check(&machine, &user).await }
        };
        let whole = machine.is_whole();
        let restart = || async move {
            if whole {
                let restart = ["restart", UNIT];
                let _ = tokio::process::Command::new("/usr/bin/systemctl").args(restart).status().await;
            }
        };
        let error = fails(look, restart).await;
        leave_service(&format!("{error:#}"));
    };
    Watching(tokio::spawn(watching.in_current_span()))
}

/// Looks each minute; resolves with why the rules do not hold, once laying them down again has not helped.
async fn fails<L, D>(look: impl Fn() -> L, lay_down: impl Fn() -> D) -> anyhow::Error
where
    L: Future<Output = anyhow::Result<()>>,
    D: Future<Output = ()>,
{
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let Err(error) = look().await else { continue };
        tracing::error!(phase = "serve", error = %format!("{error:#}"), "the guard does not hold: laying its rules down again");
        lay_down().await;
        if let Err(error) = look().await {
            return error;
        }
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

/// The commands that see whether each of the unit's rules is in force. What may fail, because it is for IPv6, counts where there
/// is IPv6.
pub(crate) fn rules(unit: &str, ipv6: bool) -> Vec<Vec<String>> {
    let starts = unit.lines().filter_map(|line| line.trim().strip_prefix("ExecStart="));
    let starts = starts.filter(|start| ipv6 || !start.starts_with('-')).map(|start| start.trim_start_matches('-'));
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

/// Tries to connect, as whoever runs it. Only a refusal says that the service is out of reach; `forwarded`: silence too.
pub(crate) fn probe(forwarded: bool) -> ExitCode {
    let endpoint = endpoint();
    let host = endpoint.trim_start_matches("http://");
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let Ok(addresses) = host.to_socket_addrs() else { return ExitCode::from(1) };
    // A rehearsal's service is at one address only.
    let other = if endpoint_host().is_none() { BY_IPV6.parse().ok() } else { None };
    let verdicts: Vec<u8> = addresses.chain(other).map(|address| reach(address, forwarded)).collect();
    let worst = [IN_REACH, NO_ANSWER, OUT_OF_REACH].into_iter().find(|verdict| verdicts.contains(verdict));
    ExitCode::from(worst.unwrap_or(NO_ANSWER))
}

fn reach(address: SocketAddr, forwarded: bool) -> u8 {
    let error = match TcpStream::connect_timeout(&address, REACH_LIMIT) {
        Ok(_) => return IN_REACH,
        Err(error) => error,
    };
    let refused = [
        Errno::ECONNREFUSED,
        Errno::EHOSTUNREACH,
        Errno::ENETUNREACH,
        Errno::EACCES,
        Errno::EPERM,
        // There is no IPv6.
        Errno::EADDRNOTAVAIL,
        Errno::EAFNOSUPPORT,
    ];
    let silent = forwarded && error.kind() == std::io::ErrorKind::TimedOut;
    let refused = error.raw_os_error().is_some_and(|code| refused.contains(&Errno::from_raw(code)));
    if refused || silent { OUT_OF_REACH } else { NO_ANSWER }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::*;

    /// A job with docker can take the rules back at any time.
    #[tokio::test(start_paused = true)]
    async fn the_rules_are_looked_at_each_minute_and_laid_down_again_once() {
        let (begin, looks, laid_down) = (Instant::now(), Cell::new(0), Cell::new(0));
        // They hold twice; then not, until they are laid down again; then, after two more looks, not even so.
        let look = || {
            looks.set(looks.get() + 1);
            let holds = !matches!(looks.get(), 3 | 7 | 8);
            std::future::ready(if holds { Ok(()) } else { Err(anyhow::anyhow!("look {}", looks.get())) })
        };
        let lay_down = || {
            laid_down.set(laid_down.get() + 1);
            std::future::ready(())
        };
        let error = fails(look, lay_down).await;
        assert_eq!((error.to_string().as_str(), laid_down.get()), ("look 8", 2));
        assert_eq!(begin.elapsed(), WATCH_EVERY * 6);
    }
}
