//! Waiting for something that takes its time, with a bound.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause between two looks. Short, because what was waited for is often there at once on a second run.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause: an answer fifteen seconds late is not noticed in waits of minutes, and Image Builder's, Auto
/// Scaling's and CloudFormation's describe calls are throttled per account, which other pipelines share.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How much faster time runs than in AWS, in a world whose instances boot in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tempo {
    /// Pauses between two looks are so many times shorter.
    pub pauses: u32,
    /// Bounds are so many times shorter.
    pub bounds: u32,
}

tokio::task_local! {
    static TEMPO: Tempo;
}

impl Tempo {
    /// AWS's own.
    const REAL: Self = Self { pauses: 1, bounds: 1 };

    fn now() -> Self {
        TEMPO.try_with(|tempo| *tempo).unwrap_or(Self::REAL)
    }

    /// Runs a command in such a world: every wait in it is as much shorter.
    pub async fn run<F: Future>(self, command: F) -> F::Output {
        TEMPO.scope(self, command).await
    }
}

/// A bound of a wait that is not a [`Pace`], at the present tempo.
pub(crate) fn bounded(bound: Duration) -> Duration {
    bound / Tempo::now().bounds
}

/// A pause that is not a [`Pace`]'s, at the present tempo.
pub(crate) fn paused(pause: Duration) -> Duration {
    pause / Tempo::now().pauses
}

/// Pauses that grow by half from a quarter of a second to fifteen seconds, until a bound.
#[derive(Debug)]
pub struct Pace {
    pause: Duration,
    deadline: Instant,
}

/// The bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired;

impl Pace {
    /// Starts a wait of at most `bound`.
    pub fn new(bound: Duration) -> Self {
        Self { pause: paused(FIRST_PAUSE), deadline: Instant::now() + bounded(bound) }
    }

    /// Sleeps until the next look is due.
    ///
    /// # Errors
    /// [`Expired`] when the bound was reached before this call; the last look always comes after the last pause.
    pub async fn pause(&mut self) -> Result<(), Expired> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err(Expired);
        }
        tokio::time::sleep(self.pause.min(self.deadline - now)).await;
        self.pause = (self.pause * 3 / 2).min(paused(LONGEST_PAUSE));
        Ok(())
    }

    /// Something changed: look again soon.
    pub fn quicken(&mut self) {
        self.pause = paused(FIRST_PAUSE);
    }
}

/// A duration as a person says it: `48 h`, `90 min`, `30 s`.
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
        let mut pace = Pace::new(Duration::from_secs(60));
        let mut looks = 0;
        while pace.pause().await.is_ok() {
            looks += 1;
            assert!(looks < 100, "the wait does not end");
        }
        assert_eq!(start.elapsed().as_secs(), 60);
        assert!(looks > 8, "{looks} looks in a minute is too few to notice progress");
    }
}
