//! What `deploy` would do.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use kiln_config::config::Config;
use kiln_config::model::AmiId;
use kiln_github::Runner;
use kiln_operations::Code;
use kiln_operations::deploy::{self, Canary, Observed, Record, Request, Step, TargetImage};
use kiln_operations::fleet_stack::{self, SERVING};
use kiln_operations::freshness::{Basis, Lifetime};
use kiln_operations::plan::Plan;
use kiln_operations::ports::{
    Group, GroupInstance, LaunchTemplateVersion, Refresh, RefreshStatus, Stack, StackRequest, Suspension,
};
use kiln_operations::stacks::DeadStack;

use crate::{assert_nothing_to_do, config, steps};

const AMI: &str = "ami-000000000000000aa";
const NEXT: &str = "ami-000000000000000bb";
const INSTANCE: &str = "i-00000000000000001";

fn version(number: u32) -> LaunchTemplateVersion {
    LaunchTemplateVersion { id: "lt-1".to_owned(), version: number.to_string() }
}

fn ami() -> AmiId {
    AMI.parse().unwrap()
}

/// The stack as a deploy of `wanted` leaves it.
fn stack_of(wanted: &StackRequest, newest: u32) -> Stack {
    let version = version(newest);
    Stack {
        name: wanted.name.clone(),
        status: "UPDATE_COMPLETE".to_owned(),
        reason: None,
        template: Some(wanted.template.clone()),
        parameters: wanted.parameters.clone(),
        outputs: BTreeMap::from([
            ("LaunchTemplateId".to_owned(), version.id),
            ("LaunchTemplateVersion".to_owned(), version.version),
        ]),
        tags: wanted.tags.clone(),
    }
}

fn instance(number: u32) -> GroupInstance {
    GroupInstance {
        id: INSTANCE.parse().unwrap(),
        state: "InService".to_owned(),
        healthy: true,
        launch_template: Some(version(number)),
    }
}

fn runner(status: &str) -> Runner {
    serde_json::from_value(serde_json::json!({
        "id": 1, "name": format!("linux-{INSTANCE}"), "status": status, "busy": false, "ephemeral": false, "version": null
    }))
    .unwrap()
}

struct Fixture {
    config: Config,
    observed: Observed,
}

impl Fixture {
    /// Fleet `linux`, served by version 3.
    fn serving() -> Self {
        let config = config();
        let request = Request::new(&config, &config.fleets[&"linux".parse().unwrap()]);
        let wanted = fleet_stack::stack_request(request.config, request.fleet, &ami(), None, "").unwrap();
        let group = Group {
            name: config.group(&request.fleet.name),
            launch_template: Some(version(3)),
            min: 1,
            max: 4,
            desired: 1,
            instances: vec![instance(3)],
            suspended: Vec::new(),
        };
        let observed = Observed {
            aim: TargetImage { ami: ami(), reject: None, accept: false, kept_from: None },
            tags: BTreeMap::new(),
            tags_now: BTreeMap::new(),
            record: Record { current: Some(ami()), ..Record::default() },
            network: None,
            stack: Some(stack_of(&wanted, 3)),
            dead: Vec::new(),
            group: Some(group),
            refresh: None,
            runners: vec![runner("online")],
            lifetime: None,
            at: SystemTime::now(),
        };
        Self { config, observed }
    }

    fn stack(&mut self) -> &mut Stack {
        self.observed.stack.as_mut().unwrap()
    }

    fn group(&mut self) -> &mut Group {
        self.observed.group.as_mut().unwrap()
    }

    /// Nothing is there yet.
    fn first_time(&mut self) {
        self.observed.record = Record::default();
        (self.observed.stack, self.observed.group) = (None, None);
        self.observed.runners.clear();
    }

