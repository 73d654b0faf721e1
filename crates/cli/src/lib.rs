//! The operator's commands: flags, dispatch and output. What the commands do is in `kiln-operations`.
//!
//! The binary `kiln` has these commands alone; `cargo xtask` adds the contributor's. Both are a [`Program`].

mod ami;
mod cloud;
mod completions;
mod contents;
mod deploy;
mod destroy;
mod doctor;
mod explain;
mod files;
mod init;
pub mod musl;
mod operator;
mod pin;
mod prune;
mod rotate_key;
mod shred;
mod sources;
mod status;
pub mod tools;
pub mod ui;

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};

use crate::ui::{Failure, Ui, Voice};

/// The flags that every command has.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The configuration file.
    #[arg(long, global = true, default_value = "kiln.toml", value_name = "FILE", env = "KILN_CONFIG")]
    config: PathBuf,

    #[command(flatten)]
    voice: Voice,
}

/// The operator's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Ami(ami::Args),
    Deploy(deploy::Args),
    RotateKey(rotate_key::Args),
    Status(status::Args),
    Destroy(destroy::Args),
    Init(init::Args),
    Doctor(doctor::Args),
    Pin(pin::Args),
    Prune(prune::Args),
    Explain(explain::Args),
    Completions(completions::Args),
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
    P::command().mut_subcommands(named)
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
        let matches = commands::<P>().try_get_matches_from(arguments)?;
        let program = P::from_arg_matches(&matches).map_err(|error| error.format(&mut commands::<P>()))?;
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
    Ui::new(&Voice::guessed(arguments), command, false).finish(&Err(Failure::Usage(error)))
}

/// Runs one of the operator's commands for the program `P`, whose completions `completions` prints.
///
/// # Errors
/// The command's own.
pub async fn run<P: Program>(command: &Command, options: &Options, ui: &Ui) -> Result<(), Failure> {
    let config = &options.config;
    match command {
        Command::Ami(args) => Box::pin(ami::run(args, config, ui)).await,
        Command::Deploy(args) => Box::pin(deploy::run(args, config, ui)).await,
        Command::RotateKey(args) => Box::pin(rotate_key::run(args, config, ui)).await,
        Command::Destroy(args) => Box::pin(destroy::run(args, config, ui)).await,
        Command::Status(args) => Box::pin(status::run(args, config, ui)).await,
        Command::Init(args) => Box::pin(init::run(args, config, ui)).await,
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
