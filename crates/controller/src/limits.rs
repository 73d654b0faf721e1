//! What keeps the controller from calling too often: token buckets and growing pauses.

use std::time::Duration;

use crate::clock::Timestamp;

/// A token bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    size: f64,
    per_second: f64,
    level: f64,
    at: Timestamp,
}

impl Bucket {
    /// A full bucket.
    pub fn new(size: u32, per_second: f64, now: Timestamp) -> Self {
        Self { size: f64::from(size), per_second, level: f64::from(size), at: now }
    }

    /// Takes as many tokens as there are, at most `wanted`.
    pub fn take(&mut self, wanted: u32, now: Timestamp) -> u32 {
        self.fill(now);
        // The level is never negative, nor more than a u32.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ≤ level ≤ size")]
        let taken = wanted.min(self.level as u32);
        self.level -= f64::from(taken);
        taken
    }

    /// Gives tokens back that were not used.
    pub fn give_back(&mut self, tokens: u32) {
        self.level = (self.level + f64::from(tokens)).min(self.size);
    }

    /// The service has refused: it counts otherwise than we do.
    pub fn empty(&mut self, now: Timestamp) {
        self.fill(now);
        self.level = 0.0;
    }

    fn fill(&mut self, now: Timestamp) {
        self.level = (self.level + now.since(self.at).as_secs_f64() * self.per_second).min(self.size);
        self.at = self.at.max(now);
    }
}

/// Pauses that grow with each failure in a row, and end with a success.
#[derive(Debug, Clone)]
pub struct Pauses {
    steps: &'static [u64],
    /// Failures that are put up with before the first pause.
    spare: u32,
    failures: u32,
    until: Option<Timestamp>,
}

impl Pauses {
    /// Pauses of these lengths, in seconds; the last one is repeated.
    pub const fn new(steps: &'static [u64]) -> Self {
        Self { steps, spare: 0, failures: 0, until: None }
    }

    /// The same, after so many failures without a pause.
    pub const fn after(steps: &'static [u64], spare: u32) -> Self {
        Self { steps, spare, failures: 0, until: None }
    }

    /// It failed (again).
    pub fn fail(&mut self, now: Timestamp) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let Some(over) = self.failures.checked_sub(self.spare + 1) else { return Duration::ZERO };
        let last = self.steps.len().saturating_sub(1);
        let seconds = self.steps.get((over as usize).min(last)).copied().unwrap_or(60);
        let pause = Duration::from_secs(seconds);
        self.until = Some(now.plus(pause));
        pause
    }

    /// It worked.
    pub fn succeed(&mut self) {
        self.failures = 0;
        self.until = None;
    }

    /// Is there trouble that no success has ended?
    pub fn troubled(&self) -> bool {
        self.until.is_some()
    }

    /// Is a pause under way?
    pub fn paused(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// When the pause ends, if one is under way or over without a success since.
    pub fn until(&self) -> Option<Timestamp> {
        self.until
    }
}

/// How many calls of a kind may be in flight: one more with each success, half with each refusal.
#[derive(Debug, Clone)]
pub struct Window {
    size: f64,
    most: f64,
}

impl Window {
    /// Begins with `first`, grows to `most`.
    pub fn new(first: u32, most: u32) -> Self {
        Self { size: f64::from(first), most: f64::from(most) }
    }

    /// How many now.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 ≤ size ≤ most")]
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// A call went well.
    pub fn grow(&mut self) {
        self.size = (self.size + 1.0 / self.size).min(self.most);
    }

    /// A call was refused as one too many.
    pub fn shrink(&mut self) {
        self.size = (self.size / 2.0).max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1000)
    }

    #[test]
    fn a_bucket_gives_what_it_has_and_fills_again() {
        let mut bucket = Bucket::new(1000, 2.0, at(0));
        assert_eq!(bucket.take(990, at(0)), 990);
        assert_eq!(bucket.take(25, at(0)), 10);
        assert_eq!(bucket.take(25, at(0)), 0);
        assert_eq!(bucket.take(25, at(3)), 6);
        assert_eq!(bucket.take(2000, at(10_000)), 1000, "no more than its size");
        bucket.give_back(5);
        bucket.empty(at(10_000));
        assert_eq!(bucket.take(1, at(10_000)), 0);
        assert_eq!(bucket.take(1, at(9_000)), 0, "a clock that steps back fills nothing");
    }

    #[test]
    fn pauses_grow_and_a_success_ends_them() {
        let mut pauses = Pauses::after(&[60, 300], 2);
        assert_eq!(pauses.fail(at(0)), Duration::ZERO);
        assert_eq!(pauses.fail(at(0)), Duration::ZERO);
        assert!(!pauses.troubled());
        assert_eq!(pauses.fail(at(0)), Duration::from_secs(60));
        assert!(pauses.paused(at(59)) && !pauses.paused(at(60)) && pauses.troubled());
        assert_eq!(pauses.fail(at(60)), Duration::from_secs(300));
        assert_eq!(pauses.fail(at(400)), Duration::from_secs(300), "the last one is repeated");
        pauses.succeed();
        assert!(!pauses.paused(at(401)) && !pauses.troubled());
    }

    #[test]
    fn a_window_never_closes() {
        let mut window = Window::new(16, 32);
        for _ in 0..10 {
            window.shrink();
        }
        assert_eq!(window.size(), 1);
        for _ in 0..1000 {
            window.grow();
        }
        assert_eq!(window.size(), 32);
    }
}
