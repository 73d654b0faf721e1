//! The handbook's commands, run as they stand in it, one chapter after the other in one world; and what of it is generated.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kiln_e2e::story::{FLEETS, VERSIONS};
use kiln_e2e::world::ORGANIZATION;
use snapbox::IntoData as _;
use tokio::process::Command;

use crate::support::{World, cargo, world};

/// The chapters in which a line that begins with `$` is run.
const CHAPTERS: [&str; 2] = ["quick-start.md", "day-to-day.md"];

fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/src")
}

/// A command of a chapter.
#[derive(Debug, Default)]
struct Shown {
    line: String,
    /// What it says and prints; `...` is any lines, `[..]` any words.
    expected: String,
    /// `? 5` below a command is its exit code.
    code: i32,
}

/// The commands of the chapter's blocks.
fn shown(chapter: &str) -> Vec<Shown> {
    let text = std::fs::read_to_string(book().join(chapter)).unwrap();
    let mut commands: Vec<Shown> = Vec::new();
    for block in text.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            if let Some(line) = line.strip_prefix("$ ") {
                commands.push(Shown { line: line.to_owned(), ..Shown::default() });
                continue;
            }
            let command = commands.last_mut().unwrap_or_else(|| panic!("{chapter}: what printed {line:?}?"));
            match line.strip_prefix("? ") {
                Some(code) => command.code = code.parse().unwrap(),
                None => command.expected.push_str(&format!("{line}\n")),
            }
        }
    }
    commands
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handbooks_commands_do_what_it_says() {
    let world = world().await;
    let path = format!("{}:{}", cargo(&world).display(), std::env::var("PATH").unwrap());
    let check = world.path("try-runner.sh");
    std::fs::write(&check, "#!/bin/sh\ntest -n \"$KILN_RUNNER\"\n").unwrap();
    std::fs::set_permissions(&check, std::fs::Permissions::from_mode(0o755)).unwrap();
    for chapter in CHAPTERS {
        let commands = shown(chapter);
        assert!(commands.len() > 4, "{chapter} has commands");
        for command in commands {
            if command.line.starts_with("kiln doctor") && world.github.keys().is_empty() {
                // The organization that is in this world.
                world.write_config(VERSIONS[0], FLEETS).unwrap();
            }
            prepare(&world, &command.line);
            run(&world, &path, chapter, &command).await;
        }
    }
    world.shutdown().await.unwrap();
}

/// What the reader does before: downloads a key, waits for a release of the runner.
fn prepare(world: &World, line: &str) {
    if let Some((_, rest)) = line.split_once("--pem ") {
        let name = rest.split_whitespace().next().unwrap();
        if !world.path(name).exists() {
            world.download_key(name).unwrap();
        }
    }
    if line.ends_with("kiln pin") {
        world.github.runner_release(VERSIONS[1]).unwrap();
    }
}

async fn run(world: &World, path: &str, chapter: &str, command: &Shown) {
    let Shown { line, expected, code } = command;
    let output = Command::new("sh")
        .args(["-c", line])
        .current_dir(world.path(""))
        .env_clear()
        .envs(world.aws.environment())
        .envs([("PATH", path), ("HOME", "/nowhere"), ("NO_COLOR", "1")])
        .env("KILN_CONFIG", world.config())
        .output()
        .await
        .unwrap();
    let said = [output.stderr, output.stdout].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert_eq!(output.status.code(), Some(*code), "{chapter}: $ {line}\n{said}");
    // A block that shows nothing of it promises nothing of it.
    if !expected.is_empty() {
        snapbox::Assert::new().eq(said, expected.as_str().into_data());
    }
}

/// The lines of README's block that begins with `init`, without what is said of them.
fn readmes_steps() -> Vec<String> {
    let text = std::fs::read_to_string(book().join("../../README.md")).unwrap();
    let block = text.split("```sh\n").find(|block| block.starts_with("kiln init")).unwrap();
    let lines = block.split("```").next().unwrap().lines();
    lines.map(|line| line.split('#').next().unwrap().trim().to_owned()).collect()
}

