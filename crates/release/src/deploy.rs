//! `cargo xtask deploy`: brings a fleet's stack to the wanted state and rolls its group to the recorded image.
//!
//! CloudFormation makes the new launch template version, but must not hand it to the group: Auto Scaling can only roll
//! back to the version the group had when the refresh began. So while a roll is due, the stack's parameter
//! `ServingLaunchTemplateVersion` holds the group at the version that serves; the refresh moves the group on; and the
//! parameter is then let go ("settled"), which changes nothing any more. Whatever an interrupted run left is one of
//! these states, and the plan goes on from it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kiln_fleet::config::{Config, Fleet, Network};
use kiln_fleet::model::{AmiId, GroupName};
use kiln_github::{OrgClient, Runner};

use crate::error::{Error, Kind, Result};
use crate::fleet_stack::{LAUNCH_PARAMETERS, SERVING, network_request, resolved, stack_request};
use crate::plan::Plan;
use crate::ports::{
    Cloud, Group, GroupInstance, Groups, KeyNames, LaunchTemplateVersion, Progress, Refresh, RefreshPreferences,
    RefreshStatus, Stack, StackRequest,
};
use crate::stacks::{self, Difference, StackStep};
use crate::wait::{Pace, human};

/// After the refresh every new instance has registered already (its launch hook says so); what remains is GitHub's list
/// being read. Ten minutes is beyond any delay GitHub has had there without an incident of its own.
const ONLINE_BOUND: Duration = Duration::from_secs(600);

/// What a refresh may take beyond the longest drain: launching, registering, terminating.
const REFRESH_MARGIN: Duration = Duration::from_secs(3600);

/// What is to be deployed.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    /// The fleet.
    pub fleet: &'a Fleet,
}

/// The world as `deploy` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The recorded image, which exists.
    pub ami: AmiId,
    /// The network's stack, where the fleet asks for one and it is there.
    pub network: Option<Stack>,
    /// The stack, if there is one that holds anything.
    pub stack: Option<Stack>,
    /// The group, if there is one.
    pub group: Option<Group>,
    /// Its newest refresh.
    pub refresh: Option<Refresh>,
    /// The runners at GitHub whose names are the fleet's.
    pub runners: Vec<Runner>,
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Wait for a refresh that an earlier run, or someone else, started.
    AwaitRefresh {
        /// The group.
        group: GroupName,
        /// The refresh.
        id: String,
    },
    /// Create or update the fleet's stack.
    Stack(StackStep),
    /// Roll the group to the stack's newest launch template version, unless all of it is there.
    Roll {
        /// The group.
        group: GroupName,
    },
    /// Let the stack follow its newest launch template version again.
    Settle(StackRequest),
    /// See every instance's runner online at GitHub.
    Verify {
        /// The group.
        group: GroupName,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AwaitRefresh { group, id } => {
                write!(f, "wait for instance refresh {id} of {group}, which is running")
            }
            Self::Stack(step) => step.fmt(f),
            Self::Roll { group } => write!(f, "roll {group} to the stack's newest launch template version"),
            Self::Settle(request) => {
                write!(f, "settle stack {}: it follows its newest launch template version again", request.name)
            }
            Self::Verify { group } => write!(f, "see the runners of {group} online at GitHub"),
        }
    }
}

/// The key's names in the stores.
pub fn key_names(config: &Config) -> KeyNames {
    KeyNames { alias: config.key_alias(), secret: config.key_secret() }
}

/// Looks at the world. Makes no mutating call.
///
/// # Errors
/// [`Kind::Precondition`] when the key or the image is missing; what AWS and GitHub answer.
pub async fn observe(
    request: &Request<'_>,
    cloud: &impl Cloud,
    github: &OrgClient,
    progress: &dyn Progress,
) -> Result<Observed> {
    let Request { config, fleet } = request;
    let ami = recorded_image(request, cloud).await?;
    let network = match &fleet.network {
        Network::NewVpc => stacks::settled_stack(cloud, &config.network_stack(), progress).await?,
        Network::Subnets { .. } => None,
    };
    let stack = stacks::settled_stack(cloud, &config.fleet_stack(&fleet.name), progress).await?;
    let stack = stack.filter(|stack| stack.status != "REVIEW_IN_PROGRESS");
    let name = config.group(&fleet.name);
    let group = cloud.group(&name).await?;
    let refresh = if group.is_some() { cloud.newest_refresh(&name).await? } else { None };
    let runners = fleet_runners(fleet, github).await?;
    Ok(Observed { ami, network, stack, group, refresh, runners })
}

