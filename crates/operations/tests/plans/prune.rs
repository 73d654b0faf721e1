//! What `prune` would remove.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use kiln_config::config::Config;
use kiln_operations::plan::Plan;
use kiln_operations::ports::{OwnImage, OwnSnapshot};
use kiln_operations::prune::{self, Observed, Request, Step, Use};

use crate::{assert_nothing_to_do, config, steps};

const X86: &str = "kiln-acme-image-al2023-x86-64";
const ARM: &str = "kiln-acme-image-al2023-aarch64";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY
}

/// An image of so many days, whose id ends with its age.
fn image(name: &str, days: u32) -> OwnImage {
    let id = format!("{days:08}");
    OwnImage {
        id: format!("ami-{id}").parse().unwrap(),
        name: format!("{name} {days}"),
        created: Some(now() - days * DAY),
        tags: BTreeMap::from([("kiln:image".to_owned(), name.to_owned())]),
        snapshots: vec![(format!("snap-{id}").parse().unwrap(), 30)],
    }
}

fn observed(ages: &[u32]) -> Observed {
    Observed { images: ages.iter().map(|days| image(X86, *days)).collect(), ..Observed::default() }
}

fn used(mut observed: Observed, days: u32, by: Use) -> Observed {
    observed.uses.entry(image(X86, days).id).or_default().insert(by);
    observed
}

fn left() -> OwnSnapshot {
    OwnSnapshot {
        id: "snap-0000aaaa".parse().unwrap(),
        gib: 30,
        tags: BTreeMap::from([("kiln:pruned-from".to_owned(), "ami-0000aaaa".to_owned())]),
    }
}

fn plan_of(config: &Config, keep: usize, superseded: bool, observed: &Observed) -> Plan<Step> {
    prune::plan(&Request { config, region: &config.region, keep, superseded, now: now() }, observed)
}

#[test]
fn nothing_there() {
    assert_nothing_to_do(&plan_of(&config(), 3, true, &Observed::default()));
}

#[test]
fn the_newest_stay_whatever_their_order_and_the_oldest_goes_first() {
    let config = config();
    assert_nothing_to_do(&plan_of(&config, 3, false, &observed(&[9, 1, 5])));
    let plan = plan_of(&config, 2, false, &observed(&[5, 40, 1, 9]));
    assert_eq!(
        steps(&plan),
        [
            format!("remove ami-00000040 ({X86}, 40 days old, 30 GiB)"),
            format!("remove ami-00000009 ({X86}, 9 days old, 30 GiB)"),
        ]
    );
    assert_eq!(plan.steps.iter().map(Step::gib).sum::<u32>(), 60);
}

#[test]
fn each_image_has_its_own_newest() {
    let mut both = observed(&[1, 2]);
    both.images.extend([image(ARM, 30), image(ARM, 31)]);
    let plan = plan_of(&config(), 1, false, &both);
    assert_eq!(steps(&plan).len(), 2, "{plan}");
    assert!(steps(&plan)[0].contains("ami-00000031") && steps(&plan)[1].contains("ami-00000002"), "{plan}");
}

#[test]
fn an_image_without_a_date_counts_as_just_made() {
    let mut observed = observed(&[1, 2]);
    observed.images[1].created = None;
    let plan = plan_of(&config(), 1, false, &observed);
    assert_eq!(steps(&plan).len(), 1);
    assert!(steps(&plan)[0].contains("ami-00000001"), "{plan}");
}

#[test]
fn whatever_names_an_image_keeps_it() {
    let name = || "x".to_owned();
    for by in [Use::Recorded(name()), Use::Stack(name()), Use::Launches(name()), Use::Instance(name())] {
        for superseded in [false, true] {
            let plan = plan_of(&config(), 1, superseded, &used(observed(&[1, 7]), 7, by.clone()));
            assert_nothing_to_do(&plan);
        }
    }
}

#[test]
fn a_superseded_version_keeps_its_image_unless_told_otherwise() {
    let observed = used(observed(&[1, 7]), 7, Use::Superseded("kiln-acme-fleet-linux version 1".to_owned()));
    assert_nothing_to_do(&plan_of(&config(), 1, false, &observed));
    assert_eq!(steps(&plan_of(&config(), 1, true, &observed)).len(), 1);
    let held = used(observed, 7, Use::Recorded("/kiln-acme/fleet/linux/former".to_owned()));
    assert_nothing_to_do(&plan_of(&config(), 1, true, &held));
}

#[test]
fn what_an_interrupted_run_left_comes_first() {
    let plan = plan_of(&config(), 1, false, &Observed { left: vec![left()], ..observed(&[1, 7]) });
    assert_eq!(steps(&plan)[0], "delete snap-0000aaaa (30 GiB), left over from ami-0000aaaa");
    assert_eq!(plan.steps.len(), 2, "{plan}");
}

#[test]
fn a_snapshot_that_another_ami_was_made_from_stays() {
    let snapshot = image(X86, 7).snapshots[0].0.clone();
    let other = |with: &[&str]| with.iter().map(|id| id.parse().unwrap()).collect::<BTreeSet<_>>();
    let holders =
        BTreeMap::from([(snapshot, other(&["ami-00000007", "ami-0000bbbb"])), (left().id, other(&["ami-0000cccc"]))]);
    let observed = Observed { left: vec![left()], holders, ..observed(&[1, 7]) };
    let plan = plan_of(&config(), 1, false, &observed);
    assert_eq!(
        plan.steps[0].to_string(),
        format!("remove ami-00000007 ({X86}, 7 days old, 0 GiB)\nsnap-00000007 stays: ami-0000bbbb uses it")
    );
    assert_eq!(plan.steps.len(), 1, "what is left of an earlier run stays too: {plan}");
    let held: Vec<String> = prune::held(&observed).iter().map(ToString::to_string).collect();
    assert_eq!(held, ["snap-0000aaaa stays: ami-0000cccc uses it"]);
}
