//! A plan: what a command would do, as data. A dry run prints it; a real run prints the same plan and carries it out.

use std::fmt;

use crate::error::Error;
use crate::ports::Progress;

/// The steps of a command. Empty if the state is the desired one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<S> {
    /// What the plan is about: "image al2-x86_64", "fleet linux".
    pub subject: String,
    /// The steps, in the order in which they run.
    pub steps: Vec<S>,
    /// Why the plan is empty, as a sentence: "ami-… holds these inputs already".
    pub settled: String,
}

impl<S> Plan<S> {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl<S: fmt::Display> Plan<S> {
    /// The plan with its steps as text, for code that does not know the type of the steps.
    pub fn texts(&self) -> Plan<String> {
        Plan {
            subject: self.subject.clone(),
            steps: self.steps.iter().map(ToString::to_string).collect(),
            settled: self.settled.clone(),
        }
    }
}

impl<S: fmt::Display> fmt::Display for Plan<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "{}: nothing to do: {}", self.subject, self.settled);
        }
        write!(f, "{}:", self.subject)?;
        for (index, step) in self.steps.iter().enumerate() {
            let text = step.to_string();
            let mut lines = text.lines();
            write!(f, "\n  {}. {}", index + 1, lines.next().unwrap_or_default())?;
            for line in lines {
                write!(f, "\n     {line}")?;
            }
        }
        Ok(())
    }
}

/// Tracks the progress of a plan: prints each step when it begins, and adds the finished steps to a failure.
pub(crate) struct StepTracker<'a> {
    progress: &'a dyn Progress,
    of: usize,
    /// The first line of each step that has begun.
    begun: Vec<String>,
}

impl<'a> StepTracker<'a> {
    pub(crate) fn new<S>(plan: &Plan<S>, progress: &'a dyn Progress) -> Self {
        Self { progress, of: plan.steps.len(), begun: Vec::new() }
    }

    /// Marks the previous step as done and begins the next.
    pub(crate) fn begin(&mut self, text: &str) {
        self.begun.push(first_line(text).to_owned());
        self.progress.step(self.begun.len(), self.of, text);
    }

    /// Adds the finished steps to the error of the current step.
    pub(crate) fn failed(&self, error: Error) -> Error {
        error.after(self.begun.split_last().map_or(&[], |(_, done)| done))
    }
}

/// The first line of a step's text, without its details.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
