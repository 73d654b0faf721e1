//! Auto Scaling groups: instances, kept as the emulator's stacks say, and refreshed. They are processes, or simulated where
//! a test needs hundreds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::imds::{Imds, ImdsOptions};
use super::simulated::{self, Machines, SimulatedInstance};
use super::{Shared, lock};
use crate::template::Template;

/// Parameters or outputs, by key.
type Texts = BTreeMap<String, String>;

/// How long a machine that is told to power off is given; EC2 gives a few minutes.
const POWER_OFF: Duration = Duration::from_secs(10);

/// A group whose instances die is not refilled faster than this times the number of deaths.
const BACK_OFF: Duration = Duration::from_millis(500);

/// How often the groups are looked after.
const TICK: Duration = Duration::from_millis(100);

/// The same where instances are simulated, which boot in less.
const LIGHT_TICK: Duration = Duration::from_millis(5);

/// How often the emulator is asked for changed stacks.
const READ_EVERY: Duration = Duration::from_millis(300);

/// An instance as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// Its id.
    pub id: String,
    /// Its group.
    pub group: String,
    /// The launch template version it was launched from.
    pub version: String,
    /// Its image.
    pub ami: String,
    /// `Pending:Wait`, `InService`, `Terminating:Wait`, `Terminated`.
    pub state: String,
    /// What its process said.
    pub log: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    PendingWait,
    InService,
    TerminatingWait,
    PoweringOff,
    Terminated,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::PendingWait => "Pending:Wait",
            Self::InService => "InService",
            Self::TerminatingWait => "Terminating:Wait",
            Self::PoweringOff => "Terminating:Proceed",
            Self::Terminated => "Terminated",
        }
    }

    pub(super) fn leaving(self) -> bool {
        matches!(self, Self::TerminatingWait | Self::PoweringOff | Self::Terminated)
    }
}

#[derive(Debug)]
pub(super) struct Instance {
    pub(super) id: String,
    group: String,
    version: String,
    pub(super) ami: String,
    pub(super) state: State,
    pub(super) since: Instant,
    heartbeat: Instant,
    /// It ended before it was in service.
    pub(super) failed: bool,
    /// It was in service once.
    served: bool,
    healthy: bool,
    root: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    imds: Option<Imds>,
    /// It is simulated.
    pub(super) simulated: Option<SimulatedInstance>,
    /// How long after an instance's launch, and after its end was decided, the group waits at its hooks. Until then it
    /// refuses to be told, though the metadata service already says what it wants.
    ///
    /// source: amazon-ec2-auto-scaling-group-examples#3, PrairieLearn#15586
    pub(super) late_hooks: [Duration; 2],
}

#[derive(Debug, Clone)]
struct Hook {
    name: String,
    launching: bool,
    timeout: Duration,
    continues: bool,
}

/// How a refresh goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Preferences {
    pub(super) auto_rollback: bool,
    /// Percent of the desired capacity.
    pub(super) most: u32,
    /// Stops once so many percent are new.
    pub(super) checkpoint: Option<u32>,
    pub(super) checkpoint_delay: Duration,
    pub(super) bake_time: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refresh {
    pub(super) id: String,
    pub(super) status: &'static str,
    pub(super) reason: String,
    pub(super) to: String,
    from: String,
    begun: Instant,
    /// When it came to its checkpoint, or to its end before the bake.
    stopped: Option<Instant>,
    pub(super) preferences: Preferences,
}

impl Refresh {
    pub(super) fn running(&self) -> bool {
        matches!(self.status, "Pending" | "InProgress" | "Baking" | "RollbackInProgress" | "Cancelling")
    }

    /// It may be cancelled or rolled back.
    pub(super) fn goes_forward(&self) -> bool {
        matches!(self.status, "Pending" | "InProgress" | "Baking")
    }

