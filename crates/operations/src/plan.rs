//! A plan: what a command would do, as data. The dry run prints it, and the real run prints and applies the same one.

use std::fmt;

use crate::error::Error;
use crate::ports::Progress;

/// Steps in order. None of them is needed when the world is as wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<S> {
    /// What the plan is about: "image al2-x86_64", "fleet linux".
    pub subject: String,
    /// In order.
    pub steps: Vec<S>,
    /// What an empty plan means here, in a sentence: "ami-… holds these inputs already".
    pub settled: String,
}

impl<S> Plan<S> {
    /// Is there nothing to do?
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl<S: fmt::Display> Plan<S> {
    /// The same in words, for whoever shows it and knows no step's type.
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

/// How far a plan is carried out: each step is told as it begins, and a failure tells which were done before it.
pub(crate) struct Tally<'a> {
    progress: &'a dyn Progress,
    of: usize,
    /// The first line of each step that has begun.
    begun: Vec<String>,
}

impl<'a> Tally<'a> {
    pub(crate) fn new<S>(plan: &Plan<S>, progress: &'a dyn Progress) -> Self {
        Self { progress, of: plan.steps.len(), begun: Vec::new() }
    }

    /// The next step begins, the one before it is done.
    pub(crate) fn begin(&mut self, text: &str) {
        self.begun.push(first_line(text).to_owned());
        self.progress.step(self.begun.len(), self.of, text);
    }

    /// The failure of the step that began last.
    pub(crate) fn failed(&self, error: Error) -> Error {
        error.after(self.begun.split_last().map_or(&[], |(_, done)| done))
    }
}

/// What a step does, without its details.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
