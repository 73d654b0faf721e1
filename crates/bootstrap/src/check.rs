//! `kiln-bootstrap check`: part of the image's own test.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, ExitCode};

use crate::machine::Machine;

const DIRECTORY: &str = "/opt/actions-runner";
const USER: &str = "runner";

pub(crate) fn check(machine: &Machine) -> ExitCode {
    let findings = [
        ("user runner", machine.user(USER).map(drop)),
        ("config.sh", executable(machine, "config.sh")),
        ("bin/Runner.Listener", executable(machine, "bin/Runner.Listener")),
        ("runner version", version(machine)),
    ];
    let mut failed = false;
    for (what, found) in findings {
        match found {
            Ok(()) => println!("ok    {what}"),
            Err(error) => {
                failed = true;
                println!("FAIL  {what}: {error:#}");
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn executable(machine: &Machine, file: &str) -> anyhow::Result<()> {
    let path = machine.path(DIRECTORY).join(file);
    let mode = std::fs::metadata(&path)?.permissions().mode();
    anyhow::ensure!(mode & 0o111 == 0o111, "{} has mode {mode:o}", path.display());
    Ok(())
}

/// The runner is the one that the image records.
fn version(machine: &Machine) -> anyhow::Result<()> {
    let recorded = std::fs::read_to_string(machine.path("/etc/kiln/runner-version"))?;
    let output = Command::new(machine.path(DIRECTORY).join("bin/Runner.Listener")).arg("--version").output()?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    anyhow::ensure!(found == recorded.trim(), "it is {found}, the image records {}", recorded.trim());
    Ok(())
}
