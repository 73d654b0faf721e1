//! Taking on-demand fleets down: a fleet is paused, so that the controller removes its idle runners and launches no more; the
//! others end with their jobs. Then its scale set goes, its entry, its stack; with the last fleet the controller.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_config::boot::{FLEET_TAG, ORGANIZATION_TAG};
use kiln_config::config::Config;
use kiln_config::model::FleetName;
use kiln_controller::documents::Control;
use kiln_controller::ports::ScaleSetSpec;
use kiln_github::OrgClient;
use kiln_github::scale_set::{ClientInfo, ScaleSetClient, ScaleSetErrorKind};

use super::control::{change, read_control};
use super::control_bucket;
use super::observe::{controllers_group, named};
use crate::code::Code;
use crate::destroy::{ObservedStack, Step};
use crate::error::{Error, Result};
use crate::ports::{Cloud, Group, Inventory, Progress};
use crate::wait::{PollBackoff, human};

/// GitHub ends a job on a runner of one's own after five days; half a day is for the instance and for EC2.
///
/// Source: <https://docs.github.com/en/actions/reference/limits>
const LAST_JOB_LIMIT: Duration = Duration::from_secs((5 * 24 + 12) * 3600);

/// What there is of on-demand fleets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The control document.
    pub control: Control,
    /// How many instances the fleets that are asked for have, where they have any.
    pub instances: BTreeMap<FleetName, usize>,
    /// The controller's stack.
    pub controller: ObservedStack,
    /// Its group.
    pub group: Option<Group>,
    /// Its bucket.
    pub bucket: String,
}

/// Looks at them; nothing where there is no controller. Makes no mutating call.
pub(crate) async fn observe(
    config: &Config,
    fleets: &[FleetName],
    controller: Option<ObservedStack>,
    cloud: &impl Cloud,
) -> Result<Option<Ending>> {
    let Some(controller) = controller else { return Ok(None) };
    let bucket = control_bucket(config, &cloud.caller().await?);
    let control = read_control(&bucket, cloud).await?.document;
    let mut instances = BTreeMap::new();
    for fleet in fleets {
        let count = count(config, fleet, cloud).await?;
        if count > 0 {
            instances.insert(fleet.clone(), count);
        }
    }
    let group = cloud.group(&controllers_group(config)).await?;
    Ok(Some(Ending { control, instances, controller, group, bucket }))
}

/// The fleet's instances that exist, by their tags: another organization may have a fleet of that name.
async fn count(config: &Config, fleet: &FleetName, cloud: &impl Inventory) -> Result<usize> {
    let tagged = cloud.machines_tagged(FLEET_TAG, fleet.as_str()).await?;
    let prefix = config.prefix();
    Ok(tagged.iter().filter(|machine| machine.tags.get(ORGANIZATION_TAG) == Some(&prefix)).count())
}

impl Ending {
    fn set(&self, fleet: &FleetName) -> Option<&ScaleSetSpec> {
        self.control.fleets.get(&named(fleet)).map(|settings| &settings.set)
    }

    /// Is the fleet one of the controller's?
    pub fn has(&self, fleet: &FleetName) -> bool {
        self.set(fleet).is_some() || self.instances.contains_key(fleet)
    }

    /// What comes before all else: no new jobs.
    pub(crate) fn pause(&self, fleet: &FleetName) -> Option<Step> {
        let settings = self.control.fleets.get(&named(fleet)).filter(|settings| !settings.paused)?;
        let instances = self.instances.get(fleet).copied().unwrap_or_default();
        Some(Step::Pause { fleet: fleet.clone(), set: settings.set.name.clone(), instances })
    }

    pub(crate) fn await_ended(&self, fleet: &FleetName) -> Option<Step> {
        self.has(fleet).then(|| Step::AwaitEnded { fleet: fleet.clone() })
    }

    /// The scale set, and the entry that says which it was.
    pub(crate) fn leave(&self, fleet: &FleetName) -> Vec<Step> {
        let Some(set) = self.set(fleet) else { return Vec::new() };
        vec![Step::RemoveScaleSet { set: set.clone() }, Step::Leave { fleet: fleet.clone() }]
    }

    /// The controller, where it has no fleet left.
    pub(crate) fn end(&self, fleets: &[FleetName]) -> Vec<Step> {
        let asked = |name: &str| fleets.iter().any(|fleet| fleet.as_str() == name);
        if self.control.fleets.keys().any(|name| !asked(name.as_str())) {
            return Vec::new();
        }
        let mut steps = Vec::new();
        if let Some(group) = &self.group {
            let name = group.name.clone();
            if group.max > 0 || group.desired > 0 {
                steps.push(Step::StopController { group: name.clone() });
            }
            steps.push(Step::AwaitDrained { group: name, drain_timeout: Duration::ZERO });
        }
        steps.push(Step::EmptyBucket { bucket: self.bucket.clone() });
        steps.push(crate::destroy::delete(&self.controller));
        steps
    }

