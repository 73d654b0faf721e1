//! What a listener says of itself, as far as it can be believed.
//!
//! Its lines begin with a time, and a job's name is in two of them. A name can hold anything, line ends and times too, and some
//! ways a job ends are never told. So a job's lines are a hint, and the worker's process below the listener's is the fact: no
//! job runs without one. Whatever is still wrong for a moment is for the caller to ask GitHub about.

use std::time::Duration;

use tokio::time::Instant;

use crate::life::ListenerState;

/// A job that was announced, but has no worker: after so long it was none, or its end was not told. The runner tries to renew
/// a job for the first time for five minutes before it gives it up without a word.
///
/// Source: `RenewJobRequestAsync` and `RunAsync` in `Runner.Listener/JobDispatcher.cs` of actions/runner.
const NO_WORKER: Duration = Duration::from_secs(600);

/// The same for a job whose worker was there and is gone: the listener reports its end at once.
const WORKER_GONE: Duration = Duration::from_secs(60);

/// What the listener prints, in its own words.
///
/// Source: `Runner.Listener/Runner.cs:491`, `JobDispatcher.cs:378`, `:591` and `:701`, each after `{DateTime.UtcNow:u}: `.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Listening,
    Begins,
    Ends,
    Reconnected,
}

/// How a job can end.
///
/// Source: `TaskResult` in `Sdk/DTWebApi/WebApi/TaskResult.cs`.
const RESULTS: [&str; 6] = ["Succeeded", "SucceededWithIssues", "Failed", "Canceled", "Skipped", "Abandoned"];

/// What was heard and seen so far.
#[derive(Debug, Default)]
pub(super) struct ListenerOutput {
    online: bool,
    /// A job was announced, and no end of it: since when, or when its worker was last seen.
    announced: Option<Announced>,
    worker: bool,
    /// How many jobs have begun.
    jobs: u32,
    /// It has reached GitHub just now.
    reached: bool,
}

#[derive(Debug, Clone, Copy)]
struct Announced {
    since: Instant,
    had_worker: bool,
}

impl ListenerOutput {
    /// Takes in a line. Is it news, though nothing may have changed by it?
    pub(super) fn hears(&mut self, line: &str, has_worker: impl FnOnce() -> Option<bool>) -> bool {
        let event = event(line);
        self.reached |= matches!(event, Some(Event::Listening | Event::Begins | Event::Reconnected));
        match event {
            Some(Event::Listening) => self.online = true,
            Some(Event::Begins) => {
                self.announced = Some(Announced { since: Instant::now(), had_worker: false });
                self.jobs += 1;
            }
            Some(Event::Ends) => {
                self.announced = None;
                // A worker ends before its job's end is told: one that is there has another job, or the line lies.
                self.worker = has_worker().unwrap_or(false);
                // The end of a job is news though it was short: the idle time begins again.
                return true;
            }
            Some(Event::Reconnected) | None => {}
        }
        false
    }

    /// Has it reached GitHub since this was asked last?
    pub(super) fn take_reached(&mut self) -> bool {
        std::mem::take(&mut self.reached)
    }

    /// Takes in whether there is a worker; `None` where that can't be seen.
    pub(super) fn looks(&mut self, worker: Option<bool>) -> bool {
        let Some(worker) = worker else { return false };
        self.worker = worker;
        if worker && self.jobs == 0 {
            self.jobs = 1;
        }
        if let Some(announced) = &mut self.announced {
            let patience = if announced.had_worker { WORKER_GONE } else { NO_WORKER };
            if worker {
                *announced = Announced { since: Instant::now(), had_worker: true };
            } else if announced.since.elapsed() >= patience {
                tracing::warn!(phase = "serve", "the listener did not report the end of its job");
                self.announced = None;
            }
        }
        false
    }

    pub(super) fn heard(&self) -> ListenerState {
        let busy = self.announced.is_some() || self.worker;
        // The listener's complaints come another way.
        ListenerState { online: self.online, busy, jobs: self.jobs, unreachable: false }
    }
}

/// What a whole line says.
fn event(line: &str) -> Option<Event> {
    let said = after_time(line)?;
    if said == "Listening for Jobs" {
        return Some(Event::Listening);
    }
    if said == "Runner reconnected." {
        return Some(Event::Reconnected);
    }
    if said.starts_with("Running job: ") {
        return Some(Event::Begins);
    }
    let (_, result) = said.strip_prefix("Job ")?.rsplit_once(" completed with result: ")?;
    RESULTS.contains(&result).then_some(Event::Ends)
}

/// Does it complain, on stderr, that it can't reach GitHub? It tries on by itself, and says so when it has.
///
/// Source: `Runner.Listener/BrokerMessageListener.cs` of actions/runner, in `CreateSessionAsync` and `GetNextMessageAsync`.
pub(super) fn is_unreachable(line: &str) -> bool {
    after_time(line).is_some_and(|said| said.starts_with("Runner connect error: "))
}

