//! `cargo xtask pin`: updates the pins in kiln.toml to the newest releases of GitHub and the Node project, and shows how long the
//! pinned, baked and deployed versions are supported.
//!
//! kiln.toml does not pin the base image: each bake resolves AWS's public parameter to an AMI and records it, as part of the digest of
//! its inputs. `pin --check` only reports whether there is a newer base image than that of the recorded image.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::SystemTime;

use kiln_config::config::{Config, NodeMajor, NodePin};
use kiln_config::model::{AmiId, Architecture, BaseImage, FleetName, ImageName, NodeVersion, RunnerVersion, Sha256};
use kiln_github::{OrgClient, RunnerDownload};
use toml_edit::{DocumentMut, Item, Table, Value};

use crate::ami;
use crate::code::Code;
use crate::error::{Error, Result};
use crate::freshness::{self, Lifetime, Releases, Urgency};
use crate::plan::Plan;
use crate::ports::{Cloud, Images};

/// Tag on an AMI: the version of the runner in it.
pub const RUNNER_VERSION_TAG: &str = "kiln:runner-version";

/// Tag on an AMI: the base image it was baked from.
pub const BASE_IMAGE_TAG: &str = "kiln:base-image";

/// The major versions of Node in actions/runner's `externals/`. Amazon Linux 2 needs a pin for each. The bake's check of the runner
/// fails when this list is out of date.
///
/// source: actions/runner, `src/Misc/externals.sh`: `NODE20_VERSION`, `NODE24_VERSION`
pub(crate) const RUNNER_NODES: [NodeMajor; 2] = [NodeMajor(20), NodeMajor(24)];

/// The name of a build for glibc 2.17 in the index of builds.
const NODE_BUILD: &str = "linux-x64-glibc-217";

/// Downloads texts from public URLs.
pub trait HttpText: Send + Sync {
    /// The text at a URL, at most a few megabytes.
    fn text(&self, url: &str) -> impl Future<Output = Result<String>> + Send;
}

/// A release of the runner as GitHub offers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub version: RunnerVersion,
    /// The published digest of the tarball for each architecture.
    pub sha256: BTreeMap<Architecture, Sha256>,
    /// The newest builds of Node for Amazon Linux 2, of each major that is pinned or needed.
    pub node: BTreeMap<NodeMajor, NodePin>,
}

/// A value to set in kiln.toml.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The path of the key: `runner`, `sha256`, `x86_64`.
    pub key: Vec<String>,
    /// The current value.
    pub from: Option<String>,
    /// The new value.
    pub to: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.join(".");
        match &self.from {
            Some(from) => write!(f, "~ {key} = \"{from}\" -> \"{}\"", self.to),
            None => write!(f, "+ {key} = \"{}\"", self.to),
        }
    }
}

/// The newest releases of GitHub and, if Amazon Linux 2 is in use, of the Node project.
///
/// # Errors
/// Their errors; [`crate::Kind::Other`] if there is no release, or a release has no digest.
pub async fn offer(config: &Config, github: &OrgClient, web: &impl HttpText) -> Result<Offer> {
    let downloads = github.runner_downloads().await?;
    let offer = newest_offer(&architectures(config), &downloads)?;
    Ok(Offer { node: newest_nodes(config, web).await?, ..offer })
}

/// The major versions of Node to pin: those that have a pin and, if Amazon Linux 2 is in use, all of the runner's.
fn node_majors(config: &Config) -> BTreeSet<NodeMajor> {
    let needed = config.images.values().any(|image| image.system == BaseImage::AmazonLinux2);
    let runners = RUNNER_NODES.into_iter().filter(|_| needed);
    config.runner.node.keys().copied().chain(runners).collect()
}

/// The newest build of each major version. Downloads the index once, and the digests of each release.
///
/// # Errors
/// The server's errors; [`crate::Kind::Other`] if it has no such build.
pub async fn newest_nodes(config: &Config, web: &impl HttpText) -> Result<BTreeMap<NodeMajor, NodePin>> {
    let majors = node_majors(config);
    let mut pins = BTreeMap::new();
    if majors.is_empty() {
        return Ok(pins);
    }
    let base = config.runner.node_url.as_str().trim_end_matches('/').to_owned();
    let index = web.text(&format!("{base}/index.json")).await?;
    for major in majors {
        let version = newest_node(&index, major).ok_or_else(|| {
            Error::new(Code::NodeBuildMissing, format!("{base}/index.json names no build {NODE_BUILD} of Node {major}"))
                .hint(
                    "check that `node_url` in [runner] points to the Node project's unofficial builds, or to a mirror of them",
                )
        })?;
        let url = format!("{base}/v{version}/SHASUMS256.txt");
        let sha256 = published(&web.text(&url).await?, &version).ok_or_else(|| {
            Error::new(Code::DigestNotPublished, format!("{url} has no digest of the build {NODE_BUILD}"))
                .hint("a release is complete only some hours after it appears: try again later")
        })?;
        pins.insert(major, NodePin { version, sha256 });
    }
    Ok(pins)
}

