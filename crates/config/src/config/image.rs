//! What `[image_defaults]` and `[runner.node.MAJOR]` say: where images are built and go, and which Node they carry.

use std::collections::BTreeMap;
use std::fmt;

use toml::Spanned;

use super::diagnostic::{Diagnostic, Findings};
use super::partition::partition;
use super::raw::{RawBakeNetwork, RawImageDefaults, RawNode};
use super::{Config, Image, Network};
use crate::model::{AccountId, InstanceType, KmsKeyArn, NodeVersion, Region, SecurityGroupId, Sha256, SubnetId, VpcId};

/// Where images are built, and where they go beside the region that they are baked in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// Regions that get a copy.
    pub copy_to: Vec<Region>,
    /// Accounts that may launch from it and its copies.
    pub share_with: Vec<AccountId>,
    /// What encrypts it; the account's own key for EBS when absent.
    pub kms_key: Option<KmsKeyArn>,
    /// The account that bakes the images, where it is another one.
    pub owner: Option<AccountId>,
    /// The network that images are built in; a fleet's when absent.
    pub network: Option<BakeNetwork>,
    /// Instance types to build on, of any architecture; some of Kiln's choice for an architecture without one.
    pub instance_types: Vec<InstanceType>,
}

/// Where images are built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BakeNetwork {
    /// In the VPC that Kiln makes for the fleets.
    Made,
    /// In a subnet that exists.
    Subnet {
        /// Its VPC.
        vpc: String,
        /// The subnet.
        subnet: SubnetId,
        /// A security group of that VPC; one that lets everything out and nothing in when absent.
        security_group: Option<String>,
    },
}

impl Config {
    /// Where an image is built: where its table or `[image_defaults]` says, or where the first fleet by name lives.
    pub fn bake_network(&self, image: &Image) -> BakeNetwork {
        let fleet = || {
            self.fleets.values().next().and_then(|fleet| match &fleet.network {
                Network::NewVpc => None,
                Network::Subnets { vpc, subnets } => Some(BakeNetwork::Subnet {
                    vpc: vpc.clone(),
                    subnet: subnets.first()?.clone(),
                    security_group: None,
                }),
            })
        };
        image
            .network
            .clone()
            .or_else(|| self.image_defaults.network.clone())
            .or_else(fleet)
            .unwrap_or(BakeNetwork::Made)
    }
}

/// A major release of Node, such as 24: the runner keeps one of each in `externals/node24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeMajor(pub u32);

impl fmt::Display for NodeMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A pinned build of Node for glibc 2.17 and x86_64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePin {
    /// The release.
    pub version: NodeVersion,
    /// Of the tarball that [`NodePin::path`] names.
    pub sha256: Sha256,
}

impl NodePin {
    /// The tarball's name below the builds' address: `v24.19.0/node-v24.19.0-linux-x64-glibc-217.tar.gz`.
    pub fn path(&self) -> String {
        let version = &self.version;
        format!("v{version}/node-v{version}-linux-x64-glibc-217.tar.gz")
    }
}

pub(super) fn validate(raw: Option<&RawImageDefaults>, region: Option<&Region>, found: &mut Findings) -> ImageDefaults {
    let Some(raw) = raw else { return ImageDefaults::default() };
    let copy_to: Vec<(_, Region)> = raw
        .copy_to
        .as_ref()
        .map(|regions| super::fleet::distinct("copy_to", regions.get_ref(), str::to_owned, found))
        .unwrap_or_default();
    for (span, copy) in &copy_to {
        if region == Some(copy) {
            found.push(
                Diagnostic::new(span.clone(), format!("`copy_to` has {copy}, where images are baked"))
                    .expected("expected other regions than `region`"),
            );
        }
        let (home, there) = (region.and_then(partition), partition(copy));
        if home.is_some() && home != there {
            found.push(
                Diagnostic::new(span.clone(), format!("no image can be copied to {copy}"))
                    .expected(format!("expected regions of the partition {}", home.unwrap_or_default()))
                    .hint("bake there on its own, with a kiln.toml of its own"),
            );
        }
    }
    let share_with: Vec<(_, AccountId)> = raw
        .share_with
        .as_ref()
        .map(|accounts| super::fleet::distinct("share_with", accounts.get_ref(), str::to_owned, found))
        .unwrap_or_default();
    let kms_key = raw.kms_key.as_ref().and_then(|key| found.parse("`kms_key`", key));
    keys(raw, kms_key.as_ref(), region, found);
    let instance_types: Vec<(_, InstanceType)> = raw
        .instance_types
        .as_ref()
        .map(|types| super::fleet::distinct("instance_types", types.get_ref(), str::to_owned, found))
        .unwrap_or_default();
    ImageDefaults {
        kms_key,
        owner: raw.owner.as_ref().and_then(|owner| found.parse("`owner`", owner)),
        network: raw.network.as_ref().and_then(|network| self::network(network.get_ref(), found)),
        instance_types: instance_types.into_iter().map(|(_, name)| name).collect(),
        copy_to: copy_to.into_iter().map(|(_, region)| region).collect(),
        share_with: share_with.into_iter().map(|(_, account)| account).collect(),
    }
}

