//! The interface between the commands and AWS, in the terms of Kiln's domain.

mod inventory;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use kiln_config::model::{
    AccountId, AmiId, Architecture, BaseImage, GroupName, InstanceId, KeyStore, KmsKeyArn, Region, Sha256,
};
use kiln_github::{AppKey, AppSigner};

pub use crate::keys::{HeldKey, KeyRecord, StoreContents, StoredKey};

pub use inventory::{Inventory, LastWords, Machine, OwnImage, OwnSnapshot, ShownState, TemplateVersion};

use crate::plan::Plan;

/// The result type of the ports.
pub type Result<T> = std::result::Result<T, CloudError>;

/// A call to AWS that did not succeed, after the SDK's own retries.
#[derive(Debug, thiserror::Error)]
#[error("{doing} in {region}")]
pub struct CloudError {
    /// The operation and its resource, as a lower-case fragment with the id: "describe stack `kiln-acme-bake`".
    pub doing: String,
    pub region: String,
    /// The kind of failure.
    pub kind: CloudErrorKind,
    /// The service's error: code, message and request id.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of failure, each of which an operator fixes in a different way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudErrorKind {
    /// No credentials were found, or they have expired.
    Credentials,
    /// The credentials are valid, but lack a permission.
    AccessDenied,
    /// The resource does not exist.
    NotFound,
    /// The resource already exists, or another caller is changing it.
    Conflict,
    /// AWS throttled the request, also after the retries.
    Throttled,
    /// The endpoint can't be reached (unknown region, no network).
    Unreachable,
    /// A quota is used up.
    Quota,
    /// AWS rejected the request as invalid.
    Invalid,
    /// A list has more pages than Kiln reads. An incomplete list is never returned as complete.
    TooLong,
    /// Anything else.
    Other,
}

/// Messages about the progress of a command, for people. Never data.
pub trait Progress: Send + Sync {
    /// The plan that will be carried out, or would be without `--dry-run`.
    fn plan(&self, plan: &Plan<String>) {
        self.say(&plan.to_string());
    }
    /// Step `number` (from 1) `of` the plan's steps begins. `text` is the plan's text of the step: one line, then details.
    fn step(&self, number: usize, of: usize, text: &str) {
        let _ = (number, of);
        self.say(text);
    }
    /// A line about something that happened. It stays on the screen.
    fn say(&self, line: &str);
    /// A warning: nothing failed, but a person should know it.
    fn warn(&self, line: &str) {
        self.say(line);
    }
    /// The state of a wait. On a terminal it replaces the previous state; elsewhere it is printed when it changes.
    fn state(&self, line: &str);
}

/// The answer to a request for confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// The user confirmed, now or in advance (`--yes`).
    Yes,
    /// The user declined.
    No,
    /// There is no terminal to ask on: a pipeline without `--yes`.
    NonInteractive,
}

/// Asks the user to confirm a step that can't be undone.
pub trait Consent: Send + Sync {
    /// Asks a yes-or-no question.
    fn ask(&self, question: &str) -> Confirmation;
}

/// The identity of the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// `aws`, `aws-cn`, `aws-us-gov`.
    pub partition: String,
    /// The 12-digit account.
    pub account: String,
    /// The principal's ARN.
    pub arn: String,
}

// ---------------------------------------------------------------------------------------------------------------------
// Images

/// An immutable Image Builder resource. Its version is derived from its content, so equal content has an equal version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceVersion {
    /// `[-_A-Za-z0-9 ]{3,128}`.
    pub name: String,
    /// `\d+.\d+.\d+`, nodes below 2^30.
    pub version: String,
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

/// A component to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Name and version.
    pub id: ResourceVersion,
    /// The YAML document, at most 16,000 characters.
    pub document: String,
}

/// A component's use in a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentUse {
    pub id: ResourceVersion,
    /// Values for its declared parameters. Plain text, logged by Image Builder: never a secret.
    pub parameters: BTreeMap<String, String>,
}

/// A recipe to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Name and version.
    pub id: ResourceVersion,
    /// The image it starts from.
    pub base: AmiId,
    /// The components, in the order in which they run.
    pub components: Vec<ComponentUse>,
    /// The root volume's size.
    pub volume_gib: u32,
    /// The KMS key of the root volume; `None` is the account's default key for EBS.
    pub kms_key: Option<KmsKeyArn>,
    /// The root device's name, `/dev/xvda` on Amazon Linux.
    pub root_device: String,
    /// User data for build instances. Kiln sets none; a recipe that somebody else made may have it.
    pub user_data: Option<String>,
}

