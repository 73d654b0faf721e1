//! A machine in a folder: a user, a runner, the App's key in a file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{Gid, Uid, fchownat, geteuid, getgid};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::aws::Imds;
use crate::github::GitHub;

/// `nobody` on Debian and on Amazon Linux.
const NOBODY: u32 = 65534;

/// Where the folder's machine keeps the App's key.
pub const KEY: &str = "etc/kiln/app.pem";

/// A folder that a `kiln-bootstrap --root` takes for its machine.
#[derive(Debug)]
pub struct MachineFolder {
    root: TempDir,
    runner_version: String,
}

/// Whom the runner runs as: nobody, or who runs this where that is not root.
pub fn runner_ids() -> (u32, u32) {
    if geteuid().is_root() { (NOBODY, NOBODY) } else { (geteuid().as_raw(), getgid().as_raw()) }
}

impl MachineFolder {
    /// A machine with a new key of the App's and a release of the stand-in runner.
    ///
    /// # Errors
    /// A file can't be written, or the release not be packed.
    pub fn new(github: &GitHub, runner_version: &str) -> anyhow::Result<Self> {
        let root = tempfile::tempdir().context("make a folder")?;
        // The runner's user has to get through.
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755))?;
        let machine = Self { root, runner_version: runner_version.to_owned() };
        let (uid, gid) = runner_ids();
        machine.write("etc/passwd", &format!("runner:x:{uid}:{gid}::/home/runner:/bin/bash\n"), 0o644)?;
        machine.write("etc/group", "", 0o644)?;
        machine.write(KEY, &github.generate_key(), 0o600)?;
        let release = github.runner_release(runner_version)?;
        let folder = machine.path("opt/actions-runner");
        std::fs::create_dir_all(&folder)?;
        tar::Archive::new(flate2::read::GzDecoder::new(release.bytes.as_slice())).unpack(&folder)?;
        lay_out(&folder)?;
        Ok(machine)
    }

    /// A path of the machine's.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Writes a file that belongs to who runs this.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, path: &str, text: &str, mode: u32) -> anyhow::Result<()> {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?)
    }

    /// The binary's boot on this machine, its log piped; not yet started.
    pub fn boot(&self, bootstrap: &Path, imds: &Imds) -> Command {
        self.command(bootstrap, imds, "run")
    }

    /// The same with another of the binary's commands.
    pub fn command(&self, bootstrap: &Path, imds: &Imds, command_name: &str) -> Command {
        let mut command = Command::new(bootstrap);
        command
            .arg("--root")
            .arg(self.root.path())
            .arg(command_name)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// What its instance is told: a persistent runner in no group, the key in its file.
    pub fn boot_config(&self, github: &GitHub) -> Value {
        json!({
            "version": 1,
            "organization": github.organization(),
            "fleet": "linux",
            "github": { "api_url": github.api_url(), "url": github.url() },
            "app": { "issuer": github.client_id(), "installation_id": github.installation_id() },
            "key": { "file": format!("/{KEY}") },
            "registration": "persistent",
            "labels": ["linux-x64"],
            "runner_group": "Default",
            "runner": { "version": self.runner_version, "user": "runner", "directory": "/opt/actions-runner" },
            // Nothing keeps a process of this machine away from its stand-in.
            "job_metadata_access": "allowed",
        })
    }
}

/// Gives a folder and all below it to whom the runner runs as.
///
/// # Errors
/// It can't be given away.
pub fn give_to_runner(path: &Path) -> anyhow::Result<()> {
    let (uid, gid) = runner_ids();
    give(path, Uid::from_raw(uid), Gid::from_raw(gid))
}

/// Lays a runner's folder out as the image does: the programs are root's, two folders the runner's, and in the folder itself
/// it may make files but delete no one else's.
///
/// # Errors
/// Something can't be given away.
pub fn lay_out(folder: &Path) -> anyhow::Result<()> {
    for name in ["_work", "_diag"] {
        let path = folder.join(name);
        std::fs::create_dir_all(&path)?;
        give_to_runner(&path)?;
    }
    if geteuid().is_root() {
        fchownat(AT_FDCWD, folder, None, Some(Gid::from_raw(runner_ids().1)), AtFlags::empty())?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o1775))?;
    }
    Ok(())
}

fn give(path: &Path, uid: Uid, gid: Gid) -> anyhow::Result<()> {
    fchownat(AT_FDCWD, path, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}
