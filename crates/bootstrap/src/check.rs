//! `kiln-bootstrap check`: does this machine have what `run` will need? Part of the image's own test.

mod checks;

use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::json;

use crate::machine::Machine;

/// What is looked at, and how it is told.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes:
  0  nothing is wrong
  1  something is; each line says how to fix it
  2  wrong usage of the command line")]
pub(crate) struct Args {
    /// Print one JSON object instead of a line for each check.
    #[arg(long)]
    json: bool,

    /// The size that the runner's disk has at least.
    #[arg(long, value_name = "GIB", default_value_t = 0)]
    min_disk_gib: u64,

    /// The space that is free on it at least.
    #[arg(long, value_name = "GIB", default_value_t = 0)]
    min_free_gib: u64,

    /// Leave one out; may be given again.
    #[arg(long, value_name = "LOOK")]
    skip: Vec<Check>,
}

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// The runner's unprivileged user.
    User,
    /// It may not use sudo.
    Sudo,
    /// The runner's programs, which are root's.
    Runner,
    /// The runner is the release that the image records.
    Version,
    /// The scripts around a job.
    Hooks,
    /// The services start at boot.
    Units,
    /// The runner's user is kept away from the metadata service.
    Guard,
    /// Certificates to know GitHub by.
    Certificates,
    /// The clock is synchronised.
    Clock,
    /// The disk's size, and what is free of it.
    Disk,
}

/// What a check found.
#[derive(Debug)]
enum CheckResult {
    Ok(String),
    Wrong {
        what: String,
        fix: &'static str,
    },
    /// It can't be told here.
    Skipped(&'static str),
}

/// Looks at all of it, and prints what it finds.
pub(crate) async fn check(machine: &Machine, args: &Args) -> ExitCode {
    let mut found = Vec::new();
    for check in Check::value_variants() {
        let what = if args.skip.contains(check) {
            CheckResult::Skipped("as asked")
        } else {
            checks::run(*check, machine, args).await
        };
        found.push((*check, what));
    }
    let well = !found.iter().any(|(_, found)| matches!(found, CheckResult::Wrong { .. }));
    if args.json {
        let checks: Vec<_> = found.iter().map(|(check, found)| as_json(*check, found)).collect();
        println!("{}", json!({ "ok": well, "checks": checks }));
    } else {
        for (check, found) in &found {
            print(*check, found);
        }
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Check {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

fn as_json(check: Check, found: &CheckResult) -> serde_json::Value {
    match found {
        CheckResult::Ok(what) => json!({ "check": check.name(), "state": "ok", "found": what }),
        CheckResult::Wrong { what, fix } => {
            json!({ "check": check.name(), "state": "wrong", "found": what, "fix": fix })
        }
        CheckResult::Skipped(why) => json!({ "check": check.name(), "state": "skipped", "found": why }),
    }
}

fn print(check: Check, found: &CheckResult) {
    let (state, what) = match found {
        CheckResult::Ok(what) => ("ok", what.as_str()),
        CheckResult::Wrong { what, .. } => ("WRONG", what.as_str()),
        CheckResult::Skipped(why) => ("skip", *why),
    };
    println!("{state:<5} {:<12} {what}", check.name());
    if let CheckResult::Wrong { fix, .. } = found {
        println!("      fix it:     {fix}");
    }
}
