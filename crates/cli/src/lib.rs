//! The operator's commands: flags, dispatch and output. What the commands do is in `kiln-operations`.
//!
//! The binary `kiln` has these commands alone; `cargo xtask` adds the contributor's. Both are a [`Program`].

mod ami;
mod bundle;
mod cloud;
mod completions;
mod contents;
mod deploy;
mod destroy;
mod doctor;
mod explain;
mod files;
mod find;
mod init;
pub mod musl;
mod operator;
mod pin;
mod prune;
mod register;
mod rotate_key;
mod shred;
mod sources;
mod status;
pub mod tools;
pub mod ui;
mod up;

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};

use crate::ui::{Failure, OutputFlags, Ui};

/// The flags that every command has.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The configuration file; otherwise kiln.toml in this folder, or in the nearest one above it in the same Git repository.
    #[arg(long, global = true, value_name = "FILE", env = "KILN_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    voice: OutputFlags,
}

/// The operator's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(init::Args),
    Doctor(doctor::Args),
    Up(up::Args),
    Ami(ami::Args),
    Deploy(deploy::Args),
    RotateKey(rotate_key::Args),
    Status(status::Args),
    Pin(pin::Args),
    Prune(prune::Args),
    Destroy(destroy::Args),
    Explain(explain::Args),
    Completions(completions::Args),
}

/// The headings of the help, and what is under them; every other command is under the last one.
const GROUPS: [(&str, &[&str]); 3] = [
    ("Get started", &["init", "rehearse", "doctor", "up"]),
    ("Operate", &["ami", "deploy", "rotate-key", "status", "pin", "prune", "destroy", "explain", "completions"]),
    ("Develop", &[]),
];

/// The list of commands by groups.
fn groups(command: &clap::Command) -> String {
    let known: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let width = command.get_subcommands().map(|command| command.get_name().len()).max().unwrap_or_default();
    let line = |command: &clap::Command| {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        format!("  {:<width$}  {about}\n", command.get_name())
    };
    let mut text = String::new();
    for (heading, names) in GROUPS {
        let mut lines: Vec<String> = names.iter().filter_map(|name| command.find_subcommand(name)).map(line).collect();
        if names.is_empty() {
            let others = command.get_subcommands().filter(|command| !known.contains(&command.get_name()));
            lines.extend(others.map(line));
        }
        if !lines.is_empty() {
            text.push_str(&format!("{heading}:\n{}\n", lines.concat()));
        }
    }
    text
}

/// The help's list of exit codes, after a program's own examples.
#[macro_export]
macro_rules! after_help {
    ($examples:literal) => {
        concat!(
            $examples,
            "
Exit codes:
  0  done, or nothing to do
  1  AWS or GitHub could not be reached, or anything unforeseen
  2  wrong usage of the command line
  3  kiln.toml, a flag's value or a file is wrong
  4  AWS or GitHub refused the credentials, or they lack a permission
  5  something has to be done first, named in the hint
  6  the bake, the stack or the rollout ended in failure; what served before still serves
  7  a timeout was reached; the same command again resumes there
  8  nothing failed, but something has to be renewed within 14 days, or is overdue
  130  interrupted; the same command again resumes there

Data goes to stdout, everything else to stderr. In a GitHub Actions workflow there are groups,
annotations, a summary, and outputs: each result that a command names, `outcome`, `changed`,
`error-code`."
        )
    };
}

/// A command line program of Kiln's.
#[allow(async_fn_in_trait, reason = "the future is awaited in place, on one task")]
pub trait Program: Parser {
    /// What a person types to run the program: `kiln`, `cargo xtask`.
    const NAME: &'static str;

    /// The flags that every command has.
    fn options(&self) -> &Options;

    /// Runs the command.
    ///
    /// # Errors
    /// The command's own.
    async fn run(&self, ui: &Ui) -> Result<(), Failure>;

    /// Whether the command handles Ctrl-C itself, because it has processes to end.
    fn handles_interrupt(&self) -> bool {
        false
    }
}

/// Parses the command line, runs the command, and reports how it ended.
pub fn main<P: Program>() -> ExitCode {
    let _ = NAME.set(P::NAME);
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Parsed { program, command, dry_run } = match Parsed::<P>::new(&arguments) {
        Ok(parsed) => parsed,
        // Help and the version are not errors.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => return usage_error::<P>(&arguments, error),
    };
    let ui = Ui::new(&program.options().voice, &command, dry_run);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ui.finish(&Err(anyhow::Error::new(error).context("start the async runtime").into())),
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = program.run(&ui) => result,
            () = interrupted(&program) => Err(Failure::Interrupted),
        }
    });
    // A blocking read of a terminal must not hold up the exit.
    runtime.shutdown_background();
    ui.finish(&result)
}

