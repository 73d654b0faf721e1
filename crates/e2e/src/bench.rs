//! `cargo xtask bench boot`: what a boot costs, measured from outside, and what 500 at once do to GitHub's limits.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use kiln_stand_ins::aws::{Imds, ImdsOptions};
use kiln_stand_ins::github::{GitHub, GitHubOptions};
use kiln_stand_ins::latency_proxy::LatencyProxy;
use kiln_stand_ins::machine::{KEY, MachineFolder};

/// How far away GitHub is: from Europe to its API about as much.
pub const ROUND_TRIP: Duration = Duration::from_millis(80);

/// Any runner; none of its own is measured.
const VERSION: &str = "2.338.0";

/// What GitHub answers in a minute: 900 points for an endpoint, of which a POST takes five.
///
/// Source: <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#about-secondary-rate-limits>
const POSTS_PER_MINUTE: u32 = 180;

/// Three times the longest a limit can hold a client up.
const STORM_LIMIT: Duration = Duration::from_secs(600);

/// The same by jq, openssl and curl: a signed JWT, the installation, its token, the registration token.
const CLASSIC: &str = r#"
set -euo pipefail
encode() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }
now=$(date +%s)
header=$(printf '{"alg":"RS256","typ":"JWT"}' | encode)
claims=$(jq -cn --argjson now "$now" --arg iss "$ISSUER" '{iat: ($now - 60), exp: ($now + 480), iss: $iss}' | encode)
signature=$(printf '%s' "$header.$claims" | openssl dgst -sha256 -sign "$KEY" -binary | encode)
call() { curl --silent --show-error --fail --cacert "$CA" --header "Authorization: Bearer $1" "${@:2}"; }
jwt="$header.$claims.$signature"
installation=$(call "$jwt" "$API/orgs/acme/installation" | jq -r .id)
token=$(call "$jwt" --request POST "$API/app/installations/$installation/access_tokens" | jq -r .token)
call "$token" --request POST "$API/orgs/acme/actions/runners/registration-token" | jq -er .token >/dev/null
"#;

/// Times, in order.
#[derive(Debug, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    /// The time that so many percent of them stay within.
    pub fn percentile(&self, percent: usize) -> Duration {
        let index = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1000.0;
        write!(f, "p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms", ms(50), ms(99), ms(100))
    }
}

/// What was measured of single boots.
#[derive(Debug)]
pub struct Boots {
    /// From the process's start to the line that says it is registered.
    pub registered: Times,
    /// The classic way, to the registration token.
    pub classic: Times,
    /// The line of the last boot.
    pub line: Value,
}

/// What was measured of many at once.
#[derive(Debug)]
pub struct Storm {
    /// From its process's start to each one's registration.
    pub registered: Times,
    /// Answers that were a limit of GitHub's.
    pub limited: u64,
    /// The most of them in a row for one client's call.
    pub in_a_row: u64,
}

/// Boots one after another against a GitHub that is [`ROUND_TRIP`] away, beside the classic way.
///
/// # Errors
/// A boot or the script fails.
pub async fn boots(bootstrap: &Path, runs: usize) -> anyhow::Result<Boots> {
    let github = GitHub::start(GitHubOptions::new("acme")).await?;
    let machine = machine(&github)?;
    let far = LatencyProxy::from(github.address(), ROUND_TRIP).await?;
    let api = format!("{}/api/v3", far.url());
    machine.write("etc/ca.pem", &bundle(far.certificate()), 0o644)?;
    let certificates = machine.path("etc/ca.pem");
    let mut config = ephemeral(&machine, &github);
    config["github"]["api_url"] = json!(api);
    let (mut times, mut line) = (Vec::new(), Value::Null);
    let mut classic = Vec::new();
    for run in 0..runs {
        let (took, said) = boot(bootstrap, &machine, &config, Some(&certificates), run).await?;
        times.push(took);
        line = said;
        let begin = Instant::now();
        let status = Command::new("bash")
            .args(["-c", CLASSIC])
            .env("API", &api)
            .env("ISSUER", github.client_id())
            .env("KEY", machine.path(KEY))
            .env("CA", &certificates)
            .status()
            .await
            .context("run bash")?;
        ensure!(status.success(), "the classic way needs jq, openssl and curl, and ended with {status}");
        classic.push(begin.elapsed());
    }
    Ok(Boots { registered: Times::new(times), classic: Times::new(classic), line })
}

