//! What `deploy` looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use kiln_config::config::{Config, Fleet, Network};
use kiln_config::model::{AmiId, RunnerVersion};
use kiln_github::{OrgClient, Runner};

use super::plan::newest_version;
use super::record::{Record, TargetImage};
use super::{Request, key_names};
use crate::ami;
use crate::code::Code;
use crate::error::{Error, Result};
use crate::freshness::{self, Lifetime, Urgency};
use crate::launches::{BeyondStack, LaunchWatch};
use crate::pin::RUNNER_VERSION_TAG;
use crate::ports::{Ami, Caller, Cloud, Group, Images, Inventory, LaunchTemplateVersion, Progress, Refresh, Stack};
use crate::stacks::{self, DeadStack, Found};
use crate::{on_demand, orphans};

/// The world as `deploy` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Where to go. The image exists.
    pub aim: TargetImage,
    /// The image's tags.
    pub tags: BTreeMap<String, String>,
    /// The tags of the image the stack asks for now, where that is another one.
    pub tags_now: BTreeMap<String, String>,
    /// What is recorded of the fleet.
    pub record: Record,
    /// The network's stack, where the fleet asks for one and it is there.
    pub network: Option<Stack>,
    /// The stack, if there is one that holds anything.
    pub stack: Option<Stack>,
    /// Stacks of the fleet's that can only be deleted.
    pub dead: Vec<DeadStack>,
    /// The group, if there is one.
    pub group: Option<Group>,
    /// Its newest refresh.
    pub refresh: Option<Refresh>,
    /// The runners at GitHub whose names are the fleet's.
    pub runners: Vec<Runner>,
    /// How long GitHub serves the image's runner, where that could be learnt.
    pub lifetime: Option<Lifetime>,
    /// When it was looked.
    pub at: SystemTime,
}

impl Observed {
    /// The version of the runner in the image: the pin may have moved on since it was baked.
    pub fn runner_version(&self) -> Option<RunnerVersion> {
        version_in(&self.tags)
    }

    /// What to say of an image whose runner GitHub serves for two more weeks at most.
    pub fn ends_soon(&self) -> Option<String> {
        let lifetime = self.lifetime.as_ref().filter(|lifetime| lifetime.urgency(self.at) > Urgency::None)?;
        let Lifetime { version, .. } = lifetime;
        let ami = &self.aim.ami;
        Some(format!(
            "runner {version}, in {ami}, {}: `cargo xtask pin` and `cargo xtask ami` make an image that lasts longer",
            lifetime.describe(self.at)
        ))
    }
}

/// Looks at the world. Makes no mutating call.
///
/// # Errors
/// [`crate::Kind::Precondition`] when the key or the image is missing, or a stack must be mended; what AWS and GitHub answer.
pub async fn observe(
    request: &Request<'_>,
    cloud: &impl Cloud,
    github: &OrgClient,
    progress: &dyn Progress,
) -> Result<Observed> {
    let Request { config, fleet, .. } = request;
    let baked = recorded_image(request, cloud).await?;
    let caller = cloud.caller().await?;
    ami::require_ours(config, &fleet.image, &baked, &caller)?;
    let mut dead = Vec::new();
    let network = match &fleet.network {
        Network::NewVpc => found(stacks::find(cloud, &config.network_stack(), progress).await?, &mut dead),
        Network::Subnets { .. } => None,
    };
    let name = config.group(&fleet.name);
    let mut beyond = BeyondStack { watch: LaunchWatch::of_all(&name, Some(github)), cloud };
    let stack = stacks::find_beyond(cloud, &config.fleet_stack(&fleet.name), &mut beyond, progress).await?;
    let stack = found(stack, &mut dead);
    let stack = stack.filter(|stack| stack.status != "REVIEW_IN_PROGRESS");
    on_demand::require_kind(fleet, stack.as_ref())?;
    let record = Record::read(config, &fleet.name, cloud).await?;
    let asked_for = stack.as_ref().and_then(|stack| stack.parameters.get("AmiId")?.parse::<AmiId>().ok());
    let aim = record.aim(request.target, &baked.id, asked_for.as_ref())?;
    let tags = tags_of(&aim.ami, baked, (config, fleet), &caller, cloud).await?;
    let tags_now = match asked_for {
        Some(now) if now != aim.ami => cloud.ami(&now).await?.map(|ami| ami.tags).unwrap_or_default(),
        _ => BTreeMap::new(),
    };
    // Before the group: see `orphans::among`.
    let runners = fleet_runners(fleet, stack.as_ref(), github).await?;
    let mut group = cloud.group(&name).await?;
    require_up(request, group.as_ref())?;
    if let (Some(group), Some(newest)) = (group.as_mut(), stack.as_ref().and_then(newest_version)) {
        take_equal_versions_for_newest(group, &newest, cloud).await?;
    }
    let refresh = if group.is_some() { cloud.newest_refresh(&name).await? } else { None };
    let lifetime = lifetime(version_in(&tags), github, progress).await;
    let at = SystemTime::now();
    Ok(Observed { aim, tags, tags_now, record, network, stack, dead, group, refresh, runners, lifetime, at })
}

pub(crate) fn version_in(tags: &BTreeMap<String, String>) -> Option<RunnerVersion> {
    tags.get(RUNNER_VERSION_TAG).and_then(|version| version.parse().ok())
}

