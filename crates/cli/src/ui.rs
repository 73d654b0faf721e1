//! The operator's voice: stdout is data, stderr is talk; live states on a terminal, plain lines elsewhere, groups and
//! annotations in a workflow of GitHub Actions, one document for machines.

mod actions;
mod calls;
mod clean;
mod document;
mod failure;
mod voice;

use std::fmt;
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use kiln_operations::plan::Plan;
use kiln_operations::ports::Progress;
use serde_json::Value;

use self::actions::Actions;
pub(crate) use self::clean::clean;
use self::clean::{clean_but_for_styles, clean_json, harmless};
pub use self::document::schema;
use self::document::{Document, PlanReport};
use self::failure::Account;
pub use self::failure::Failure;
pub use self::voice::OutputFlags;

const ADDED: Style = AnsiColor::Green.on_default();
const CHANGED: Style = AnsiColor::Yellow.on_default();
const REMOVED: Style = AnsiColor::Red.on_default();
const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HINT: Style = AnsiColor::Green.on_default().bold();
const STRONG: Style = Style::new().bold();

/// Where lines go, of whichever part of the program; set once the flags are known.
static STAGE: OnceLock<Stage> = OnceLock::new();

#[derive(Debug)]
struct Stage {
    quiet: bool,
    spinner: Option<ProgressBar>,
    actions: Option<Actions>,
}

/// A line of what is going on, from where no [`Ui`] is at hand. Not said with `--quiet`.
pub fn note(text: &str) {
    if !STAGE.get().is_some_and(|stage| stage.quiet) {
        aside(&clean(text));
    }
}

/// A warning from where no [`Ui`] is at hand. The document has it too.
pub(crate) fn caution(text: &str) {
    alarm("kiln", text);
    lock(&CAUTIONS).push(text.to_owned());
}

static CAUTIONS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// At the run's page, or on a line of its own.
fn alarm(title: &str, text: &str) {
    if actions().is_some() {
        raw(&actions::warning(title, text));
    } else {
        aside(&format!("{WARNING}warning:{WARNING:#} {}", clean(text)));
    }
}

/// A question, whose answer comes on the same line.
pub(crate) fn prompt(question: &str) {
    eprint!("{} ", clean(question));
    let _ = std::io::stderr().flush();
}

/// A text that is said in any case. Foreign parts of it are [`clean()`] before they are painted; whatever was forgotten is
/// caught here, as are commands to the runner.
fn aside(text: &str) {
    let text = crate::with_program_name(text);
    let text = clean_but_for_styles(&text);
    raw(&if actions().is_some() { harmless(&text) } else { text });
}

/// A line as it is, commands to the runner too.
fn raw(text: &str) {
    match STAGE.get().and_then(|stage| stage.spinner.as_ref()) {
        Some(spinner) => spinner.suspend(|| anstream::eprintln!("{text}")),
        None => anstream::eprintln!("{text}"),
    }
}

fn actions() -> Option<&'static Actions> {
    STAGE.get().and_then(|stage| stage.actions.as_ref())
}

/// What a command talks through.
#[derive(Debug)]
pub struct Ui {
    quiet: bool,
    /// The real stdout, with `--json`.
    document_goes_to: Option<File>,
    document: Mutex<Document>,
    last: Mutex<String>,
    grouped: Mutex<bool>,
}

impl Ui {
    /// For a command by name. Called once.
    pub fn new(voice: &OutputFlags, command: &str, dry_run: bool) -> Self {
        voice.paint();
        let live = std::io::stderr().is_terminal() && !voice.quiet;
        let spinner = live.then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix}{wide_msg} {elapsed}");
            ProgressBar::new_spinner().with_style(style.expect("the template is a constant"))
        });
        let _ = STAGE.set(Stage { quiet: voice.quiet, spinner, actions: Actions::here() });
        if voice.verbose {
            calls::follow();
        }
        Self {
            quiet: voice.quiet,
            document_goes_to: voice.json.then(claim_stdout).flatten(),
            document: Mutex::new(Document::new(command, dry_run)),
            last: Mutex::default(),
            grouped: Mutex::default(),
        }
    }

    /// A line that is not a step's: a notice.
    pub fn talk(&self, text: &str) {
        if !self.quiet {
            aside(&painted(&clean(text)));
        }
    }

    /// What will be done, or would be in a dry run.
    pub fn plan<S: fmt::Display>(&self, plan: &Plan<S>) {
        let mut document = lock(&self.document);
        if !self.quiet || document.dry_run {
            let text = clean(&plan.to_string());
            let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
            let rest = if rest.is_empty() { String::new() } else { format!("\n{}", painted(rest)) };
            aside(&format!("{STRONG}{first}{STRONG:#}{rest}"));
        }
        document.plans.push(PlanReport::from(plan));
    }

    /// What a person should know though nothing failed.
    pub fn warn(&self, text: &str) {
        let title = format!("kiln {}", lock(&self.document).command);
        alarm(&title, text);
        lock(&self.document).warnings.push(text.to_owned());
    }

    /// A line of data. With `--json` there is only the document: see [`Ui::record`].
    pub fn data(&self, text: &str) {
        if self.document_goes_to.is_none() {
            self.clear();
            let text = clean(&crate::with_program_name(text));
            println!("{}", if actions().is_some() { harmless(&text) } else { text });
        }
    }

    /// A result by its name, for the document and for the outputs of a workflow's step.
    pub fn record(&self, name: &str, value: impl Into<Value>) {
        lock(&self.document).result.insert(name.to_owned(), value.into());
    }

    /// Ends the live state.
    pub fn clear(&self) {
        if let Some(spinner) = STAGE.get().and_then(|stage| stage.spinner.as_ref()) {
            spinner.finish_and_clear();
        }
        if std::mem::take(&mut *lock(&self.grouped)) {
            raw("::endgroup::");
        }
    }

    /// Says how it ended, to people and machines, and gives the exit code.
    pub fn finish(&self, result: &Result<(), Failure>) -> ExitCode {
        self.clear();
        let mut document = lock(&self.document);
        document.warnings.append(&mut lock(&CAUTIONS));
        let account = result.as_ref().err().map(Failure::account);
        match result {
            Ok(()) => document.succeeded(),
            Err(failure) => {
                failed(&document.command, failure);
                document.failed(failure.account(), failure.config());
            }
        }
        if let Some(actions) = actions() {
            let written = actions
                .write_outputs(&document, account.as_ref().map(|account| account.code))
                .and_then(|()| actions.write_summary(&document, account.as_ref()));
            if let Err(error) = written {
                aside(&format!("{WARNING}warning:{WARNING:#} can't write the step's outputs or summary: {error}"));
            }
        }
        if let Some(stdout) = &self.document_goes_to {
            let text = serde_json::to_string_pretty(&*document).expect("the document is JSON");
            let mut text = clean_json(&crate::with_program_name(&text));
            text.push('\n');
            // Whoever reads it may be gone; the exit code still tells.
            let _ = { stdout }.write_all(text.as_bytes());
        }
        ExitCode::from(document.exit_code)
    }
}

