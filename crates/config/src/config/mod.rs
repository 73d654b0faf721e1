//! `kiln.toml`: parsed, checked for its shape, read to a raw form, validated to [`Config`].

mod diagnostic;
mod fleet;
mod image;
mod images;
mod infrastructure;
mod notice;
mod on_demand;
mod partition;
mod raw;
mod secret;
mod shape;
mod text;
mod validate;

use std::collections::BTreeMap;

use serde::Deserialize as _;
use toml::de::DeTable;
use url::Url;

use crate::boot;
use crate::model::{
    Architecture, FleetName, GroupName, ImageName, InstanceType, KeyStore, Label, Organization, Region, Registration,
    RunnerVersion, Sha256, SubnetId,
};

pub use diagnostic::{ConfigError, Problem};
use diagnostic::{Diagnostic, Findings};
pub use image::{BakeNetwork, ImageDefaults, NodeMajor, NodePin};
pub use images::{Base, ComponentSource, ContentsError, Image, ImageFile, LocalPath};
pub use infrastructure::{IMAGE_VOLUME_GIB, MOST_EGRESS_PORTS, MOST_TAGS, Spot, Volume};
pub use notice::Notice;
pub use on_demand::OnDemand;
pub use partition::{is_known as is_known_region, nearest as nearest_region, partition};
pub use text::{MOST_BYTES, NotText, decode};

/// The version of Kiln that a `kiln.toml` is for, if it names one: `[kiln] version`. Of a file of another version nothing
/// more may be readable.
pub fn wanted_version(text: &str) -> Option<String> {
    let table: toml::Table = text.parse().ok()?;
    Some(table.get("kiln")?.get("version")?.as_str()?.to_owned())
}

/// Whether a version is the wanted one, or one of those that a wanted `MAJOR.MINOR` stands for.
pub fn is_version(version: &str, wanted: &str) -> bool {
    version
        .strip_prefix(wanted)
        .is_some_and(|rest| rest.is_empty() || (wanted.matches('.').count() == 1 && rest.starts_with('.')))
}

/// A validated `kiln.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The version of Kiln that the file is for, if it names one; see [`is_version`].
    pub version: Option<String>,
    /// The GitHub organization.
    pub organization: Organization,
    /// The AWS region.
    pub region: Region,
    /// The GitHub App.
    pub app: App,
    /// GitHub's endpoints.
    pub github: boot::GitHub,
    /// The pinned actions/runner.
    pub runner: RunnerPin,
    /// Where images are built, and where they go.
    pub image_defaults: ImageDefaults,
    /// The SNS topic that alarms go to.
    pub alarm_topic: Option<String>,
    /// The permissions boundary of the roles that the stacks make.
    pub permissions_boundary: Option<String>,
    /// The role that CloudFormation changes the stacks by.
    pub cloudformation_role: Option<String>,
    /// Tags on everything.
    pub tags: BTreeMap<String, String>,
    /// The images that fleets run, by name; what no fleet runs is not in here.
    pub images: BTreeMap<ImageName, Image>,
    /// At least one fleet, by name.
    pub fleets: BTreeMap<FleetName, Fleet>,
    /// What is valid, but probably not meant.
    pub notices: Vec<Notice>,
}

/// The App as kiln.toml names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// Client id or app id.
    pub id: AppId,
    /// The installation in the organization, if written down; saves each boot a request.
    pub installation_id: Option<u64>,
}

/// One of the two names an App has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppId {
    /// `Iv23…`, the one GitHub recommends as a JWT's issuer.
    Client(String),
    /// The number.
    App(u64),
}

impl AppId {
    /// The JWT's `iss`.
    pub fn issuer(&self) -> String {
        match self {
            Self::Client(id) => id.clone(),
            Self::App(id) => id.to_string(),
        }
    }
}

/// The pinned runner: one version, one digest for each architecture in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerPin {
    /// The release.
    pub version: RunnerVersion,
    /// Digests of `actions-runner-linux-ARCH-VERSION.tar.gz`.
    pub sha256: BTreeMap<Architecture, Sha256>,
    /// Where releases are downloaded from; `https://github.com/actions/runner/releases/download` unless mirrored.
    pub release_url: Url,
    /// Builds of Node for Amazon Linux 2, whose glibc is too old for the runner's own.
    pub node: BTreeMap<NodeMajor, NodePin>,
    /// Where those are downloaded from; `https://unofficial-builds.nodejs.org/download/release` unless mirrored.
    pub node_url: Url,
}