/// An infrastructure configuration: where builds run. There is one for each organization and variant; it is updated in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Infrastructure {
    pub name: String,
    /// The instance profile's name.
    pub instance_profile: String,
    /// Image Builder uses one of these types, by availability.
    pub instance_types: Vec<String>,
    /// The subnet. Without one Image Builder takes the default VPC, which many accounts do not have.
    pub subnet: String,
    /// The security groups. Never empty: Image Builder would use the VPC's default group.
    pub security_groups: Vec<String>,
    /// The bucket and prefix of Image Builder's own logs.
    pub log_bucket: String,
    /// Tags on it and on the instances that it launches.
    pub tags: BTreeMap<String, String>,
    /// Do not terminate the instance of a failed build.
    pub keep_on_failure: bool,
}

/// A distribution configuration: what happens to the AMI. There is one for each organization and variant; it is updated in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    pub name: String,
    /// Must contain `{{ imagebuilder:buildDate }}`.
    pub ami_name: String,
    /// Tags on the AMI.
    pub ami_tags: BTreeMap<String, String>,
    /// Regions that get a copy.
    pub copy_to: Vec<Region>,
    /// Accounts that may launch from it and its copies.
    pub share_with: Vec<AccountId>,
    /// The KMS key of the AMI and, replicated to other regions, of its copies.
    pub kms_key: Option<KmsKeyArn>,
}

/// A build to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRequest {
    pub recipe: ResourceVersion,
    /// The infrastructure configuration's name.
    pub infrastructure: String,
    /// The distribution configuration's name.
    pub distribution: String,
    /// The log group that Image Builder writes the build's log to.
    pub log_group: String,
    /// Tags on the image.
    pub tags: BTreeMap<String, String>,
    /// The client token: a repeated request does not start a second build.
    pub token: String,
}

/// One build of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The ARN of the image build version, which identifies the build.
    pub arn: String,
    /// The state of the build.
    pub status: BuildStatus,
    /// The steps of its workflows, in order, as far as they have begun.
    pub steps: Vec<BuildStep>,
    /// The AMI's copies in other regions, when it is done.
    pub copies: BTreeMap<String, AmiId>,
}

/// The state of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildStatus {
    /// In progress; Image Builder's name of the state: `BUILDING`, `TESTING`…
    Running(String),
    /// Built and tested, with this AMI.
    Available(AmiId),
    /// Ended without an AMI.
    Failed {
        /// `FAILED` or `CANCELLED`…
        state: String,
        /// Phase, step and message, as far as Image Builder reports them.
        reason: String,
    },
}

/// A step of a build's workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildStep {
    pub name: String,
    /// `PENDING`, `RUNNING`, `COMPLETED`, `FAILED`…
    pub status: String,
    /// Image Builder's message.
    pub message: Option<String>,
    /// The instance that it launched or worked on.
    pub instance: Option<String>,
}

impl BuildStep {
    /// Whether the step failed.
    pub fn failed(&self) -> bool {
        matches!(self.status.as_str(), "FAILED" | "CANCELLED" | "TIMED_OUT")
    }
}

/// An AMI as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ami {
    pub id: AmiId,
    pub name: String,
    /// The account that it belongs to.
    pub owner: String,
    /// Its tags. Those of another account's image can't be seen.
    pub tags: BTreeMap<String, String>,
    /// `available`, or why not.
    pub state: String,
    /// `x86_64`, `arm64`.
    pub architecture: String,
    /// The name of its root device.
    pub root_device: String,
    /// The size of its root volume.
    pub root_gib: u32,
}