    /// It stands still: at its checkpoint, or baking.
    fn stands(&mut self, delay: Duration) -> bool {
        self.stopped.get_or_insert_with(Instant::now).elapsed() < delay
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) desired: u32,
    pub(super) template: String,
    /// What new instances are launched from.
    pub(super) version: String,
    /// What the stack said last: only a change of its mind moves the group.
    told: String,
    pub(super) types: Vec<String>,
    /// The bounds that the stack said last: what was set at the group itself stays until it says others.
    told_bounds: (u32, u32),
    hooks: Vec<Hook>,
    pub(super) refreshes: Vec<Refresh>,
    deaths: u32,
    not_before: Instant,
}

impl Group {
    pub(super) fn begin(&mut self, id: String, to: String, preferences: Preferences) {
        let from = self.version.clone();
        self.refreshes.push(Refresh {
            id,
            status: "Pending",
            reason: String::new(),
            to,
            from,
            begun: Instant::now(),
            stopped: None,
            preferences,
        });
    }
}

#[derive(Debug, Default)]
pub(super) struct Groups {
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) instances: Vec<Instance>,
    launched: u64,
    /// Stacks as they were read last: template, parameters, outputs.
    stacks: BTreeMap<String, (String, Texts, Texts)>,
    /// What launch template versions launch, which never changes.
    launches: BTreeMap<(String, String), LaunchData>,
    /// How the simulated ones are, where they are.
    pub(super) machines: Machines,
    /// A refresh goes on only once the instances that it replaced are gone.
    ///
    /// assumption: AWS does not say whether it does. `WaitForTransitioningInstances` of CancelInstanceRefresh shows that it
    /// knows them. Kiln must get along with both.
    pub(super) waits_for_leaving: bool,
}

/// A hook's answer that does not fit: Auto Scaling's own words.
pub(super) type Refused = String;

impl Groups {
    pub(super) fn views(&self) -> Vec<InstanceView> {
        let view = |instance: &Instance| InstanceView {
            id: instance.id.clone(),
            group: instance.group.clone(),
            version: instance.version.clone(),
            ami: instance.ami.clone(),
            state: instance.state_name().to_owned(),
            log: instance.log.clone(),
        };
        self.instances.iter().map(view).collect()
    }

    /// A group of one instance, whose machine is somebody else's.
    pub(super) fn of_one(group: &str, [launch, termination]: [&str; 2], instance: &str) -> Self {
        let now = Instant::now();
        let hook = |name: &str, launching| Hook {
            name: name.to_owned(),
            launching,
            timeout: Duration::from_secs(300),
            continues: !launching,
        };
        let one = Group {
            name: group.to_owned(),
            min: 1,
            max: 1,
            desired: 1,
            template: String::new(),
            version: "1".to_owned(),
            told: "1".to_owned(),
            types: Vec::new(),
            told_bounds: (1, 1),
            hooks: vec![hook(launch, true), hook(termination, false)],
            refreshes: Vec::new(),
            deaths: 0,
            not_before: now,
        };
        let instance = Instance::new(instance.to_owned(), group, "1", String::new(), State::PendingWait);
        let groups = BTreeMap::from([(one.name.clone(), one)]);
        Self { groups, instances: vec![instance], launched: 1, ..Self::default() }
    }

    /// An instance's metadata service.
    pub(super) fn metadata_of(&self, id: &str) -> Option<Arc<super::imds::State>> {
        let instance = self.instances.iter().find(|instance| instance.id == id)?;
        Some(instance.imds.as_ref()?.state())
    }

    /// A group's launches, the newest first: how each went, as its activity has it.
    pub(super) fn launches(&self, group: &str) -> Vec<(String, &'static str, Option<&'static str>)> {
        // source: https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-verify-scaling-activity.html for the form; for the
        // words of an abandoned launch https://github.com/Jaeminst/devops-01-Final-TeamG/issues/90.
        const ABANDONED: &str = "Instance failed to complete user's Lifecycle Action: Lifecycle Action with token \
                                 0a1b2c3d was abandoned: Lifecycle Action Completed with ABANDON Result";
        let launch = |instance: &Instance| {
            let (status, message) = match (instance.served, instance.failed) {
                (true, _) => ("Successful", None),
                (false, true) => ("Cancelled", Some(ABANDONED)),
                (false, false) => ("MidLifecycleAction", None),
            };
            (instance.id.clone(), status, message)
        };
        self.instances.iter().rev().filter(|instance| instance.group == group).map(launch).collect()
    }

