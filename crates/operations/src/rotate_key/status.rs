//! `rotate-key --status`: every key of the App in the stores, and whether GitHub accepts it now. Changes nothing.

use std::fmt;
use std::sync::Arc;

use kiln_config::config::Config;
use kiln_config::model::KeyStore;
use kiln_github::{App, AppSigner};
use serde_json::{Value, json};

use super::{Observed, ObservedStore, StoreUse, observe, prove};
use crate::code::Code;
use crate::deploy::key_names;
use crate::error::{Error, Kind, Result};
use crate::keys::{HeldKey, KeyState, Timestamp};
use crate::ports::Cloud;

/// The role of a key in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instances sign with it.
    Current,
    /// Instances signed with it before, and it is kept.
    Previous,
    /// Neither: staged, replaced, or being deleted.
    Other,
}

/// GitHub's answer to a signature of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// GitHub accepts it as the App's.
    Accepted,
    /// GitHub refuses it: it was deleted there, or is another App's.
    Refused(String),
    /// GitHub did not answer, or the store does not sign.
    Unknown(String),
}

/// A key and its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What uses the store's key.
    pub used: StoreUse,
    /// The key's role in the store.
    pub role: Role,
    /// The key.
    pub held: HeldKey,
    /// GitHub's answer.
    pub acceptance: Acceptance,
}

/// The state of all keys.
#[derive(Debug, Clone)]
pub struct Status {
    /// The time of the observation.
    pub now: Timestamp,
    /// Stores that are in use and have no key.
    pub empty: Vec<KeyStore>,
    /// The keys.
    pub rows: Vec<Row>,
    /// The URL of the App's settings, if GitHub accepted a key.
    pub settings_url: Option<String>,
}

/// Observes the stores, and checks every key that can sign at GitHub.
///
/// # Errors
/// AWS's errors. GitHub's answers are part of the status.
pub async fn status(config: &Config, cloud: &impl Cloud, now: Timestamp) -> Result<Status> {
    let Observed { stores, .. } = observe(config, cloud, now).await?;
    let names = key_names(config);
    let mut status = Status { now, empty: Vec::new(), rows: Vec::new(), settings_url: None };
    for ObservedStore { store, used, contents } in stores {
        if used != StoreUse::Unused && contents.serving().is_none() {
            status.empty.push(store);
        }
        let roles = [(Role::Current, contents.current), (Role::Previous, contents.previous)];
        let kept = roles.into_iter().filter_map(|(role, held)| Some((role, held?)));
        for (role, held) in kept.chain(contents.others.into_iter().map(|held| (Role::Other, held))) {
            let signer = match role {
                // As an instance does.
                Role::Current => cloud.current_signer(&names, store),
                Role::Previous | Role::Other => cloud.key_signer(&names, &held.key),
            };
            let (acceptance, app) = ask(config, &held, signer.into()).await;
            status.settings_url = status.settings_url.or(app.map(|app| app.settings_url(&config.github.url)));
            status.rows.push(Row { used, role, held, acceptance });
        }
    }
    Ok(status)
}

async fn ask(config: &Config, held: &HeldKey, signer: Arc<dyn AppSigner>) -> (Acceptance, Option<App>) {
    if !held.is_usable() {
        return (Acceptance::Unknown("it can't sign".to_owned()), None);
    }
    match prove(config, signer).await {
        Ok(app) => (Acceptance::Accepted, Some(app)),
        Err(error) if matches!(error.kind(), Kind::Access | Kind::Configuration) => {
            (Acceptance::Refused(error.message), None)
        }
        Err(error) => (Acceptance::Unknown(error.message), None),
    }
}

impl Row {
    fn serves(&self) -> bool {
        self.role == Role::Current && self.used != StoreUse::Unused
    }

    fn age_days(&self, now: Timestamp) -> Option<u64> {
        self.held.since().map(|since| now.days_since(since))
    }

    /// The key's state: until when it is kept, or when it is deleted.
    fn fate(&self, now: Timestamp) -> String {
        let record = &self.held.record;
        match (self.held.state, record.keep_until) {
            (KeyState::Leaving(Some(at)), _) => format!("deleted on {}", at.date()),
            (KeyState::Leaving(None), _) => "being deleted".to_owned(),
            (KeyState::Disabled, _) => "disabled".to_owned(),
            (KeyState::Unfinished, _) => "not imported yet".to_owned(),
            (KeyState::Usable, _) if self.serves() => match self.age_days(now) {
                Some(days) => format!("in use for {days} day(s)"),
                None => "in use".to_owned(),
            },
            (KeyState::Usable, Some(until)) if until <= now => format!("was kept until {}, due", until.date()),
            (KeyState::Usable, Some(until)) => format!("kept until {}", until.date()),
            (KeyState::Usable, None) if self.used == StoreUse::Unused => "used by no fleet".to_owned(),
            (KeyState::Usable, None) => "kept".to_owned(),
        }
    }