/// Image Builder, and what EC2 and SSM know of images.
pub trait Images: Send + Sync {
    /// The newest public AMI of an operating system.
    fn newest_base(&self, base: BaseImage, architecture: Architecture) -> impl Future<Output = Result<AmiId>> + Send;
    /// An AMI, if it exists.
    fn ami(&self, id: &AmiId) -> impl Future<Output = Result<Option<Ami>>> + Send;
    /// The document of exactly this version, if it exists.
    fn component(&self, id: &ResourceVersion) -> impl Future<Output = Result<Option<String>>> + Send;
    /// Creates a component. Succeeds if it already exists.
    fn create_component(
        &self,
        component: &Component,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Exactly this version of a recipe, if it exists.
    fn recipe(&self, id: &ResourceVersion) -> impl Future<Output = Result<Option<Recipe>>> + Send;
    /// Creates a recipe. Succeeds if it already exists.
    fn create_recipe(
        &self,
        recipe: &Recipe,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// The current infrastructure configuration of that name.
    fn infrastructure(&self, name: &str) -> impl Future<Output = Result<Option<Infrastructure>>> + Send;
    /// Creates or updates it.
    fn put_infrastructure(&self, wanted: &Infrastructure) -> impl Future<Output = Result<()>> + Send;
    /// The current distribution configuration of that name.
    fn distribution(&self, name: &str) -> impl Future<Output = Result<Option<Distribution>>> + Send;
    /// Creates or updates it.
    fn put_distribution(&self, wanted: &Distribution) -> impl Future<Output = Result<()>> + Send;
    /// The newest build of a recipe's image, if there ever was one. Its `steps` may be empty.
    fn newest_build(&self, recipe: &ResourceVersion) -> impl Future<Output = Result<Option<Build>>> + Send;
    /// Starts a build.
    fn start_build(&self, request: &BuildRequest) -> impl Future<Output = Result<Build>> + Send;
    /// A build with its steps.
    fn build(&self, arn: &str) -> impl Future<Output = Result<Build>> + Send;
    /// The recorded value of a parameter.
    fn recorded(&self, parameter: &str) -> impl Future<Output = Result<Option<AmiId>>> + Send;
    /// Records an AMI in a parameter (data type `aws:ec2:image`, which SSM itself validates).
    fn record(&self, parameter: &str, ami: &AmiId) -> impl Future<Output = Result<()>> + Send;
    /// Deletes a parameter. Succeeds if it does not exist.
    fn forget(&self, parameter: &str) -> impl Future<Output = Result<()>> + Send;
    /// Tags a copy and records it in a parameter, both in the copy's region.
    fn record_copy(
        &self,
        region: &Region,
        parameter: &str,
        ami: &AmiId,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Adds tags to an AMI and its snapshots. Equal tags are not a change.
    fn tag_ami(&self, id: &AmiId, tags: &BTreeMap<String, String>) -> impl Future<Output = Result<()>> + Send;
}

/// A small text object in S3 that several processes may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The content.
    pub text: String,
    /// Identifies this state of the object, for conditional writes.
    pub version: String,
    /// When it was written, by S3's clock.
    pub written: Option<SystemTime>,
}

/// Objects in S3.
pub trait ObjectStore: Send + Sync {
    /// Whether an object with that key exists.
    fn has_blob(&self, bucket: &str, key: &str) -> impl Future<Output = Result<bool>> + Send;
    /// Writes an object; S3 checks the digest.
    fn put_blob(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        sha256: &Sha256,
    ) -> impl Future<Output = Result<()>> + Send;
    /// A document, if it exists.
    fn document(&self, bucket: &str, key: &str) -> impl Future<Output = Result<Option<Document>>> + Send;
    /// Writes a document if it still has this version (`None`: if it does not exist). Returns the new version, or `None` if another
    /// process has changed the document.
    fn put_document(
        &self,
        bucket: &str,
        key: &str,
        text: &str,
        version: Option<&str>,
    ) -> impl Future<Output = Result<Option<String>>> + Send;
    /// Deletes every object of a bucket that keeps no versions; a bucket that is not there is no error.
    fn empty_bucket(&self, bucket: &str) -> impl Future<Output = Result<()>> + Send;
}

/// CloudWatch Logs.
pub trait Logs: Send + Sync {
    /// The last lines of a log stream, oldest first; empty if the stream does not exist.
    fn log_tail(&self, group: &str, stream: &str, lines: u32) -> impl Future<Output = Result<Vec<String>>> + Send;
}

// ---------------------------------------------------------------------------------------------------------------------
// Stacks

/// A CloudFormation stack in its current state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    pub name: String,
    /// `CREATE_COMPLETE`…
    pub status: String,
    /// Why, where the service says.
    pub reason: Option<String>,
    /// The text of the stack's template; `None` while the stack is in review.
    pub template: Option<String>,
    /// Its parameters' values.
    pub parameters: BTreeMap<String, String>,
    pub outputs: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
}

/// The desired state of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackRequest {
    pub name: String,
    /// The template's text.
    pub template: String,
    /// The value of every parameter. None is left to its default, so a comparison covers exactly what is sent.
    pub parameters: BTreeMap<String, String>,
    /// Tags, which CloudFormation adds to the stack's resources.
    pub tags: BTreeMap<String, String>,
}

