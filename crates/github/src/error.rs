//! Errors of calls to GitHub, by kind. Each kind says whether a retry of the same call is useful, and what a person can do.

use std::fmt;
use std::time::Duration;

use crate::jwt::SignError;

/// The result type of the clients.
pub type Result<T> = std::result::Result<T, Error>;

/// The error of a call.
#[derive(Debug)]
pub struct Error {
    /// The method and URL of the call: `GET https://api.github.com/app`. Never holds a token.
    pub operation: String,
    /// The kind of failure.
    pub kind: ErrorKind,
    /// GitHub's own message.
    pub message: String,
    /// `x-github-request-id`, which GitHub's support asks for.
    pub request_id: Option<String>,
    /// The cause, for errors below HTTP.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of failure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// 401: no key of this App made the signature.
    BadKey,
    /// 401: the clock of this machine is off by this much, positive when ahead.
    ClockSkew {
        /// In seconds.
        seconds: i64,
    },
    /// 404 `Integration not found`: no App has that id.
    UnknownApp,
    /// 404 on the installation or the organization.
    NotInstalled,
    /// 403: the installation is suspended.
    Suspended,
    /// 403 `Resource not accessible by integration`: the App's permission is missing.
    MissingPermission {
        /// From `x-accepted-github-permissions`.
        accepted: String,
    },
    /// 403 for another reason, such as an organization's IP allow list. The message gives the reason.
    Forbidden,
    /// 403 or 429 of a primary or secondary limit.
    RateLimited {
        /// How long GitHub asks to wait.
        retry_after: Duration,
    },
    /// 401 on an installation token: expired or revoked.
    BadToken,
    /// 404 on anything else.
    NotFound,
    /// 409: a runner of that name exists.
    NameTaken,
    /// 422: the runner runs a job.
    Busy,
    /// 422: GitHub rejects the content of the request.
    Validation,
    /// 3xx to another host, to which the token must not be sent.
    Redirected,
    /// 5xx.
    Server(u16),
    /// No connection: refused, DNS, network.
    Connect,
    /// TLS: a certificate that is not trusted.
    Tls,
    /// No answer in time.
    Timeout,
    /// The response was incomplete, or is not what the API documents.
    Body,
    /// The signer failed. It decides itself whether a retry is useful.
    Sign {
        /// Whether a retry is useful.
        retryable: bool,
    },
    /// Any other status.
    Status(u16),
}

impl Error {
    /// Whether a retry of the same call is useful.
    pub fn is_retryable(&self) -> bool {
        match self.kind {
            ErrorKind::RateLimited { .. }
            | ErrorKind::Server(_)
            | ErrorKind::Connect
            | ErrorKind::Timeout
            | ErrorKind::Body => true,
            ErrorKind::Sign { retryable } => retryable,
            _ => false,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match &self.kind {
            ErrorKind::BadKey => {
                "the key is not, or no longer, one of this App's: compare its fingerprint with those in the App's \
                 settings, and install one of them with `cargo xtask rotate-key`"
                    .to_owned()
            }
            ErrorKind::ClockSkew { seconds: 0 } => {
                "this machine's clock and GitHub's differ: synchronise it (chrony, systemd-timesyncd)".to_owned()
            }
            ErrorKind::ClockSkew { seconds } => format!(
                "this machine's clock is {} s {}: synchronise it (chrony, systemd-timesyncd)",
                seconds.abs(),
                if *seconds > 0 { "ahead" } else { "behind" }
            ),
            ErrorKind::UnknownApp => "GitHub has no App with that id: compare [app] in kiln.toml with the App's settings".into(),
            ErrorKind::NotInstalled => {
                "install the App in the organization, and compare `organization` in kiln.toml with its login".to_owned()
            }
            ErrorKind::Suspended => "an owner of the organization can unsuspend it in the organization's settings".to_owned(),
            ErrorKind::MissingPermission { accepted } => format!(
                "grant the App the permission (one of: {accepted}) in its settings, and accept it in the organization"
            ),
            ErrorKind::Connect | ErrorKind::Timeout => {
                "check that this machine can reach GitHub (proxy, firewall), and that `[github]` in kiln.toml names the host"
                    .to_owned()
            }
            ErrorKind::Redirected => "`api_url` must be the URL of GitHub's API itself, not one that redirects to it".to_owned(),
            ErrorKind::Tls => {
                "the certificate of GitHub's host is not trusted by this machine, or there is no HTTPS on that port"
                    .to_owned()
            }
            // "Runner group 1 has reached max limit of 10000 runners": seen at GitHub in 2026-08 (ubicloud/ubicloud#6102).
            ErrorKind::Validation if self.message.contains("max limit") => {
                "a runner group holds ten thousand runners, offline ones too: `cargo xtask status --fix` deletes those of this \
                 fleet whose instance is gone"
                    .to_owned()
            }
            ErrorKind::RateLimited { retry_after } => {
                format!("GitHub's limit for the App is used up; try again in {} s", retry_after.as_secs())
            }
            _ => return None,
        })
    }

    pub(crate) fn signing(operation: &str, error: SignError) -> Self {
        Self {
            operation: operation.to_owned(),
            kind: ErrorKind::Sign { retryable: error.retryable },
            message: "no signature".to_owned(),
            request_id: None,
            source: Some(Box::new(error)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GitHub: {}: {}", self.operation, self.message)?;
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
