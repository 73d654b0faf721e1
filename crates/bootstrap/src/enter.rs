//! The last step before one of the runner's programs: this binary once more, which gives up root and becomes that program.
//!
//! What it is to become comes by stdin, environment and secrets with it, so that nothing a fleet sets is ever in the
//! environment of a process that is root, and nothing secret in anybody's arguments.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::{Gid, Uid, geteuid, getgid, getuid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The hidden command.
pub(crate) const COMMAND: &str = "enter";

/// No real order is a hundredth of it.
const LONGEST: u64 = 1 << 20;

/// What a failure ends with: none of the runner's own codes.
const FAILED: u8 = 70;

/// What to become.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    /// Whom; who runs it, where that is not root.
    pub(crate) user: Option<Ids>,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) directory: PathBuf,
    /// All of the program's environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// The control group to move to.
    pub(crate) group: Option<PathBuf>,
    /// How soon the kernel ends it where memory runs out.
    pub(crate) oom_score: Option<i32>,
}

/// A user by number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Reads the order and becomes that program. Returns only where it can't.
pub(crate) fn enter() -> ExitCode {
    let failed = read().and_then(|order| follow(&order));
    if let Err(error) = failed {
        // The log's form is the parent's affair.
        let _ = writeln!(std::io::stderr(), "not started: {error:#}");
    }
    ExitCode::from(FAILED)
}

fn read() -> anyhow::Result<Order> {
    let mut text = Zeroizing::new(Vec::new());
    std::io::stdin().take(LONGEST).read_to_end(&mut text).context("read the order")?;
    serde_json::from_slice(&text).context("the order is not one")
}

fn follow(order: &Order) -> anyhow::Result<()> {
    if let Some(group) = &order.group {
        let procs = group.join("cgroup.procs");
        std::fs::write(&procs, "0").with_context(|| format!("move to {}", group.display()))?;
    }
    if let Some(score) = order.oom_score {
        std::fs::write("/proc/self/oom_score_adj", score.to_string()).context("set the score for the OOM killer")?;
    }
    if let Some(user) = &order.user {
        // The service writes no cores; a job may ask for its own.
        setrlimit(Resource::RLIMIT_CORE, 0, RLIM_INFINITY).context("limit cores")?;
        become_user(user)?;
    }
    let error = Command::new(&order.program)
        .args(&order.arguments)
        .env_clear()
        .envs(&order.environment)
        .current_dir(&order.directory)
        .stdin(Stdio::null())
        .exec();
    Err(error).with_context(|| format!("start {}", order.program.display()))
}

/// Gives up root for good.
fn become_user(user: &Ids) -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    ensure!(!uid.is_root(), "the runner would run as root");
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).context("set the groups")?;
    setresgid(gid, gid, gid).context("set the group")?;
    setresuid(uid, uid, uid).context("set the user")?;
    // No program with the set-user-ID bit makes a job root.
    nix::sys::prctl::set_no_new_privs().context("give up new privileges")?;
    ensure!(geteuid() == uid && getuid() == uid && getgid() == gid, "root was not given up");
    Ok(())
}