pub(super) fn network(raw: &RawBakeNetwork, found: &mut Findings) -> Option<BakeNetwork> {
    let RawBakeNetwork { vpc, subnet, security_group } = raw;
    let vpc: Option<VpcId> = vpc.as_ref().and_then(|vpc| found.parse("`vpc`", vpc));
    let subnet: Option<SubnetId> = subnet.as_ref().and_then(|subnet| found.parse("`subnet`", subnet));
    let group: Option<SecurityGroupId> =
        security_group.as_ref().and_then(|group| found.parse("`security_group`", group));
    Some(BakeNetwork::Subnet { vpc: vpc?.to_string(), subnet: subnet?, security_group: group.map(String::from) })
}

/// What the account's own key for EBS encrypts, no other account can read; and a key is good in its region only.
fn keys(raw: &RawImageDefaults, key: Option<&KmsKeyArn>, region: Option<&Region>, found: &mut Findings) {
    let some = |list: &Option<Spanned<Vec<_>>>| list.as_ref().filter(|list| !list.get_ref().is_empty()).cloned();
    if let (Some(accounts), None) = (some(&raw.share_with), &raw.kms_key) {
        found.push(
            Diagnostic::new(accounts.span(), "no other account can launch what this account's own key encrypts")
                .expected("expected `kms_key` beside `share_with`")
                .hint("make a KMS key whose policy lets those accounts use it, and name its ARN"),
        );
    }
    let (Some(key), Some(place)) = (key, &raw.kms_key) else { return };
    if region.is_some_and(|region| region.as_str() != key.region()) {
        found.push(
            Diagnostic::new(place.span(), format!("`kms_key` is a key of {}", key.region()))
                .expected("expected one of `region`, where images are baked"),
        );
    } else if let Some(home) = region.and_then(partition).filter(|home| key.partition() != *home) {
        found.push(
            Diagnostic::new(place.span(), format!("`kms_key` is an ARN of the partition {}", key.partition()))
                .expected(format!("expected arn:{home}:kms:…")),
        );
    }
    if let Some(copies) = some(&raw.copy_to).filter(|_| !key.is_multi_region()) {
        found.push(
            Diagnostic::new(place.span(), "`kms_key` can't encrypt copies in other regions")
                .expected("expected a multi-Region key, key/mrk-…")
                .related(copies.span(), "the copies"),
        );
    }
}

pub(super) fn nodes(
    raw: Option<&BTreeMap<Spanned<String>, RawNode>>,
    found: &mut Findings,
) -> BTreeMap<NodeMajor, NodePin> {
    raw.into_iter().flatten().filter_map(|(major, raw)| node(major, raw, found)).collect()
}

fn node(name: &Spanned<String>, raw: &RawNode, found: &mut Findings) -> Option<(NodeMajor, NodePin)> {
    let text = name.get_ref();
    let major = text.parse().ok().filter(|major: &u32| major.to_string() == *text && (1..1000).contains(major));
    let Some(major) = major else {
        found.push(
            Diagnostic::new(name.span(), format!("`{}` is no major release of Node", text.escape_debug()))
                .expected("expected a number such as 24, as in the runner's externals/node24"),
        );
        return None;
    };
    let hint = |text: &str| text.starts_with('v').then(|| "leave out the `v` of the release's tag".to_owned());
    let version: Option<NodeVersion> = raw.version.as_ref().and_then(|value| found.parse_or("`version`", value, hint));
    if let (Some(version), Some(place)) = (&version, &raw.version)
        && version.major() != major
    {
        found.push(
            Diagnostic::new(place.span(), format!("Node {version} would stand in for the runner's Node {major}"))
                .expected(format!("expected a release of Node {major}"))
                .related(name.span(), "the runner's"),
        );
    }
    let sha256 = raw.sha256.as_ref().and_then(|value| super::validate::digest("the digest of Node", value, found));
    Some((NodeMajor(major), NodePin { version: version?, sha256: sha256? }))
}