/// The name of the program that runs; see [`Program::NAME`].
static NAME: OnceLock<&str> = OnceLock::new();

/// How commands are written in help texts and messages.
const WRITTEN: &str = "cargo xtask ";

/// A text with its commands as a person types them for the running program.
pub(crate) fn with_program_name(text: &str) -> Cow<'_, str> {
    match NAME.get() {
        Some(name) if !WRITTEN.starts_with(name) => Cow::Owned(text.replace(WRITTEN, &format!("{name} "))),
        _ => Cow::Borrowed(text),
    }
}

/// The program's command line, with its name in the examples.
fn commands<P: Program>() -> clap::Command {
    let named = |command: clap::Command| {
        let help = command.get_after_help().map(|help| with_program_name(&help.to_string()).into_owned());
        match help {
            Some(help) => command.after_help(help),
            None => command,
        }
    };
    let command = P::command().mut_subcommands(named);
    let help = command.get_after_help().map(|help| with_program_name(&help.to_string()).into_owned());
    match help {
        Some(help) => command.after_help(help),
        None => command,
    }
}

/// The same with a help whose commands are in groups, which clap knows for options only.
fn grouped<P: Program>() -> clap::Command {
    let command = commands::<P>();
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}{{all-args}}{{after-help}}",
        groups(&command)
    );
    let usage = format!("{} [OPTIONS] <COMMAND>", P::NAME);
    command.mut_subcommands(|command| command.hide(true)).help_template(template).override_usage(usage)
}

/// A parsed command line.
#[derive(Debug)]
pub struct Parsed<P> {
    program: P,
    command: String,
    dry_run: bool,
}

impl<P: Program> Parsed<P> {
    /// Parses arguments, the program's name first.
    ///
    /// # Errors
    /// clap's, ready to be printed; asking for help is one too.
    pub fn new(arguments: &[OsString]) -> Result<Self, clap::Error> {
        let matches = grouped::<P>().try_get_matches_from(arguments)?;
        let program = P::from_arg_matches(&matches).map_err(|error| error.format(&mut grouped::<P>()))?;
        let (command, matches) = matches.subcommand().map_or(("", None), |(name, matches)| (name, Some(matches)));
        let dry_run = matches.and_then(|matches| matches.try_get_one("dry_run").ok().flatten().copied());
        Ok(Self { program, command: command.to_owned(), dry_run: dry_run.unwrap_or(false) })
    }
}

/// Reports a wrong command line like any failure: to people and to machines.
fn usage_error<P: Program>(arguments: &[OsString], error: clap::Error) -> ExitCode {
    let known = commands::<P>();
    let mut named = arguments.iter().skip(1).filter_map(|argument| argument.to_str());
    let command = named.find(|name| known.find_subcommand(name).is_some()).unwrap_or("xtask");
    Ui::new(&OutputFlags::guessed(arguments), command, false).finish(&Err(Failure::Usage(error)))
}

/// Runs one of the operator's commands for the program `P`, whose completions `completions` prints.
///
/// # Errors
/// The command's own.
pub async fn run<P: Program>(command: &Command, options: &Options, ui: &Ui) -> Result<(), Failure> {
    let here = Path::new(".");
    let found = options.config.clone().unwrap_or_else(|| match command {
        // What `init` writes belongs where it is run.
        Command::Init(_) => PathBuf::from(find::NAME),
        _ => find::config(here),
    });
    let config = &*found;
    match command {
        Command::Ami(args) => Box::pin(ami::run(args, config, ui)).await,
        Command::Deploy(args) => Box::pin(deploy::run(args, config, ui)).await,
        Command::RotateKey(args) => Box::pin(rotate_key::run(args, config, ui)).await,
        Command::Destroy(args) => Box::pin(destroy::run(args, config, ui)).await,
        Command::Status(args) => Box::pin(status::run(args, config, ui)).await,
        Command::Init(args) => Box::pin(init::run(args, config, ui)).await,
        Command::Up(args) => Box::pin(up::run(args, config, ui)).await,
        Command::Doctor(args) => Box::pin(doctor::run(args, config, ui)).await,
        Command::Prune(args) => Box::pin(prune::run(args, config, ui)).await,
        Command::Pin(args) => Box::pin(pin::run(args, config, ui)).await,
        Command::Explain(args) => {
            explain::run(args, ui);
            Ok(())
        }
        Command::Completions(args) => {
            completions::run(args, commands::<P>(), ui);
            Ok(())
        }
    }
}

/// Ctrl-C, or a pipeline that cancels the command.
async fn interrupted(program: &impl Program) {
    if program.handles_interrupt() {
        return std::future::pending().await;
    }
    ui::interrupt().await;
}
