//! A world of its own: AWS, GitHub, one fleet of simulated instances, and pipelines that deploy it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_sdk_sts::config::Credentials;
use kiln_config::config::{Config, Fleet};
use kiln_github::{AppKey, Bounds, OrgClient};
use kiln_operations::Error;
use kiln_operations::deploy::{self, CanaryRunner, Check, Checking, LockOwner, Request, Session, Step};
use kiln_operations::plan::Plan;
use kiln_operations::ports::{Confirmation, Consent, Images as _, Progress};
use kiln_operations::wait::TimeScale;
use kiln_stand_ins::aws::{Aws as Local, AwsOptions};
use kiln_stand_ins::github::{GitHub, GitHubOptions, KnownRunner};
use tempfile::TempDir;

/// Pauses of a quarter of a second to fifteen become five to three hundred milliseconds, ten minutes become six seconds.
const TEMPO: TimeScale = TimeScale { pauses: 50, bounds: 100 };

/// Longer than any rollout here: one that hangs is found out.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) struct RolloutEnv {
    pub(crate) local: Local,
    pub(crate) github: GitHub,
    config: Config,
    client: OrgClient,
    pub(crate) cloud: kiln_aws::Aws,
    images: u32,
    _directory: TempDir,
}

/// Processes that were killed: their locks are void.
static KILLED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
static PROCESSES: AtomicU32 = AtomicU32::new(1);

/// A pipeline's process.
pub(crate) fn process() -> LockOwner {
    let process = PROCESSES.fetch_add(1, Ordering::Relaxed);
    let ended = |process: u32| KILLED.lock().unwrap().contains(&process);
    LockOwner { name: format!("pipeline {process}"), machine: "here".to_owned(), process, ended }
}

pub(crate) fn kill(process: &LockOwner) {
    KILLED.lock().unwrap().insert(process.process);
}

/// What a run said.
#[derive(Default)]
pub(crate) struct Said(pub(crate) Mutex<Vec<String>>);

impl Progress for Said {
    fn say(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
    fn state(&self, line: &str) {
        self.0.lock().unwrap().push(format!("… {line}"));
    }
}

/// Agrees to everything, and takes a canary for good unless its check is `false`.
pub(crate) struct Agreeing;

impl Consent for Agreeing {
    fn ask(&self, _: &str) -> Confirmation {
        Confirmation::Yes
    }
}

impl Check for Agreeing {
    fn check<'a>(&'a self, canary: &'a CanaryRunner) -> Checking<'a> {
        let result = if canary.check == "false" { Err("it says so".to_owned()) } else { Ok(()) };
        Box::pin(std::future::ready(result))
    }
}

impl RolloutEnv {
    /// A fleet of so many instances, not deployed yet.
    pub(crate) async fn new(instances: u32) -> Self {
        let ministack = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/venv/bin/ministack");
        assert!(ministack.exists(), "the emulator is not installed: `cargo xtask setup` installs it");
        let directory = tempfile::tempdir().unwrap();
        let options = AwsOptions { directory: directory.path().join("aws"), ministack };
        let local = Local::start(options).await.unwrap();
        let github = GitHub::start(GitHubOptions::new("rehearsal")).await.unwrap();
        local.simulate_instances(&github);
        local.make_bucket("kiln-rehearsal-000000000000-eu-central-1").await.unwrap();
        let config = Config::from_toml("kiln.toml", &kiln_toml(&github, instances)).unwrap();
        let key = AppKey::from_pem(github.generate_key().as_bytes()).unwrap();
        let client = OrgClient::new(
            &config.github.api_url,
            "kiln-test",
            config.app.id.issuer(),
            Arc::new(key),
            "rehearsal",
            config.app.installation_id,
        );
        let bounds = Bounds { first_pause: Duration::from_millis(10), ..Bounds::default() };
        let client = client.unwrap().with_bounds(bounds);
        let cloud = cloud(&local).await;
        Self { local, github, config, client, cloud, images: 0, _directory: directory }
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        &self.config.fleets[&"linux".parse().unwrap()]
    }

