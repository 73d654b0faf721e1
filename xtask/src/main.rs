//! `cargo xtask`: the contributor's commands, with the operator's commands of `kiln-cli` among them.

mod bench;
mod book;
mod bootstrap;
mod ci;
mod dist;
mod fuzz;
mod reference;
mod rehearse;
mod schema;
mod shell;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kiln_cli::ui::{Failure, Ui};
use kiln_cli::{Options, Program, tools};

/// GitHub Actions self-hosted runners for an organization, on its own AWS account.
///
/// `ami` bakes the image, `deploy` rolls it out, `rotate-key` installs or replaces the GitHub App's private key.
/// `rehearse` runs all of it on this machine, without an account: start there.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    options: Options,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = kiln_cli::after_help!(
    "\
Examples:
  cargo xtask rehearse
  cargo xtask deploy --dry-run
  cargo xtask ami --json
  cargo xtask explain image-not-recorded
"
);

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Session(kiln_cli::Command),
    Rehearse(rehearse::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Ci(ci::Args),
    Schema(schema::Args),
    Book(book::Args),
    Dist(dist::Args),
    /// Install the tools that `rehearse` and `ci` use, under target/tools.
    #[command(after_help = "Examples:\n  cargo xtask setup")]
    Setup,
    Bootstrap(bootstrap::Args),
}

impl Program for Cli {
    const NAME: &'static str = "cargo xtask";

    fn options(&self) -> &Options {
        &self.options
    }

    async fn run(&self, ui: &Ui) -> Result<(), Failure> {
        match &self.command {
            Command::Session(command) => kiln_cli::run::<Self>(command, &self.options, ui).await,
            Command::Rehearse(args) => Box::pin(rehearse::run(args, ui)).await,
            Command::Bench(args) => Box::pin(bench::run(args, ui)).await,
            Command::Fuzz(args) => Ok(fuzz::run(args)?),
            Command::Ci(args) => Ok(ci::run(args, ui)?),
            Command::Schema(args) => Ok(schema::run(args)?),
            Command::Book(args) => Ok(book::run(args, ui)?),
            Command::Dist(args) => Ok(dist::run(args, ui)?),
            Command::Setup => Ok(tools::setup().map(drop)?),
            Command::Bootstrap(args) => Ok(bootstrap::run(args, ui)?),
        }
    }

    fn handles_interrupt(&self) -> bool {
        matches!(self.command, Command::Rehearse(_))
    }
}

fn main() -> ExitCode {
    kiln_cli::main::<Cli>()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use kiln_cli::Parsed;

    use super::Cli;

    /// The lines of a help text that are commands of ours, as they would be typed.
    fn examples(help: &str) -> Vec<&str> {
        let section = help.split("Examples:\n").nth(1).unwrap_or_default();
        section.lines().take_while(|line| !line.is_empty()).map(str::trim).collect()
    }

    const CARGO: &str = "cargo xtask ";
    const PROGRAMS: [&str; 2] = [CARGO, "kiln "];

    fn understands(place: &str, line: &str) {
        // Beyond a gap is what it is good for.
        let line =
            line.split("  ").next().and_then(|line| line.split([')', '|', '<', '>', '#', ';', '\\', '`']).next());
        let line = line.unwrap_or_default();
        let arguments = std::iter::once("xtask").chain(line.split_whitespace());
        let arguments: Vec<_> = arguments.map(Into::into).collect();
        Parsed::<Cli>::new(&arguments).map(drop).unwrap_or_else(|error| panic!("{place}: cargo xtask {line}: {error}"));
    }

    /// What is to be typed or run, of the README's and the handbook's blocks and the workflows: not what is only spoken of.
    #[test]
    fn the_commands_of_the_readme_the_handbook_and_the_pipelines_are_understood() {
        let root = kiln_cli::tools::workspace_root().expect("the tests run in a checkout");
        let folders = ["docs/pipelines", "docs/src"].map(|folder| std::fs::read_dir(root.join(folder)).expect(folder));
        let mut files: Vec<_> = folders.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| path.is_file());
        files.push(root.join("README.md"));
        let mut found = 0;
        for file in files {
            let text = std::fs::read_to_string(&file).expect("it can be read");
            let (place, markdown) = (file.display().to_string(), file.extension().is_some_and(|end| end == "md"));
            let blocks: Vec<&str> = if markdown { text.split("```").skip(1).step_by(2).collect() } else { vec![&text] };
            for line in blocks.iter().flat_map(|block| block.lines()).filter(|line| !line.trim_start().starts_with('#'))
            {
                for (at, program) in
                    PROGRAMS.iter().flat_map(|program| line.match_indices(*program).map(move |(at, _)| (at, program)))
                {
                    let (before, after) = (&line[..at], &line[at + program.len()..]);
                    let named = after.split_whitespace().next().unwrap_or_default();
                    let begins = before.is_empty() || before.ends_with([' ', '(', '`']);
                    if *program == CARGO || (begins && Cli::command().find_subcommand(named).is_some()) {
                        understands(&place, after);
                        found += 1;
                    }
                }
            }
        }
        assert!(found > 30, "only {found} commands were found");
    }

    #[test]
    fn every_command_teaches_by_examples_that_it_understands() {
        let root = Cli::command();
        root.clone().debug_assert();
        let helps = root.get_subcommands().chain([&root]).map(|command| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            (command.get_name().to_owned(), help)
        });
        for (name, help) in helps {
            let examples = examples(&help);
            assert!(!examples.is_empty(), "the help of `{name}` has no examples");
            // A line without a command goes on with what the one above says.
            for line in examples.iter().filter_map(|example| Some(example.split_once("cargo xtask ")?.1)) {
                understands(&name, line);
            }
        }
    }
}
