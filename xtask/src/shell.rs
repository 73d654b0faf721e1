//! The shell scripts of the project: files, and those inside of component documents and workflows.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_yaml_ng::Value;
use xshell::{Shell, cmd};

/// Has shellcheck read all of it.
pub(crate) fn check(shell: &Shell, root: &Path) -> anyhow::Result<()> {
    let folder = root.join("target/shellcheck");
    shell.remove_path(&folder)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let mut scripts = files(shell)?;
    scripts.extend(inside(shell, &folder, "component documents", commands)?);
    scripts.extend(inside(shell, &folder, "workflows", runs)?);
    ensure!(scripts.len() > 20, "only {} scripts were found", scripts.len());
    // What a script sources is not looked for: it is on the machine where the script runs.
    cmd!(shell, "shellcheck --shell=bash --exclude=SC1091 {scripts...}")
        .run()
        .context("check the shell scripts; Debian: apt install shellcheck")
}

/// The files that are scripts by their first line.
fn files(shell: &Shell) -> anyhow::Result<Vec<PathBuf>> {
    let tracked = cmd!(shell, "git ls-files").quiet().read()?;
    let is_script = |path: &&str| {
        let begin = std::fs::read(path).unwrap_or_default();
        let line = begin.split(|byte| *byte == b'\n').next().unwrap_or_default();
        line.starts_with(b"#!") && (line.ends_with(b"sh") || line.ends_with(b"bash"))
    };
    Ok(tracked.lines().filter(is_script).map(PathBuf::from).collect())
}

/// The scripts inside of the YAML documents of one kind, each as a file of its own.
fn inside(
    shell: &Shell,
    folder: &Path,
    kind: &str,
    of: impl Fn(&Value) -> Vec<String>,
) -> anyhow::Result<Vec<PathBuf>> {
    let kind_of = kind.replace(' ', "-");
    let documents = cmd!(shell, "git ls-files *.yml").quiet().read()?;
    let mut scripts = Vec::new();
    for document in documents.lines() {
        let text = std::fs::read_to_string(document).with_context(|| format!("read {document}"))?;
        let value = serde_yaml_ng::from_str(&text).with_context(|| format!("read {document}"))?;
        for (number, script) in of(&value).into_iter().enumerate() {
            let path = folder.join(format!("{kind_of}-{}-{number}.sh", document.replace('/', "-")));
            std::fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
            scripts.push(path);
        }
    }
    ensure!(!scripts.is_empty(), "no script was found in {kind}");
    Ok(scripts)
}

/// A component document's steps that run commands; Image Builder runs those of a step as one script.
fn commands(document: &Value) -> Vec<String> {
    let phases = document["phases"].as_sequence().into_iter().flatten();
    let steps = phases.flat_map(|phase| phase["steps"].as_sequence().into_iter().flatten());
    let scripts = steps.filter(|step| step["action"] == "ExecuteBash").map(|step| {
        let commands = step["inputs"]["commands"].as_sequence().into_iter().flatten();
        commands.filter_map(Value::as_str).collect::<Vec<_>>().join("\n") + "\n"
    });
    scripts.collect()
}

/// The steps of a workflow or of a composite action that run a script.
fn runs(document: &Value) -> Vec<String> {
    let jobs = document["jobs"].as_mapping().into_iter().flatten().map(|(_, job)| job);
    let steps = jobs.chain([&document["runs"]]).flat_map(|job| job["steps"].as_sequence().into_iter().flatten());
    steps.filter_map(|step| step["run"].as_str()).map(|run| format!("{run}\n")).collect()
}
