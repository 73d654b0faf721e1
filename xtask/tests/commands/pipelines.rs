//! The workflows of docs/pipelines, run step by step in a world, as GitHub's runner would run them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use kiln_e2e::story::{FLEETS, VERSIONS};
use serde_yaml_ng::Value;
use tokio::process::Command;

use crate::models::assert_modelled;
use crate::support::{World, cargo, quiet, world};

fn workflow(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/pipelines").join(name);
    serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A step of a job that runs commands.
struct Step<'a> {
    id: &'a str,
    condition: Option<&'a str>,
    script: &'a str,
    /// The job goes on when it fails.
    forgiven: bool,
}

/// The steps of a job that run commands of ours, or keep an issue by what those found.
fn steps<'a>(workflow: &'a Value, job: &str) -> Vec<Step<'a>> {
    let steps = workflow["jobs"][job]["steps"].as_sequence().unwrap_or_else(|| panic!("no job {job}"));
    let scripts = steps.iter().filter_map(|step| {
        Some(Step {
            id: step["id"].as_str().unwrap_or_default(),
            condition: step["if"].as_str(),
            script: step["run"].as_str()?,
            forgiven: step["continue-on-error"] == true,
        })
    });
    let is_ours = |script: &str| script.starts_with("kiln ") || script.contains("gh issue") || script == "exit 1";
    let ours: Vec<_> = scripts.filter(|step| is_ours(step.script)).collect();
    for Step { script, .. } in &ours {
        assert!(!script.contains("${{"), "an expression in a script is an injection: {script}");
    }
    assert!(!ours.is_empty(), "job {job} runs no command");
    ours
}

/// Is a step's condition met? As much of the language as the workflows are written in.
fn holds(condition: &str, known: &BTreeMap<String, String>) -> bool {
    condition.split(" && ").all(|term| {
        let (left, wanted, right) = match (term.split_once(" == "), term.split_once(" != ")) {
            (Some((left, right)), _) => (left, true, right),
            (_, Some((left, right))) => (left, false, right),
            _ => panic!("what is this condition: {term}?"),
        };
        let name = left.trim_start_matches("steps.").replace(".outcome", ":outcome").replace(".outputs.", ".");
        let value = known.get(&name).map_or("", String::as_str);
        (value == right.trim_matches('\'')) == wanted
    })
}

