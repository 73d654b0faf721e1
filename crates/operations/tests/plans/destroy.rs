//! What `destroy` would do.

use std::time::Duration;

use kiln_config::config::Config;
use kiln_operations::Code;
use kiln_operations::deploy::Record;
use kiln_operations::destroy::{self, Observed, ObservedFleet, ObservedStack, Request};
use kiln_operations::ports::{Group, GroupInstance};

use crate::{assert_nothing_to_do, config, steps};

fn group(name: &str, max: u32, instances: u32) -> Group {
    let instance = |number| GroupInstance {
        id: format!("i-{number:08}").parse().unwrap(),
        state: "InService".to_owned(),
        healthy: true,
        launch_template: None,
    };
    Group {
        name: format!("kiln-acme-fleet-{name}").parse().unwrap(),
        launch_template: None,
        min: 0,
        max,
        desired: max.min(1),
        instances: (0..instances).map(instance).collect(),
        suspended: Vec::new(),
    }
}

fn stack(name: &str, status: &str) -> ObservedStack {
    ObservedStack { name: format!("kiln-acme-{name}"), status: status.to_owned() }
}

fn fleet(name: &str, status: Option<&str>, group: Option<Group>) -> ObservedFleet {
    let stack = status.map(|status| stack(&format!("fleet-{name}"), status));
    ObservedFleet { name: name.parse().unwrap(), stack, group, record: Record::default() }
}

fn observed(fleets: Vec<ObservedFleet>) -> Observed {
    Observed {
        fleets,
        runners: Some(Vec::new()),
        network: None,
        others: Vec::new(),
        bucket: "kiln-acme-0".to_owned(),
        ending: None,
    }
}

fn request<'a>(config: &'a Config, fleets: &[&str]) -> Request<'a> {
    let fleets = fleets.iter().map(|name| name.parse().unwrap()).collect();
    Request { config, fleets, network: false, now: false, lock_wait: Duration::ZERO }
}

#[test]
fn what_is_gone_needs_nothing() {
    let config = config();
    assert_nothing_to_do(&destroy::plan(&request(&config, &["linux"]), &observed(vec![fleet("linux", None, None)])));
}

#[test]
fn every_group_drains_before_any_stack_goes_and_the_network_goes_last() {
    let config = config();
    let mut observed = observed(vec![
        fleet("linux", Some("CREATE_COMPLETE"), Some(group("linux", 4, 2))),
        fleet("once", Some("UPDATE_COMPLETE"), Some(group("once", 4, 1))),
    ]);
    observed.network = Some(stack("network", "CREATE_COMPLETE"));
    observed.fleets[0].record.current = Some("ami-0000000a".parse().unwrap());
    let plan = destroy::plan(&request(&config, &["linux", "once"]), &observed);
    assert_eq!(
        steps(&plan),
        [
            "scale kiln-acme-fleet-linux to zero",
            "scale kiln-acme-fleet-once to zero",
            "wait until kiln-acme-fleet-linux is empty",
            "wait until kiln-acme-fleet-once is empty",
            "delete the remaining runners of fleet linux at GitHub",
            "delete stack kiln-acme-fleet-linux",
            "delete the record of the images of fleet linux",
            "delete the remaining runners of fleet once at GitHub",
            "delete stack kiln-acme-fleet-once",
            "delete stack kiln-acme-network",
        ]
    );
    assert!(plan.to_string().contains("delay its instance for 6 h"), "{plan}");
}

#[test]
fn an_interrupted_run_is_gone_on_with() {
    let config = config();
    let first = |max, instances, status| {
        let group = (status != "DELETE_IN_PROGRESS").then(|| group("linux", max, instances));
        let plan = destroy::plan(&request(&config, &["linux"]), &observed(vec![fleet("linux", Some(status), group)]));
        steps(&plan).remove(0)
    };
    assert_eq!(first(0, 1, "CREATE_COMPLETE"), "wait until kiln-acme-fleet-linux is empty");
    assert_eq!(first(0, 0, "CREATE_COMPLETE"), "delete stack kiln-acme-fleet-linux");
    assert_eq!(first(0, 0, "DELETE_IN_PROGRESS"), "wait until stack kiln-acme-fleet-linux is deleted");
    assert_eq!(first(0, 0, "DELETE_FAILED"), "delete stack kiln-acme-fleet-linux");
}

#[test]
fn at_once_says_what_is_lost() {
    let config = config();
    let mut observed = observed(vec![fleet("linux", Some("CREATE_COMPLETE"), Some(group("linux", 4, 2)))]);
    let request = Request { now: true, ..request(&config, &["linux"]) };
    let plan = destroy::plan(&request, &observed);
    assert_eq!(steps(&plan)[0], "delete kiln-acme-fleet-linux with 2 instance(s) at once");
    assert!(plan.to_string().contains("running jobs fail: 0 of them run a job now"), "{plan}");
    observed.runners = None;
    let plan = destroy::plan(&request, &observed);
    assert!(plan.to_string().contains("the number of busy runners is unknown"), "{plan}");
    assert_eq!(plan.steps.len(), 2, "what GitHub has can't be asked for: {plan}");
}

#[test]
fn the_network_is_not_taken_from_under_a_fleet() {
    let mut observed = observed(Vec::new());
    observed.others = vec!["kiln-acme-fleet-old".to_owned()];
    destroy::require_alone(&observed).unwrap();
    observed.network = Some(stack("network", "CREATE_COMPLETE"));
    let error = destroy::require_alone(&observed).unwrap_err();
    assert_eq!(error.code, Code::NetworkInUse);
    assert!(error.message.contains("kiln-acme-fleet-old"), "{error}");
}
