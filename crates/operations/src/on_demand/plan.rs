//! From what was observed, the steps. Pure.

use std::time::Duration;

use kiln_config::config::{Config, Network};
use kiln_controller::documents::Settings;
use kiln_controller::ports::ScaleSetSpec;

use super::observe::{controllers_group, host, named};
use super::requests::{controller_request, fleet_request, subnets};
use super::{Entry, Observed, Step};
use crate::code::Code;
use crate::deploy::{Request, Target};
use crate::error::{Error, Result};
use crate::fleet_stack::{network_request, output_reference};
use crate::plan::Plan;
use crate::ports::{Stack, StackRequest};
use crate::stacks::{self, Difference, StackStep};

/// A controller that has said nothing of a fleet for so long is looked for: it writes at least once a minute.
pub(super) const SILENT: Duration = Duration::from_secs(300);

/// What kiln.toml leaves out: a day.
const MAX_AGE_SECS: u64 = 24 * 3600;

/// What has to be done; pure.
///
/// # Errors
/// [`crate::Kind::Configuration`] when the fleet can't be described to its instances; [`Code::ScaleSetFixed`] when its labels
/// or its runner group are others than its scale set's.
pub fn plan(request: &Request<'_>, observed: &Observed) -> Result<Plan<Step>> {
    let planner = Planner::new(request, observed);
    let mut steps = planner.before();
    let controller = planner.controller()?;
    let fleet = planner.fleet()?;
    let entry = planner.entry(fleet.is_some());
    planner.require_the_same_set(&entry)?;
    let rolls = planner.controller_is_to_be_replaced(controller.as_ref());
    steps.extend(controller.map(Step::Stack));
    steps.extend(fleet.map(Step::Stack));
    steps.extend(planner.control(entry));
    if rolls {
        steps.push(Step::RollController { group: controllers_group(request.config) });
    }
    if !steps.is_empty() || !planner.is_heard_from() {
        steps.push(Step::AwaitController { fleet: request.fleet.name.clone() });
    }
    let Observed { aim, record, .. } = observed;
    if record.current.as_ref() != Some(&aim.ami) {
        steps.push(Step::Mark { ami: aim.ami.clone(), former: record.current.clone() });
    }
    let settled = planner.settled_because();
    Ok(Plan { subject: format!("fleet {}", request.fleet.name), steps, settled })
}

struct Planner<'a> {
    request: &'a Request<'a>,
    observed: &'a Observed,
    /// With the runner's version that the image has.
    config: Config,
}

impl<'a> Planner<'a> {
    fn new(request: &'a Request<'a>, observed: &'a Observed) -> Self {
        let mut config: Config = request.config.clone();
        if let Some(version) = &observed.runner {
            config.runner.version = version.clone();
        }
        Self { request, observed, config }
    }

    /// What comes first, whatever the fleet is like.
    fn before(&self) -> Vec<Step> {
        let Observed { aim, record, dead, network, .. } = self.observed;
        let mut steps = Vec::new();
        if let Some(ami) = &aim.reject {
            steps.push(Step::Reject { ami: ami.clone() });
        }
        if aim.accept {
            steps.push(Step::Accept { ami: record.rejected.clone() });
        }
        steps.extend(self.point_back());
        steps.extend(dead.iter().cloned().map(Step::Clear));
        let fleets = [self.request.fleet, host(&self.config, self.request.fleet)];
        if fleets.iter().any(|fleet| fleet.network == Network::NewVpc) {
            let request = network_request(&self.config);
            if let Some(difference) = stacks::difference(network.as_ref(), &request) {
                steps.push(Step::Stack(StackStep { request, difference }));
            }
        }
        steps
    }

    /// A rollback does not wait for CloudFormation where a version with the former image is there.
    fn point_back(&self) -> Option<Step> {
        let version = self.observed.former.filter(|_| self.request.target == Target::Previous)?;
        let now = self.observed.control.fleets.get(&named(&self.request.fleet.name))?.version;
        (now != version).then(|| Step::PointBack { version, ami: self.observed.aim.ami.clone() })
    }

    /// The controller's stack. Only its host's image is its own.
    fn controller(&self) -> Result<Option<StackStep>> {
        let Observed { aim, bucket, network, controller, .. } = self.observed;
        let host = host(&self.config, self.request.fleet);
        let mut request = controller_request(&self.config, host, &aim.ami, bucket, network.as_ref())?;
        let kept = controller.as_ref().and_then(|stack| stack.parameters.get("AmiId"));
        if let (Some(kept), true) = (kept, host.name != self.request.fleet.name) {
            request.parameters.insert("AmiId".to_owned(), kept.clone());
        }
        Ok(step(controller.as_ref(), request))
    }

    fn fleet(&self) -> Result<Option<StackStep>> {
        let Observed { aim, bucket, network, stack, .. } = self.observed;
        let request = fleet_request(&self.config, self.request.fleet, &aim.ami, bucket, network.as_ref())?;
        Ok(step(stack.as_ref(), request))
    }

