//! Formats and parses points in time.

use std::time::{Duration, SystemTime};

/// A day.
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Parses RFC 3339, the format of GitHub and EC2.
pub fn parse(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

/// `2026-12-20T08:00:00Z`.
pub fn stamp(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

/// `2026-12-20`, in UTC.
pub fn date(at: SystemTime) -> String {
    stamp(at).chars().take(10).collect()
}

/// Whole days from one point to a later one; 0 when it is not later.
pub fn days_between(from: SystemTime, to: SystemTime) -> u64 {
    to.duration_since(from).unwrap_or_default().as_secs() / DAY.as_secs()
}

/// `42 days`, `1 day`.
pub fn days(count: u64) -> String {
    format!("{count} {}", if count == 1 { "day" } else { "days" })
}

/// Formats an age: `42 days`, `5 h`, `12 min`.
pub fn age(from: SystemTime, now: SystemTime) -> String {
    let secs = now.duration_since(from).unwrap_or_default().as_secs();
    match secs {
        s if s >= 2 * DAY.as_secs() => days(s / DAY.as_secs()),
        s if s >= 3600 => format!("{} h", s / 3600),
        s => format!("{} min", s / 60),
    }
}
