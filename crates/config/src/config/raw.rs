//! `kiln.toml` as it is written, with the place of each value.
//!
//! The JSON schema is derived from these types: their doc comments are its descriptions, and [`super::shape`] checks a
//! file by it before serde sees it. So every field is an `Option` to serde, because what the check has found wanting is
//! left out; the schema requires those without `#[serde(default)]`, for it goes by the type in `with`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::images::{
    CERTIFICATES, COMPONENT, COMPONENTS, CONTAINER, CONTAINERS, DESTINATION, FILES, MODE, PACKAGE, PACKAGES, SCRIPTS,
};
use super::infrastructure::{DEFAULT_IOPS, DEFAULT_THROUGHPUT_MIBPS, IMAGE_VOLUME_GIB};
use super::{
    DEFAULT_DRAIN_LIMIT_SECS, DEFAULT_HEARTBEAT_SECS, DEFAULT_LINGER_SECS, DEFAULT_NODE_URL, DEFAULT_RELEASE_URL,
    DEFAULT_REPLACE_PAUSE_SECS, DEFAULT_RUNNER_GROUP,
};
use crate::boot::{DockerAccess, MetadataAccess};
use crate::model::{Architecture, BaseImage, KeyStore, SpotStrategy, Toolset};

type Field<T> = Option<Spanned<T>>;

const ORGANIZATION: &str = "^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$";
const REGION: &str = "^[a-z0-9]+(-[a-z0-9]+)+-[0-9]+$";
const CLIENT_ID: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";
const URL: &str = r"^https?://[^\s]+$";
const RUNNER_VERSION: &str = r"^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$";
const KILN_VERSION: &str = r"^[0-9]{1,6}\.[0-9]{1,6}(\.[0-9]{1,6})?$";
const NODE_MAJOR: &str = "^[1-9][0-9]{0,2}$";
const NODE_VERSION: &str = r"^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$";
const ACCOUNT: &str = "^[0-9]{12}$";
const KMS_KEY: &str = "^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$";
const SHA256: &str = "^[0-9a-f]{64}$";
const FLEET: &str = "^[a-z]([a-z0-9-]{0,22}[a-z0-9])?$";
// No blank at either end, and no comma or control character anywhere.
const LABEL: &str = r"^[^\s,\x00-\x1f\x7f-\x9f]([^,\x00-\x1f\x7f-\x9f]*[^\s,\x00-\x1f\x7f-\x9f])?$";
const INSTANCE_TYPE: &str = r"^[a-z0-9-]+\.[a-z0-9-]+$";
const VARIABLE: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
const SNS_TOPIC: &str = r"^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_.-]+$";
const POLICY: &str = r"^arn:aws[a-z-]*:iam::([0-9]{12}|aws):policy/[A-Za-z0-9_+=,.@/-]+$";
const ROLE: &str = r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+$";
const TAG_KEY: &str = "^[A-Za-z0-9 _.:/=+@-]{1,128}$";
const VPC: &str = "^vpc-[0-9a-f]{8,17}$";
const SECURITY_GROUP: &str = "^sg-[0-9a-f]{8,17}$";
const SUBNET: &str = "^subnet-[0-9a-f]{8,17}$";

/// What every program that reads JSON takes for a whole number; GitHub's ids are far below it.
const MOST_ID: u64 = (1 << 53) - 1;
/// GitHub lets so many runners into one group.
///
/// Source: <https://docs.github.com/en/actions/reference/limits>
const MOST_INSTANCES: u32 = 10_000;
/// Auto Scaling's own longest life of an instance, a year.
///
/// Source: <https://docs.aws.amazon.com/autoscaling/ec2/userguide/asg-max-instance-lifetime.html>
const MOST_SECS: u32 = 365 * 24 * 3600;