/// A change set, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeSet {
    /// Its ARN.
    pub id: String,
    /// The stack it belongs to.
    pub stack: String,
    /// Empty if nothing changes; then the change set can't be executed.
    pub changes: Vec<ResourceChange>,
}

/// One resource's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceChange {
    /// `Add`, `Modify`, `Remove`…
    pub action: String,
    /// The logical id.
    pub resource: String,
    /// `AWS::EC2::LaunchTemplate`…
    pub kind: String,
    /// Whether the resource will be replaced. `Conditional` does not count: it means that a value is known only during execution.
    pub replacement: bool,
    /// The causes of the change, such as property names.
    pub details: Vec<String>,
}

/// A stack's event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackEvent {
    /// The event's id, unique in the stack.
    pub id: String,
    /// The logical id.
    pub resource: String,
    /// The resource's type.
    pub kind: String,
    /// `CREATE_IN_PROGRESS`…
    pub status: String,
    /// Why, where the service says.
    pub reason: Option<String>,
}

/// CloudFormation.
pub trait Stacks: Send + Sync {
    /// The stack, if it exists. A deleted stack does not exist.
    fn stack(&self, name: &str) -> impl Future<Output = Result<Option<Stack>>> + Send;
    /// Creates a change set, and the stack (in review) if it does not exist. Waits, with a timeout, until the change set is complete.
    fn change_set(&self, request: &StackRequest) -> impl Future<Output = Result<ChangeSet>> + Send;
    /// Executes a change set. Does not wait.
    fn execute(&self, change_set: &ChangeSet) -> impl Future<Output = Result<()>> + Send;
    /// Deletes a change set that will not be executed.
    fn discard(&self, change_set: &ChangeSet) -> impl Future<Output = Result<()>> + Send;
    /// The stack's newest events, oldest first, at most the last 100.
    fn events(&self, stack: &str) -> impl Future<Output = Result<Vec<StackEvent>>> + Send;
    /// Deletes a stack. Does not wait.
    fn delete_stack(&self, name: &str) -> impl Future<Output = Result<()>> + Send;
}

// ---------------------------------------------------------------------------------------------------------------------
// Groups

/// A pinned version of a launch template. It is a number, never `$Latest`, to which Auto Scaling can't roll back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchTemplateVersion {
    /// `lt-…`
    pub id: String,
    /// The version's number in decimal.
    pub version: String,
}

/// An Auto Scaling group in its current state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: GroupName,
    /// The launch template version of new instances.
    pub launch_template: Option<LaunchTemplateVersion>,
    /// Minimum size.
    pub min: u32,
    /// Maximum size.
    pub max: u32,
    /// Desired capacity.
    pub desired: u32,
    pub instances: Vec<GroupInstance>,
    /// The suspended processes.
    pub suspended: Vec<Suspension>,
}

/// A suspended process of a group. AWS suspends processes after a day of failed launches; people can, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspension {
    /// `Launch`, `Terminate`, `InstanceRefresh`…
    pub process: String,
    /// Auto Scaling's reason.
    pub reason: String,
}

/// An instance of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInstance {
    pub id: InstanceId,
    /// `InService`, `Terminating:Wait`…
    pub state: String,
    /// Auto Scaling's health status of the instance.
    pub healthy: bool,
    /// The launch template version that it was launched from.
    pub launch_template: Option<LaunchTemplateVersion>,
}

/// An instance refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    pub id: String,
    pub status: RefreshStatus,
    /// Percentage of the refresh that is complete, 0 to 100.
    pub percent: u32,
    /// Instances still to be updated.
    pub remaining: u32,
    /// Why, where the service says.
    pub reason: Option<String>,
    /// The version that the refresh rolls to.
    pub to: Option<LaunchTemplateVersion>,
    /// The refresh has a checkpoint, for a canary.
    pub stops: bool,
}

/// The state of a refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefreshStatus {
    /// In progress; Auto Scaling's name of the status: Pending, InProgress, Baking, Cancelling, RollbackInProgress.
    Running(String),
    /// Successful.
    Successful,
    /// Ended without success; Auto Scaling's name of the status: Failed, Cancelled, RollbackFailed, RollbackSuccessful.
    Ended(String),
}

