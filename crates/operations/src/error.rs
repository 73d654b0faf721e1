//! What the commands fail with: one message, its causes, what is already done, and a hint a person can act on.

use kiln_config::config::{is_known_region, nearest_region};

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
    /// Which failure it is, by its stable name; decides the kind and the exit code.
    pub code: Code,
    /// What a person can do.
    pub hint: Option<String>,
    /// Steps of the plan that were carried out before the failure.
    pub done: Vec<String>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of failure, each with an exit code of its own. A failure's kind is its code's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// kiln.toml, a flag or a file is wrong.
    Configuration,
    /// AWS or GitHub did not accept the credentials, or they lack a permission.
    Access,
    /// Something has to be done first, or is in a state that a person must fix.
    Precondition,
    /// The bake, the stack or the rollout ended in failure.
    Failed,
    /// A timeout was reached; the same command again continues from there.
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
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { message: message.into(), code, hint: None, done: Vec::new(), source: None }
    }

    /// Its code's kind.
    pub const fn kind(&self) -> Kind {
        self.code.kind()
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

fn unreachable_hint(region: &str) -> String {
    let meant = region.parse().ok().filter(|region| !is_known_region(region));
    if let Some(meant) = meant.as_ref().and_then(nearest_region) {
        return format!("there is no region `{region}`; is `{meant}` meant?");
    }
    format!(
        "is `{region}` a region of yours, as `region` in kiln.toml says, and does this machine reach AWS (proxy, firewall)?"
    )
}

impl From<CloudError> for Error {
    fn from(error: CloudError) -> Self {
        let hint = match error.kind {
            CloudErrorKind::Credentials => Some(
                "give AWS credentials the usual way (AWS_PROFILE, AWS_ACCESS_KEY_ID, `aws sso login`, or the pipeline's \
                 role) and check them with `aws sts get-caller-identity`"
                    .to_owned(),
            ),
            CloudErrorKind::AccessDenied => Some("grant the action named below to the role this runs as".to_owned()),
            CloudErrorKind::Unreachable => Some(unreachable_hint(&error.region)),
            CloudErrorKind::Throttled => {
                Some("run the same command again: it continues from where it stopped".to_owned())
            }
            CloudErrorKind::Quota => Some("raise the quota named below, then run it again".to_owned()),
            CloudErrorKind::Conflict => {
                Some("something else is changing it: wait until that has ended, then run it again".to_owned())
            }
            CloudErrorKind::TooLong => {
                Some("a list that is cut off is not taken for the whole: remove what is no longer used from it".to_owned())
            }
            CloudErrorKind::NotFound | CloudErrorKind::Invalid | CloudErrorKind::Other => None,
        };
        Self {
            message: error.to_string(),
            code: Code::of_cloud(error.kind),
            hint,
            done: Vec::new(),
            source: error.source.map(|e| e as _),
        }
    }
}

impl From<kiln_github::Error> for Error {
    fn from(error: kiln_github::Error) -> Self {
        let (hint, message) = (error.hint(), error.to_string());
        Self { message, code: Code::of_github(&error.kind), hint, done: Vec::new(), source: error.source }
    }
}