    /// Instances that `DescribeAutoScalingGroups` lists.
    pub(super) fn listed(&self, group: &str) -> Vec<(InstanceView, bool)> {
        let of = self.views().into_iter().zip(self.instances.iter().map(|instance| instance.healthy));
        of.filter(|(view, _)| view.group == group && view.state != "Terminated").collect()
    }

    pub(super) fn target_state(&self, id: &str) -> Option<&'static str> {
        let instance = self.instances.iter().find(|instance| instance.id == id)?;
        Some(if instance.state.leaving() { "Terminated" } else { "InService" })
    }

    pub(super) fn instance(&mut self, id: &str) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|instance| instance.id == id)
    }

    /// Begins an instance's end.
    pub(super) fn terminate(&mut self, id: &str) -> Option<()> {
        let instance = self.instance(id)?;
        if !instance.state.leaving() {
            instance.enter(State::TerminatingWait);
        }
        Some(())
    }

    /// Sets a group's bounds and wish; what is too many begins to leave.
    pub(super) fn resize(&mut self, name: &str, min: u32, max: u32, desired: u32) -> Option<()> {
        let group = self.groups.get_mut(name)?;
        (group.min, group.max, group.desired) = (min, max, desired);
        let own = self.instances.iter_mut().filter(|instance| instance.group == name && !instance.state.leaving());
        own.skip(desired as usize).for_each(|instance| instance.enter(State::TerminatingWait));
        Some(())
    }

    /// Ends a group with all its instances, whatever they do.
    pub(super) fn abandon(&mut self, name: &str) -> Option<()> {
        self.groups.remove(name)?;
        let own = self.instances.iter_mut().filter(|instance| instance.group == name);
        for instance in own.filter(|instance| instance.state != State::Terminated) {
            instance.die(&self.machines);
        }
        Some(())
    }

    /// A group ends with its stack.
    fn end_without(&mut self, stacks: &BTreeSet<String>) {
        let read: Vec<String> = self.stacks.keys().filter(|name| !stacks.contains(*name)).cloned().collect();
        for stack in read {
            self.stacks.remove(&stack);
            self.abandon(&stack);
        }
    }

    pub(super) fn set_unhealthy(&mut self, id: &str) -> Option<()> {
        self.instance(id)?.healthy = false;
        Some(())
    }

    pub(super) fn complete(&mut self, group: &str, hook: &str, id: &str, result: &str) -> Result<(), Refused> {
        let launching = self.waiting(group, hook, id)?;
        let Some(instance) = self.instance(id) else { return Err(no_action(id)) };
        match (launching, result) {
            (true, "CONTINUE") => instance.enter(State::InService),
            (true, _) => {
                instance.failed = true;
                instance.enter(State::PoweringOff);
            }
            (false, _) => instance.enter(State::PoweringOff),
        }
        Ok(())
    }

    pub(super) fn heartbeat(&mut self, group: &str, hook: &str, id: &str) -> Result<(), Refused> {
        self.waiting(group, hook, id)?;
        if let Some(instance) = self.instance(id) {
            instance.heartbeat = Instant::now();
        }
        Ok(())
    }

    /// Is the instance in this hook's wait? Whether it is a launching one.
    fn waiting(&self, group: &str, hook: &str, id: &str) -> Result<bool, Refused> {
        let hooks = self.groups.get(group).map(|group| &group.hooks);
        let found = hooks.and_then(|hooks| hooks.iter().find(|known| known.name == hook));
        let launching = found.ok_or_else(|| format!("No such lifecycle hook {hook} for group {group}"))?.launching;
        let state = if launching { State::PendingWait } else { State::TerminatingWait };
        let fits = self.instances.iter().any(|i| i.id == id && i.group == group && i.state == state && i.waits());
        if fits { Ok(launching) } else { Err(no_action(id)) }
    }
}

