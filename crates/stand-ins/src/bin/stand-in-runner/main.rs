//! A stand-in for actions/runner's `bin/Runner.Listener` and `bin/Runner.Worker`: their commands, flags, environment, files,
//! words and exit codes, against the stand-in GitHub.
//!
//! Sources are files of <https://github.com/actions/runner> at v2.336.0, below `src/`, with their lines.

mod configure;
mod files;
mod listen;
mod start;
mod worker;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context as _;
use reqwest::{Client, Response};
use serde_json::Value;

use crate::start::Environment;

// The real listener's return codes.
// source: Runner.Common/Constants.cs:150-163
pub(crate) const TERMINATED: u8 = 1;
pub(crate) const RETRYABLE: u8 = 2;
pub(crate) const SESSION_CONFLICT: u8 = 5;
pub(crate) const VERSION_DEPRECATED: u8 = 7;

/// source: Runner.Common/HostContext.cs:60-75 (`GitHubActionsRunner-linux-x64/2.336.0`)
/// assumption: what the real one adds behind it is read by nobody here.
const USER_AGENT: &str = "GitHubActionsRunner-linux-x64";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    if start::is_worker() {
        return worker::main().await;
    }
    // source: Runner.Listener/Program.cs:16-26: `.env` first, then the log, and only then a look at the arguments.
    let environment = Environment::load();
    start::open_log("Runner");
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let inputs = Inputs::read(&environment, arguments);
    let done = match command.as_str() {
        // source: Runner.Listener/Runner.cs:94-106
        "--version" => files::version().map(|version| {
            println!("{version}");
            0
        }),
        // Whatever goes wrong here, another try goes wrong too.
        "configure" => Ok(configure::configure(&inputs).await.unwrap_or_else(|error| terminated(&error))),
        "remove" => Ok(configure::remove(&inputs).await.unwrap_or_else(|error| terminated(&error))),
        "run" => listen::run(&inputs, &environment).await,
        // source: Runner.Listener/Program.cs:104-118
        other => {
            eprintln!(
                "This command does not recognize the command-line input arguments: '{other}'. For usage refer to: \
                 .\\config.cmd --help or ./config.sh --help"
            );
            Ok(TERMINATED)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        // source: Runner.Listener/Program.cs:154-159
        Err(error) => {
            eprintln!("An error occurred: {error:#}");
            ExitCode::from(RETRYABLE)
        }
    }
}

pub(crate) fn terminated(error: &anyhow::Error) -> u8 {
    eprintln!("{error:#}");
    TERMINATED
}

/// In UTC, as the listener's lines begin: .NET's format `u`.
///
/// source: Runner.Listener/Runner.cs:491
pub(crate) fn stamp() -> String {
    let text = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    text.replace('T', " ")
}

/// Arguments, each also as `ACTIONS_RUNNER_INPUT_<NAME>`.
///
/// source: Runner.Listener/CommandSettings.cs:110-141
#[derive(Debug)]
pub(crate) struct Inputs(BTreeMap<String, String>);

impl Inputs {
    pub(crate) const PREFIX: &str = "ACTIONS_RUNNER_INPUT_";

    fn read(environment: &Environment, arguments: impl Iterator<Item = String>) -> Self {
        let mut inputs: BTreeMap<String, String> = environment
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(Self::PREFIX)?.to_ascii_lowercase(), value.to_owned())))
            .collect();
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let Some(name) = argument.strip_prefix("--") else { continue };
            let value = arguments.next_if(|next| !next.starts_with("--")).unwrap_or_else(|| "true".to_owned());
            inputs.insert(name.to_owned(), value);
        }
        Self(inputs)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn required(&self, name: &str) -> anyhow::Result<&str> {
        self.get(name).with_context(|| {
            format!("Invalid configuration provided for {name}. Terminating unattended configuration.")
        })
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

/// A client that takes the proxy of its environment, as the real one does.
///
/// source: Runner.Sdk/RunnerWebProxy.cs:47-65
pub(crate) fn client() -> anyhow::Result<Client> {
    // A poll is held for less than a second.
    let bound = std::time::Duration::from_secs(10);
    let agent = format!("{USER_AGENT}/{}", files::version()?);
    Client::builder().user_agent(agent).timeout(bound).build().context("set up HTTP")
}

/// What GitHub says in a refusal.
pub(crate) async fn message(response: Response) -> String {
    let status = response.status();
    let body: Value = response.json().await.unwrap_or_default();
    body["message"].as_str().map_or_else(|| status.to_string(), str::to_owned)
}
