//! A machine in a folder, on which the binary boots.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_stand_ins::aws::{Imds, ImdsOptions, InstanceAws, Place};
use kiln_stand_ins::github::{GitHub, GitHubOptions, KnownRunner};
use kiln_stand_ins::machine::MachineFolder;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr};

pub(crate) const VERSION: &str = "2.338.0";
pub(crate) const INSTANCE: &str = "i-0abc0000000000001";

/// A boot takes a second or two, retries some more; two minutes are for a machine under load.
pub(crate) const SOON: Duration = Duration::from_secs(120);

/// GitHub, and a machine with the App's key in a file.
pub(crate) struct Fixture {
    pub(crate) github: GitHub,
    machine: MachineFolder,
}

/// The instance's place in its group, in [`There::in_group`].
const PLACE: Place<'_> =
    Place { instance: INSTANCE, group: "linux", launch_hook: "launch", termination_hook: "terminate" };

pub(crate) async fn fixture() -> Fixture {
    fixture_with(VERSION).await
}

/// With a runner of this version.
pub(crate) async fn fixture_with(version: &str) -> Fixture {
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let machine = MachineFolder::new(&github, version).unwrap();
    Fixture { github, machine }
}

impl Fixture {
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.machine.path(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str, mode: u32) {
        self.machine.write(path, text, mode).unwrap();
    }

    /// What the instance is told: persistent, in no group.
    pub(crate) fn config(&self) -> Value {
        self.machine.boot_config(&self.github)
    }

    pub(crate) fn ephemeral(&self) -> Value {
        let mut config = self.config();
        config["registration"] = json!("ephemeral");
        config
    }

    /// What an instance of a group is told beside.
    pub(crate) fn in_group(mut config: Value, failed_boot_grace_secs: u32) -> Value {
        config["lifecycle"] = json!({
            "group": PLACE.group, "launch_hook": PLACE.launch_hook, "termination_hook": PLACE.termination_hook,
            "termination_heartbeat_timeout_secs": 30, "drain_timeout_secs": 3000, "failed_boot_grace_secs": failed_boot_grace_secs,
        });
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
        self.boot_to(imds, None)
    }

    /// Boots where AWS answers, too.
    pub(crate) async fn boot_in_group(&self, imds: Imds) -> (Booted, InstanceAws) {
        let aws = InstanceAws::start(&imds, PLACE).await.unwrap();
        (self.boot_to(imds, Some(&aws)), aws)
    }

    /// Boots where AWS answers, too, but is known by another address.
    pub(crate) async fn boot_in_group_at(&self, imds: Imds, address: &str) -> (Booted, InstanceAws) {
        let aws = InstanceAws::start(&imds, PLACE).await.unwrap();
        (self.start_at("run", imds, Some(address.to_owned())), aws)
    }

    /// Boots with this user data, where AWS is at this address.
    pub(crate) async fn boot_at(&self, user_data: &str, aws: &str) -> Booted {
        self.boot_again(self.imds(Some(user_data.to_owned())).await, aws)
    }

    /// The same on an instance that there is already.
    pub(crate) fn boot_again(&self, imds: Imds, aws: &str) -> Booted {
        self.start_at("run", imds, Some(aws.to_owned()))
    }

    pub(crate) fn boot_to(&self, imds: Imds, aws: Option<&InstanceAws>) -> Booted {
        self.start("run", imds, aws)
    }

    /// Starts one of the binary's commands.
    pub(crate) fn start(&self, command: &str, imds: Imds, aws: Option<&InstanceAws>) -> Booted {
        self.start_at(command, imds, aws.map(|aws| aws.url().to_owned()))
    }

    fn start_at(&self, command: &str, imds: Imds, aws: Option<String>) -> Booted {
        let binary = Path::new(env!("CARGO_BIN_EXE_kiln-bootstrap"));
        let mut command = self.machine.command(binary, &imds, command);
        command.envs(aws.map(|aws| ("AWS_ENDPOINT_URL", aws)));
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Booted { imds, child, lines, log: Vec::new() }
    }

    pub(crate) fn runner(&self) -> Option<KnownRunner> {
        self.github.runners().into_iter().find(|runner| runner.name.starts_with(&format!("linux-{INSTANCE}")))
    }
}

/// A binary that runs.
pub(crate) struct Booted {
    pub(crate) imds: Imds,
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

    /// Ends it as a crash does, and what it has started; its instance goes on.
    pub(crate) async fn crash(mut self) -> Imds {
        self.child.kill().await.unwrap();
        self.imds
    }

    pub(crate) async fn end(&mut self) -> Option<i32> {
        let rest = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.log.push(serde_json::from_str(&line).unwrap());
            }
            self.child.wait().await.unwrap().code()
        };
        let ended = tokio::time::timeout(SOON, rest).await;
        ended.unwrap_or_else(|_| panic!("it does not end:\n{:#?}", self.log))
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
