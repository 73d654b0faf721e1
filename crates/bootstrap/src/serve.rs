//! GitHub's own listener, as the unprivileged user.

mod output;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::Instrument as _;

use crate::between_jobs::{Answering, Cleaner};
use crate::guard::{self, Watching};
use crate::job_groups::JobGroups;
use crate::life::{ListenerState, Process};
use crate::machine::{Machine, User};
use crate::processes;
use crate::register::Registered;
use output::ListenerOutput;

/// What of a line is read at most. The runner's own lines have a job's name in them, and nothing else of any length.
const LONGEST_LINE: usize = 8 * 1024;

/// Between two looks whether a worker is there.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long its last words may take once it has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The listener's process.
#[derive(Debug)]
pub(crate) struct Listener {
    child: Child,
    group: Option<Pid>,
    user: User,
    groups: Option<JobGroups>,
    heard: watch::Receiver<ListenerState>,
    readers: Vec<JoinHandle<()>>,
    _hooks: Answering,
    _guard: Option<Watching>,
}

impl Listener {
    /// Starts it.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start(machine: &Machine, registered: &Registered) -> anyhow::Result<Self> {
        registered.directory.prepare(&registered.environment)?;
        let (groups, group) = job_groups(machine);
        let program = registered.directory.path().join("bin/Runner.Listener");
        let mut command = machine
            .command_as(&registered.user, &program, registered.directory.path())?
            .arg("run")
            .envs(&registered.environment)
            .env("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE", "1")
            .among_jobs(group);
        if let Some(jit) = &registered.jit {
            // The listener removes it from its environment when it has read it.
            command = command.env("ACTIONS_RUNNER_INPUT_JITCONFIG", jit.expose_secret());
        }
        let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let (tell, heard) = watch::channel(ListenerState::default());
        let tell = Arc::new(tell);
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(tokio::spawn(listen(stdout, group, Arc::clone(&tell)).in_current_span()));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(tokio::spawn(forward(stderr, tell).in_current_span()));
        }
        let user = registered.user.clone();
        let cleaner = Cleaner {
            machine: machine.clone(),
            directory: registered.directory.path().to_owned(),
            uid: user.uid(),
            listener: group,
            groups: groups.clone(),
        };
        let hooks = cleaner.answer()?;
        let guard = registered.guarded.then(|| guard::watch(machine.clone(), user.clone()));
        Ok(Self { child, group, user, groups, heard, readers, _hooks: hooks, _guard: guard })
    }
}

impl Process for Listener {
    fn heard(&self) -> watch::Receiver<ListenerState> {
        self.heard.clone()
    }

