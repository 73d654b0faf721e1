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
  1  something is; each line says how to mend it
  2  wrong usage of the command line")]
pub(crate) struct Args {
    /// Print one JSON object instead of a line for each look.
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

/// What a look found.
#[derive(Debug)]
enum CheckResult {
    Ok(String),
    Wrong {
        what: String,
        mend: &'static str,
    },
    /// It can't be told here.
    Skipped(&'static str),
}

/// Looks at all of it, and prints what it finds.
pub(crate) async fn check(machine: &Machine, args: &Args) -> ExitCode {
    let mut found = Vec::new();
    for look in Check::value_variants() {
        let what = if args.skip.contains(look) {
            CheckResult::Skipped("as asked")
        } else {
            checks::look(*look, machine, args).await
        };
        found.push((*look, what));
    }
    let well = !found.iter().any(|(_, found)| matches!(found, CheckResult::Wrong { .. }));
    if args.json {
        let checks: Vec<_> = found.iter().map(|(look, found)| as_json(*look, found)).collect();
        println!("{}", json!({ "ok": well, "checks": checks }));
    } else {
        for (look, found) in &found {
            print(*look, found);
        }
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Check {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

fn as_json(look: Check, found: &CheckResult) -> serde_json::Value {
    match found {
        CheckResult::Ok(what) => json!({ "look": look.name(), "state": "ok", "found": what }),
        CheckResult::Wrong { what, mend } => {
            json!({ "look": look.name(), "state": "wrong", "found": what, "mend": mend })
        }
        CheckResult::Skipped(why) => json!({ "look": look.name(), "state": "skipped", "found": why }),
    }
}

fn print(look: Check, found: &CheckResult) {
    let (state, what) = match found {
        CheckResult::Ok(what) => ("ok", what.as_str()),
        CheckResult::Wrong { what, .. } => ("WRONG", what.as_str()),
        CheckResult::Skipped(why) => ("skip", *why),
    };
    println!("{state:<5} {:<12} {what}", look.name());
    if let CheckResult::Wrong { mend, .. } = found {
        println!("      mend it:     {mend}");
    }
}
