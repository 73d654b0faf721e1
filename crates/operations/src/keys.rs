//! What a store holds of the App's keys: which is current, which served before, and what is written beside each.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use kiln_config::model::KeyStore;
use kiln_github::Fingerprint;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A moment, to the second: what the stores' tags can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(SystemTime);

impl Timestamp {
    /// Now, by this machine's clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self::from_unix_secs(since.as_secs())
    }

    /// From seconds since 1970.
    pub fn from_unix_secs(secs: u64) -> Self {
        Self(SystemTime::UNIX_EPOCH + Duration::from_secs(secs))
    }

    /// So many days later.
    #[must_use]
    pub fn plus_days(self, days: u32) -> Self {
        Self(self.0 + DAY * days)
    }

    /// So much later.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0 + span)
    }

    /// Whole days since another moment; 0 where that is still to come.
    pub fn days_since(self, other: Self) -> u64 {
        self.0.duration_since(other.0).unwrap_or_default().as_secs() / DAY.as_secs()
    }

    /// `2026-11-24`.
    pub fn date(self) -> String {
        self.to_string().chars().take(10).collect()
    }

    /// `20:15 UTC`.
    pub fn time_of_day(self) -> String {
        let text = self.to_string();
        format!("{} UTC", text.get(11..16).unwrap_or_default())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_seconds(self.0))
    }
}

impl FromStr for Timestamp {
    type Err = humantime::TimestampError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_rfc3339(text).map(Self)
    }
}

/// What Kiln writes beside a key, in a tag of the store: it is what a later run goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyRecord {
    /// When it became the current one.
    pub since: Option<Timestamp>,
    /// When GitHub was last seen to accept it.
    pub proved: Option<Timestamp>,
    /// Until when it is kept, unless it is the current one of a store in use.
    pub keep_until: Option<Timestamp>,
    /// When it was rolled back from.
    pub rolled_back: Option<Timestamp>,
}

impl KeyRecord {
    fn parts(&self) -> [(&'static str, Option<Timestamp>); 4] {
        [
            ("since", self.since),
            ("proved", self.proved),
            ("keep-until", self.keep_until),
            ("rolled-back", self.rolled_back),
        ]
    }

    /// Reads a tag's value. What it does not know, or can't read, is as if it were not there: a person may have edited it.
    pub fn from_tag(text: &str) -> Self {
        let mut record = Self::default();
        for (name, value) in text.split_whitespace().filter_map(|part| part.split_once('=')) {
            let value = value.parse().ok();
            match name {
                "since" => record.since = value,
                "proved" => record.proved = value,
                "keep-until" => record.keep_until = value,
                "rolled-back" => record.rolled_back = value,
                _ => {}
            }
        }
        record
    }
}

/// A tag's value, of characters that every service takes; at most 130 of the 256 it may have.
impl fmt::Display for KeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, value) in self.parts().into_iter().filter_map(|(name, value)| Some((name, value?))) {
            write!(f, "{separator}{name}={value}")?;
            separator = " ";
        }
        Ok(())
    }
}

/// A key in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    pub store: KeyStore,
    /// What the store calls it: a KMS key id, a secret's version id.
    pub id: String,
    /// Of its public half, as GitHub shows it.
    pub fingerprint: Fingerprint,
}

/// Can a key sign?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Yes.
    Usable,
    /// Not yet: an interrupted run made its place but did not fill it.
    Unfinished,
    /// No, somebody has disabled it.
    Disabled,
    /// No more: the store deletes it then.
    Leaving(Option<Timestamp>),
}

/// A key in a store, with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldKey {
    pub key: StoredKey,
    /// Can it sign?
    pub state: KeyState,
    /// What was written beside it.
    pub record: KeyRecord,
    /// When it came into the store.
    pub created: Option<Timestamp>,
    /// Did Kiln put it there? Others' keys are used, never tagged nor deleted.
    pub managed: bool,
}

impl HeldKey {
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.key.fingerprint
    }

    /// Can it sign?
    pub fn is_usable(&self) -> bool {
        self.state == KeyState::Usable
    }

    /// Since when it is the current one, as far as anybody knows.
    pub fn since(&self) -> Option<Timestamp> {
        self.record.since.or(self.created)
    }
}

/// All keys of the App in a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreContents {
    /// What instances sign with.
    pub current: Option<HeldKey>,
    /// What they signed with before, and try where GitHub refuses the current one. Never the same as the current one.
    pub previous: Option<HeldKey>,
    /// Staged, displaced, half-made, or on their way out.
    pub others: Vec<HeldKey>,
}

impl StoreContents {
    /// Every key.
    pub fn all(&self) -> impl Iterator<Item = &HeldKey> {
        self.current.iter().chain(&self.previous).chain(&self.others)
    }

    /// What instances sign with now.
    pub fn serving(&self) -> Option<&HeldKey> {
        self.current.as_ref().filter(|key| key.is_usable())
    }

    /// A key that is whole, wherever in the store it is.
    pub fn usable(&self, fingerprint: &Fingerprint) -> Option<&HeldKey> {
        self.all().find(|held| held.fingerprint() == fingerprint && held.is_usable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_from_its_tag() {
        let at = |secs| Some(Timestamp::from_unix_secs(secs));
        let whole = KeyRecord { since: at(1), proved: at(1_763_000_000), keep_until: at(2), rolled_back: at(3) };
        for record in [whole, KeyRecord { proved: None, ..whole }, KeyRecord::default()] {
            let text = record.to_string();
            assert_eq!(KeyRecord::from_tag(&text), record, "{text}");
            assert!(text.len() <= 256);
            assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || " _.:/=+-@".contains(c)), "{text}");
        }
        assert_eq!(KeyRecord::from_tag("since=yesterday who=me proved"), KeyRecord::default());
    }

    #[test]
    fn days_are_whole_and_never_negative() {
        let then: Timestamp = "2026-11-24T20:15:00Z".parse().expect("a time");
        assert_eq!(then.plus_days(7).days_since(then), 7);
        assert_eq!(then.days_since(then.plus_days(7)), 0);
        assert_eq!((then.date().as_str(), then.time_of_day().as_str()), ("2026-11-24", "20:15 UTC"));
    }
}
