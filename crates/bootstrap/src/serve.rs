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

use crate::machine::Machine;
use crate::register::Registered;

/// An idle listener ends within a second of SIGINT; half a minute is for a machine under load.
const GRACE: Duration = Duration::from_secs(30);

/// What the listener says once it has a session.
const LISTENING: &str = "Listening for Jobs";

/// The listener's process.
#[derive(Debug)]
pub(crate) struct Listener {
    child: Child,
    group: Option<Pid>,
    listening: watch::Receiver<bool>,
}

/// What an end of the listener asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its one job is done.
    JobDone,
    /// Start it again.
    Again(&'static str),
    /// GitHub serves this version no more: starting it again would burn registrations.
    Deprecated,
}

/// Acts on the listener's exit code, which `run.sh` would hide.
///
/// Source: `Constants.Runner.ReturnCode` of actions/runner.
pub(crate) fn ended(code: Option<i32>, ephemeral: bool) -> Ended {
    match code {
        Some(0) if ephemeral => Ended::JobDone,
        Some(0) => Ended::Again("ended without being asked to"),
        Some(1) => Ended::Again("terminated, or its registration is gone"),
        Some(2) => Ended::Again("retryable error"),
        Some(3 | 4) => Ended::Again("wanted to update itself, which the image does for it"),
        Some(5) => Ended::Again("another session of this runner exists"),
        Some(6) => Ended::Again("its configuration was refreshed"),
        Some(7) => Ended::Deprecated,
        Some(_) => Ended::Again("unknown exit code"),
        None => Ended::Again("killed by a signal"),
    }
}

impl Listener {
    /// Starts it.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start(machine: &Machine, registered: &Registered) -> anyhow::Result<Self> {
        let program = registered.directory.join("bin/Runner.Listener");
        let mut command = machine.command_as(&registered.user, &program, &registered.directory)?;
        command.arg("run").env("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE", "1");
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
        let (tell, listening) = watch::channel(false);
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(forward(stdout, Some(tell)));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(forward(stderr, None));
        }
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, group, listening })
    }

    /// Resolves when it has a session; never if it ends without one.
    pub(crate) fn listening(&self) -> impl Future<Output = ()> + use<> {
        let mut listening = self.listening.clone();
        async move {
            if listening.wait_for(|listening| *listening).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Its exit code, when it ends.
    pub(crate) async fn exit(&mut self) -> Option<i32> {
        self.child.wait().await.ok().and_then(|status| status.code())
    }

    /// Ends it. It must be idle: GitHub's listener answers any signal by cancelling its job.
    pub(crate) async fn stop(&mut self) {
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

async fn forward(stream: impl AsyncRead + Unpin, tell: Option<watch::Sender<bool>>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.trim().is_empty() {
            continue;
        }
        tracing::info!(phase = "serve", listener = line);
        if let Some(tell) = tell.as_ref().filter(|_| line.contains(LISTENING)) {
            let _ = tell.send(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_deprecated_version_is_never_started_again() {
        assert_eq!(ended(Some(7), false), Ended::Deprecated);
        assert_eq!(ended(Some(7), true), Ended::Deprecated);
        assert_eq!(ended(Some(0), true), Ended::JobDone);
        for code in [Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), Some(6), Some(139), None] {
            assert!(matches!(ended(code, false), Ended::Again(_)), "{code:?}");
        }
    }
}
