//! What the commands fail with: one message, its causes, what is already done, and a hint a person can act on.

use crate::code::Code;
use crate::ports::{CloudError, CloudErrorKind};

/// The commands return this.
pub type Result<T> = std::result::Result<T, Error>;

/// A command that did not reach its end.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// A lower-case fragment with the id of what it is about.
    pub message: String,
    /// How it is to be mended, by kind; decides the exit code.
    pub kind: Kind,
    /// Which failure it is, by its stable name.
    pub code: Code,
    /// What a person can do.
    pub hint: Option<String>,
    /// Steps of the plan that were carried out before the failure.
    pub done: Vec<String>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of failure, each with an exit code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// kiln.toml, a flag or a file is wrong.
    Configuration,
    /// AWS or GitHub did not accept the credentials, or they lack a permission.
    Access,
    /// Something has to be done first, or is in a state that must be mended by hand.
    Precondition,
    /// The bake, the stack or the roll-out ended in failure.
    Failed,
    /// A bound was reached; the same command again goes on from there.
    Timeout,
    /// Nothing has failed: something has to be renewed soon, or should have been.
    Due,
    /// AWS or GitHub could not be reached, or anything unforeseen.
    Other,
}

impl Kind {
    /// The process's exit code. 2 is clap's own, for usage.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Configuration => 3,
            Self::Access => 4,
            Self::Precondition => 5,
            Self::Failed => 6,
            Self::Timeout => 7,
            Self::Due => 8,
        }
    }
}

impl Error {
    /// An error without a cause below it.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { message: message.into(), kind, code: Code::of_kind(kind), hint: None, done: Vec::new(), source: None }
    }

    /// The same by its own name.
    #[must_use]
    pub fn code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with its cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// The same, saying what had been done before it happened.
    #[must_use]
    pub fn after(mut self, done: &[String]) -> Self {
        self.done = done.to_vec();
        self
    }
}

impl From<CloudError> for Error {
    fn from(error: CloudError) -> Self {
        let (kind, hint) = match error.kind {
            CloudErrorKind::Credentials => (
                Kind::Access,
                Some(
                    "give AWS credentials the usual way (AWS_PROFILE, AWS_ACCESS_KEY_ID, `aws sso login`, or the \
                     pipeline's role) and check them with `aws sts get-caller-identity`"
                        .to_owned(),
                ),
            ),
            CloudErrorKind::AccessDenied => {
                (Kind::Access, Some("grant the action named below to the role this runs as".to_owned()))
            }
            CloudErrorKind::Unreachable => (
                Kind::Other,
                Some(format!(
                    "is `{}` a region of yours, as `region` in kiln.toml says, and is there a way out to AWS from here?",
                    error.region
                )),
            ),
            CloudErrorKind::Throttled => {
                (Kind::Other, Some("run the same command again: it goes on from where it stopped".to_owned()))
            }
            CloudErrorKind::Quota => {
                (Kind::Precondition, Some("raise the quota named below, then run it again".to_owned()))
            }
            CloudErrorKind::Conflict => (
                Kind::Precondition,
                Some("something else is changing it: wait until that has ended, then run it again".to_owned()),
            ),
            CloudErrorKind::NotFound | CloudErrorKind::Invalid | CloudErrorKind::Other => (Kind::Other, None),
        };
        Self {
            message: error.to_string(),
            kind,
            code: Code::of_cloud(error.kind),
            hint,
            done: Vec::new(),
            source: error.source.map(|e| e as _),
        }
    }
}

impl From<kiln_github::Error> for Error {
    fn from(error: kiln_github::Error) -> Self {
        use kiln_github::ErrorKind as GitHub;
        let kind = match error.kind {
            GitHub::BadKey
            | GitHub::BadToken
            | GitHub::UnknownApp
            | GitHub::NotInstalled
            | GitHub::Suspended
            | GitHub::MissingPermission { .. } => Kind::Access,
            _ => Kind::Other,
        };
        let hint = error.hint();
        let message = error.to_string();
        let code = Code::of_github(&error.kind);
        Self { message, kind, code, hint, done: Vec::new(), source: error.source }
    }
}
