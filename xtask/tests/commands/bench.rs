//! The benchmark measures what it says; how long things take is no test's matter.

use std::process::Command;

use crate::support::bootstrap;

#[test]
fn a_boot_far_from_github_takes_one_connection_and_two_requests() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["bench", "boot", "--runs", "2", "--instances", "3", "--bootstrap"])
        .arg(bootstrap())
        .output()
        .unwrap();
    let (table, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(table.contains("to GitHub         2 request(s), 1 connection(s)"), "{table}");
    assert!(table.contains("jq, openssl, curl p50 ") && table.contains("3 boots at once"), "{table}");
    assert!(table.contains("limits met        0, at most 0 in a row"), "{table}");
}
