//! How commands speak to machines: the document of `--json`, a workflow's log, outputs and summary, the log of calls.

use std::path::Path;
use std::process::{Command, Output};

use kiln_e2e::story::{FLEETS, VERSIONS};
use kiln_stand_ins::aws::Refusal;
use serde_json::Value;

use crate::support::{World, quiet, world};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// `xtask` without a world.
fn xtask(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments).env("NO_COLOR", "1").env_remove("GITHUB_ACTIONS").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Stdout as the one document that it has to be, by the committed schema.
fn document(output: &Output) -> Value {
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}:\n{}\n{}", text(&output.stdout), text(&output.stderr)));
    let schema = std::fs::read_to_string(root().join("docs/output.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap();
    if let Err(error) = validator.validate(&document) {
        panic!("{error}:\n{document:#}");
    }
    assert_eq!(document["exit_code"], output.status.code().unwrap());
    document
}

async fn run(world: &World, arguments: &[&str]) -> Output {
    world.command(arguments).output().await.unwrap()
}

#[test]
fn what_is_generated_is_in_step() {
    let folder = tempfile::tempdir().unwrap();
    for (of, file) in [("output", "docs/output.schema.json"), ("reference", "docs/src/kiln-toml.md")] {
        let committed = std::fs::read_to_string(root().join(file)).unwrap();
        let path = folder.path().join(of);
        let generated = xtask(&["schema", "--of", of, "--output", path.to_str().unwrap()]);
        assert!(generated.status.success(), "{}", text(&generated.stderr));
        assert_eq!(std::fs::read_to_string(path).unwrap(), committed, "run `cargo xtask schema`");
    }
    let page = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    assert_eq!(text(&xtask(&["explain"]).stdout), page, "run `cargo xtask explain > docs/errors.md`");
}

#[test]
fn a_shell_completes_commands_and_flags() {
    let script = text(&xtask(&["completions", "bash"]).stdout);
    let complete = |words: &str, count: usize| {
        let line = format!("COMP_WORDS=({words}); COMP_CWORD={count}; _kiln kiln \"${{COMP_WORDS[{count}]}}\"");
        let output = Command::new("bash")
            .arg("-c")
            .arg(format!("{script}\n{line} '' ; declare -F kiln; printf '%s\\n' \"${{COMPREPLY[@]}}\""))
            .output()
            .unwrap();
        text(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete("kiln rot", 1), ["kiln", "rotate-key"]);
    let flags = complete("kiln deploy --f", 2);
    assert!(flags.contains(&"--fleet".to_owned()), "{flags:?}");
    for shell in ["fish", "zsh"] {
        let script = text(&xtask(&["completions", shell]).stdout);
        assert!(script.contains("rotate-key") && script.contains("cargo xtask"), "{script}");
    }
}

#[test]
fn colours_are_as_asked_for() {
    let said = |color: &str| {
        let output = xtask(&["deploy", "--config", "/nowhere/kiln.toml", "--color", color]);
        text(&output.stderr)
    };
    assert!(said("always").contains("\u{1b}["), "{}", said("always"));
    assert!(!said("never").contains('\u{1b}'));
    assert!(!said("auto").contains('\u{1b}'), "NO_COLOR is set");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_document_tells_a_machine_the_plan_the_result_and_the_error() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();

    let refused = document(&run(&world, &["deploy", "--json"]).await);
    assert_eq!(refused["outcome"], "failed");
    assert_eq!(refused["error"]["code"], "key-not-installed");
    assert!(refused["error"]["hint"].as_str().unwrap().contains("rotate-key --pem"), "{refused:#}");

    let pem = world.download_key("key.pem").unwrap();
    let pem = pem.to_str().unwrap();
    let planned = document(&run(&world, &["rotate-key", "--pem", pem, "--dry-run", "--json"]).await);
    assert_eq!((&planned["outcome"], &planned["dry_run"]), (&"planned".into(), &true.into()));
    let installed = document(&run(&world, &["rotate-key", "--pem", pem, "--json", "--quiet"]).await);
    assert_eq!(installed["plans"], planned["plans"], "the dry run's plan is the one that runs");
    assert_eq!(installed["outcome"], "done");

    // Half-way: what is done already is told.
    world.aws.fail_build_step("CheckVersion");
    let failed = document(&run(&world, &["ami", "--json"]).await);
    assert_eq!((&failed["error"]["code"], &failed["error"]["kind"]), (&"build-failed".into(), &"failed".into()));
    assert!(failed["error"]["done"].as_array().unwrap().len() > 5, "{failed:#}");

    let baked = document(&run(&world, &["ami", "--json"]).await);
    let ami = &world.aws.images()[0].ami;
    assert_eq!(baked["result"]["ami"], ami.as_str());
    let again = document(&run(&world, &["ami", "--json"]).await);
    assert_eq!((&again["outcome"], &again["result"]), (&"nothing-to-do".into(), &baked["result"]));

    let usage = document(&run(&world, &["deploy", "--json", "--fleets", "linux"]).await);
    assert_eq!((&usage["command"], &usage["error"]["code"]), (&"deploy".into(), &"usage".into()));

    let denied = Refusal { service: "ssm", operation: "GetParameter", times: 1, code: "AccessDeniedException" };
    world.aws.refuse(denied);
    let denied = document(&run(&world, &["deploy", "--json"]).await);
    assert_eq!(denied["error"]["code"], "aws-access-denied");
    assert!(denied["error"]["causes"][0].as_str().unwrap().contains("AccessDeniedException"), "{denied:#}");
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_gets_groups_annotations_outputs_and_a_summary() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let (outputs, summary) = (world.path("outputs"), world.path("summary"));
    let step = async |arguments: &[&str]| {
        for file in [&outputs, &summary] {
            std::fs::write(file, "").unwrap();
        }
        let mut command = world.command(arguments);
        command.env("GITHUB_ACTIONS", "true").env("GITHUB_OUTPUT", &outputs).env("GITHUB_STEP_SUMMARY", &summary);
        let output = command.output().await.unwrap();
        let file = |path| std::fs::read_to_string(path).unwrap();
        (text(&output.stderr), file(&outputs), file(&summary))
    };

    let (log, outputs, summary) = step(&["deploy"]).await;
    assert!(log.contains("\n::error title=kiln deploy%3A key-not-installed::the GitHub App's key"), "{log}");
    assert!(log.contains("%0Ahint: run `cargo xtask rotate-key"), "{log}");
    assert_eq!(outputs, "outcome=failed\nchanged=false\nerror-code=key-not-installed\n");
    assert!(summary.starts_with("### `cargo xtask deploy`: failed\n"), "{summary}");

    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    let (log, outputs, summary) = step(&["ami"]).await;
    let count = |what: &str| log.lines().filter(|line| line.starts_with(what)).count();
    assert!(count("::group::[") > 5, "{log}");
    assert_eq!(count("::group::"), count("::endgroup::"), "{log}");
    let ami = &world.aws.images()[0].ami;
    assert!(outputs.contains(&format!("ami={ami}\n")) && outputs.contains("changed=true\n"), "{outputs}");
    assert!(summary.contains("1. create stack") && summary.contains(&format!("| ami | `{ami}` |")), "{summary}");
    assert!(!log.contains('\r') && !log.contains('\u{1b}'), "no live states in a log");

    std::fs::write(world.config(), "organization = 1\nregion = \"eu-central\"\n").unwrap();
    let (log, _, _) = step(&["deploy"]).await;
    let place = format!("config-invalid,file={},line=2,col=10::", world.config().display());
    assert!(log.contains(&place), "{log}");
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_told_without_their_secrets() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    let output = run(&world, &["rotate-key", "--verbose", "--pem", pem.to_str().unwrap()]).await;
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for call in ["aws KMS ImportKeyMaterial: 200 in ", "aws Secrets Manager ", "/app: 200 in "] {
        assert!(said.contains(call), "no `{call}` in:\n{said}");
    }
    for secret in ["Bearer", "AWS4-HMAC", "PRIVATE KEY", "eyJ"] {
        assert!(!said.contains(secret), "{said}");
    }
    let output = run(&world, &["rotate-key", "--quiet", "--pem", pem.to_str().unwrap()]).await;
    assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), String::new()));
    world.shutdown().await.unwrap();
}
