//! What an instance is to be, as JSON in its user data: [`UserData`]. An instance of a fleet that registers by itself has a
//! [`BootConfig`], one of an on-demand fleet an [`OnDemandConfig`], and the controller's a [`ControllerConfig`].
//!
//! It names things and holds no secret: anything on the instance that reaches the metadata service can read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::model::{FleetName, GroupName, Label, Organization, Region, Registration, RunnerVersion};

/// The version of the document that this build writes and reads.
pub const VERSION: u32 = 1;

/// EC2 allows user data 16 KiB before base64; CloudFormation a parameter value 4,096 bytes, which is the tighter bound.
///
/// Source: <https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html>
pub const MAX_BYTES: usize = 4096;

/// Everything an instance needs to become a runner, beside its own identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// The document's version, [`VERSION`].
    pub version: u32,
    /// The organization the runner registers with.
    pub organization: Organization,
    /// The fleet it belongs to; the first part of the runner's name.
    pub fleet: FleetName,
    /// Where GitHub is.
    pub github: GitHub,
    /// Which App signs.
    pub app: App,
    /// Where that App's key is.
    pub key: KeySource,
    /// Persistent or ephemeral.
    pub registration: Registration,
    /// Labels beside the ones GitHub adds to every self-hosted runner.
    pub labels: Vec<Label>,
    /// The runner group's name.
    pub runner_group: String,
    /// The runner installed in the image.
    pub runner: Runner,
    /// May a job reach the metadata service?
    #[serde(default)]
    pub job_metadata_access: MetadataAccess,
    /// May a job use docker?
    #[serde(default, skip_serializing_if = "DockerAccess::is_default")]
    pub job_docker_access: DockerAccess,
    /// Is a job taken only once docker answers? Registering does not wait for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait_for_docker: bool,
    /// When the instance retires by itself. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retirement: Option<Retirement>,
    /// Variables for the runner and its jobs, beside those of the machine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The Auto Scaling group and how to leave it. Absent: the instance belongs to no group and nobody asks it to leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,
}

/// Everything an instance of an on-demand fleet needs, beside its own identity and its hand-over object: no App, no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnDemandConfig {
    /// The fleet it belongs to.
    pub fleet: FleetName,
    /// The bucket with its hand-over object.
    pub bucket: String,
    /// The bucket's region.
    pub region: Region,
    /// The unique id of the instances' role, `AROA…`. Absent: the instance asks STS for it, which costs a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_id: Option<String>,
    /// Without a configuration for so long after its start, the instance switches itself off.
    #[serde(default = "hand_over_limit_secs")]
    pub hand_over_limit_secs: u32,
    /// A listener that is not online so long after its start never will be: the instance switches itself off.
    #[serde(default = "boot_limit_secs")]
    pub boot_limit_secs: u32,
    /// How long a job may take, and how long one may delay the instance's end.
    #[serde(default = "job_limit_secs")]
    pub job_limit_secs: u32,
    /// The runner installed in the image.
    pub runner: Runner,
    /// May a job reach the metadata service? The role has no right but to the instance's own hand-over object.
    #[serde(default)]
    pub job_metadata_access: MetadataAccess,
    /// May a job use docker?
    #[serde(default, skip_serializing_if = "DockerAccess::is_default")]
    pub job_docker_access: DockerAccess,
    /// Is a job taken only once docker answers?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait_for_docker: bool,
    /// Variables for the runner and its jobs, beside those of the machine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

/// What a fleet's jobs may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobSettings {
    /// May a job reach the metadata service?
    pub metadata_access: MetadataAccess,
    /// May a job use docker?
    pub docker_access: DockerAccess,
    /// Is a job taken only once docker answers?
    pub wait_for_docker: bool,
    /// Variables for the runner and its jobs.
    pub environment: BTreeMap<String, String>,
}

impl OnDemandConfig {
    /// With the usual limits.
    pub fn new(fleet: FleetName, bucket: String, region: Region, runner: Runner, jobs: JobSettings) -> Self {
        Self {
            fleet,
            bucket,
            region,
            // Known once the stack has made the role, after this document.
            role_id: None,
            hand_over_limit_secs: hand_over_limit_secs(),
            boot_limit_secs: boot_limit_secs(),
            job_limit_secs: job_limit_secs(),
            runner,
            job_metadata_access: jobs.metadata_access,
            job_docker_access: jobs.docker_access,
            wait_for_docker: jobs.wait_for_docker,
            environment: jobs.environment,
        }
    }
}

/// Ten minutes: a controller whose host is lost is replaced within five.
fn hand_over_limit_secs() -> u32 {
    600
}

/// A little more than the four minutes after which the controller gives the runner up.
fn boot_limit_secs() -> u32 {
    300
}

