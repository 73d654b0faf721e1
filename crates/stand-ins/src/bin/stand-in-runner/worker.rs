//! `Runner.Worker`: one job, in a process of its own below the listener's.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kiln_stand_ins::github::{Conclusion, Step};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::start::{Environment, open_log};
use crate::{Inputs, client};

/// What a repository's files are below, as often as the repository is named.
const REPOSITORY: &str = "rehearsal";

/// The real worker takes seconds to start and to end; one that is gone at once would be seen by nobody.
///
/// assumption: a third of a second, so that rehearsals stay quick.
const LEAST_LIFE: Duration = Duration::from_millis(300);

/// A child of the worker's is what the kernel ends first where memory runs out.
///
/// source: Runner.Sdk/ProcessInvoker.cs:570-590
const OOM_SCORE: &str = "500";

/// A step ends with its own process: who else holds its output open is waited for no longer.
///
/// source: Runner.Sdk/ProcessInvoker.cs, `ProcessExitedHandler`
const HELD_OPEN: Duration = Duration::from_secs(5);

/// The variable by which the runner knows what a job has left running.
///
/// source: Runner.Common/Constants.cs:42, Runner.Worker/JobExtension.cs:587-600
const TRACKING: &str = "RUNNER_TRACKING_ID";

/// What a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The session's address.
    pub(crate) session: String,
    pub(crate) runner: String,
    pub(crate) work: PathBuf,
    pub(crate) job: u64,
    pub(crate) steps: Vec<Step>,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) conclusion: Conclusion,
    pub(crate) output: String,
}

/// A worker's process, as its listener sees it.
pub(crate) struct Worker {
    child: Child,
    stdout: ChildStdout,
    said: Vec<u8>,
}

impl Worker {
    /// source: Runner.Listener/JobDispatcher.cs:430-500: by `spawnclient`, with the message over a pipe.
    pub(crate) async fn start(root: &Path, environment: &Environment, order: &Order) -> anyhow::Result<Self> {
        let mut child = Command::new(root.join("bin/Runner.Worker"))
            .arg("spawnclient")
            .env_clear()
            .envs(environment.iter())
            .current_dir(root.join("bin"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start bin/Runner.Worker")?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        tokio::io::AsyncWriteExt::write_all(&mut stdin, &serde_json::to_vec(order)?)
            .await
            .context("give the worker its order")?;
        drop(stdin);
        let stdout = child.stdout.take().context("stdout is piped")?;
        Ok(Self { child, stdout, said: Vec::new() })
    }

    /// Waits for the job's end. May be dropped and called again.
    pub(crate) async fn done(&mut self) -> anyhow::Result<Done> {
        let mut part = [0; 4096];
        loop {
            match self.stdout.read(&mut part).await? {
                0 => break,
                read => self.said.extend_from_slice(&part[..read]),
            }
        }
        let status = self.child.wait().await?;
        // source: Runner.Listener/JobDispatcher.cs:545-590: a worker that crashes fails its job.
        if !status.success() {
            let output = format!("The worker ended with {status}: {}", String::from_utf8_lossy(&self.said));
            return Ok(Done { conclusion: Conclusion::Failure, output });
        }
        serde_json::from_slice(&self.said).context("read what the worker said")
    }

    /// Cancels the job.
    ///
    /// source: Runner.Worker/Program.cs:28-31: the worker has a handler for Ctrl-C, and the listener tells it over the pipe.
    pub(crate) async fn cancel(&mut self) -> anyhow::Result<Done> {
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGINT);
        }
        self.done().await
    }
}

