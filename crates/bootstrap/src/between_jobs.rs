//! Between two jobs of one runner: what the first has left running is ended, what it has left lying is removed, and the second
//! begins only where there is room.
//!
//! The runner calls its hooks as its own user, who could neither remove root's files, as containers leave them, nor be trusted
//! to. So a hook asks this binary, which is root, and waits. It trusts nothing the asker says but who it is.

mod files;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::job_groups::JobGroups;
use crate::machine::Machine;
use crate::processes::{self, Process};

/// Where the hooks ask. The folder is root's, so that nobody else listens there.
const SOCKET: &str = "/run/kiln/hooks.sock";

/// A workspace of a million files is removed within a minute or two.
const CLEAN_LIMIT: Duration = Duration::from_secs(240);

/// How often what the job has left is killed, and how long it then has to end.
const ROUNDS: u32 = 20;
const ROUND: Duration = Duration::from_millis(50);

/// How often what is started while the others are being stopped is looked for. What is left then can start nothing: those that are
/// stopped hold the job's limit.
const STOPS: u32 = 5;

/// Between two looks whether a worker has come or gone.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What must be free for a job to begin: room for a checkout and an image or two.
const LEAST_MIB: u64 = 2048;
const LEAST_INODES: u64 = 20_000;

/// A clean-up by docker takes seconds, for large images a minute.
const DOCKER_LIMIT: Duration = Duration::from_secs(120);

/// When the runner asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Moment {
    /// Before the first step of a job.
    Started,
    /// After its last one.
    Completed,
}