/// The second word of a command.
fn verb(line: &str) -> &str {
    line.split_whitespace().nth(1).unwrap()
}

#[test]
fn readme_and_the_quick_start_have_the_same_steps_in_the_same_order() {
    let steps = readmes_steps();
    let steps: Vec<&str> = steps.iter().map(|line| verb(line)).collect();
    assert_eq!(steps, ["init", "doctor", "rotate-key", "ami", "deploy"]);
    let mut shown_first = Vec::new();
    let commands = shown("quick-start.md");
    for command in &commands {
        let verb = verb(&command.line);
        if !shown_first.contains(&verb) {
            shown_first.push(verb);
        }
    }
    assert_eq!(shown_first, steps);
    // What `init` prints, which is compared with what it really prints when the chapter is run.
    let next = commands[0].expected.split("next:\n").nth(1).unwrap();
    let next: Vec<&str> = next.lines().filter(|line| line.starts_with("  ")).map(verb).collect();
    assert_eq!(next, steps[1..]);
}

/// With the very file that `init` wrote, but for what this machine can't be: its GitHub packs another archive of the runner and
/// has it elsewhere, and nothing keeps a job in a process from the rest of the machine.
fn adapt(world: &World) {
    let text = std::fs::read_to_string(world.config()).unwrap();
    let theirs = text.lines().find(|line| line.starts_with("x86_64 = ")).unwrap();
    let ours = format!("x86_64 = \"{}\"", world.github.runner_release(VERSIONS[1]).unwrap().sha256);
    let mirror = text.lines().find(|line| line.starts_with("# release_url = ")).unwrap();
    let text = text.replace(mirror, &format!("release_url = \"{}\"", world.github.releases_url()));
    let open = text.replace("job_metadata_access = \"blocked\"", "job_metadata_access = \"allowed\"");
    assert_ne!(open, text);
    std::fs::write(world.config(), open.replace(theirs, &ours)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_steps_start_runners_with_the_file_that_init_wrote() {
    let world = world().await;
    let path = format!("{}:{}", cargo(&world).display(), std::env::var("PATH").unwrap());
    for step in readmes_steps() {
        prepare(&world, &step);
        let line = match verb(&step) {
            // What it would ask.
            "init" => format!(
                "{step} --organization {ORGANIZATION} --region {} --client-id {} --github-url {} \
                 --network vpc-00000001:subnet-00000001,subnet-00000002",
                world.aws.region(),
                world.github.client_id(),
                world.github.url(),
            ),
            // The executable under test has no binaries built in, as a released one has.
            "doctor" => format!("{step} --skip-machine"),
            _ => step.clone(),
        };
        run(&world, &path, "README.md", &Shown { line, ..Shown::default() }).await;
        if verb(&step) == "init" {
            adapt(&world);
        }
    }
    assert!(world.github.runners().iter().any(|runner| runner.online), "{:?}", world.github.runners());
    world.shutdown().await.unwrap();
}

#[test]
fn no_other_chapter_has_commands_that_seem_to_be_run() {
    for entry in std::fs::read_dir(book()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.ends_with(".md") || CHAPTERS.contains(&name) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("```console") && !text.contains("\n$ "), "{name} has blocks that no test runs");
    }
}

#[test]
fn every_workflow_is_in_the_handbook() {
    let chapter = std::fs::read_to_string(book().join("pipelines.md")).unwrap();
    for entry in std::fs::read_dir(book().join("../pipelines")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(chapter.contains(&format!("{{{{#include ../pipelines/{name}}}}}")), "{name} is not in pipelines.md");
        assert!(chapter.contains(&format!("* `{name}`")), "pipelines.md does not say what {name} is for");
    }
}

/// A chapter that is in no list would never be read.
#[test]
fn every_chapter_is_in_the_contents() {
    let contents = std::fs::read_to_string(book().join("SUMMARY.md")).unwrap();
    for entry in std::fs::read_dir(book()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let listed = name == "SUMMARY.md" || !name.ends_with(".md") || contents.contains(&format!("({name})"));
        assert!(listed, "{name} is missing from SUMMARY.md");
    }
}
