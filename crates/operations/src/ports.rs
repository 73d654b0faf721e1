//! What the commands ask of AWS, in the domain's verbs.

mod inventory;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use kiln_config::model::{
    AccountId, AmiId, Architecture, BaseImage, GroupName, InstanceId, KeyStore, KmsKeyArn, Region, Sha256,
};
use kiln_github::{AppKey, AppSigner};

pub use crate::keys::{HeldKey, KeyRecord, StoreContents, StoredKey};

pub use inventory::{Inventory, LastWords, Machine, OwnImage, OwnSnapshot, TemplateVersion};

use crate::plan::Plan;

/// The ports return this.
pub type Result<T> = std::result::Result<T, CloudError>;

/// A call to AWS that did not succeed, after the SDK's own retries.
#[derive(Debug, thiserror::Error)]
#[error("{doing} in {region}")]
pub struct CloudError {
    /// What was being done to what, as a lower-case fragment with the id: "describe stack `kiln-acme-bake`".
    pub doing: String,
    /// The region.
    pub region: String,
    /// What kind of failure it was.
    pub kind: CloudErrorKind,
    /// The service's own words: code, message and request id.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of failure that an operator mends in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudErrorKind {
    /// No credentials were found, or they have expired.
    Credentials,
    /// The credentials are good, the permission is missing.
    AccessDenied,
    /// What was named does not exist.
    NotFound,
    /// It exists already, or is being changed by someone else.
    Conflict,
    /// AWS asked to slow down, and still did after the retries.
    Throttled,
    /// No connection to the endpoint (no such region, no network).
    Unreachable,
    /// A quota is used up.
    Quota,
    /// The request was refused as invalid.
    Invalid,
    /// A list has more pages than are read. What was read is never given as the whole.
    TooLong,
    /// Anything else.
    Other,
}

/// A step's account of what it is doing, for the person watching. Never data.
pub trait Progress: Send + Sync {
    /// What will be done, or would be in a dry run.
    fn plan(&self, plan: &Plan<String>) {
        self.say(&plan.to_string());
    }
    /// A step of a plan begins: the `number`th, from one, `of` so many. The text is the plan's own, details below its line.
    fn step(&self, number: usize, of: usize, text: &str) {
        let _ = (number, of);
        self.say(text);
    }
    /// Something happened; one line, kept.
    fn say(&self, line: &str);
    /// What a person should know though nothing failed.
    fn warn(&self, line: &str) {
        self.say(line);
    }
    /// The state of a wait; replaces the one before it on a terminal, printed when changed elsewhere.
    fn state(&self, line: &str);
}

/// What became of a question to the person who runs a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consented {
    /// They agreed, now or beforehand (`--yes`).
    Yes,
    /// They refused.
    No,
    /// Nobody is there to be asked: a pipeline without `--yes`.
    NobodyThere,
}

/// The person who runs a command, asked before something that can't be taken back.
pub trait Consent: Send + Sync {
    /// Asks a question that a "yes" or "no" answers.
    fn ask(&self, question: &str) -> Consented;
}

/// Who the credentials belong to.
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

/// An immutable Image Builder resource: its version is derived from its content, so that an equal one is the same one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Versioned {
    /// `[-_A-Za-z0-9 ]{3,128}`.
    pub name: String,
    /// `\d+.\d+.\d+`, nodes below 2^30.
    pub version: String,
}

impl fmt::Display for Versioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

/// A component to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Name and version.
    pub id: Versioned,
    /// The YAML document, at most 16,000 characters.
    pub document: String,
    /// `Amazon Linux 2`, `Amazon Linux 2023`.
    pub supported_os: Vec<String>,
}

/// A component's use in a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentUse {
    /// Which.
    pub id: Versioned,
    /// Values for its declared parameters. Plain text, logged by Image Builder: never a secret.
    pub parameters: BTreeMap<String, String>,
}

