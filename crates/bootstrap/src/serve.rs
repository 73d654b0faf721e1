//! GitHub's own listener, as the unprivileged user.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::life::{Heard, Process};
use crate::machine::Machine;
use crate::register::Registered;

/// An idle listener ends within a second of SIGINT; half a minute is for a machine under load.
const GRACE: Duration = Duration::from_secs(30);

/// What the listener says once it has a session, when a job begins, and when it ends.
///
/// Source: `Runner.Listener`'s `MessageListener` and `JobDispatcher`, in actions/runner.
const LISTENING: &str = "Listening for Jobs";
const BEGINS: &str = "Running job: ";
const ENDS: &str = " completed with result: ";

/// The listener's process.
#[derive(Debug)]
pub(crate) struct Listener {
    child: Child,
    group: Option<Pid>,
    heard: watch::Receiver<Heard>,
}

impl Listener {
    /// Starts it.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start(machine: &Machine, registered: &Registered) -> anyhow::Result<Self> {
        let program = registered.directory.join("bin/Runner.Listener");
        let mut command = machine.command_as(&registered.user, &program, &registered.directory)?;
        command.arg("run").envs(&registered.environment).env("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE", "1");
        if let Some(jit) = &registered.jit {
            // The listener removes it from its environment when it has read it.
            command.env("ACTIONS_RUNNER_INPUT_JITCONFIG", jit.expose_secret());
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let (tell, heard) = watch::channel(Heard::default());
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(forward(stdout, Some(tell)).in_current_span());
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(forward(stderr, None).in_current_span());
        }
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, group, heard })
    }
}

impl Process for Listener {
    fn heard(&self) -> watch::Receiver<Heard> {
        self.heard.clone()
    }

    async fn exit(&mut self) -> Option<i32> {
        self.child.wait().await.ok().and_then(|status| status.code())
    }

    async fn stop(&mut self) {
        if let Some(group) = self.group.filter(|_| self.child.id().is_some()) {
            let _ = killpg(group, Signal::SIGINT);
            if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
                tracing::warn!(phase = "drain", "the listener did not end in {} s: killing it", GRACE.as_secs());
            }
        }
        // What a job left running goes too.
        if let Some(group) = self.group {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let _ = self.child.wait().await;
    }
}

async fn forward(stream: impl AsyncRead + Unpin, tell: Option<watch::Sender<Heard>>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.trim().is_empty() {
            continue;
        }
        tracing::info!(phase = "serve", listener = line);
        if let Some(tell) = &tell {
            tell.send_if_modified(|heard| hear(heard, &line));
        }
    }
}

/// Takes in a line; did it tell something new?
fn hear(heard: &mut Heard, line: &str) -> bool {
    let before = *heard;
    if line.contains(LISTENING) {
        heard.online = true;
    } else if line.contains(BEGINS) {
        heard.busy = true;
    } else if line.contains(ENDS) {
        heard.busy = false;
    }
    // The end of a job is news though it was short: the idle time begins anew.
    *heard != before || line.contains(ENDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_heard_in_its_own_words() {
        let mut heard = Heard::default();
        for (line, news, online, busy) in [
            ("√ Connected to GitHub", false, false, false),
            ("2026-11-23 09:00:00Z: Listening for Jobs", true, true, false),
            ("2026-11-23 09:00:05Z: Running job: build", true, true, true),
            ("2026-11-23 09:00:06Z: Job build completed with result: Succeeded", true, true, false),
            ("2026-11-23 09:00:07Z: Job next completed with result: Failed", true, true, false),
        ] {
            assert_eq!(hear(&mut heard, line), news, "{line}");
            assert_eq!((heard.online, heard.busy), (online, busy), "{line}");
        }
    }
}
