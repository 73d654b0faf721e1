//! Kiln's commands. Flags and dispatch; what they do is in the crates.

mod ami;
mod bench;
mod book;
mod ci;
mod cloud;
mod completions;
mod deploy;
mod destroy;
mod dist;
mod doctor;
mod explain;
mod fuzz;
mod init;
mod musl;
mod operator;
mod pin;
mod prune;
mod reference;
mod rehearse;
mod rotate_key;
mod schema;
mod shred;
mod sources;
mod status;
mod tools;
mod ui;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::ui::{Failure, Ui, Voice};

/// GitHub Actions self-hosted runners for an organization, on its own AWS account.
///
/// `ami` bakes the image, `deploy` rolls it out, `rotate-key` installs or replaces the GitHub App's private key.
/// `rehearse` runs all of it on this machine, without an account: start there.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, default_value = "kiln.toml", value_name = "FILE", env = "KILN_CONFIG")]
    config: PathBuf,

    #[command(flatten)]
    voice: Voice,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  cargo xtask rehearse
  cargo xtask deploy --dry-run
  cargo xtask ami --json
  cargo xtask explain image-not-recorded

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

Data goes to stdout, talk to stderr. In a workflow of GitHub Actions there are groups,
annotations, a summary, and outputs: each result that a command names, `outcome`, `changed`,
`error-code`.";

#[derive(Debug, Subcommand)]
enum Command {
    Ami(ami::Args),
    Deploy(deploy::Args),
    RotateKey(rotate_key::Args),
    Status(status::Args),
    Destroy(destroy::Args),
    Init(init::Args),
    Doctor(doctor::Args),
    Pin(pin::Args),
    Prune(prune::Args),
    Rehearse(rehearse::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Ci(ci::Args),
    Schema(schema::Args),
    Book(book::Args),
    Dist(dist::Args),
    Explain(explain::Args),
    Completions(completions::Args),
    /// Install the tools that `rehearse` and `ci` use, under target/tools.
    #[command(after_help = "Examples:\n  cargo xtask setup")]
    Setup,
    /// Build the static bootstrap binary for this machine and print its path.
    #[command(after_help = "\
Examples:
  cargo xtask bootstrap

Results: path")]
    Bootstrap,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Parsed { cli, command, dry_run } = match Parsed::new(&arguments) {
        Ok(parsed) => parsed,
        // Help and the version are asked for.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => return misunderstood(&arguments, error),
    };
    let ui = Ui::new(&cli.voice, &command, dry_run);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ui.finish(&Err(anyhow::Error::new(error).context("start the async runtime").into())),
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = run(&cli, &ui) => result,
            () = interrupted(&cli.command) => Err(Failure::Interrupted),
        }
    });
    // A blocking read of a terminal must not hold up the exit.
    runtime.shutdown_background();
    ui.finish(&result)
}

/// The command line, understood.
#[derive(Debug)]
struct Parsed {
    cli: Cli,
    command: String,
    dry_run: bool,
}

impl Parsed {
    fn new(arguments: &[OsString]) -> Result<Self, clap::Error> {
        let matches = Cli::command().try_get_matches_from(arguments)?;
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))?;
        let (command, matches) = matches.subcommand().map_or(("", None), |(name, matches)| (name, Some(matches)));
        let dry_run = matches.and_then(|matches| matches.try_get_one("dry_run").ok().flatten().copied());
        Ok(Self { cli, command: command.to_owned(), dry_run: dry_run.unwrap_or(false) })
    }
}

/// A command line that is none is told to people and machines like any failure.
fn misunderstood(arguments: &[OsString], error: clap::Error) -> ExitCode {
    let known = Cli::command();
    let named = arguments.iter().skip(1).filter_map(|argument| argument.to_str());
    let command = named.into_iter().find(|name| known.find_subcommand(name).is_some()).unwrap_or("xtask");
    Ui::new(&Voice::guessed(arguments), command, false).finish(&Err(Failure::Usage(error)))
}

async fn run(cli: &Cli, ui: &Ui) -> Result<(), Failure> {
    match &cli.command {
        Command::Ami(args) => Box::pin(ami::run(args, &cli.config, ui)).await,
        Command::Deploy(args) => Box::pin(deploy::run(args, &cli.config, ui)).await,
        Command::RotateKey(args) => Box::pin(rotate_key::run(args, &cli.config, ui)).await,
        Command::Destroy(args) => Box::pin(destroy::run(args, &cli.config, ui)).await,
        Command::Status(args) => Box::pin(status::run(args, &cli.config, ui)).await,
        Command::Init(args) => Box::pin(init::run(args, &cli.config, ui)).await,
        Command::Doctor(args) => Box::pin(doctor::run(args, &cli.config, ui)).await,
        Command::Prune(args) => Box::pin(prune::run(args, &cli.config, ui)).await,
        Command::Pin(args) => Box::pin(pin::run(args, &cli.config, ui)).await,
        Command::Rehearse(args) => Box::pin(rehearse::run(args, ui)).await,
        Command::Bench(args) => Box::pin(bench::run(args, ui)).await,
        Command::Fuzz(args) => Ok(fuzz::run(args)?),
        Command::Ci(args) => Ok(ci::run(args, ui)?),
        Command::Schema(args) => Ok(schema::run(args)?),
        Command::Book(args) => Ok(book::run(args, ui)?),
        Command::Dist(dist::Args {}) => Ok(dist::run(ui)?),
        Command::Explain(args) => {
            explain::run(args, ui);
            Ok(())
        }
        Command::Completions(args) => {
            completions::run(args, Cli::command(), ui);
            Ok(())
        }
        Command::Setup => Ok(tools::setup().map(drop)?),
        Command::Bootstrap => {
            let path = rehearse::bootstrap(ui)?.display().to_string();
            ui.data(&path);
            ui.record("path", path);
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{Cli, Parsed};

    /// The lines of a help text that are commands of ours, as they would be typed.
    fn examples(help: &str) -> Vec<&str> {
        let section = help.split("Examples:\n").nth(1).unwrap_or_default();
        section.lines().take_while(|line| !line.is_empty()).map(str::trim).collect()
    }

    fn understands(place: &str, line: &str) {
        // Beyond a gap is what it is good for.
        let line = line.split("  ").next().and_then(|line| line.split([')', '|', '>', '#', ';', '\\', '`']).next());
        let line = line.unwrap_or_default();
        let arguments = std::iter::once("xtask").chain(line.split_whitespace());
        let arguments: Vec<_> = arguments.map(Into::into).collect();
        Parsed::new(&arguments).unwrap_or_else(|error| panic!("{place}: cargo xtask {line}: {error}"));
    }

    /// What is to be typed or run, of the README's and the handbook's blocks and the workflows: not what is only spoken of.
    #[test]
    fn the_commands_of_the_readme_the_handbook_and_the_pipelines_are_understood() {
        let root = crate::tools::workspace_root();
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
                for (at, command) in line.match_indices("cargo xtask ") {
                    understands(&place, &line[at + command.len()..]);
                    found += 1;
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
