//! A whole world on one machine: AWS, GitHub, a kiln.toml for them, and the commands run in it as a pipeline would.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use kiln_stand_ins::aws::{Aws, AwsOptions};
use kiln_stand_ins::github::{GitHub, GitHubOptions};

/// The organization of every rehearsal.
pub const ORGANIZATION: &str = "rehearsal";

/// No command of a rehearsal waits for anything slower than processes on this machine.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// The pinned builds of Node.
pub const NODES: [&str; 2] = ["20.20.1", "24.19.0"];

/// Where the parts come from.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The commands' executable.
    pub xtask: PathBuf,
    /// The static bootstrap binary.
    pub bootstrap: PathBuf,
    /// ministack's executable.
    pub ministack: PathBuf,
}

/// The world. Dropping it ends its processes.
#[derive(Debug)]
pub struct World {
    /// AWS.
    pub aws: Aws,
    /// GitHub.
    pub github: GitHub,
    parts: Parts,
    directory: TempDir,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed as data.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// The outcome of a success.
    ///
    /// # Errors
    /// The last words of a command that did not succeed.
    pub fn success(self) -> anyhow::Result<Self> {
        match self.code {
            Some(0) => Ok(self),
            code => bail!("ended with {code:?}:\n{}", tail(&self.stderr, 30)),
        }
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

impl World {
    /// Starts AWS and GitHub and writes a kiln.toml for them with a fleet `linux`.
    ///
    /// # Errors
    /// What keeps a part from starting.
    pub async fn start(parts: Parts) -> anyhow::Result<Self> {
        // Not below the checkout: the runner's unprivileged user has to reach an instance's files, and a checkout may be
        // in a home directory that is closed to others.
        let directory = tempfile::Builder::new().prefix("kiln-rehearsal-").tempdir().context("make a directory")?;
        open_to_others(directory.path())?;
        let github = GitHub::start(GitHubOptions::new(ORGANIZATION)).await.context("start the stand-in GitHub")?;
        let options = AwsOptions { directory: directory.path().join("aws"), ministack: parts.ministack.clone() };
        let aws = Aws::start(options).await.context("start the local AWS")?;
        Ok(Self { aws, github, parts, directory })
    }

    /// Where kiln.toml is.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("kiln.toml")
    }

    /// A path in the world's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes kiln.toml with this runner pinned, and the given fleets.
    ///
    /// # Errors
    /// The stand-in GitHub cannot pack that release; the file cannot be written.
    pub fn write_config(&self, runner_version: &str, fleets: &str) -> anyhow::Result<()> {
        let release = self.github.runner_release(runner_version)?;
        // The runner has these two; only an image of Amazon Linux 2 takes them.
        let mut nodes = String::new();
        for version in NODES {
            let sha256 = self.github.node_build(version)?.sha256;
            let major = version.split('.').next().unwrap_or_default();
            nodes.push_str(&format!("[runner.node.{major}]\nversion = \"{version}\"\nsha256 = \"{sha256}\"\n\n"));
        }
        let text = format!(
            "organization = \"{ORGANIZATION}\"\nregion = \"{region}\"\n\n\
             [app]\nclient_id = \"{client}\"\ninstallation_id = {installation}\n\n\
             [github]\nurl = \"{url}\"\napi_url = \"{api}\"\n\n\
             [runner]\nversion = \"{runner_version}\"\nrelease_url = \"{releases}\"\n\
             node_url = \"{node_url}\"\n\n[runner.sha256]\nx86_64 = \"{sha256}\"\n\n{nodes}{fleets}",
            region = self.aws.region(),
            client = self.github.client_id(),
            installation = self.github.installation_id(),
            url = self.github.url(),
            api = self.github.api_url(),
            releases = self.github.releases_url(),
            node_url = self.github.node_url(),
            sha256 = release.sha256,
        );
        std::fs::write(self.config(), text).context("write the world's kiln.toml")
    }

    /// Writes a new key of the App to a file only its owner can read, as a browser's download would be.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn download_key(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.write_pem(name, &self.github.generate_key())
    }

    /// Writes a PEM to a file only its owner can read.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_pem(&self, name: &str, pem: &str) -> anyhow::Result<PathBuf> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.path(name);
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(pem.as_bytes())?;
        Ok(path)
    }

    /// A command of Kiln's in this world, not yet started. It is given the bootstrap binary, which none has to build.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command_as_given(arguments);
        if arguments.first() == Some(&"ami") {
            command.arg("--bootstrap").arg(&self.parts.bootstrap);
        }
        command
    }

    /// The same with these arguments and no more.
    pub fn command_as_given(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.parts.xtask);
        command.args(arguments).env_clear();
        for name in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.aws.environment()).env("KILN_CONFIG", self.config());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Starts a command, each line it says passed to `say`.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, arguments: &[&str], say: fn(&str)) -> anyhow::Result<Running> {
        let begin = Instant::now();
        let mut child = self.command(arguments).spawn().with_context(|| format!("start {arguments:?}"))?;
        let stdout = tokio::spawn(collect(child.stdout.take().context("stdout is piped")?, |_| {}));
        let stderr = tokio::spawn(collect(child.stderr.take().context("stderr is piped")?, say));
        Ok(Running { child, stdout, stderr, begin })
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It could not be run, or did not end within [`COMMAND_LIMIT`].
    pub async fn run(&self, arguments: &[&str], say: fn(&str)) -> anyhow::Result<Outcome> {
        self.spawn(arguments, say)?.end().await.with_context(|| format!("cargo xtask {}", arguments.join(" ")))
    }

    /// Ends every process of the world and removes its files.
    ///
    /// # Errors
    /// A process that would not end.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        self.aws.shutdown().await;
        self.directory.close().context("remove the world's directory")
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: tokio::task::JoinHandle<String>,
    stderr: tokio::task::JoinHandle<String>,
    begin: Instant,
}

impl Running {
    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Resolves when it has ended; [`Running::end`] tells how.
    pub async fn exited(&mut self) {
        let _ = self.child.wait().await;
    }

    /// Kills it, as the machine it runs on might.
    ///
    /// # Errors
    /// It could not be killed.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("kill the command")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It did not end within [`COMMAND_LIMIT`].
    pub async fn end(mut self) -> anyhow::Result<Outcome> {
        let Ok(status) = tokio::time::timeout(COMMAND_LIMIT, self.child.wait()).await else {
            let _ = self.child.kill().await;
            bail!("still ran after {} s:\n{}", COMMAND_LIMIT.as_secs(), tail(&self.stderr.await?, 30));
        };
        Ok(Outcome {
            code: status?.code(),
            stdout: self.stdout.await?,
            stderr: self.stderr.await?,
            took: self.begin.elapsed(),
        })
    }
}

async fn collect(stream: impl AsyncRead + Unpin, say: fn(&str)) -> String {
    let mut lines = BufReader::new(stream).lines();
    let mut text = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        say(&line);
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn open_to_others(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).context("open the world's directory")
}