/// The hook's side: asks, prints the answer, and ends as it says.
pub(crate) async fn ask(machine: &Machine, moment: Moment) -> ExitCode {
    let asked = async {
        let mut stream = UnixStream::connect(machine.path(SOCKET)).await.context("connect to kiln-bootstrap")?;
        stream.write_all(&[if moment == Moment::Started { b's' } else { b'c' }]).await?;
        let mut answer = String::new();
        stream.take(64 * 1024).read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = match tokio::time::timeout(CLEAN_LIMIT + DOCKER_LIMIT, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            println!("::warning::nothing was cleaned up: {error:#}");
            return ExitCode::SUCCESS;
        }
        Err(_) => {
            println!("::warning::nothing was cleaned up in time");
            return ExitCode::SUCCESS;
        }
    };
    let (verdict, said) = answer.split_once('\n').unwrap_or((answer.as_str(), ""));
    print!("{said}");
    if verdict == "refused" { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What the machine's side needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Cleaner {
    pub(crate) machine: Machine,
    /// The runner's folder.
    pub(crate) directory: PathBuf,
    pub(crate) uid: u32,
    pub(crate) listener: Option<Pid>,
    /// The control groups of jobs, where the machine has them.
    pub(crate) groups: Option<JobGroups>,
}

/// Answers for as long as what is returned is kept.
#[derive(Debug)]
pub(crate) struct Answering(JoinHandle<()>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cleaner {
    /// Answers the hooks of a listener.
    ///
    /// # Errors
    /// The socket can't be had.
    pub(crate) fn answer(self) -> anyhow::Result<Answering> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.machine.path(SOCKET);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let _ = std::fs::remove_file(&path);
        let socket = UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let cleaner = Arc::new(self);
        let answering = async move {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut seen = Vec::new();
            loop {
                // One after the other: a job has one hook at a time.
                tokio::select! {
                    accepted = socket.accept() => cleaner.answer_one(accepted.map(|(stream, _)| stream)).await,
                    _ = looks.tick() => {
                        let workers = processes::workers(cleaner.listener).unwrap_or_default();
                        if workers != seen {
                            seen.clone_from(&workers);
                            let cleaner = Arc::clone(&cleaner);
                            let _ = tokio::task::spawn_blocking(move || cleaner.look_after(&workers)).await;
                        }
                    }
                }
            }
        };
        Ok(Answering(tokio::spawn(answering.in_current_span())))
    }

    async fn answer_one(self: &Arc<Self>, accepted: std::io::Result<UnixStream>) {
        match accepted {
            Ok(stream) => {
                if let Err(error) = self.serve(stream).await {
                    tracing::warn!(phase = "serve", error = %format!("{error:#}"), "a hook was not answered");
                }
            }
            Err(error) => {
                tracing::warn!(phase = "serve", %error, "hooks can't be heard");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn serve(self: &Arc<Self>, mut stream: UnixStream) -> anyhow::Result<()> {
        let peer = stream.peer_cred()?;
        if peer.uid() != self.uid && peer.uid() != 0 {
            bail!("uid {} asked, which is not the runner's", peer.uid());
        }
        let mut moment = [0];
        tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut moment)).await.context("no question")??;
        let moment = if moment == *b"s" { Moment::Started } else { Moment::Completed };
        let asker = peer.pid();
        let mut said = self.docker(&["ps", "--all", "--quiet"]).await;
        let cleaner = Arc::clone(self);
        let cleaned = tokio::task::spawn_blocking(move || cleaner.clean(moment, asker));
        said.extend(tokio::time::timeout(CLEAN_LIMIT, cleaned).await.context("not cleaned up in time")??);
        let mut refused = None;
        if moment == Moment::Started && self.scarce().is_some() {
            self.run_docker(&["system", "prune", "--all", "--force", "--volumes"]).await;
            refused = self.scarce();
        }
        let mut answer = if refused.is_some() { "refused\n".to_owned() } else { "ok\n".to_owned() };
        for problem in said.iter().take(20) {
            answer.push_str(&format!("::warning::{}\n", escaped(problem)));
        }
        if let Some(scarce) = &refused {
            answer.push_str(&format!("::error title=Disk nearly full::{}\n", escaped(scarce)));
        }
        let _ = stream.write_all(answer.as_bytes()).await;
        if let Some(scarce) = refused {
            leave_service(&scarce);
        }
        Ok(())
    }

    /// Ends and removes what is there of other jobs, and gives what could not be.
    fn clean(&self, moment: Moment, asker: Option<i32>) -> Vec<String> {
        self.keep_apart(&processes::workers(self.listener).unwrap_or_default());
        let mut problems = self.end_processes(asker);
        problems.extend(files::clean_work(&self.directory, self.uid, moment));
        if self.machine.is_whole() {
            for folder in ["/tmp", "/var/tmp", "/dev/shm"] {
                problems.extend(files::clean_shared(Path::new(folder), self.uid));
            }
        }
        problems
    }

    /// A worker has come or gone. What it has started is not to outlive it, whether or not it came to its last hook: a job that
    /// takes every process there is starts no hook any more.
    fn look_after(&self, workers: &[i32]) {
        self.keep_apart(workers);
        if workers.is_empty() && self.machine.is_whole() {
            for problem in self.end_processes(None) {
                tracing::warn!(phase = "serve", problem, "what a job has left running stays");
            }
        }
    }

    /// Ends the control groups of jobs that are over, and gives each other one its own.
    fn keep_apart(&self, workers: &[i32]) {
        let Some(groups) = &self.groups else { return };
        let ended = groups.end_all_but(workers);
        if ended > 0 {
            tracing::info!(phase = "serve", processes = ended, "ended what a job has left running");
        }
        workers.iter().for_each(|worker| groups.admit(*worker, || processes::below(*worker)));
    }

    /// Ends what a job has left running. `asker`: the hook on whose word; without one, nothing is ended while there is a worker.
    fn end_processes(&self, asker: Option<i32>) -> Vec<String> {
        let mut left = Vec::new();
        for _ in 0..ROUNDS {
            left = self.stopped(asker);
            if left.is_empty() {
                break;
            }
            signal(&left, Signal::SIGKILL);
            std::thread::sleep(ROUND);
        }
        left.iter().map(|process| format!("process {} ({}) does not end", process.id, process.name)).collect()
    }

    /// What a job has left running, stopped first: what starts processes faster than they are found would outrun its end.
    fn stopped(&self, asker: Option<i32>) -> Vec<Process> {
        let mut left: Vec<Process> = Vec::new();
        for _ in 0..STOPS {
            let now = leftovers(&processes::all(), self, asker);
            let new = now.iter().any(|process| left.iter().all(|known| known.id != process.id));
            left = now;
            if !new {
                break;
            }
            signal(&left, Signal::SIGSTOP);
        }
        left
    }

    /// Removes every container, volume and network of earlier jobs.
    async fn docker(&self, list: &[&str]) -> Vec<String> {
        let Some(containers) = self.run_docker(list).await else { return Vec::new() };
        let containers: Vec<&str> = containers.split_whitespace().collect();
        let mut problems = Vec::new();
        if !containers.is_empty() {
            let remove = [&["rm", "--force", "--volumes"][..], &containers].concat();
            if self.run_docker(&remove).await.is_none() {
                problems.push("containers of the job stay".to_owned());
            }
        }
        self.run_docker(&["volume", "prune", "--force"]).await;
        self.run_docker(&["network", "prune", "--force"]).await;
        problems
    }

    /// What docker says; `None` where its daemon does not run, or it refuses.
    async fn run_docker(&self, arguments: &[&str]) -> Option<String> {
        // Its socket would start it.
        if !self.machine.is_whole() || !Path::new("/run/docker.pid").exists() {
            return None;
        }
        let mut docker = Command::new("/usr/bin/docker");
        docker.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/root").kill_on_drop(true);
        let output = tokio::time::timeout(DOCKER_LIMIT, docker.output()).await.ok()?.ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What there is too little of, and where.
    fn scarce(&self) -> Option<String> {
        let mut places = vec![self.directory.join("_work")];
        if self.machine.is_whole() {
            places.extend([PathBuf::from("/tmp"), PathBuf::from("/var/lib/docker")]);
        }
        places.iter().find_map(|place| {
            let disk = statvfs(place.as_path()).ok()?;
            let (mib, inodes) =
                (disk.blocks_available().saturating_mul(disk.fragment_size()) >> 20, disk.files_available());
            let least = least_mib(&self.machine);
            if mib < least && *place != Path::new("/tmp") {
                return Some(format!("{mib} MiB are free at {}, {least} are wanted", place.display()));
            }
            // A file system that makes them as needed has none at all.
            let few = disk.files() > 0 && inodes < LEAST_INODES;
            few.then(|| format!("{inodes} inodes are free at {}, {LEAST_INODES} are wanted", place.display()))
        })
    }
}

/// A rehearsal's machine says how much is to be free on its disk.
fn least_mib(machine: &Machine) -> u64 {
    let said = std::fs::read_to_string(machine.path("/etc/kiln/least-free-mib")).ok();
    said.and_then(|said| said.trim().parse().ok()).unwrap_or(LEAST_MIB)
}

fn signal(processes: &[Process], signal: Signal) {
    for process in processes {
        let _ = kill(Pid::from_raw(process.id), signal);
    }
}

/// What a job has left running: the user's processes, but for the listener, its worker, and who asks with all above it. In a
/// folder that stands for a machine the user has others: there only those below this process.
fn leftovers(all: &[Process], cleaner: &Cleaner, asker: Option<i32>) -> Vec<Process> {
    let find = |id: i32| all.iter().find(|process| process.id == id);
    let above = |id: i32| {
        let mut line = vec![id];
        while let Some(process) = line.last().and_then(|id| find(*id)).filter(|process| process.parent > 1) {
            if line.contains(&process.parent) {
                break;
            }
            line.push(process.parent);
        }
        line
    };
    let listener = cleaner.listener.map(Pid::as_raw);
    let mut kept: Vec<i32> = asker.map(above).unwrap_or_default();
    kept.extend(listener);
    let worker = |process: &Process| Some(process.parent) == listener && processes::is_worker(process);
    // Then all of them may be its own.
    if asker.is_none() && all.iter().any(|process| worker(process) && !process.zombie) {
        return Vec::new();
    }
    let own = Pid::this().as_raw();
    let here = |process: &Process| cleaner.machine.is_whole() || above(process.id).contains(&own);
    let left = all.iter().filter(|process| {
        process.uid == cleaner.uid
            && process.id != own
            && !process.zombie
            && !kept.contains(&process.id)
            && !worker(process)
            && here(process)
    });
    left.cloned().collect()
}

/// Takes the instance out of service: its job is waited for, its runner deleted, and the group asked for another one, as after
/// any order to end that does not come from the group.
pub(crate) fn leave_service(why: &str) {
    tracing::error!(phase = "serve", why, "this instance is not fit to serve: leaving");
    if let Err(error) = raise(Signal::SIGTERM) {
        tracing::error!(phase = "serve", %error, "it can't be left");
    }
}

/// A name can hold anything: it must be no workflow command of its own.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() { '?' } else { character })
        .collect::<String>()
        .replace("::", ":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(id: i32, parent: i32, name: &str, uid: u32) -> Process {
        Process { id, name: name.to_owned(), parent, group: id, uid, zombie: false }
    }

    #[test]
    fn what_a_job_left_is_told_from_what_serves() {
        let root: PathBuf = "/".into();
        let cleaner = Cleaner {
            machine: Machine::new(root),
            directory: "/opt/actions-runner".into(),
            uid: 1001,
            listener: Some(Pid::from_raw(100)),
            groups: None,
        };
        let all = [
            process(1, 0, "systemd", 0),
            process(100, 50, "Runner.Listener", 1001),
            process(110, 100, "Runner.Worker", 1001),
            process(120, 110, "bash", 1001),
            process(121, 120, "kiln-bootstrap", 1001),
            // Left by the job: of its own session, below init, by the worker's name, and by a name of its own making.
            process(130, 1, "sleep", 1001),
            process(131, 1, "Runner.Worker", 1001),
            process(132, 110, "a) b", 1001),
            process(133, 130, "Runner.Worker", 1001),
            process(140, 1, "chronyd", 990),
        ];
        let left = leftovers(&all, &cleaner, Some(121));
        assert_eq!(left.iter().map(|process| process.id).collect::<Vec<_>>(), [130, 131, 132, 133]);
        // A process that asks from outside is spared itself, and nothing else for it.
        let left = leftovers(&all, &cleaner, Some(130));
        assert_eq!(left.iter().map(|process| process.id).collect::<Vec<_>>(), [120, 121, 131, 132, 133]);
        // Without a hook, nothing is ended while there is a worker.
        assert_eq!(leftovers(&all, &cleaner, None), []);
        let idle: Vec<Process> = all.iter().filter(|process| process.id != 110).cloned().collect();
        let left = leftovers(&idle, &cleaner, None);
        assert!(!left.is_empty() && left.iter().all(|process| process.id != 100), "{left:?}");
        let folder = Cleaner { machine: Machine::new("/tmp/folder".into()), ..cleaner };
        assert_eq!(leftovers(&all, &folder, Some(121)), []);
    }

    /// What starts processes without end outruns whoever ends them one by one.
    #[test]
    fn what_starts_processes_without_end_is_ended() {
        // Nobody else's on the machine.
        const UID: u32 = 61_234;
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can be another user");
            return;
        }
        let cleaner = Cleaner {
            machine: Machine::new("/".into()),
            directory: "/nowhere".into(),
            uid: UID,
            listener: None,
            groups: None,
        };
        let of_user = || processes::all().into_iter().filter(|process| process.uid == UID && !process.zombie).count();
        let user = UID.to_string();
        let bomb = "bomb() { bomb | bomb & }; bomb";
        let mut child = std::process::Command::new("setpriv")
            .args(["--reuid", &user, "--regid", &user, "--clear-groups", "prlimit", "--nproc=300", "bash", "-c", bomb])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let begin = std::time::Instant::now();
        while of_user() < 100 {
            assert!(begin.elapsed() < Duration::from_secs(60), "the bomb does not go off");
        }
        assert_eq!(cleaner.end_processes(None), Vec::<String>::new());
        assert_eq!(of_user(), 0);
        child.wait().unwrap();
    }

    #[test]
    fn a_name_is_no_workflow_command() {
        assert_eq!(escaped("a\n::error::b\r\u{1b}[2J"), "a?:error:b??[2J");
    }
}
