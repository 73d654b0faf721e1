//! Registration: a registration token and `config.sh`, or a just-in-time configuration.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use kiln_config::boot::{BootConfig, MetadataAccess};
use kiln_config::model::{Label, Registration};
use kiln_github::{Deleted, Error, ErrorKind, JitConfig, JitRequest, OrgClient};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncRead;

use crate::directory::RunnerDirectory;
use crate::identify::Identity;
use crate::machine::{Machine, RunAs, User};
use crate::serve::Lines;
use crate::settings;

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
    pub(crate) directory: RunnerDirectory,
    /// What the runner and its jobs find in their environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// Its jobs are to be kept from the metadata service.
    pub(crate) guarded: bool,
}

/// Where the image keeps the scripts that the runner calls around a job, and the variables that name them.
pub(crate) const HOOKS: [(&str, &str); 2] = [
    ("ACTIONS_RUNNER_HOOK_JOB_STARTED", "/opt/kiln/hooks/job-started.sh"),
    ("ACTIONS_RUNNER_HOOK_JOB_COMPLETED", "/opt/kiln/hooks/job-completed.sh"),
];

/// Where the image keeps the certificates of the authorities that kiln.toml adds, and the variable by which Node trusts them: it
/// does not go by the system's list.
///
/// source: <https://nodejs.org/api/cli.html#node_extra_ca_certsfile>
const NODE_CERTIFICATES: (&str, &str) = ("NODE_EXTRA_CA_CERTS", "/etc/kiln/ca-certificates.pem");

/// BootConfig's variables, and the hooks and certificates that the image has unless BootConfig names others.
pub(crate) fn environment(machine: &Machine, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut environment = settings::with_proxies(own);
    for (variable, path) in HOOKS.into_iter().chain([NODE_CERTIFICATES]) {
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

/// `config.sh` has not reached GitHub, or what of GitHub registers runners.
#[derive(Debug, thiserror::Error)]
#[error("config.sh does not reach GitHub: {0}")]
pub(crate) struct Unreachable(String);

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
    let directory = RunnerDirectory::new(machine.path(&config.runner.directory), &user);
    let environment = environment(machine, &config.environment);
    directory.clear(&environment)?;
    let (name, id, jit, config_sh_ms) = match config.registration {
        Registration::Persistent => {
            let (name, ms) = persistent(machine, identity, github, &user, &directory, &environment).await?;
            (name, None, None, Some(ms))
        }
        Registration::Ephemeral => {
            let made = ephemeral(identity, github).await?;
            (made.runner.name, Some(made.runner.id), Some(made.encoded), None)
        }
    };
    let guarded = config.job_metadata_access == MetadataAccess::Blocked;
    Ok(Registered { name, id, jit, config_sh_ms, user, directory, environment, guarded })
}

async fn persistent(
    machine: &Machine,
    identity: &Identity,
    github: &OrgClient,
    user: &User,
    directory: &RunnerDirectory,
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<(String, u64)> {
    let config = &identity.config;
    let labels = custom_labels(config)?;
    let token = github.registration_token().await?;
    let name = format!("{}-{}", config.fleet, identity.instance);
    let url = format!("{}/{}", config.github.url.as_str().trim_end_matches('/'), config.organization);
    let mut command =
        machine.command_as(user, &directory.path().join("config.sh"), directory.path())?.envs(environment);
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
        command = command.env(&format!("ACTIONS_RUNNER_INPUT_{input}"), value);
    }
    let begin = Instant::now();
    if let Err(error) = configure(&command).await {
        let is_known = error.is::<Deprecated>() || error.is::<Unreachable>();
        return Err(if is_known { error } else { explained(error, github, &name).await });
    }
    directory.seal()?;
    Ok((name, u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX)))
}

/// Runs `config.sh` to its end, and reads all of what it says.
async fn configure(command: &RunAs) -> anyhow::Result<()> {
    let mut child = command.spawn().context("start config.sh")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = (stdout.context("stdout is piped")?, stderr.context("stderr is piped")?);
    let (said, complained, status) = tokio::join!(last_lines(stdout), last_lines(stderr), child.wait());
    let status = status.context("run config.sh")?;
    if status.success() {
        return Ok(());
    }
    if is_too_old(&said) || is_too_old(&complained) {
        return Err(Deprecated(complained.join(" ")).into());
    }
    let words = format!("{} {}", said.join(" "), complained.join(" "));
    if is_unreachable(&words) {
        return Err(Unreachable(words).into());
    }
    bail!("config.sh ended with {status}: {words}");
}

/// Whatever `config.sh` says of it: where GitHub does not answer this binary either, that is why.
async fn explained(error: anyhow::Error, github: &OrgClient, name: &str) -> anyhow::Error {
    match github.runners(Some(name)).await {
        Err(unheard) => anyhow::Error::new(unheard).context(format!("{error:#}")),
        Ok(_) => error,
    }
}

