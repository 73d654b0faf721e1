//! Who runs `deploy`: asked before something grave, named on the lock, with a canary check of theirs.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kiln_operations::deploy::{CanaryRunner, Check, Checking, LockOwner};
use kiln_operations::ports::{Confirmation, Consent};
use kiln_operations::{Code, Error};

use crate::ui;

/// A canary check that takes longer hangs: a workflow on a fresh runner takes minutes.
const CHECK_LIMIT: Duration = Duration::from_secs(1800);

/// The person, or the pipeline.
#[derive(Debug)]
pub(crate) struct TerminalUser {
    /// Agrees to everything beforehand.
    pub(crate) yes: bool,
}

impl Consent for TerminalUser {
    fn ask(&self, question: &str) -> Confirmation {
        if self.yes {
            return Confirmation::Yes;
        }
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Confirmation::NonInteractive;
        }
        ui::prompt(&format!("{question} [y/N]"));
        let mut answer = String::new();
        // Other work may go on meanwhile, such as keeping the lock.
        let read = tokio::task::block_in_place(|| std::io::stdin().read_line(&mut answer));
        let agreed = read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
        if agreed { Confirmation::Yes } else { Confirmation::No }
    }
}

impl Check for TerminalUser {
    fn check<'a>(&'a self, canary: &'a CanaryRunner) -> Checking<'a> {
        Box::pin(async move {
            let mut command = tokio::process::Command::new("sh");
            command
                .arg("-c")
                .arg(&canary.check)
                .env("KILN_FLEET", &canary.fleet)
                .env("KILN_RUNNER", &canary.runner)
                .env("KILN_INSTANCE", canary.instance.as_str())
                .stdin(Stdio::null())
                .kill_on_drop(true);
            // Its words are talk: what `deploy` itself has to say as data is on stdout.
            if let Ok(stderr) = std::os::fd::AsFd::as_fd(&std::io::stderr()).try_clone_to_owned() {
                command.stdout(stderr);
            }
            let ended = tokio::time::timeout(CHECK_LIMIT, command.status()).await;
            match ended {
                Ok(Ok(status)) if status.success() => Ok(()),
                Ok(Ok(status)) => Err(format!("`{}` ended with {status}", canary.check)),
                Ok(Err(error)) => Err(format!("`{}` could not be run: {error}", canary.check)),
                Err(_) => Err(format!("`{}` did not end within {} s", canary.check, CHECK_LIMIT.as_secs())),
            }
        })
    }
}

/// Has somebody type a name before what it names is destroyed.
///
/// # Errors
/// [`kiln_operations::Kind::Precondition`] where nobody is there, or something else was typed.
pub(crate) fn confirmed(name: &str) -> Result<(), Error> {
    let refused = |code: Code, message: &str| {
        Error::new(code, message)
            .hint("nothing was changed; `--yes` goes ahead without asking, `--dry-run` shows the plan only")
    };
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(refused(Code::ConsentMissing, "nobody is there to confirm this"));
    }
    ui::prompt(&format!("type `{name}` to go ahead:"));
    let mut answer = String::new();
    let read = tokio::task::block_in_place(|| std::io::stdin().read_line(&mut answer));
    if read.is_ok() && answer.trim() == name {
        Ok(())
    } else {
        Err(refused(Code::ConsentRefused, "it was not confirmed"))
    }
}

/// This process, for the lock.
pub(crate) fn holder() -> LockOwner {
    LockOwner { name: name(), machine: machine(), process: std::process::id(), ended }
}

fn name() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let (Some(server), Some(repository), Some(run)) =
        (variable("GITHUB_SERVER_URL"), variable("GITHUB_REPOSITORY"), variable("GITHUB_RUN_ID"))
    {
        return format!("{server}/{repository}/actions/runs/{run}");
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let user = variable("USER").unwrap_or_else(|| "somebody".to_owned());
    format!("{user}@{}, process {}", host.trim(), std::process::id())
}

/// The machine's boot and the processes' namespace in it: the same process id elsewhere is another process.
fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

fn ended(process: u32) -> bool {
    let proc = Path::new("/proc");
    proc.join("self").exists() && !proc.join(process.to_string()).exists()
}