/// Up to three seconds, different for each instance and the same in each run; minutes in the worst case, seconds as a rule.
///
/// assumption: AWS gives no figure
fn late_hooks(id: &str) -> [Duration; 2] {
    let sum = id.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    [sum, sum / 3001].map(|millis| Duration::from_millis(millis % 3001))
}

fn no_action(id: &str) -> Refused {
    format!("No active Lifecycle Action found with instance ID {id}")
}

impl Instance {
    fn new(id: String, group: &str, version: &str, ami: String, state: State) -> Self {
        let now = Instant::now();
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            ami,
            state,
            since: now,
            heartbeat: now,
            failed: false,
            served: state == State::InService,
            healthy: true,
            root: PathBuf::new(),
            log: PathBuf::new(),
            child: None,
            imds: None,
            simulated: None,
            late_hooks: late_hooks(&id),
            id,
        }
    }

    /// Does the group wait at a hook, and is not only about to?
    fn waits(&self) -> bool {
        let [launch, termination] = self.late_hooks;
        match self.state {
            State::PendingWait => self.since.elapsed() >= launch,
            State::TerminatingWait => self.since.elapsed() >= termination,
            _ => false,
        }
    }

    fn state_name(&self) -> &'static str {
        match self.state {
            State::PendingWait if !self.waits() => "Pending",
            State::TerminatingWait if !self.waits() => "Terminating",
            state => state.name(),
        }
    }

    pub(super) fn enter(&mut self, state: State) {
        self.state = state;
        self.served |= state == State::InService;
        self.since = Instant::now();
        self.heartbeat = self.since;
    }

    /// Ends with all that runs on it, without a word.
    pub(super) fn die(&mut self, machines: &Machines) {
        if self.simulated.is_some() {
            return simulated::die(self, machines);
        }
        kill_below(&self.root);
        (self.imds, self.child) = (None, None);
        self.enter(State::Terminated);
    }

    fn exited(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))))
    }
}

/// Looks after all groups until the task is ended.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut read = Instant::now();
    loop {
        if read <= Instant::now() {
            // A stack in the middle of its making is read again.
            if let Err(error) = read_stacks(&shared).await {
                tracing::debug!(error = %format!("{error:#}"), "stacks could not be read");
            }
            read = Instant::now() + READ_EVERY;
        }
        for (group, version) in step(&shared) {
            let launched = launch(&shared, &group, &version).await;
            if let Err(error) = launched {
                let mut groups = lock(&shared.groups);
                if let Some(group) = groups.groups.get_mut(&group) {
                    group.deaths += 1;
                    group.not_before = Instant::now() + BACK_OFF * group.deaths;
                }
                drop(groups);
                eprintln!("the stand-in could not launch an instance of {group}: {error:#}");
            }
        }
        let tick = if lock(&shared.groups).machines.simulated() { LIGHT_TICK } else { TICK };
        tokio::time::sleep(tick).await;
    }
}

// --- What the stacks say ---------------------------------------------------------------------------------------------

fn texts(node: roxmltree::Node<'_, '_>, list: &str, key: &str, value: &str) -> BTreeMap<String, String> {
    let child = |member: roxmltree::Node<'_, '_>, name: &str| {
        member.children().find(|c| c.has_tag_name(name)).and_then(|c| c.text().map(str::to_owned)).unwrap_or_default()
    };
    let members = node.children().filter(|c| c.tag_name().name() == list).flat_map(|list| list.children());
    let local = |member: roxmltree::Node<'_, '_>, name: &str| {
        member
            .children()
            .find(|c| c.tag_name().name() == name)
            .map(|c| c.text().unwrap_or_default().to_owned())
            .unwrap_or_else(|| child(member, name))
    };
    members.filter(roxmltree::Node::is_element).map(|member| (local(member, key), local(member, value))).collect()
}

