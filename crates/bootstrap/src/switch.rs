//! An ephemeral fleet's `job_metadata_access = "off"`: the instance has no metadata service while its job runs, so that not
//! even a privileged container gets at the role's credentials.
//!
//! The credentials that the binary needs to leave by then live in its memory alone, and only for hours: before they expire
//! it switches the service on, takes newer ones, and switches it off again. `kiln-metadata-guard.service` keeps the runner's
//! user out meanwhile.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use tokio::time::{sleep, timeout};

use crate::aws::Ec2;
use crate::identify::{Answers, Probe};
use crate::machine::Machine;

/// EC2's credentials are valid for six hours, and newer ones are there long before; what EC2 promises is five minutes before.
///
/// Source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html>
const AHEAD: Duration = Duration::from_secs(3600);

/// The least pause between two looks for newer credentials.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// How often it is tried to get away from credentials that have expired.
const LOST_PAUSE: Duration = Duration::from_secs(60);

/// EC2 carries a switch out within seconds of accepting it; with the calls' own retries a minute.
pub(crate) const SWITCH_BOUND: Duration = Duration::from_secs(60);

/// Between two looks whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A service that could not be switched off again is tried again so much later.
const OFF_AGAIN: Duration = Duration::from_secs(15);

/// Where an instance notes that it has no metadata service: it survives a reboot, as the switch does.
const MARK: &str = "/var/lib/kiln/metadata-off";

/// The switch of the instance's own metadata service.
#[derive(Debug)]
pub(crate) struct Switch {
    ec2: Ec2,
    mark: PathBuf,
    /// When the credentials in memory expire.
    expiry: Mutex<Option<SystemTime>>,
}

/// Has an earlier start of this instance switched its service off? It can't be identified then.
pub(crate) fn is_marked(machine: &Machine) -> bool {
    machine.path(MARK).exists()
}

impl Switch {
    pub(crate) fn new(machine: &Machine, ec2: Ec2) -> Self {
        Self { ec2, mark: machine.path(MARK), expiry: Mutex::default() }
    }

    /// Takes the newest credentials there are, and switches the service off. The caller sets the bound.
    ///
    /// # Errors
    /// It can't be switched off: no job may be taken.
    pub(crate) async fn off(&self) -> anyhow::Result<()> {
        let expiry = self.ec2.credentials_expire().await?;
        self.remember(expiry);
        // Before the switch: what is never marked could not be told from an instance that is still booting.
        if let Some(directory) = self.mark.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        std::fs::write(&self.mark, "").with_context(|| format!("write {}", self.mark.display()))?;
        self.switch(false).await?;
        let valid_secs = left(expiry).map(|left| left.as_secs());
        tracing::info!(phase = "metadata", valid_secs, "the metadata service is off; credentials are kept in memory");
        Ok(())
    }

    /// Keeps the credentials valid, for as long as the instance lives.
    pub(crate) async fn keep_credentials(&self) -> Infallible {
        loop {
            match left(self.expiry()) {
                Some(left) => sleep(next_look(left)).await,
                None => std::future::pending().await,
            }
            let before = self.expiry();
            let renewed = timeout(SWITCH_BOUND, self.renew()).await.context("not done in time").and_then(|done| done);
            // Whatever came of it: an answer may have been lost.
            while let Err(error) = self.switch(false).await {
                let error = format!("{error:#}");
                tracing::error!(phase = "metadata", error, "the metadata service is not off again; trying again");
                sleep(OFF_AGAIN).await;
            }
            let valid_secs = left(self.expiry()).map(|left| left.as_secs());
            match renewed {
                Ok(()) if self.expiry() > before => {
                    tracing::info!(
                        phase = "metadata",
                        valid_secs,
                        "credentials renewed, the metadata service off again"
                    );
                }
                Ok(()) => tracing::info!(phase = "metadata", valid_secs, "there are no newer credentials yet"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(phase = "metadata", error, valid_secs, "credentials not renewed; trying again");
                }
            }
        }
    }

    /// Have the credentials expired, so that the group can't be asked for anything any more?
    pub(crate) fn is_lost(&self) -> bool {
        left(self.expiry()) == Some(Duration::ZERO)
    }

    async fn renew(&self) -> anyhow::Result<()> {
        self.switch(true).await?;
        self.remember(self.ec2.credentials_expire().await?);
        Ok(())
    }

    /// Switches, and waits until it is so.
    async fn switch(&self, on: bool) -> anyhow::Result<()> {
        self.ec2.switch_metadata(on).await?;
        let wanted = if on { Answers::Yes } else { Answers::No };
        let probe = Probe::new()?;
        let so = async {
            while probe.answers().await != wanted {
                sleep(LOOK_EVERY).await;
            }
        };
        let so = timeout(SWITCH_BOUND, so).await;
        so.with_context(|| {
            format!("EC2 has accepted it, but the metadata service is not {}", if on { "on" } else { "off" })
        })
    }

    fn remember(&self, expiry: Option<SystemTime>) {
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner) = expiry;
    }

    fn expiry(&self) -> Option<SystemTime> {
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long credentials are valid yet; `None` for those that do not expire.
fn left(expiry: Option<SystemTime>) -> Option<Duration> {
    expiry.map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default())
}

/// When newer credentials are looked for: an hour ahead, and then each time half of what is left is over. From an hour to
/// the last second these are a dozen looks.
fn next_look(left: Duration) -> Duration {
    if left.is_zero() { LOST_PAUSE } else { left.saturating_sub(AHEAD).max(left / 2).max(LEAST_PAUSE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_credentials_are_looked_for_in_time_and_not_all_the_time() {
        let secs = Duration::from_secs;
        for (left, pause) in [(6 * 3600, 5 * 3600), (7200, 3600), (3600, 1800), (600, 300), (1, 1), (0, 60)] {
            assert_eq!(next_look(secs(left)), secs(pause), "{left}");
        }
        let (mut left, mut looks) = (secs(6 * 3600), 0);
        let mut last = Duration::ZERO;
        while left > secs(1) {
            last = left;
            left = left.saturating_sub(next_look(left));
            looks += 1;
        }
        assert!(looks <= 14, "{looks}");
        // The five minutes that EC2 promises hold several of them.
        assert!(last < secs(300));
    }
}
