//! What `status` makes of runners and instances.

use std::time::SystemTime;

use kiln_operations::deploy::Record;
use kiln_operations::ports::{Group, GroupInstance, ShownState};
use kiln_operations::status::{self, FleetStatus, Report, RunnerState};

fn runner(id: u64, name: &str, status: &str, busy: bool) -> kiln_github::Runner {
    serde_json::from_value(serde_json::json!({
        "id": id, "name": name, "status": status, "busy": busy, "ephemeral": null, "version": null
    }))
    .unwrap()
}

fn group() -> Group {
    let instance = |(id, state): (&str, &str)| GroupInstance {
        id: id.parse().unwrap(),
        state: state.to_owned(),
        healthy: true,
        launch_template: None,
    };
    let instances = [
        ("i-00000001", "InService"),
        ("i-00000002", "InService"),
        ("i-00000003", "InService"),
        ("i-00000008", "Pending:Wait"),
    ];
    Group {
        name: "kiln-acme-fleet-linux".parse().unwrap(),
        launch_template: None,
        min: 1,
        max: 4,
        desired: 3,
        instances: instances.map(instance).into(),
        suspended: Vec::new(),
    }
}

fn fleet() -> FleetStatus {
    let runners = [
        runner(1, "linux-i-00000001", "online", false),
        runner(2, "linux-i-00000002-1f2e3d4c", "online", true),
        // Its instance is there: it may come back.
        runner(3, "linux-i-00000003", "offline", false),
        runner(4, "linux-i-00000004", "offline", false),
        // GitHub has not given its job up yet.
        runner(5, "linux-i-00000005", "offline", true),
        runner(6, "linux-builder", "offline", false),
        runner(7, "linux2-i-00000007", "offline", false),
    ];
    let name = "linux".parse().unwrap();
    FleetStatus {
        runners: Some(status::runners_of(&name, &runners, Some(&group()))),
        name,
        stack: Some("CREATE_COMPLETE".to_owned()),
        image: Some("ami-0000000a".parse().unwrap()),
        baked: Some("ami-0000000b".parse().unwrap()),
        record: Record::default(),
        group: Some(group()),
        refresh: None,
        lock: None,
        shown: Vec::new(),
        on_demand: None,
    }
}

/// Instances tag themselves by what keeps them from serving.
#[test]
fn what_instances_say_of_themselves_is_noted_once_for_each_state() {
    let shown = |number: u32, state: &str| ShownState {
        instance: format!("i-{number:08}").parse().unwrap(),
        group: "kiln-acme-fleet-linux".parse().unwrap(),
        state: state.to_owned(),
    };
    let mut fleet = fleet();
    fleet.shown = (1..=7).map(|number| shown(number, "runner-deprecated")).collect();
    fleet.shown.extend([shown(8, "serving"), shown(9, "github-unreachable")]);
    let report = Report {
        at: SystemTime::now(),
        fleets: vec![fleet],
        strangers: Vec::new(),
        images: Vec::new(),
        keys: Vec::new(),
        github: None,
    };
    let notes: Vec<String> = report
        .notes()
        .into_iter()
        .filter(|note| note.contains("-deprecated: ") || note.contains("-unreachable: "))
        .collect();
    assert!(notes[0].starts_with("fleet linux: github-unreachable: i-00000009; it does not reach GitHub"), "{notes:?}");
    assert!(notes[1].starts_with("fleet linux: runner-deprecated: i-00000001, "), "{notes:?}");
    assert!(notes[1].contains(" and 2 more; GitHub serves its runner's version no more: pin"), "{notes:?}");
    assert_eq!(notes.len(), 2);
}

#[test]
fn each_runner_is_one_thing_and_only_the_fleets_own_are_told() {
    use RunnerState::{Busy, Idle, Offline, Orphaned};
    let fleet = fleet();
    let states: Vec<(u64, RunnerState)> =
        fleet.runners.iter().flatten().map(|runner| (runner.id, runner.state)).collect();
    assert_eq!(states, [(1, Idle), (2, Busy), (3, Offline), (4, Orphaned), (5, Offline)]);
    assert_eq!(fleet.orphans().iter().map(|orphan| orphan.id).collect::<Vec<_>>(), [4]);
    assert_eq!(fleet.silent().iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["i-00000003"]);
}

#[test]
fn what_somebody_should_look_at_is_told() {
    let mut report = Report {
        at: SystemTime::now(),
        fleets: vec![fleet()],
        strangers: vec!["kiln-acme-fleet-old".to_owned()],
        images: Vec::new(),
        keys: Vec::new(),
        github: None,
    };
    let notes = report.notes().join("\n");
    let wanted = ["without a runner online: i-00000003", "1 runner(s) without", "ami-0000000b is newer", "fleet-old"];
    for word in wanted {
        assert!(notes.contains(word), "no `{word}` in:\n{notes}");
    }
    // What is not known is not told.
    report.fleets[0].runners = None;
    report.github = Some("it is down".to_owned());
    let notes = report.notes().join("\n");
    assert!(notes.contains("it is down") && !notes.contains("without a"), "{notes}");
}