    /// What a pipeline asks for.
    pub(crate) fn request(&self) -> Request<'_> {
        Request::new(&self.config, self.fleet())
    }

    pub(crate) fn group(&self) -> String {
        self.config.group(&self.fleet().name).to_string()
    }

    /// Bakes an image, as far as `deploy` sees it; its id and its runner's version.
    pub(crate) async fn bake(&mut self) -> (String, String) {
        self.images += 1;
        let version = format!("2.338.{}", self.images);
        let ami = self.local.add_image(&self.config.image_name(&self.fleet().image), &version).await.unwrap();
        self.record(&ami).await;
        (ami, version)
    }

    /// Records an image as the one baked last.
    pub(crate) async fn record(&self, ami: &str) {
        let parameter = self.config.image_parameter(&self.fleet().image);
        self.cloud.record(&parameter, &ami.parse().unwrap()).await.unwrap();
    }

    /// One run of `deploy`.
    pub(crate) async fn run(
        &self,
        request: &Request<'_>,
        holder: &LockOwner,
        said: &Said,
    ) -> Result<Plan<Step>, Error> {
        let operator = Session { progress: said, consent: &Agreeing, check: &Agreeing, holder };
        let run = deploy::run(request, false, &self.cloud, &self.client, operator);
        let result = tokio::time::timeout(PATIENCE, Box::pin(TEMPO.run(run))).await.expect("deploy hangs");
        // However it ended, its process has.
        kill(holder);
        result
    }

    /// The same, expected to go well.
    pub(crate) async fn deploy(&self, request: &Request<'_>) -> Plan<Step> {
        let said = Said::default();
        match self.run(request, &process(), &said).await {
            Ok(plan) => plan,
            Err(error) => panic!("{error}\n{}", said.0.lock().unwrap().join("\n")),
        }
    }

    /// The fleet's runners.
    pub(crate) fn runners(&self) -> Vec<KnownRunner> {
        self.github.runners().into_iter().filter(|runner| runner.name.starts_with("linux-i-")).collect()
    }

    pub(crate) fn online(&self) -> usize {
        self.runners().iter().filter(|runner| runner.online).count()
    }

    /// Every runner is online with this version, and as many as wanted are.
    pub(crate) fn serves(&self, version: &str) -> bool {
        let runners = self.runners();
        runners.len() == self.fleet().min as usize
            && runners.iter().all(|runner| runner.online && runner.version.as_deref() == Some(version))
    }
}

async fn cloud(local: &Local) -> kiln_aws::Aws {
    let pipeline = Credentials::new("AKIAPIPELINE00000000", "pipeline", None, None, "test");
    let retries = RetryConfig::standard().with_max_attempts(8).with_initial_backoff(Duration::from_millis(5));
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region("eu-central-1")
        .endpoint_url(local.endpoint_url())
        .credentials_provider(pipeline)
        .retry_config(retries)
        .load()
        .await;
    kiln_aws::Aws::new(&local.region().parse().unwrap(), &config)
}

fn kiln_toml(github: &GitHub, instances: u32) -> String {
    format!(
        r#"
organization = "rehearsal"
region = "eu-central-1"

[app]
client_id = "{}"
installation_id = {}

[github]
url = "{}"
api_url = "{}"

[runner]
version = "2.338.0"
[runner.sha256]
x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32"

[fleet.linux]
labels = ["linux-x64"]
registration = "persistent"
instance_types = ["m6i.large", "m5.large"]
min = {instances}
max = {instances}
network = {{ vpc = "vpc-00000001", subnets = ["subnet-00000001", "subnet-00000002"] }}
"#,
        github.client_id(),
        github.installation_id(),
        github.url(),
        github.api_url(),
    )
}
