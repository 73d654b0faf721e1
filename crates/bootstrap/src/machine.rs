//! The machine's files and its unprivileged user.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::{Uid, geteuid};
use tokio::process::Command;

/// The machine, seen from its root directory.
#[derive(Debug)]
pub(crate) struct Machine {
    root: PathBuf,
}

/// A user of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    name: String,
    uid: u32,
    gid: u32,
    /// Supplementary groups; `docker` is what lets a job use docker.
    groups: Vec<u32>,
    home: String,
}

impl Machine {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// A path of the machine's, such as `/etc/passwd`.
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Is it the machine itself, and not a folder that stands for one?
    pub(crate) fn is_whole(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Looks a user up in the machine's own files: a static binary has no other way, and a rehearsal's root is not `/`.
    ///
    /// # Errors
    /// There is no such user, or it is root.
    pub(crate) fn user(&self, name: &str) -> anyhow::Result<User> {
        let passwd = self.path("/etc/passwd");
        let text = std::fs::read_to_string(&passwd).with_context(|| format!("read {}", passwd.display()))?;
        let group = std::fs::read_to_string(self.path("/etc/group")).unwrap_or_default();
        let user = User::find(name, &text, &group)
            .with_context(|| format!("{} has no user `{name}` with a number", passwd.display()))?;
        ensure!(user.uid != 0, "the runner would run as root: user `{name}` has uid 0");
        Ok(user)
    }

    /// Takes a user out of docker's group, for good: a login by any other way than ours would put it in again.
    ///
    /// # Errors
    /// docker's is the user's own group, or it can't be taken out.
    pub(crate) async fn bar_from_docker(&self, user: &mut User) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(self.path("/etc/group")).unwrap_or_default();
        let docker = text.lines().find_map(|line| line.strip_prefix("docker:")?.split(':').nth(1)?.parse::<u32>().ok());
        let Some(docker) = docker else { return Ok(()) };
        ensure!(user.gid != docker, "user `{}` can't be kept from docker: it is its own group", user.name);
        if !user.groups.contains(&docker) {
            return Ok(());
        }
        user.groups.retain(|group| *group != docker);
        // A folder's users log in nowhere.
        if self.is_whole() {
            let output = Command::new("gpasswd").args(["--delete", &user.name, "docker"]).output().await;
            let output = output.context("run gpasswd")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "gpasswd ended with {}: {}", output.status, said.trim());
        }
        Ok(())
    }

    /// Switches the machine off. Auto Scaling replaces an instance that it finds stopped.
    pub(crate) async fn power_off(&self) {
        if !self.is_whole() {
            return;
        }
        match Command::new("systemctl").args(["--no-block", "poweroff"]).status().await {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::error!("systemctl poweroff ended with {status}"),
            Err(error) => tracing::error!(%error, "systemctl poweroff can't be run"),
        }
    }

    /// The names of a user's groups, its own too.
    pub(crate) fn group_names(&self, user: &User) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("/etc/group")).unwrap_or_default();
        let of = |line: &str| {
            let mut fields = line.split(':');
            let (name, id) = (fields.next()?, fields.nth(1)?.parse().ok()?);
            (user.gid == id || user.groups.contains(&id)).then(|| name.to_owned())
        };
        text.lines().filter_map(of).collect()
    }

    /// A command that runs as the user, in a clean environment, with a process group of its own.
    ///
    /// # Errors
    /// This process is neither root nor that user.
    pub(crate) fn command_as(&self, user: &User, program: &Path, directory: &Path) -> anyhow::Result<Command> {
        let mut command = match geteuid() {
            own if own == Uid::from_raw(user.uid) => Command::new(program),
            own if own.is_root() => {
                // std can't set supplementary groups; util-linux's setpriv can, and becomes the program.
                let mut setpriv = Command::new("setpriv");
                setpriv.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
                match user.groups.iter().map(ToString::to_string).reduce(|all, next| format!("{all},{next}")) {
                    Some(groups) => setpriv.arg(format!("--groups={groups}")),
                    None => setpriv.arg("--clear-groups"),
                };
                setpriv.args(["--no-new-privs", "--"]).arg(program);
                setpriv
            }
            own => bail!("running as uid {own}, which can't become `{}` (uid {})", user.name, user.uid),
        };
        let environment: BTreeMap<&str, &OsStr> = BTreeMap::from([
            ("HOME", OsStr::new(&user.home)),
            ("USER", OsStr::new(&user.name)),
            ("LOGNAME", OsStr::new(&user.name)),
            ("SHELL", OsStr::new("/bin/bash")),
            ("LANG", OsStr::new("C.UTF-8")),
            ("PATH", OsStr::new("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")),
        ]);
        command
            .env_clear()
            .envs(environment)
            .current_dir(directory)
            .stdin(std::process::Stdio::null())
            .process_group(0);
        Ok(command)
    }
}

impl User {
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Finds a user in the texts of `passwd(5)` and `group(5)`.
    fn find(name: &str, passwd: &str, group: &str) -> Option<Self> {
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
        let groups = group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name)))
            .filter_map(|fields| fields[2].parse().ok())
            .collect();
        Some(Self {
            name: name.to_owned(),
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            groups,
            home: (*fields.get(5)?).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_own_group_and_those_that_list_it() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nrunner:x:1001:1002::/home/runner:/bin/bash\n";
        let group = "root:x:0:\ndocker:x:993:other,runner\nwheel:x:10:runner2\nrunner:x:1002:\n";
        let user = User::find("runner", passwd, group).unwrap();
        assert_eq!((user.uid, user.gid, user.groups.as_slice()), (1001, 1002, &[993][..]));
        assert_eq!(user.home, "/home/runner");
        assert_eq!(User::find("runne", passwd, group), None);
        assert_eq!(User::find("broken", "broken:x:y\n", ""), None);
    }
}
