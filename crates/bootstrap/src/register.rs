//! Registration: a registration token and `config.sh`, or a just-in-time configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, bail};
use kiln_config::boot::BootConfig;
use kiln_config::model::Registration;
use kiln_github::{Deleted, Error, ErrorKind, JitConfig, JitRequest, OrgClient};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncReadExt as _;

use crate::identify::Identity;
use crate::machine::{Machine, User};

/// A name is taken only by a half-made registration of this very boot; one of these is free.
const MOST_NAMES: usize = 3;

/// `Default`'s id in every organization.
const DEFAULT_GROUP: u64 = 1;

/// A registered runner.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) name: String,
    /// Known at once for a just-in-time runner.
    pub(crate) id: Option<u64>,
    /// The just-in-time configuration, for the listener's environment.
    pub(crate) jit: Option<SecretString>,
    /// How long the runner's own `config.sh` took, which a just-in-time runner has no need of.
    pub(crate) config_sh_ms: Option<u64>,
    pub(crate) user: User,
    pub(crate) directory: PathBuf,
    /// What the runner and its jobs find in their environment.
    pub(crate) environment: BTreeMap<String, String>,
}

/// Where the image keeps the scripts that the runner calls around a job, and the variables that name them.
pub(crate) const HOOKS: [(&str, &str); 2] = [
    ("ACTIONS_RUNNER_HOOK_JOB_STARTED", "/opt/kiln/hooks/job-started.sh"),
    ("ACTIONS_RUNNER_HOOK_JOB_COMPLETED", "/opt/kiln/hooks/job-completed.sh"),
];

/// BootConfig's variables, and the hooks that the image has unless BootConfig names others. The runner's own `.env` does
/// as much, but a job can rewrite it.
fn environment(machine: &Machine, config: &BootConfig) -> BTreeMap<String, String> {
    let mut environment = config.environment.clone();
    for (variable, path) in HOOKS {
        let path = machine.path(path);
        if path.exists() {
            environment.entry(variable.to_owned()).or_insert_with(|| path.display().to_string());
        }
    }
    environment
}

/// GitHub registers no runner of this version. Another try, or a fresh instance of the same image, would fare no better.
#[derive(Debug, thiserror::Error)]
#[error("GitHub registers this runner version no more: {0}")]
pub(crate) struct Deprecated(String);

/// Registers with GitHub.
///
/// # Errors
/// What GitHub answers; `config.sh` fails.
pub(crate) async fn register(
    machine: &Machine,
    identity: &Identity,
    user: User,
    github: &OrgClient,
) -> anyhow::Result<Registered> {
    let config = &identity.config;
    let directory = machine.path(&config.runner.directory);
    let environment = environment(machine, config);
    let (name, id, jit, config_sh_ms) = match config.registration {
        Registration::Persistent => {
            let (name, ms) = persistent(machine, identity, github, &user, &directory).await?;
            (name, None, None, Some(ms))
        }
        Registration::Ephemeral => {
            let made = ephemeral(identity, github).await?;
            (made.runner.name, Some(made.runner.id), Some(made.encoded), None)
        }
    };
    Ok(Registered { name, id, jit, config_sh_ms, user, directory, environment })
}

