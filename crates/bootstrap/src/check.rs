//! `kiln-bootstrap check`: does this machine have what `run` will need? Part of the image's own test.

mod looks;

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
    skip: Vec<Look>,
}

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Look {
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
enum Found {
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
    for look in Look::value_variants() {
        let what =
            if args.skip.contains(look) { Found::Skipped("as asked") } else { looks::look(*look, machine, args).await };
        found.push((*look, what));
    }
    let well = !found.iter().any(|(_, found)| matches!(found, Found::Wrong { .. }));
    if args.json {
        let looks: Vec<_> = found.iter().map(|(look, found)| as_json(*look, found)).collect();
        println!("{}", json!({ "ok": well, "looks": looks }));
    } else {
        for (look, found) in &found {
            print(*look, found);
        }
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Look {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

fn as_json(look: Look, found: &Found) -> serde_json::Value {
    match found {
        Found::Ok(what) => json!({ "look": look.name(), "state": "ok", "found": what }),
        Found::Wrong { what, mend } => json!({ "look": look.name(), "state": "wrong", "found": what, "mend": mend }),
        Found::Skipped(why) => json!({ "look": look.name(), "state": "skipped", "found": why }),
    }
}

fn print(look: Look, found: &Found) {
    let (state, what) = match found {
        Found::Ok(what) => ("ok", what.as_str()),
        Found::Wrong { what, .. } => ("WRONG", what.as_str()),
        Found::Skipped(why) => ("skip", *why),
    };
    println!("{state:<5} {:<12} {what}", look.name());
    if let Found::Wrong { mend, .. } = found {
        println!("      mend it:     {mend}");
    }
}
