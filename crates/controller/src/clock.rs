//! Time: what is written down is in milliseconds since 1970, and advances with tokio's clock, so that a test can stop it and a
//! step of the machine's clock is not noticed while the controller runs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A moment, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// How long ago `earlier` was; nothing where it is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// A later moment.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// The clock of one run of the controller.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    began: Instant,
    at: Timestamp,
}

impl Clock {
    /// A clock that begins with the machine's.
    pub fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(Timestamp::default().plus(since))
    }

    /// A clock that begins at a moment given.
    pub fn starting_at(at: Timestamp) -> Self {
        Self { began: Instant::now(), at }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        self.at.plus(self.began.elapsed())
    }

    /// tokio's name for a moment.
    pub fn instant(&self, at: Timestamp) -> Instant {
        self.began + at.since(self.at)
    }
}
