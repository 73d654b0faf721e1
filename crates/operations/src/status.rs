//! `cargo xtask status`: the state of fleets, images, runners and keys. Read-only.
//!
//! If something can't be read, for example because GitHub is unreachable or no key is installed yet, the report says so instead of
//! guessing.

use std::collections::BTreeMap;
use std::time::SystemTime;

use kiln_config::config::{Config, Fleet};
use kiln_config::model::{AmiId, FleetName, GroupName, ImageName, InstanceId, KeyStore, RunnerVersion};
use kiln_github::{Fingerprint, OrgClient, Runner};

use crate::deploy::{self, Held, Record, key_names};
use crate::error::Result;
use crate::freshness::{self, Lifetime, Releases, Urgency};
use crate::on_demand::{self, Health};
use crate::orphans::{self, Orphan, is_of, runner_groups_of};
use crate::pin::RUNNER_VERSION_TAG;
use crate::ports::{Cloud, Group, GroupInstance, OwnImage, Refresh, ShownState};

/// A list in a note is for people; `--json` has all of it.
const MOST_NAMED: usize = 5;

/// The report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The time of the observation.
    pub at: SystemTime,
    /// The requested fleets.
    pub fleets: Vec<FleetStatus>,
    /// Stacks with a fleet's name that are not in kiln.toml.
    pub strangers: Vec<String>,
    /// The images that the fleets launch, or would after a `deploy`.
    pub images: Vec<ImageStatus>,
    /// The key in use in each store in use.
    pub keys: Vec<(KeyStore, Option<Fingerprint>)>,
    /// Why GitHub did not answer, if so.
    pub github: Option<String>,
}

/// A fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetStatus {
    pub name: FleetName,
    /// Its stack's status, if there is one.
    pub stack: Option<String>,
    /// The image that its group launches.
    pub image: Option<AmiId>,
    /// The newest image baked for it.
    pub baked: Option<AmiId>,
    /// What `deploy` recorded about the fleet.
    pub record: Record,
    /// Its group, if there is one.
    pub group: Option<Group>,
    /// The newest refresh of its group, whatever its status.
    pub refresh: Option<Refresh>,
    /// The current holder of the fleet's lock.
    pub lock: Option<Held>,
    /// What its instances say of themselves.
    pub shown: Vec<ShownState>,
    /// Its runners; `None` if GitHub did not answer.
    pub runners: Option<Vec<RunnerStatus>>,
    /// What its controller says, where it is an on-demand fleet.
    pub on_demand: Option<Health>,
}

/// A runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerStatus {
    /// Its id at GitHub.
    pub id: u64,
    pub name: String,
    pub state: RunnerState,
    /// Its instance, if the group has it.
    pub instance: Option<InstanceId>,
    /// Its version, if GitHub reports it.
    pub version: Option<String>,
}

/// The state of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunnerState {
    /// Online, without a job.
    Idle,
    /// Online, with a job.
    Busy,
    /// Not online; its instance exists, or GitHub still assigns a job to it.
    Offline,
    /// Not online, and its instance is gone: what `--fix` removes.
    Orphaned,
}

impl RunnerState {
    /// Every state, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Idle, Self::Busy, Self::Offline, Self::Orphaned];

    /// Its name: `idle`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Offline => "offline",
            Self::Orphaned => "orphaned",
        }
    }
}

/// An image that is launched, or recorded as the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageStatus {
    /// Its id.
    pub ami: AmiId,
    /// The image that it is the newest of, if it is.
    pub newest_of: Option<ImageName>,
    /// Whether it exists.
    pub exists: bool,
    /// When it was baked, if it belongs to this account.
    pub created: Option<SystemTime>,
    /// Its runner's version, if its tags name it.
    pub version: Option<RunnerVersion>,
    /// How long GitHub supports that version; `None` if GitHub did not answer.
    pub lifetime: Option<Lifetime>,
}

impl FleetStatus {
    /// The number of runners in a state; `None` if GitHub did not answer.
    pub fn count(&self, state: RunnerState) -> Option<usize> {
        Some(self.runners.as_ref()?.iter().filter(|runner| runner.state == state).count())
    }

