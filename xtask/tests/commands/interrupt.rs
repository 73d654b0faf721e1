//! Ctrl-C during a rehearsal.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::bootstrap;

/// The rehearsal's own commands take seconds; this is for a machine under load.
const SOON: Duration = Duration::from_secs(120);

/// Processes that were started below a folder, by their arguments, environment or working directory.
fn below(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let process = entry.path();
        let texts = ["cmdline", "environ"].map(|file| std::fs::read(process.join(file)).unwrap_or_default());
        let cwd = std::fs::read_link(process.join("cwd")).unwrap_or_default();
        let named = texts.iter().any(|text| String::from_utf8_lossy(text).contains(folder));
        if named || cwd.starts_with(folder) {
            found.push(String::from_utf8_lossy(&texts[0]).replace('\0', " "));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_rehearsal_leaves_no_process_and_no_file() {
    bootstrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    // The runner's unprivileged user has to get through.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut rehearsal = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("rehearse")
        .env("TMPDIR", path)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(rehearsal.stderr.take().unwrap()).lines();
    let deployed = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("online at GitHub") && line.contains("runner(s)") {
                return;
            }
        }
        panic!("the rehearsal ended before its first deploy did");
    };
    tokio::time::timeout(SOON, deployed).await.unwrap();
    // Its own, the emulator, and two runners with their listeners.
    assert!(below(path).len() >= 5, "{:#?}", below(path));
    let id = nix::unistd::Pid::from_raw(rehearsal.id().unwrap().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).unwrap();
    let said = async { while lines.next_line().await.unwrap().is_some() {} };
    tokio::time::timeout(SOON, said).await.unwrap();
    let status = tokio::time::timeout(SOON, rehearsal.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(below(path), [""; 0]);
    let left: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}