/// One `[fleet.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    pub name: FleetName,
    /// Labels beside the ones GitHub adds.
    pub labels: Vec<Label>,
    /// The runner group's name; `Default` is the one every organization has.
    pub runner_group: String,
    /// Persistent, or for one job.
    pub registration: Registration,
    /// What an on-demand fleet has beyond the others, and in place of a group.
    pub on_demand: Option<OnDemand>,
    /// Its image, one of [`Config::images`].
    pub image: ImageName,
    /// The image's architecture.
    pub architecture: Architecture,
    /// In order of preference; never empty.
    pub instance_types: Vec<InstanceType>,
    /// The least number of instances; none of an on-demand fleet.
    pub min: u32,
    /// The largest number of instances.
    pub max: u32,
    /// Spot capacity, if any.
    pub spot: Option<Spot>,
    /// An instance's root volume.
    pub volume: Volume,
    /// TCP ports that runners reach beside 443.
    pub egress_ports: std::collections::BTreeSet<u16>,
    /// May people open a shell by Session Manager?
    pub session_manager: bool,
    /// Where instances live.
    pub network: Network,
    /// Where the App's key is.
    pub key_store: KeyStore,
    /// The termination hook's heartbeat timeout, in seconds.
    pub termination_heartbeat_timeout_secs: u32,
    /// How long a running job may delay an instance's end, in seconds.
    pub drain_timeout_secs: u32,
    /// How long after its boot an instance that can't register gives itself up, in seconds.
    pub failed_boot_grace_secs: u32,
    /// When an instance retires by itself.
    pub retirement: boot::Retirement,
    /// What tries the first new runner, where it is tried.
    pub canary_check: Option<String>,
    /// May a job reach the metadata service?
    pub job_metadata_access: boot::MetadataAccess,
    /// May a job use docker?
    pub job_docker_access: boot::DockerAccess,
    /// Is a job taken only once docker answers?
    pub wait_for_docker: bool,
    /// Variables for the runner and its jobs.
    pub environment: BTreeMap<String, String>,
}

/// Where a fleet's instances live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The stack makes a VPC of its own.
    NewVpc,
    /// Subnets that exist, all of one VPC.
    Subnets {
        vpc: String,
        /// At least one.
        subnets: Vec<SubnetId>,
    },
}

/// The hook that holds a new instance until its runner is registered.
pub const LAUNCH_HOOK: &str = "kiln-launch";
/// The hook that holds a leaving instance until its job is done.
pub const TERMINATION_HOOK: &str = "kiln-terminate";
/// The user the runner runs as; made by the image.
pub const RUNNER_USER: &str = "runner";
/// Where the image keeps the runner.
pub const RUNNER_DIRECTORY: &str = "/opt/actions-runner";

/// GitHub's own releases of actions/runner.
const DEFAULT_RELEASE_URL: &str = "https://github.com/actions/runner/releases/download";
/// The Node project's own builds for systems that its releases leave out, glibc 2.17 among them.
const DEFAULT_NODE_URL: &str = "https://unofficial-builds.nodejs.org/download/release";
/// The runner group every organization has.
const DEFAULT_RUNNER_GROUP: &str = "Default";
/// Auto Scaling gives up an instance that has been silent for so long: short, for a dead one holds its place.
const DEFAULT_HEARTBEAT_SECS: u32 = 300;
/// What GitHub gives a job by default, 6 hours, and within the hundred heartbeats that Auto Scaling gives an instance.
const DEFAULT_DRAIN_LIMIT_SECS: u32 = 6 * 3600;

/// Two minutes: jobs come in bursts, and EC2 bills a minute at least.
const DEFAULT_LINGER_SECS: u32 = 120;

/// Five minutes: a fault that passes by itself has passed, and a broken fleet boots its instances twelve times an hour.
const DEFAULT_REPLACE_PAUSE_SECS: u32 = 300;

/// The JSON schema of `kiln.toml`, pretty-printed, for editors.
pub fn json_schema() -> String {
    let mut schema = raw::schema();
    // The text must not depend on whether another crate turns on serde_json's `preserve_order`.
    schema.sort_all_objects();
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
    text.push('\n');
    text
}