/// Refuses to go on without a key: instances could not register.
///
/// # Errors
/// [`Kind::Precondition`] with the command that installs it.
pub async fn require_key(request: &Request<'_>, cloud: &impl Cloud) -> Result<()> {
    let Request { config, fleet } = request;
    let names = key_names(config);
    if cloud.current_key(&names, fleet.key_store).await?.is_none() {
        return Err(Error::new(
            Kind::Precondition,
            format!("the GitHub App's key is not in {} yet, so no instance could register", fleet.key_store),
        )
        .hint("run `cargo xtask rotate-key --pem FILE` first: its first run installs the key"));
    }
    Ok(())
}

async fn recorded_image(request: &Request<'_>, cloud: &impl Cloud) -> Result<AmiId> {
    let Request { config, fleet } = request;
    let parameter = config.image_parameter(fleet.image());
    let Some(id) = cloud.recorded(&parameter).await? else {
        return Err(Error::new(Kind::Precondition, format!("no image {} is recorded in {parameter}", fleet.image()))
            .hint("run `cargo xtask ami` first: it bakes, tests and records it"));
    };
    match cloud.ami(&id).await? {
        Some(ami) if ami.state == "available" => Ok(id),
        found => {
            let state = found.map_or_else(|| "does not exist".to_owned(), |ami| format!("is {}", ami.state));
            Err(Error::new(Kind::Precondition, format!("{id}, recorded in {parameter}, {state}"))
                .hint("run `cargo xtask ami`: it bakes the image anew and records it"))
        }
    }
}

/// Runners of this fleet's instances, by name. Another fleet's name may begin with this one's: an instance id follows.
async fn fleet_runners(fleet: &Fleet, github: &OrgClient) -> Result<Vec<Runner>> {
    let prefix = format!("{}-i-", fleet.name);
    let runners = github.runners(None).await?;
    Ok(runners.into_iter().filter(|runner| runner.name.starts_with(&prefix)).collect())
}

/// The launch template version the stack made last.
fn newest_version(stack: &Stack) -> Option<LaunchTemplateVersion> {
    Some(LaunchTemplateVersion {
        id: stack.outputs.get("LaunchTemplateId")?.clone(),
        version: stack.outputs.get("LaunchTemplateVersion")?.clone(),
    })
}

/// What has to be done; pure.
///
/// # Errors
/// [`Kind::Configuration`] when the fleet can't be described to its instances.
pub fn plan(request: &Request<'_>, observed: &Observed) -> Result<Plan<Step>> {
    let fleet = request.fleet;
    let group_name = request.config.group(&fleet.name);
    let mut plan = Plan { subject: format!("fleet {}", fleet.name), steps: Vec::new(), settled: String::new() };
    let verify = Step::Verify { group: group_name.clone() };
    if request.fleet.network == Network::NewVpc {
        let network = network_request(request.config);
        if let Some(difference) = stacks::difference(observed.network.as_ref(), &network) {
            plan.steps.push(Step::Stack(StackStep { request: network, difference }));
        }
    }
    let settled = stack_request(request.config, request.fleet, &observed.ami, observed.network.as_ref(), "")?;
    let (Some(stack), Some(group)) = (&observed.stack, &observed.group) else {
        let difference = stacks::difference(observed.stack.as_ref(), &settled);
        if let Some(difference) = difference {
            plan.steps.push(Step::Stack(StackStep { request: settled, difference }));
        }
        plan.steps.push(verify);
        return Ok(plan);
    };
    if let Some(Refresh { id, status: RefreshStatus::Running(_), .. }) = &observed.refresh {
        plan.steps.push(Step::AwaitRefresh { group: group_name.clone(), id: id.clone() });
    }
    let refreshing = matches!(observed.refresh, Some(Refresh { status: RefreshStatus::Running(_), .. }));
    let held_at = stack.parameters.get(SERVING).cloned().unwrap_or_default();
    let live = group.launch_template.as_ref().map(|live| live.version.clone()).unwrap_or_default();
    let launches_anew = stacks::difference(
        Some(stack),
        &StackRequest { parameters: with_serving(&settled.parameters, &held_at), ..settled.clone() },
    )
    .is_some_and(|difference| difference.touches(LAUNCH_PARAMETERS));
    let roll = launches_anew || !all_on(group, newest_version(stack).as_ref()) || refreshing;
    if roll {
        let held = StackRequest { parameters: with_serving(&settled.parameters, &live), ..settled.clone() };
        if let Some(difference) = stacks::difference(Some(stack), &held).filter(|_| launches_anew) {
            plan.steps.push(Step::Stack(StackStep { request: held, difference }));
        }
        plan.steps.push(Step::Roll { group: group_name });
        if launches_anew || !held_at.is_empty() {
            plan.steps.push(Step::Settle(settled));
        }
        plan.steps.push(verify);
        return Ok(plan);
    }
    if let Some(difference) = stacks::difference(Some(stack), &settled) {
        plan.steps.push(match &difference {
            Difference::Changed { template: false, parameters }
                if parameters.iter().all(|(name, _, _)| name == SERVING) =>
            {
                Step::Settle(settled)
            }
            _ => Step::Stack(StackStep { request: settled, difference }),
        });
        plan.steps.push(verify);
    } else if missing(group, newest_version(stack).as_ref(), &observed.runners).is_some() {
        plan.steps.push(verify);
    } else if plan.is_empty() {
        plan.settled = format!("{} serves {} instance(s) with {}", group.name, group.desired, observed.ami);
    }
    Ok(plan)
}