/// A recipe to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Name and version.
    pub id: Versioned,
    /// The image it starts from.
    pub base: AmiId,
    /// In order.
    pub components: Vec<ComponentUse>,
    /// The root volume's size.
    pub volume_gib: u32,
    /// What encrypts it; the account's own key for EBS when absent.
    pub kms_key: Option<KmsKeyArn>,
    /// The root device's name, `/dev/xvda` on Amazon Linux.
    pub root_device: String,
    /// A script of its own that instances run at their launch; Kiln sends none. Present in a recipe that somebody else made.
    pub user_data: Option<String>,
}

/// Where builds run. One for the organization and variant; updated in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Infrastructure {
    /// Its name.
    pub name: String,
    /// The instance profile's name.
    pub instance_profile: String,
    /// Image Builder picks one of them by availability.
    pub instance_types: Vec<String>,
    /// The subnet. Without one Image Builder takes the default VPC, which many accounts do not have.
    pub subnet: String,
    /// The security groups; never empty, or it would be the VPC's default one.
    pub security_groups: Vec<String>,
    /// The bucket and prefix of Image Builder's own logs.
    pub log_bucket: String,
    /// Tags on it and on the instances that it launches.
    pub tags: BTreeMap<String, String>,
    /// An instance on which a build fails is not terminated.
    pub keep_on_failure: bool,
}

/// What becomes of the AMI. One for the organization and variant; updated in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Its name.
    pub name: String,
    /// Must contain `{{ imagebuilder:buildDate }}`.
    pub ami_name: String,
    /// Tags on the AMI.
    pub ami_tags: BTreeMap<String, String>,
    /// Regions that get a copy.
    pub copy_to: Vec<Region>,
    /// Accounts that may launch from it and its copies.
    pub share_with: Vec<AccountId>,
    /// What encrypts it and, replicated, its copies.
    pub kms_key: Option<KmsKeyArn>,
}

/// A build to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRequest {
    /// The recipe.
    pub recipe: Versioned,
    /// The infrastructure configuration's name.
    pub infrastructure: String,
    /// The distribution configuration's name.
    pub distribution: String,
    /// The log group that Image Builder writes the build's log to.
    pub log_group: String,
    /// Tags on the image.
    pub tags: BTreeMap<String, String>,
    /// Makes a repeated start the same one.
    pub token: String,
}

/// One build of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The image build version's ARN: the handle to wait on.
    pub arn: String,
    /// How far it is.
    pub status: BuildStatus,
    /// The steps of its workflows, in order, as far as they have begun.
    pub steps: Vec<BuildStep>,
    /// The AMI's copies in other regions, when it is done.
    pub copies: BTreeMap<String, AmiId>,
}

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildStatus {
    /// Not at its end; the service's word for the state: `BUILDING`, `TESTING`…
    Running(String),
    /// Done, tested, with an AMI.
    Available(AmiId),
    /// Ended without an AMI.
    Failed {
        /// `FAILED` or `CANCELLED`…
        state: String,
        /// Phase, step and message as far as the service tells.
        reason: String,
    },
}

/// A step of a build's workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildStep {
    /// Its name.
    pub name: String,
    /// `PENDING`, `RUNNING`, `COMPLETED`, `FAILED`…
    pub status: String,
    /// What the service says of it.
    pub message: Option<String>,
    /// The instance that it launched or worked on.
    pub instance: Option<String>,
}

impl BuildStep {
    /// Did it end badly?
    pub fn failed(&self) -> bool {
        matches!(self.status.as_str(), "FAILED" | "CANCELLED" | "TIMED_OUT")
    }
}

/// An AMI as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ami {
    /// Its id.
    pub id: AmiId,
    /// Its name.
    pub name: String,
    /// The account that it belongs to.
    pub owner: String,
    /// Its tags. Those of another account's image can't be seen.
    pub tags: BTreeMap<String, String>,
    /// `available`, or why not.
    pub state: String,
}