/// GitHub's own limit for a job on a runner of one's own: five days.
///
/// Source: <https://docs.github.com/en/actions/reference/limits>
fn job_limit_secs() -> u32 {
    5 * 24 * 3600
}

/// The key of an instance's hand-over object. `user` is IAM's `aws:userid` of the instance's credentials, `ROLEID:INSTANCEID`:
/// the fleet's policy says `runners/${aws:userid}/*`, so that an instance reads its own and no other's.
pub fn hand_over_key(user: &str) -> String {
    format!("runners/{user}/config")
}

/// The key of the document by which `deploy` says what the fleets are to be.
pub const CONTROL_KEY: &str = "control/control.json";

/// The key of the document in which the controller says how the fleets are.
pub const STATUS_KEY: &str = "control/status.json";

/// The tag with the prefix of the organization's names, `kiln-acme`, on each instance of an on-demand fleet.
pub const ORGANIZATION_TAG: &str = "kiln:organization";

/// The tag with the fleet's name.
pub const FLEET_TAG: &str = "kiln:fleet";

/// The tag with the launch's token.
pub const LAUNCH_TAG: &str = "kiln:launch";

/// Everything the controller of an organization's on-demand fleets needs, beside the control document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// The organization.
    pub organization: Organization,
    /// Where GitHub is.
    pub github: GitHub,
    /// Which App signs.
    pub app: App,
    /// Where that App's key is.
    pub key: KeySource,
    /// The bucket of the documents and hand-over objects.
    pub bucket: String,
    /// Its region, and the fleets'.
    pub region: Region,
    /// The proxy and the certificates of the controller itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

/// What an instance finds in its user data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserData {
    /// It registers by itself.
    Boot(Box<BootConfig>),
    /// It is of an on-demand fleet: `{"format":1,"on_demand":{…}}`.
    OnDemand(Box<OnDemandConfig>),
    /// It is the controller: `{"format":1,"controller":{…}}`.
    Controller(Box<ControllerConfig>),
}

/// The document around an [`OnDemandConfig`] or a [`ControllerConfig`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_demand: Option<OnDemandConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    controller: Option<ControllerConfig>,
}

impl UserData {
    /// Reads a document.
    ///
    /// # Errors
    /// [`BootConfigError`], a foreign version before any complaint about its shape.
    pub fn from_json(text: &str) -> Result<Self, BootConfigError> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        let Some(format) = value.get("format").and_then(serde_json::Value::as_u64) else {
            return BootConfig::from_json(text).map(|config| Self::Boot(Box::new(config)));
        };
        if format != u64::from(VERSION) {
            return Err(BootConfigError::Version { found: format });
        }
        let envelope: Envelope = serde_json::from_value(value)?;
        let (data, environment) = match (envelope.on_demand, envelope.controller) {
            (Some(config), None) => (Self::OnDemand(Box::new(config.clone())), config.environment),
            (None, Some(config)) => (Self::Controller(Box::new(config.clone())), config.environment),
            _ => return Err(BootConfigError::Kind),
        };
        allowed(&environment)?;
        Ok(data)
    }

    /// Writes the document, as [`BootConfig::to_json`] does.
    ///
    /// # Errors
    /// [`BootConfigError::TooLong`].
    pub fn to_json(&self) -> Result<String, BootConfigError> {
        let (on_demand, controller) = match self {
            Self::Boot(config) => return config.to_json(),
            Self::OnDemand(config) => (Some(config.as_ref().clone()), None),
            Self::Controller(config) => (None, Some(config.as_ref().clone())),
        };
        short(&Envelope { format: VERSION, on_demand, controller })
    }
}

/// GitHub's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitHub {
    /// The REST API's base, `https://api.github.com` or `https://HOST/api/v3`.
    pub api_url: Url,
    /// The web address a runner is configured with, `https://github.com` or `https://HOST`.
    pub url: Url,
}

/// The GitHub App.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// The JWT's `iss`: the client id, or the app id in decimal.
    pub issuer: String,
    /// The installation in the organization; looked up when absent, which costs a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<u64>,
}

/// Where the App's private key is, by reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeySource {
    /// A KMS key's alias, `alias/…`; signed by `kms:Sign`. What signed before has [`previous_alias`].
    Kms(String),
    /// A secret's name; its `AWSCURRENT` value is the PEM, `AWSPREVIOUS` the one before.
    SecretsManager(String),
    /// A PEM file on the instance (GHES appliances and tests).
    File(String),
}

/// The alias of the KMS key that signed before the current one, kept for a while after a rotation.
pub fn previous_alias(alias: &str) -> String {
    format!("{alias}-previous")
}

/// The runner in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runner {
    /// The version the image was baked with.
    pub version: RunnerVersion,
    /// The unprivileged user it runs as.
    pub user: String,
    /// Where its tarball was unpacked.
    pub directory: String,
}

