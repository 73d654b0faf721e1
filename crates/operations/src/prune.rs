//! `cargo xtask prune`: removes images that nothing uses, with their snapshots.
//!
//! Only images with the tags of this organization are candidates. An image stays while something refers to it: an SSM parameter (a
//! newest, current or former image), a launch template version, a stack, or an instance. The newest few of each kind always stay.
//!
//! CloudFormation keeps every launch template version that it ever made. By default each version keeps its image, because a user may
//! want to roll back to it. A version from which nothing launches any more is superseded; with `--superseded` it does not keep its
//! image.

mod apply;
mod observe;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::SystemTime;

use kiln_config::config::Config;
use kiln_config::model::{AmiId, Region, SnapshotId};

use crate::plan::Plan;
use crate::ports::{OwnImage, OwnSnapshot};
use crate::when;

pub use apply::apply;
pub use observe::observe;

/// Tag on an AMI and its snapshots: the name of the image, which is its kind.
pub const IMAGE_TAG: &str = "kiln:image";

/// Tag on a snapshot whose AMI is being removed, by which the run after an interruption finds it. Only `prune` writes the tag, so a
/// snapshot whose AMI does not exist yet is never mistaken for one whose AMI was removed.
pub const PRUNED_TAG: &str = "kiln:pruned-from";

/// The options of the command.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    /// The region to prune: the one in kiln.toml, or one that images are copied to.
    pub region: &'a Region,
    /// How many of the newest images of each kind always stay.
    pub keep: usize,
    /// Whether superseded launch template versions do not keep their images.
    pub superseded: bool,
    /// The current time.
    pub now: SystemTime,
}

/// The reason why an image stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// It is one of the newest.
    Newest,
    /// An SSM parameter refers to it.
    Recorded(String),
    /// A stack's parameter refers to it.
    Stack(String),
    /// A launch template version refers to it, from which something launches or may launch.
    Launches(String),
    /// A launch template version refers to it, from which nothing launches any more.
    Superseded(String),
    /// An instance runs it.
    Instance(String),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("one of the newest"),
            Self::Recorded(parameter) => write!(f, "recorded in {parameter}"),
            Self::Stack(stack) => write!(f, "used by stack {stack}"),
            Self::Launches(version) => write!(f, "used by launch template {version}"),
            Self::Superseded(version) => write!(f, "named by superseded launch template {version}"),
            Self::Instance(instance) => write!(f, "used by instance {instance}"),
        }
    }
}

/// The state of a region that `prune` observed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// This organization's images.
    pub images: Vec<OwnImage>,
    /// The snapshots that an interrupted run left.
    pub left: Vec<OwnSnapshot>,
    /// What refers to each image.
    pub uses: BTreeMap<AmiId, BTreeSet<Use>>,
    /// All AMIs of the account that use each snapshot, also those that Kiln did not make.
    pub holders: BTreeMap<SnapshotId, BTreeSet<AmiId>>,
}

impl Observed {
    /// The AMIs other than `own` that use a snapshot and prevent its deletion.
    fn others(&self, snapshot: &SnapshotId, own: Option<&AmiId>) -> BTreeSet<AmiId> {
        let holders = self.holders.get(snapshot).into_iter().flatten();
        holders.filter(|holder| Some(*holder) != own).cloned().collect()
    }
}

/// A snapshot that stays because of AMIs that are not Kiln's, or are not removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub snapshot: SnapshotId,
    /// The AMIs that use it.
    pub by: BTreeSet<AmiId>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by: Vec<&str> = self.by.iter().map(AmiId::as_str).collect();
        write!(f, "{} stays: {} uses it", self.snapshot, by.join(", "))
    }
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Deregister an AMI, then delete its snapshots.
    Remove {
        /// Its id.
        image: AmiId,
        /// The image's name, which is its kind.
        name: String,
        /// Its age in words.
        age: String,
        /// The snapshots to delete, with the size of their volumes in GiB.
        snapshots: Vec<(SnapshotId, u32)>,
        /// The snapshots that stay.
        held: Vec<Held>,
    },
    /// Delete a snapshot whose AMI an earlier run deregistered.
    DeleteLeft {
        /// Its id.
        snapshot: SnapshotId,
        /// The size of its volume.
        gib: u32,
        /// The AMI that it belonged to.
        image: String,
    },
}

