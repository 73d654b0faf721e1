//! What `deploy` looks at, of an on-demand fleet.

use std::time::{SystemTime, UNIX_EPOCH};

use kiln_config::config::{Config, Fleet, Network};
use kiln_config::model::RunnerVersion;
use kiln_controller::clock::Timestamp;
use kiln_controller::documents::{Control, FleetStatus};
use kiln_controller::ids::FleetName as Named;
use kiln_github::OrgClient;

use super::{control_bucket, read_control, read_status, require_kind};
use crate::ami;
use crate::code::Code;
use crate::deploy::{Record, Request, TargetImage, found, recorded_image, tags_of, version_in};
use crate::error::{Error, Result};
use crate::ports::{Cloud, Group, Progress, Stack};
use crate::stacks::{self, DeadStack};

/// The world as `deploy` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Where to go. The image exists.
    pub aim: TargetImage,
    /// The version of the runner in the image.
    pub runner: Option<RunnerVersion>,
    /// What is recorded of the fleet.
    pub record: Record,
    /// The network's stack, where the fleet or the host asks for one and it is there.
    pub network: Option<Stack>,
    /// The fleet's stack.
    pub stack: Option<Stack>,
    /// The controller's.
    pub controller: Option<Stack>,
    /// The controller's group.
    pub group: Option<Group>,
    /// Stacks that can only be deleted.
    pub dead: Vec<DeadStack>,
    /// The controller's bucket.
    pub bucket: String,
    /// The id of the fleet's runner group.
    pub runner_group: i64,
    /// The control document.
    pub control: Control,
    /// What the controller says of the fleet.
    pub status: Option<FleetStatus>,
    /// A version of the fleet's launch template with the image to go back to.
    pub former: Option<u64>,
    /// When it was looked.
    pub at: Timestamp,
}

/// The fleet in whose place the controller lives.
pub(super) fn host<'a>(config: &'a Config, fleet: &'a Fleet) -> &'a Fleet {
    config.on_demand_fleets().next().unwrap_or(fleet)
}

/// A fleet's name, as the documents have it.
pub(super) fn named(fleet: &kiln_config::model::FleetName) -> Named {
    Named::new(fleet.as_str())
}

/// Now, as the documents have it.
pub(super) fn now() -> Timestamp {
    Timestamp::default().plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Looks at the world. Makes no mutating call.
///
/// # Errors
/// [`crate::Kind::Precondition`] when the image is missing, the fleet is of another kind, or a stack needs a person; what AWS
/// and GitHub answer.
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
    let mut look = async |name: &str| -> Result<Option<Stack>> {
        Ok(found(stacks::find(cloud, name, progress).await?, &mut dead)
            .filter(|stack| stack.status != "REVIEW_IN_PROGRESS"))
    };
    let makes = [*fleet, host(config, fleet)].iter().any(|fleet| fleet.network == Network::NewVpc);
    let network = if makes { look(&config.network_stack()).await? } else { None };
    let controller = look(&config.controller_stack()).await?;
    let stack = look(&config.fleet_stack(&fleet.name)).await?;
    require_kind(fleet, stack.as_ref())?;
    let record = Record::read(config, &fleet.name, cloud).await?;
    let asked_for = stack.as_ref().and_then(|stack| stack.parameters.get("AmiId")?.parse().ok());
    let aim = record.aim(request.target, &baked.id, asked_for.as_ref())?;
    let tags = tags_of(&aim.ami, baked, (config, fleet), &caller, cloud).await?;
    let bucket = control_bucket(config, &caller);
    let (control, status) = match controller {
        Some(_) => (read_control(&bucket, cloud).await?.document, read_status(&bucket, cloud).await?),
        None => (super::control::nothing(), kiln_controller::documents::Status::default()),
    };
    let group = match controller {
        Some(_) => cloud.group(&controllers_group(config)).await?,
        None => None,
    };
    let former = match (&stack, asked_for.filter(|now| *now != aim.ami)) {
        (Some(stack), Some(_)) => version_with(stack, &aim, cloud).await?,
        _ => None,
    };
    Ok(Observed {
        runner: version_in(&tags),
        runner_group: runner_group(fleet, github).await?,
        status: status.fleets.get(&named(&fleet.name)).cloned(),
        at: now(),
        aim,
        record,
        network,
        stack,
        controller,
        group,
        dead,
        bucket,
        control,
        former,
    })
}

/// The group of the controller has its stack's name.
pub(super) fn controllers_group(config: &Config) -> kiln_config::model::GroupName {
    config.controller_stack().parse().expect("a stack name of letters, digits and hyphens is a group name")
}

/// The newest version of the fleet's launch template that has the image.
async fn version_with(stack: &Stack, aim: &TargetImage, cloud: &impl Cloud) -> Result<Option<u64>> {
    let versions = cloud.template_versions(&stack.name).await?;
    let with_it = versions.iter().filter(|version| version.name == stack.name && version.ami == aim.ami);
    Ok(with_it.filter_map(|version| version.version.parse().ok()).max())
}

async fn runner_group(fleet: &Fleet, github: &OrgClient) -> Result<i64> {
    let groups = github.runner_groups().await?;
    let group = groups.into_iter().find(|group| group.name == fleet.runner_group);
    group.and_then(|group| i64::try_from(group.id).ok()).ok_or_else(|| {
        let message =
            format!("the organization has no runner group `{}`, which fleet {} names", fleet.runner_group, fleet.name);
        Error::new(Code::PreconditionsUnmet, message).hint("make it in the organization's settings, or name another")
    })
}