    /// Another image than the one that serves.
    fn next_image(&mut self) {
        self.observed.aim.ami = NEXT.parse().unwrap();
        let tags = |version: &str| {
            let tags = [("kiln:runner-version", version), ("kiln:base-image", "ami-00000001"), ("Name", version)];
            tags.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        (self.observed.tags_now, self.observed.tags) = (tags("2.337.1"), tags("2.338.0"));
    }

    fn plan(&self) -> Plan<Step> {
        self.plan_of("linux")
    }

    fn try_plan(&self) -> kiln_operations::Result<Plan<Step>> {
        let fleet = &self.config.fleets[&"linux".parse().unwrap()];
        deploy::plan(&Request::new(&self.config, fleet), &self.observed)
    }

    fn plan_of(&self, fleet: &str) -> Plan<Step> {
        let fleet = &self.config.fleets[&fleet.parse().unwrap()];
        deploy::plan(&Request::new(&self.config, fleet), &self.observed).unwrap()
    }
}

/// The value a stack step would give a parameter.
fn parameter<'a>(step: &'a Step, name: &str) -> &'a str {
    let Step::Stack(step) = step else { panic!("no stack step: {step}") };
    &step.request.parameters[name]
}

#[test]
fn nothing_changed() {
    let plan = Fixture::serving().plan();
    assert_nothing_to_do(&plan);
    assert!(plan.settled.contains(AMI), "{}", plan.settled);
}

/// Another name would replace the role that instances work by.
#[test]
fn a_stack_keeps_the_names_it_was_made_with() {
    let mut fixture = Fixture::serving();
    let stack = fixture.observed.stack.as_mut().unwrap();
    stack.parameters.insert("ShortName".to_owned(), String::new());
    assert_nothing_to_do(&fixture.plan());
}

#[test]
fn the_first_time() {
    let mut fixture = Fixture::serving();
    fixture.first_time();
    let plan = fixture.plan();
    let expected = [
        "create stack kiln-acme-fleet-linux",
        "see the runners of kiln-acme-fleet-linux online at GitHub",
        "record ami-000000000000000aa as the image that serves",
    ];
    assert_eq!(steps(&plan), expected);
    assert_eq!(parameter(&plan.steps[0], SERVING), "");
}

#[test]
fn a_fleet_without_a_network_gets_one_first() {
    let mut fixture = Fixture::serving();
    fixture.first_time();
    let plan = fixture.plan_of("once");
    let steps = steps(&plan);
    assert_eq!(steps[..2], ["create stack kiln-acme-network", "create stack kiln-acme-fleet-once"]);
    assert_eq!(parameter(&plan.steps[1], "VpcId"), "output:kiln-acme-network:VpcId");
}

#[test]
fn a_new_image_is_rolled_while_the_group_is_held_at_what_serves() {
    let mut fixture = Fixture::serving();
    fixture.next_image();
    let plan = fixture.plan();
    let expected = [
        "update stack kiln-acme-fleet-linux",
        "roll kiln-acme-fleet-linux to the stack's newest launch template version",
        "see the runners of kiln-acme-fleet-linux online at GitHub with version 2.338.0",
        "settle stack kiln-acme-fleet-linux: it follows its newest launch template version again",
        "record ami-000000000000000bb as the image that serves, and ami-000000000000000aa as the one to go back to",
    ];
    assert_eq!(steps(&plan), expected);
    assert_eq!(parameter(&plan.steps[0], SERVING), "3", "the group may not follow before the roll");
    let shown = plan.steps[0].to_string();
    assert!(shown.contains(&format!("~ AmiId = {AMI} -> ami-000000000000000bb")), "{shown}");
    assert!(!shown.contains("MaxSize"), "what stays is not shown: {shown}");
}

#[test]
fn each_state_that_an_interrupted_roll_leaves_is_gone_on_from() {
    // The stack was updated, the group held.
    let mut fixture = Fixture::serving();
    fixture.stack().parameters.insert(SERVING.to_owned(), "3".to_owned());
    fixture.stack().outputs.insert("LaunchTemplateVersion".to_owned(), "4".to_owned());
    let rest = [
        "roll kiln-acme-fleet-linux to the stack's newest launch template version",
        "see the runners of kiln-acme-fleet-linux online at GitHub",
        "settle stack kiln-acme-fleet-linux: it follows its newest launch template version again",
    ];
    assert_eq!(steps(&fixture.plan()), rest);

    // The refresh was started.
    let running = Refresh {
        id: "refresh-1".to_owned(),
        status: RefreshStatus::Running("InProgress".to_owned()),
        percent: 0,
        remaining: 1,
        reason: None,
        to: Some(version(4)),
        stops: false,
    };
    fixture.observed.refresh = Some(running.clone());
    let planned = steps(&fixture.plan());
    assert_eq!(planned[0], "wait for instance refresh refresh-1 of kiln-acme-fleet-linux, which is running");
    assert_eq!(planned[1..], rest);

    // It ended.
    fixture.observed.refresh = Some(Refresh { status: RefreshStatus::Successful, ..running });
    fixture.group().launch_template = Some(version(4));
    fixture.group().instances = vec![instance(4)];
    assert_eq!(steps(&fixture.plan()), rest[1..]);
}

