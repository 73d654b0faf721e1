//! Control groups of jobs, below the one that systemd delegates to `kiln-jobs.service`: version 2 only.
//!
//! ```text
//! kiln-jobs.slice                  limits for all that jobs do, containers too
//! └── kiln-jobs.service            delegated
//!     ├── runner                   the listener, and the process that holds the unit's place
//!     └── job-PID                  a job: the worker of that number and all below it
//! ```
//!
//! A job has less than the slice allows, so that one that takes all there is leaves the listener enough to report it. And all
//! of a job can be ended at once, however fast it starts processes and whatever it does to be overlooked.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Where the listener is.
const RUNNER: &str = "runner";

/// A job's folder begins so.
const JOB: &str = "job-";

/// What a job may have of the slice's limits: a tenth is the listener's. .NET has a few dozen threads and some 100 MiB.
const SHARE_PERCENT: u64 = 90;

/// The files with a limit. The slice has those of the same name.
const LIMITS: [&str; 2] = ["pids.max", "memory.max"];

/// How often processes are moved until none is left behind that was started meanwhile.
const ROUNDS: u32 = 5;

/// The control groups below a unit's.
#[derive(Debug, Clone)]
pub(crate) struct JobGroups {
    unit: PathBuf,
}

impl JobGroups {
    /// Below the unit's control group, if it is of version 2: there controllers are what a folder has.
    pub(crate) fn below(unit: &Path) -> Option<Self> {
        unit.join("cgroup.controllers").exists().then(|| Self { unit: unit.to_owned() })
    }

    /// Makes the listener's folder, and moves what is in the unit's own into it: a control group with processes of its own can't
    /// limit others below it.
    ///
    /// Source: "No Internal Process Constraint" in the kernel's `admin-guide/cgroup-v2.rst`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn prepare(&self) -> anyhow::Result<PathBuf> {
        let runner = self.unit.join(RUNNER);
        make(&runner)?;
        for _ in 0..ROUNDS {
            let own = processes(&self.unit);
            if own.is_empty() {
                break;
            }
            own.into_iter().for_each(|id| move_to(&runner, id));
        }
        for controller in ["+pids", "+memory"] {
            let control = self.unit.join("cgroup.subtree_control");
            if let Err(error) = std::fs::write(&control, controller) {
                tracing::warn!(phase = "serve", controller, %error, "jobs have no limit of their own");
            }
        }
        Ok(runner)
    }

    /// Gives a worker a control group of its own, with all that it has started: `below` lists that.
    pub(crate) fn admit(&self, worker: i32, below: impl Fn() -> Vec<i32>) {
        let group = self.unit.join(format!("{JOB}{worker}"));
        if group.exists() {
            return;
        }
        if let Err(error) = make(&group) {
            tracing::warn!(phase = "serve", error = %format!("{error:#}"), "a job has no control group of its own");
            return;
        }
        for name in LIMITS {
            self.limit(&group, name);
        }
        move_to(&group, worker);
        for _ in 0..ROUNDS {
            let there = processes(&group);
            let environment: Vec<i32> = below().into_iter().filter(|id| !there.contains(id)).collect();
            if environment.is_empty() {
                break;
            }
            environment.into_iter().for_each(|id| move_to(&group, id));
        }
    }

    /// A share of the slice's limit, where that has one.
    fn limit(&self, group: &Path, name: &str) {
        let slice = self.unit.parent().and_then(|slice| std::fs::read_to_string(slice.join(name)).ok());
        let Some(limit) = slice.and_then(|limit| limit.trim().parse::<u64>().ok()) else { return };
        let share = limit.saturating_mul(SHARE_PERCENT) / 100;
        if let Err(error) = std::fs::write(group.join(name), share.to_string()) {
            tracing::warn!(phase = "serve", name, %error, "a job has no limit of its own");
        }
    }

    /// Ends all that jobs have left whose worker is not among these. Gives how many processes those were.
    pub(crate) fn end_all_but(&self, workers: &[i32]) -> usize {
        let jobs = std::fs::read_dir(&self.unit).into_iter().flatten().flatten();
        let ended = jobs.filter_map(|entry| {
            let worker: i32 = entry.file_name().to_str()?.strip_prefix(JOB)?.parse().ok()?;
            (!workers.contains(&worker)).then(|| end(&entry.path()))
        });
        ended.sum()
    }
}