fn with_serving(parameters: &BTreeMap<String, String>, version: &str) -> BTreeMap<String, String> {
    let mut parameters = parameters.clone();
    parameters.insert(SERVING.to_owned(), version.to_owned());
    parameters
}

/// Do the group and all its instances that stay have this version?
fn all_on(group: &Group, version: Option<&LaunchTemplateVersion>) -> bool {
    version.is_some()
        && group.launch_template.as_ref() == version
        && staying(group).all(|instance| instance.launch_template.as_ref() == version)
}

fn staying(group: &Group) -> impl Iterator<Item = &GroupInstance> {
    group.instances.iter().filter(|instance| !instance.state.starts_with("Terminat"))
}

/// What is still missing before the group serves as wanted, said as a state; `None` when it does.
fn missing(group: &Group, version: Option<&LaunchTemplateVersion>, runners: &[Runner]) -> Option<String> {
    let serving: Vec<&GroupInstance> = staying(group)
        .filter(|instance| instance.state == "InService" && instance.launch_template.as_ref() == version)
        .collect();
    if serving.len() < group.desired as usize {
        return Some(format!("{} of {} instances in service", serving.len(), group.desired));
    }
    let offline: Vec<&str> = serving
        .iter()
        .map(|instance| instance.id.as_str())
        .filter(|id| !runners.iter().any(|runner| is_of(runner, id) && runner.is_online()))
        .collect();
    (!offline.is_empty()).then(|| format!("no runner online at GitHub for {}", offline.join(", ")))
}

/// Runner names end with the instance's id, or with the id and a boot's suffix.
fn is_of(runner: &Runner, instance: &str) -> bool {
    runner.name.split_once(instance).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('-'))
}

/// Carries the plan out.
///
/// # Errors
/// The first step that fails, with the steps done before it.
pub async fn apply(
    request: &Request<'_>,
    plan: &Plan<Step>,
    cloud: &impl Cloud,
    github: &OrgClient,
    progress: &dyn Progress,
) -> Result<()> {
    let mut done = Vec::new();
    for step in &plan.steps {
        progress.say(&step.to_string());
        apply_step(request, step, cloud, github, progress).await.map_err(|error| error.after(&done))?;
        done.push(step.to_string().lines().next().unwrap_or_default().to_owned());
    }
    Ok(())
}

async fn apply_step(
    request: &Request<'_>,
    step: &Step,
    cloud: &impl Cloud,
    github: &OrgClient,
    progress: &dyn Progress,
) -> Result<()> {
    match step {
        // How it ends is no concern of this plan: the roll that follows brings the group to the wanted version.
        Step::AwaitRefresh { group, id } => follow(request, group, id, cloud, progress).await.map(drop),
        Step::Stack(step) => {
            let request = resolved(cloud, &step.request).await?;
            stacks::apply(cloud, &StackStep { request, difference: step.difference.clone() }, progress).await
        }
        Step::Settle(wanted) => {
            let stack = cloud.stack(&wanted.name).await?;
            match stacks::difference(stack.as_ref(), wanted) {
                Some(difference) => {
                    stacks::apply(cloud, &StackStep { request: wanted.clone(), difference }, progress).await
                }
                None => Ok(()),
            }
        }
        Step::Roll { group } => roll(request, group, cloud, progress).await,
        Step::Verify { group } => verify(request, group, cloud, github, progress).await,
    }
}