    /// The instances in service.
    pub fn in_service(&self) -> impl Iterator<Item = &GroupInstance> {
        self.group.iter().flat_map(|group| &group.instances).filter(|instance| instance.state == "InService")
    }

    /// Its runners whose instances are gone.
    pub fn orphans(&self) -> Vec<Orphan> {
        let runners = self.runners.iter().flatten().filter(|runner| runner.state == RunnerState::Orphaned);
        runners.map(|runner| Orphan { id: runner.id, name: runner.name.clone() }).collect()
    }

    /// Instances in service without an online runner; empty if GitHub did not answer.
    pub fn silent(&self) -> Vec<&InstanceId> {
        let Some(runners) = &self.runners else { return Vec::new() };
        let heard = |id: &InstanceId| {
            let own = runners.iter().filter(|runner| runner.instance.as_ref() == Some(id));
            own.into_iter().any(|runner| matches!(runner.state, RunnerState::Idle | RunnerState::Busy))
        };
        self.in_service().map(|instance| &instance.id).filter(|id| !heard(id)).collect()
    }
}

/// Observes the state. The number of calls grows with the number of fleets and pages, not of instances.
///
/// # Errors
/// AWS's errors. GitHub's errors become part of the report.
pub async fn observe(
    config: &Config,
    fleets: &[&Fleet],
    cloud: &impl Cloud,
    github: Option<&OrgClient>,
    at: SystemTime,
) -> Result<Report> {
    let mut keys = Vec::new();
    for store in config.key_stores() {
        let key = cloud.current_key(&key_names(config), store).await?;
        keys.push((store, key.map(|key| key.fingerprint)));
    }
    // Before the groups: see `orphans::among`.
    let (runners, why) = match github {
        Some(github) => {
            let groups = runner_groups_of(config, fleets.iter().map(|fleet| &fleet.name), cloud).await?;
            known(github.runners_in(&groups).await)
        }
        None => (None, Some("no key of the App is installed".to_owned())),
    };
    let names: Vec<GroupName> = fleets.iter().map(|fleet| config.group(&fleet.name)).collect();
    let shown = cloud.shown_states(&names).await?;
    let mut statuses = Vec::new();
    for fleet in fleets {
        let shown: Vec<ShownState> =
            shown.iter().filter(|shown| shown.group == config.group(&fleet.name)).cloned().collect();
        statuses.push(FleetStatus { shown, ..fleet_status(config, fleet, runners.as_deref(), cloud).await? });
    }
    let stacks: Vec<String> = config.fleets.keys().map(|name| config.fleet_stack(name)).collect();
    let mut strangers = cloud.stacks_named(&config.fleet_stack_prefix()).await?;
    strangers.retain(|name| !stacks.contains(name));
    let (images, late) = images(fleets, &statuses, cloud, github.filter(|_| why.is_none())).await?;
    Ok(Report { at, fleets: statuses, strangers, images, keys, github: why.or(late) })
}

/// Splits a result into the value and the reason why there is none.
fn known<T>(answer: std::result::Result<T, impl Into<crate::Error>>) -> (Option<T>, Option<String>) {
    match answer {
        Ok(known) => (Some(known), None),
        Err(error) => (None, Some(error.into().message)),
    }
}

async fn fleet_status(
    config: &Config,
    fleet: &Fleet,
    runners: Option<&[Runner]>,
    cloud: &impl Cloud,
) -> Result<FleetStatus> {
    let name = config.group(&fleet.name);
    let on_demand = on_demand::health(config, fleet, cloud).await?;
    let stack = cloud.stack(&config.fleet_stack(&fleet.name)).await?;
    let group = cloud.group(&name).await?;
    let refresh = if group.is_some() { cloud.newest_refresh(&name).await? } else { None };
    let image = match group.as_ref().and_then(|group| group.launch_template.as_ref()) {
        Some(live) => cloud.template_version(&live.id, &live.version).await?.map(|version| version.ami),
        None => None,
    };
    Ok(FleetStatus {
        name: fleet.name.clone(),
        stack: stack.map(|stack| stack.status),
        image,
        baked: cloud.recorded(&config.image_parameter(&fleet.image)).await?,
        record: Record::read(config, &fleet.name, cloud).await?,
        lock: deploy::held(config, &fleet.name, cloud).await?,
        runners: runners.map(|runners| match on_demand {
            Some(_) => runners_on_demand(&fleet.name, runners),
            None => runners_of(&fleet.name, runners, group.as_ref()),
        }),
        group,
        refresh,
        shown: Vec::new(),
        on_demand,
    })
}

