//! What was asked of EC2 and may not be seen yet.
//!
//! An intent is on disk before its launch is sent, so that a controller that is killed between the call and its answer counts
//! the instances that it can't see: EC2 lists an instance up to a minute late. This is the one thing that the controller
//! remembers beyond its own life; losing it may only delay a launch.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::{ControllerId, FleetName, LaunchToken};

/// How long a launch may be invisible: a call takes at most [`crate::reconcile::CALL_LIMIT`], and EC2's list is at most a minute late.
///
/// assumption: a minute. AWS promises no figure for EC2's eventual consistency.
pub const UNSEEN: Duration = Duration::from_secs(90);

/// A launch that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Its token.
    pub token: LaunchToken,
    /// For which fleet.
    pub fleet: FleetName,
    /// How many instances; once settled, how many there are.
    pub count: u32,
    /// When.
    pub at: Timestamp,
    /// Has EC2 answered?
    #[serde(default)]
    pub settled: bool,
}

/// Where intents are kept.
pub trait Intents: Send + 'static {
    /// Which controller this is: the same for as long as the log is.
    fn controller(&self) -> &ControllerId;
    /// What was not seen to its end when the log was opened.
    fn outstanding(&self) -> Vec<Intent>;
    /// Writes an intent down. When this returns, it survives the machine's loss of power.
    ///
    /// # Errors
    /// The disk's. The launch must not be sent then.
    fn begin(&mut self, intent: &Intent) -> io::Result<()>;
    /// EC2 answered with so many instances.
    ///
    /// # Errors
    /// The disk's.
    fn settle(&mut self, token: &LaunchToken, count: u32) -> io::Result<()>;
    /// All its instances were seen, or its time is over.
    ///
    /// # Errors
    /// The disk's.
    fn end(&mut self, token: &LaunchToken) -> io::Result<()>;
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Controller(ControllerId),
    Begin(Intent),
    Settle(LaunchToken, u32),
    End(LaunchToken),
}

/// Intents in a file of JSON lines. Only one process at a time can have it.
#[derive(Debug)]
pub struct IntentFile {
    path: PathBuf,
    file: File,
    /// Held for the process's life; released by the kernel when it ends, however it ends.
    _lock: File,
    controller: ControllerId,
    intents: BTreeMap<LaunchToken, Intent>,
    lines: usize,
}

/// The file is written again from what is outstanding after so many lines: about 20 KB.
const MOST_LINES: usize = 200;

impl IntentFile {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// The disk's; [`io::ErrorKind::WouldBlock`] where another process has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let lock = OpenOptions::new().create(true).append(true).open(path.with_extension("lock"))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another controller of this host has the launch intents")
            }
            std::fs::TryLockError::Error(error) => error,
        })?;
        let (controller, intents) = match File::open(path) {
            Ok(file) => Self::replay(BufReader::new(file))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let controller = controller.unwrap_or_else(|| ControllerId::new(format!("{:032x}", fastrand::u128(..))));
        let file = Self::rewrite(path, &controller, &intents)?;
        let lines = intents.len() + 1;
        Ok(Self { path: path.to_owned(), file, _lock: lock, controller, intents, lines })
    }

    fn replay(file: impl io::BufRead) -> io::Result<(Option<ControllerId>, BTreeMap<LaunchToken, Intent>)> {
        let mut controller = None;
        let mut intents = BTreeMap::new();
        for line in file.lines() {
            // A line that was torn by a loss of power was never promised: its launch was not sent.
            match serde_json::from_str(&line?) {
                Ok(Line::Controller(id)) => controller = Some(id),
                Ok(Line::Begin(intent)) => drop(intents.insert(intent.token.clone(), intent)),
                Ok(Line::Settle(token, count)) => settle(&mut intents, &token, count),
                Ok(Line::End(token)) => drop(intents.remove(&token)),
                Err(error) => tracing::warn!("a line of the launch intents can't be read: {error}"),
            }
        }
        Ok((controller, intents))
    }

    /// Writes the file as short as it can be, in place of the one there.
    fn rewrite(path: &Path, controller: &ControllerId, intents: &BTreeMap<LaunchToken, Intent>) -> io::Result<File> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        append(&mut file, &Line::Controller(controller.clone()))?;
        for intent in intents.values() {
            append(&mut file, &Line::Begin(intent.clone()))?;
        }
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(file)
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        if self.lines >= MOST_LINES.max(2 * self.intents.len()) {
            self.file = Self::rewrite(&self.path, &self.controller, &self.intents)?;
            self.lines = self.intents.len() + 1;
        }
        self.lines += 1;
        append(&mut self.file, line)
    }
}