    /// What the control document is to say; `changing` is whether the fleet's stack has yet to be brought there.
    fn entry(&self, changing: bool) -> Entry {
        let Observed { network, stack, runner_group, .. } = self.observed;
        let fleet = self.request.fleet;
        let own = fleet.on_demand.unwrap_or(kiln_config::config::OnDemand { min_idle: 0, linger_secs: 120 });
        let made = |key: &str| {
            let known = stack.as_ref().filter(|_| !changing).and_then(|stack| stack.outputs.get(key).cloned());
            known.unwrap_or_else(|| output_reference(&self.config.fleet_stack(&fleet.name), key))
        };
        Entry {
            set: ScaleSetSpec {
                name: self.config.scale_set(&fleet.name),
                group: *runner_group,
                labels: fleet.labels.iter().map(ToString::to_string).collect(),
            },
            min_idle: own.min_idle,
            max: fleet.max,
            spot: fleet.spot.is_some(),
            linger_secs: own.linger_secs.into(),
            max_age_secs: fleet.retirement.max_age_secs.map_or(MAX_AGE_SECS, Into::into),
            types: fleet.instance_types.iter().map(ToString::to_string).collect(),
            template: made("LaunchTemplateId"),
            version: made("LaunchTemplateVersion"),
            subnets: subnets(&self.config, fleet, network.as_ref()),
            role_id: made("RoleId"),
        }
    }

    /// GitHub's service changes a set's name and its group; of labels no client has ever changed any.
    fn require_the_same_set(&self, entry: &Entry) -> Result<()> {
        let name = &self.request.fleet.name;
        let Some(now) = self.observed.control.fleets.get(&named(name)) else { return Ok(()) };
        if now.set == entry.set {
            return Ok(());
        }
        let (what, was) = if now.set.group == entry.set.group {
            ("labels", now.set.labels.join(", "))
        } else {
            ("runner group", format!("the one with id {}", now.set.group))
        };
        let message = format!("the {what} of fleet {name} can't be changed while its scale set is there: it has {was}");
        Err(Error::new(Code::ScaleSetFixed, message).hint(format!(
            "add a fleet of another name with the new ones and destroy this one when its jobs have moved; or `cargo xtask \
             destroy --fleet {name}`, then `cargo xtask deploy --fleet {name}`"
        )))
    }

    fn control(&self, entry: Entry) -> Option<Step> {
        let now = self.observed.control.fleets.get(&named(&self.request.fleet.name));
        let wanted = entry.settings();
        if wanted.is_some() && wanted.as_ref() == now {
            return None;
        }
        let changes = now.map(|now| changes(now, &entry)).unwrap_or_default();
        Some(Step::Control { entry, changes })
    }

    /// Is the controller's instance of another version than the stack's newest, or will it be?
    fn controller_is_to_be_replaced(&self, step: Option<&StackStep>) -> bool {
        let Observed { controller, group, .. } = self.observed;
        let Some(group) = group else { return false };
        if step.is_some_and(|step| step.difference.touches(CONTROLLERS_LAUNCH_PARAMETERS)) {
            return true;
        }
        let newest = controller.as_ref().and_then(|stack| stack.outputs.get("LaunchTemplateVersion"));
        let is_old = |version: &str| newest.is_some_and(|newest| newest != version);
        let used = group.instances.iter().filter(|instance| !instance.state.starts_with("Terminat"));
        used.filter_map(|instance| instance.launch_template.as_ref()).any(|template| is_old(&template.version))
    }

    fn is_heard_from(&self) -> bool {
        let Observed { status, at, .. } = self.observed;
        status.as_ref().is_some_and(|status| status.set.is_some() && at.since(status.at) <= SILENT)
    }

    fn settled_because(&self) -> String {
        let Observed { aim, control, .. } = self.observed;
        let version = control.fleets.get(&named(&self.request.fleet.name)).map(|now| now.version);
        let kept = aim.kept_from.as_ref().map(|ami| {
            format!("; {ami} was rolled back from: `--retry` rolls it out again, another image is rolled out as ever")
        });
        let kept = kept.unwrap_or_default();
        format!("new instances have {}, by launch template version {}{kept}", aim.ami, version.unwrap_or_default())
    }
}

/// Parameters of the controller's stack that end up in its launch template.
pub const CONTROLLERS_LAUNCH_PARAMETERS: &[&str] = &["AmiId", "ControllerConfig", "InstanceType", "VpcId"];

fn step(stack: Option<&Stack>, request: StackRequest) -> Option<StackStep> {
    let difference: Difference = stacks::difference(stack, &request)?;
    Some(StackStep { request, difference })
}

/// What is another in the document now; what a stack has yet to make is not known.
fn changes(now: &Settings, entry: &Entry) -> Vec<(String, String)> {
    let version =
        entry.settings().map_or_else(|| "the one that the stack makes".to_owned(), |then| then.version.to_string());
    let all = [
        ("min_idle", now.min_idle.to_string(), entry.min_idle.to_string()),
        ("max", now.max.to_string(), entry.max.to_string()),
        ("spot", now.spot.to_string(), entry.spot.to_string()),
        ("linger_secs", now.linger_secs.to_string(), entry.linger_secs.to_string()),
        ("max_age_secs", now.max_age_secs.to_string(), entry.max_age_secs.to_string()),
        ("instance_types", now.launch.types.join(", "), entry.types.join(", ")),
        ("launch template version", now.version.to_string(), version),
        ("paused", now.paused.to_string(), false.to_string()),
    ];
    let changed = all.into_iter().filter(|(_, now, then)| now != then);
    changed.map(|(name, now, then)| (name.to_owned(), format!("{now} -> {then}"))).collect()
}