/// The newest release of a major in an index that has the build.
fn newest_node(index: &str, major: NodeMajor) -> Option<NodeVersion> {
    #[derive(serde::Deserialize)]
    struct Release {
        version: String,
        files: Vec<String>,
    }
    let releases: Vec<Release> = serde_json::from_str(index).ok()?;
    let built = releases.iter().filter(|release| release.files.iter().any(|file| file == NODE_BUILD));
    let versions = built.filter_map(|release| release.version.trim_start_matches('v').parse::<NodeVersion>().ok());
    versions.filter(|version| version.major() == major.0).max()
}

/// The digest of the release's build in its SHASUMS256.txt: lines of a digest and a name.
fn published(sums: &str, version: &NodeVersion) -> Option<Sha256> {
    let name = format!("node-v{version}-{NODE_BUILD}.tar.gz");
    let mut lines = sums.lines().filter_map(|line| line.split_once(char::is_whitespace));
    lines.find(|(_, file)| file.trim_start().trim_start_matches('*') == name)?.0.parse().ok()
}

/// The architectures to pin: those in use, and those that already have a pin.
fn architectures(config: &Config) -> BTreeSet<Architecture> {
    let used = config.images.values().map(|image| image.architecture);
    used.chain(config.runner.sha256.keys().copied()).collect()
}

/// The newest offered release, with the digests of these architectures; pure.
///
/// # Errors
/// [`crate::Kind::Other`] when there is none, or GitHub publishes no digest of one.
pub fn newest_offer(architectures: &BTreeSet<Architecture>, downloads: &[RunnerDownload]) -> Result<Offer> {
    let of_linux = || downloads.iter().filter(|download| download.os == "linux");
    let version = freshness::newest(downloads)?;
    let mut sha256 = BTreeMap::new();
    for architecture in architectures {
        let found = of_linux().find(|download| {
            download.architecture == architecture.runner_name()
                && freshness::version_of(&download.filename).as_ref() == Some(&version)
        });
        let published = found.and_then(|download| download.sha256_checksum.as_ref()).and_then(|it| it.parse().ok());
        let digest = published.ok_or_else(|| {
            Error::new(
                Code::DigestNotPublished,
                format!("GitHub publishes no digest of runner {version} for {architecture}"),
            )
            .hint("a release is complete only some minutes after it appears: try again later")
        })?;
        sha256.insert(*architecture, digest);
    }
    Ok(Offer { version, sha256, node: BTreeMap::new() })
}

/// The values to change in kiln.toml; pure.
pub fn plan(config: &Config, offer: &Offer) -> Plan<Step> {
    let pin = &config.runner;
    let mut steps = Vec::new();
    let mut set = |key: &[&str], from: Option<String>, to: String| {
        if from.as_ref() != Some(&to) {
            steps.push(Step { key: key.iter().map(|&part| part.to_owned()).collect(), from, to });
        }
    };
    // GitHub may offer a release to some organizations later than to others.
    let older = offer.version < pin.version;
    if !older {
        set(&["runner", "version"], Some(pin.version.to_string()), offer.version.to_string());
        for (architecture, digest) in &offer.sha256 {
            let from = pin.sha256.get(architecture).map(ToString::to_string);
            set(&["runner", "sha256", architecture.rust_name()], from, digest.to_string());
        }
    }
    for (major, node) in &offer.node {
        let (name, now) = (major.to_string(), pin.node.get(major));
        set(&["runner", "node", &name, "version"], now.map(|now| now.version.to_string()), node.version.to_string());
        set(&["runner", "node", &name, "sha256"], now.map(|now| now.sha256.to_string()), node.sha256.to_string());
    }
    let settled = if older {
        format!("runner {} is newer than {}, which GitHub offers", pin.version, offer.version)
    } else {
        format!("runner {} is the newest GitHub offers, and has the published digests", pin.version)
    };
    Plan { subject: "pins".to_owned(), steps, settled }
}