fn append(file: &mut File, line: &Line) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.write_all(&bytes)
}

fn settle(intents: &mut BTreeMap<LaunchToken, Intent>, token: &LaunchToken, count: u32) {
    if let Some(intent) = intents.get_mut(token) {
        intent.count = count;
        intent.settled = true;
    }
}

impl Intents for IntentFile {
    fn controller(&self) -> &ControllerId {
        &self.controller
    }

    fn outstanding(&self) -> Vec<Intent> {
        self.intents.values().cloned().collect()
    }

    fn begin(&mut self, intent: &Intent) -> io::Result<()> {
        self.write(&Line::Begin(intent.clone()))?;
        self.file.sync_data()?;
        self.intents.insert(intent.token.clone(), intent.clone());
        Ok(())
    }

    // Neither of these is waited for: a line that is lost counts a launch for longer than needed.

    fn settle(&mut self, token: &LaunchToken, count: u32) -> io::Result<()> {
        settle(&mut self.intents, token, count);
        self.write(&Line::Settle(token.clone(), count))
    }

    fn end(&mut self, token: &LaunchToken) -> io::Result<()> {
        self.intents.remove(token);
        self.write(&Line::End(token.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(token: &str) -> Intent {
        let (token, fleet) = (LaunchToken::new(token), FleetName::new("linux"));
        Intent { token, fleet, count: 3, at: Timestamp(5), settled: false }
    }

    #[test]
    fn what_was_begun_is_there_when_it_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("intents");
        let mut file = IntentFile::open(&path).unwrap();
        let controller = file.controller().clone();
        for token in ["a", "b", "c"] {
            file.begin(&intent(token)).unwrap();
        }
        file.settle(&LaunchToken::new("b"), 1).unwrap();
        file.end(&LaunchToken::new("c")).unwrap();
        drop(file);

        let file = IntentFile::open(&path).unwrap();
        assert_eq!(file.controller(), &controller);
        assert_eq!(file.outstanding(), [intent("a"), Intent { count: 1, settled: true, ..intent("b") }]);
    }

    #[test]
    fn a_torn_line_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("intents");
        let mut file = IntentFile::open(&path).unwrap();
        file.begin(&intent("a")).unwrap();
        drop(file);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"begin\":{\"token\":\"b");
        std::fs::write(&path, text).unwrap();

        let mut file = IntentFile::open(&path).unwrap();
        assert_eq!(file.outstanding(), [intent("a")]);
        file.begin(&intent("c")).unwrap();
        drop(file);
        assert_eq!(IntentFile::open(&path).unwrap().outstanding(), [intent("a"), intent("c")]);
    }

    #[test]
    fn a_host_has_one_controller() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("intents");
        let file = IntentFile::open(&path).unwrap();
        assert_eq!(IntentFile::open(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(file);
        IntentFile::open(&path).unwrap();
    }

    #[test]
    fn the_file_stays_small() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("intents");
        let mut file = IntentFile::open(&path).unwrap();
        for number in 0..300 {
            let one = intent(&number.to_string());
            file.begin(&one).unwrap();
            file.end(&one.token).unwrap();
        }
        file.begin(&intent("last")).unwrap();
        drop(file);
        assert!(std::fs::metadata(&path).unwrap().len() < 40_000);
        assert_eq!(IntentFile::open(&path).unwrap().outstanding(), [intent("last")]);
    }
}
