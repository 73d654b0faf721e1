//! The lock of a fleet, so that only one run changes it at a time: an object in the organization's bucket with a holder and an expiry.
//!
//! S3 writes the object only if it has not changed since it was read, so only one of two runs gets the lock. The holder renews the
//! lock while it works; a lock that is not renewed expires. The steps are also safe without the lock, because AWS refuses a second
//! refresh or stack operation. The lock prevents two pipelines from alternately rolling a fleet in different directions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_config::config::Config;
use kiln_config::model::FleetName;
use serde_json::{Value, json};

use crate::ami::bucket_name;
use crate::code::Code;
use crate::error::{Error, Result};
use crate::ports::{self, Cloud, CloudError, CloudErrorKind, Document, Progress};
use crate::wait::PollBackoff;

/// How long a lock is valid without renewal: more than four heartbeats, and short enough that the run after a killed one waits no
/// longer than a boot.
const LEASE: Duration = Duration::from_secs(90);

/// AWS refuses requests that are signed with a clock that differs by more than this.
const MOST_SKEW: Duration = Duration::from_secs(300);

/// How often the holder renews the lock.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Identifies a run that takes locks.
#[derive(Debug, Clone)]
pub struct LockOwner {
    /// A name for people who wait for the lock: "GitHub Actions run https://…".
    pub name: String,
    /// The machine's id. It scopes `process`, because process ids are unique only on one machine.
    pub machine: String,
    pub process: u32,
    /// Whether a process of this machine has ended. Its lock is then invalid.
    pub ended: fn(u32) -> bool,
}

