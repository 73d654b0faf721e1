//! Another root directory to run programs in.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Mounts what programs expect, and becomes the program: `$0` is the root, the arguments are the program.
const ENTER: &str = r#"
set -e
mount -t proc proc "$0/proc"
mount -t tmpfs -o mode=755 tmpfs "$0/dev"
for device in null zero full random urandom tty; do
  touch "$0/dev/$device"
  mount --bind "/dev/$device" "$0/dev/$device"
done
mkdir "$0/dev/pts" "$0/dev/shm"
mount -t devpts -o ptmxmode=666 devpts "$0/dev/pts"
ln -s pts/ptmx "$0/dev/ptmx"
ln -s /proc/self/fd "$0/dev/fd"
mount --bind /etc/resolv.conf "$0/etc/resolv.conf"
exec chroot "$0" "$@"
"#;

/// What a package manager needs to get through.
const PASSED_ON: [&str; 6] = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// A root directory, and programs in it that leave nothing behind: neither mounts nor processes.
#[derive(Debug)]
pub(super) struct Sandbox {
    root: PathBuf,
}

/// How a script ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    /// Its exit code.
    pub(super) code: i32,
    /// What it said, on both streams.
    pub(super) said: String,
}

impl Ended {
    /// What a script said that succeeded.
    ///
    /// # Errors
    /// Its last words, where it did not.
    pub(super) fn success(self) -> anyhow::Result<String> {
        let Self { code, said } = self;
        ensure!(code == 0, "it ended with {code}:\n{}", kiln_e2e::world::tail(&said, 20));
        Ok(said)
    }
}

impl Sandbox {
    /// Programs below this root.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Runs a script of bash's, with nothing to read.
    ///
    /// # Errors
    /// It can't be started, or does not end within the bound.
    pub(super) async fn bash(&self, script: &str, bound: Duration) -> anyhow::Result<Ended> {
        // One stream, so that a message stands where it was said.
        self.run(&["bash", "-c", "exec 2>&1\n\"$BASH\" -c \"$0\"", script], &[], bound).await
    }

    /// Writes a file. It is written from within: a link on the way leads nowhere else.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) async fn write(&self, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
        const WRITE: &str = r#"exec 2>&1; mkdir --parents "$(dirname "$0")" && cat >"$0""#;
        /// Of a local disk.
        const WRITE_LIMIT: Duration = Duration::from_secs(60);
        let ended = self.run(&["bash", "-c", WRITE, path], bytes, WRITE_LIMIT).await;
        ended.and_then(Ended::success).map(drop).with_context(|| format!("write {path}"))
    }

    async fn run(&self, program: &[&str], input: &[u8], bound: Duration) -> anyhow::Result<Ended> {
        let mut child = alone()
            .args(["sh", "-c", ENTER])
            .arg(&self.root)
            .args(program)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // There is a systemd's folder here, but no systemd.
            .env("SYSTEMD_OFFLINE", "1")
            .stdin(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        let both = async {
            let feed = async move {
                // Who does not read to the end ends by itself.
                let _ = stdin.write_all(input).await;
            };
            tokio::join!(feed, child.wait_with_output()).1
        };
        let Ok(output) = tokio::time::timeout(bound, both).await else { bail!("no end within {} s", bound.as_secs()) };
        ended(&output?)
    }
}

fn ended(output: &std::process::Output) -> anyhow::Result<Ended> {
    let code = output.status.code().with_context(|| format!("it was ended: {}", output.status))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(Ended { code, said })
}

/// A command of this machine's in mount and process namespaces of its own; what is appended is its program. It and all
/// that it starts ends when it is dropped, and when this process ends, however that happens.
fn alone() -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--"])
        .env_clear()
        .envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a program of this machine's, where what it mounts and starts ends with it.
///
/// # Errors
/// It can't be started, does not end within the bound, or fails.
pub(super) async fn run_alone(program: &[&str], bound: Duration) -> anyhow::Result<String> {
    let name = program.first().copied().unwrap_or_default();
    let run = alone().args(program).output();
    let Ok(output) = tokio::time::timeout(bound, run).await else {
        bail!("{name} did not end within {} s", bound.as_secs())
    };
    ended(&output.with_context(|| format!("start {name}"))?)?.success().with_context(|| name.to_owned())
}
