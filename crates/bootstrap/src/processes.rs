//! The machine's processes, as `/proc` shows them.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The runner's program for a job, below the listener.
///
/// Source: `Runner.Listener/JobDispatcher.cs` of actions/runner, which starts `bin/Runner.Worker`.
const WORKER: &str = "Runner.Worker";

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) id: i32,
    pub(crate) name: String,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    /// The real user.
    pub(crate) uid: u32,
    /// It has ended, and nobody has asked how.
    pub(crate) zombie: bool,
}

/// Every process there is.
pub(crate) fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn read(id: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()?;
    parse(&stat, uid)
}

/// A process from its `stat`: a name is in parentheses, and may hold some itself.
fn parse(stat: &str, uid: u32) -> Option<Process> {
    let (id, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let zombie = matches!(fields.next()?, "Z" | "X");
    let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Process { id: id.parse().ok()?, name: name.to_owned(), parent, group, uid, zombie })
}

/// Is it a worker by its name?
pub(crate) fn is_worker(process: &Process) -> bool {
    process.name == WORKER
}

/// Does a worker run below the listener? `None` where that can't be seen.
pub(crate) fn has_worker(listener: Option<Pid>) -> Option<bool> {
    Some(!workers(listener)?.is_empty())
}

/// The workers below the listener. `None` where they can't be seen.
pub(crate) fn workers(listener: Option<Pid>) -> Option<Vec<i32>> {
    let mut children = children(listener?)?;
    children.retain(|child| {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        parse(&stat, 0).is_some_and(|child| is_worker(&child) && !child.zombie)
    });
    Some(children)
}

/// All that a process has started, and what those have.
pub(crate) fn below(top: i32) -> Vec<i32> {
    let all = all();
    let mut found = vec![top];
    loop {
        let next = |process: &&Process| found.contains(&process.parent) && !found.contains(&process.id);
        let next: Vec<i32> = all.iter().filter(next).map(|process| process.id).collect();
        if next.is_empty() {
            return found.split_off(1);
        }
        found.extend(next);
    }
}

/// The children of all of its threads, from which .NET starts programs as it likes.
fn children(parent: Pid) -> Option<Vec<i32>> {
    let mut all = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten() {
        let text = match std::fs::read_to_string(thread.path().join("children")) {
            Ok(text) => text,
            // A thread that has ended meanwhile; a kernel without the file has it for none.
            Err(_) if Path::new(&format!("/proc/{parent}/task/{parent}/children")).exists() => continue,
            Err(_) => return None,
        };
        all.extend(text.split_whitespace().filter_map(|id| id.parse::<i32>().ok()));
    }
    Some(all)
}

/// Kills what is left of a process group, as far as it is that user's.
pub(crate) fn end_group(group: Pid, uid: u32) {
    for process in all() {
        if process.group == group.as_raw() && process.uid == uid && !process.zombie {
            let _ = kill(Pid::from_raw(process.id), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let found = parse("12 (a) b (c)) S 7 9 9 0 -1 4194304\n", 1001).unwrap();
        let wanted = Process { id: 12, name: "a) b (c)".to_owned(), parent: 7, group: 9, uid: 1001, zombie: false };
        assert_eq!(found, wanted);
        assert!(parse("12 (x) Z 7 9 9", 0).unwrap().zombie);
        for broken in ["", "12", "12 (x", "12 (x) S", "x (y) S 1 2"] {
            assert_eq!(parse(broken, 0), None, "{broken:?}");
        }
    }

    #[test]
    fn this_process_is_there_and_has_no_worker() {
        let own = Pid::this();
        let found = all().into_iter().find(|process| process.id == own.as_raw()).unwrap();
        assert_eq!((found.uid, found.zombie), (nix::unistd::getuid().as_raw(), false));
        assert_ne!(has_worker(Some(own)), Some(true));
        assert_eq!(has_worker(None), None);
    }
}
