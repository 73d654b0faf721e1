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
