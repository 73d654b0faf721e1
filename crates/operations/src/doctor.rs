//! `cargo xtask doctor`: checks every precondition of the other commands, and says for each what is wrong and how to fix it.
//!
//! It changes nothing. A failed check does not prevent the next one, so one run shows all problems. A check that another problem
//! prevents is a finding, too.

mod account;
mod github;
pub mod rights;

pub use github::require_private_group;

use std::fmt;

use kiln_config::config::Config;

use crate::code::Code;
use crate::error::Error;
use crate::ports::{Account, Caller, Cloud};

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The precondition is met.
    Good,
    /// The precondition is met, but the user should know something about it.
    Notice,
    /// The check was not possible.
    Unknown,
    /// The precondition is not met.
    Wrong,
}

impl Verdict {
    /// The word that is printed.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Notice => "note",
            Self::Unknown => "unknown",
            Self::Wrong => "wrong",
        }
    }
}

/// A check and its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The stable name of the check, for machines: `subnets`.
    pub check: &'static str,
    /// The result.
    pub verdict: Verdict,
    /// What was found, with the id of the resource.
    pub what: String,
    /// How to fix the problem, if there is one.
    pub hint: Option<String>,
    /// The code of the underlying error, if there is one.
    pub code: Option<Code>,
}

impl Finding {
    /// The precondition is met.
    pub fn good(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, what: what.into(), hint: None, code: None }
    }

    /// The precondition is met, with a note.
    pub fn notice(check: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Notice, what: what.into(), hint: Some(hint.into()), code: None }
    }

    /// The precondition is not met.
    pub fn wrong(check: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Wrong, what: what.into(), hint: Some(hint.into()), code: None }
    }

    /// The check was not possible.
    pub fn unknown(check: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Unknown, what: what.into(), hint: Some(hint.into()), code: None }
    }

    /// The check failed with an error.
    pub fn failed(check: &'static str, verdict: Verdict, error: &Error) -> Self {
        let mut what = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            let said = source.to_string();
            // Some errors already include the messages of their sources.
            if !what.contains(&said) {
                what.push_str(": ");
                what.push_str(&said);
            }
            cause = source.source();
        }
        let hint = error
            .hint
            .clone()
            .unwrap_or_else(|| "fix the problem above, then run `cargo xtask doctor` again".to_owned());
        Self { check, verdict, what, hint: Some(hint), code: Some(error.code) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<16} {}", self.verdict.word(), self.check, self.what)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n{:<25} hint: {hint}", "")?;
        }
        Ok(())
    }
}

/// Checks AWS and GitHub.
pub async fn examine(config: &Config, cloud: &(impl Cloud + Account)) -> Vec<Finding> {
    let caller = match cloud.caller().await {
        Ok(caller) => caller,
        Err(error) => {
            return vec![
                Finding::failed("credentials", Verdict::Wrong, &error.into()),
                Finding::unknown("account", "the AWS account was not checked", "fix the credentials first"),
                Finding::unknown(
                    "github",
                    "GitHub was not checked: the App's key is in AWS",
                    "fix the credentials first",
                ),
            ];
        }
    };
    let Caller { arn, account, .. } = &caller;
    let mut findings = vec![Finding::good("credentials", format!("{arn}, account {account}, {}", config.region))];
    findings.extend(account::examine(config, &caller, cloud).await);
    findings.extend(github::examine(config, cloud).await);
    findings
}
