//! Kiln's commands. Flags and dispatch; what they do is in the crates.

mod ami;
mod bench;
mod ci;
mod cloud;
mod deploy;
mod doctor;
mod fuzz;
mod musl;
mod operator;
mod pin;
mod rehearse;
mod rotate_key;
mod schema;
mod shred;
mod sources;
mod tools;
mod ui;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::ui::{Failure, Ui};

/// GitHub Actions self-hosted runners for an organization, on its own AWS account.
///
/// `ami` bakes the image, `deploy` rolls it out, `rotate-key` installs or replaces the GitHub App's private key.
/// `rehearse` runs all of it on this machine, without an account: start there.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, default_value = "kiln.toml", value_name = "FILE", env = "KILN_CONFIG")]
    config: PathBuf,

    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or nothing to do
  1  AWS or GitHub could not be reached, or anything unforeseen
  2  wrong usage of the command line
  3  kiln.toml, a flag's value or a file is wrong
  4  AWS or GitHub refused the credentials, or they lack a permission
  5  something has to be done first, named in the hint
  6  the bake, the stack or the roll-out ended in failure; what served before still serves
  7  a bound was reached; the same command again goes on from there
  8  nothing failed, but something has to be renewed within 14 days, or is overdue
  130  interrupted; the same command again goes on from there

Output meant for machines goes to stdout, everything else to stderr.";

#[derive(Debug, Subcommand)]
enum Command {
    Ami(ami::Args),
    Deploy(deploy::Args),
    RotateKey(rotate_key::Args),
    Doctor(doctor::Args),
    Pin(pin::Args),
    Rehearse(rehearse::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Ci(ci::Args),
    Schema(schema::Args),
    /// Install the tools that `rehearse` and `ci` use, under target/tools.
    Setup,
    /// Build the static bootstrap binary for this machine and print its path.
    Bootstrap,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::new();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ui.fail(&Failure::from(anyhow::Error::new(error).context("start the async runtime"))),
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = run(&cli, &ui) => result,
            () = interrupted(&cli.command) => Err(Failure::Interrupted),
        }
    });
    // A blocking read of a terminal must not hold up the exit.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ui.fail(&failure),
    }
}

async fn run(cli: &Cli, ui: &Ui) -> Result<(), Failure> {
    match &cli.command {
        Command::Ami(args) => Box::pin(ami::run(args, &cli.config, ui)).await,
        Command::Deploy(args) => Box::pin(deploy::run(args, &cli.config, ui)).await,
        Command::RotateKey(args) => Box::pin(rotate_key::run(args, &cli.config, ui)).await,
        Command::Doctor(args) => Box::pin(doctor::run(args, &cli.config, ui)).await,
        Command::Pin(args) => Box::pin(pin::run(args, &cli.config, ui)).await,
        Command::Rehearse(args) => Box::pin(rehearse::run(args, ui)).await,
        Command::Bench(args) => Box::pin(bench::run(args, ui)).await,
        Command::Fuzz(args) => Ok(fuzz::run(args)?),
        Command::Ci(args) => Ok(ci::run(args, ui)?),
        Command::Schema(args) => Ok(schema::run(args)?),
        Command::Setup => Ok(tools::setup().map(drop)?),
        Command::Bootstrap => {
            println!("{}", rehearse::bootstrap(ui)?.display());
            Ok(())
        }
    }
}

/// Ctrl-C and a pipeline's cancel. `rehearse` handles them itself, since it has processes to end.
async fn interrupted(command: &Command) {
    if matches!(command, Command::Rehearse(_)) {
        return std::future::pending().await;
    }
    ui::interrupt().await;
}
