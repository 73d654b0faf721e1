//! What `deploy` would do of an on-demand fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_config::boot::UserData;
use kiln_config::config::{Config, Fleet};
use kiln_config::model::AmiId;
use kiln_controller::clock::Timestamp;
use kiln_controller::documents::{Control, FORMAT, FleetStatus, Settings};
use kiln_controller::ids::FleetName;
use kiln_operations::Code;
use kiln_operations::deploy::{Record, Request, Target, TargetImage};
use kiln_operations::destroy::{self, ObservedFleet, ObservedStack};
use kiln_operations::on_demand::{
    CONTROLLER_TEMPLATE, CONTROLLERS_LAUNCH_PARAMETERS, Ending, Health, Observed, Step, control_bucket,
    controller_request, fleet_request, plan, require_kind,
};
use kiln_operations::plan::Plan;
use kiln_operations::ports::{Caller, Group, GroupInstance, LaunchTemplateVersion, Stack, StackRequest};
use kiln_operations::status::{RunnerState, runners_on_demand};
use serde_json::json;
use serde_yaml_ng::Value;

use crate::templates::{collect, problems};
use crate::{assert_nothing_to_do, steps};

const KILN_TOML: &str = r#"
organization = "acme"
region = "eu-central-1"

[app]
client_id = "Iv23liEXAMPLE0000000"

[runner]
version = "2.338.0"
[runner.sha256]
x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32"

[fleet.ci]
registration = "on-demand"
labels = ["linux-x64"]
instance_types = ["m6i.large", "m5.large"]
max = 40
min_idle = 1
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001", "subnet-00000002"] }
environment = { https_proxy = "http://proxy.example:3128", LANG = "C.UTF-8" }

[fleet.release]
registration = "on-demand"
labels = ["release"]
instance_types = ["c7i.xlarge"]
max = 4
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001"] }
"#;

const AMI: &str = "ami-000000000000000aa";
const NEXT: &str = "ami-000000000000000bb";
const BUCKET: &str = "kiln-acme--control-123456789012-eu-central-1";
const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn config() -> Config {
    Config::from_toml_with_on_demand("kiln.toml", KILN_TOML).unwrap_or_else(|error| panic!("{error}"))
}

fn fleet<'a>(config: &'a Config, name: &str) -> &'a Fleet {
    &config.fleets[&name.parse().unwrap()]
}

fn ami(id: &str) -> AmiId {
    id.parse().unwrap()
}

fn stack_of(wanted: &StackRequest, outputs: &[(&str, &str)]) -> Stack {
    Stack {
        name: wanted.name.clone(),
        status: "UPDATE_COMPLETE".to_owned(),
        reason: None,
        template: Some(wanted.template.clone()),
        parameters: wanted.parameters.clone(),
        outputs: outputs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        tags: wanted.tags.clone(),
    }
}

/// The entry that a deploy of fleet `ci` leaves, by version 3.
fn settings() -> Settings {
    serde_json::from_value(json!({
        "set": { "name": "kiln-ci-eu-central-1", "group": 7, "labels": ["linux-x64"] },
        "min_idle": 1, "max": 40, "version": 3, "linger_secs": 120, "boot_limit_secs": 240, "max_age_secs": 86_400,
        "launch": {
            "template": "lt-ci", "types": ["m6i.large", "m5.large"], "subnets": ["subnet-00000001", "subnet-00000002"],
            "role_id": "AROAEXAMPLE",
        },
    }))
    .unwrap()
}

fn status(at: Timestamp) -> FleetStatus {
    serde_json::from_value(json!({
        "controller": "i-1", "set": 12, "at": at.0, "closed": false, "unseen": [], "statistics": {}, "announced": 40,
        "instances": {}, "waiting_because": null, "last_errors": [],
    }))
    .unwrap()
}

struct Fixture {
    config: Config,
    observed: Observed,
}

