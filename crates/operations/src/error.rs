//! The error type of the commands: a message, its causes, the steps that are already done, and a hint.

use kiln_config::config::{is_known_region, nearest_region};

use crate::code::Code;
use crate::ports::{CloudError, CloudErrorKind};

/// The result type of the commands.
pub type Result<T> = std::result::Result<T, Error>;

/// The failure of a command.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// A lower-case fragment with the id of the resource.
    pub message: String,
    /// The stable error code. It determines the kind and the exit code.
    pub code: Code,
    /// What the user can do.
    pub hint: Option<String>,
    /// The steps of the plan that were done before the failure.
    pub done: Vec<String>,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of failure. Each has its own exit code. The error code determines the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// kiln.toml, a flag or a file is wrong.
    Configuration,
    /// AWS or GitHub did not accept the credentials, or they lack a permission.
    Access,
    /// A precondition is not met: something must be done first, or a person must fix the state of a resource.
    Precondition,
    /// The bake, the stack operation or the rollout failed.
    Failed,
    /// A timeout was reached. Running the same command again resumes.
    Timeout,
    /// Nothing failed: a version or key must be renewed soon, or is overdue.
    Due,
    /// AWS or GitHub could not be reached, or an unexpected error.
    Other,
}

impl Kind {
    /// The process's exit code. clap uses 2 for usage errors.
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
    /// An error without a source.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { message: message.into(), code, hint: None, done: Vec::new(), source: None }
    }

    /// The kind of the error's code.
    pub const fn kind(&self) -> Kind {
        self.code.kind()
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Adds the steps that were done before the failure.
    #[must_use]
    pub fn after(mut self, done: &[String]) -> Self {
        self.done = done.to_vec();
        self
    }
}

fn unreachable_hint(region: &str) -> String {
    let meant = region.parse().ok().filter(|region| !is_known_region(region));
    if let Some(meant) = meant.as_ref().and_then(nearest_region) {
        return format!("there is no region `{region}`; did you mean `{meant}`?");
    }
    format!(
        "check that `region` in kiln.toml (`{region}`) is enabled in your account, and that this machine can reach AWS (proxy, firewall)"
    )
}

impl From<CloudError> for Error {
    fn from(error: CloudError) -> Self {
        let hint = match error.kind {
            CloudErrorKind::Credentials => Some(
                "provide AWS credentials in one of the usual ways (AWS_PROFILE, AWS_ACCESS_KEY_ID, `aws sso login`, or the pipeline's \
                 role) and check them with `aws sts get-caller-identity`"
                    .to_owned(),
            ),
            CloudErrorKind::AccessDenied => Some("grant the action named below to the role that the command runs as".to_owned()),
            CloudErrorKind::Unreachable => Some(unreachable_hint(&error.region)),
            CloudErrorKind::Throttled => {
                Some("run the same command again: it resumes where it stopped".to_owned())
            }
            CloudErrorKind::Quota => Some("request an increase of the quota named below, then run the command again".to_owned()),
            CloudErrorKind::Conflict => {
                Some("another caller is changing the resource: wait until the change has finished, then run the command again".to_owned())
            }
            CloudErrorKind::TooLong => {
                Some("Kiln never acts on an incomplete list: remove unused entries from it".to_owned())
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
