//! Removing a job's files as root, in folders that belong to the job: nothing is reached by its path, and no link followed.

use std::ffi::{CStr, CString};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::Moment;

/// So deep files are looked for; what lies deeper is moved up first. Each level holds a file open.
const DEEPEST: usize = 64;

/// What the worker still needs of its folder for temporary files, while the hook runs.
///
/// Source: `Runner.Worker/FileCommandManager.cs` and `ExecutionContext.cs` of actions/runner.
const TEMP_KEPT: [&str; 2] = ["_runner_file_commands", "_github_workflow"];

/// The runner's own in its folder for work, which no repository is called.
///
/// Source: `Runner.Common/Constants.cs` of actions/runner.
const OWN: [&str; 4] = ["_PipelineMapping", "_tool", "_update", "_temp"];

/// Downloaded before the hook at a job's beginning, and by each job for itself.
const ACTIONS: &str = "_actions";

/// Empties what jobs have left in the runner's folder for work.
pub(super) fn clean_work(runner: &Path, uid: u32, moment: Moment) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(mut runner) = open_trusted(runner, &mut problems) else { return problems };
    let Some(mut work) = open(&mut runner, c"_work", &mut problems) else { return problems };
    for name in names(&mut work) {
        match name.to_str().unwrap_or_default() {
            "_temp" => clean_temp(&mut work, uid, &mut problems),
            ACTIONS if moment == Moment::Started => {}
            ACTIONS => remove(&mut work, &name, &mut problems),
            own if OWN.contains(&own) => {}
            _ => clean_repository(&mut work, &name, &mut problems),
        }
    }
    problems
}

/// Empties a repository's workspace; the folder itself is where the hook runs.
fn clean_repository(work: &mut Dir, name: &CStr, problems: &mut Vec<String>) {
    let Some(mut pipeline) = open_or_unlink(work, name, problems) else { return };
    for name in names(&mut pipeline) {
        if let Some(workspace) = open_or_unlink(&mut pipeline, &name, problems) {
            empty(workspace, problems);
        }
    }
}

fn clean_temp(work: &mut Dir, uid: u32, problems: &mut Vec<String>) {
    let Some(mut temp) = open(work, c"_temp", problems) else { return };
    for name in names(&mut temp) {
        let kept = TEMP_KEPT.iter().any(|kept| name.to_bytes() == kept.as_bytes());
        // The script of a step is the worker's to remove.
        let scripts = stat(&mut temp, &name).is_some_and(|found| is(&found, SFlag::S_IFREG) && found.st_uid == uid);
        if !kept && !scripts {
            remove(&mut temp, &name, problems);
        }
    }
}

/// Removes the user's entries of a folder that is everybody's.
pub(super) fn clean_shared(folder: &Path, uid: u32) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(mut folder) = open_trusted(folder, &mut problems) else { return problems };
    for name in names(&mut folder) {
        // The listener's and the worker's own, of .NET.
        let runtimes =
            [&b"clr-debug-pipe-"[..], b"dotnet-diagnostic-"].iter().any(|own| name.to_bytes().starts_with(own));
        if !runtimes && stat(&mut folder, &name).is_some_and(|found| found.st_uid == uid) {
            remove(&mut folder, &name, &mut problems);
        }
    }
    problems
}

fn remove(parent: &mut Dir, name: &CStr, problems: &mut Vec<String>) {
    if let Some(folder) = open_or_unlink(parent, name, problems) {
        empty(folder, problems);
        note(unlinkat(&*parent, name, UnlinkatFlags::RemoveDir), name, problems);
    }
}

/// Removes all that is in a folder, but not what another file system has put there.
fn empty(mut folder: Dir, problems: &mut Vec<String>) {
    let Ok(device) = fstat(&folder).map(|found| found.st_dev) else { return };
    let mut moved = 0;
    loop {
        let before = moved;
        empty_level(&mut folder, device, DEEPEST, &mut moved, problems);
        if moved == before {
            return;
        }
        // What lay too deep lies here now.
        let Some(top) = reopen(&folder) else { return };
        folder = top;
    }
}

/// Moves what lies deeper than `levels` up, and counts it.
fn empty_level(folder: &mut Dir, device: u64, levels: usize, moved: &mut u32, problems: &mut Vec<String>) {
    let Some(top) = reopen(folder) else { return };
    empty_below(&top, folder, device, levels, moved, problems);
}

fn empty_below(top: &Dir, folder: &mut Dir, device: u64, levels: usize, moved: &mut u32, problems: &mut Vec<String>) {
    for name in names(folder) {
        if levels == 0 && stat(folder, &name).is_some_and(|found| is(&found, SFlag::S_IFDIR)) {
            *moved += 1;
            let up = format!(".kiln-deep-{}-{moved}", std::process::id());
            note(renameat(&*folder, name.as_c_str(), top, up.as_str()), &name, problems);
            continue;
        }
        let Some(mut inner) = open_or_unlink(folder, &name, problems) else { continue };
        if fstat(&inner).map(|found| found.st_dev) != Ok(device) {
            problem(&name, "belongs to another file system", problems);
            continue;
        }
        empty_below(top, &mut inner, device, levels.saturating_sub(1), moved, problems);
        drop(inner);
        match unlinkat(&*folder, name.as_c_str(), UnlinkatFlags::RemoveDir) {
            // Said of what is in it already.
            Err(Errno::ENOTEMPTY) => {}
            removed => note(removed, &name, problems),
        }
    }
}