impl Fixture {
    /// Fleet `ci`, served by version 3 of its launch template and version 5 of the controller's.
    fn serving() -> Self {
        let config = config();
        let wanted = fleet_request(&config, fleet(&config, "ci"), &ami(AMI), BUCKET, None).unwrap();
        let controller = controller_request(&config, fleet(&config, "ci"), &ami(AMI), BUCKET, None).unwrap();
        let outputs = [("LaunchTemplateId", "lt-ci"), ("LaunchTemplateVersion", "3"), ("RoleId", "AROAEXAMPLE")];
        let instance = GroupInstance {
            id: "i-00000000000000001".parse().unwrap(),
            state: "InService".to_owned(),
            healthy: true,
            launch_template: Some(LaunchTemplateVersion { id: "lt-c".to_owned(), version: "5".to_owned() }),
        };
        let group = Group {
            name: "kiln-acme-controller".parse().unwrap(),
            launch_template: instance.launch_template.clone(),
            min: 1,
            max: 1,
            desired: 1,
            instances: vec![instance],
            suspended: Vec::new(),
        };
        let observed = Observed {
            aim: TargetImage { ami: ami(AMI), reject: None, accept: false, kept_from: None },
            runner: None,
            record: Record { current: Some(ami(AMI)), ..Record::default() },
            network: None,
            stack: Some(stack_of(&wanted, &outputs)),
            controller: Some(stack_of(&controller, &[("LaunchTemplateId", "lt-c"), ("LaunchTemplateVersion", "5")])),
            group: Some(group),
            dead: Vec::new(),
            bucket: BUCKET.to_owned(),
            runner_group: 7,
            control: Control { format: FORMAT, fleets: BTreeMap::from([(FleetName::new("ci"), settings())]) },
            status: Some(status(Timestamp(NOW.0 - 30_000))),
            former: None,
            at: NOW,
        };
        Self { config, observed }
    }

    /// Nothing of on-demand fleets is there.
    fn nowhere() -> Self {
        let mut fixture = Self::serving();
        fixture.observed.record = Record::default();
        fixture.observed.control.fleets.clear();
        (fixture.observed.stack, fixture.observed.controller) = (None, None);
        (fixture.observed.group, fixture.observed.status) = (None, None);
        fixture
    }

    fn settings(&mut self) -> &mut Settings {
        self.observed.control.fleets.get_mut(&FleetName::new("ci")).unwrap()
    }

    fn plan_of(&self, name: &str, target: Target) -> Result<Plan<Step>, kiln_operations::Error> {
        plan(&Request { target, ..Request::new(&self.config, fleet(&self.config, name)) }, &self.observed)
    }

    fn plan(&self) -> Plan<Step> {
        self.plan_of("ci", Target::Latest).unwrap()
    }
}

#[test]
fn a_fleet_as_wanted_leaves_nothing_to_do() {
    let plan = Fixture::serving().plan();
    assert_nothing_to_do(&plan);
    assert!(plan.settled.contains("new instances have ami-000000000000000aa, by launch template version 3"), "{plan}");
}

#[test]
fn a_first_deploy_makes_both_stacks_and_then_says_what_is_to_be() {
    let plan = Fixture::nowhere().plan();
    assert_eq!(
        steps(&plan),
        [
            "create stack kiln-acme-controller",
            "create stack kiln-acme-fleet-ci",
            "say in the control document what scale set kiln-ci-eu-central-1 is to be",
            "see the controller at work on fleet ci",
            "record ami-000000000000000aa as the image that serves",
        ]
    );
    // What no stack has made yet is asked of it once it has.
    let Some(Step::Control { entry, .. }) = plan.steps.get(2) else { panic!("{plan}") };
    assert_eq!(entry.settings(), None);
    assert_eq!(entry.template, "output:kiln-acme-fleet-ci:LaunchTemplateId");
    assert_eq!(entry.subnets, "subnet-00000001,subnet-00000002");
}

#[test]
fn another_size_is_one_write() {
    let mut fixture = Fixture::serving();
    fixture.settings().max = 10;
    fixture.settings().linger_secs = 60;
    fixture.settings().launch.types.pop();
    let plan = fixture.plan();
    let say = "say in the control document what scale set kiln-ci-eu-central-1 is to be";
    assert_eq!(steps(&plan), [say, "see the controller at work on fleet ci"]);
    let text = plan.to_string();
    for change in ["~ max: 10 -> 40", "~ linger_secs: 60 -> 120", "~ instance_types: m6i.large -> m6i.large, m5.large"]
    {
        assert!(text.contains(change), "{text}");
    }
    let Some(Step::Control { entry, .. }) = plan.steps.first() else { panic!("{plan}") };
    assert_eq!(entry.settings(), Some(settings()));
}

