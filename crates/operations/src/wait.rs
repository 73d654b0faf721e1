//! Polling with growing pauses, until a timeout.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause between two polls. It is short because on a second run the condition is often met at once.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause. A delay of 15 s does not matter in waits of minutes, and AWS throttles the describe calls of Image Builder,
/// Auto Scaling and CloudFormation per account, which other pipelines share.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Only for tests, in which instances boot in milliseconds: shortens pauses and timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeScale {
    /// Divides the pauses between two polls.
    pub pauses: u32,
    /// Divides the timeouts.
    pub bounds: u32,
}

tokio::task_local! {
    static TEMPO: TimeScale;
}

impl TimeScale {
    /// The real pauses and timeouts.
    const REAL: Self = Self { pauses: 1, bounds: 1 };

    fn now() -> Self {
        TEMPO.try_with(|tempo| *tempo).unwrap_or(Self::REAL)
    }

    /// Runs a command with shortened waits.
    pub async fn run<F: Future>(self, command: F) -> F::Output {
        TEMPO.scope(self, command).await
    }
}

/// Shortens the timeout of a wait that does not use [`PollBackoff`].
pub(crate) fn bounded(bound: Duration) -> Duration {
    bound / TimeScale::now().bounds
}

/// Shortens the pause of a wait that does not use [`PollBackoff`].
pub(crate) fn paused(pause: Duration) -> Duration {
    pause / TimeScale::now().pauses
}

/// Pauses that grow by half, from 0.25 s to 15 s, until a timeout.
#[derive(Debug)]
pub struct PollBackoff {
    pause: Duration,
    deadline: Instant,
}

/// The timeout was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadlineExceeded;

impl PollBackoff {
    /// Starts a wait with a timeout of `bound`.
    pub fn new(bound: Duration) -> Self {
        Self { pause: paused(FIRST_PAUSE), deadline: Instant::now() + bounded(bound) }
    }

    /// Sleeps until the next poll is due.
    ///
    /// # Errors
    /// [`DeadlineExceeded`] if the timeout was reached before this call. The caller always polls once more after the last pause.
    pub async fn pause(&mut self) -> Result<(), DeadlineExceeded> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err(DeadlineExceeded);
        }
        tokio::time::sleep(self.pause.min(self.deadline - now)).await;
        self.pause = (self.pause * 3 / 2).min(paused(LONGEST_PAUSE));
        Ok(())
    }

    /// Starts again with short pauses, because something changed.
    pub fn reset(&mut self) {
        self.pause = paused(FIRST_PAUSE);
    }
}

/// Formats a duration: `48 h`, `90 min`, `30 s`.
pub fn human(duration: Duration) -> String {
    let secs = duration.as_secs();
    match secs {
        s if s >= 3600 && s.is_multiple_of(3600) => format!("{} h", s / 3600),
        s if s >= 60 && s.is_multiple_of(60) => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_bound_and_looks_once_more_there() {
        let start = Instant::now();
        let mut pace = PollBackoff::new(Duration::from_secs(60));
        let mut looks = 0;
        while pace.pause().await.is_ok() {
            looks += 1;
            assert!(looks < 100, "the wait does not end");
        }
        assert_eq!(start.elapsed().as_secs(), 60);
        assert!(looks > 8, "{looks} looks in a minute is too few to notice progress");
    }
}
