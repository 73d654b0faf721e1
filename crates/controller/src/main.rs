//! `kiln-controller`: the controller alone, as a program of its own. In an image it is a command of `kiln-bootstrap`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Controls an organization's on-demand fleets.
#[derive(Debug, Parser)]
#[command(
    name = "kiln-controller",
    version,
    after_help = "\
Exit codes:
  0  asked to end; the sessions are closed
  1  it can't control; the last line of the log says why
  2  wrong usage of the command line"
)]
struct Cli {
    /// The machine's root directory; another one in rehearsals.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    kiln_instance::journal::set_up();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(kiln_controller::program::run(&cli.root)),
        Err(error) => {
            tracing::error!(%error, "no async runtime");
            ExitCode::FAILURE
        }
    }
}