/// Kiln: GitHub Actions self-hosted runners for an organization, in its own AWS account.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "kiln.toml")]
pub(super) struct RawConfig {
    /// The version of Kiln that this file is for. Every command of another version refuses it.
    #[serde(default)]
    #[schemars(with = "RawKiln")]
    pub(super) kiln: Option<RawKiln>,
    /// The GitHub organization's login.
    #[schemars(with = "String", regex(pattern = ORGANIZATION), length(max = 39), example = &"acme")]
    pub(super) organization: Field<String>,
    /// The AWS region of the fleets, images and keys.
    #[schemars(with = "String", regex(pattern = REGION), example = &"eu-central-1")]
    pub(super) region: Field<String>,
    /// The GitHub App that registers runners.
    #[schemars(with = "RawApp")]
    pub(super) app: Field<RawApp>,
    /// The URLs of GitHub Enterprise Server. Omit this table for github.com.
    #[serde(default)]
    #[schemars(with = "RawGitHub")]
    pub(super) github: Option<RawGitHub>,
    /// The pinned release of actions/runner.
    #[schemars(with = "RawRunner")]
    pub(super) runner: Option<RawRunner>,
    /// Where images are built, and the regions and accounts that get a copy.
    #[serde(default)]
    #[schemars(with = "RawImageDefaults")]
    pub(super) image_defaults: Option<RawImageDefaults>,
    /// What images are made of, by the image's name: lower-case letters, digits and hyphens. A fleet without `image` has one
    /// of Amazon Linux 2023 with nothing of yours in it.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, RawImage>")]
    #[schemars(extend("propertyNames" = { "pattern": FLEET }))]
    pub(super) image: Option<BTreeMap<Spanned<String>, RawImage>>,
    // Where something goes wrong at night, somebody has to hear of it.
    /// An SNS topic in this region. It gets a message when a group has too few instances in service, and when a launch or
    /// an instance refresh fails. The topic's policy must allow cloudwatch.amazonaws.com and events.amazonaws.com to
    /// publish. An encrypted topic needs a customer managed KMS key whose policy allows both to use it; the AWS managed key
    /// for SNS does not.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = SNS_TOPIC), example = &"arn:aws:sns:eu-central-1:123456789012:alarms")]
    pub(super) alarm_topic: Field<String>,
    /// The role that CloudFormation uses to change Kiln's stacks, instead of the caller's permissions. Pipelines with the
    /// roles of infra/pipeline.yaml need it; that stack's output `StackRole` names it.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = ROLE))]
    #[schemars(example = &"arn:aws:iam::123456789012:role/kiln-acme-cloudformation")]
    pub(super) cloudformation_role: Field<String>,
    /// A permissions boundary for the roles that Kiln's stacks create; infra/pipeline.yaml creates one.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = POLICY))]
    #[schemars(example = &"arn:aws:iam::123456789012:policy/kiln-acme-boundary")]
    pub(super) permissions_boundary: Field<String>,
    /// Tags for the stacks and their resources, and for instances and their volumes. At most ten. Allowed are ASCII
    /// letters, digits, spaces and the characters _.:/=+-@ because CloudFormation returns other characters as `?`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    #[schemars(extend("propertyNames" = { "pattern": TAG_KEY }, "maxProperties" = 10))]
    #[schemars(extend("examples" = [{ "cost-center": "ci" }]))]
    pub(super) tags: Option<BTreeMap<Spanned<String>, Spanned<String>>>,
    /// The fleets, by name: lower-case letters, digits and hyphens.
    #[schemars(with = "BTreeMap<String, RawFleet>")]
    #[schemars(extend("minProperties" = 1, "propertyNames" = { "pattern": FLEET }))]
    pub(super) fleet: Option<BTreeMap<Spanned<String>, RawFleet>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKiln {
    /// The version, such as `0.1.0`; `0.1` stands for every `0.1.x`.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = KILN_VERSION), example = &"0.1.0")]
    pub(super) version: Field<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApp {
    /// The App's client id, which is at the top of its settings. Set either this or `app_id`.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = CLIENT_ID), example = &"Iv23liEXAMPLE0000000")]
    pub(super) client_id: Field<String>,
    /// The App's id, a number. Set either this or `client_id`, which GitHub recommends.
    #[serde(default)]
    #[schemars(with = "u64", range(min = 1, max = MOST_ID), example = &123_456)]
    pub(super) app_id: Field<u64>,
    /// The number at the end of the installation's URL. Without it, each boot makes one more request to look it up.
    #[serde(default)]
    #[schemars(with = "u64", range(min = 1, max = MOST_ID), example = &12_345_678)]
    pub(super) installation_id: Field<u64>,
    /// The key store of the App's private key. A fleet can override it.
    #[serde(default)]
    #[schemars(with = "KeyStore", extend("default" = KeyStore::Kms))]
    pub(super) key_store: Field<KeyStore>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGitHub {
    /// The URL of the web interface, without a path.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = URL), example = &"https://github.example.com")]
    #[schemars(extend("default" = "https://github.com"))]
    pub(super) url: Field<String>,
    /// The base URL of the REST API. The default follows from `url`: `https://HOST/api/v3`.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = URL), example = &"https://github.example.com/api/v3")]
    pub(super) api_url: Field<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRunner {
    /// The release, without the tag's `v`.
    #[schemars(with = "String", regex(pattern = RUNNER_VERSION), example = &"2.338.0")]
    pub(super) version: Field<String>,
    /// The SHA-256 of the release's tarball, for each architecture in use.
    #[schemars(with = "RawSha256")]
    pub(super) sha256: Field<RawSha256>,
    /// The base URL of the releases: GitHub, or a mirror of it.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = URL), extend("default" = DEFAULT_RELEASE_URL))]
    pub(super) release_url: Field<String>,
    /// Only for amazon-linux-2: builds of Node for glibc 2.17, by major version. They replace the runner's own Node.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, RawNode>", extend("propertyNames" = { "pattern": NODE_MAJOR }))]
    pub(super) node: Option<BTreeMap<Spanned<String>, RawNode>>,
    /// The base URL of those builds: the Node project's unofficial builds, or a mirror of them.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = URL), extend("default" = DEFAULT_NODE_URL))]
    pub(super) node_url: Field<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNode {
    /// The release, without the tag's `v`.
    #[schemars(with = "String", regex(pattern = NODE_VERSION), example = &"24.19.0")]
    pub(super) version: Field<String>,
    /// The SHA-256 of `node-vVERSION-linux-x64-glibc-217.tar.gz`, from SHASUMS256.txt in the same directory.
    #[schemars(with = "String", regex(pattern = SHA256))]
    pub(super) sha256: Field<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawImageDefaults {
    /// Regions that get a copy of each image, and an SSM parameter of the same name with the copy's id.
    #[serde(default)]
    #[schemars(with = "Vec<String>", inner(regex(pattern = REGION)))]
    #[schemars(extend("examples" = [["eu-west-1"]], "uniqueItems" = true))]
    pub(super) copy_to: Field<Vec<Spanned<String>>>,
    /// Accounts that may launch instances from the images.
    #[serde(default)]
    #[schemars(with = "Vec<String>", inner(regex(pattern = ACCOUNT)))]
    #[schemars(extend("examples" = [["123456789012"]], "uniqueItems" = true))]
    pub(super) share_with: Field<Vec<Spanned<String>>>,
    /// The KMS key that encrypts the images. The default is the account's default key for EBS; other accounts can't launch
    /// images that it encrypts. `copy_to` needs a multi-Region key (mrk-) with a replica in each region.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = KMS_KEY))]
    #[schemars(example = &"arn:aws:kms:eu-central-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef")]
    pub(super) kms_key: Field<String>,
    /// The account that bakes the images and shares them with this account. Without it, `deploy` accepts only images of
    /// this account.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = ACCOUNT), example = &"123456789012")]
    pub(super) owner: Field<String>,
    /// The network that images are built in: a subnet with outbound internet access. The default is the first fleet's
    /// network.
    #[serde(default)]
    #[schemars(with = "RawBakeNetwork")]
    pub(super) network: Field<RawBakeNetwork>,
    /// Instance types to build images on. Image Builder uses one that the subnet's availability zone offers. The default is
    /// a list of common types.
    #[serde(default)]
    #[schemars(with = "Vec<String>", inner(regex(pattern = INSTANCE_TYPE)))]
    #[schemars(extend("examples" = [["m6i.large", "m5.large"]], "uniqueItems" = true))]
    pub(super) instance_types: Field<Vec<Spanned<String>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSha256 {
    /// The SHA-256 of `actions-runner-linux-x64-VERSION.tar.gz`.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = SHA256))]
    pub(super) x86_64: Field<String>,
    /// The SHA-256 of `actions-runner-linux-arm64-VERSION.tar.gz`.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = SHA256))]
    pub(super) aarch64: Field<String>,
}

/// How a runner registers at GitHub, and what decides how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawRegistration {
    /// Registers with a registration token and `config.sh`. The runner takes one job after another.
    Persistent,
    /// Registers with a just-in-time configuration. The runner takes one job, then the instance is replaced.
    Ephemeral,
    /// The organization's controller launches an instance for each job that waits at GitHub. The instance runs one job. This
    /// version checks such a fleet, but can't deploy it yet.
    OnDemand,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "if" = { "properties": { "registration": { "const": "on-demand" } }, "required": ["registration"] },
    "else" = { "required": ["min"] },
))]
pub(super) struct RawFleet {
    // GitHub takes a hundred of a runner, its own three included.
    /// Labels in addition to those that every self-hosted runner has: self-hosted, Linux, and X64 or ARM64. A label has no
    /// commas and at most 256 characters. An ephemeral fleet needs at least one.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(max = 97), inner(length(max = 256), regex(pattern = LABEL)))]
    #[schemars(extend("examples" = [["linux-x64"]], "uniqueItems" = true))]
    pub(super) labels: Field<Vec<Spanned<String>>>,
    /// The runner group that the fleet's runners join.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), extend("default" = DEFAULT_RUNNER_GROUP))]
    pub(super) runner_group: Field<String>,
    /// How long a runner lives, and how many there are.
    #[serde(default)]
    #[schemars(with = "RawRegistration", extend("default" = RawRegistration::Persistent))]
    pub(super) registration: Field<RawRegistration>,
    /// The image, a table `[image.NAME]`. Without it: Amazon Linux 2023 for the architecture of the instance types, with
    /// nothing of yours in it.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = FLEET), example = &"tools")]
    pub(super) image: Field<String>,
    // The stack's template declares five parameters for them.
    /// Instance types in order of preference, all of the image's architecture.
    #[schemars(with = "Vec<String>", length(min = 1, max = 5), inner(regex(pattern = INSTANCE_TYPE)))]
    #[schemars(extend("examples" = [["m6i.large", "m5.large"]], "uniqueItems" = true))]
    pub(super) instance_types: Field<Vec<Spanned<String>>>,
    // Required by the table's own condition, of fleets that are not on-demand.
    /// The minimum number of instances. Auto Scaling replaces failed ones.
    #[serde(default)]
    #[schemars(with = "u32", range(max = MOST_INSTANCES), example = &1)]
    pub(super) min: Field<u32>,
    /// The maximum number of instances.
    #[schemars(with = "u32", range(min = 1, max = MOST_INSTANCES), example = &4)]
    pub(super) max: Field<u32>,
    /// Of an on-demand fleet: how many runners wait for jobs while nothing is queued.
    #[serde(default)]
    #[schemars(with = "u32", range(max = MOST_INSTANCES), extend("default" = 0))]
    pub(super) min_idle: Field<u32>,
    /// Of an on-demand fleet: how long a runner that has no job is kept, in seconds. Jobs come in bursts, and EC2 bills at
    /// least a minute.
    #[serde(default)]
    #[schemars(with = "u32", range(max = 86_400), extend("default" = DEFAULT_LINGER_SECS))]
    pub(super) linger_secs: Field<u32>,
    /// Spot capacity in addition to On-Demand capacity. Without it, all instances are On-Demand.
    #[serde(default)]
    #[schemars(with = "RawSpot")]
    pub(super) spot: Field<RawSpot>,
    /// The root volume: gp3, encrypted.
    #[serde(default)]
    #[schemars(with = "RawVolume")]
    pub(super) volume: Field<RawVolume>,
    // The stack's template declares four parameters for them.
    /// Outbound TCP ports to allow in addition to 443, GitHub's own, and those of the proxies in `environment`.
    #[serde(default)]
    #[schemars(with = "Vec<u16>", length(max = 4), inner(range(min = 1, max = 65535)))]
    #[schemars(extend("examples" = [[22]], "uniqueItems" = true))]
    pub(super) egress_ports: Field<Vec<Spanned<u16>>>,
    /// Allows opening a shell on instances with AWS Systems Manager Session Manager.
    #[serde(default)]
    #[schemars(with = "bool", extend("default" = false))]
    pub(super) session_manager: Field<bool>,
    /// The network of the instances.
    #[schemars(with = "RawNetwork")]
    pub(super) network: Field<RawNetwork>,
    /// The key store for this fleet's instances. The default is the one in `[app]`.
    #[serde(default)]
    #[schemars(with = "KeyStore")]
    pub(super) key_store: Field<KeyStore>,
    // Auto Scaling's bounds: https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_PutLifecycleHook.html
    /// The heartbeat timeout of the termination hook, in seconds: Auto Scaling terminates a draining instance that sends no
    /// heartbeat for this long.
    #[serde(default)]
    #[schemars(with = "u32", range(min = 30, max = 7200), extend("default" = DEFAULT_HEARTBEAT_SECS))]
    pub(super) termination_heartbeat_timeout_secs: Field<u32>,
    /// How long a running job may delay the termination of its instance, in seconds; at most 100 times `termination_heartbeat_timeout_secs`.
    #[serde(default)]
    #[schemars(with = "u32", range(min = 60, max = 172_800), extend("default" = DEFAULT_DRAIN_LIMIT_SECS))]
    pub(super) drain_timeout_secs: Field<u32>,
    // The launch hook's ten minutes bound it.
    /// How long an instance that can't register retries before it is replaced, in seconds. Without this pause, a fault that
    /// affects every instance, such as a deleted key, would replace instances as fast as they boot.
    #[serde(default)]
    #[schemars(with = "u32", range(max = 540), extend("default" = DEFAULT_REPLACE_PAUSE_SECS))]
    pub(super) failed_boot_grace_secs: Field<u32>,
    /// The age at which an instance is replaced, in seconds, after its running job ends. Without it, instances have no
    /// maximum age.
    #[serde(default)]
    #[schemars(with = "u32", range(min = 3600, max = MOST_SECS), example = &604_800)]
    pub(super) max_age_secs: Field<u32>,
    /// How long an instance may have no job before it terminates, in seconds, while the group has more than `min`
    /// instances. Without it, idle instances do not terminate.
    #[serde(default)]
    #[schemars(with = "u32", range(min = 60, max = MOST_SECS), example = &1800)]
    pub(super) idle_limit_secs: Field<u32>,
    /// A command that checks the first new runner before `deploy` replaces the other instances. `sh -c` runs it where
    /// `deploy` runs, with `KILN_FLEET`, `KILN_RUNNER` and `KILN_INSTANCE`. It must finish within 30 minutes.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), example = &"./try-runner.sh")]
    pub(super) canary_check: Field<String>,
    /// Whether a job can reach the instance metadata service. With "allowed", anyone who can write a workflow can sign as
    /// the App.
    #[serde(default)]
    #[schemars(with = "MetadataAccess", extend("default" = MetadataAccess::Blocked))]
    pub(super) job_metadata_access: Field<MetadataAccess>,
    /// Whether a job can use docker. Docker access is equivalent to root on the instance.
    #[serde(default)]
    #[schemars(with = "DockerAccess", extend("default" = DockerAccess::Allowed))]
    pub(super) job_docker_access: Field<DockerAccess>,
    /// Whether the runner waits for the docker daemon before it takes a job. The daemon starts in parallel with the
    /// registration and takes a few seconds longer.
    #[serde(default)]
    #[schemars(with = "bool", extend("default" = false))]
    pub(super) wait_for_docker: Field<bool>,
    /// Environment variables for the runner and its jobs, such as a proxy. Do not put secrets here: every process on the
    /// instance can read them. Kiln rejects variables that control the dynamic loader, shells, .NET or the runner itself. A
    /// proxy URL without a scheme means http.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>", extend("propertyNames" = { "pattern": VARIABLE }))]
    #[schemars(extend("examples" = [{ "https_proxy": "http://proxy.example.com:3128" }]))]
    pub(super) environment: Option<BTreeMap<Spanned<String>, Spanned<String>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawImage {
    /// What the image is built on: "amazon-linux-2023", "amazon-linux-2", "ubuntu-24.04", "ubuntu-22.04", "debian-13" or
    /// "debian-12", the newest image of its maker; or an AMI of your own, by its id or by the name of an SSM parameter that
    /// holds it.
    #[serde(default)]
    #[schemars(with = "String", example = &"ubuntu-24.04", extend("default" = BaseImage::AmazonLinux2023))]
    pub(super) base: Field<String>,
    /// For an AMI of your own: the operating system that is on it.
    #[serde(default)]
    #[schemars(with = "BaseImage")]
    pub(super) family: Field<BaseImage>,
    /// The architecture, which the instance types of its fleets must have.
    #[serde(default)]
    #[schemars(with = "Architecture", extend("default" = Architecture::X86_64))]
    pub(super) architecture: Field<Architecture>,
    /// "standard" adds what most workflows expect, as far as the distribution has it; the handbook lists it.
    #[serde(default)]
    #[schemars(with = "Toolset", extend("default" = Toolset::Minimal))]
    pub(super) toolset: Field<Toolset>,
    /// Packages of the distribution, by its names; `name=version` (deb) or `name-version` (rpm) for a certain version.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(max = PACKAGES), inner(regex(pattern = PACKAGE), length(max = 128)))]
    #[schemars(extend("examples" = [["jq", "postgresql-client"]], "uniqueItems" = true))]
    pub(super) packages: Field<Vec<Spanned<String>>>,
    /// Scripts for bash, files next to kiln.toml, run as root in this order on the machine that becomes the image. One that
    /// fails ends the bake.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(max = SCRIPTS), inner(length(min = 1, max = 256)))]
    #[schemars(extend("examples" = [["image/install.sh"]], "uniqueItems" = true))]
    pub(super) scripts: Field<Vec<Spanned<String>>>,
    /// Scripts for bash, run as root on an instance that is started from the new image. Where one fails, the image is not
    /// recorded and no fleet gets it. They stay in the image, in /opt/kiln/tests.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(max = SCRIPTS), inner(length(min = 1, max = 256)))]
    #[schemars(extend("examples" = [["image/test.sh"]], "uniqueItems" = true))]
    pub(super) tests: Field<Vec<Spanned<String>>>,
    /// Files that are laid down in the image; they belong to root.
    #[serde(default)]
    #[schemars(with = "Vec<RawImageFile>", length(max = FILES))]
    pub(super) files: Field<Vec<RawImageFile>>,
    /// Component documents of your own for EC2 Image Builder, files next to kiln.toml, or ARNs of components with version
    /// and build number. They run after all of the above.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(max = COMPONENTS), inner(regex(pattern = COMPONENT), length(max = 256)))]
    #[schemars(extend("examples" = [["image/agent.yml"]], "uniqueItems" = true))]
    pub(super) components: Field<Vec<Spanned<String>>>,
    /// Certificates of authorities to be trusted, PEM files next to kiln.toml. The system, docker, .NET and Node trust them.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(max = CERTIFICATES), inner(length(min = 1, max = 256)))]
    #[schemars(extend("examples" = [["image/our-ca.pem"]], "uniqueItems" = true))]
    pub(super) ca_certificates: Field<Vec<Spanned<String>>>,
    /// Containers' images that docker pulls in the bake, so that no job waits for them: by digest only, for a tag moves.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(max = CONTAINERS), inner(regex(pattern = CONTAINER), length(max = 512)))]
    #[schemars(extend("uniqueItems" = true))]
    #[schemars(extend("examples" = [["docker.io/library/alpine@sha256:0000000000000000000000000000000000000000000000000000000000000000"]]))]
    pub(super) containers: Field<Vec<Spanned<String>>>,
    /// The size of the image's root volume in GiB. The volume of its fleets is at least as large.
    #[serde(default)]
    #[schemars(with = "u32", range(min = IMAGE_VOLUME_GIB, max = 1024), extend("default" = IMAGE_VOLUME_GIB))]
    pub(super) volume_gib: Field<u32>,
    /// The network that it is built in, in place of the one of `[image_defaults]`.
    #[serde(default)]
    #[schemars(with = "RawBakeNetwork")]
    pub(super) network: Field<RawBakeNetwork>,
    /// Instance types to build it on, in place of those of `[image_defaults]`.
    #[serde(default)]
    #[schemars(with = "Vec<String>", inner(regex(pattern = INSTANCE_TYPE)))]
    #[schemars(extend("examples" = [["m6i.large", "m5.large"]], "uniqueItems" = true))]
    pub(super) instance_types: Field<Vec<Spanned<String>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawImageFile {
    /// A file next to kiln.toml.
    #[schemars(with = "String", length(min = 1, max = 256), example = &"image/settings.xml")]
    pub(super) source: Field<String>,
    /// Its path in the image.
    #[schemars(with = "String", regex(pattern = DESTINATION), length(max = 256))]
    #[schemars(example = &"/etc/maven/settings.xml")]
    pub(super) destination: Field<String>,
    /// Its permissions, in octal digits.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = MODE), extend("default" = "0644"))]
    pub(super) mode: Field<String>,
}

/// Spot capacity in addition to On-Demand capacity.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSpot {
    /// The number of On-Demand instances to launch before any Spot instance.
    #[serde(default)]
    #[schemars(with = "u32", range(max = MOST_INSTANCES), extend("default" = 0))]
    pub(super) on_demand_base: Field<u32>,
    /// The percentage of On-Demand instances above the base.
    #[serde(default)]
    #[schemars(with = "u32", range(max = 99), extend("default" = 0))]
    pub(super) on_demand_percent: Field<u32>,
    /// The Spot allocation strategy.
    #[serde(default)]
    #[schemars(with = "SpotStrategy", extend("default" = SpotStrategy::PriceCapacityOptimized))]
    pub(super) strategy: Field<SpotStrategy>,
    /// Whether Auto Scaling replaces an instance at risk of interruption (Capacity Rebalancing). Instances also request
    /// their own replacement when they get the rebalance recommendation; with both, the group can have one instance too
    /// many for a while.
    #[serde(default)]
    #[schemars(with = "bool", extend("default" = false))]
    pub(super) capacity_rebalance: Field<bool>,
}

// Bounds of gp3: https://docs.aws.amazon.com/ebs/latest/userguide/general-purpose.html
/// An instance's root volume.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawVolume {
    /// The size in GiB; at least that of the image's volume.
    #[serde(default)]
    #[schemars(with = "u32", range(min = IMAGE_VOLUME_GIB, max = 65536), extend("default" = IMAGE_VOLUME_GIB))]
    pub(super) gib: Field<u32>,
    /// I/O operations per second; at most 500 for each GiB.
    #[serde(default)]
    #[schemars(with = "u32", range(min = 3000, max = 80000), extend("default" = DEFAULT_IOPS))]
    pub(super) iops: Field<u32>,
    /// Throughput in MiB per second; at most one for every four IOPS.
    #[serde(default)]
    #[schemars(with = "u32", range(min = 125, max = 2000), extend("default" = DEFAULT_THROUGHPUT_MIBPS))]
    pub(super) throughput_mibps: Field<u32>,
}

/// The network of a fleet's instances.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub(super) enum RawNetwork {
    Made(MadeNetwork),
    Given(RawSubnets),
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) enum MadeNetwork {
    /// One VPC that all fleets with this value share: private subnets behind a NAT gateway.
    #[serde(rename = "create-vpc")]
    CreateVpc,
}

/// Existing subnets.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSubnets {
    /// The VPC of the subnets.
    #[schemars(with = "String", regex(pattern = VPC), example = &"vpc-0123456789abcdef0")]
    pub(super) vpc: Field<String>,
    /// Subnets of that VPC with outbound internet access.
    #[schemars(with = "Vec<String>", length(min = 1), inner(regex(pattern = SUBNET)))]
    #[schemars(extend("examples" = [["subnet-0123456789abcdef0"]], "uniqueItems" = true))]
    pub(super) subnets: Field<Vec<Spanned<String>>>,
}

/// A subnet that images are built in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBakeNetwork {
    /// The VPC of the subnet.
    #[schemars(with = "String", regex(pattern = VPC), example = &"vpc-0123456789abcdef0")]
    pub(super) vpc: Field<String>,
    /// The subnet.
    #[schemars(with = "String", regex(pattern = SUBNET), example = &"subnet-0123456789abcdef0")]
    pub(super) subnet: Field<String>,
    /// A security group of that VPC. Without it, Kiln creates one that allows all outbound and no inbound traffic.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = SECURITY_GROUP), example = &"sg-0123456789abcdef0")]
    pub(super) security_group: Field<String>,
}

/// Serde's `untagged` buffers the value and loses the places in it.
impl<'de> Deserialize<'de> for RawNetwork {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = RawNetwork;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"create-vpc\" or { vpc = \"…\", subnets = [\"…\"] }")
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<RawNetwork, E> {
                MadeNetwork::deserialize(serde::de::value::StrDeserializer::new(value)).map(RawNetwork::Made)
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<RawNetwork, A::Error> {
                RawSubnets::deserialize(MapAccessDeserializer::new(map)).map(RawNetwork::Given)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The schema of a `kiln.toml`. Draft 7 is the newest that the TOML plugins of editors read.
pub(super) fn schema() -> serde_json::Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<RawConfig>().into()
}
