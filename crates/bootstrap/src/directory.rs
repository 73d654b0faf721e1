//! The runner's own folder: its programs are root's, and a job, which is the runner's user, can't change what the next one is
//! run by.
//!
//! The folder itself is root's and sticky, and the user's group may write to it: `config.sh` and the listener make their files
//! there, and delete no one else's. `_work` and `_diag` are the user's. What registers the runner is root's once it is written.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nix::libc::O_NOFOLLOW;
use nix::unistd::geteuid;

use crate::machine::User;

/// The user's own folders there: jobs, and the runner's logs, which it makes at each start before anything else.
///
/// Source: `Runner.Common/HostContext.cs:120-160` of actions/runner.
pub(crate) const USERS: [&str; 2] = ["_work", "_diag"];

/// What a registration leaves. GitHub can send two of them anew, which then count in the first ones' place.
///
/// Source: `Runner.Common/HostContext.cs:447-480` and `ConfigurationStore.cs:236-242`.
const REGISTRATION: [&str; 5] =
    [".runner", ".runner_migrated", ".credentials", ".credentials_migrated", ".credentials_rsaparams"];

/// What `config.sh` notes of the environment. The listener reads the first at each start, and it wins over its environment.
///
/// Source: `Misc/layoutroot/env.sh`, `Runner.Listener/Program.cs:172-199`.
const NOTES: [&str; 2] = [".env", ".path"];

/// The programs that every start and every job goes through.
const PROGRAMS: [&str; 5] = ["bin", "bin/Runner.Listener", "externals", "config.sh", "env.sh"];

/// All may read and enter, the user's group may make files, and nobody may delete another's.
const FOLDER_MODE: u32 = 0o1775;

/// The runner's folder.
#[derive(Debug, Clone)]
pub(crate) struct RunnerDirectory {
    path: PathBuf,
    uid: u32,
    gid: u32,
    /// This process is root, and can give and keep.
    guarded: bool,
}

impl RunnerDirectory {
    pub(crate) fn new(path: PathBuf, user: &User) -> Self {
        Self { path, uid: user.uid(), gid: user.gid(), guarded: geteuid().is_root() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes away what an earlier registration has left; `config.sh` refuses to go over some of it.
    ///
    /// # Errors
    /// A file can't be removed, or a job could have changed the programs.
    pub(crate) fn clear(&self, environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
        for name in REGISTRATION.iter().chain(&NOTES) {
            remove(&self.path.join(name))?;
        }
        self.prepare(environment)
    }

    /// Lays the folder out for a start: what the user has put there goes, and the language is in a file that is root's.
    ///
    /// # Errors
    /// A file can't be removed or written, or a job could have changed the programs.
    pub(crate) fn prepare(&self, environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
        if self.guarded {
            self.see_programs()?;
            self.take_folder()?;
            self.sweep()?;
            for name in USERS {
                self.give(name)?;
            }
        }
        let language = environment.get("LANG").map_or("C.UTF-8", String::as_str);
        let path = self.path.join(NOTES[0]);
        remove(&path)?;
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o644).open(&path);
        // One line: what stands behind a line end would be another variable.
        let line = format!("LANG={}\n", language.lines().next().unwrap_or_default());
        made.and_then(|mut file| {
            file.write_all(line.as_bytes())?;
            file.set_permissions(Permissions::from_mode(0o644))
        })
        .with_context(|| format!("write {}", path.display()))
    }

    /// Takes what registers the runner from its user, who still reads it.
    ///
    /// # Errors
    /// A file can't be taken.
    pub(crate) fn seal(&self) -> anyhow::Result<()> {
        if !self.guarded {
            return Ok(());
        }
        for name in REGISTRATION {
            let path = self.path.join(name);
            let sealed = open(&path).and_then(|file| {
                fchown(&file, Some(0), Some(self.gid))?;
                file.set_permissions(Permissions::from_mode(0o640))
            });
            match sealed {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                sealed => sealed.with_context(|| format!("take {}", path.display()))?,
            }
        }
        Ok(())
    }

    /// Are the programs root's? An image of an earlier Kiln has them the user's.
    fn see_programs(&self) -> anyhow::Result<()> {
        for name in PROGRAMS {
            let path = self.path.join(name);
            let found = match fs::metadata(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                found => found.with_context(|| format!("look at {}", path.display()))?,
            };
            let writable = found.permissions().mode() & 0o022 != 0;
            ensure!(
                found.uid() == 0 && !writable,
                "a job could change {}: it belongs to uid {} and has mode {:o}; bake a new image with `cargo xtask ami`",
                path.display(),
                found.uid(),
                found.permissions().mode() & 0o7777
            );
        }
        Ok(())
    }

    fn take_folder(&self) -> anyhow::Result<()> {
        chown(&self.path, Some(0), Some(self.gid))
            .and_then(|()| fs::set_permissions(&self.path, Permissions::from_mode(FOLDER_MODE)))
            .with_context(|| format!("take {}", self.path.display()))
    }

    /// Removes what is not root's, but for the user's own folders.
    fn sweep(&self) -> anyhow::Result<()> {
        let entries = fs::read_dir(&self.path).with_context(|| format!("list {}", self.path.display()))?;
        for entry in entries {
            let entry = entry?;
            let found = entry.metadata().with_context(|| format!("look at {}", entry.path().display()))?;
            let users =
                USERS.iter().any(|name| entry.file_name() == *name) && found.is_dir() && found.uid() == self.uid;
            if found.uid() != 0 && !users {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Makes a folder the user's.
    fn give(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_dir()) {
            remove(&path)?;
        }
        let made = match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        made.and_then(|()| fchown(&open(&path)?, Some(self.uid), Some(self.gid)))
            .with_context(|| format!("give {} to the runner's user", path.display()))
    }
}

/// Opens what is there, but follows no link.
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path)
}

/// Removes a file, a link, or a folder with all that is in it; follows no link.
fn remove(path: &Path) -> anyhow::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| format!("look at {}", path.display()))?,
    };
    let removed = if found.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("remove {}", path.display()))
}
