//! The binary `kiln`: the operator's commands under their own name.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn kiln(arguments: &[&str]) -> Output {
    let empty = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_kiln")).args(arguments).current_dir(empty.path()).output().unwrap()
}

#[test]
fn help_and_hints_name_the_program_that_runs() {
    for arguments in [&["--help"][..], &["deploy", "--help"], &["ami", "--help"]] {
        let help = String::from_utf8(kiln(arguments).stdout).unwrap();
        assert!(help.contains("\n  kiln "), "{help}");
        assert!(!help.contains("cargo xtask"), "{help}");
    }
    let output = kiln(&["deploy", "--dry-run"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(!text.contains("cargo xtask"), "{text}");
}

#[test]
fn the_contributors_commands_are_not_among_its_own() {
    for command in ["ci", "rehearse", "fuzz", "dist"] {
        let output = kiln(&[command]);
        assert_eq!(output.status.code(), Some(2), "kiln {command}");
    }
}

#[test]
fn commands_are_grouped_by_what_they_are_for() {
    let help = String::from_utf8(kiln(&["--help"]).stdout).unwrap();
    let place = |text: &str| help.find(text).unwrap_or_else(|| panic!("no {text:?} in:\n{help}"));
    assert!(place("Get started:\n  init") < place("\n  up "), "{help}");
    assert!(place("\n  up ") < place("Operate:\n  ami") && place("Operate:") < place("\n  destroy"), "{help}");
    assert!(!help.contains("Develop:") && !help.contains("\nCommands:"), "{help}");
    assert!(help.contains("Usage: kiln [OPTIONS] <COMMAND>"), "{help}");
}

/// Without the feature `bundled`, outside of a checkout.
#[cfg(not(feature = "bundled"))]
#[test]
fn a_kiln_without_the_instances_binaries_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("kiln");
    std::fs::copy(env!("CARGO_BIN_EXE_kiln"), &copy).unwrap();
    let output = Command::new(copy).args(["doctor"]).current_dir(folder.path()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("install a released `kiln`"), "{text}");
}
