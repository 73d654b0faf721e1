//! The operator's voice: stdout is data, stderr is talk; live states on a terminal, plain lines elsewhere.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kiln_release::ports::Progress;
use kiln_release::{Error, Kind};

/// How a command ends when it does not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A failure of the commands proper.
    Release(Error),
    /// Anything else.
    Other(anyhow::Error),
    /// Ctrl-C, SIGTERM.
    Interrupted,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Release(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(error) => Self::Release(error),
            Err(error) => Self::Other(error),
        }
    }
}

/// Where talk goes.
#[derive(Debug)]
pub(crate) struct Ui {
    spinner: Option<ProgressBar>,
    last: Mutex<String>,
}

impl Ui {
    pub(crate) fn new() -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
            ProgressBar::new_spinner().with_style(style.expect("the template is a constant"))
        });
        Self { spinner, last: Mutex::default() }
    }

    /// A line that is not a step's: a plan, a notice.
    pub(crate) fn talk(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Ends the live state.
    pub(crate) fn clear(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }

    /// Prints a failure and gives its exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        self.clear();
        let (text, code) = match failure {
            Failure::Release(error) => (describe(error), error.kind.exit_code()),
            Failure::Other(error) => (format!("error: {error:#}"), Kind::Other.exit_code()),
            Failure::Interrupted => ("interrupted; the same command again goes on from there".to_owned(), 130),
        };
        eprintln!("{text}");
        ExitCode::from(code)
    }
}

/// Message, causes, what was done, a blank line, the hint.
fn describe(error: &Error) -> String {
    let mut text = format!("error: {error}");
    let mut cause = std::error::Error::source(error);
    let mut last = error.to_string();
    while let Some(source) = cause {
        let line = source.to_string();
        // Some libraries repeat their cause in their own message.
        if !last.contains(&line) {
            let _ = write!(text, "\n  caused by: {line}");
        }
        last = line;
        cause = source.source();
    }
    for (index, done) in error.done.iter().enumerate() {
        let _ = write!(text, "\n  {} {done}", if index == 0 { "already done:" } else { "             " });
    }
    if let Some(hint) = &error.hint {
        let _ = write!(text, "\n\nhint: {hint}");
    }
    text
}

impl Progress for Ui {
    fn say(&self, line: &str) {
        self.talk(line);
    }

    fn state(&self, line: &str) {
        match &self.spinner {
            Some(spinner) => {
                spinner.set_message(line.to_owned());
                spinner.enable_steady_tick(Duration::from_millis(120));
            }
            None => {
                let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if *last != line {
                    eprintln!("{line}");
                    line.clone_into(&mut last);
                }
            }
        }
    }
}

/// Resolves when the process is asked to end.
pub(crate) async fn interrupt() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
