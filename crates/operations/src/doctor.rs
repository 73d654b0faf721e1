//! `cargo xtask doctor`: looks at every precondition, and says of each whether it holds, what is wrong, and how it is
//! mended.
//!
//! Nothing is changed. No finding keeps the next one from being looked for, so that one run tells of all that is wrong;
//! what can't be looked at, because something else is wrong, is a finding too.

mod account;
mod github;
pub mod rights;

pub use github::require_private_group;

use std::fmt;

use kiln_config::config::Config;

use crate::code::Code;
use crate::error::Error;
use crate::ports::{Account, Caller, Cloud};

/// How a precondition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It holds.
    Good,
    /// It holds, but a person should know something about it.
    Notice,
    /// It could not be looked at.
    Unknown,
    /// It does not hold.
    Wrong,
}

impl Verdict {
    /// As a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Notice => "note",
            Self::Unknown => "unknown",
            Self::Wrong => "wrong",
        }
    }
}

/// One precondition, looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which precondition; stable, for machines: `subnets`.
    pub check: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found, with the id of what it is about.
    pub what: String,
    /// How it is mended, unless it is good.
    pub hint: Option<String>,
    /// The failure behind it, where there is one.
    pub code: Option<Code>,
}

impl Finding {
    /// It holds.
    pub fn good(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, what: what.into(), hint: None, code: None }
    }

    /// It holds, with something to know.
    pub fn notice(check: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Notice, what: what.into(), hint: Some(hint.into()), code: None }
    }

    /// It does not hold.
    pub fn wrong(check: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Wrong, what: what.into(), hint: Some(hint.into()), code: None }
    }

    /// It could not be looked at.
    pub fn unknown(check: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Unknown, what: what.into(), hint: Some(hint.into()), code: None }
    }

    /// A look that failed.
    pub fn failed(check: &'static str, verdict: Verdict, error: &Error) -> Self {
        let mut what = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            let said = source.to_string();
            // Some say in their own message what lies below them.
            if !what.contains(&said) {
                what.push_str(": ");
                what.push_str(&said);
            }
            cause = source.source();
        }
        let hint = error.hint.clone().unwrap_or_else(|| "mend what is named, then look again".to_owned());
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

/// Looks at AWS and GitHub.
pub async fn examine(config: &Config, cloud: &(impl Cloud + Account)) -> Vec<Finding> {
    let caller = match cloud.caller().await {
        Ok(caller) => caller,
        Err(error) => {
            return vec![
                Finding::failed("credentials", Verdict::Wrong, &error.into()),
                Finding::unknown("account", "nothing of the AWS account was looked at", "mend the credentials first"),
                Finding::unknown("github", "nothing of GitHub was looked at: the App's key is in AWS", "the same"),
            ];
        }
    };
    let Caller { arn, account, .. } = &caller;
    let mut findings = vec![Finding::good("credentials", format!("{arn}, account {account}, {}", config.region))];
    findings.extend(account::examine(config, &caller, cloud).await);
    findings.extend(github::examine(config, cloud).await);
    findings
}