/// The text of kiln.toml after the plan. Values change; comments, order and blank lines stay.
///
/// # Errors
/// [`crate::Kind::Configuration`] when the text is no TOML, or has something else where a table belongs.
pub fn rewritten(text: &str, plan: &Plan<Step>) -> Result<String> {
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| Error::new(Code::ConfigInvalid, error.message().to_owned()))?;
    for step in &plan.steps {
        set(document.as_table_mut(), &step.key, &step.to).ok_or_else(|| {
            Error::new(Code::ConfigInvalid, format!("`{}` can't be set in kiln.toml", step.key.join(".")))
                .hint(format!("write {step} by hand"))
        })?;
    }
    Ok(document.to_string())
}

/// A table whose header is written only if it directly contains values.
fn nested() -> Item {
    let mut table = Table::new();
    table.set_implicit(true);
    Item::Table(table)
}

fn set(table: &mut Table, key: &[String], to: &str) -> Option<()> {
    let (last, path) = key.split_last()?;
    let mut at: &mut dyn toml_edit::TableLike = table;
    for part in path {
        at = at.entry(part).or_insert_with(nested).as_table_like_mut()?;
    }
    match at.get_mut(last).and_then(Item::as_value_mut) {
        Some(value) => {
            // Keep the spaces around the value and a comment at the end of the line.
            let decor = value.decor().clone();
            *value = Value::from(to);
            *value.decor_mut() = decor;
        }
        None => {
            at.insert(last, toml_edit::value(to));
        }
    }
    Some(())
}

// ---------------------------------------------------------------------------------------------------------------------
// --check

/// A runner version in use, and how long GitHub supports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it is.
    pub place: Place,
    /// `None` if the version is unknown, because an older Kiln did not record it.
    pub lifetime: Option<Lifetime>,
}

/// Where a version is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In kiln.toml.
    Pinned,
    /// In the image that `deploy` would roll out.
    Recorded {
        /// The image's name.
        image: ImageName,
        ami: AmiId,
    },
    /// In the image that a fleet's group launches.
    Deployed { fleet: FleetName, ami: AmiId },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned => f.write_str("pinned in kiln.toml"),
            Self::Recorded { image, ami } => write!(f, "image {image} ({ami})"),
            Self::Deployed { fleet, ami } => write!(f, "fleet {fleet} ({ami})"),
        }
    }
}

/// The result of `--check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkup {
    /// What GitHub offers.
    pub offer: Offer,
    /// Each version in use.
    pub findings: Vec<Finding>,
    /// Architectures whose pinned digest differs from the published digest of the same version.
    pub wrong_digests: Vec<Architecture>,
    /// For each recorded image, its base image, if its tags name it, and the newest base image.
    pub bases: Vec<(ImageName, Option<AmiId>, AmiId)>,
}

impl Checkup {
    /// The highest urgency of all findings.
    pub fn urgency(&self, now: SystemTime) -> Urgency {
        let of = |finding: &Finding| finding.lifetime.as_ref().map_or(Urgency::None, |lifetime| lifetime.urgency(now));
        let most = self.findings.iter().map(of).max().unwrap_or(Urgency::None);
        if self.wrong_digests.is_empty() { most } else { most.max(Urgency::Due) }
    }

    /// The findings, a line each.
    pub fn lines(&self, now: SystemTime) -> Vec<String> {
        let line = |finding: &Finding| match &finding.lifetime {
            Some(lifetime) => {
                let urgency = lifetime.urgency(now);
                format!("{urgency:<4}  {}: runner {}: {}", finding.place, lifetime.version, lifetime.describe(now))
            }
            None => format!("?     {}: the image's tags do not name its runner's version", finding.place),
        };
        let wrong = |architecture: &Architecture| {
            format!(
                "due   the pinned digest for {architecture} differs from the one that GitHub publishes for {}",
                self.offer.version
            )
        };
        let newer = self.bases.iter().filter(|(_, baked, newest)| baked.as_ref() != Some(newest));
        let newer = newer.map(|(image, _, newest)| {
            format!("note  image {image}: there is a newer base image, {newest}, which the next `cargo xtask ami` uses")
        });
        self.findings.iter().map(line).chain(self.wrong_digests.iter().map(wrong)).chain(newer).collect()
    }
}