/// Somebody who began to take the fleet down has it deployed again.
#[test]
fn a_fleet_that_is_paused_is_resumed() {
    let mut fixture = Fixture::serving();
    fixture.settings().paused = true;
    let plan = fixture.plan();
    assert!(plan.to_string().contains("~ paused: true -> false"), "{plan}");
}

/// New instances come from the new version; those that run jobs end with them. The controller lives by the host's image.
#[test]
fn an_image_is_rolled_out_by_a_stack_and_a_write() {
    let mut fixture = Fixture::serving();
    fixture.observed.aim.ami = ami(NEXT);
    let plan = fixture.plan();
    assert_eq!(
        steps(&plan),
        [
            "update stack kiln-acme-controller",
            "update stack kiln-acme-fleet-ci",
            "say in the control document what scale set kiln-ci-eu-central-1 is to be",
            "replace the instance of kiln-acme-controller",
            "see the controller at work on fleet ci",
            "record ami-000000000000000bb as the image that serves, and ami-000000000000000aa as the one to go back to",
        ]
    );
    assert!(plan.to_string().contains("~ launch template version: 3 -> the one that the stack makes"), "{plan}");
}

/// Another fleet's rollout leaves the controller alone.
#[test]
fn a_fleet_that_is_not_the_host_does_not_touch_the_controller() {
    let mut fixture = Fixture::serving();
    fixture.observed.stack = None;
    fixture.observed.aim.ami = ami(NEXT);
    let plan = fixture.plan_of("release", Target::Latest).unwrap();
    assert_eq!(steps(&plan)[0], "create stack kiln-acme-fleet-release");
    assert!(!plan.to_string().contains("kiln-acme-controller"), "{plan}");
}

/// What an interrupted run left is taken up: the stack is new, the pointer and the controller are old.
#[test]
fn an_interrupted_rollout_is_taken_up() {
    let mut fixture = Fixture::serving();
    fixture.observed.stack.as_mut().unwrap().outputs.insert("LaunchTemplateVersion".to_owned(), "4".to_owned());
    fixture.observed.controller.as_mut().unwrap().outputs.insert("LaunchTemplateVersion".to_owned(), "6".to_owned());
    let plan = fixture.plan();
    assert_eq!(
        steps(&plan),
        [
            "say in the control document what scale set kiln-ci-eu-central-1 is to be",
            "replace the instance of kiln-acme-controller",
            "see the controller at work on fleet ci",
        ]
    );
    assert!(plan.to_string().contains("~ launch template version: 3 -> 4"), "{plan}");
}

/// It does not wait for CloudFormation: the first step is the write that takes new instances back.
#[test]
fn a_rollback_points_back_first() {
    let mut fixture = Fixture::serving();
    let aim = TargetImage { ami: ami(NEXT), reject: Some(ami(AMI)), accept: false, kept_from: None };
    fixture.observed.aim = aim;
    fixture.observed.former = Some(2);
    let plan = fixture.plan_of("ci", Target::Previous).unwrap();
    assert_eq!(
        steps(&plan)[..2],
        [
            "record ami-000000000000000aa as rolled back from",
            "launch from launch template version 2, which has ami-000000000000000bb, from now on",
        ]
    );
    // A run that was interrupted after that write does not write it again.
    fixture.settings().version = 2;
    assert!(!fixture.plan_of("ci", Target::Previous).unwrap().to_string().contains("from now on"));
    // And whoever does not roll back does not go by an old version.
    fixture.settings().version = 3;
    assert!(!fixture.plan().to_string().contains("from now on"));
}

#[test]
fn a_silent_controller_is_looked_for() {
    for said in [None, Some(status(Timestamp(NOW.0 - 301_000))), Some(FleetStatus { set: None, ..status(NOW) })] {
        let mut fixture = Fixture::serving();
        fixture.observed.status = said;
        assert_eq!(steps(&fixture.plan()), ["see the controller at work on fleet ci"]);
    }
}