/// Image Builder, and what EC2 and SSM know of images.
pub trait Images: Send + Sync {
    /// The newest public AMI of an operating system.
    fn newest_base(&self, base: BaseImage, architecture: Architecture) -> impl Future<Output = Result<AmiId>> + Send;
    /// An AMI, if it exists.
    fn ami(&self, id: &AmiId) -> impl Future<Output = Result<Option<Ami>>> + Send;
    /// The document of this very version, if there is one.
    fn component(&self, id: &Versioned) -> impl Future<Output = Result<Option<String>>> + Send;
    /// Makes a component; one that exists already is no error.
    fn create_component(
        &self,
        component: &Component,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// This very version, if there is one.
    fn recipe(&self, id: &Versioned) -> impl Future<Output = Result<Option<Recipe>>> + Send;
    /// Makes a recipe; one that exists already is no error.
    fn create_recipe(
        &self,
        recipe: &Recipe,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// The infrastructure configuration of that name, as it stands.
    fn infrastructure(&self, name: &str) -> impl Future<Output = Result<Option<Infrastructure>>> + Send;
    /// Creates or updates it.
    fn put_infrastructure(&self, wanted: &Infrastructure) -> impl Future<Output = Result<()>> + Send;
    /// The distribution configuration of that name, as it stands.
    fn distribution(&self, name: &str) -> impl Future<Output = Result<Option<Distribution>>> + Send;
    /// Creates or updates it.
    fn put_distribution(&self, wanted: &Distribution) -> impl Future<Output = Result<()>> + Send;
    /// The newest build of a recipe's image, if there ever was one. Its `steps` may be empty.
    fn newest_build(&self, recipe: &Versioned) -> impl Future<Output = Result<Option<Build>>> + Send;
    /// Starts a build.
    fn start_build(&self, request: &BuildRequest) -> impl Future<Output = Result<Build>> + Send;
    /// A build with its steps.
    fn build(&self, arn: &str) -> impl Future<Output = Result<Build>> + Send;
    /// The recorded value of a parameter.
    fn recorded(&self, parameter: &str) -> impl Future<Output = Result<Option<AmiId>>> + Send;
    /// Records an AMI in a parameter (data type `aws:ec2:image`, which SSM itself validates).
    fn record(&self, parameter: &str, ami: &AmiId) -> impl Future<Output = Result<()>> + Send;
    /// Removes a parameter; one that is not there is no error.
    fn forget(&self, parameter: &str) -> impl Future<Output = Result<()>> + Send;
    /// Tags a copy and records it in a parameter, both in the copy's region.
    fn record_copy(
        &self,
        region: &Region,
        parameter: &str,
        ami: &AmiId,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Adds tags to an AMI and its snapshots; equal ones are no change.
    fn tag_ami(&self, id: &AmiId, tags: &BTreeMap<String, String>) -> impl Future<Output = Result<()>> + Send;
}

/// A small text in S3 that several may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it says.
    pub text: String,
    /// Of which state of it that is.
    pub version: String,
    /// When it was written, by S3's clock.
    pub written: Option<SystemTime>,
}

/// Objects in S3.
pub trait Blobs: Send + Sync {
    /// Is there an object of that key?
    fn has_blob(&self, bucket: &str, key: &str) -> impl Future<Output = Result<bool>> + Send;
    /// Puts one; S3 checks the digest.
    fn put_blob(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        sha256: &Sha256,
    ) -> impl Future<Output = Result<()>> + Send;
    /// A document, if it exists.
    fn document(&self, bucket: &str, key: &str) -> impl Future<Output = Result<Option<Document>>> + Send;
    /// Writes a document if it still is in this version (`None`: not there); its new version, or `None` where someone
    /// else has changed it.
    fn put_document(
        &self,
        bucket: &str,
        key: &str,
        text: &str,
        version: Option<&str>,
    ) -> impl Future<Output = Result<Option<String>>> + Send;
}

/// CloudWatch Logs.
pub trait Logs: Send + Sync {
    /// The last lines of a stream, oldest first; none when there is no such stream.
    fn log_tail(&self, group: &str, stream: &str, lines: u32) -> impl Future<Output = Result<Vec<String>>> + Send;
}

// ---------------------------------------------------------------------------------------------------------------------
// Stacks

/// A CloudFormation stack as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// `CREATE_COMPLETE`…
    pub status: String,
    /// Why, where the service says.
    pub reason: Option<String>,
    /// The template it was last given, as given; absent while in review.
    pub template: Option<String>,
    /// Its parameters' values.
    pub parameters: BTreeMap<String, String>,
    /// Its outputs.
    pub outputs: BTreeMap<String, String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A stack's wanted state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackRequest {
    /// Its name.
    pub name: String,
    /// The template's text.
    pub template: String,
    /// Every parameter's value; none is left to a default, so that what is compared is what is sent.
    pub parameters: BTreeMap<String, String>,
    /// Tags, which CloudFormation puts on what it makes.
    pub tags: BTreeMap<String, String>,
}

/// A change set, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeSet {
    /// Its ARN.
    pub id: String,
    /// The stack it belongs to.
    pub stack: String,
    /// Nothing to change makes it empty; it can't be executed then.
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
    /// Will it be replaced? `Conditional` does not count: it stands for values that are known only once others are made.
    pub replacement: bool,
    /// What causes it, such as property names.
    pub details: Vec<String>,
}