/// How a refresh replaces instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshPreferences {
    /// Percentage of the desired capacity that stays healthy.
    pub min_healthy_percent: u32,
    /// Percentage of the desired capacity; above 100 means launch before terminate.
    pub max_healthy_percent: u32,
    /// How long a new instance warms up before it counts as healthy.
    pub instance_warmup: Duration,
    /// The checkpoint, for a canary.
    pub stop: Option<RefreshStop>,
}

/// A checkpoint of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshStop {
    /// The percentage of new instances at which the refresh pauses. 100 is after all of them, but before the refresh is done.
    pub percent: u32,
    /// How long the refresh pauses, unless it is cancelled or rolled back. At most 48 h.
    pub pause: Duration,
}

/// The launch of an instance, from the group's scaling activities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The activity's id.
    pub id: String,
    /// The instance, if one was launched.
    pub instance: Option<InstanceId>,
    /// The result of the launch.
    pub outcome: LaunchOutcome,
}

/// The result of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaunchOutcome {
    /// The launch is in progress.
    UnderWay,
    /// The instance came into service.
    Succeeded,
    /// The instance did not come into service, for this reason.
    Failed(String),
}

/// Auto Scaling.
pub trait Groups: Send + Sync {
    /// The group, if it exists.
    fn group(&self, name: &GroupName) -> impl Future<Output = Result<Option<Group>>> + Send;
    /// The launches among the group's last 100 scaling activities, newest first.
    fn launches(&self, name: &GroupName) -> impl Future<Output = Result<Vec<Launch>>> + Send;
    /// The group's newest refresh, if there ever was one.
    fn newest_refresh(&self, name: &GroupName) -> impl Future<Output = Result<Option<Refresh>>> + Send;
    /// Starts a refresh to a pinned version, with automatic rollback and skip matching. Returns its id.
    fn start_refresh(
        &self,
        name: &GroupName,
        to: &LaunchTemplateVersion,
        preferences: &RefreshPreferences,
    ) -> impl Future<Output = Result<String>> + Send;
    /// Cancels the running refresh. Instances stay as they are. Succeeds if no refresh runs.
    fn cancel_refresh(&self, name: &GroupName) -> impl Future<Output = Result<()>> + Send;
    /// Rolls the running refresh back. Returns false if no refresh runs.
    fn roll_back_refresh(&self, name: &GroupName) -> impl Future<Output = Result<bool>> + Send;
    /// Sets the group's minimum, maximum and desired capacity to 0. Instances terminate through their termination hooks. Does not wait.
    fn scale_to_zero(&self, name: &GroupName) -> impl Future<Output = Result<()>> + Send;
    /// Force-deletes the group: instances terminate without their lifecycle hooks. Succeeds if the group does not exist. Does not wait.
    fn abandon(&self, name: &GroupName) -> impl Future<Output = Result<()>> + Send;
    /// A refresh by id.
    fn refresh(&self, name: &GroupName, id: &str) -> impl Future<Output = Result<Refresh>> + Send;
}

// ---------------------------------------------------------------------------------------------------------------------
// Keys

/// Names of the App's key in the stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyNames {
    /// `alias/…`
    pub alias: String,
    /// The secret's name.
    pub secret: String,
    /// The tags of kiln.toml, for new keys and secrets.
    pub tags: BTreeMap<String, String>,
}