/// What stands behind `2026-11-23 09:00:00Z: `, at the very beginning of a line.
fn after_time(line: &str) -> Option<&str> {
    const TIME: &str = "0000-00-00 00:00:00Z: ";
    let (time, said) = line.split_at_checked(TIME.len())?;
    let fits = |(found, wanted): (u8, u8)| if wanted == b'0' { found.is_ascii_digit() } else { found == wanted };
    time.bytes().zip(TIME.bytes()).all(fits).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-23 09:00:00Z: ";

    #[test]
    fn only_the_listeners_own_lines_are_events() {
        let of = |said: &str| event(&format!("{NOW}{said}"));
        assert_eq!(of("Listening for Jobs"), Some(Event::Listening));
        assert_eq!(of("Running job: build"), Some(Event::Begins));
        assert_eq!(of("Runner reconnected."), Some(Event::Reconnected));
        assert!(is_unreachable(&format!("{NOW}Runner connect error: no route. Retrying until reconnected.")));
        assert!(!is_unreachable("Runner connect error: no route") && !is_unreachable(&format!("{NOW}no route")));
        for result in RESULTS {
            assert_eq!(of(&format!("Job build completed with result: {result}")), Some(Event::Ends));
        }
        // A job's name can be any of them.
        for name in ["Listening for Jobs", "Running job: x", "Job x completed with result: Succeeded", "", "é√"] {
            assert_eq!(of(&format!("Running job: {name}")), Some(Event::Begins), "{name}");
            assert_eq!(of(&format!("Job {name} completed with result: Failed")), Some(Event::Ends), "{name}");
            if !name.is_empty() {
                assert_eq!(event(name), None, "{name}: no time before it");
            }
        }
        for line in [
            "√ Connected to GitHub",
            "Current runner version: '2.338.0'",
            "Listening for Jobs",
            "2026-11-23 09:00:00Z:Listening for Jobs",
            " 2026-11-23 09:00:00Z: Listening for Jobs",
            "2026-11-23T09:00:00Z: Listening for Jobs",
            "x2026-11-23 09:00:00Z: Listening for Jobs",
            "2026-11-23 09:00:00Z: Listening for Jobs now",
            "2026-11-23 09:00:00Z: Job x completed with result: Well",
            "2026-11-23 09:00:00Z: x completed with result: Succeeded",
            "2026-11-23 09:00:0√Z: Listening for Jobs",
            "2026-11-23 09:00:00Z: Runner reconnected. Not",
        ] {
            assert_eq!(event(line), None, "{line}");
        }
    }

    fn output() -> ListenerOutput {
        let mut output = ListenerOutput::default();
        output.hears(&format!("{NOW}Listening for Jobs"), || Some(false));
        assert_eq!(output.heard(), ListenerState { online: true, ..ListenerState::default() });
        output
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_heard_from_its_beginning_to_its_end() {
        let mut output = output();
        assert!(!output.hears(&format!("{NOW}Running job: build"), || None));
        assert!(output.heard().busy);
        output.looks(Some(true));
        assert!(output.heard().busy);
        assert!(
            output.hears(&format!("{NOW}Job build completed with result: Succeeded"), || Some(false)),
            "it is news"
        );
        assert!(!output.heard().busy);
        // Where no worker can be seen, the lines are all there is.
        output.hears(&format!("{NOW}Running job: build"), || None);
        output.looks(None);
        assert!(output.heard().busy);
        output.hears(&format!("{NOW}Job build completed with result: Succeeded"), || None);
        assert!(!output.heard().busy);
    }

    /// The name `x⏎2026-11-23 09:00:00Z: Job x completed with result: Succeeded`.
    #[tokio::test(start_paused = true)]
    async fn a_name_that_tells_the_end_of_its_job_is_found_out() {
        let mut output = output();
        output.hears(&format!("{NOW}Running job: x"), || Some(false));
        output.hears(&format!("{NOW}Job x completed with result: Succeeded"), || Some(false));
        output.looks(Some(true));
        assert!(output.heard().busy, "its worker is there");
        output.hears(&format!("{NOW}Job x completed with result: Succeeded"), || Some(true));
        assert!(output.heard().busy, "and there it stays");
        output.looks(Some(false));
        assert!(!output.heard().busy);
    }

    /// The name `x⏎2026-11-23 09:00:00Z: Running job: y`, at the end of the job; and jobs whose end is never told.
    #[tokio::test(start_paused = true)]
    async fn a_job_without_an_end_does_not_last_for_ever() {
        for (had_worker, patience) in [(false, NO_WORKER), (true, WORKER_GONE)] {
            let mut output = output();
            output.hears(&format!("{NOW}Running job: y"), || Some(false));
            if had_worker {
                output.looks(Some(true));
            }
            tokio::time::advance(patience - Duration::from_secs(1)).await;
            output.looks(Some(false));
            assert!(output.heard().busy, "{had_worker}");
            tokio::time::advance(Duration::from_secs(2)).await;
            output.looks(Some(false));
            assert!(!output.heard().busy, "{had_worker}");
        }
    }
}