/// The runners of an on-demand fleet; pure. None of them is orphaned: it is registered before it comes online, and its
/// controller removes it when its instance is gone.
pub fn runners_on_demand(fleet: &FleetName, runners: &[Runner]) -> Vec<RunnerStatus> {
    let mut all = runners_of(fleet, runners, None);
    for runner in all.iter_mut().filter(|runner| runner.state == RunnerState::Orphaned) {
        runner.state = RunnerState::Offline;
    }
    all
}

/// A fleet's runners with their states; pure. The caller must read the runners before the group.
pub fn runners_of(fleet: &FleetName, runners: &[Runner], group: Option<&Group>) -> Vec<RunnerStatus> {
    let prefix = orphans::name_prefix(fleet);
    let orphans = orphans::among(fleet, runners, group);
    let instances = group.map_or(&[][..], |group| &group.instances);
    let status = |runner: &Runner| {
        let state = match (runner.is_online(), runner.busy) {
            (true, true) => RunnerState::Busy,
            (true, false) => RunnerState::Idle,
            (false, _) if orphans.iter().any(|orphan| orphan.id == runner.id) => RunnerState::Orphaned,
            (false, _) => RunnerState::Offline,
        };
        let instance = instances.iter().find(|instance| is_of(runner, instance.id.as_str()));
        let (name, version) = (runner.name.clone(), runner.version.clone().filter(|version| !version.is_empty()));
        RunnerStatus { id: runner.id, name, state, instance: instance.map(|instance| instance.id.clone()), version }
    };
    runners.iter().filter(|runner| runner.name.starts_with(&prefix)).map(status).collect()
}

async fn images(
    fleets: &[&Fleet],
    statuses: &[FleetStatus],
    cloud: &impl Cloud,
    github: Option<&OrgClient>,
) -> Result<(Vec<ImageStatus>, Option<String>)> {
    let mut wanted: BTreeMap<AmiId, Option<ImageName>> = BTreeMap::new();
    wanted.extend(statuses.iter().filter_map(|status| Some((status.image.clone()?, None))));
    // After all of those: an image may be launched by one fleet and be the newest of another.
    for (fleet, status) in fleets.iter().zip(statuses) {
        wanted.extend(status.baked.clone().map(|ami| (ami, Some(fleet.image.clone()))));
    }
    if wanted.is_empty() {
        return Ok((Vec::new(), None));
    }
    let own: BTreeMap<AmiId, OwnImage> =
        cloud.own_images().await?.into_iter().map(|image| (image.id.clone(), image)).collect();
    let (releases, mut why) = match github {
        Some(github) => known(freshness::releases(github).await),
        None => (None, None),
    };
    let mut images = Vec::new();
    for (ami, newest_of) in wanted {
        let (exists, created, tags) = match own.get(&ami) {
            Some(image) => (true, image.created, image.tags.clone()),
            // Another account's, shared with this one; or gone.
            None => {
                let found = cloud.ami(&ami).await?;
                (found.is_some(), None, found.map(|found| found.tags).unwrap_or_default())
            }
        };
        let version: Option<RunnerVersion> = tags.get(RUNNER_VERSION_TAG).and_then(|version| version.parse().ok());
        let (lifetime, error) = lifetime(version.as_ref(), releases.as_ref(), github).await;
        why = why.or(error);
        images.push(ImageStatus { ami, newest_of, exists, created, version, lifetime });
    }
    Ok((images, why))
}

