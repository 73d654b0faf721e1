//! A stand-in for actions/runner's `bin/Runner.Listener`: its commands, flags, environment, files and exit codes, against
//! the stand-in GitHub.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_rehearsal::github::{Conclusion, Step};
use nix::unistd::geteuid;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

// The real listener's return codes.
const TERMINATED: u8 = 1;
const RETRYABLE: u8 = 2;
const SESSION_CONFLICT: u8 = 5;
const VERSION_DEPRECATED: u8 = 7;

const USER_AGENT: &str = "GitHubActionsRunner-linux-x64";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let inputs = Inputs::read(arguments);
    let done = match command.as_str() {
        "--version" => version().map(|version| {
            println!("{version}");
            0
        }),
        "configure" | "run" if geteuid().is_root() && std::env::var_os("RUNNER_ALLOW_RUNASROOT").is_none() => {
            eprintln!("Must not run interactively with sudo");
            Ok(TERMINATED)
        }
        "configure" => configure(&inputs).await,
        "run" => run(&inputs).await,
        other => {
            eprintln!("unrecognized command: {other:?}");
            Ok(TERMINATED)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("An error occurred: {error:#}");
            ExitCode::from(RETRYABLE)
        }
    }
}

/// The folder with `config.sh`.
fn home() -> anyhow::Result<PathBuf> {
    let executable = std::env::current_exe().context("find the executable")?;
    Ok(executable.parent().and_then(Path::parent).context("the executable is in bin/")?.to_owned())
}

fn version() -> anyhow::Result<String> {
    std::fs::read_to_string(home()?.join("bin/version")).context("read bin/version")
}

/// Arguments, each also as `ACTIONS_RUNNER_INPUT_<NAME>`.
#[derive(Debug)]
struct Inputs(BTreeMap<String, String>);

impl Inputs {
    fn read(arguments: impl Iterator<Item = String>) -> Self {
        let mut inputs: BTreeMap<String, String> = std::env::vars()
            .filter_map(|(name, value)| {
                Some((name.strip_prefix("ACTIONS_RUNNER_INPUT_")?.to_ascii_lowercase(), value))
            })
            .collect();
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let Some(name) = argument.strip_prefix("--") else { continue };
            let value = arguments.next_if(|next| !next.starts_with("--")).unwrap_or_else(|| "true".to_owned());
            inputs.insert(name.to_owned(), value);
        }
        Self(inputs)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn required(&self, name: &str) -> anyhow::Result<&str> {
        self.get(name).filter(|value| !value.is_empty()).with_context(|| format!("--{name} is missing"))
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

fn client() -> anyhow::Result<Client> {
    Client::builder().user_agent(USER_AGENT).timeout(Duration::from_secs(10)).build().context("set up HTTP")
}

async fn configure(inputs: &Inputs) -> anyhow::Result<u8> {
    let home = home()?;
    if home.join(".runner").exists() {
        eprintln!("Cannot configure the runner because it is already configured.");
        return Ok(TERMINATED);
    }
    if !inputs.flag("unattended") {
        bail!("this stand-in asks no questions: --unattended is missing");
    }
    let url = inputs.required("url")?;
    let host = url.rsplit_once('/').map(|(host, _)| host).context("--url is HOST/ORGANIZATION")?;
    let client = client()?;
    let response = client
        .post(format!("{host}/actions/runner-registration"))
        .header("authorization", format!("RemoteAuth {}", inputs.required("token")?))
        .json(&json!({ "url": url, "runner_event": "register" }))
        .send()
        .await?;
    if !response.status().is_success() {
        eprintln!("Http response code: {} from 'POST {host}/actions/runner-registration'", response.status());
        return Ok(TERMINATED);
    }
    let admin: Value = response.json().await?;
    let response = client
        .post(format!("{host}/_runner/register"))
        .bearer_auth(admin["token"].as_str().unwrap_or_default())
        .json(&json!({
            "name": inputs.required("name")?, "labels": inputs.get("labels"), "group": inputs.get("runnergroup"),
            "replace": inputs.flag("replace"), "ephemeral": inputs.flag("ephemeral"),
        }))
        .send()
        .await?;
    if !response.status().is_success() {
        eprintln!("Failed to add the runner: {}", response.text().await?);
        return Ok(TERMINATED);
    }
    let made: Value = response.json().await?;
    let settings = json!({
        "agentId": made["id"], "agentName": inputs.required("name")?, "gitHubUrl": url, "serverUrl": host,
        "workFolder": inputs.get("work").unwrap_or("_work"), "disableUpdate": inputs.flag("disableupdate"),
    });
    write(&home, ".runner", &settings)?;
    write(&home, ".credentials", &json!({ "scheme": "OAuth", "data": { "credential": made["credential"] } }))?;
    write(&home, ".credentials_rsaparams", &json!({}))?;
    println!("√ Runner successfully added\n√ Settings Saved.");
    Ok(0)
}

fn write(home: &Path, name: &str, value: &Value) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(home.join(name))?;
    file.write_all(value.to_string().as_bytes()).with_context(|| format!("write {name}"))
}

#[derive(Debug, Deserialize)]
struct Job {
    job: u64,
    steps: Vec<Step>,
}

struct Listener {
    client: Client,
    session: String,
    home: PathBuf,
    /// SIGINT or SIGTERM came.
    asked_to_end: watch::Receiver<bool>,
}

async fn run(inputs: &Inputs) -> anyhow::Result<u8> {
    let home = home()?;
    if let Some(encoded) = inputs.get("jitconfig") {
        unpack(&home, encoded).context("decode --jitconfig")?;
    }
    let Ok(settings) = std::fs::read(home.join(".runner")) else {
        eprintln!("Not configured. Run config.(sh/cmd) to configure the runner.");
        return Ok(TERMINATED);
    };
    let settings: Value = serde_json::from_slice(&settings)?;
    let credentials: Value = serde_json::from_slice(&std::fs::read(home.join(".credentials"))?)?;
    let host = settings["serverUrl"].as_str().context("the configuration names no server")?;
    let client = client()?;
    let response = client
        .post(format!("{host}/_runner/sessions"))
        .json(&json!({ "credential": credentials["data"]["credential"], "version": version()? }))
        .send()
        .await?;
    let code = match response.status() {
        StatusCode::OK => None,
        StatusCode::CONFLICT => Some((SESSION_CONFLICT, "A session for this runner already exists.")),
        StatusCode::FORBIDDEN => Some((deprecated(), "Runner version is deprecated and cannot receive messages.")),
        StatusCode::NOT_FOUND => Some((TERMINATED, "The runner registration has been deleted from the server.")),
        _ => Some((RETRYABLE, "Can't create a session.")),
    };
    if let Some((code, message)) = code {
        eprintln!("{message}");
        return Ok(code);
    }
    let opened: Value = response.json().await?;
    let session = format!("{host}/_runner/sessions/{}", opened["session"].as_str().unwrap_or_default());
    println!("\n√ Connected to GitHub\n\nCurrent runner version: '{}'\nListening for Jobs", version()?);
    let listener = Listener { client, session, home, asked_to_end: ending()? };
    let code = listener.listen(opened["ephemeral"] == true).await;
    let _ = listener.client.delete(&listener.session).send().await;
    code
}

fn deprecated() -> u8 {
    let told = std::env::var("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE");
    if told.is_ok_and(|value| value == "1") { VERSION_DEPRECATED } else { TERMINATED }
}

fn unpack(home: &Path, encoded: &str) -> anyhow::Result<()> {
    let files: BTreeMap<String, String> = serde_json::from_slice(&STANDARD.decode(encoded)?)?;
    for (name, content) in files {
        write(home, &name, &serde_json::from_slice(&STANDARD.decode(content)?)?)?;
    }
    Ok(())
}

fn ending() -> anyhow::Result<watch::Receiver<bool>> {
    let (tell, asked_to_end) = watch::channel(false);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        println!("Exiting...");
        let _ = tell.send(true);
        // Held, so that the receivers go on seeing the value.
        std::future::pending::<()>().await;
    });
    Ok(asked_to_end)
}