/// No client of GitHub's has ever changed the labels of a scale set.
#[test]
fn other_labels_or_another_group_are_refused_with_a_way() {
    let mut fixture = Fixture::serving();
    fixture.settings().set.labels = vec!["old".to_owned()];
    let error = fixture.plan_of("ci", Target::Latest).unwrap_err();
    assert_eq!(error.code, Code::ScaleSetFixed);
    assert!(error.message.contains("the labels of fleet ci") && error.message.contains("it has old"), "{error}");
    let mut fixture = Fixture::serving();
    fixture.settings().set.group = 8;
    let error = fixture.plan_of("ci", Target::Latest).unwrap_err();
    assert!(error.message.contains("the runner group of fleet ci"), "{error}");
    assert!(error.hint.is_some_and(|hint| hint.contains("cargo xtask destroy --fleet ci")));
}

/// An update from the one to the other would end a group's instances with their jobs.
#[test]
fn a_group_does_not_become_an_on_demand_fleet() {
    let fixture = Fixture::serving();
    let mut stack = fixture.observed.stack.clone().unwrap();
    assert!(require_kind(fleet(&fixture.config, "ci"), Some(&stack)).is_ok());
    assert!(require_kind(fleet(&fixture.config, "ci"), None).is_ok());
    let group = crate::config();
    let error = require_kind(&group.fleets[&"linux".parse().unwrap()], Some(&stack)).unwrap_err();
    assert_eq!(error.code, Code::FleetKindChanged);
    assert!(error.message.contains("fleet linux is on demand, and kiln.toml makes it a group"), "{error}");
    stack.outputs = BTreeMap::from([("Group".to_owned(), "kiln-acme-fleet-ci".to_owned())]);
    let error = require_kind(fleet(&fixture.config, "ci"), Some(&stack)).unwrap_err();
    assert!(error.message.contains("fleet ci is a group, and kiln.toml makes it on demand"), "{error}");
}

#[test]
fn every_parameter_is_declared_and_supplied_within_its_bounds() {
    let config = config();
    for name in ["ci", "release"] {
        let fleet = fleet(&config, name);
        assert_eq!(problems(&fleet_request(&config, fleet, &ami(AMI), BUCKET, None).unwrap()), [""; 0], "{name}");
        assert_eq!(problems(&controller_request(&config, fleet, &ami(AMI), BUCKET, None).unwrap()), [""; 0], "{name}");
    }
}

/// An instance learns nothing of the App, and the controller nothing of jobs.
#[test]
fn user_data_is_read_as_it_was_meant() {
    let config = config();
    let ci = fleet(&config, "ci");
    let request = fleet_request(&config, ci, &ami(AMI), BUCKET, None).unwrap();
    let UserData::OnDemand(instance) = UserData::from_json(&request.parameters["BootConfig"]).unwrap() else {
        panic!("{request:?}")
    };
    assert_eq!((instance.fleet.as_str(), instance.bucket.as_str()), ("ci", BUCKET));
    let request = controller_request(&config, ci, &ami(AMI), BUCKET, None).unwrap();
    let UserData::Controller(controller) = UserData::from_json(&request.parameters["ControllerConfig"]).unwrap() else {
        panic!("{request:?}")
    };
    assert_eq!(controller.environment.keys().collect::<Vec<_>>(), ["https_proxy"]);
    assert_eq!((controller.bucket.as_str(), controller.app.issuer.as_str()), (BUCKET, "Iv23liEXAMPLE0000000"));
    assert_eq!(request.parameters["EgressPort1"], "3128");
    assert_eq!(request.parameters["InstanceType"], "t3.micro");
}

/// The controller may hand out roles that end so, and no others; a group's role ends in its region.
#[test]
fn an_instances_role_is_known_by_the_end_of_its_name() {
    for (organization, name) in [("acme", "ci"), (&*"o".repeat(39), &*"f".repeat(24))] {
        let text = KILN_TOML
            .replacen("organization = \"acme\"", &format!("organization = \"{organization}\""), 1)
            .replace("[fleet.ci", &format!("[fleet.{name}"));
        let config = Config::from_toml_with_on_demand("kiln.toml", &text).unwrap_or_else(|error| panic!("{error}"));
        let request = fleet_request(&config, fleet(&config, name), &ami(AMI), BUCKET, None).unwrap();
        let role = &request.parameters["ShortName"];
        assert!(role.len() <= 64 && role.starts_with(&config.fleet_stack_prefix()), "{role}");
        assert!(role.ends_with("--od"), "{role}");
    }
}

