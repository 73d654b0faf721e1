//! What `prune` looks at: images, and everything that may name one.

use std::collections::{BTreeMap, BTreeSet};

use kiln_config::config::Config;
use kiln_config::model::{AmiId, SnapshotId};

use super::{IMAGE_TAG, Observed, PRUNED_TAG, Use};
use crate::error::Result;
use crate::ports::{
    Cloud, LaunchTemplateVersion, OwnImage, OwnSnapshot, Refresh, RefreshStatus, Stacks, TemplateVersion,
};

/// What names an image, by the image.
type Uses = BTreeMap<AmiId, BTreeSet<Use>>;

/// Looks at one region: the one that `cloud` is in. Makes no mutating call.
///
/// # Errors
/// What AWS answers.
pub async fn observe(config: &Config, cloud: &impl Cloud) -> Result<Observed> {
    let prefix = config.image_prefix();
    // First of all: whatever comes to name one of them from here on is seen below.
    let mut images = cloud.own_images().await?;
    images.retain(|image| is_ours(&image.tags, &prefix));
    let mut left = cloud.own_snapshots().await?;
    left.retain(|snapshot| is_ours(&snapshot.tags, &prefix) && is_left(snapshot, &images));
    let of_images = images.iter().flat_map(|image| image.snapshots.iter().map(|(snapshot, _)| snapshot));
    let snapshots: Vec<SnapshotId> = of_images.chain(left.iter().map(|snapshot| &snapshot.id)).cloned().collect();
    let holders = cloud.holders(&snapshots).await?;
    let uses = uses(config, &images, cloud).await?;
    Ok(Observed { images, left, uses, holders })
}

/// The names of this organization's images, those that kiln.toml has no more included, begin with the prefix.
fn is_ours(tags: &BTreeMap<String, String>, prefix: &str) -> bool {
    tags.get("kiln:managed").is_some_and(|managed| managed == "true")
        && tags.get(IMAGE_TAG).is_some_and(|name| name.starts_with(prefix))
}

/// Its AMI is gone, and it was an earlier run that removed it.
fn is_left(snapshot: &OwnSnapshot, images: &[OwnImage]) -> bool {
    let used = images.iter().flat_map(|image| &image.snapshots).any(|(id, _)| *id == snapshot.id);
    snapshot.tags.contains_key(PRUNED_TAG) && !used
}

async fn uses(config: &Config, images: &[OwnImage], cloud: &impl Cloud) -> Result<Uses> {
    let mut uses = Uses::new();
    for (name, value) in cloud.parameters_below(&config.parameter_path()).await? {
        for ami in amis_in(&value) {
            uses.entry(ami).or_default().insert(Use::Recorded(name.clone()));
        }
    }
    let prefix = config.fleet_stack_prefix();
    let versions = cloud.template_versions(&prefix).await?;
    // A fleet's launch template, stack and group have one name. A fleet that kiln.toml has no more is found so too.
    let fleets: BTreeSet<&str> = versions.iter().map(|version| version.name.as_str()).collect();
    let mut live = Vec::new();
    for fleet in fleets.into_iter().filter(|name| name.starts_with(&prefix)) {
        stack_uses(fleet, cloud, &mut uses).await?;
        live.extend(live_versions(fleet, cloud).await?);
    }
    for version in &versions {
        uses.entry(version.ami.clone()).or_default().insert(use_of(version, &prefix, &live));
    }
    let ids: Vec<AmiId> = images.iter().map(|image| image.id.clone()).collect();
    for machine in cloud.machines_of(&ids).await? {
        uses.entry(machine.ami).or_default().insert(Use::Instance(machine.id.to_string()));
    }
    Ok(uses)
}

/// Every AMI id in a text, such as a parameter's JSON.
fn amis_in(text: &str) -> impl Iterator<Item = AmiId> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter_map(|word| word.parse().ok())
}

async fn stack_uses(name: &str, cloud: &impl Stacks, uses: &mut Uses) -> Result<()> {
    let Some(stack) = cloud.stack(name).await? else { return Ok(()) };
    for ami in stack.parameters.values().flat_map(|value| amis_in(value)) {
        uses.entry(ami).or_default().insert(Use::Stack(name.to_owned()));
    }
    Ok(())
}

/// The launch template versions that a group, its instances and a running refresh have.
async fn live_versions(name: &str, cloud: &impl Cloud) -> Result<Vec<LaunchTemplateVersion>> {
    let Ok(name) = name.parse() else { return Ok(Vec::new()) };
    let Some(group) = cloud.group(&name).await? else { return Ok(Vec::new()) };
    let mut live: Vec<LaunchTemplateVersion> = group.launch_template.into_iter().collect();
    live.extend(group.instances.into_iter().filter_map(|instance| instance.launch_template));
    if let Some(Refresh { status: RefreshStatus::Running(_), to: Some(to), .. }) = cloud.newest_refresh(&name).await? {
        live.push(to);
    }
    Ok(live)
}

fn use_of(version: &TemplateVersion, prefix: &str, live: &[LaunchTemplateVersion]) -> Use {
    let text = format!("{} version {}", version.name, version.version);
    let launches = live.iter().any(|live| live.id == version.template && live.version == version.version);
    // Of other people's templates only versions that may be launched from are listed.
    if launches || version.latest || !version.name.starts_with(prefix) {
        Use::Launches(text)
    } else {
        Use::Superseded(text)
    }
}