impl Listener {
    async fn asked_to_end(&self) {
        let mut asked = self.asked_to_end.clone();
        let _ = asked.wait_for(|asked| *asked).await;
    }

    async fn listen(&self, ephemeral: bool) -> anyhow::Result<u8> {
        loop {
            let poll = self.client.post(format!("{}/poll", self.session)).send();
            let response = tokio::select! {
                response = poll => response?,
                () = self.asked_to_end() => return Ok(0),
            };
            match response.status() {
                StatusCode::NO_CONTENT => {}
                StatusCode::OK => {
                    let job: Job = response.json().await?;
                    self.work(&job).await?;
                    if ephemeral || *self.asked_to_end.borrow() {
                        return Ok(0);
                    }
                }
                StatusCode::NOT_FOUND => {
                    eprintln!("The runner registration has been deleted from the server.");
                    return Ok(TERMINATED);
                }
                status => bail!("the message queue answered {status}"),
            }
        }
    }

    async fn work(&self, job: &Job) -> anyhow::Result<()> {
        println!("Running job: {}", job.job);
        let mut output = String::new();
        let mut conclusion = Conclusion::Success;
        for step in &job.steps {
            conclusion = tokio::select! {
                ended = self.step(step, &mut output) => ended?,
                // The real runner cancels its job on either signal: it has no drain of its own.
                () = self.asked_to_end() => Conclusion::Cancelled,
            };
            if conclusion != Conclusion::Success {
                break;
            }
        }
        let said = match conclusion {
            Conclusion::Success => "Succeeded",
            Conclusion::Failure => "Failed",
            Conclusion::Cancelled => "Canceled",
        };
        println!("Job {} completed with result: {said}", job.job);
        let body = json!({ "conclusion": conclusion, "output": output });
        self.client.post(format!("{}/complete", self.session)).json(&body).send().await?.error_for_status()?;
        Ok(())
    }

    async fn step(&self, step: &Step, output: &mut String) -> anyhow::Result<Conclusion> {
        match step {
            Step::Hold => {
                loop {
                    let response = self.client.post(format!("{}/held", self.session)).send().await?;
                    let held: Value = response.error_for_status()?.json().await?;
                    if held["released"] == true {
                        return Ok(Conclusion::Success);
                    }
                }
            }
            Step::Run(script) => {
                let work = self.home.join("_work");
                std::fs::create_dir_all(&work)?;
                let run = Command::new("bash")
                    .args(["-e", "-c", script])
                    .current_dir(work)
                    .stdin(Stdio::null())
                    .kill_on_drop(true)
                    .output()
                    .await?;
                output.push_str(&String::from_utf8_lossy(&run.stdout));
                output.push_str(&String::from_utf8_lossy(&run.stderr));
                Ok(if run.status.success() { Conclusion::Success } else { Conclusion::Failure })
            }
        }
    }
}