async fn roll(request: &Request<'_>, name: &GroupName, cloud: &impl Cloud, progress: &dyn Progress) -> Result<()> {
    let (group, version) = group_and_version(request, name, cloud).await?;
    if all_on(&group, Some(&version)) {
        progress.say(&format!("{name} has launch template version {} already", version.version));
        return Ok(());
    }
    let id = cloud.start_refresh(name, &version, &preferences(&group)).await?;
    progress.say(&format!("instance refresh {id} to launch template version {}", version.version));
    let refresh = follow(request, name, &id, cloud, progress).await?;
    match refresh.status {
        RefreshStatus::Successful => Ok(()),
        RefreshStatus::Ended(status) | RefreshStatus::Running(status) => {
            let reason = refresh.reason.unwrap_or_else(|| "Auto Scaling gives no reason".to_owned());
            Err(Error::new(Kind::Failed, format!("instance refresh {id} of {name} ended in {status}: {reason}")).hint(
                "the version before still serves; a new instance's own account of its boot is in its journal (and in \
                 the EC2 console's system log); mend it and run this again",
            ))
        }
    }
}

async fn group_and_version(
    request: &Request<'_>,
    name: &GroupName,
    cloud: &impl Cloud,
) -> Result<(Group, LaunchTemplateVersion)> {
    let stack_name = request.config.fleet_stack(&request.fleet.name);
    let stack = cloud.stack(&stack_name).await?;
    let Some(version) = stack.as_ref().and_then(newest_version) else {
        return Err(Error::new(Kind::Failed, format!("stack `{stack_name}` does not name its launch template")));
    };
    let Some(group) = cloud.group(name).await? else {
        return Err(Error::new(
            Kind::Failed,
            format!("Auto Scaling group `{name}` does not exist, though its stack does"),
        )
        .hint(format!("`aws cloudformation detect-stack-drift --stack-name {stack_name}` shows what was removed")));
    };
    Ok((group, version))
}

/// Launch before terminate, a tenth of the group at a time but at least one instance.
///
/// The warm-up is zero because an instance counts only once its launch hook is completed, by its registered runner.
fn preferences(group: &Group) -> RefreshPreferences {
    let one = 100_u32.div_ceil(group.desired.max(1));
    RefreshPreferences {
        min_healthy_percent: 100,
        max_healthy_percent: 100 + one.max(10),
        instance_warmup: Duration::ZERO,
    }
}

async fn follow(
    request: &Request<'_>,
    group: &GroupName,
    id: &str,
    cloud: &impl Groups,
    progress: &dyn Progress,
) -> Result<Refresh> {
    let bound = Duration::from_secs(u64::from(request.fleet.drain_limit_secs)) + REFRESH_MARGIN;
    let mut pace = Pace::new(bound);
    let mut told = String::new();
    loop {
        let refresh = cloud.refresh(group, id).await?;
        let RefreshStatus::Running(status) = &refresh.status else { return Ok(refresh) };
        let reason = refresh.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let line = format!("refresh is {status}, {}%, {} to go{reason}", refresh.percent, refresh.remaining);
        if line != told {
            progress.state(&line);
            told = line;
            pace.quicken();
        }
        if pace.pause().await.is_err() {
            let bound = human(bound);
            return Err(Error::new(Kind::Timeout, format!("instance refresh {id} of {group} still ran after {bound}"))
                .hint("run the same command again: it waits for this very refresh"));
        }
    }
}

async fn verify(
    request: &Request<'_>,
    name: &GroupName,
    cloud: &impl Cloud,
    github: &OrgClient,
    progress: &dyn Progress,
) -> Result<()> {
    let mut pace = Pace::new(ONLINE_BOUND);
    loop {
        let (group, version) = group_and_version(request, name, cloud).await?;
        let runners = fleet_runners(request.fleet, github).await?;
        let Some(what) = missing(&group, Some(&version), &runners) else {
            progress.say(&format!("{} runner(s) of {name} online at GitHub", group.desired));
            return Ok(());
        };
        progress.state(&what);
        if pace.pause().await.is_err() {
            return Err(Error::new(
                Kind::Failed,
                format!("{name} does not serve after {}: {what}", human(ONLINE_BOUND)),
            )
            .hint(
                "a new instance's own account of its boot is in its journal (and in the EC2 console's system log); \
                     mend it and run this again",
            ));
        }
    }
}
