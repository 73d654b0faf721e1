//! The App's keys in a key store: the current one, the previous one, and the record of each.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use kiln_config::model::KeyStore;
use kiln_github::Fingerprint;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A point in time with a resolution of one second, as it is written to tags.
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

    /// Adds days.
    #[must_use]
    pub fn plus_days(self, days: u32) -> Self {
        Self(self.0 + DAY * days)
    }

    /// Adds a duration.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0 + span)
    }

    /// Whole days since another time; 0 if that is in the future.
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

/// The record of a key, which Kiln writes to a tag in the store. Later runs resume from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyRecord {
    /// When the key became the current one.
    pub since: Option<Timestamp>,
    /// When GitHub last accepted it.
    pub proved: Option<Timestamp>,
    /// Until when it is kept, unless it is the current key of a store in use.
    pub keep_until: Option<Timestamp>,
    /// When a rollback replaced it.
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

    /// Reads a tag's value. Ignores unknown or unreadable parts: a person may have edited the tag.
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

/// The tag's value, with characters that every service accepts. At most 130 characters; the limit is 256.
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
    /// The store's id: a KMS key id, or a version id of the secret.
    pub id: String,
    /// The fingerprint of the public key, as GitHub shows it.
    pub fingerprint: Fingerprint,
}

/// Whether a key can sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Yes.
    Usable,
    /// Not yet: an interrupted run created the KMS key or secret but did not import the App's key.
    Unfinished,
    /// No: it is disabled.
    Disabled,
    /// No longer: the store will delete it at this time.
    Leaving(Option<Timestamp>),
}

/// A key in a store, with its state and record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldKey {
    pub key: StoredKey,
    /// Whether it can sign.
    pub state: KeyState,
    /// The record in the store.
    pub record: KeyRecord,
    /// When it was added to the store.
    pub created: Option<Timestamp>,
    /// Whether Kiln added it. Kiln uses other keys, but never tags or deletes them.
    pub managed: bool,
}

impl HeldKey {
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.key.fingerprint
    }

    /// Whether it can sign.
    pub fn is_usable(&self) -> bool {
        self.state == KeyState::Usable
    }

    /// Since when it is the current one; otherwise when it was added.
    pub fn since(&self) -> Option<Timestamp> {
        self.record.since.or(self.created)
    }
}

/// All keys of the App in a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreContents {
    /// The key that instances sign with.
    pub current: Option<HeldKey>,
    /// The former key, which instances try if GitHub refuses the current one. Never equal to the current one.
    pub previous: Option<HeldKey>,
    /// Staged, replaced or unfinished keys, and keys that are being deleted.
    pub others: Vec<HeldKey>,
}

impl StoreContents {
    /// Every key.
    pub fn all(&self) -> impl Iterator<Item = &HeldKey> {
        self.current.iter().chain(&self.previous).chain(&self.others)
    }

    /// The current key, if it can sign.
    pub fn serving(&self) -> Option<&HeldKey> {
        self.current.as_ref().filter(|key| key.is_usable())
    }

    /// The key with this fingerprint that can sign, whatever its role.
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
