//! Lists of resources: images, snapshots and what uses them, instances, stacks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use kiln_config::model::{AmiId, GroupName, InstanceId, SnapshotId};

use kiln_config::boot::{GITHUB_UNREACHABLE, RUNNER_DEPRECATED, SERVING};

use super::Result;

/// One of Kiln's AMIs, as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnImage {
    pub id: AmiId,
    pub name: String,
    /// When it was made.
    pub created: Option<SystemTime>,
    pub tags: BTreeMap<String, String>,
    /// Its snapshots, with the size of their volumes in GiB.
    pub snapshots: Vec<(SnapshotId, u32)>,
}

/// A snapshot that Kiln has tagged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSnapshot {
    pub id: SnapshotId,
    /// The size of its volume in GiB; the snapshot occupies at most that.
    pub gib: u32,
    pub tags: BTreeMap<String, String>,
}

/// A version of a launch template that names an AMI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateVersion {
    /// The template's id.
    pub template: String,
    /// The template's name.
    pub name: String,
    /// The version's number in decimal.
    pub version: String,
    /// The AMI that it launches.
    pub ami: AmiId,
    /// Whether it is the template's newest version.
    pub latest: bool,
}

/// An instance that exists: pending, running, stopping or stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub id: InstanceId,
    /// `pending`, `running`…
    pub state: String,
    /// The AMI that it was launched from.
    pub ami: AmiId,
    /// When it was launched.
    pub launched: Option<SystemTime>,
    pub tags: BTreeMap<String, String>,
}

/// The state that an instance shows its operator by its tag `kiln:state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownState {
    /// Its id.
    pub instance: InstanceId,
    /// Its group.
    pub group: GroupName,
    /// `runner-deprecated`, `github-unreachable`, `serving`.
    pub state: String,
}

impl ShownState {
    /// What that means and what to do about it; none for an instance that serves.
    pub fn trouble(&self) -> Option<&'static str> {
        match self.state.as_str() {
            SERVING => None,
            RUNNER_DEPRECATED => Some(
                "GitHub serves its runner's version no more: pin a newer runner (`cargo xtask pin`), then `cargo xtask ami` and \
                 `cargo xtask deploy`",
            ),
            GITHUB_UNREACHABLE => Some(
                "it does not reach GitHub: where GitHub is not down, look at the fleet's network, `egress_ports` and proxy",
            ),
            _ => Some("a newer version of Kiln may know this state"),
        }
    }
}

/// What EC2 still shows of an instance that has terminated or will terminate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastWords {
    /// The reason of the termination.
    pub reason: Option<String>,
    /// The console output that EC2 has, the last line last.
    pub console: Vec<String>,
}

/// Lists of EC2, SSM and CloudFormation. A list is complete; if it has more pages than Kiln reads, the call fails.
pub trait Inventory: Send + Sync {
    /// The account's own AMIs that are tagged `kiln:managed=true`.
    fn own_images(&self) -> impl Future<Output = Result<Vec<OwnImage>>> + Send;
    /// The account's own snapshots that are tagged `kiln:managed=true`.
    fn own_snapshots(&self) -> impl Future<Output = Result<Vec<OwnSnapshot>>> + Send;
    /// All AMIs of this account that use any of `snapshots`, made by Kiln or not.
    fn holders(
        &self,
        snapshots: &[SnapshotId],
    ) -> impl Future<Output = Result<BTreeMap<SnapshotId, BTreeSet<AmiId>>>> + Send;
    /// Every version of the launch templates whose names begin with `prefix`; of every other template in the region, the newest and
    /// the default version.
    fn template_versions(&self, prefix: &str) -> impl Future<Output = Result<Vec<TemplateVersion>>> + Send;
    /// A version of a launch template, if it exists.
    fn template_version(
        &self,
        template: &str,
        version: &str,
    ) -> impl Future<Output = Result<Option<TemplateVersion>>> + Send;
    /// The versions in `among` that have the same content as `version` of the same launch template.
    fn same_versions(
        &self,
        template: &str,
        version: &str,
        among: &BTreeSet<String>,
    ) -> impl Future<Output = Result<BTreeSet<String>>> + Send;
    /// The existing instances that were launched from one of these images.
    fn machines_of(&self, amis: &[AmiId]) -> impl Future<Output = Result<Vec<Machine>>> + Send;
    /// The states that existing instances of these groups show; an instance without the tag is left out.
    fn shown_states(&self, groups: &[GroupName]) -> impl Future<Output = Result<Vec<ShownState>>> + Send;
    /// The existing instances that have this tag.
    fn machines_tagged(&self, key: &str, value: &str) -> impl Future<Output = Result<Vec<Machine>>> + Send;
    /// The reason of an instance's termination, and its console output.
    fn last_words(&self, id: &InstanceId) -> impl Future<Output = Result<LastWords>> + Send;
    /// The parameters below a path, with their values.
    fn parameters_below(&self, path: &str) -> impl Future<Output = Result<BTreeMap<String, String>>> + Send;
    /// The stacks whose names begin with `prefix`, without deleted ones.
    fn stacks_named(&self, prefix: &str) -> impl Future<Output = Result<Vec<String>>> + Send;
    /// Tags a snapshot. Equal tags are not a change.
    fn tag_snapshot(&self, id: &SnapshotId, tags: &BTreeMap<String, String>)
    -> impl Future<Output = Result<()>> + Send;
    /// Deregisters an AMI. Succeeds if it does not exist.
    fn deregister(&self, id: &AmiId) -> impl Future<Output = Result<()>> + Send;
    /// Deletes a snapshot. Succeeds if it does not exist; fails if an AMI uses it.
    fn delete_snapshot(&self, id: &SnapshotId) -> impl Future<Output = Result<()>> + Send;
}