async fn lifetime(
    version: Option<&RunnerVersion>,
    releases: Option<&Releases>,
    github: Option<&OrgClient>,
) -> (Option<Lifetime>, Option<String>) {
    match (version, releases, github) {
        (Some(version), Some(releases), Some(github)) => known(freshness::lifetime(version, releases, github).await),
        _ => (None, None),
    }
}

impl Report {
    /// The problems that need attention, one line each; pure.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self
            .github
            .iter()
            .map(|why| format!("GitHub could not be asked, so runners are left out: {why}"))
            .collect();
        for (store, key) in &self.keys {
            if key.is_none() {
                notes.push(format!("no key of the App is in {store}: `cargo xtask rotate-key --pem FILE` installs it"));
            }
        }
        notes.extend(self.fleets.iter().flat_map(fleet_notes));
        notes.extend(self.images.iter().filter_map(|image| self.image_note(image)));
        let stranger = |stack| format!("stack {stack} belongs to a fleet that is not in kiln.toml");
        notes.extend(self.strangers.iter().map(stranger));
        notes
    }

    fn image_note(&self, image: &ImageStatus) -> Option<String> {
        let ImageStatus { ami, version, lifetime, .. } = image;
        if !image.exists {
            return Some(format!("{ami} no longer exists: `cargo xtask ami` bakes the image again"));
        }
        let lifetime = lifetime.as_ref().filter(|lifetime| lifetime.urgency(self.at) > Urgency::None)?;
        let version = version.as_ref()?;
        Some(format!("runner {version}, in {ami}, {}: `cargo xtask pin` updates the pin", lifetime.describe(self.at)))
    }
}

/// The first few by name.
fn named(instances: &[&InstanceId]) -> String {
    let more = instances.len().saturating_sub(MOST_NAMED);
    let named: Vec<&str> = instances.iter().take(MOST_NAMED).map(|id| id.as_str()).collect();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", named.join(", "))
}

/// What instances say is wrong with them, a line for each state.
pub(crate) fn troubles(shown: &[ShownState]) -> impl Iterator<Item = String> {
    let mut by_state: BTreeMap<&str, (&str, Vec<&InstanceId>)> = BTreeMap::new();
    for one in shown {
        if let Some(trouble) = one.trouble() {
            by_state.entry(&one.state).or_insert((trouble, Vec::new())).1.push(&one.instance);
        }
    }
    let lines =
        by_state.into_iter().map(|(state, (trouble, instances))| format!("{state}: {}; {trouble}", named(&instances)));
    lines.collect::<Vec<_>>().into_iter()
}

fn fleet_notes(fleet: &FleetStatus) -> Vec<String> {
    let name = &fleet.name;
    let mut notes: Vec<String> = fleet.on_demand.iter().flat_map(|health| health.notes(name.as_str())).collect();
    let silent = fleet.silent();
    if !silent.is_empty() {
        notes.push(format!("fleet {name}: in service without a runner online: {}", named(&silent)));
    }
    notes.extend(troubles(&fleet.shown).map(|trouble| format!("fleet {name}: {trouble}")));
    if let Some(group) = fleet.group.as_ref().filter(|group| !group.suspended.is_empty()) {
        let suspended: Vec<String> =
            group.suspended.iter().map(|one| format!("{} ({})", one.process, one.reason)).collect();
        let (suspended, resume) = (suspended.join(", "), deploy::resume_command(group));
        notes.push(format!("fleet {name}: suspended: {suspended}; once its cause is fixed, `{resume}`"));
    }
    let orphans = fleet.orphans().len();
    if orphans > 0 {
        notes.push(format!(
            "fleet {name}: {orphans} runner(s) without an instance, which `cargo xtask status --fix` removes"
        ));
    }
    match &fleet.baked {
        Some(baked) if fleet.record.rejected.as_ref() == Some(baked) => {
            notes.push(format!("fleet {name}: {baked} is the newest image, but a rollback rejected it"));
        }
        Some(baked) if fleet.stack.is_some() && fleet.image.as_ref() != Some(baked) => {
            notes.push(format!(
                "fleet {name}: {baked} is newer than the image that it launches; `cargo xtask deploy` rolls it out"
            ));
        }
        _ => {}
    }
    notes
}