pub(super) async fn read_stacks(shared: &Shared) -> anyhow::Result<()> {
    let described = shared.backend.query("cloudformation", "DescribeStacks", &[]).await?;
    let mut there = BTreeSet::new();
    let stacks: Vec<(String, Texts, Texts)> = {
        let document = roxmltree::Document::parse(&described)?;
        let stacks = document.descendants().filter(|node| node.tag_name().name() == "Stacks");
        stacks
            .flat_map(|stacks| stacks.children().filter(roxmltree::Node::is_element).collect::<Vec<_>>())
            .filter_map(|stack| {
                let text = |name: &str| {
                    stack.children().find(|c| c.tag_name().name() == name).and_then(|c| c.text()).map(str::to_owned)
                };
                there.extend(text("StackName").filter(|_| text("StackStatus").as_deref() != Some("DELETE_COMPLETE")));
                let whole = matches!(text("StackStatus").as_deref(), Some("CREATE_COMPLETE" | "UPDATE_COMPLETE"));
                let parameters = texts(stack, "Parameters", "ParameterKey", "ParameterValue");
                let outputs = texts(stack, "Outputs", "OutputKey", "OutputValue");
                (whole && outputs.contains_key("LaunchTemplateId")).then_some((text("StackName")?, parameters, outputs))
            })
            .collect()
    };
    for (name, parameters, outputs) in stacks {
        let body = shared.backend.query("cloudformation", "GetTemplate", &[("StackName", &name)]).await?;
        let text = {
            let document = roxmltree::Document::parse(&body)?;
            let body = document.descendants().find(|node| node.tag_name().name() == "TemplateBody");
            body.and_then(|node| node.text()).context("the answer holds a template")?.to_owned()
        };
        // Read with every look at a group, and long to parse.
        let read = (text, parameters, outputs);
        if lock(&shared.groups).stacks.get(&name) == Some(&read) {
            continue;
        }
        let (text, parameters, outputs) = read.clone();
        let template = Template::new(&name, &text, parameters)?.with_outputs(outputs);
        let mut resources = template.resources()?.into_values();
        let group = resources.find(|(kind, _)| kind == "AWS::AutoScaling::AutoScalingGroup");
        let group = group.and_then(|(_, group)| wanted(&name, &group)).context("the template holds a group")?;
        let mut groups = lock(&shared.groups);
        take_over(&mut groups, group);
        groups.stacks.insert(name, read);
    }
    lock(&shared.groups).end_without(&there);
    Ok(())
}

/// What a stack wants of its group.
fn wanted(stack: &str, properties: &Value) -> Option<Group> {
    let text = |value: Option<&Value>| match value? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let number = |name: &str| text(properties.get(name)).and_then(|value| value.parse().ok());
    let launch = properties.get("MixedInstancesPolicy")?.get("LaunchTemplate")?;
    let specification = launch.get("LaunchTemplateSpecification")?;
    let hooks = properties.get("LifecycleHookSpecificationList").and_then(Value::as_array);
    let hooks = hooks.into_iter().flatten().filter_map(|hook| {
        Some(Hook {
            name: text(hook.get("LifecycleHookName"))?,
            launching: text(hook.get("LifecycleTransition"))? == "autoscaling:EC2_INSTANCE_LAUNCHING",
            timeout: Duration::from_secs(text(hook.get("HeartbeatTimeout"))?.parse().ok()?),
            continues: text(hook.get("DefaultResult")).as_deref() == Some("CONTINUE"),
        })
    });
    let types = launch.get("Overrides").and_then(Value::as_array).into_iter().flatten();
    let (min, max): (u32, u32) = (number("MinSize")?, number("MaxSize")?);
    let version = text(specification.get("Version"))?;
    Some(Group {
        name: text(properties.get("AutoScalingGroupName")).unwrap_or_else(|| stack.to_owned()),
        min,
        max,
        told_bounds: (min, max),
        desired: number("DesiredCapacity").unwrap_or(min),
        template: text(specification.get("LaunchTemplateId"))?,
        told: version.clone(),
        version,
        types: types.filter_map(|value| text(value.get("InstanceType"))).collect(),
        hooks: hooks.collect(),
        refreshes: Vec::new(),
        deaths: 0,
        not_before: Instant::now(),
    })
}