/// Who holds a fleet's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The holder's name: "GitHub Actions run https://…".
    pub holder: String,
    /// Seconds until the lock expires, unless the holder renews it.
    pub left_secs: u64,
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Lock {
    bucket: String,
    key: String,
    fleet: FleetName,
    holder: LockOwner,
    version: String,
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl LockOwner {
    fn text(&self) -> String {
        let ends = now_secs() + LEASE.as_secs();
        json!({ "holder": self.name, "machine": self.machine, "process": self.process, "ends_at_secs": ends })
            .to_string()
    }

    /// Another holder of the lock; `None` if the lock is free or ours.
    fn other(&self, document: &Document) -> Option<Held> {
        let (held, lock) = read(document)?;
        let here = lock["machine"].as_str() == Some(self.machine.as_str());
        let process = process_in(&lock)?;
        if here && (process == self.process || (self.ended)(process)) {
            return None;
        }
        Some(held)
    }

    /// Whether this process wrote the lock and has not released it.
    fn wrote(&self, document: &Document) -> bool {
        let Ok(lock) = serde_json::from_str::<Value>(&document.text) else { return false };
        lock["machine"].as_str() == Some(self.machine.as_str()) && process_in(&lock) == Some(self.process)
    }
}

fn process_in(lock: &Value) -> Option<u32> {
    lock["process"].as_u64().and_then(|process| u32::try_from(process).ok())
}

/// The holder of a lock, and the lock's JSON. Anyone may have written the text, and with a wrong clock. So a lock expires soon after
/// its last write by S3's clock, whatever its text says.
fn read(document: &Document) -> Option<(Held, Value)> {
    // An object that is not a lock was not written by Kiln, and blocks nothing.
    let lock: Value = serde_json::from_str(&document.text).ok()?;
    let left_secs = lock["ends_at_secs"].as_u64()?.checked_sub(now_secs())?.min(LEASE.as_secs());
    let age = document.written.map(|written| SystemTime::now().duration_since(written).unwrap_or_default());
    if age.is_some_and(|age| age > LEASE + MOST_SKEW) {
        return None;
    }
    let holder = lock["holder"].as_str().unwrap_or("somebody").to_owned();
    Some((Held { holder, left_secs }, lock))
}

/// The bucket of the locks, and the key of a fleet's lock.
async fn place(config: &Config, fleet: &FleetName, cloud: &impl Cloud) -> Result<(String, String)> {
    Ok((bucket(config, cloud).await?, format!("lock/{}", config.fleet_stack(fleet))))
}

/// The name of the organization's bucket.
pub(crate) async fn bucket(config: &Config, cloud: &impl Cloud) -> Result<String> {
    Ok(bucket_name(config, &cloud.caller().await?))
}

/// The current holder of a fleet's lock.
///
/// # Errors
/// What AWS answers.
pub async fn held(config: &Config, fleet: &FleetName, cloud: &impl Cloud) -> Result<Option<Held>> {
    let (bucket, key) = place(config, fleet, cloud).await?;
    match cloud.document(&bucket, &key).await {
        Ok(document) => Ok(document.as_ref().and_then(read).map(|(held, _)| held)),
        // There is no bucket: no image was baked here, so no fleet was deployed.
        Err(error) if error.kind == CloudErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Lock {
    /// Takes the lock. Waits at most `wait` if another run holds it.
    ///
    /// # Errors
    /// [`crate::Kind::Precondition`] with the name of the run that still holds it.
    pub(crate) async fn take(
        config: &Config,
        fleet: &FleetName,
        holder: &LockOwner,
        wait: Duration,
        cloud: &impl Cloud,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let (bucket, key) = place(config, fleet, cloud).await?;
        let mut pace = PollBackoff::new(wait);
        loop {
            let document = cloud.document(&bucket, &key).await.map_err(no_bucket)?;
            let other = document.as_ref().and_then(|document| holder.other(document));
            if other.is_none() {
                let version = document.map(|document| document.version).unwrap_or_default();
                let (fleet, holder) = (fleet.clone(), holder.clone());
                let mut lock = Self { bucket: bucket.clone(), key: key.clone(), fleet, holder, version };
                if lock.write(&lock.holder.text(), cloud).await.map_err(no_bucket)? {
                    return Ok(lock);
                }
            }
            let Held { holder: name, left_secs: left } = other
                .unwrap_or_else(|| Held { holder: "another run, which took it just now".to_owned(), left_secs: 0 });
            if pace.pause().await.is_err() {
                return Err(Error::new(Code::FleetLocked, format!("fleet {fleet} is being worked on by {name}")).hint(
                    format!(
                        "wait until that run has finished, or give `--lock-wait SECS`; if it was killed, its lock expires within \
                         {left} s"
                    ),
                ));
            }
            progress.state(&format!("fleet {fleet} is being worked on by {name}: waiting for it"));
        }
    }

    /// Runs `work` while it renews the lock; releases the lock afterwards, whatever the result.
    ///
    /// # Errors
    /// The error of `work`; [`crate::Kind::Precondition`] if the lock was lost, and then `work` is cancelled where it is.
    pub(crate) async fn keep<T>(mut self, cloud: &impl Cloud, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = {
            let work = std::pin::pin!(work);
            tokio::select! {
                result = work => result,
                lost = self.beat(cloud) => Err(lost),
            }
        };
        // If the release fails (expired credentials), the lock expires by itself. If the response to the last heartbeat was lost, the
        // first write finds out the version, and a second one releases the lock.
        if result.as_ref().err().is_none_or(|error| error.code != Code::LockLost) {
            let text = self.holder.text();
            let given = cloud.put_document(&self.bucket, &self.key, "{}", Some(&self.version)).await;
            if matches!(given, Ok(None)) && matches!(self.write(&text, cloud).await, Ok(true)) {
                let _ = cloud.put_document(&self.bucket, &self.key, "{}", Some(&self.version)).await;
            }
        }
        result
    }

    /// Writes the lock if it still has the known version. If an earlier write succeeded but its response was lost, S3 reports another
    /// version; then the object is this process's own lock, which counts as written.
    async fn write(&mut self, text: &str, cloud: &impl Cloud) -> ports::Result<bool> {
        let known = Some(self.version.as_str()).filter(|version| !version.is_empty());
        if let Some(version) = cloud.put_document(&self.bucket, &self.key, text, known).await? {
            self.version = version;
            return Ok(true);
        }
        match cloud.document(&self.bucket, &self.key).await? {
            Some(document) if self.holder.wrote(&document) => {
                self.version = document.version;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Renews the lock until that fails.
    async fn beat(&mut self, cloud: &impl Cloud) -> Error {
        let mut written = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            match self.write(&self.holder.text(), cloud).await {
                Ok(true) => written = tokio::time::Instant::now(),
                Ok(false) => return self.lost(),
                // While the lease is valid, errors are left to the work's own calls, which report the cause better.
                Err(_) if written.elapsed() < LEASE => {}
                Err(error) => return error.into(),
            }
        }
    }

    fn lost(&self) -> Error {
        let message =
            format!("another run took the lock of fleet {}, because this run did not renew it in time", self.fleet);
        Error::new(Code::LockLost, message).hint("wait for the other run to finish, then run this command again")
    }
}

fn no_bucket(error: CloudError) -> Error {
    let absent = error.kind == CloudErrorKind::NotFound;
    let error = Error::from(error);
    if absent { error.hint("`cargo xtask ami` creates the bucket: run it first") } else { error }
}
