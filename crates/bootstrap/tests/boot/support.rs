//! A machine in a folder, on which the binary boots.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kiln_rehearsal::aws::{Imds, ImdsOptions};
use kiln_rehearsal::github::{GitHub, GitHubOptions, KnownRunner};
use nix::unistd::{Gid, Uid, chown, geteuid, getgid};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

pub(crate) const VERSION: &str = "2.338.0";
pub(crate) const INSTANCE: &str = "i-0abc0000000000001";

/// A boot takes a second or two, retries some more; two minutes are for a machine under load.
pub(crate) const SOON: Duration = Duration::from_secs(120);

/// `nobody` on Debian and on Amazon Linux.
const NOBODY: u32 = 65534;

/// GitHub, a metadata service, and a machine with the App's key in a file.
pub(crate) struct There {
    pub(crate) github: GitHub,
    root: TempDir,
}

pub(crate) async fn there() -> There {
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    // The runner's user has to get through.
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let there = There { github, root };
    let (uid, gid) = runner_ids();
    there.write("etc/passwd", &format!("runner:x:{uid}:{gid}::/home/runner:/bin/bash\n"), 0o644);
    there.write("etc/group", "", 0o644);
    there.write("etc/kiln/app.pem", &there.github.generate_key(), 0o600);
    let release = there.github.runner_release(VERSION).unwrap();
    let folder = there.path("opt/actions-runner");
    std::fs::create_dir_all(&folder).unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(release.bytes.as_slice())).unpack(&folder).unwrap();
    give(&folder, Uid::from_raw(uid), Gid::from_raw(gid));
    there
}

/// Whom the runner runs as: nobody, or who runs the test where that is not root.
pub(crate) fn runner_ids() -> (u32, u32) {
    if geteuid().is_root() { (NOBODY, NOBODY) } else { (geteuid().as_raw(), getgid().as_raw()) }
}

fn give(path: &Path, uid: Uid, gid: Gid) {
    nix::unistd::fchownat(nix::fcntl::AT_FDCWD, path, Some(uid), Some(gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
        .unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), uid, gid);
        }
    }
}

impl There {
    pub(crate) fn path(&self, path: &str) -> std::path::PathBuf {
        self.root.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str, mode: u32) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        // Only what is written for it is the runner's user's own.
        if geteuid().is_root() {
            chown(&path, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).unwrap();
        }
    }

    /// What the instance is told: persistent, in no group.
    pub(crate) fn config(&self) -> Value {
        json!({
            "version": 1,
            "organization": "acme",
            "fleet": "linux",
            "github": { "api_url": self.github.api_url(), "url": self.github.url() },
            "app": { "issuer": self.github.client_id(), "installation_id": self.github.installation_id() },
            "key": { "file": "/etc/kiln/app.pem" },
            "registration": "persistent",
            "labels": ["linux-x64"],
            "runner_group": "Default",
            "runner": { "version": VERSION, "user": "runner", "directory": "/opt/actions-runner" },
            "job_metadata_access": "allowed",
        })
    }

    pub(crate) fn ephemeral(&self) -> Value {
        let mut config = self.config();
        config["registration"] = json!("ephemeral");
        config
    }

    pub(crate) async fn imds(&self, user_data: Option<String>) -> Imds {
        let options = ImdsOptions {
            instance: INSTANCE.to_owned(),
            ami: "ami-1".to_owned(),
            user_data,
            target: Box::new(|| None),
        };
        Imds::start(options).await.unwrap()
    }

    /// Boots.
    pub(crate) async fn boot(&self, config: &Value) -> Booted {
        let imds = self.imds(Some(config.to_string())).await;
        self.boot_with(imds)
    }

    pub(crate) fn boot_with(&self, imds: Imds) -> Booted {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiln-bootstrap"))
            .arg("--root")
            .arg(self.root.path())
            .arg("run")
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Booted { _imds: imds, child, lines, log: Vec::new() }
    }

    pub(crate) fn runner(&self) -> Option<KnownRunner> {
        self.github.runners().into_iter().find(|runner| runner.name.starts_with(&format!("linux-{INSTANCE}")))
    }
}

/// A binary that runs.
pub(crate) struct Booted {
    _imds: Imds,
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    pub(crate) log: Vec<Value>,
}

impl Booted {
    pub(crate) fn id(&self) -> i32 {
        self.child.id().unwrap().cast_signed()
    }

    /// The next line of the log with this message.
    pub(crate) async fn said(&mut self, message: &str) -> Value {
        let found = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                self.log.push(line.clone());
                if line["message"] == message {
                    return Some(line);
                }
            }
            None
        };
        match tokio::time::timeout(SOON, found).await {
            Ok(Some(line)) => line,
            Ok(None) => panic!("it ended without {message:?}:\n{:#?}", self.log),
            Err(_) => panic!("it never said {message:?}:\n{:#?}", self.log),
        }
    }

    pub(crate) async fn online(&mut self) {
        self.said("online").await;
    }

    /// Ends it politely, and gives its exit code.
    pub(crate) async fn stop(&mut self) -> Option<i32> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.id()), nix::sys::signal::Signal::SIGTERM).unwrap();
        self.end().await
    }

    pub(crate) async fn end(&mut self) -> Option<i32> {
        let rest = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.log.push(serde_json::from_str(&line).unwrap());
            }
            self.child.wait().await.unwrap().code()
        };
        tokio::time::timeout(SOON, rest).await.unwrap_or_else(|_| panic!("it does not end"))
    }

    /// It ends with 1, and its log says why and what to do.
    pub(crate) async fn given_up(mut self, said: &str) -> Vec<Value> {
        let code = self.end().await;
        let log = format!("{:#?}", self.log);
        assert_eq!(code, Some(1), "{log}");
        let last =
            self.log.iter().rev().find(|line| line["message"] == "this boot can't succeed").unwrap_or(&Value::Null);
        assert!(format!("{} {}", last["error"], last["hint"]).contains(said), "{said:?} is not in {last:#}");
        self.log
    }
}