/// No two organizations share a bucket, whatever they are called, and none is longer than S3 takes.
#[test]
fn the_controllers_bucket_is_nobody_elses() {
    let caller = Caller { partition: "aws".to_owned(), account: "123456789012".to_owned(), arn: String::new() };
    let named = |organization: &str| {
        let text = KILN_TOML.replacen("\"acme\"", &format!("\"{organization}\""), 1);
        control_bucket(&Config::from_toml_with_on_demand("kiln.toml", &text).unwrap(), &caller)
    };
    assert_eq!(named("acme"), BUCKET);
    let long = "o".repeat(38);
    let names = ["acme", "acme-control", "control-acme", &format!("{long}a"), &format!("{long}b")].map(named);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    assert!(names.iter().all(|name| name.len() <= 63), "{names:?}");
}

/// A change that is not known to make a new launch template version would never reach the controller's instance.
#[test]
fn what_the_controllers_launch_template_is_made_of_is_known_to_be() {
    let template: Value = serde_yaml_ng::from_str(CONTROLLER_TEMPLATE).unwrap();
    let mut used = BTreeSet::new();
    collect(&template["Resources"]["LaunchTemplate"], &template, &mut used);
    let declared = template["Parameters"].as_mapping().unwrap();
    let parameters: Vec<String> = used.into_iter().filter(|name| declared.contains_key(name.as_str())).collect();
    assert_eq!(parameters.len(), 3, "{parameters:?}");
    for parameter in parameters {
        assert!(CONTROLLERS_LAUNCH_PARAMETERS.contains(&parameter.as_str()), "{parameter}");
    }
}

/// Fleet `ci` with two instances, and the controller; `release` is in the document too.
fn ending(paused: bool) -> destroy::Observed {
    let fixture = Fixture::serving();
    let mut control = fixture.observed.control;
    control.fleets.get_mut(&FleetName::new("ci")).unwrap().paused = paused;
    control.fleets.insert(FleetName::new("release"), settings());
    let stack = |name: &str| ObservedStack { name: name.to_owned(), status: "UPDATE_COMPLETE".to_owned() };
    let fleets = ["ci", "release"].map(|name| ObservedFleet {
        name: name.parse().unwrap(),
        stack: Some(stack(&format!("kiln-acme-fleet-{name}"))),
        group: None,
        record: Record { current: Some(ami(AMI)), ..Record::default() },
    });
    let ending = Ending {
        control,
        instances: BTreeMap::from([("ci".parse().unwrap(), 2)]),
        controller: stack("kiln-acme-controller"),
        group: fixture.observed.group,
        bucket: BUCKET.to_owned(),
    };
    destroy::Observed {
        fleets: fleets.to_vec(),
        runners: Some(Vec::new()),
        network: None,
        others: Vec::new(),
        bucket: "kiln-acme-0".to_owned(),
        ending: Some(ending),
    }
}

fn destroy_request<'a>(config: &'a Config, fleets: &[&str], now: bool) -> destroy::Request<'a> {
    let fleets = fleets.iter().map(|name| name.parse().unwrap()).collect();
    destroy::Request { config, fleets, network: false, now, lock_wait: Duration::ZERO }
}

/// The controller removes what is idle, and the rest ends with its jobs: only then the scale set goes, which would cancel them.
#[test]
fn a_fleet_is_paused_and_waited_for_before_its_scale_set_goes() {
    let config = config();
    let mut observed = ending(false);
    observed.fleets.pop();
    let plan = destroy::plan(&destroy_request(&config, &["ci"], false), &observed);
    assert_eq!(
        steps(&plan),
        [
            "pause fleet ci: scale set kiln-ci-eu-central-1 gets no more jobs",
            "wait until fleet ci has no instance",
            "delete scale set kiln-ci-eu-central-1 at GitHub",
            "take fleet ci out of the control document",
            "delete stack kiln-acme-fleet-ci",
            "delete the record of the images of fleet ci",
        ],
        "the controller stays for the other fleet"
    );
    // A run that was interrupted in between does not pause it again.
    let mut observed = ending(true);
    observed.fleets.pop();
    let plan = destroy::plan(&destroy_request(&config, &["ci"], false), &observed);
    assert_eq!(steps(&plan)[0], "wait until fleet ci has no instance");
}