/// Good to know, and no reason to stop a rollout where it can't be learnt.
async fn lifetime(version: Option<RunnerVersion>, github: &OrgClient, progress: &dyn Progress) -> Option<Lifetime> {
    let version = version?;
    let asked = async { freshness::lifetime(&version, &freshness::releases(github).await?, github).await };
    match asked.await {
        Ok(lifetime) => Some(lifetime),
        Err(error) => {
            progress.say(&format!("how long GitHub serves runner {version} could not be learnt: {error}"));
            None
        }
    }
}

pub(crate) fn found(found: Found, dead: &mut Vec<DeadStack>) -> Option<Stack> {
    match found {
        Found::Absent => None,
        Found::Usable(stack) => Some(stack),
        Found::Dead(stack) => {
            dead.push(stack);
            None
        }
    }
}

/// Refuses to go on without a key: instances could not register.
///
/// # Errors
/// [`crate::Kind::Precondition`] with the command that installs it.
pub async fn require_key(config: &Config, fleet: &Fleet, cloud: &impl Cloud) -> Result<()> {
    let names = key_names(config);
    if cloud.current_key(&names, fleet.key_store).await?.is_none() {
        return Err(Error::new(
            Code::KeyNotInstalled,
            format!("the GitHub App's key is not in {} yet, so no instance could register", fleet.key_store),
        )
        .hint("run `cargo xtask rotate-key --pem FILE` first: its first run installs the key"));
    }
    Ok(())
}

pub(crate) async fn recorded_image(request: &Request<'_>, cloud: &impl Cloud) -> Result<Ami> {
    let Request { config, fleet, .. } = request;
    let parameter = config.image_parameter(&fleet.image);
    let Some(id) = cloud.recorded(&parameter).await? else {
        return Err(Error::new(Code::ImageNotRecorded, format!("no image {} is recorded in {parameter}", fleet.image))
            .hint("run `cargo xtask ami` first: it bakes, tests and records it"));
    };
    available(&id, cloud).await
}

/// The tags of the image to deploy: the baked one, or an earlier one of ours.
///
/// # Errors
/// [`crate::Kind::Precondition`] if the image is gone or is not ours.
pub(crate) async fn tags_of(
    ami: &AmiId,
    baked: Ami,
    (config, fleet): (&Config, &Fleet),
    caller: &Caller,
    cloud: &impl Images,
) -> Result<BTreeMap<String, String>> {
    if *ami == baked.id {
        return Ok(baked.tags);
    }
    let former = available(ami, cloud).await?;
    ami::require_any_of_ours(config, &fleet.image, &former, caller)?;
    Ok(former.tags)
}

/// An image that instances can be launched from.
async fn available(id: &AmiId, cloud: &impl Images) -> Result<Ami> {
    match cloud.ami(id).await? {
        Some(ami) if ami.state == "available" => Ok(ami),
        found => {
            let state = found.map_or_else(|| "does not exist".to_owned(), |ami| format!("is {}", ami.state));
            Err(Error::new(Code::ImageUnavailable, format!("{id}, which is recorded as the image to serve, {state}"))
                .hint("run `cargo xtask ami`: it bakes the image anew and records it"))
        }
    }
}

/// Refuses a group that `destroy` has scaled to nothing: nobody would be served by it, and all its instances are new.
fn require_up(request: &Request<'_>, group: Option<&Group>) -> Result<()> {
    let name = &request.fleet.name;
    if request.fleet.max > 0 && group.is_some_and(|group| group.max == 0) {
        return Err(Error::new(
            Code::FleetDraining,
            format!("fleet {name} is being taken down: its group has no capacity"),
        )
        .hint(format!(
            "`cargo xtask destroy --fleet {name}` ends that, and after it `cargo xtask deploy` makes the fleet anew"
        )));
    }
    Ok(())
}

/// Names the stack's newest launch template version in place of those that launch the very same. When the update of a stack
/// fails, CloudFormation goes back by making one more version with the former content: nothing has to be rolled for that.
pub(super) async fn take_equal_versions_for_newest(
    group: &mut Group,
    newest: &LaunchTemplateVersion,
    cloud: &impl Inventory,
) -> Result<()> {
    let used = group.instances.iter_mut().filter_map(|instance| instance.launch_template.as_mut());
    let used = used.chain(group.launch_template.as_mut());
    let mut others: Vec<&mut LaunchTemplateVersion> =
        used.filter(|used| used.id == newest.id && used.version != newest.version).collect();
    let among: BTreeSet<String> = others.iter().map(|other| other.version.clone()).collect();
    if among.is_empty() {
        return Ok(());
    }
    let same = cloud.same_versions(&newest.id, &newest.version, &among).await?;
    for other in others.iter_mut().filter(|other| same.contains(&other.version)) {
        other.version.clone_from(&newest.version);
    }
    Ok(())
}

/// Runners of this fleet's instances, by name.
pub(super) async fn fleet_runners(fleet: &Fleet, stack: Option<&Stack>, github: &OrgClient) -> Result<Vec<Runner>> {
    let prefix = orphans::name_prefix(&fleet.name);
    let mut runners = github.runners_in(&orphans::runner_groups(Some(fleet), stack)).await?;
    runners.retain(|runner| runner.name.starts_with(&prefix));
    Ok(runners)
}