    async fn exit(&mut self) -> Option<i32> {
        let status = self.child.wait().await;
        // What it said last may still be in the pipes. Who it has left behind holds them open.
        let read = async {
            while !self.readers.iter().all(JoinHandle::is_finished) {
                tokio::time::sleep(LAST_WORDS / 100).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, read).await;
        status.ok().and_then(|status| status.code())
    }

    fn works(&self) -> bool {
        self.child.id().is_some() && processes::has_worker(self.group) == Some(true)
    }

    async fn stop(&mut self, grace: Duration) {
        if let Some(group) = self.group.filter(|_| self.child.id().is_some()) {
            let _ = killpg(group, Signal::SIGINT);
            if tokio::time::timeout(grace, self.child.wait()).await.is_err() {
                tracing::warn!(phase = "drain", "the listener did not end in {} s: killing it", grace.as_secs());
                // It has not been waited for, so that its number is still its own.
                let _ = killpg(group, Signal::SIGKILL);
            }
            let _ = self.child.wait().await;
        }
        // What a job left running goes too: one by one, since a group's number is another's once the group is empty.
        if let Some(group) = self.group {
            processes::end_group(group, self.user.uid());
        }
        if let Some(groups) = &self.groups {
            groups.end_all_but(&[]);
        }
    }
}

/// The control groups for jobs, and the one for the listener, as far as the machine has them.
fn job_groups(machine: &Machine) -> (Option<JobGroups>, Option<PathBuf>) {
    let Some(unit) = machine.jobs_group() else { return (None, None) };
    let Some(groups) = JobGroups::below(&unit) else { return (None, Some(unit)) };
    match groups.prepare() {
        Ok(runner) => (Some(groups), Some(runner)),
        Err(error) => {
            tracing::error!(phase = "serve", error = %format!("{error:#}"), "jobs share the listener's control group");
            (None, Some(unit))
        }
    }
}

/// Reads what the listener says, and looks at what it does, until it ends.
async fn listen(stream: impl AsyncRead + Unpin, listener: Option<Pid>, tell: Arc<watch::Sender<ListenerState>>) {
    let mut lines = Lines::new(stream);
    let mut output = ListenerOutput::default();
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let news = tokio::select! {
            line = lines.next() => {
                let Some(line) = line else { return };
                tracing::info!(phase = "serve", listener = line);
                output.hears(&line, || processes::has_worker(listener))
            }
            _ = looks.tick() => output.looks(processes::has_worker(listener)),
        };
        let (now, reached) = (output.heard(), output.take_reached());
        tell.send_if_modified(|heard| {
            let now = ListenerState { unreachable: heard.unreachable && !reached, ..now };
            let before = std::mem::replace(heard, now);
            news || before != now
        });
    }
}

async fn forward(stream: impl AsyncRead + Unpin, tell: Arc<watch::Sender<ListenerState>>) {
    let mut lines = Lines::new(stream);
    while let Some(line) = lines.next().await {
        tracing::info!(phase = "serve", listener = line);
        if output::is_unreachable(&line) {
            tell.send_if_modified(|heard| !std::mem::replace(&mut heard.unreachable, true));
        }
    }
}

/// Lines of whatever comes: no longer than [`LONGEST_LINE`], and what is not text made readable.
pub(crate) struct Lines<S> {
    stream: BufReader<S>,
    line: Vec<u8>,
    /// The line was longer: the rest of it is passed over.
    cut: bool,
}

impl<S: AsyncRead + Unpin> Lines<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream), line: Vec::new(), cut: false }
    }

    /// The next line that is not blank; `None` at the end. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            let part = match self.stream.fill_buf().await {
                Ok(part) if !part.is_empty() => part,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Ok(_) | Err(_) if self.line.is_empty() => return None,
                Ok(_) | Err(_) => return Some(self.take()),
            };
            let end = part.iter().position(|byte| *byte == b'\n');
            let read = end.map_or(part.len(), |end| end + 1);
            let text = &part[..end.unwrap_or(part.len())];
            let room = LONGEST_LINE - self.line.len();
            self.cut |= text.len() > room;
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.stream.consume(read);
            if end.is_some() {
                let line = self.take();
                if !line.trim().is_empty() {
                    return Some(line);
                }
            }
        }
    }

    fn take(&mut self) -> String {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end_matches('\r').to_owned();
        if std::mem::take(&mut self.cut) { line + " […]" } else { line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines::new(bytes);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await {
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn lines_are_read_to_the_end_whatever_they_hold() {
        assert_eq!(all(b"one\n\n  \ntwo\r\nthree").await, ["one", "two", "three"]);
        assert_eq!(all(b"\xff\xfe\nafter\n").await, ["\u{fffd}\u{fffd}", "after"]);
        let long = [vec![b'x'; 3 * LONGEST_LINE], b"\nafter\n".to_vec()].concat();
        let lines = all(&long).await;
        assert_eq!(lines[0].len(), LONGEST_LINE + " […]".len());
        assert!(lines[0].ends_with("x […]"));
        assert_eq!(lines[1], "after");
        let exact = [vec![b'x'; LONGEST_LINE], b"\n".to_vec()].concat();
        assert_eq!(all(&exact).await, ["x".repeat(LONGEST_LINE)]);
    }
}