fn take_over(groups: &mut Groups, wanted: Group) {
    let Some(known) = groups.groups.get_mut(&wanted.name) else {
        groups.groups.insert(wanted.name.clone(), wanted);
        return;
    };
    if known.told != wanted.told {
        known.version.clone_from(&wanted.version);
        known.told = wanted.told;
    }
    if known.told_bounds != wanted.told_bounds {
        known.desired = known.desired.clamp(wanted.min, wanted.max.max(wanted.min));
        (known.min, known.max, known.told_bounds) = (wanted.min, wanted.max, wanted.told_bounds);
    }
    (known.hooks, known.types) = (wanted.hooks, wanted.types);
}

// --- One look at everything ------------------------------------------------------------------------------------------

/// Moves instances and refreshes on; what is to be launched is the result, as group and version, one for each instance.
fn step(shared: &Shared) -> Vec<(String, String)> {
    let mut guard = lock(&shared.groups);
    let Groups { groups, instances, machines, waits_for_leaving, .. } = &mut *guard;
    let pace = Pace { patience: machines.patience(), waits_for_leaving: *waits_for_leaving };
    for instance in instances.iter_mut() {
        if let Some(group) = groups.get_mut(&instance.group) {
            match instance.simulated {
                Some(_) => simulated::advance(instance, &mut group.deaths, machines),
                None => advance(instance, group),
            }
        }
    }
    let mut launches = Vec::new();
    for group in groups.values_mut() {
        let mut own: Vec<&mut Instance> = instances.iter_mut().filter(|i| i.group == group.name).collect();
        if let Some((version, count)) = balance(group, &mut own, pace) {
            launches.extend(std::iter::repeat_n((group.name.clone(), version), count));
        }
    }
    launches
}

fn advance(instance: &mut Instance, group: &mut Group) {
    let waiting = instance.since.elapsed().min(instance.heartbeat.elapsed());
    let hook = |launching| group.hooks.iter().find(|hook| hook.launching == launching);
    match instance.state {
        State::PendingWait => {
            let late = hook(true).is_some_and(|hook| waiting > hook.timeout && !hook.continues);
            if late || instance.exited() {
                instance.failed = true;
                instance.enter(State::PoweringOff);
            }
        }
        State::InService => {
            if instance.exited() || !instance.healthy {
                group.deaths += 1;
                group.not_before = Instant::now() + BACK_OFF * group.deaths;
                instance.enter(State::TerminatingWait);
            }
        }
        State::TerminatingWait => {
            let over = hook(false).is_none_or(|hook| waiting > hook.timeout);
            if over || instance.exited() {
                instance.enter(State::PoweringOff);
            }
        }
        State::PoweringOff => power_off(instance, group),
        State::Terminated => {}
    }
}

/// SIGTERM, as systemd sends at a shutdown; then the machine is gone with all that runs on it.
fn power_off(instance: &mut Instance, group: &mut Group) {
    if !instance.exited() && instance.since.elapsed() < POWER_OFF {
        if let Some(pid) = instance.child.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        return;
    }
    if instance.failed {
        group.deaths += 1;
        group.not_before = Instant::now() + BACK_OFF * group.deaths;
    }
    kill_below(&instance.root);
    instance.imds = None;
    instance.child = None;
    instance.enter(State::Terminated);
}