/// The stores of the App's private key.
pub trait Keys: Send + Sync {
    /// The key in use (the alias's target; the secret's `AWSCURRENT`), if there is one that can sign.
    fn current_key(&self, names: &KeyNames, store: KeyStore) -> impl Future<Output = Result<Option<StoredKey>>> + Send;
    /// Every key of the App in the store.
    fn contents(&self, names: &KeyNames, store: KeyStore) -> impl Future<Output = Result<StoreContents>> + Send;
    /// Stores a key next to the current one, not yet used, with a record. Completes a key that an interrupted run left unfinished.
    fn stage_key(
        &self,
        names: &KeyNames,
        store: KeyStore,
        key: &AppKey,
        record: &KeyRecord,
    ) -> impl Future<Output = Result<StoredKey>> + Send;
    /// Makes a stored key the current one, and `former`, with its record, the previous one. At every moment the current key is one of
    /// these two.
    fn promote_key(
        &self,
        names: &KeyNames,
        key: &StoredKey,
        former: Option<&HeldKey>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Makes the previous key the current one again. `from` is the current key; its record is written first.
    fn roll_back_key(&self, names: &KeyNames, to: &HeldKey, from: &HeldKey) -> impl Future<Output = Result<()>> + Send;
    /// Replaces the record of a key.
    fn record_key(
        &self,
        names: &KeyNames,
        key: &StoredKey,
        record: &KeyRecord,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Deletes a key that is not the current one, or schedules its deletion.
    fn retire_key(&self, names: &KeyNames, key: &StoredKey) -> impl Future<Output = Result<()>> + Send;
    /// Deletes all keys of the App from a store that nobody uses, or schedules their deletion.
    fn retire_store(&self, names: &KeyNames, store: KeyStore) -> impl Future<Output = Result<()>> + Send;
    /// A signer with exactly this key.
    fn key_signer(&self, names: &KeyNames, key: &StoredKey) -> Box<dyn AppSigner>;
    /// A signer with the current key (the alias, or `AWSCURRENT`), like an instance's.
    fn current_signer(&self, names: &KeyNames, store: KeyStore) -> Box<dyn AppSigner>;
}

/// The identity of the credentials. Every command asks for it first, so that missing credentials show at once.
pub trait Identity: Send + Sync {
    /// `sts:GetCallerIdentity`.
    fn caller(&self) -> impl Future<Output = Result<Caller>> + Send;
}

/// All of AWS.
pub trait Cloud: Identity + Images + ObjectStore + Logs + Stacks + Groups + Keys + Inventory {}
impl<T: Identity + Images + ObjectStore + Logs + Stacks + Groups + Keys + Inventory> Cloud for T {}

// ---------------------------------------------------------------------------------------------------------------------
// The account

/// An IAM action on a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct IamAction {
    /// `kms:Sign`.
    pub action: String,
    /// An ARN, or `*` for actions without resource-level permissions.
    pub resource: String,
    /// The context keys of the request and their values, which conditions in policies check.
    pub context: &'static [(&'static str, &'static str)],
}

/// An instance type, as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceTypeFacts {
    /// `m6i.large`.
    pub name: String,
    /// The number of vCPUs, the unit of EC2's quotas.
    pub vcpus: u32,
    /// `x86_64`, `arm64`.
    pub architectures: Vec<String>,
}

/// How a subnet's instances reach the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Through a NAT gateway, a transit gateway, a peering, an appliance.
    Through,
    /// Through an internet gateway, which works only for instances with a public address.
    Gateway {
        /// Whether the subnet gives its instances a public address.
        public: bool,
    },
    /// Not at all: the route table has no route to `0.0.0.0/0`.
    None,
}

/// A subnet, as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetFacts {
    pub id: String,
    pub vpc: String,
    /// Its availability zone.
    pub zone: String,
    /// How its instances reach the internet.
    pub way_out: Egress,
}

/// Permissions, quotas and existing resources of the account that Kiln does not manage. Read-only.
pub trait Account: Send + Sync {
    /// The permissions among these that the caller lacks, from IAM's policy simulation. The root user lacks none.
    fn lacking(&self, rights: &[IamAction]) -> impl Future<Output = Result<Vec<IamAction>>> + Send;
    /// The types among these that the region offers.
    fn instance_types(&self, names: &[String]) -> impl Future<Output = Result<Vec<InstanceTypeFacts>>> + Send;
    /// The availability zones of the region that offer each of these types.
    fn zones_of(&self, names: &[String]) -> impl Future<Output = Result<BTreeMap<String, BTreeSet<String>>>> + Send;
    /// The state of a KMS key, such as `Enabled`; `None` if no key has that ARN.
    fn key_state(&self, arn: &str) -> impl Future<Output = Result<Option<String>>> + Send;
    /// The types among these that an availability zone offers, or the region if `zone` is `None`.
    fn offered_types(
        &self,
        names: &[String],
        zone: Option<&str>,
    ) -> impl Future<Output = Result<BTreeSet<String>>> + Send;
    /// The subnets among these that exist.
    fn subnets(&self, ids: &[String]) -> impl Future<Output = Result<Vec<SubnetFacts>>> + Send;
    /// The EC2 quota with that code, in vCPUs.
    fn vcpu_quota(&self, code: &str) -> impl Future<Output = Result<u32>> + Send;
}
