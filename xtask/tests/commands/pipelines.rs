//! The workflows of docs/pipelines, run step by step in a world, as GitHub's runner would run them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kiln_rehearsal::story::{FLEETS, VERSIONS};
use serde_yaml_ng::Value;
use tokio::process::Command;

use crate::models::assert_modelled;
use crate::support::{World, bootstrap, quiet, world};

fn workflow(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/pipelines").join(name);
    serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A step of a job that runs commands of ours: its id, if it has one, and its script.
fn steps<'a>(workflow: &'a Value, job: &str) -> Vec<(Option<&'a str>, &'a str)> {
    let steps = workflow["jobs"][job]["steps"].as_sequence().unwrap_or_else(|| panic!("no job {job}"));
    let scripts = steps.iter().filter_map(|step| Some((step["id"].as_str(), step["run"].as_str()?)));
    let ours: Vec<_> = scripts.filter(|(_, script)| script.contains("cargo xtask")).collect();
    for (_, script) in &ours {
        assert!(!script.contains("${{"), "an expression in a script is an injection: {script}");
    }
    assert!(!ours.is_empty(), "job {job} runs no command");
    ours
}

/// What `cargo xtask` is in a world: the executable under test, with the bootstrap binary that is built already.
fn cargo(world: &World) -> std::path::PathBuf {
    let folder = world.path("bin");
    std::fs::create_dir_all(&folder).unwrap();
    let script = format!(
        "#!/bin/sh\nset -e\nshift\ncase $1 in ami) set -- \"$@\" --bootstrap '{}';; esac\nexec '{}' \"$@\"\n",
        bootstrap().display(),
        env!("CARGO_BIN_EXE_xtask"),
    );
    std::fs::write(folder.join("cargo"), script).unwrap();
    std::fs::set_permissions(folder.join("cargo"), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs a job's steps in order; gives the outputs of those that have an id.
async fn run(world: &World, workflow: &Value, job: &str) -> BTreeMap<String, String> {
    let path = format!("{}:{}", cargo(world).display(), std::env::var("PATH").unwrap());
    let mut outputs = BTreeMap::new();
    for (id, script) in steps(workflow, job) {
        let (written, summary) = (world.path("outputs"), world.path("summary"));
        std::fs::write(&written, "").unwrap();
        std::fs::write(&summary, "").unwrap();
        let output = Command::new("bash")
            .args(["--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script])
            .env_clear()
            .envs(world.aws.environment())
            .envs([("PATH", path.as_str()), ("HOME", "/nowhere"), ("CI", "true"), ("GITHUB_ACTIONS", "true")])
            .env("KILN_CONFIG", world.config())
            .env("GITHUB_OUTPUT", &written)
            .env("GITHUB_STEP_SUMMARY", &summary)
            .output()
            .await
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{job}: {script}:\n{log}");
        assert!(!std::fs::read_to_string(&summary).unwrap().is_empty(), "{script} wrote no summary");
        for line in std::fs::read_to_string(&written).unwrap().lines() {
            let (name, value) = line.split_once('=').unwrap();
            outputs.insert(format!("{}.{name}", id.unwrap_or_default()), value.to_owned());
        }
    }
    outputs
}

#[tokio::test(flavor = "multi_thread")]
async fn the_release_pipeline_bakes_and_rolls_out() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    let release = workflow("release.yml");

    let baked = run(&world, &release, "ami").await;
    let images: BTreeMap<String, String> = serde_json::from_str(&baked["ami.images"]).unwrap();
    assert_eq!(images.values().collect::<Vec<_>>(), [&world.aws.images()[0].ami]);
    let rolled = run(&world, &release, "deploy").await;
    assert_eq!(rolled["deploy.outcome"], "done");
    assert_eq!(world.github.runners().iter().filter(|runner| runner.online).count(), 2);

    // A merge that changes nothing.
    let before = world.aws.mutations();
    let again = run(&world, &release, "deploy").await;
    assert_eq!((&*again["deploy.outcome"], &*again["deploy.changed"]), ("nothing-to-do", "false"));
    assert_eq!(world.aws.mutations(), before);
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_weekly_pipeline_moves_the_pins_and_is_content_then() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    world.github.runner_release(VERSIONS[1]).unwrap();
    let before = world.aws.mutations();
    let freshness = workflow("freshness.yml");

    let moved = run(&world, &freshness, "pins").await;
    assert_eq!((&*moved["pin.outcome"], &*moved["pin.changed"]), ("done", "true"));
    assert!(std::fs::read_to_string(world.config()).unwrap().contains(&format!("version = \"{}\"", VERSIONS[1])));
    let again = run(&world, &freshness, "pins").await;
    assert_eq!((&*again["pin.outcome"], &*again["pin.changed"]), ("nothing-to-do", "false"));
    assert_eq!(world.aws.mutations(), before);
    world.shutdown().await.unwrap();
}