/// The version to launch instances from, and how many, if any are due.
fn balance(group: &mut Group, instances: &mut [&mut Instance], pace: Pace) -> Option<(String, usize)> {
    let desired = group.desired as usize;
    if group.refreshes.last().is_some_and(Refresh::running) {
        return refresh(group, instances, desired, pace);
    }
    let staying = instances.iter().filter(|instance| !instance.state.leaving()).count();
    // One at a time where the last one died.
    let count = if group.deaths == 0 { desired.saturating_sub(staying) } else { 1 };
    (staying < desired && Instant::now() >= group.not_before).then(|| (group.version.clone(), count))
}

/// How a refresh goes on.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// For how long it launches instances that never come into service.
    patience: Duration,
    /// Whether it waits for those that it replaced to be gone.
    waits_for_leaving: bool,
}

/// Launches before it terminates, as many at a time as the preferences let it; stops where it is told to; goes back when new
/// instances have not come into service for an hour.
fn refresh(group: &mut Group, instances: &mut [&mut Instance], desired: usize, pace: Pace) -> Option<(String, usize)> {
    let refresh = group.refreshes.last_mut()?;
    let back = refresh.status == "RollbackInProgress";
    let to = if back { refresh.from.clone() } else { refresh.to.clone() };
    match refresh.status {
        "Pending" => refresh.status = "InProgress",
        "Cancelling" => {
            refresh.status = "Cancelled";
            return None;
        }
        _ => {}
    }
    let is_new = |instance: &Instance| instance.version == to;
    let broken = instances
        .iter()
        .any(|i| i.failed && i.version == refresh.to && i.state == State::Terminated && i.since > refresh.begun);
    // assumption: AWS's guide speaks of an hour for what keeps a refresh from going on, and of the scaling activities for why
    // instances are not launched; a failed launch alone does not end it.
    let given_up = broken && refresh.begun.elapsed() >= pace.patience;
    if given_up && refresh.status == "InProgress" && refresh.from != refresh.to {
        refresh.reason = "a new instance did not complete its launch lifecycle action".to_owned();
        refresh.status = if refresh.preferences.auto_rollback { "RollbackInProgress" } else { "Failed" };
        return None;
    }
    let serving = instances.iter().filter(|i| is_new(i) && i.state == State::InService).count();
    let Preferences { checkpoint, checkpoint_delay, bake_time, most, .. } = refresh.preferences;
    if !back
        && checkpoint.is_some_and(|percent| serving * 100 >= desired * percent as usize)
        && refresh.stands(checkpoint_delay)
    {
        return None;
    }
    let coming = instances.iter().filter(|i| is_new(i) && i.state == State::PendingWait).count();
    let in_service = instances.iter().filter(|i| i.state == State::InService).count();
    if in_service > desired {
        let old = instances.iter_mut().filter(|i| !is_new(i) && i.state == State::InService);
        old.take(in_service - desired).for_each(|old| old.enter(State::TerminatingWait));
    }
    let unborn = instances.iter_mut().filter(|i| !is_new(i) && i.state == State::PendingWait);
    unborn.for_each(|old| old.enter(State::TerminatingWait));
    let leaving = instances.iter().any(|i| !is_new(i) && i.state == State::TerminatingWait);
    if serving + coming < desired {
        if pace.waits_for_leaving && leaving && !back {
            return None;
        }
        let room = (desired * most as usize / 100).max(desired + 1).saturating_sub(in_service + coming);
        let count = room.min(desired - serving - coming);
        return (count > 0 && Instant::now() >= group.not_before).then_some((to, count));
    }
    if serving >= desired && instances.iter().all(|i| is_new(i) || i.state == State::Terminated) {
        if !back && !bake_time.is_zero() && refresh.stands(bake_time) {
            refresh.status = "Baking";
            return None;
        }
        refresh.status = if back { "RollbackSuccessful" } else { "Successful" };
        group.version = to;
        group.deaths = 0;
    }
    None
}