/// Opens a folder; what is none is removed.
fn open_or_unlink(parent: &mut Dir, name: &CStr, problems: &mut Vec<String>) -> Option<Dir> {
    match unlinkat(&*parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => open(parent, name, problems),
        removed => {
            note(removed, name, problems);
            None
        }
    }
}

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn open(parent: &mut Dir, name: &CStr, problems: &mut Vec<String>) -> Option<Dir> {
    match Dir::openat(&*parent, name, FLAGS, Mode::empty()) {
        Ok(dir) => Some(dir),
        Err(Errno::ENOENT) => None,
        Err(error) => {
            problem(name, error.desc(), problems);
            None
        }
    }
}

/// A folder in which nobody else could put a link in its place.
fn open_trusted(path: &Path, problems: &mut Vec<String>) -> Option<Dir> {
    match Dir::open(path, FLAGS, Mode::empty()) {
        Ok(dir) => Some(dir),
        Err(error) => {
            problems.push(format!("{}: {}", path.display(), error.desc()));
            None
        }
    }
}

fn reopen(folder: &Dir) -> Option<Dir> {
    Dir::openat(folder, c".", FLAGS, Mode::empty()).ok()
}

fn names(folder: &mut Dir) -> Vec<CString> {
    let names = folder.iter().flatten().map(|entry| entry.file_name().to_owned());
    names.filter(|name| !matches!(name.to_bytes(), b"." | b"..")).collect()
}

fn stat(folder: &mut Dir, name: &CStr) -> Option<FileStat> {
    fstatat(&*folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()
}

fn is(found: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == kind
}

fn note(done: nix::Result<()>, name: &CStr, problems: &mut Vec<String>) {
    match done {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => problem(name, error.desc(), problems),
    }
}

fn problem(name: &CStr, what: &str, problems: &mut Vec<String>) {
    problems.push(format!("{}: {what}", name.to_string_lossy()));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_jobs_files_are_removed_and_nothing_else() {
        let there = tempfile::tempdir().unwrap();
        let path = |name: &str| there.path().join(name);
        let write = |name: &str| {
            std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            std::fs::write(path(name), "x").unwrap();
        };
        write("outside/kept");
        write("runner/bin/Runner.Listener");
        write("runner/_work/r/r/.git/objects/a");
        write("runner/_work/r/r/read-only/a");
        std::fs::set_permissions(path("runner/_work/r/r/read-only"), std::fs::Permissions::from_mode(0o500)).unwrap();
        write("runner/_work/_tool/node/bin/node");
        write("runner/_work/_actions/a/index.js");
        write("runner/_work/_temp/_github_home/.cache/a");
        write("runner/_work/_temp/_runner_file_commands/set_env");
        write("runner/_work/_temp/step.sh");
        symlink(path("outside"), path("runner/_work/r/r/link")).unwrap();
        symlink(path("outside"), path("runner/_work/other")).unwrap();
        symlink(path("outside"), path("runner/_work/_temp/link")).unwrap();
        let mut deep = path("runner/_work/r/r/deep");
        for _ in 0..(3 * DEEPEST) {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("bottom"), "x").unwrap();
        let own = nix::unistd::getuid().as_raw();

        let problems = clean_work(&path("runner"), own, Moment::Started);
        // Who is not root gets into no read-only folder.
        let expected: &[String] = if own == 0 { &[] } else { &problems };
        assert_eq!(problems, expected);
        assert!(path("outside/kept").exists() && path("runner/bin/Runner.Listener").exists());
        if own == 0 {
            assert_eq!(std::fs::read_dir(path("runner/_work/r/r")).unwrap().count(), 0);
        }
        for kept in
            ["_tool/node/bin/node", "_temp/_runner_file_commands/set_env", "_temp/step.sh", "_actions/a/index.js"]
        {
            assert!(path("runner/_work").join(kept).exists(), "{kept}");
        }
        for gone in ["_temp/_github_home", "_temp/link", "other"] {
            assert!(path("runner/_work").join(gone).symlink_metadata().is_err(), "{gone}");
        }
        clean_work(&path("runner"), own, Moment::Completed);
        assert!(!path("runner/_work/_actions/a").exists());

        // A link in the place of the whole folder leads nowhere.
        std::fs::remove_dir_all(path("runner/_work")).ok();
        let _ = std::fs::rename(path("runner/_work"), path("runner/moved"));
        symlink(path("outside"), path("runner/_work")).unwrap();
        assert_eq!(clean_work(&path("runner"), own, Moment::Completed).len(), 1);
        assert!(path("outside/kept").exists());

        assert_eq!(clean_shared(&path("outside"), own + 1), Vec::<String>::new());
        assert!(path("outside/kept").exists(), "another user's");
        clean_shared(&path("outside"), own);
        assert!(!path("outside/kept").exists());
    }
}