/// Checks the pinned, recorded and deployed versions at GitHub. Makes no mutating call.
///
/// # Errors
/// What AWS and GitHub answer.
pub async fn check(config: &Config, cloud: &impl Cloud, github: &OrgClient) -> Result<Checkup> {
    let downloads = github.runner_downloads().await?;
    let releases = freshness::releases_with(&downloads, github).await?;
    let offer = newest_offer(&architectures(config), &downloads)?;
    let wrong_digests = wrong_digests(config, &offer);
    let mut known = BTreeMap::new();
    let pinned = lifetime(&config.runner.version, &releases, github, &mut known).await?;
    let mut findings = vec![Finding { place: Place::Pinned, lifetime: Some(pinned) }];
    let mut bases = Vec::new();
    for (name, image) in &config.images {
        let Some(ami) = cloud.recorded(&config.image_parameter(name)).await? else { continue };
        let tags = tags(&ami, cloud).await?;
        let lifetime = of_image(&tags, &releases, github, &mut known).await?;
        findings.push(Finding { place: Place::Recorded { image: name.clone(), ami }, lifetime });
        let baked = tags.get(BASE_IMAGE_TAG).and_then(|base| base.parse().ok());
        bases.push((name.clone(), baked, ami::base(image, cloud).await?.id));
    }
    for fleet in config.fleets.values() {
        let Some(group) = cloud.group(&config.group(&fleet.name)).await? else { continue };
        let Some(live) = &group.launch_template else { continue };
        let Some(version) = cloud.template_version(&live.id, &live.version).await? else { continue };
        let tags = tags(&version.ami, cloud).await?;
        let lifetime = of_image(&tags, &releases, github, &mut known).await?;
        let place = Place::Deployed { fleet: fleet.name.clone(), ami: version.ami };
        findings.push(Finding { place, lifetime });
    }
    Ok(Checkup { offer, findings, wrong_digests, bases })
}

fn wrong_digests(config: &Config, offer: &Offer) -> Vec<Architecture> {
    if offer.version != config.runner.version {
        return Vec::new();
    }
    let differs = |(architecture, digest): &(&Architecture, &Sha256)| {
        config.runner.sha256.get(architecture).is_some_and(|pinned| pinned != *digest)
    };
    offer.sha256.iter().filter(differs).map(|(architecture, _)| *architecture).collect()
}

/// Asks GitHub only once about each version.
async fn lifetime(
    version: &RunnerVersion,
    releases: &Releases,
    github: &OrgClient,
    known: &mut BTreeMap<RunnerVersion, Lifetime>,
) -> Result<Lifetime> {
    if let Some(lifetime) = known.get(version) {
        return Ok(lifetime.clone());
    }
    let lifetime = freshness::lifetime(version, releases, github).await?;
    known.insert(version.clone(), lifetime.clone());
    Ok(lifetime)
}

async fn tags(ami: &AmiId, cloud: &impl Images) -> Result<BTreeMap<String, String>> {
    Ok(cloud.ami(ami).await?.map(|ami| ami.tags).unwrap_or_default())
}

async fn of_image(
    tags: &BTreeMap<String, String>,
    releases: &Releases,
    github: &OrgClient,
    known: &mut BTreeMap<RunnerVersion, Lifetime>,
) -> Result<Option<Lifetime>> {
    match tags.get(RUNNER_VERSION_TAG).and_then(|version| version.parse().ok()) {
        Some(version) => lifetime(&version, releases, github, known).await.map(Some),
        None => Ok(None),
    }
}

/// Fails if a version must be renewed, so that a pipeline sees it from the exit code.
///
/// # Errors
/// [`crate::Kind::Due`] with what to run.
pub fn require_fresh(checkup: &Checkup, now: SystemTime) -> Result<()> {
    let urgency = checkup.urgency(now);
    if urgency == Urgency::None {
        return Ok(());
    }
    let late = |place: fn(&Place) -> bool| {
        let of = |finding: &&Finding| place(&finding.place);
        let due = |finding: &Finding| finding.lifetime.as_ref().is_some_and(|it| it.urgency(now) > Urgency::None);
        checkup.findings.iter().filter(of).any(due)
    };
    let pinned = late(|place| *place == Place::Pinned) || !checkup.wrong_digests.is_empty();
    let recorded = late(|place| matches!(place, Place::Recorded { .. }));
    let hint = match (pinned, recorded) {
        (true, _) => "run `cargo xtask pin`, then `cargo xtask ami` and `cargo xtask deploy`",
        (false, true) => "kiln.toml is up to date: run `cargo xtask ami` and `cargo xtask deploy`",
        (false, false) => "the recorded image is up to date: run `cargo xtask deploy`",
    };
    let message = match urgency {
        Urgency::Over => "GitHub no longer supports a version in use".to_owned(),
        _ => format!("a version in use must be renewed within {} days", freshness::WARN_BEFORE.as_secs() / 86_400),
    };
    Err(Error::new(Code::Due, message).hint(hint))
}