/// Takes stdout for the document alone: what anyone else prints there, a tool that is called too, goes to stderr.
fn claim_stdout() -> Option<File> {
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().ok()?;
    nix::unistd::dup2_stdout(std::io::stderr()).ok()?;
    Some(File::from(stdout))
}

/// Says a failure: as annotations in a workflow, and as text in any case.
fn failed(command: &str, failure: &Failure) {
    let account = failure.account();
    match failure {
        Failure::Interrupted => return aside(&account.message),
        // Clap styles it, and repeats what was typed.
        Failure::Usage(error) => aside(error.render().ansi().to_string().trim_end()),
        _ => match failure.config() {
            Some(config) => {
                let first = clean(account.message.lines().next().unwrap_or_default());
                aside(&format!("{ERROR}error[{}]:{ERROR:#} {first}\n\n{}", account.code, config.render(true)));
            }
            None => aside(&said(&account).iter().map(|line| emphasized(&clean(line))).collect::<Vec<_>>().join("\n")),
        },
    }
    if actions().is_some() {
        actions::errors(command, &account, failure.config()).iter().for_each(|line| raw(line));
    }
}

/// Message, causes, what was done, a blank line, the hint.
fn said(account: &Account) -> Vec<String> {
    let mut lines = vec![format!("error[{}]: {}", account.code, account.message)];
    lines.extend(account.causes.iter().map(|cause| format!("  caused by: {cause}")));
    for (index, done) in account.done.iter().enumerate() {
        lines.push(format!("  {} {done}", if index == 0 { "already done:" } else { "             " }));
    }
    if let Some(hint) = &account.hint {
        lines.extend([String::new(), format!("hint: {hint}")]);
    }
    lines
}

/// The word at a line's begin.
fn emphasized(line: &str) -> String {
    match line.split_once(": ") {
        Some((word, rest)) if word.starts_with("error[") => format!("{ERROR}{word}:{ERROR:#} {rest}"),
        Some(("hint", rest)) => format!("{HINT}hint:{HINT:#} {rest}"),
        _ => line.to_owned(),
    }
}

/// What is added, changed and removed, each in its colour.
fn painted(text: &str) -> String {
    let line = |line: &str| {
        let style = match line.trim_start().split_once(' ') {
            Some(("+", _)) => ADDED,
            Some(("~", _)) => CHANGED,
            Some(("-", _)) => REMOVED,
            _ => return line.to_owned(),
        };
        format!("{style}{line}{style:#}")
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress for Ui {
    fn plan(&self, plan: &Plan<String>) {
        Ui::plan(self, plan);
    }

    fn step(&self, number: usize, of: usize, text: &str) {
        let text = &clean(text);
        let (first, details) = text.split_once('\n').unwrap_or((text, ""));
        let count = format!("[{number}/{of}] ");
        if let Some(spinner) = STAGE.get().and_then(|stage| stage.spinner.as_ref()) {
            spinner.set_prefix(count.clone());
        }
        if self.quiet {
            return;
        }
        match actions() {
            Some(_) => {
                self.clear();
                raw(&actions::group(&format!("{count}{first}")));
                *lock(&self.grouped) = true;
            }
            None => aside(&format!("{STRONG}{count}{STRONG:#}{first}")),
        }
        for detail in details.lines() {
            aside(&painted(&format!("      {detail}")));
        }
    }

    fn say(&self, line: &str) {
        self.talk(line);
    }

    fn warn(&self, line: &str) {
        Ui::warn(self, line);
    }

    fn state(&self, line: &str) {
        if self.quiet {
            return;
        }
        let line = clean(line);
        match STAGE.get().and_then(|stage| stage.spinner.as_ref()) {
            Some(spinner) => {
                spinner.set_message(line.replace('\n', " "));
                spinner.enable_steady_tick(Duration::from_millis(120));
            }
            None => {
                let mut last = lock(&self.last);
                if *last != line {
                    aside(&line);
                    *last = line;
                }
            }
        }
    }
}

/// Resolves when the process is asked to end.
pub async fn interrupt() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