impl Config {
    /// Parses and validates a `kiln.toml`; `file` is its name for messages.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with line, column, what was expected and a hint.
    pub fn from_toml(file: &str, text: &str) -> Result<Self, ConfigError> {
        Self::read(file, text, on_demand::IS_DEPLOYED)
    }

    /// The same, with on-demand fleets taken whether this version deploys them or not.
    ///
    /// # Errors
    /// As [`Config::from_toml`].
    #[doc(hidden)]
    pub fn from_toml_with_on_demand(file: &str, text: &str) -> Result<Self, ConfigError> {
        Self::read(file, text, true)
    }

    fn read(file: &str, text: &str, on_demand: bool) -> Result<Self, ConfigError> {
        let mut found = Findings::default();
        let refused = |found| Err(ConfigError::new(file, text, found));
        if text.len() > MOST_BYTES {
            found.push(
                Diagnostic::new(0..0, NotText::TooLong.to_string()).without_its_line().hint(NotText::TooLong.hint()),
            );
            return refused(found);
        }
        // Before anything is said of the text, for that might print one.
        secret::all_in(text).iter().for_each(|secret| found.push(secret::diagnose(secret)));
        if found.is_empty() {
            text::bare_return(text).into_iter().for_each(|diagnostic| found.push(diagnostic));
        }
        if !found.is_empty() {
            return refused(found);
        }
        let (mut document, mistakes) = DeTable::parse_recoverable(text);
        secret::look_through(document.get_ref(), &mut found);
        if !found.is_empty() {
            return refused(found);
        }
        mistakes.iter().for_each(|mistake| found.push_toml(mistake));
        if !found.is_empty() {
            if let Some(unclosed) = text::unclosed(text) {
                found.keep_before(unclosed.place());
                found.push(unclosed);
            }
            return refused(found);
        }
        shape::check(document.get_mut(), &raw::schema(), &mut found);
        let config = match raw::RawConfig::deserialize(toml::Deserializer::from(document)) {
            Ok(raw) => {
                if !on_demand {
                    on_demand::refuse(&raw, &mut found);
                }
                validate::validate(&raw, text, &mut found)
            }
            Err(error) => {
                found.push_toml(&error);
                None
            }
        };
        match config {
            Some(config) if found.is_empty() => Ok(config),
            _ => refused(found),
        }
    }

    /// What the name of everything of the organization's begins with: [`Organization::prefix`].
    pub fn prefix(&self) -> String {
        self.organization.prefix()
    }

    /// The stack with Image Builder's role, profile, bucket and log group; one for the organization.
    pub fn bake_stack(&self) -> String {
        format!("{}-bake", self.prefix())
    }

    /// The role of Image Builder's instances, and the profile that hands it to them. They are an account's, not a region's.
    pub fn bake_role(&self) -> String {
        format!("{}-{}", self.bake_stack(), self.region)
    }

    /// The stack with the controller of the on-demand fleets, and its group's name; one for the organization.
    pub fn controller_stack(&self) -> String {
        format!("{}-controller", self.prefix())
    }

    /// The on-demand fleets, by name.
    pub fn on_demand_fleets(&self) -> impl Iterator<Item = &Fleet> {
        self.fleets.values().filter(|fleet| fleet.on_demand.is_some())
    }

    /// The name of an on-demand fleet's scale set at GitHub. A name is taken once in a runner group, and two regions may have
    /// fleets of one name.
    pub fn scale_set(&self, fleet: &FleetName) -> String {
        format!("kiln-{fleet}-{}", self.region)
    }

    /// What an instance of an on-demand fleet finds in its user data.
    pub fn on_demand_config(&self, fleet: &Fleet, bucket: &str) -> boot::OnDemandConfig {
        boot::OnDemandConfig::new(
            fleet.name.clone(),
            bucket.to_owned(),
            self.region.clone(),
            self.runner_in_image(),
            boot::JobSettings {
                metadata_access: fleet.job_metadata_access,
                docker_access: fleet.job_docker_access,
                wait_for_docker: fleet.wait_for_docker,
                environment: fleet.environment.clone(),
            },
        )
    }

    fn runner_in_image(&self) -> boot::Runner {
        boot::Runner {
            version: self.runner.version.clone(),
            user: RUNNER_USER.to_owned(),
            directory: RUNNER_DIRECTORY.to_owned(),
        }
    }