/// A stack's event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackEvent {
    /// Its id, unique in the stack.
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
    /// The stack, if it exists. A deleted one does not.
    fn stack(&self, name: &str) -> impl Future<Output = Result<Option<Stack>>> + Send;
    /// Makes a change set (creating the stack in review where there is none), waits until it is described. Bounded.
    fn change_set(&self, request: &StackRequest) -> impl Future<Output = Result<ChangeSet>> + Send;
    /// Executes it. Does not wait.
    fn execute(&self, change_set: &ChangeSet) -> impl Future<Output = Result<()>> + Send;
    /// Deletes a change set that is not to be executed.
    fn discard(&self, change_set: &ChangeSet) -> impl Future<Output = Result<()>> + Send;
    /// The stack's newest events, oldest first, at most the last 100.
    fn events(&self, stack: &str) -> impl Future<Output = Result<Vec<StackEvent>>> + Send;
    /// Deletes a stack. Does not wait.
    fn delete_stack(&self, name: &str) -> impl Future<Output = Result<()>> + Send;
}

// ---------------------------------------------------------------------------------------------------------------------
// Groups

/// A pinned version of a launch template: a number, never `$Latest`, or Auto Scaling can't roll back to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchTemplateVersion {
    /// `lt-…`
    pub id: String,
    /// The version's number in decimal.
    pub version: String,
}

/// An Auto Scaling group as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// What new instances are launched from.
    pub launch_template: Option<LaunchTemplateVersion>,
    /// Bounds and wish.
    pub min: u32,
    /// Bounds and wish.
    pub max: u32,
    /// Bounds and wish.
    pub desired: u32,
    /// Its instances.
    pub instances: Vec<GroupInstance>,
    /// Its processes that are suspended.
    pub suspended: Vec<Suspension>,
}

/// A process of a group that is suspended, by AWS after a day of failed launches, or by somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspension {
    /// `Launch`, `Terminate`, `InstanceRefresh`…
    pub process: String,
    /// Why, in the service's words.
    pub reason: String,
}

/// An instance of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInstance {
    /// Its id.
    pub id: InstanceId,
    /// `InService`, `Terminating:Wait`…
    pub state: String,
    /// As Auto Scaling sees it.
    pub healthy: bool,
    /// What it was launched from.
    pub launch_template: Option<LaunchTemplateVersion>,
}

/// An instance refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// Its id.
    pub id: String,
    /// How far.
    pub status: RefreshStatus,
    /// 0 to 100.
    pub percent: u32,
    /// Instances still to be updated.
    pub remaining: u32,
    /// Why, where the service says.
    pub reason: Option<String>,
    /// What it rolls to.
    pub to: Option<LaunchTemplateVersion>,
    /// It stops on its way, for a canary to be tried.
    pub stops: bool,
}

/// How far a refresh is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefreshStatus {
    /// Pending, InProgress, Baking; Cancelling and RollbackInProgress too: not at its end. The service's word.
    Running(String),
    /// Successful.
    Successful,
    /// Failed, Cancelled, RollbackFailed, RollbackSuccessful. The service's word.
    Ended(String),
}