/// Does it say that GitHub fails, by the name of an answer's status or of a connection's error?
///
/// Source: `GetTenantCredential` in `Runner.Listener/Configuration/ConfigurationManager.cs` of actions/runner, which prints
/// .NET's `HttpStatusCode`; the rest are the words of .NET's `HttpRequestException` for a connection that fails.
fn is_unreachable(said: &str) -> bool {
    const STATUSES: [&str; 6] = [
        "InternalServerError",
        "BadGateway",
        "ServiceUnavailable",
        "GatewayTimeout",
        "RequestTimeout",
        "TooManyRequests",
    ];
    const CONNECTIONS: [&str; 6] = [
        "Connection refused (",
        "Connection reset by peer",
        "Name or service not known (",
        "Resource temporarily unavailable (",
        "The response ended prematurely",
        "An error occurred while sending the request",
    ];
    STATUSES.iter().any(|status| said.contains(&format!("Http response code: {status} from ")))
        || CONNECTIONS.iter().any(|words| said.contains(words))
}

/// What was said last, to the end: who is not listened to any more would wait.
async fn last_lines(stream: impl AsyncRead + Unpin) -> Vec<String> {
    // A screen or two, which is what config.sh says at most.
    const MOST: usize = 50;
    let (mut lines, mut last) = (Lines::new(stream), VecDeque::new());
    while let Some(line) = lines.next().await {
        if last.len() == MOST {
            last.pop_front();
        }
        last.push_back(line);
    }
    last.into()
}

/// The runner has no exit code for it; these are the words of GitHub's answers. The first comes with a 404, as that for an
/// organization that is not there.
///
/// Source: <https://github.com/man-group/ArcticDB/issues/3404> and <https://github.com/singnet/das/issues/1287>; the second
/// from before 2026-09-25.
fn is_too_old(said: &[String]) -> bool {
    let said = said.join(" ").to_lowercase();
    let has = |words: &[&str]| words.iter().all(|words| said.contains(words));
    has(&["runner version", "out of date"])
        || has(&["minimum runner version"])
        || has(&["runner version", "deprecated"])
}

/// The labels that GitHub's own `config.sh` gives every runner. GitHub itself gives a just-in-time runner none.
///
/// Source: `CreateNewAgent` in `Runner.Listener/Configuration/ConfigurationManager.cs` and `VarUtil.cs` of actions/runner.
const DEFAULT_LABELS: [&str; 3] = ["self-hosted", "Linux", ARCHITECTURE];

const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "ARM64"
} else if cfg!(target_arch = "x86_64") {
    "X64"
} else {
    "ARM"
};

/// What GitHub takes of a runner's labels, its own included.
///
/// Source: `labels` of `generate-jitconfig` in GitHub's API description, 1 to 100.
const MOST_LABELS: usize = 100;

/// The fleet's labels beside GitHub's own, each once: GitHub does not mind their case.
fn custom_labels(config: &BootConfig) -> anyhow::Result<Vec<&str>> {
    let mut labels: Vec<&str> = Vec::new();
    for label in config.labels.iter().map(Label::as_str) {
        if !DEFAULT_LABELS.iter().chain(&labels).any(|known| known.eq_ignore_ascii_case(label)) {
            labels.push(label);
        }
    }
    let all = labels.len() + DEFAULT_LABELS.len();
    ensure!(
        all <= MOST_LABELS,
        "the runner would have {all} labels with GitHub's own {}; GitHub takes {MOST_LABELS}: give the fleet fewer in kiln.toml",
        DEFAULT_LABELS.join(", ")
    );
    Ok(labels)
}

async fn ephemeral(identity: &Identity, github: &OrgClient) -> anyhow::Result<JitConfig> {
    let config = &identity.config;
    let runner_group_id = group_id(github, &config.runner_group).await?;
    let labels = DEFAULT_LABELS.into_iter().chain(custom_labels(config)?);
    let labels: Vec<String> = labels.map(str::to_owned).collect();
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
    // Some servers pass over the name that they are asked for.
    for runner in github.runners(Some(name)).await?.into_iter().filter(|runner| runner.name == name) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_that_did_not_reach_github_is_known_by_its_words() {
        let from = "from 'POST https://api.github.com/actions/runner-registration' (Request Id: 0)";
        for said in [
            format!("Http response code: ServiceUnavailable {from}"),
            format!("√ Connected Http response code: TooManyRequests {from}"),
            "Connection refused (api.github.com:443)".to_owned(),
            "Name or service not known (api.github.com:443)".to_owned(),
        ] {
            assert!(is_unreachable(&said), "{said}");
        }
        for said in [
            format!("Http response code: NotFound {from}"),
            format!("Http response code: Forbidden {from}"),
            "The SSL connection could not be established, see inner exception.".to_owned(),
            "Failed: ServiceUnavailable is the name of a label".to_owned(),
        ] {
            assert!(!is_unreachable(&said), "{said}");
        }
    }

    #[test]
    fn a_version_that_is_too_old_is_known_by_githubs_words() {
        let old = "Your runner version is out of date and can no longer register with GitHub. The minimum runner version \
                   required to register with GitHub Actions is now 2.329.0.";
        let old_json = format!("{{\"message\":\"{old}\",\"status\":\"404\"}}");
        for said in [old, &old_json, "Runner version v2.300.0 is deprecated and cannot be registered."] {
            assert!(is_too_old(&["Http response code: NotFound".to_owned(), said.to_owned()]), "{said}");
        }
        for said in ["{\"message\":\"Not Found\"}", "The package is deprecated.", ""] {
            assert!(!is_too_old(&[said.to_owned()]), "{said}");
        }
    }
}
