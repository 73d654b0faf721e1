//! One roll-out of a fleet at a time: a lock in the organization's bucket, with a holder and an end.
//!
//! S3 writes it only in the state it was read in, so that of two who want it one gets it. The holder renews it while it
//! works; a lock that was not renewed is void. Steps are safe without it, too (AWS refuses a second refresh, a
//! second change): it keeps two pipelines from going two ways in turns.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_config::config::Config;
use kiln_config::model::FleetName;
use serde_json::{Value, json};

use crate::ami::bucket_name;
use crate::code::Code;
use crate::error::{Error, Result};
use crate::ports::{self, Cloud, CloudError, CloudErrorKind, Document, Progress};
use crate::wait::Pace;

/// A lock that was not renewed for so long is void: three heartbeats lost and one to spare, and short enough that
/// the run after a killed one waits no longer than a boot.
const LEASE: Duration = Duration::from_secs(90);

/// AWS refuses what is signed by a clock that is further off.
const MOST_SKEW: Duration = Duration::from_secs(300);

/// How often the holder renews it.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Who runs a roll-out.
#[derive(Debug, Clone)]
pub struct Holder {
    /// For the person who waits: "GitHub Actions run https://…".
    pub name: String,
    /// The machine, so exactly that process ids on it are told apart.
    pub machine: String,
    pub process: u32,
    /// Has that process of this very machine ended? Its lock is void then.
    pub ended: fn(u32) -> bool,
}

/// Who holds a fleet's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// As they named themselves: "GitHub Actions run https://…".
    pub holder: String,
    /// When the lock ends, in seconds, unless they renew it.
    pub left_secs: u64,
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Lock {
    bucket: String,
    key: String,
    fleet: FleetName,
    holder: Holder,
    version: String,
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Holder {
    fn text(&self) -> String {
        let ends = now_secs() + LEASE.as_secs();
        json!({ "holder": self.name, "machine": self.machine, "process": self.process, "ends_at_secs": ends })
            .to_string()
    }

    /// Who else holds it; `None` when it is free.
    fn other(&self, document: &Document) -> Option<Held> {
        let (held, lock) = read(document)?;
        let here = lock["machine"].as_str() == Some(self.machine.as_str());
        let process = process_in(&lock)?;
        if here && (process == self.process || (self.ended)(process)) {
            return None;
        }
        Some(held)
    }

    /// Did this very process write it, and not give it back?
    fn wrote(&self, document: &Document) -> bool {
        let Ok(lock) = serde_json::from_str::<Value>(&document.text) else { return false };
        lock["machine"].as_str() == Some(self.machine.as_str()) && process_in(&lock) == Some(self.process)
    }
}

fn process_in(lock: &Value) -> Option<u32> {
    lock["process"].as_u64().and_then(|process| u32::try_from(process).ok())
}

/// Who holds a lock, and what else it says. Its text may be anybody's, and its writer's clock wrong: whatever it says, it
/// ends soon after it was last written, by S3's clock.
fn read(document: &Document) -> Option<(Held, Value)> {
    // What is no lock was not written by Kiln, and holds nobody up.
    let lock: Value = serde_json::from_str(&document.text).ok()?;
    let left_secs = lock["ends_at_secs"].as_u64()?.checked_sub(now_secs())?.min(LEASE.as_secs());
    let age = document.written.map(|written| SystemTime::now().duration_since(written).unwrap_or_default());
    if age.is_some_and(|age| age > LEASE + MOST_SKEW) {
        return None;
    }
    let holder = lock["holder"].as_str().unwrap_or("somebody").to_owned();
    Some((Held { holder, left_secs }, lock))
}

/// The bucket that has the locks, and a fleet's in it.
async fn place(config: &Config, fleet: &FleetName, cloud: &impl Cloud) -> Result<(String, String)> {
    Ok((bucket(config, cloud).await?, format!("lock/{}", config.fleet_stack(fleet))))
}

/// The organization's bucket, by name.
pub(crate) async fn bucket(config: &Config, cloud: &impl Cloud) -> Result<String> {
    Ok(bucket_name(config, &cloud.caller().await?))
}

/// Who rolls a fleet out, or takes it down, right now.
///
/// # Errors
/// What AWS answers.
pub async fn held(config: &Config, fleet: &FleetName, cloud: &impl Cloud) -> Result<Option<Held>> {
    let (bucket, key) = place(config, fleet, cloud).await?;
    match cloud.document(&bucket, &key).await {
        Ok(document) => Ok(document.as_ref().and_then(read).map(|(held, _)| held)),
        // Nothing was ever baked here, and so nothing deployed.
        Err(error) if error.kind == CloudErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Lock {
    /// Takes the lock, waiting at most so long for another's.
    ///
    /// # Errors
    /// [`crate::Kind::Precondition`] when another still holds it, naming it.
    pub(crate) async fn take(
        config: &Config,
        fleet: &FleetName,
        holder: &Holder,
        wait: Duration,
        cloud: &impl Cloud,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let (bucket, key) = place(config, fleet, cloud).await?;
        let mut pace = Pace::new(wait);
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
                        "wait until that has ended, or give `--lock-wait SECS`; should it have died, its lock ends by \
                         itself within {left} s"
                    ),
                ));
            }
            progress.state(&format!("fleet {fleet} is being worked on by {name}: waiting for it"));
        }
    }

    /// Does work while the lock is kept; gives it back after it, however it ended.
    ///
    /// # Errors
    /// What the work fails with; [`crate::Kind::Precondition`] when the lock was lost, and the work is left where it is.
    pub(crate) async fn keep<T>(mut self, cloud: &impl Cloud, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = {
            let work = std::pin::pin!(work);
            tokio::select! {
                result = work => result,
                lost = self.beat(cloud) => Err(lost),
            }
        };
        // Whoever can't give it back (credentials that have expired) leaves it to end by itself. One write finds out the
        // version where the last heartbeat's answer was lost, another gives the lock back.
        if result.as_ref().err().is_none_or(|error| error.code != Code::LockLost) {
            let text = self.holder.text();
            let given = cloud.put_document(&self.bucket, &self.key, "{}", Some(&self.version)).await;
            if matches!(given, Ok(None)) && matches!(self.write(&text, cloud).await, Ok(true)) {
                let _ = cloud.put_document(&self.bucket, &self.key, "{}", Some(&self.version)).await;
            }
        }
        result
    }

    /// Writes the lock if it still is in the version that is known. S3 says that it is not where an earlier write was
    /// carried out and its answer was lost: then what is there is this process's own, and is taken as written.
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

    /// Renews the lock until that can't be done any more.
    async fn beat(&mut self, cloud: &impl Cloud) -> Error {
        let mut written = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            match self.write(&self.holder.text(), cloud).await {
                Ok(true) => written = tokio::time::Instant::now(),
                Ok(false) => return self.lost(),
                // The work's own calls tell what is the matter better than this one does.
                Err(_) if written.elapsed() < LEASE => {}
                Err(error) => return error.into(),
            }
        }
    }

    fn lost(&self) -> Error {
        let message = format!("another run took the lock of fleet {}, having heard nothing of this one", self.fleet);
        Error::new(Code::LockLost, message).hint("see how the other one ends; this one can be run again after it")
    }
}

fn no_bucket(error: CloudError) -> Error {
    let absent = error.kind == CloudErrorKind::NotFound;
    let error = Error::from(error);
    if absent { error.hint("the bucket is made by `cargo xtask ami`: run that first") } else { error }
}