/// The Auto Scaling group the instance belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lifecycle {
    /// The group's name.
    pub group: GroupName,
    /// The hook that holds a new instance in `Pending:Wait` until its runner is registered.
    pub launch_hook: String,
    /// The hook that holds a leaving instance in `Terminating:Wait` until its job is done.
    pub termination_hook: String,
    /// The termination hook's heartbeat timeout, 30 to 7,200 s.
    pub termination_heartbeat_timeout_secs: u32,
    /// How long a running job may delay the instance's end, at most 172,800 s (48 h, Auto Scaling's own bound).
    pub drain_timeout_secs: u32,
    /// An instance that can't serve gives itself up no earlier after its boot, and tries on until then.
    pub failed_boot_grace_secs: u32,
}

/// When an instance retires by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retirement {
    /// At this age it asks to be replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_secs: Option<u32>,
    /// After so long without a job it asks the group to do without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_limit_secs: Option<u32>,
}

/// Whether a job can reach the instance metadata service, and so the instance's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MetadataAccess {
    /// No. If the runner's user can reach the service, the instance does not start its runner.
    #[default]
    Blocked,
    /// Yes. Jobs can use the instance's role, and anyone who can write a workflow can sign as the App.
    Allowed,
}

/// Whether a job can use docker. Docker access is equivalent to root on the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DockerAccess {
    /// Yes.
    #[default]
    Allowed,
    /// No. The runner's user is not in the group `docker`.
    Blocked,
}

impl DockerAccess {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The tag by which an instance tells its operator what has become of it.
pub const STATE_TAG: &str = "kiln:state";

/// [`STATE_TAG`]'s value where GitHub serves the instance's runner version no more.
pub const RUNNER_DEPRECATED: &str = "runner-deprecated";

/// [`STATE_TAG`]'s value where the instance waits for GitHub, which it can't reach.
pub const GITHUB_UNREACHABLE: &str = "github-unreachable";

/// [`STATE_TAG`]'s value where the instance serves after it had another.
pub const SERVING: &str = "serving";

/// Why a document is no BootConfig.
#[derive(Debug, thiserror::Error)]
pub enum BootConfigError {
    /// Not JSON, or not of this shape.
    #[error("the user data is not a BootConfig: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by another version of Kiln.
    #[error("BootConfig version {found} is not supported: this image reads version {VERSION}; bake a new image")]
    Version {
        /// The version found.
        found: u64,
    },
    /// Neither an on-demand fleet's instance nor the controller, or both.
    #[error("the user data has a `format`, but not one of `on_demand` and `controller`")]
    Kind,
    /// A variable that no fleet may set.
    #[error("BootConfig's `environment` sets `{name}`, which a fleet may not set for its jobs")]
    Variable {
        /// Its name.
        name: String,
    },
    /// Longer than [`MAX_BYTES`].
    #[error("BootConfig is {bytes} bytes long, more than the {MAX_BYTES} a CloudFormation parameter can hold")]
    TooLong {
        /// The length found.
        bytes: usize,
    },
}

impl BootConfig {
    /// Reads a document.
    ///
    /// # Errors
    /// [`BootConfigError`], a foreign version before any complaint about its shape.
    pub fn from_json(text: &str) -> Result<Self, BootConfigError> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        if let Some(found) = version.filter(|found| *found != u64::from(VERSION)) {
            return Err(BootConfigError::Version { found });
        }
        let config: Self = serde_json::from_value(value)?;
        allowed(&config.environment)?;
        Ok(config)
    }

    /// Writes the document, compact and with a fixed order of keys: equal configurations give equal launch templates. In
    /// ASCII, with other characters escaped: CloudFormation gives those back as `?`, and every comparison would differ.
    ///
    /// Source: <https://github.com/aws-cloudformation/cloudformation-coverage-roadmap/issues/814>
    ///
    /// # Errors
    /// [`BootConfigError::TooLong`].
    pub fn to_json(&self) -> Result<String, BootConfigError> {
        short(self)
    }
}

/// Only variables that a fleet may set.
fn allowed(environment: &BTreeMap<String, String>) -> Result<(), BootConfigError> {
    match environment.keys().find(|name| crate::environment::refused(name).is_some()) {
        Some(name) => Err(BootConfigError::Variable { name: name.clone() }),
        None => Ok(()),
    }
}

/// A document that CloudFormation can hold.
fn short(document: &impl Serialize) -> Result<String, BootConfigError> {
    let text = ascii(&serde_json::to_string(document)?);
    if text.len() > MAX_BYTES {
        return Err(BootConfigError::TooLong { bytes: text.len() });
    }
    Ok(text)
}

/// JSON in ASCII: what is not can only be inside of its strings.
fn ascii(json: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}