async fn persistent(
    machine: &Machine,
    identity: &Identity,
    github: &OrgClient,
    user: &User,
    directory: &Path,
) -> anyhow::Result<(String, u64)> {
    let config = &identity.config;
    let token = github.registration_token().await?;
    // What an earlier start of this instance left; config.sh refuses to go over it.
    for file in [".runner", ".credentials", ".credentials_rsaparams"] {
        match std::fs::remove_file(directory.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", directory.join(file).display()));
            }
            _ => {}
        }
    }
    let name = format!("{}-{}", config.fleet, identity.instance);
    let labels: Vec<&str> = config.labels.iter().map(kiln_config::model::Label::as_str).collect();
    let url = format!("{}/{}", config.github.url.as_str().trim_end_matches('/'), config.organization);
    let mut command = machine.command_as(user, &directory.join("config.sh"), directory)?;
    // By environment: arguments can be read by every process of the machine.
    for (input, value) in [
        ("UNATTENDED", "true"),
        ("URL", url.as_str()),
        ("TOKEN", token.token.expose_secret()),
        ("NAME", name.as_str()),
        ("LABELS", labels.join(",").as_str()),
        ("RUNNERGROUP", config.runner_group.as_str()),
        ("REPLACE", "true"),
        // The image is what gets updated: an update would overwrite what the image has patched.
        ("DISABLEUPDATE", "true"),
        ("WORK", "_work"),
    ] {
        command.env(format!("ACTIONS_RUNNER_INPUT_{input}"), value);
    }
    let begin = Instant::now();
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().context("start config.sh")?;
    let (mut said, mut complained) = (String::new(), String::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = (stdout.context("stdout is piped")?, stderr.context("stderr is piped")?);
    // Bounded: config.sh says a screen or two.
    let (mut stdout, mut stderr) = (stdout.take(64 * 1024), stderr.take(64 * 1024));
    let (_, _, status) =
        tokio::try_join!(stdout.read_to_string(&mut said), stderr.read_to_string(&mut complained), child.wait())
            .context("run config.sh")?;
    if !status.success() {
        let told = format!("{said} {complained}").to_lowercase();
        // The runner has no exit code for it; these are the words of GitHub's answer.
        if told.contains("runner version") && told.contains("deprecated") {
            return Err(Deprecated(complained.trim().to_owned()).into());
        }
        bail!("config.sh ended with {status}: {} {}", said.trim(), complained.trim());
    }
    Ok((name, u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX)))
}

async fn ephemeral(identity: &Identity, github: &OrgClient) -> anyhow::Result<JitConfig> {
    let config = &identity.config;
    let runner_group_id = group_id(github, &config.runner_group).await?;
    // Labels must not be empty here, and GitHub adds none of its own to a just-in-time runner.
    let mut labels = vec!["self-hosted".to_owned(), "linux".to_owned()];
    labels.extend(config.labels.iter().map(ToString::to_string));
    for _ in 0..MOST_NAMES {
        let name = format!("{}-{}-{}", config.fleet, identity.instance, suffix());
        let request = JitRequest { name, runner_group_id, labels: labels.clone(), work_folder: "_work".to_owned() };
        match github.generate_jit_config(&request).await {
            Ok(made) => return Ok(made),
            // The answer was lost, or another try's was: the runner may be there, but its credentials are not here.
            Err(Error { kind: ErrorKind::NameTaken | ErrorKind::Body, .. }) => {
                tracing::warn!(
                    phase = "register",
                    name = request.name,
                    "no configuration came back: taking another name"
                );
                forget(github, &request.name).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!("{MOST_NAMES} names were taken, or their configurations lost")
}

async fn group_id(github: &OrgClient, name: &str) -> anyhow::Result<u64> {
    if name == "Default" {
        return Ok(DEFAULT_GROUP);
    }
    let groups = github.runner_groups().await?;
    let group = groups.iter().find(|group| group.name == name);
    Ok(group.with_context(|| format!("the organization has no runner group `{name}`"))?.id)
}

/// Deletes a half-made registration.
async fn forget(github: &OrgClient, name: &str) -> anyhow::Result<()> {
    for runner in github.runners(Some(name)).await? {
        if github.delete_runner(runner.id).await? == Deleted::Busy {
            bail!("runner {name} runs a job, though nobody has its configuration");
        }
    }
    Ok(())
}

/// Eight hexadecimal digits, unique to this boot.
fn suffix() -> String {
    let mut bytes = [0; 4];
    // Without random numbers there was no JWT either.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    format!("{:08x}", u32::from_be_bytes(bytes))
}
