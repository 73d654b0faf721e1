//! The binary on the instance: identify → configure → mint → register → serve → drain.
//!
//! It is told what it is by the BootConfig in its user data and by nothing else. Its outside world is HTTP endpoints, each
//! of which the ecosystem's own variables or BootConfig can point elsewhere, so that tests run this very binary.

mod aws;
mod between_jobs;
mod check;
mod directory;
mod enter;
mod environment;
mod guard;
mod identify;
mod job_groups;
mod life;
mod machine;
mod memory;
mod on_demand;
mod phase;
mod processes;
mod register;
mod run;
mod serve;
mod settings;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::machine::Machine;

/// Registers this instance as a GitHub Actions runner and looks after it until it must go.
#[derive(Debug, Parser)]
#[command(
    name = "kiln-bootstrap",
    version,
    after_help = "\
Exit codes of `run`:
  0  drained and left, or asked to be replaced
  1  the boot can't succeed; the last line of the log says why, and what to do
  2  wrong usage of the command line
  3  the runner ended again and again"
)]
struct Cli {
    /// The machine's root directory; another one in rehearsals.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register and serve; what the systemd unit starts.
    Run,
    /// Control an organization's on-demand fleets; what the systemd unit of the controller's instance starts.
    Control,
    /// Have the group replace this instance, if its service has ended for good and the group does not know; what systemd
    /// starts when the service has failed.
    MarkUnhealthy,
    /// See whether this machine has what `run` will need; part of the image's test.
    Check(check::Args),
    /// Try to reach the metadata service; `run` calls it as the runner's user.
    #[command(hide = true)]
    ProbeMetadata {
        /// From a container: what it sends is dropped, so that silence is a verdict too.
        #[arg(long)]
        forwarded: bool,
    },
    /// Ask `run`, which is root, to clean up; the runner's hooks call it around each job.
    #[command(hide = true)]
    BetweenJobs { moment: between_jobs::Moment },
    /// Become one of the runner's programs; `run` calls it for each.
    #[command(hide = true)]
    Enter,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::ProbeMetadata { forwarded } => return guard::probe(forwarded),
        Command::Enter => return enter::enter(),
        // A hook's output is its job's log.
        Command::BetweenJobs { .. } => {}
        Command::Run | Command::Control | Command::MarkUnhealthy | Command::Check(_) => {
            kiln_instance::journal::set_up();
        }
    }
    let machine = Machine::new(cli.root);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no async runtime");
            return ExitCode::FAILURE;
        }
    };
    match cli.command {
        Command::Run => runtime.block_on(run::run(&machine)),
        Command::Control => runtime.block_on(kiln_controller::program::run(&machine.path("/"))),
        Command::MarkUnhealthy => runtime.block_on(run::mark_unhealthy(&machine)),
        Command::Check(args) => runtime.block_on(check::check(&machine, &args)),
        Command::BetweenJobs { moment } => runtime.block_on(between_jobs::ask(&machine, moment)),
        Command::ProbeMetadata { .. } | Command::Enter => ExitCode::FAILURE,
    }
}