/// Boots all at once against a GitHub that enforces its limits.
///
/// # Errors
/// One is not registered in the end.
pub async fn storm(bootstrap: &Path, instances: usize) -> anyhow::Result<Storm> {
    let options = GitHubOptions { posts_per_minute: Some(POSTS_PER_MINUTE), ..GitHubOptions::new("acme") };
    let github = GitHub::start(options).await?;
    let machine = machine(&github)?;
    let config = ephemeral(&machine, &github);
    let boots = (0..instances).map(|index| boot(bootstrap, &machine, &config, None, index));
    let all = tokio::time::timeout(STORM_LIMIT, futures_util::future::join_all(boots)).await;
    let all: Vec<(Duration, Value)> =
        all.context("not all are registered in time")?.into_iter().collect::<anyhow::Result<_>>()?;
    let number = |line: &Value, key: &str| line[key].as_u64().unwrap_or_default();
    Ok(Storm {
        limited: all.iter().map(|(_, line)| number(line, "limited")).sum(),
        in_a_row: all.iter().map(|(_, line)| number(line, "limited_in_a_row")).max().unwrap_or_default(),
        registered: Times::new(all.into_iter().map(|(took, _)| took).collect()),
    })
}

/// The machine's own certificates with one more: reading them all is part of a boot.
fn bundle(more: &str) -> String {
    let places = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
    let own = places.into_iter().find_map(|place| std::fs::read_to_string(place).ok()).unwrap_or_default();
    format!("{own}\n{more}")
}

/// One whose listener ends at once: what comes after the registration is not measured.
fn machine(github: &GitHub) -> anyhow::Result<MachineFolder> {
    let machine = MachineFolder::new(github, VERSION)?;
    machine.write("opt/actions-runner/bin/Runner.Listener", "#!/bin/sh\nexit 0\n", 0o755)?;
    Ok(machine)
}

fn ephemeral(machine: &MachineFolder, github: &GitHub) -> Value {
    let mut config = machine.boot_config(github);
    config["registration"] = json!("ephemeral");
    config
}

/// A boot, until it is registered; then its end is waited for. Gives the time and the line that sums it up.
async fn boot(
    bootstrap: &Path,
    machine: &MachineFolder,
    config: &Value,
    certificates: Option<&Path>,
    index: usize,
) -> anyhow::Result<(Duration, Value)> {
    let instance = format!("i-{:017x}", index + 1);
    let user_data = Some(config.to_string());
    let imds =
        Imds::start(ImdsOptions { instance, ami: "ami-1".to_owned(), user_data, target: Box::new(|| None) }).await?;
    let begin = Instant::now();
    let mut command = machine.boot(bootstrap, &imds);
    if let Some(certificates) = certificates {
        command.env("SSL_CERT_FILE", certificates);
    }
    let mut child = command.spawn().with_context(|| format!("start {}", bootstrap.display()))?;
    let mut lines = BufReader::new(child.stderr.take().context("stderr is piped")?).lines();
    let (mut registered, mut said) = (None, String::new());
    while let Some(line) = lines.next_line().await? {
        said.push_str(&line);
        said.push('\n');
        let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
        if parsed["message"] == "registered" {
            registered = Some((begin.elapsed(), parsed));
        }
    }
    child.wait().await?;
    match registered {
        Some(registered) => Ok(registered),
        None => bail!("an instance was not registered:\n{said}"),
    }
}