    /// Instances of such fleets can't be ended at once yet.
    ///
    /// # Errors
    /// [`Code::PreconditionsUnmet`] with the command that does it.
    pub(crate) fn require_time(&self, fleets: &[FleetName]) -> Result<()> {
        let Some(fleet) = fleets.iter().find(|fleet| self.has(fleet)) else { return Ok(()) };
        let message = format!("fleet {fleet} is on demand: `--now` can't end its instances yet");
        Err(Error::new(Code::PreconditionsUnmet, message).hint(format!(
            "without `--now` the command waits for their jobs; `aws ec2 terminate-instances` ends those with the tag \
             {FLEET_TAG}={fleet}, and their jobs fail"
        )))
    }
}

/// Carries out the steps that are about on-demand fleets.
pub(crate) async fn apply(
    config: &Config,
    step: &Step,
    cloud: &impl Cloud,
    github: Option<&OrgClient>,
    progress: &dyn Progress,
) -> Result<()> {
    let bucket = control_bucket(config, &cloud.caller().await?);
    match step {
        Step::Pause { fleet, .. } => {
            let name = named(fleet);
            let edit = |control: &mut Control| {
                if let Some(settings) = control.fleets.get_mut(&name) {
                    settings.paused = true;
                }
            };
            change(&bucket, edit, cloud).await
        }
        Step::AwaitEnded { fleet } => ended(config, fleet, cloud, progress).await,
        Step::RemoveScaleSet { set } => match github {
            Some(github) => remove(config, set, github, progress).await,
            None => {
                progress
                    .warn(&format!("scale set {} stays at GitHub, which could not be asked to delete it", set.name));
                Ok(())
            }
        },
        Step::Leave { fleet } => {
            let name = named(fleet);
            change(&bucket, |control: &mut Control| drop(control.fleets.remove(&name)), cloud).await
        }
        Step::StopController { group } => Ok(cloud.scale_to_zero(group).await?),
        Step::EmptyBucket { bucket } => Ok(cloud.empty_bucket(bucket).await?),
        _ => Ok(()),
    }
}

async fn ended(config: &Config, fleet: &FleetName, cloud: &impl Inventory, progress: &dyn Progress) -> Result<()> {
    let mut pace = PollBackoff::new(LAST_JOB_LIMIT);
    loop {
        let left = count(config, fleet, cloud).await?;
        if left == 0 {
            return Ok(());
        }
        progress.state(&format!("fleet {fleet} has {left} instance(s) left"));
        if pace.pause().await.is_err() {
            let message = format!("fleet {fleet} still had {left} instance(s) after {}", human(LAST_JOB_LIMIT));
            return Err(Error::new(Code::DrainTimeout, message).hint(
                "the same command again waits on. Idle instances are ended by the controller: `cargo xtask status` shows \
                 whether it is at work",
            ));
        }
    }
}

/// Deletes a scale set; one that is gone is no error.
async fn remove(config: &Config, set: &ScaleSetSpec, github: &OrgClient, progress: &dyn Progress) -> Result<()> {
    let client = scale_sets(config, github)?;
    let failed = |error: kiln_github::scale_set::ScaleSetError| {
        Error::new(Code::GitHubRejected, format!("scale set {} can't be deleted", set.name)).caused_by(error)
    };
    let Some(found) = client.find(set.group, &set.name).await.map_err(failed)? else { return Ok(()) };
    match client.delete(found.id).await {
        Ok(()) => progress.say(&format!("scale set {} deleted", set.name)),
        Err(error) if error.kind == ScaleSetErrorKind::SetGone => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(())
}

fn scale_sets(config: &Config, github: &OrgClient) -> Result<ScaleSetClient> {
    let fail = |message: &str| Error::new(Code::Internal, message.to_owned());
    let mut page = config.github.url.clone();
    page.path_segments_mut()
        .map_err(|()| fail("GitHub's address can't have a path"))?
        .pop_if_empty()
        .push(config.organization.as_str());
    let info = ClientInfo {
        system: "kiln".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        subsystem: "destroy".to_owned(),
    };
    ScaleSetClient::new(&config.github.api_url, &page, &info, github.clone())
        .map_err(|error| fail("HTTPS can't be set up").caused_by(error))
}
