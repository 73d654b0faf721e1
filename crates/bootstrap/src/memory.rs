//! What a start of the service leaves for the next one, on the disk: whether the instance is in service, has started its
//! listener, and has asked its group to be replaced. Root's, and of no use on another instance.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use kiln_config::boot::Lifecycle;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// Where it is.
const DIRECTORY: &str = "/var/lib/kiln";

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    /// Whose it is: an image made of an instance that has served must not be taken for that instance.
    pub(crate) instance: String,
    pub(crate) region: String,
    pub(crate) lifecycle: Option<Lifecycle>,
    /// The runner, and its id where it was known.
    pub(crate) runner: Option<(String, Option<u64>)>,
    /// The listener was started once. An ephemeral runner's instance never registers again then.
    pub(crate) listener_started: bool,
    /// The launch is completed.
    pub(crate) in_service: bool,
    /// A job was taken.
    pub(crate) took_job: bool,
    /// The group knows that this instance ends.
    pub(crate) group_told: bool,
}

impl Default for Kept {
    /// What holds where it can't be read: the worst.
    fn default() -> Self {
        Self {
            instance: String::new(),
            region: String::new(),
            lifecycle: None,
            runner: None,
            listener_started: true,
            in_service: true,
            took_job: false,
            group_told: false,
        }
    }
}

/// The memory of this instance.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    kept: Mutex<Kept>,
}

impl Memory {
    /// Reads what an earlier start left. What can't be read counts as an instance that was in service.
    pub(crate) fn open(machine: &Machine, instance: &str, region: &str, lifecycle: Option<&Lifecycle>) -> Self {
        let path = machine.path(DIRECTORY).join("instance.json");
        let fresh = Kept { listener_started: false, in_service: false, ..Kept::default() };
        let read = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(%error, path = %path.display(), "what an earlier start left can't be read");
                Kept { instance: instance.to_owned(), ..Kept::default() }
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => fresh.clone(),
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "what an earlier start left can't be read");
                Kept { instance: instance.to_owned(), ..Kept::default() }
            }
        };
        let own = if read.instance == instance { read } else { fresh };
        let kept =
            Kept { instance: instance.to_owned(), region: region.to_owned(), lifecycle: lifecycle.cloned(), ..own };
        Self { path, kept: Mutex::new(kept) }
    }

    pub(crate) fn kept(&self) -> Kept {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is kept.
    ///
    /// # Errors
    /// It can't be written; it then holds for this start alone.
    pub(crate) fn keep(&self, change: impl FnOnce(&mut Kept)) -> anyhow::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.clone();
        change(&mut kept);
        if *kept == before && self.path.exists() {
            return Ok(());
        }
        self.write(&kept).with_context(|| format!("write {}", self.path.display()))
    }

    /// The same where nothing better can be done than to say so.
    pub(crate) fn keep_or_warn(&self, change: impl FnOnce(&mut Kept)) {
        if let Err(error) = self.keep(change) {
            let error = format!("{error:#}");
            tracing::warn!(error, "not kept for a later start of this service");
        }
    }

    /// Whole or not at all.
    fn write(&self, kept: &Kept) -> anyhow::Result<()> {
        if let Some(directory) = self.path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let new = self.path.with_extension("new");
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.sync_all()?;
        Ok(std::fs::rename(&new, &self.path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(machine: &Machine, instance: &str) -> Memory {
        Memory::open(machine, instance, "eu-central-1", None)
    }

    #[test]
    fn what_is_kept_is_there_for_the_next_start_of_this_instance_alone() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::new(folder.path().to_owned());
        assert!(!memory(&machine, "i-1").kept().listener_started);
        memory(&machine, "i-1").keep(|kept| kept.listener_started = true).unwrap();
        let next = memory(&machine, "i-1").kept();
        assert!(next.listener_started && !next.in_service && next.region == "eu-central-1");
        let other = memory(&machine, "i-2").kept();
        assert!(!other.listener_started && !other.in_service);
    }

    #[test]
    fn what_can_not_be_read_counts_as_the_worst() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::new(folder.path().to_owned());
        std::fs::create_dir_all(folder.path().join("var/lib/kiln")).unwrap();
        std::fs::write(folder.path().join("var/lib/kiln/instance.json"), "{\"inst").unwrap();
        let kept = memory(&machine, "i-1").kept();
        assert!(kept.listener_started && kept.in_service && !kept.group_told);
    }
}
