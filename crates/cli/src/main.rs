//! `kiln`: the operator's commands.

use std::process::ExitCode;

use clap::Parser;
use kiln_cli::{Command, Options};

/// GitHub Actions self-hosted runners for an organization, on its own AWS account.
///
/// `ami` bakes the image, `deploy` rolls it out, `rotate-key` installs or replaces the GitHub App's private key.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    options: Options,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = kiln_cli::after_help!(
    "\
Examples:
  kiln deploy --dry-run
  kiln ami --json
  kiln explain image-not-recorded
"
);

impl kiln_cli::Program for Cli {
    const NAME: &'static str = "kiln";

    fn options(&self) -> &Options {
        &self.options
    }

    async fn run(&self, ui: &kiln_cli::ui::Ui) -> Result<(), kiln_cli::ui::Failure> {
        kiln_cli::run::<Self>(&self.command, &self.options, ui).await
    }
}

fn main() -> ExitCode {
    kiln_cli::main::<Cli>()
}