/// Ends a control group with all its processes at once.
///
/// Source: `cgroup.kill` in `admin-guide/cgroup-v2.rst`, which kernels have from 5.14 on. Where it is missing, processes are ended
/// one by one, by their user.
fn end(group: &Path) -> usize {
    let left = processes(group).len();
    if left > 0 {
        let _ = std::fs::write(group.join("cgroup.kill"), "1");
    }
    // Refused while its processes are still about to end: the next look removes it.
    let _ = std::fs::remove_dir(group);
    left
}

fn make(group: &Path) -> anyhow::Result<()> {
    match std::fs::create_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("make {}", group.display()))
        }
        _ => Ok(()),
    }
}

fn processes(group: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|id| id.parse().ok()).collect()
}

/// One that has ended meanwhile can't be moved.
fn move_to(group: &Path, id: i32) {
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .open(group.join("cgroup.procs"))
        .and_then(|mut procs| std::io::Write::write_all(&mut procs, id.to_string().as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that stands for the unit's control group: its files only take what is written.
    fn unit() -> (tempfile::TempDir, JobGroups) {
        let slice = tempfile::tempdir().unwrap();
        let unit = slice.path().join("kiln-jobs.service");
        std::fs::create_dir(&unit).unwrap();
        for (name, text) in [("pids.max", "1000\n"), ("memory.max", "max\n")] {
            std::fs::write(slice.path().join(name), text).unwrap();
        }
        assert!(JobGroups::below(&unit).is_none(), "version 1 has no such file");
        std::fs::write(unit.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let groups = JobGroups::below(&unit).unwrap();
        (slice, groups)
    }

    fn read(groups: &JobGroups, path: &str) -> String {
        std::fs::read_to_string(groups.unit.join(path)).unwrap_or_default()
    }

    #[test]
    fn a_job_has_less_than_the_slice_and_is_ended_with_its_worker_alone() {
        let (_slice, groups) = unit();
        assert_eq!(groups.prepare().unwrap(), groups.unit.join("runner"));
        assert_eq!(read(&groups, "cgroup.subtree_control"), "+memory");
        for job in ["job-7", "job-8"] {
            std::fs::create_dir(groups.unit.join(job)).unwrap();
            std::fs::write(groups.unit.join(job).join("cgroup.procs"), "7\n70\n").unwrap();
        }
        assert_eq!(groups.end_all_but(&[7]), 2);
        assert_eq!(
            (read(&groups, "job-7/cgroup.kill"), read(&groups, "job-8/cgroup.kill")),
            (String::new(), "1".into())
        );
        groups.admit(9, Vec::new);
        assert_eq!((read(&groups, "job-9/pids.max"), read(&groups, "job-9/memory.max")), ("900".into(), String::new()));
        // It is there already: its limits stay what they are.
        groups.admit(7, Vec::new);
        assert_eq!(read(&groups, "job-7/pids.max"), "");
    }

    /// With the kernel's own control groups: what a worker has started is ended with it, and the listener is not.
    #[test]
    fn what_a_worker_has_started_is_ended_at_once() {
        let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let Some(hierarchy) = hierarchies.iter().find(|hierarchy| hierarchy.join("cgroup.procs").exists()) else {
            return eprintln!("skipped: no control groups of version 2");
        };
        let unit = hierarchy.join(format!("kiln-test-{}", std::process::id()));
        if std::fs::create_dir(&unit).is_err() || !unit.join("cgroup.kill").exists() {
            let _ = std::fs::remove_dir(&unit);
            return eprintln!("skipped: no control groups can be made, or not be ended at once");
        }
        let groups = JobGroups::below(&unit).unwrap();
        let runner = groups.prepare().unwrap();
        let sleep = || std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let (mut listener, mut worker, mut step) = (sleep(), sleep(), sleep());
        let id = |child: &std::process::Child| i32::try_from(child.id()).unwrap();
        [&listener, &worker, &step].into_iter().for_each(|child| move_to(&runner, id(child)));
        groups.admit(id(&worker), || vec![id(&step)]);
        assert_eq!((processes(&runner), groups.end_all_but(&[id(&worker)])), (vec![id(&listener)], 0));
        assert_eq!(groups.end_all_but(&[]), 2);
        assert!(!worker.wait().unwrap().success() && !step.wait().unwrap().success());
        assert!(listener.try_wait().unwrap().is_none(), "the listener is no job");
        listener.kill().unwrap();
        listener.wait().unwrap();
        assert_eq!(groups.end_all_but(&[]), 0);
        for group in [runner, unit.clone()] {
            std::fs::remove_dir(&group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
        }
    }
}
