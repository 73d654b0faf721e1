//! The machine's files and its unprivileged user.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::{Uid, geteuid};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use crate::enter::{self, Ids, Order};

/// The machine, seen from its root directory.
#[derive(Debug, Clone)]
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

    /// The control group of jobs, where the machine has one: a folder has none, and neither has an image without the unit.
    pub(crate) fn jobs_group(&self) -> Option<PathBuf> {
        if !self.is_whole() {
            return None;
        }
        let groups = HIERARCHIES.iter().map(|hierarchy| Path::new(hierarchy).join(JOBS_GROUP));
        groups.into_iter().find(|group| group.join("cgroup.procs").exists())
    }

    /// A path of the machine's, such as `/etc/passwd`.
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Is it the machine itself, and not a folder that stands for one?
    pub(crate) fn is_whole(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Writes a file, in a folder that is made where it is missing; both belong to who runs this.
    ///
    /// # Errors
    /// It can't be written.
    pub(crate) fn write(&self, path: &str, text: &str, mode: u32) -> anyhow::Result<()> {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
        let path = self.path(path);
        let write = || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&path)?;
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())
        };
        write().with_context(|| format!("write {}", path.display()))
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
            let output = Command::new("/usr/bin/gpasswd").args(["--delete", &user.name, "docker"]).output().await;
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
        match Command::new("/usr/bin/systemctl").args(["--no-block", "poweroff"]).status().await {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::error!("systemctl poweroff ended with {status}"),
            Err(error) => tracing::error!(%error, "systemctl poweroff can't be run"),
        }
    }

    /// Has systemd start a unit, without waiting for it.
    ///
    /// # Errors
    /// systemd refuses.
    pub(crate) async fn start_unit(&self, unit: &str) -> anyhow::Result<()> {
        if !self.is_whole() {
            return Ok(());
        }
        let status = Command::new("/usr/bin/systemctl").args(["--no-block", "start", unit]).status().await;
        let status = status.with_context(|| format!("start {unit}"))?;
        ensure!(status.success(), "systemctl start {unit} ended with {status}");
        Ok(())
    }

    /// Does the whole machine stop, or start again, and not only this service?
    pub(crate) async fn stops(&self) -> bool {
        if !self.is_whole() {
            return false;
        }
        let output = Command::new("systemctl").arg("is-system-running").output().await;
        output.is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
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
    pub(crate) fn command_as(&self, user: &User, program: &Path, directory: &Path) -> anyhow::Result<RunAs> {
        let ids = match geteuid() {
            own if own == Uid::from_raw(user.uid) => None,
            own if own.is_root() => Some(Ids { uid: user.uid, gid: user.gid, groups: user.groups.clone() }),
            own => bail!("running as uid {own}, which can't become `{}` (uid {})", user.name, user.uid),
        };
        let environment = [
            ("HOME", user.home.as_str()),
            ("USER", &user.name),
            ("LOGNAME", &user.name),
            ("SHELL", "/bin/bash"),
            ("LANG", "C.UTF-8"),
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(RunAs(Order {
            user: ids,
            program: program.to_owned(),
            arguments: Vec::new(),
            directory: directory.to_owned(),
            environment: environment.into(),
            group: None,
            oom_score: None,
        }))
    }
}

/// A program that is to run as the runner's user.
pub(crate) struct RunAs(Order);

impl RunAs {
    pub(crate) fn arg(mut self, argument: &str) -> Self {
        self.0.arguments.push(argument.to_owned());
        self
    }

    /// Sets a variable, over one that is set.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn envs(mut self, variables: &BTreeMap<String, String>) -> Self {
        self.0.environment.extend(variables.clone());
        self
    }

    /// Puts it among the jobs: into a control group of theirs, where the machine has one, and behind this binary for the OOM
    /// killer.
    pub(crate) fn among_jobs(mut self, group: Option<PathBuf>) -> Self {
        self.0.group = group;
        self.0.oom_score = self.0.group.is_some().then_some(LISTENER_OOM_SCORE);
        self
    }

    /// Starts it, its output piped. It is killed when what is returned is dropped.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn spawn(&self) -> anyhow::Result<Child> {
        let order = Zeroizing::new(serde_json::to_vec(&self.0)?);
        let (stdin, mut order_to) = std::io::pipe().context("make a pipe")?;
        // The file that runs, whatever has become of its path since.
        let child = Command::new("/proc/self/exe")
            .arg(enter::COMMAND)
            .env_clear()
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("start this binary once more")?;
        order_to.write_all(&order).context("say what to become")?;
        Ok(child)
    }

    /// Starts it, and waits for its end.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) async fn output(&self) -> anyhow::Result<Output> {
        self.spawn()?.wait_with_output().await.context("wait for its end")
    }
}

/// The binary itself has -900. A step of a job has 500, as the runner sets it.
const LISTENER_OOM_SCORE: i32 = -500;

/// The control group that the listener and its jobs are in.
const JOBS_GROUP: &str = "kiln.slice/kiln-jobs.slice/kiln-jobs.service";

/// Where control groups are: of version 2, or of systemd's own hierarchy of version 1.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd"];

impl User {
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn gid(&self) -> u32 {
        self.gid
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
