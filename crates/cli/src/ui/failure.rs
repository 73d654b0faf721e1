//! How a command ends when it does not succeed, in words.

use kiln_config::config::ConfigError;
use kiln_operations::{Code, Error, Kind};

/// How a command ends when it does not succeed.
#[derive(Debug)]
pub enum Failure {
    /// A failure of the commands proper.
    Release(Error),
    /// Anything else.
    Other(anyhow::Error),
    /// The command line can't be understood; clap says it.
    Usage(clap::Error),
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

/// What is said of a failure, in parts that a terminal, an annotation and a document each put together in their own way.
#[derive(Debug)]
pub(crate) struct Account {
    /// The stable name.
    pub code: &'static str,
    /// What of the exit codes' list it is.
    pub kind: &'static str,
    /// The exit code.
    pub exit_code: u8,
    /// What happened.
    pub message: String,
    /// What lies below it, outermost first.
    pub causes: Vec<String>,
    /// Steps of the plan that were carried out before it.
    pub done: Vec<String>,
    /// What a person can do.
    pub hint: Option<String>,
}

impl Failure {
    pub(crate) fn account(&self) -> Account {
        let mut account = self.written();
        let texts = account.causes.iter_mut().chain(&mut account.done).chain(&mut account.hint);
        for text in texts.chain([&mut account.message]) {
            *text = crate::with_program_name(text).into_owned();
        }
        account
    }

    /// With commands as the messages have them.
    fn written(&self) -> Account {
        match self {
            Self::Release(error) => Account {
                code: error.code.name(),
                kind: kind_name(error.kind()),
                exit_code: error.kind().exit_code(),
                message: error.to_string(),
                causes: causes(error),
                done: error.done.clone(),
                hint: error.hint.clone(),
            },
            Self::Other(error) => Account {
                code: Code::Internal.name(),
                kind: kind_name(Kind::Other),
                exit_code: Kind::Other.exit_code(),
                message: error.to_string(),
                causes: causes(error.as_ref()),
                done: Vec::new(),
                hint: None,
            },
            Self::Usage(error) => Account {
                code: "usage",
                kind: "usage",
                exit_code: 2,
                message: error.to_string().trim_start_matches("error: ").trim_end().to_owned(),
                causes: Vec::new(),
                done: Vec::new(),
                hint: None,
            },
            Self::Interrupted => Account {
                code: "interrupted",
                kind: "interrupted",
                exit_code: 130,
                message: "interrupted; the same command again goes on from there".to_owned(),
                causes: Vec::new(),
                done: Vec::new(),
                hint: None,
            },
        }
    }

    /// What is wrong with kiln.toml, where that is what is wrong.
    pub fn config(&self) -> Option<&ConfigError> {
        match self {
            Self::Release(Error { source: Some(source), .. }) => source.downcast_ref(),
            _ => None,
        }
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Configuration => "configuration",
        Kind::Access => "access",
        Kind::Precondition => "precondition",
        Kind::Failed => "failed",
        Kind::Timeout => "timeout",
        Kind::Due => "due",
        Kind::Other => "other",
    }
}

fn causes(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut causes = Vec::new();
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let line = source.to_string();
        // Some libraries repeat their cause in their own message.
        if !last.contains(&line) {
            causes.push(line.clone());
        }
        last = line;
        cause = source.source();
    }
    causes
}