impl Step {
    /// The upper limit of the storage that the step frees, in GiB: snapshots share blocks with each other.
    pub fn gib(&self) -> u32 {
        match self {
            Self::Remove { snapshots, .. } => snapshots.iter().map(|(_, gib)| gib).sum(),
            Self::DeleteLeft { gib, .. } => *gib,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove { image, name, age, snapshots, held } => {
                write!(f, "remove {image} ({name}, {age}, {} GiB)", self.gib())?;
                for (snapshot, gib) in snapshots {
                    write!(f, "\n- {snapshot}, {gib} GiB")?;
                }
                held.iter().try_for_each(|held| write!(f, "\n{held}"))
            }
            Self::DeleteLeft { snapshot, gib, image } => {
                write!(f, "delete {snapshot} ({gib} GiB), left over from {image}")
            }
        }
    }
}

/// The reasons why each image stays, newest image first; empty for images to remove. Pure.
pub fn verdicts<'a>(request: &Request<'_>, observed: &'a Observed) -> Vec<(&'a OwnImage, BTreeSet<Use>)> {
    let mut images: Vec<&OwnImage> = observed.images.iter().collect();
    // An image without a date counts as new.
    images.sort_by_key(|image| std::cmp::Reverse((image.created.unwrap_or(request.now), image.id.clone())));
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let verdict = |image: &'a OwnImage| {
        let of_kind = seen.entry(kind_of(image)).or_default();
        *of_kind += 1;
        let mut uses = observed.uses.get(&image.id).cloned().unwrap_or_default();
        if request.superseded {
            uses.retain(|used| !matches!(used, Use::Superseded(_)));
        }
        if *of_kind <= request.keep {
            uses.insert(Use::Newest);
        }
        (image, uses)
    };
    images.into_iter().map(verdict).collect()
}

/// The kind of an image, from its tag.
pub fn kind_of(image: &OwnImage) -> &str {
    image.tags.get(IMAGE_TAG).map_or("", String::as_str)
}

/// The snapshots that an interrupted run left over and that stay.
pub fn held(observed: &Observed) -> Vec<Held> {
    let held = |left: &OwnSnapshot| Held { snapshot: left.id.clone(), by: observed.others(&left.id, None) };
    observed.left.iter().map(held).filter(|held| !held.by.is_empty()).collect()
}

/// The steps; pure. Snapshots that an earlier run left over come first, then the images, oldest first.
pub fn plan(request: &Request<'_>, observed: &Observed) -> Plan<Step> {
    let verdicts = verdicts(request, observed);
    let left = observed.left.iter().filter(|left| observed.others(&left.id, None).is_empty());
    let mut steps: Vec<Step> = left.map(delete_left).collect();
    let unused = verdicts.iter().rev().filter(|(_, uses)| uses.is_empty());
    steps.extend(unused.map(|(image, _)| removal(image, observed, request.now)));
    let settled = match verdicts.len() {
        0 => "Kiln has none there".to_owned(),
        count => format!("each of {count} is in use, or among the newest {} of its kind", request.keep),
    };
    Plan { subject: format!("images in {}", request.region), steps, settled }
}

fn delete_left(left: &OwnSnapshot) -> Step {
    let image = left.tags.get(PRUNED_TAG).cloned().unwrap_or_default();
    Step::DeleteLeft { snapshot: left.id.clone(), gib: left.gib, image }
}

fn removal(image: &OwnImage, observed: &Observed, now: SystemTime) -> Step {
    let (mut snapshots, mut held) = (Vec::new(), Vec::new());
    for (snapshot, gib) in &image.snapshots {
        let by = observed.others(snapshot, Some(&image.id));
        if by.is_empty() {
            snapshots.push((snapshot.clone(), *gib));
        } else {
            held.push(Held { snapshot: snapshot.clone(), by });
        }
    }
    let age = image.created.map(|created| format!("{} old", when::age(created, now)));
    Step::Remove {
        image: image.id.clone(),
        name: kind_of(image).to_owned(),
        age: age.unwrap_or_else(|| "of unknown age".to_owned()),
        snapshots,
        held,
    }
}
