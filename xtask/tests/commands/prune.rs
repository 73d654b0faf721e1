//! `prune`: what nothing uses goes, in each region, and a run that was killed anywhere is gone on with.

use std::time::Duration;

use kiln_e2e::story::{FLEETS, VERSIONS};
use serde_json::Value;

use crate::kill::die_all_the_way;
use crate::models::assert_modelled;
use crate::support::{World, quiet, world};

const DAY: Duration = Duration::from_secs(24 * 3600);
const KIND: &str = "kiln-rehearsal-image-al2023-x86-64";
const HOME: &str = "eu-central-1";
const AWAY: &str = "eu-west-1";

async fn succeed(world: &World, arguments: &[&str]) -> String {
    world.run(arguments, quiet).await.unwrap().success().unwrap().stdout.trim_end().to_owned()
}

async fn document(world: &World, arguments: &[&str]) -> Value {
    let outcome = world.run(&[arguments, &["--json"]].concat(), quiet).await.unwrap().success().unwrap();
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn amis(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|image| image["ami"].as_str().unwrap()).collect()
}

/// Are these images, and no snapshot beside theirs, in the region?
async fn holds(world: &World, region: &str, present: &[&str], absent: &[&str]) {
    let images = world.aws.own_images(region).await.unwrap();
    for ami in present {
        assert!(images.contains_key(*ami), "{ami} is gone from {region}");
    }
    for ami in absent {
        assert!(!images.contains_key(*ami), "{ami} is still in {region}");
    }
    let mut snapshots = world.aws.snapshots(region).await.unwrap();
    let mut theirs: Vec<String> = images.into_values().flatten().collect();
    snapshots.sort();
    theirs.sort();
    assert_eq!(snapshots, theirs, "in {region}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_uses_goes_in_every_region_however_often_the_run_is_killed() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let text = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(
        world.config(),
        text.replace("[fleet.linux]", &format!("[image_defaults]\ncopy_to = [\"{AWAY}\"]\n\n[fleet.linux]")),
    )
    .unwrap();
    let pem = world.download_key("key.pem").unwrap();
    succeed(&world, &["rotate-key", "--pem", pem.to_str().unwrap()]).await;
    let served = succeed(&world, &["ami"]).await;
    succeed(&world, &["deploy", "--fleet", "linux"]).await;
    let mut planted = Vec::new();
    for (region, kind, days) in [(HOME, KIND, 9), (HOME, KIND, 40), (AWAY, KIND, 12), (HOME, "somebody's", 90)] {
        planted.push(world.aws.plant_image(region, kind, days * DAY).await.unwrap());
    }
    let [recent, old, away, foreign] = &planted[..] else { panic!("{planted:?}") };

    let before = world.aws.mutations();
    let outcome = world.run(&["prune", "--keep", "1", "--dry-run"], quiet).await.unwrap().success().unwrap();
    for part in [
        format!("remove {old} ({KIND}, 40 days old, 30 GiB)"),
        format!("remove {recent} ({KIND}, 9 days old, 30 GiB)"),
        "this frees 60 GiB of snapshots at most".to_owned(),
        format!("keep {served}: one of the newest, recorded in /kiln-rehearsal/fleet/linux/current, recorded in"),
        format!("images in {AWAY}:"),
    ] {
        assert!(outcome.stderr.contains(&part), "no `{part}` in:\n{}", outcome.stderr);
    }
    assert_eq!(outcome.stdout, "");
    let planned = document(&world, &["prune", "--keep", "2", "--dry-run"]).await;
    assert_eq!(amis(&planned["result"]["removed"]), [old.as_str()]);
    assert_eq!(planned["result"]["gib"], 30);
    assert_eq!(world.aws.mutations(), before);

    let kills = die_all_the_way(&world, &["prune", "--keep", "1"]).await;
    assert!(kills >= 9, "killed only {kills} times: are its calls seen?");
    holds(&world, HOME, &[&served, foreign], &[old, recent]).await;
    holds(&world, AWAY, &[], &[away]).await;
    let again = world.run(&["prune", "--keep", "1"], quiet).await.unwrap().success().unwrap();
    assert_eq!(again.stderr.matches("nothing to do").count(), 2, "{}", again.stderr);
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_launch_template_version_gives_its_image_up_when_told_to() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    succeed(&world, &["rotate-key", "--pem", pem.to_str().unwrap()]).await;
    let first = succeed(&world, &["ami"]).await;
    succeed(&world, &["deploy", "--fleet", "linux"]).await;
    world.write_config(VERSIONS[1], FLEETS).unwrap();
    let second = succeed(&world, &["ami"]).await;
    succeed(&world, &["deploy", "--fleet", "linux"]).await;

    // The first is the way back.
    let kept = document(&world, &["prune", "--keep", "1", "--superseded", "--dry-run"]).await;
    assert_eq!(amis(&kept["result"]["removed"]), [""; 0]);
    world.aws.forget_parameter("/kiln-rehearsal/fleet/linux/former").await.unwrap();
    let outcome = world.run(&["prune", "--keep", "1", "--dry-run"], quiet).await.unwrap().success().unwrap();
    let told = format!("keep {first}: named by superseded launch template kiln-rehearsal-fleet-linux version 1");
    assert!(outcome.stderr.contains(&told), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("1 more, 30 GiB, would go with --superseded"), "{}", outcome.stderr);
    let done = world.run(&["prune", "--keep", "1", "--superseded"], quiet).await.unwrap().success().unwrap();
    assert_eq!(done.stdout.trim_end(), first);
    holds(&world, HOME, &[&second], &[&first]).await;
    let deployed = world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap().success().unwrap();
    assert!(deployed.stderr.contains("nothing to do"), "{}", deployed.stderr);
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}