#[test]
fn the_controller_goes_with_its_last_fleet() {
    let config = config();
    let plan = destroy::plan(&destroy_request(&config, &["ci", "release"], false), &ending(false));
    let steps = steps(&plan);
    assert_eq!(
        steps[steps.len() - 4..],
        [
            "end the instance of kiln-acme-controller, which has no fleet left",
            "wait until kiln-acme-controller is empty",
            "delete the documents in kiln-acme--control-123456789012-eu-central-1",
            "delete stack kiln-acme-controller",
        ]
    );
    let waits = steps.iter().rposition(|step| step.starts_with("wait until fleet")).unwrap();
    let first_gone = steps.iter().position(|step| step.starts_with("delete")).unwrap();
    assert!(waits < first_gone, "{steps:?}");
}

/// A run that was interrupted after the last fleet had left takes the controller down still.
#[test]
fn a_controller_without_fleets_is_taken_down() {
    let config = config();
    let mut observed = ending(true);
    observed.fleets.iter_mut().for_each(|fleet| {
        fleet.stack = None;
        fleet.record = Record::default();
    });
    let ending = observed.ending.as_mut().unwrap();
    (ending.control.fleets, ending.instances) = (BTreeMap::new(), BTreeMap::new());
    let group = ending.group.as_mut().unwrap();
    (group.max, group.desired) = (0, 0);
    let plan = destroy::plan(&destroy_request(&config, &["ci"], false), &observed);
    assert_eq!(
        steps(&plan),
        [
            "wait until kiln-acme-controller is empty",
            "delete the documents in kiln-acme--control-123456789012-eu-central-1",
            "delete stack kiln-acme-controller",
        ]
    );
}

#[test]
fn what_can_not_be_ended_at_once_is_refused_by_name() {
    let config = config();
    let error = destroy::require_time(&destroy_request(&config, &["ci"], true), &ending(false)).unwrap_err();
    assert_eq!(error.code, Code::PreconditionsUnmet);
    assert!(error.hint.is_some_and(|hint| hint.contains("kiln:fleet=ci")));
    assert!(destroy::require_time(&destroy_request(&config, &["ci"], false), &ending(false)).is_ok());
}

/// A runner is registered before its instance has booted: to delete it then would take the job's place away.
#[test]
fn no_runner_of_an_on_demand_fleet_is_an_orphan() {
    let runner = |id: u64, status: &str| {
        serde_json::from_value(json!({
            "id": id, "name": format!("ci-i-0000000{id}"), "status": status, "busy": false, "ephemeral": true, "version": null
        }))
        .unwrap()
    };
    let runners = runners_on_demand(&"ci".parse().unwrap(), &[runner(1, "online"), runner(2, "offline")]);
    let states: Vec<RunnerState> = runners.iter().map(|runner| runner.state).collect();
    assert_eq!(states, [RunnerState::Idle, RunnerState::Offline]);
}

#[test]
fn what_the_controller_says_is_reported() {
    let mut said = status(Timestamp(NOW.0 - 400_000));
    said.statistics.assigned = 5;
    said.statistics.running = 2;
    said.waiting_because = Some("AWS has no capacity".to_owned());
    said.last_errors = vec!["the newest".to_owned(), "an older one".to_owned()];
    let health = Health { settings: Some(settings()), said: Some(said), at: NOW };
    assert_eq!(health.waiting(), Some(3));
    let notes = health.notes("ci");
    for part in ["silent for 6 min", "jobs wait: AWS has no capacity", "last failure: the newest"] {
        assert!(notes.iter().any(|note| note.contains(part)), "{part}: {notes:?}");
    }
    assert_eq!(notes.len(), 3, "{notes:?}");
    let quiet = Health { said: Some(status(NOW)), ..health.clone() };
    assert_eq!(quiet.notes("ci"), [""; 0]);
    let unheard = Health { said: None, ..health.clone() };
    assert!(unheard.notes("ci")[0].contains("has not said anything"));
    let nowhere = Health { settings: None, said: None, at: NOW };
    assert_eq!(nowhere.notes("ci"), [""; 0], "a fleet that was never deployed has nothing to look at");
}