#[test]
fn a_rolled_back_group_is_rolled_again() {
    let mut fixture = Fixture::serving();
    fixture.stack().parameters.insert(SERVING.to_owned(), "3".to_owned());
    fixture.stack().outputs.insert("LaunchTemplateVersion".to_owned(), "4".to_owned());
    fixture.observed.refresh = Some(Refresh {
        id: "refresh-1".to_owned(),
        status: RefreshStatus::Ended("RollbackSuccessful".to_owned()),
        percent: 100,
        remaining: 0,
        reason: None,
        to: Some(version(4)),
        stops: false,
    });
    assert!(steps(&fixture.plan())[0].starts_with("roll "));
}

#[test]
fn other_bounds_roll_nothing() {
    let mut fixture = Fixture::serving();
    fixture.stack().parameters.insert("MaxSize".to_owned(), "9".to_owned());
    let plan = fixture.plan();
    assert_eq!(plan.steps.len(), 2, "{plan}");
    assert!(plan.to_string().contains("~ MaxSize = 9 -> 4"), "{plan}");
    assert_eq!(parameter(&plan.steps[0], SERVING), "");
}

#[test]
fn an_instance_whose_runner_is_offline_or_leaving_counts_as_it_should() {
    let mut fixture = Fixture::serving();
    fixture.observed.runners = vec![runner("offline")];
    assert_eq!(steps(&fixture.plan()), ["see the runners of kiln-acme-fleet-linux online at GitHub"]);

    let mut fixture = Fixture::serving();
    fixture.group().instances.push(GroupInstance { state: "Terminating:Wait".to_owned(), ..instance(2) });
    assert_nothing_to_do(&fixture.plan());
}

#[test]
fn a_roll_tells_what_no_single_service_shows() {
    let mut fixture = Fixture::serving();
    fixture.next_image();
    fixture.stack().parameters.insert("InstanceType1".to_owned(), "m5.large".to_owned());
    fixture.observed.runners[0].busy = true;
    let plan = fixture.plan().to_string();
    for line in [
        "~ kiln:runner-version: 2.337.1 -> 2.338.0",
        "~ instances: 1 x m5.large -> 1 x m6i.large",
        "1 instance(s) to replace, 1 of them run a job now: each terminates when its job ends, after at most 6 h",
    ] {
        assert!(plan.contains(line), "no {line:?} in:\n{plan}");
    }
    assert!(!plan.contains("kiln:base-image"), "what is alike is not shown:\n{plan}");
}

#[test]
fn a_roll_says_how_long_its_runner_is_served_and_warns_in_time() {
    let mut fixture = Fixture::serving();
    fixture.next_image();
    let mut ends_in = |days: u64| {
        fixture.observed.lifetime = Some(Lifetime {
            version: "2.338.0".parse().unwrap(),
            registers_until: Some(fixture.observed.at + Duration::from_secs(days * 24 * 3600)),
            runs_until: None,
            basis: Basis::Announced,
        });
        (fixture.plan().to_string(), fixture.observed.ends_soon())
    };
    let (plan, soon) = ends_in(30);
    assert!(plan.contains("its runner registers until") && plan.contains("(30 days)"), "{plan}");
    assert_eq!(soon, None);
    let soon = ends_in(14).1.unwrap();
    assert!(soon.contains(NEXT) && soon.contains("(14 days)") && soon.contains("cargo xtask pin"), "{soon}");
}

#[test]
fn a_stack_whose_creation_failed_is_deleted_first() {
    let mut fixture = Fixture::serving();
    fixture.first_time();
    fixture.observed.dead.push(DeadStack {
        name: "kiln-acme-fleet-linux".to_owned(),
        status: "ROLLBACK_COMPLETE".to_owned(),
        reason: "AutoScalingGroup: no such subnet".to_owned(),
    });
    let plan = fixture.plan();
    let expected = [
        "delete stack kiln-acme-fleet-linux, which is in ROLLBACK_COMPLETE and has no instance in service",
        "create stack kiln-acme-fleet-linux",
    ];
    assert_eq!(steps(&plan)[..2], expected);
    assert!(plan.to_string().contains("no such subnet"), "{plan}");
}