    fn json(&self, now: Timestamp) -> Value {
        let text = |moment: Option<Timestamp>| moment.map(|moment| moment.to_string());
        let HeldKey { key, state, record, .. } = &self.held;
        let (state, deleted_on) = match state {
            KeyState::Usable => ("usable", None),
            KeyState::Unfinished => ("unfinished", None),
            KeyState::Disabled => ("disabled", None),
            KeyState::Leaving(at) => ("pending-deletion", *at),
        };
        let (accepted, answer) = match &self.acceptance {
            Acceptance::Accepted => (Some(true), None),
            Acceptance::Refused(answer) => (Some(false), Some(answer)),
            Acceptance::Unknown(answer) => (None, Some(answer)),
        };
        json!({
            "store": key.store.to_string(),
            "used_by": match self.used {
                StoreUse::Configured => "fleets",
                StoreUse::Deployed => "deployed-instances",
                StoreUse::Unused => "nobody",
            },
            "role": match self.role {
                Role::Current => "current",
                Role::Previous => "previous",
                Role::Other => "other",
            },
            "fingerprint": key.fingerprint.to_string(),
            "id": key.id,
            "state": state,
            "since": text(self.held.since()),
            "age_days": self.age_days(now).filter(|_| self.serves()),
            "keep_until": text(record.keep_until),
            "rolled_back_at": text(record.rolled_back),
            "deleted_on": text(deleted_on),
            "recorded_accepted_at": text(record.proved),
            "accepted": accepted,
            "answer": answer,
        })
    }
}

impl Status {
    /// The JSON document: an object with `now`, `settings_url` and `keys`.
    pub fn to_json(&self) -> Value {
        let keys: Vec<Value> = self.rows.iter().map(|row| row.json(self.now)).collect();
        json!({ "now": self.now.to_string(), "settings_url": self.settings_url, "keys": keys })
    }

    /// Checks the keys in use.
    ///
    /// # Errors
    /// [`crate::Kind::Precondition`] if a store in use has no key, [`crate::Kind::Access`] if GitHub refuses a key in use,
    /// [`crate::Kind::Other`] if GitHub does not answer, [`crate::Kind::Due`] if a key is older than `max_age_days` or of unknown age.
    pub fn check(&self, max_age_days: Option<u32>) -> Result<()> {
        if let Some(store) = self.empty.first() {
            return Err(Error::new(Code::KeyNotInstalled, format!("no key is current in {store}"))
                .hint("run `cargo xtask rotate-key --pem FILE`: its first run installs the key"));
        }
        for row in self.rows.iter().filter(|row| row.serves()) {
            let (store, fingerprint) = (row.held.key.store, row.held.fingerprint());
            let what = |answer: &str| format!("key {fingerprint} in {store} is in use, but {answer}");
            match &row.acceptance {
                Acceptance::Accepted => {}
                Acceptance::Refused(answer) => {
                    return Err(Error::new(Code::GitHubBadKey, what(&format!("GitHub does not accept it: {answer}"))).hint(
                        "roll back with `cargo xtask rotate-key --rollback` while the former key is kept, or generate a key \
                         in the App's settings and install it with --pem",
                    ));
                }
                Acceptance::Unknown(answer) => {
                    return Err(Error::new(Code::KeyUnproved, what(&format!("it could not be checked: {answer}"))));
                }
            }
            let Some(most) = max_age_days else { continue };
            let age = row.age_days(self.now);
            if age.is_none_or(|age| age > u64::from(most)) {
                let age = age.map_or("for an unknown time".to_owned(), |age| format!("for {age} days"));
                let message = format!("key {fingerprint} has been in use in {store} {age}, more than {most}");
                return Err(Error::new(Code::Due, message).hint(
                    "generate a new key in the App's settings, and install it with `cargo xtask rotate-key --pem FILE`",
                ));
            }
        }
        Ok(())
    }
}

/// A table with one line for each key.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = |moment: Option<Timestamp>| moment.map_or("-".to_owned(), Timestamp::date);
        let mut line = |cells: [&str; 7]| {
            let [store, role, fingerprint, began, fate, accepted, proved] = cells;
            let text = format!("{store:16} {role:8} {fingerprint:51} {began:10} {fate:28} {accepted:8} {proved}");
            writeln!(f, "{}", text.trim_end())
        };
        line(["STORE", "KEY", "FINGERPRINT", "SINCE", "STATE", "ACCEPTED", "RECORDED"])?;
        for row in &self.rows {
            let role = match row.role {
                Role::Current => "current",
                Role::Previous => "previous",
                Role::Other => "other",
            };
            let accepted = match row.acceptance {
                Acceptance::Accepted => "yes",
                Acceptance::Refused(_) => "no",
                Acceptance::Unknown(_) => "-",
            };
            line([
                &row.held.key.store.to_string(),
                role,
                row.held.fingerprint().as_str(),
                &since(row.held.since()),
                &row.fate(self.now),
                accepted,
                &since(row.held.record.proved),
            ])?;
        }
        for store in &self.empty {
            writeln!(f, "{:16} no key", store.to_string())?;
        }
        Ok(())
    }
}