    /// The stack with the VPC, for fleets that have no network of their own; one for the organization.
    pub fn network_stack(&self) -> String {
        format!("{}-network", self.prefix())
    }

    pub fn fleet_stack(&self, fleet: &FleetName) -> String {
        format!("{}-fleet-{fleet}", self.prefix())
    }

    /// What the names of all fleets' stacks begin with.
    pub fn fleet_stack_prefix(&self) -> String {
        format!("{}-fleet-", self.prefix())
    }

    /// The path below which all parameters of the organization's are.
    pub fn parameter_path(&self) -> String {
        format!("/{}", self.prefix())
    }

    /// A fleet's Auto Scaling group; the stack's name, so that BootConfig can hold it before the stack exists.
    pub fn group(&self, fleet: &FleetName) -> GroupName {
        self.fleet_stack(fleet).parse().expect("a stack name of letters, digits and hyphens is a group name")
    }

    /// The KMS alias of the App's key.
    pub fn key_alias(&self) -> String {
        format!("alias/{}-app-key", self.prefix())
    }

    /// The secret with the App's key.
    pub fn key_secret(&self) -> String {
        format!("{}/app-key", self.prefix())
    }

    /// The SSM parameter that records the newest tested AMI of an image.
    pub fn image_parameter(&self, image: &ImageName) -> String {
        format!("/{}/image/{image}", self.prefix())
    }

    /// The parameter that records one of a fleet's images: the `current` one, the `former`, the `rejected`.
    pub fn fleet_parameter(&self, fleet: &FleetName, which: &str) -> String {
        format!("/{}/fleet/{fleet}/{which}", self.prefix())
    }

    /// The name of every Image Builder resource of an image: `kiln-acme-image-al2023-x86-64`. It has nothing in it that
    /// Image Builder writes otherwise in an ARN (upper case, spaces, underscores), so that one name serves for all.
    pub fn image_name(&self, image: &ImageName) -> String {
        format!("{}{image}", self.image_prefix())
    }

    /// What the names of all images begin with.
    pub fn image_prefix(&self) -> String {
        format!("{}-image-", self.prefix())
    }

    /// The log group of all builds.
    pub fn image_log_group(&self) -> String {
        format!("/aws/imagebuilder/{}", self.prefix())
    }

    /// The image that a fleet runs.
    pub fn image_of(&self, fleet: &Fleet) -> &Image {
        self.images.get(&fleet.image).expect("a valid configuration has the image of each fleet")
    }

    /// The distinct key stores the fleets use.
    pub fn key_stores(&self) -> std::collections::BTreeSet<KeyStore> {
        self.fleets.values().map(|fleet| fleet.key_store).collect()
    }

    /// The key's reference as an instance of the fleet is told it.
    pub fn key_source(&self, store: KeyStore) -> boot::KeySource {
        match store {
            KeyStore::Kms => boot::KeySource::Kms(self.key_alias()),
            KeyStore::SecretsManager => boot::KeySource::SecretsManager(self.key_secret()),
        }
    }

    /// What an instance of the fleet is told at boot.
    pub fn boot_config(&self, fleet: &Fleet) -> boot::BootConfig {
        boot::BootConfig {
            version: boot::VERSION,
            organization: self.organization.clone(),
            fleet: fleet.name.clone(),
            github: self.github.clone(),
            app: boot::App { issuer: self.app.id.issuer(), installation_id: self.app.installation_id },
            key: self.key_source(fleet.key_store),
            registration: fleet.registration,
            labels: fleet.labels.clone(),
            runner_group: fleet.runner_group.clone(),
            runner: self.runner_in_image(),
            job_metadata_access: fleet.job_metadata_access,
            job_docker_access: fleet.job_docker_access,
            wait_for_docker: fleet.wait_for_docker,
            retirement: (fleet.retirement != boot::Retirement::default()).then_some(fleet.retirement),
            environment: fleet.environment.clone(),
            lifecycle: Some(boot::Lifecycle {
                group: self.group(&fleet.name),
                launch_hook: LAUNCH_HOOK.to_owned(),
                termination_hook: TERMINATION_HOOK.to_owned(),
                termination_heartbeat_timeout_secs: fleet.termination_heartbeat_timeout_secs,
                drain_timeout_secs: fleet.drain_timeout_secs,
                failed_boot_grace_secs: fleet.failed_boot_grace_secs,
            }),
        }
    }
}
