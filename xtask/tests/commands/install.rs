//! How `kiln` gets onto a machine: the script, the action of the workflows, and a checkout that was moved.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kiln_image::payload::{self, Entry};
use kiln_operations::init::{EXAMPLE, FILES};
use serde_yaml_ng::Value;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn archive_name() -> String {
    format!("kiln-{VERSION}-{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// Releases in a folder, as `dist` names them, with a script in the place of `kiln`.
fn releases(folder: &Path) -> PathBuf {
    let release = folder.join(format!("v{VERSION}"));
    std::fs::create_dir(&release).unwrap();
    let name = archive_name();
    let kiln = Entry { mode: 0o755, bytes: b"#!/bin/sh\necho the released kiln\n".to_vec() };
    let archive = payload::pack(&[(format!("{name}/kiln"), kiln)].into());
    let sums = format!("{}  {name}.tar.gz\n", payload::sha256(&archive));
    let file = release.join(format!("{name}.tar.gz"));
    std::fs::write(&file, archive).unwrap();
    std::fs::write(release.join("SHA256SUMS"), sums).unwrap();
    file
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("install.sh")
}

fn install(releases: &Path, to: &Path, more: &[(&str, &str)]) -> Output {
    Command::new("sh")
        .arg(script())
        .arg(VERSION)
        .env("KILN_BASE_URL", format!("file://{}", releases.display()))
        .env("KILN_INSTALL_DIR", to)
        .envs(more.iter().copied())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_script_installs_what_was_published_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("releases"), folder.path().join("bin"));
    std::fs::create_dir(&from).unwrap();
    let archive = releases(&from);
    let output = install(&from, &to, &[]);
    assert!(output.status.success(), "{}", said(&output));
    let ran = Command::new(to.join("kiln")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "the released kiln\n");

    // A digest from elsewhere counts, and not the one next to the archive.
    std::fs::remove_dir_all(&to).unwrap();
    let output = install(&from, &to, &[("KILN_SHA256", &"0".repeat(64))]);
    assert!(!output.status.success() && said(&output).contains("nothing was installed"), "{}", said(&output));
    // Another archive than the one that was summed up.
    let mut bytes = std::fs::read(&archive).unwrap();
    bytes.push(0);
    std::fs::write(&archive, bytes).unwrap();
    let output = install(&from, &to, &[]);
    assert!(!output.status.success() && said(&output).contains("is not what was published"), "{}", said(&output));
    std::fs::write(archive.parent().unwrap().join("SHA256SUMS"), "").unwrap();
    let output = install(&from, &to, &[]);
    assert!(!output.status.success() && said(&output).contains("does not list"), "{}", said(&output));
    assert!(!to.exists(), "nothing was installed");
}

/// The action as a workflow runs it, with the kiln.toml and the files that `init` writes.
#[test]
fn the_action_installs_the_version_that_kiln_toml_names() {
    let repository = tempfile::tempdir().unwrap();
    let root = repository.path();
    for (name, text) in FILES {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::write(root.join("kiln.toml"), EXAMPLE).unwrap();
    let from = root.join("releases");
    std::fs::create_dir(&from).unwrap();
    releases(&from);
    let folder = root.join(".github/actions/setup-kiln");
    let action: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(folder.join("action.yml")).unwrap()).unwrap();
    let run = |config: &str| {
        let step = &action["runs"]["steps"][0];
        let (path, outputs) = (root.join("path"), root.join("outputs"));
        let output = Command::new("sh")
            .args(["-e", "-c", step["run"].as_str().unwrap()])
            .current_dir(root)
            .env("GITHUB_ACTION_PATH", &folder)
            .env("GITHUB_PATH", &path)
            .env("GITHUB_OUTPUT", &outputs)
            .env("KILN_BASE_URL", format!("file://{}", from.display()))
            .env("KILN_INSTALL_DIR", root.join("bin"))
            .envs([("KILN_SHA256", ""), ("VERSION", ""), ("CONFIG", config)])
            .output()
            .unwrap();
        (output, std::fs::read_to_string(outputs).unwrap_or_default())
    };
    let (output, outputs) = run("kiln.toml");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(outputs, format!("version={VERSION}\n"));
    assert!(root.join("bin/kiln").exists());
    // Which of a minor version's releases it is has to be said.
    std::fs::write(root.join("short.toml"), "[kiln]\nversion = \"0.1\"\n").unwrap();
    let (output, _) = run("short.toml");
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("whole version"));
}

/// The executable is in a shared target directory, or was copied with a checkout: it works on the checkout that it is run
/// in, and not on the one that it was built from.
#[test]
fn a_moved_or_copied_checkout_works_on_itself() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let xtask = shared.join("xtask");
    std::fs::copy(env!("CARGO_BIN_EXE_xtask"), &xtask).unwrap();
    for checkout in ["one", "other"] {
        let root = folder.path().join(checkout);
        for file in ["xtask/Cargo.toml", "Cargo.lock", "docs/src/kiln-toml.md", "deep/in/it/file"] {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let written = root.join("kiln.schema.json");
        let output = Command::new(&xtask)
            .args(["schema", "--of", "config"])
            .current_dir(root.join("deep/in/it"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert!(written.exists(), "it was written to another checkout");
    }
    let output = Command::new(&xtask).args(["schema"]).current_dir(&shared).output().unwrap();
    assert!(!output.status.success() && said(&output).contains("needs Kiln's source"), "{}", said(&output));
}
