//! `pin`: the pins move, the file's comments stay, and a pipeline is told in time.

use std::time::Duration;

use kiln_e2e::story::{FLEETS, VERSIONS};
use serde_json::Value;

use crate::models::assert_modelled;
use crate::support::{World, quiet, refused, world};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// `pin --check --json`: its exit code and document.
async fn check(world: &World) -> (Option<i32>, Value, String) {
    let outcome = world.run(&["pin", "--check", "--json"], quiet).await.unwrap();
    let document: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{}", outcome.stderr));
    (outcome.code, document["result"].clone(), outcome.stderr)
}

fn urgencies(document: &Value) -> Vec<(&str, &str)> {
    let runners = document["runners"].as_array().unwrap().iter();
    runners.map(|one| (one["place"].as_str().unwrap(), one["lifetime"]["urgency"].as_str().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_is_told_in_time_and_the_pins_move() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let text = std::fs::read_to_string(world.config()).unwrap();
    let text = text.replace("[runner]\n", "# Renewed by the pipeline.\n[runner]\n");
    std::fs::write(world.config(), &text).unwrap();
    let said = refused(&world, &["pin"], 5).await;
    assert!(said.contains("rotate-key --pem"), "{said}");
    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap().success().unwrap();
    let before = world.aws.mutations();

    // The newest release: nothing is due.
    let (code, document, said) = check(&world).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(urgencies(&document), [("pinned", "none"), ("recorded", "none"), ("deployed", "none")]);

    // A newer one, and ten of the thirty days are left.
    world.github.runner_release(VERSIONS[1]).unwrap();
    world.github.publish(VERSIONS[1], 20 * DAY);
    let (code, document, said) = check(&world).await;
    assert_eq!(code, Some(8), "{said}");
    assert!(said.contains("hint: run `cargo xtask pin`, then"), "{said}");
    assert_eq!(urgencies(&document), [("pinned", "due"), ("recorded", "due"), ("deployed", "due")]);
    let lifetime = &document["runners"][0]["lifetime"];
    assert_eq!((lifetime["basis"].as_str(), lifetime["days_left"].as_u64()), (Some("thirty-days"), Some(9)));
    assert_eq!(document["newest_runner"], VERSIONS[1]);

    let dry = world.run(&["pin", "--dry-run"], quiet).await.unwrap().success().unwrap();
    let change = format!("~ runner.version = \"{}\" -> \"{}\"", VERSIONS[0], VERSIONS[1]);
    assert!(dry.stderr.contains(&change), "{}", dry.stderr);
    assert_eq!(std::fs::read_to_string(world.config()).unwrap(), text);
    let done = world.run(&["pin"], quiet).await.unwrap().success().unwrap();
    assert!(done.stderr.contains(&change), "{}", done.stderr);
    let digest = |version: &str| world.github.runner_release(version).unwrap().sha256;
    let expected = text
        .replace(&format!("version = \"{}\"", VERSIONS[0]), &format!("version = \"{}\"", VERSIONS[1]))
        .replace(&digest(VERSIONS[0]).to_string(), &digest(VERSIONS[1]).to_string());
    assert_eq!(std::fs::read_to_string(world.config()).unwrap(), expected);
    let again = world.run(&["pin"], quiet).await.unwrap().success().unwrap();
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);

    // What is pinned is fresh; what was baked from the former pin is not.
    let (code, document, said) = check(&world).await;
    assert_eq!(code, Some(8), "{said}");
    assert!(said.contains("hint: kiln.toml is up to date: run `cargo xtask ami`"), "{said}");
    assert_eq!(urgencies(&document), [("pinned", "none"), ("recorded", "due"), ("deployed", "due")]);
    assert_eq!(world.aws.mutations(), before, "pin changes nothing in AWS");

    // What can't register any more is not baked.
    world.github.announce_end(VERSIONS[1], Some(Duration::ZERO), None);
    let said = refused(&world, &["ami"], 5).await;
    assert!(said.contains("can't register since") && said.contains("`cargo xtask pin`"), "{said}");
    assert_eq!(world.aws.mutations(), before);
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_is_not_the_published_one_is_found() {
    let world = world().await;
    world.write_config(VERSIONS[1], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    let text = std::fs::read_to_string(world.config()).unwrap();
    let published = world.github.runner_release(VERSIONS[1]).unwrap().sha256.to_string();
    std::fs::write(world.config(), text.replace(&published, &"0123456789abcdef".repeat(4))).unwrap();
    let (code, document, said) = check(&world).await;
    assert_eq!(code, Some(8), "{said}");
    assert_eq!(document["wrong_digests"][0], "x86_64");
    world.run(&["pin"], quiet).await.unwrap().success().unwrap();
    assert_eq!(std::fs::read_to_string(world.config()).unwrap(), text);
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}