#[test]
fn only_a_runner_whose_instance_is_gone_is_deleted() {
    let named = |name: &str, status: &str, busy| Runner { name: name.to_owned(), busy, ..runner(status) };
    let mut fixture = Fixture::serving();
    fixture.observed.runners.extend([
        named("linux-i-0000000000000dead", "offline", false),
        named("linux-i-0000000000000dead-1a2b3c4d", "offline", false),
        named("linux-i-0000000000000beef", "online", false),
        named("linux-i-0000000000000face", "offline", true),
        named("linux-i-00000000000000001-1a2b3c4d", "offline", false),
        named("linux-arm-i-0000000000000dead", "offline", false),
        named("somebody-elses", "offline", false),
    ]);
    let plan = fixture.plan();
    assert_eq!(steps(&plan), ["delete 2 runner(s) at GitHub whose instance is gone"]);
    assert!(plan.to_string().contains("- linux-i-0000000000000dead-1a2b3c4d"), "{plan}");
}

#[test]
fn an_image_that_was_rolled_back_from_is_not_rolled_out_by_the_next_pipeline() {
    let mut fixture = Fixture::serving();
    fixture.observed.record.rejected = Some(NEXT.parse().unwrap());
    fixture.observed.aim.kept_from = Some(NEXT.parse().unwrap());
    let plan = fixture.plan();
    assert_nothing_to_do(&plan);
    assert!(plan.settled.contains(NEXT) && plan.settled.contains("--retry"), "{}", plan.settled);

    // Asked for all the same.
    fixture.next_image();
    (fixture.observed.aim.accept, fixture.observed.aim.kept_from) = (true, None);
    assert_eq!(steps(&fixture.plan())[0], "forget that ami-000000000000000bb was rolled back from");
}

#[test]
fn a_rollback_says_first_what_it_goes_back_from() {
    let mut fixture = Fixture::serving();
    fixture.observed.aim =
        TargetImage { ami: NEXT.parse().unwrap(), reject: Some(ami()), accept: false, kept_from: None };
    let planned = steps(&fixture.plan());
    assert_eq!(planned[0], "record ami-000000000000000aa as rolled back from");
    assert_eq!(planned[1], "update stack kiln-acme-fleet-linux");
}

/// A checkpoint is reached once at least its percentage is new.
#[test]
fn the_canary_is_one_instance() {
    let replaced = |desired: u32| {
        let percent = Canary::checkpoint_percent(desired);
        (1..=desired).find(|new| new * 100 >= desired * percent).unwrap()
    };
    for desired in 1..=100 {
        assert_eq!(replaced(desired), 1, "of {desired}");
    }
    for desired in 101..=2000 {
        assert!(replaced(desired) <= desired.div_ceil(100), "{} of {desired}", replaced(desired));
    }
}

#[test]
fn a_group_that_can_not_replace_instances_is_not_rolled() {
    for (process, refused) in [("Launch", true), ("Terminate", true), ("InstanceRefresh", true), ("AZRebalance", false)]
    {
        let mut fixture = Fixture::serving();
        let reason = "Instances fail to launch for 24 hours".to_owned();
        fixture.group().suspended = vec![Suspension { process: process.to_owned(), reason }];
        // Where nothing is to be rolled, it is no matter.
        assert!(fixture.plan().is_empty());
        fixture.stack().outputs.insert("LaunchTemplateVersion".to_owned(), "4".to_owned());
        match fixture.try_plan() {
            Ok(_) => assert!(!refused, "{process}"),
            Err(error) => {
                assert!(refused, "{process}");
                assert_eq!(error.code, Code::GroupSuspended);
                let hint = error.hint.unwrap();
                assert!(hint.contains("aws autoscaling resume-processes --auto-scaling-group-name"), "{hint}");
                assert!(hint.ends_with(&format!("--scaling-processes {process}`")), "{hint}");
            }
        }
    }
}
