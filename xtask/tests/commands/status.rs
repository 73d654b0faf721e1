//! `status` tells what is there, and `--fix` deletes what has no instance any more.

use std::time::Duration;

use kiln_e2e::story::{FLEETS, VERSIONS};
use serde_json::{Value, json};

use crate::support::{World, quiet, refused, world};

const SOON: Duration = Duration::from_secs(60);

async fn well(world: &World, arguments: &[&str]) -> String {
    world.run(arguments, quiet).await.unwrap().success().unwrap().stderr
}

async fn status(world: &World) -> Value {
    let outcome = world.run(&["status", "--json"], quiet).await.unwrap().success().unwrap();
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn counts(document: &Value, fleet: usize) -> Value {
    document["result"]["fleets"][fleet]["counts"].clone()
}

fn warns(document: &Value, of: &str) -> bool {
    document["warnings"].as_array().unwrap().iter().any(|warning| warning.as_str().unwrap().contains(of))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_what_is_there_and_deletes_only_orphans() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();

    // An empty account is no failure; only what needs GitHub is.
    let nothing = status(&world).await;
    let result = &nothing["result"];
    assert_eq!((&result["fleets"][0]["stack"], &result["keys"][0]["fingerprint"]), (&Value::Null, &Value::Null));
    assert_eq!((&result["github"]["asked"], &result["fleets"][0]["runners"]), (&json!(false), &Value::Null));
    assert!(warns(&nothing, "GitHub could not be asked"), "{nothing}");
    refused(&world, &["status", "--fix"], 5).await;

    let pem = world.download_key("key.pem").unwrap();
    well(&world, &["rotate-key", "--pem", pem.to_str().unwrap()]).await;
    let ami = world.run(&["ami"], quiet).await.unwrap().success().unwrap().stdout.trim_end().to_owned();
    well(&world, &["deploy"]).await;
    let before = world.aws.mutations();
    let serving = status(&world).await;
    for (fleet, name) in serving["result"]["fleets"].as_array().unwrap().iter().zip(["linux", "once"]) {
        assert_eq!(
            (&fleet["name"], &fleet["image"], &fleet["stack"]),
            (&json!(name), &json!(ami), &json!("CREATE_COMPLETE"))
        );
        assert_eq!(fleet["counts"], json!({ "idle": 1, "busy": 0, "offline": 0, "orphaned": 0 }), "{fleet}");
        assert_eq!((&fleet["group"]["desired"], &fleet["lock"]), (&json!(1), &Value::Null), "{fleet}");
    }
    let image = &serving["result"]["images"][0];
    assert_eq!(
        (&image["runner"], &image["exists"], &image["newest_of"]),
        (&json!(VERSIONS[0]), &json!(true), &json!("al2023-x86-64")),
        "{image}"
    );
    assert_eq!(serving["result"]["keys"][0]["fingerprint"], world.github.keys()[0]);
    let table = world.run(&["status", "--fleet", "linux"], quiet).await.unwrap().success().unwrap().stdout;
    for word in ["FLEET", "ORPHANED", "linux", ami.as_str(), "1 of 1 (1 to 2)", "InService", "idle"] {
        assert!(table.contains(word), "no {word} in:\n{table}");
    }
    assert!(!table.contains("once"), "only the fleet asked for:\n{table}");
    assert_eq!(world.aws.mutations(), before, "status changes nothing");

    // A machine is lost without a word. Other runners are offline, too: one's instance exists, two are not Kiln's.
    let lost = world.github.runners().into_iter().find(|runner| runner.name.starts_with("linux-i-")).unwrap();
    world.aws.kill_instance(lost.name.trim_start_matches("linux-"));
    let missed = || world.github.runners().iter().any(|runner| runner.id == lost.id && !runner.online);
    let deadline = tokio::time::Instant::now() + SOON;
    while !missed() {
        assert!(tokio::time::Instant::now() < deadline, "GitHub never misses the lost runner");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let here =
        world.aws.instances().into_iter().find(|it| it.group.ends_with("-once") && it.state == "InService").unwrap();
    let others = [format!("once-{}-0a1b2c3d", here.id), "linux-builder".into(), "other-i-0abc0000000000009".into()];
    world.github.add_offline_runners(others.clone());
    let seen = status(&world).await;
    assert_eq!(counts(&seen, 0)["orphaned"], 1, "{seen}");
    assert_eq!((&counts(&seen, 1)["orphaned"], &counts(&seen, 1)["offline"]), (&json!(0), &json!(1)), "{seen}");
    assert!(warns(&seen, "1 runner(s) without an instance"), "{seen}");

    let fixed = well(&world, &["status", "--fix"]).await;
    assert!(fixed.contains("1 runner(s) without an instance deleted"), "{fixed}");
    let left = world.github.runners();
    assert!(left.iter().all(|runner| runner.id != lost.id), "{left:?}");
    for name in &others {
        assert!(left.iter().any(|runner| runner.name == *name), "{name} is gone: {left:?}");
    }

    // An image whose runner ends, and a GitHub that does not answer.
    world.github.announce_end(VERSIONS[0], Some(Duration::from_secs(5 * 24 * 3600)), None);
    assert!(warns(&status(&world).await, "as announced by GitHub: `cargo xtask pin` updates the pin"));
    world.github.suspend(true);
    let mute = status(&world).await;
    assert_eq!(
        (&mute["result"]["github"]["asked"], &mute["result"]["fleets"][0]["group"]["max"]),
        (&json!(false), &json!(2))
    );
    world.shutdown().await.unwrap();
}