/// How a refresh replaces instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshPreferences {
    /// Percent of the desired capacity that stays healthy.
    pub min_healthy_percent: u32,
    /// Above 100: launch before terminating.
    pub max_healthy_percent: u32,
    /// How long a new instance is given before it counts.
    pub instance_warmup: Duration,
    /// Where it stops, for a canary to be tried.
    pub stop: Option<RefreshStop>,
}

/// A refresh's stop on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshStop {
    /// Once so many percent of the instances are new; 100 is after all of them, before the refresh counts as done.
    pub percent: u32,
    /// How long, unless it is cancelled or rolled back meanwhile. 48 h at most.
    pub pause: Duration,
}

/// A launch of one of a group's instances, as the group's activities have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The activity's id.
    pub id: String,
    /// The instance, where it came to one.
    pub instance: Option<InstanceId>,
    /// How it ended.
    pub outcome: LaunchOutcome,
}

/// How a launch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaunchOutcome {
    /// It has not.
    UnderWay,
    /// The instance came into service.
    Succeeded,
    /// It did not, for this reason.
    Failed(String),
}

/// Auto Scaling.
pub trait Groups: Send + Sync {
    /// The group, if it exists.
    fn group(&self, name: &GroupName) -> impl Future<Output = Result<Option<Group>>> + Send;
    /// The group's launches, the newest first, as far back as the last hundred of its activities go.
    fn launches(&self, name: &GroupName) -> impl Future<Output = Result<Vec<Launch>>> + Send;
    /// The group's newest refresh, if there ever was one.
    fn newest_refresh(&self, name: &GroupName) -> impl Future<Output = Result<Option<Refresh>>> + Send;
    /// Starts a refresh to a pinned version, with automatic rollback and skipping instances that match; returns its id.
    fn start_refresh(
        &self,
        name: &GroupName,
        to: &LaunchTemplateVersion,
        preferences: &RefreshPreferences,
    ) -> impl Future<Output = Result<String>> + Send;
    /// Ends the refresh that runs where it is; instances stay as they are. None running is no error.
    fn cancel_refresh(&self, name: &GroupName) -> impl Future<Output = Result<()>> + Send;
    /// Ends the refresh that runs and takes back what it did. Is false where none runs.
    fn roll_back_refresh(&self, name: &GroupName) -> impl Future<Output = Result<bool>> + Send;
    /// Sets the group's bounds and wish to nothing; its instances leave through their termination hooks. Does not wait.
    fn scale_to_zero(&self, name: &GroupName) -> impl Future<Output = Result<()>> + Send;
    /// Deletes the group with its instances, without their hooks; one that is gone is no error. Does not wait.
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
    /// kiln.toml's tags, for whatever is made.
    pub tags: BTreeMap<String, String>,
}