/// Runs a job's steps in order; gives the outcome and the outputs of those that have an id.
async fn run(world: &World, workflow: &Value, job: &str) -> BTreeMap<String, String> {
    // The action setup-kiln puts `kiln` there.
    let path = format!("{}:{}", cargo(world).display(), std::env::var("PATH").unwrap());
    let mut outputs = BTreeMap::new();
    for Step { id, condition, script, forgiven } in steps(workflow, job) {
        // Of the steps of one that failed without being forgiven, none is looked at here.
        if condition.is_some_and(|condition| !condition.starts_with("failure()") && !holds(condition, &outputs)) {
            continue;
        }
        let (written, summary) = (world.path("outputs"), world.path("summary"));
        std::fs::write(&written, "").unwrap();
        std::fs::write(&summary, "").unwrap();
        let output = Command::new("bash")
            .args(["--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script])
            .current_dir(world.path(""))
            .env_clear()
            .envs(world.aws.environment())
            .envs([("PATH", path.as_str()), ("HOME", "/nowhere"), ("CI", "true"), ("GITHUB_ACTIONS", "true")])
            .env("KILN_CONFIG", world.config())
            .env("GITHUB_OUTPUT", &written)
            .env("GITHUB_STEP_SUMMARY", &summary)
            .envs([("LABEL", "runner-key"), ("RUN", "https://github.example/run/1")])
            .output()
            .await
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        let success = output.status.success();
        assert!(success || forgiven, "{job}: {script}:\n{log}");
        outputs.insert(format!("{id}:outcome"), if success { "success" } else { "failure" }.to_owned());
        let silent = std::fs::read_to_string(&summary).unwrap().is_empty();
        let commands = script.lines().any(|line| line.starts_with("kiln "));
        assert!(!silent || !commands, "{script} wrote no summary");
        for line in std::fs::read_to_string(&written).unwrap().lines() {
            let (name, value) = line.split_once('=').unwrap();
            outputs.insert(format!("{id}.{name}"), value.to_owned());
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
async fn the_monthly_pipeline_removes_what_nothing_uses() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    for days in 1..=4 {
        let age = Duration::from_secs(days * 24 * 3600);
        world.aws.plant_image(world.aws.region(), "kiln-rehearsal-image-al2023-x86-64", age).await.unwrap();
    }
    let prune = workflow("prune.yml");
    let pruned = run(&world, &prune, "prune").await;
    assert_eq!((&*pruned["prune.outcome"], &*pruned["prune.gib"]), ("done", "30"));
    let again = run(&world, &prune, "prune").await;
    assert_eq!((&*again["prune.outcome"], &*again["prune.gib"]), ("nothing-to-do", "0"));
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

/// Stands in for GitHub's own tool: holds the numbers of open issues in a file, and writes down what was asked of it.
fn gh(world: &World) {
    let folder = cargo(world);
    let script = format!(
        "#!/bin/sh\nset -e\ncd '{}'\necho \"$@\" >> gh.log\ncase \"$1 $2\" in\n\
         'issue list') cat gh.issues ;;\n'issue create') echo 7 >> gh.issues ;;\n'issue close') : > gh.issues ;;\nesac\n",
        world.path("").display(),
    );
    std::fs::write(folder.join("gh"), script).unwrap();
    std::fs::set_permissions(folder.join("gh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(world.path("gh.issues"), "").unwrap();
}

/// What was asked of GitHub's tool since the last look, the first two words of each.
fn asked(world: &World) -> Vec<String> {
    let log = std::fs::read_to_string(world.path("gh.log")).unwrap_or_default();
    let _ = std::fs::remove_file(world.path("gh.log"));
    let known = ["label create", "issue list", "issue create", "issue edit", "issue close"];
    log.lines().filter_map(|line| known.into_iter().find(|known| line.starts_with(known))).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_key_has_one_issue_until_there_is_a_newer_one() {
    let world = world().await;
    let fleet = FLEETS.split("[fleet.once]").next().unwrap();
    world.write_config(VERSIONS[0], fleet).unwrap();
    let pem = world.download_key("first.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    gh(&world);
    let age = workflow("key-age.yml");

    assert_eq!(run(&world, &age, "key").await["status:outcome"], "success");
    assert_eq!(asked(&world), ["issue list"]);

    let status = world.run(&["rotate-key", "--status", "--json"], quiet).await.unwrap().success().unwrap();
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let id = status["result"]["status"]["keys"][0]["id"].as_str().unwrap();
    world.aws.tag_key(id, "kiln:record", "since=2026-01-01T00:00:00Z").await.unwrap();
    let before = world.aws.mutations();
    for known in [["issue create"], ["issue edit"]] {
        let old = run(&world, &age, "key").await;
        assert_eq!((&*old["status:outcome"], &*old["status.error-code"]), ("failure", "due"));
        assert_eq!(asked(&world), [&["label create", "issue list"][..], &known].concat());
    }
    assert_eq!(world.aws.mutations(), before, "who looks changes nothing");

    let pem = world.download_key("second.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    run(&world, &age, "key").await;
    assert_eq!(asked(&world), ["issue list", "issue close"]);

    // What is broken is no matter of age.
    world.github.revoke_key(&world.github.keys().pop().unwrap());
    let step = steps(&age, "key").pop().unwrap();
    let broken = [("status:outcome", "failure"), ("status.error-code", "access")];
    let broken = broken.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    assert!(step.script == "exit 1" && holds(step.condition.unwrap(), &broken), "such a run fails");
    let outcome = world.run(&["rotate-key", "--status", "--max-age-days", "90"], quiet).await.unwrap();
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    world.shutdown().await.unwrap();
}

/// The action of the same repository.
const SETUP: &str = "./.github/actions/setup-kiln";

/// What compiles runs code of hundreds of authors: no workflow does. `kiln` is there before a role is taken.
#[test]
fn no_job_builds_and_each_role_has_an_environment() {
    for name in ["release.yml", "freshness.yml", "key-age.yml", "prune.yml"] {
        let workflow = workflow(name);
        assert_eq!(workflow["permissions"], serde_yaml_ng::from_str::<Value>("contents: read").unwrap(), "{name}");
        let (mut environments, mut builders) = (Vec::new(), 0);
        for (job, what) in workflow["jobs"].as_mapping().unwrap() {
            let job = format!("{name}: {}", job.as_str().unwrap());
            let text = serde_yaml_ng::to_string(what).unwrap();
            let scripts = what["steps"].as_sequence().unwrap().iter().filter_map(|step| step["run"].as_str());
            let builds = scripts
                .flat_map(str::lines)
                .any(|line| ["cargo ", "npm ", "pip ", "rustup "].iter().any(|tool| line.trim().starts_with(tool)));
            builders += usize::from(builds);
            let permissions = what["permissions"].as_mapping().unwrap_or_else(|| panic!("{job} says what it may"));
            let writes = permissions.iter().filter(|(_, right)| right.as_str() == Some("write")).count();
            assert!(!builds || (writes == 0 && !text.contains("github.token")), "{job} builds, and holds rights");
            let takes_role = permissions.iter().any(|(name, _)| name.as_str() == Some("id-token"));
            assert_eq!(
                takes_role,
                what["environment"].is_string(),
                "{job}: a role is taken in an environment, nothing else is"
            );
            assert!(!takes_role || permissions.get("contents").and_then(Value::as_str) != Some("write"), "{job}");
            environments.extend(what["environment"].as_str().map(str::to_owned));
            let used: Vec<_> =
                what["steps"].as_sequence().unwrap().iter().filter_map(|step| step["uses"].as_str()).collect();
            let place = |action: &str| used.iter().position(|uses| uses.starts_with(action));
            assert!(!takes_role || place(SETUP) < place("aws-actions/configure-aws-credentials"), "{job}: {used:?}");
            assert!(!takes_role || place(SETUP).is_some(), "{job} has no kiln");
            // A token is not left in the checkout for whatever runs next.
            for step in what["steps"].as_sequence().unwrap() {
                let uses = step["uses"].as_str().unwrap_or_default();
                if uses.starts_with("actions/checkout@") {
                    assert_eq!(step["with"]["persist-credentials"], false, "{job}");
                    // The workflow's own commit, so that the action that is used is the workflow's, too.
                    assert!(step["with"]["repository"].is_null() && step["with"]["ref"].is_null(), "{job}");
                }
                assert!(
                    uses.is_empty() || uses == SETUP || uses.split('@').nth(1).is_some_and(|commit| commit.len() == 40),
                    "{job}: {uses}"
                );
            }
        }
        assert_eq!(builders, 0, "{name}: `kiln` is installed, not built");
        let distinct: std::collections::BTreeSet<_> = environments.iter().collect();
        assert_eq!(distinct.len(), environments.len(), "{name}: each role has an environment of its own");
    }
}