// --- Machines that are processes -------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
struct LaunchData {
    ami: String,
    user_data: String,
}

async fn launch_data(shared: &Shared, template: &str, version: &str) -> anyhow::Result<LaunchData> {
    let key = (template.to_owned(), version.to_owned());
    if let Some(known) = lock(&shared.groups).launches.get(&key) {
        return Ok(known.clone());
    }
    let fields = [("LaunchTemplateId", template), ("LaunchTemplateVersion.1", version)];
    let answer = shared.backend.query("ec2", "DescribeLaunchTemplateVersions", &fields).await?;
    let document = roxmltree::Document::parse(&answer)?;
    let text =
        |name: &str| document.descendants().find(|node| node.tag_name().name() == name).and_then(|node| node.text());
    let encoded = text("userData").context("the launch template holds user data")?;
    let user_data = String::from_utf8(STANDARD.decode(encoded.trim())?)?;
    let data = LaunchData { ami: text("imageId").context("the launch template names an image")?.to_owned(), user_data };
    lock(&shared.groups).launches.insert(key, data.clone());
    Ok(data)
}

async fn launch(shared: &Arc<Shared>, group: &str, version: &str) -> anyhow::Result<()> {
    let template = lock(&shared.groups).groups.get(group).context("the group is known")?.template.clone();
    let LaunchData { ami, user_data } = launch_data(shared, &template, version).await?;
    let id = {
        let mut groups = lock(&shared.groups);
        groups.launched += 1;
        let id = format!("i-{:017x}", 0x0abc_0000_0000_0000_u64 + groups.launched);
        if let Some(simulated) = SimulatedInstance::new(&groups.machines, &user_data)? {
            let instance = Instance::new(id, group, version, ami, State::PendingWait);
            groups.instances.push(Instance { simulated: Some(simulated), ..instance });
            return Ok(());
        }
        id
    };
    let image = lock(&shared.image_builder).root_of(&ami).with_context(|| format!("{ami} was baked here"))?;
    let root = shared.directory.join("instances").join(&id);
    let log = shared.directory.join("instances").join(format!("{id}.log"));
    copy(&image, &root).await?;
    let (known, own) = (Arc::clone(shared), id.clone());
    let target = Box::new(move || lock(&known.groups).target_state(&own));
    let options = ImdsOptions { instance: id.clone(), ami: ami.clone(), user_data: Some(user_data), target };
    let imds = Imds::start(options).await?;
    let file = std::fs::File::create(&log)?;
    // The machine dies with the one it runs on.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(root.join("usr/local/bin/kiln-bootstrap"))
        .arg("--root")
        .arg(&root)
        .arg("run")
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("AWS_ENDPOINT_URL", &shared.endpoint)
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .kill_on_drop(true);
    let mut groups = lock(&shared.groups);
    let child = command.spawn().context("start the instance's process")?;
    let waits = groups.groups.get(group).is_some_and(|group| group.hooks.iter().any(|hook| hook.launching));
    let state = if waits { State::PendingWait } else { State::InService };
    let instance = Instance::new(id, group, version, ami, state);
    groups.instances.push(Instance { root, log, child: Some(child), imds: Some(imds), ..instance });
    Ok(())
}

/// Owners, modes and links as they are.
async fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to.parent().context("an instance's root is in a folder")?)?;
    let status = Command::new("cp").arg("--archive").arg(from).arg(to).status().await.context("copy the image")?;
    anyhow::ensure!(status.success(), "cp --archive {} ended with {status}", from.display());
    Ok(())
}

/// Kills every process whose executable or working directory is below a folder: all that ran on a machine.
pub(super) fn kill_below(folder: &Path) {
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let below =
            |link: &str| std::fs::read_link(process.path().join(link)).is_ok_and(|path| path.starts_with(folder));
        if below("exe") || below("cwd") {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