/// The stores of the App's private key.
pub trait Keys: Send + Sync {
    /// The key in use (the alias's target; the secret's `AWSCURRENT`), if there is one that can sign.
    fn current_key(&self, names: &KeyNames, store: KeyStore) -> impl Future<Output = Result<Option<StoredKey>>> + Send;
    /// Every key of the App in the store.
    fn contents(&self, names: &KeyNames, store: KeyStore) -> impl Future<Output = Result<StoreContents>> + Send;
    /// Stores a key beside the current one, unused as yet, with a record. Takes up what an interrupted run left half-made.
    fn stage_key(
        &self,
        names: &KeyNames,
        store: KeyStore,
        key: &AppKey,
        record: &KeyRecord,
    ) -> impl Future<Output = Result<StoredKey>> + Send;
    /// Makes a key of the store the current one, and what served before, with the record given here, the previous one.
    /// At no moment is there a current key that is neither.
    fn promote_key(
        &self,
        names: &KeyNames,
        key: &StoredKey,
        former: Option<&HeldKey>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Makes the previous key the current one again. `from` is what is current; its record, given here, is written first.
    fn roll_back_key(&self, names: &KeyNames, to: &HeldKey, from: &HeldKey) -> impl Future<Output = Result<()>> + Send;
    /// Writes a record beside the current key, in place of the one before.
    fn record_key(
        &self,
        names: &KeyNames,
        key: &StoredKey,
        record: &KeyRecord,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Lets the store delete a key that is not the current one.
    fn retire_key(&self, names: &KeyNames, key: &StoredKey) -> impl Future<Output = Result<()>> + Send;
    /// Lets a store that nobody uses delete all it has of the App's keys.
    fn retire_store(&self, names: &KeyNames, store: KeyStore) -> impl Future<Output = Result<()>> + Send;
    /// Signs with that very key, as an instance would.
    fn key_signer(&self, names: &KeyNames, key: &StoredKey) -> Box<dyn AppSigner>;
    /// Signs with whichever key is current: by the alias, by `AWSCURRENT`.
    fn current_signer(&self, names: &KeyNames, store: KeyStore) -> Box<dyn AppSigner>;
}

/// Who the credentials belong to; the first call of every command, so that missing credentials show at once.
pub trait Identity: Send + Sync {
    /// `sts:GetCallerIdentity`.
    fn caller(&self) -> impl Future<Output = Result<Caller>> + Send;
}

/// All of AWS.
pub trait Cloud: Identity + Images + Blobs + Logs + Stacks + Groups + Keys + Inventory {}
impl<T: Identity + Images + Blobs + Logs + Stacks + Groups + Keys + Inventory> Cloud for T {}

// ---------------------------------------------------------------------------------------------------------------------
// The account

/// An action on a resource, as IAM names them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// `kms:Sign`.
    pub action: String,
    /// An ARN, or `*` for actions that know no resource.
    pub resource: String,
    /// What the request holds beside them, by IAM's name of it: conditions go by it.
    pub context: &'static [(&'static str, &'static str)],
}

/// What EC2 says of an instance type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceTypeFacts {
    /// `m6i.large`.
    pub name: String,
    /// Its virtual processors, by which EC2's quotas count.
    pub vcpus: u32,
    /// `x86_64`, `arm64`.
    pub architectures: Vec<String>,
}

/// How a subnet's instances reach the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WayOut {
    /// Through a NAT gateway, a transit gateway, a peering, an appliance.
    Through,
    /// Through an internet gateway, for instances with a public address, which its instances get, or do not.
    Gateway {
        /// Do its instances get a public address?
        public: bool,
    },
    /// Its route table has no way to `0.0.0.0/0`.
    None,
}

/// What EC2 says of a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetFacts {
    /// Its id.
    pub id: String,
    /// Its VPC.
    pub vpc: String,
    /// Its availability zone.
    pub zone: String,
    /// How its instances reach the internet.
    pub way_out: WayOut,
}

/// What an account allows and holds beside what Kiln makes. Reads only.
pub trait Account: Send + Sync {
    /// Which of these rights the caller lacks, by IAM's own simulation of its policies. The root user lacks none.
    fn lacking(&self, rights: &[Right]) -> impl Future<Output = Result<Vec<Right>>> + Send;
    /// The types among these that the region offers.
    fn instance_types(&self, names: &[String]) -> impl Future<Output = Result<Vec<InstanceTypeFacts>>> + Send;
    /// The availability zones of the region that offer each of these types.
    fn zones_of(&self, names: &[String]) -> impl Future<Output = Result<BTreeMap<String, BTreeSet<String>>>> + Send;
    /// The state of a KMS key, such as `Enabled`; `None` where there is none of that ARN.
    fn key_state(&self, arn: &str) -> impl Future<Output = Result<Option<String>>> + Send;
    /// The types among these that an availability zone offers, or the region where no zone is given.
    fn offered_types(
        &self,
        names: &[String],
        zone: Option<&str>,
    ) -> impl Future<Output = Result<BTreeSet<String>>> + Send;
    /// The subnets among these that exist.
    fn subnets(&self, ids: &[String]) -> impl Future<Output = Result<Vec<SubnetFacts>>> + Send;
    /// EC2's quota of that code, in virtual processors.
    fn vcpu_quota(&self, code: &str) -> impl Future<Output = Result<u32>> + Send;
}
