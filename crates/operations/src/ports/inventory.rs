//! What is there beside the one thing a command is about: images, snapshots, what uses them, instances, stacks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use kiln_config::model::{AmiId, InstanceId, SnapshotId};

use super::Result;

/// An AMI of Kiln's, as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnImage {
    /// Its id.
    pub id: AmiId,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Option<SystemTime>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its snapshots, with the size of their volumes in GiB.
    pub snapshots: Vec<(SnapshotId, u32)>,
}

/// A snapshot that Kiln has tagged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its volume's size; what it occupies is no more.
    pub gib: u32,
    /// Its tags.
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
    /// What it launches.
    pub ami: AmiId,
    /// It is the template's newest version.
    pub latest: bool,
}

/// An instance that exists: pending, running, stopping or stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its id.
    pub id: InstanceId,
    /// `pending`, `running`…
    pub state: String,
    /// What it was launched from.
    pub ami: AmiId,
    /// When.
    pub launched: Option<SystemTime>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// What is left to be read of an instance that ended, or will.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastWords {
    /// Why EC2 ended it, or it did.
    pub reason: Option<String>,
    /// The lines of its console that EC2 has, the last one last.
    pub console: Vec<String>,
}

/// EC2's, SSM's and CloudFormation's lists: whole, or an error where there are more pages than are read.
pub trait Inventory: Send + Sync {
    /// The account's own AMIs that are tagged `kiln:managed=true`.
    fn own_images(&self) -> impl Future<Output = Result<Vec<OwnImage>>> + Send;
    /// The account's own snapshots that are tagged `kiln:managed=true`.
    fn own_snapshots(&self) -> impl Future<Output = Result<Vec<OwnSnapshot>>> + Send;
    /// The account's own AMIs that have one of these snapshots, Kiln's or not.
    fn holders(
        &self,
        snapshots: &[SnapshotId],
    ) -> impl Future<Output = Result<BTreeMap<SnapshotId, BTreeSet<AmiId>>>> + Send;
    /// Every version of the launch templates whose names begin so, and of every other template in the region the newest
    /// and the default one.
    fn template_versions(&self, prefix: &str) -> impl Future<Output = Result<Vec<TemplateVersion>>> + Send;
    /// The version of a launch template, if there is one.
    fn template_version(
        &self,
        template: &str,
        version: &str,
    ) -> impl Future<Output = Result<Option<TemplateVersion>>> + Send;
    /// Those of these versions of a launch template that launch the very same as another of its versions.
    fn same_versions(
        &self,
        template: &str,
        version: &str,
        among: &BTreeSet<String>,
    ) -> impl Future<Output = Result<BTreeSet<String>>> + Send;
    /// The instances that exist and were launched from one of these images.
    fn machines_of(&self, amis: &[AmiId]) -> impl Future<Output = Result<Vec<Machine>>> + Send;
    /// Why an instance ended, and what it wrote to its console.
    fn last_words(&self, id: &InstanceId) -> impl Future<Output = Result<LastWords>> + Send;
    /// The parameters below a path, with their values.
    fn parameters_below(&self, path: &str) -> impl Future<Output = Result<BTreeMap<String, String>>> + Send;
    /// The names of the stacks that begin so; deleted ones are none.
    fn stacks_named(&self, prefix: &str) -> impl Future<Output = Result<Vec<String>>> + Send;
    /// Tags a snapshot; equal tags are no change.
    fn tag_snapshot(&self, id: &SnapshotId, tags: &BTreeMap<String, String>)
    -> impl Future<Output = Result<()>> + Send;
    /// Deregisters an AMI; one that is gone is no error.
    fn deregister(&self, id: &AmiId) -> impl Future<Output = Result<()>> + Send;
    /// Deletes a snapshot; one that is gone is no error, one that an AMI uses is.
    fn delete_snapshot(&self, id: &SnapshotId) -> impl Future<Output = Result<()>> + Send;
}
