//! `cargo xtask prune`: removes images that nothing uses, with their snapshots.
//!
//! An image is a candidate only with Kiln's own tags, those of this organization's images. It stays while something names
//! it: a parameter (what is recorded, current, or the way back), a launch template's version, a stack, an instance. And the
//! newest few of each kind stay in any case.
//!
//! CloudFormation keeps every version of a launch template that it ever made. By default each of them keeps its image, as
//! it may be what someone means to go back to; a version that nothing launches from any more is called superseded, and
//! gives its image up where that is asked for.

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

/// Tag on an AMI and its snapshots: which of Kiln's images it is.
pub const IMAGE_TAG: &str = "kiln:image";

/// Tag on a snapshot whose AMI is being removed: an interrupted run finds it again by it. Nothing else writes it, so that a
/// snapshot whose AMI is still being made is never taken for one whose AMI is gone.
pub const PRUNED_TAG: &str = "kiln:pruned-from";

/// What is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    /// The region that is looked at: kiln.toml's own, or one that images are copied to.
    pub region: &'a Region,
    /// How many of the newest of each image stay in any case.
    pub keep: usize,
    /// Do superseded launch template versions give their images up?
    pub superseded: bool,
    /// The present time.
    pub now: SystemTime,
}

/// What keeps an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// It is among the newest.
    Newest,
    /// A parameter names it.
    Recorded(String),
    /// A stack's parameter names it.
    Stack(String),
    /// A launch template's version from which something launches, or may.
    Launches(String),
    /// A launch template's version from which nothing launches any more.
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

/// A region as `prune` found it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// This organization's images.
    pub images: Vec<OwnImage>,
    /// The snapshots that an interrupted run left.
    pub left: Vec<OwnSnapshot>,
    /// What names an image.
    pub uses: BTreeMap<AmiId, BTreeSet<Use>>,
    /// The AMIs, of anybody in the account, that have one of these snapshots.
    pub holders: BTreeMap<SnapshotId, BTreeSet<AmiId>>,
}

impl Observed {
    /// The AMIs beside its own that a snapshot can't be deleted for.
    fn others(&self, snapshot: &SnapshotId, own: Option<&AmiId>) -> BTreeSet<AmiId> {
        let holders = self.holders.get(snapshot).into_iter().flatten();
        holders.filter(|holder| Some(*holder) != own).cloned().collect()
    }
}

/// A snapshot that stays for AMIs that are not Kiln's, or are not removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// It.
    pub snapshot: SnapshotId,
    /// The AMIs.
    pub by: BTreeSet<AmiId>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by: Vec<&str> = self.by.iter().map(AmiId::as_str).collect();
        write!(f, "{} stays: {} was made from it", self.snapshot, by.join(", "))
    }
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Deregister an AMI, then delete its snapshots.
    Remove {
        /// Its id.
        image: AmiId,
        /// Of which kind.
        name: String,
        /// Its age in words.
        age: String,
        /// What is deleted, with the size of the volumes in GiB.
        snapshots: Vec<(SnapshotId, u32)>,
        /// What is not.
        held: Vec<Held>,
    },
    /// Delete a snapshot whose AMI an earlier run deregistered.
    DeleteLeft {
        /// Its id.
        snapshot: SnapshotId,
        /// The size of its volume.
        gib: u32,
        /// The AMI that it was of.
        image: String,
    },
}

impl Step {
    /// What it frees at most: snapshots share blocks with each other.
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
            Self::DeleteLeft { snapshot, gib, image } => write!(f, "delete {snapshot} ({gib} GiB), left of {image}"),
        }
    }
}

/// What keeps each image, the newest first; empty for those that go. Pure.
pub fn verdicts<'a>(request: &Request<'_>, observed: &'a Observed) -> Vec<(&'a OwnImage, BTreeSet<Use>)> {
    let mut images: Vec<&OwnImage> = observed.images.iter().collect();
    // One without a date counts as just made.
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

/// Which of Kiln's images it is.
pub fn kind_of(image: &OwnImage) -> &str {
    image.tags.get(IMAGE_TAG).map_or("", String::as_str)
}

/// The snapshots that an interrupted run left and that stay.
pub fn held(observed: &Observed) -> Vec<Held> {
    let held = |left: &OwnSnapshot| Held { snapshot: left.id.clone(), by: observed.others(&left.id, None) };
    observed.left.iter().map(held).filter(|held| !held.by.is_empty()).collect()
}

/// What has to be done; pure. What was left of an earlier run comes first, then the oldest image.
pub fn plan(request: &Request<'_>, observed: &Observed) -> Plan<Step> {
    let verdicts = verdicts(request, observed);
    let left = observed.left.iter().filter(|left| observed.others(&left.id, None).is_empty());
    let mut steps: Vec<Step> = left.map(delete_left).collect();
    let unused = verdicts.iter().rev().filter(|(_, uses)| uses.is_empty());
    steps.extend(unused.map(|(image, _)| removal(image, observed, request.now)));
    let settled = match verdicts.len() {
        0 => "there is none of Kiln's".to_owned(),
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