/// The worker's own program.
pub(crate) async fn main() -> ExitCode {
    open_log("Worker");
    match work().await.and_then(|done| Ok(serde_json::to_vec(&done)?)) {
        Ok(done) => {
            let written = std::io::stdout().write_all(&done);
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn work() -> anyhow::Result<Done> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut order = Vec::new();
    std::io::stdin().read_to_end(&mut order)?;
    let order: Order = serde_json::from_slice(&order).context("read the order")?;
    let least = tokio::time::sleep(LEAST_LIFE);
    let mut output = String::new();
    let job = JobInWork::new(&order)?;
    let conclusion = tokio::select! {
        biased;
        _ = interrupt.recv() => Conclusion::Cancelled,
        _ = terminate.recv() => Conclusion::Cancelled,
        () = orphaned() => bail!("the listener is gone"),
        conclusion = job.steps(&mut output) => conclusion?,
    };
    end_orphans(order.job);
    job.clean_temp();
    least.await;
    Ok(Done { conclusion, output })
}

/// Resolves when the listener has died.
///
/// source: Runner.Worker/Worker.cs:90-140: a worker waits for messages of its listener, and the pipe's end is an exception.
async fn orphaned() {
    let listener = nix::unistd::getppid();
    while nix::unistd::getppid() == listener {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct JobInWork<'a> {
    order: &'a Order,
    client: reqwest::Client,
    /// `RUNNER_WORKSPACE`: the folder of the repository's own folder.
    pipeline: PathBuf,
    /// `GITHUB_WORKSPACE`, where the steps run.
    workspace: PathBuf,
    temp: PathBuf,
}

impl<'a> JobInWork<'a> {
    /// source: Runner.Worker/JobExtension.cs:170-230 (`_work/REPOSITORY/REPOSITORY`), TempDirectoryManager.cs:26-49
    fn new(order: &'a Order) -> anyhow::Result<Self> {
        let pipeline = order.work.join(REPOSITORY);
        let workspace = pipeline.join(REPOSITORY);
        let temp = order.work.join("_temp");
        std::fs::create_dir_all(&workspace).context("make the workspace")?;
        let job = Self { order, client: client()?, pipeline, workspace, temp };
        job.clean_temp();
        std::fs::create_dir_all(&job.temp).context("make the folder for temporary files")?;
        Ok(job)
    }

    /// What can't be deleted stays; only the log says so.
    fn clean_temp(&self) {
        for entry in std::fs::read_dir(&self.temp).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
        }
    }

    /// Until one does not succeed. The hooks are steps of the job; both are run whatever comes of the others.
    ///
    /// source: Runner.Worker/JobExtension.cs:300-312 and 568-580
    async fn steps(&self, output: &mut String) -> anyhow::Result<Conclusion> {
        let hook = |name: &str| std::env::var(format!("ACTIONS_RUNNER_HOOK_JOB_{name}")).ok();
        let mut conclusion = Conclusion::Success;
        if let Some(started) = hook("STARTED") {
            conclusion = self.bash(&["-e", &started], output).await?;
        }
        for step in &self.order.steps {
            if conclusion != Conclusion::Success {
                break;
            }
            conclusion = match step {
                Step::Hold => self.hold().await?,
                Step::Run(script) => self.bash(&["-e", "-c", script], output).await?,
            };
        }
        if let Some(completed) = hook("COMPLETED")
            && self.bash(&["-e", &completed], output).await? != Conclusion::Success
        {
            conclusion = Conclusion::Failure;
        }
        Ok(conclusion)
    }

    async fn hold(&self) -> anyhow::Result<Conclusion> {
        loop {
            let held = self.client.post(format!("{}/held", self.order.session)).json(&Value::Null).send().await;
            match held {
                Ok(response) if response.status().is_success() => {
                    let held: Value = response.json().await?;
                    if held["released"] == true {
                        return Ok(Conclusion::Success);
                    }
                }
                Ok(response) => bail!("the job can't be held: {}", response.status()),
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// source: Runner.Worker/GitHubContext.cs:12-49 and RunnerContext for the variables' names
    async fn bash(&self, arguments: &[&str], output: &mut String) -> anyhow::Result<Conclusion> {
        let mut command = Command::new("bash");
        // What the listener was configured with is none of a job's business.
        // source: Runner.Listener/CommandSettings.cs:120-141 removes them from the environment
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(Inputs::PREFIX)) {
            command.env_remove(name);
        }
        let mut child = command
            .args(arguments)
            .current_dir(&self.workspace)
            .envs([("CI", "true"), ("GITHUB_ACTIONS", "true"), ("RUNNER_OS", "Linux")])
            .env("RUNNER_NAME", &self.order.runner)
            .env("RUNNER_TEMP", &self.temp)
            .env("RUNNER_WORKSPACE", &self.pipeline)
            .env("GITHUB_WORKSPACE", &self.workspace)
            .env(TRACKING, tracking_id(self.order.job))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start bash")?;
        if let Some(id) = child.id() {
            let _ = std::fs::write(format!("/proc/{id}/oom_score_adj"), OOM_SCORE);
        }
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        let (mut stdout, mut stderr) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
        let mut streams =
            Box::pin(async { tokio::join!(stdout.read_to_end(&mut said), stderr.read_to_end(&mut complained)) });
        let mut closed = false;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.context("run bash")?,
                _ = &mut streams, if !closed => closed = true,
            }
        };
        if !closed {
            let _ = tokio::time::timeout(HELD_OPEN, &mut streams).await;
        }
        drop(streams);
        output.push_str(&String::from_utf8_lossy(&said));
        output.push_str(&String::from_utf8_lossy(&complained));
        Ok(if status.success() { Conclusion::Success } else { Conclusion::Failure })
    }
}

fn tracking_id(job: u64) -> String {
    format!("github_{}_{job}", std::process::id())
}

/// Kills what a job has left running with the mark in its environment, as the real runner does at a job's end.
///
/// source: Runner.Worker/JobExtension.cs:880-940
fn end_orphans(job: u64) {
    let mark = format!("{TRACKING}={}", tracking_id(job));
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
