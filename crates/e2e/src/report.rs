//! A rehearsal as one page: what ran when, the plans, the boots, the requests. Nothing is loaded from elsewhere.

mod charts;
mod page;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::world::World;

/// Everything that the page shows.
#[derive(Debug, Clone)]
pub struct Report {
    /// When the rehearsal began.
    pub begun: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// What happened, in order.
    pub timeline: Vec<Span>,
    /// Each command, in order.
    pub commands: Vec<Ran>,
    /// Each instance's boot, in order.
    pub boots: Vec<Boot>,
    /// The pipeline's calls to AWS, by service.
    pub aws: BTreeMap<String, Calls>,
    /// All calls to GitHub, the instances' too, by endpoint.
    pub github: BTreeMap<String, Calls>,
}

/// Something that took its time.
#[derive(Debug, Clone)]
pub struct Span {
    /// When it began, from the rehearsal's begin.
    pub at: Duration,
    /// For how long.
    pub took: Duration,
    /// What it was.
    pub what: String,
    /// What kind of thing.
    pub kind: SpanKind,
}

/// Kinds of [`Span`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// A command that printed its plan and changed nothing.
    DryRun,
    /// A command.
    Command,
    /// A command that was refused, as it had to be.
    Refused,
    /// Something that was seen in the world.
    Event,
}

/// A command that ran.
#[derive(Debug, Clone)]
pub struct Ran {
    /// As it was typed.
    pub line: String,
    /// Its exit code.
    pub code: Option<i32>,
    /// For how long.
    pub took: Duration,
    /// Its plans, where it was asked for them.
    pub plans: Vec<Plan>,
    /// Its calls to AWS: how many, and how many of them meant to change something.
    pub calls: Calls,
    /// What it said.
    pub said: String,
}

/// A plan, as `--json` gives it.
#[derive(Debug, Clone, Deserialize)]
pub struct Plan {
    /// What it is about.
    pub subject: String,
    /// Why there is nothing to do.
    #[serde(default)]
    pub settled: Option<String>,
    /// In order.
    pub steps: Vec<Step>,
}

/// A step of a plan.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    /// In a line.
    pub text: String,
    /// What of it changes, each with a sign in front.
    #[serde(default)]
    pub details: Vec<String>,
}

/// Calls, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// Those that only look.
    pub reads: usize,
    /// Those that change something, or mean to.
    pub mutations: usize,
    /// Of all, those that were answered with an error.
    pub refused: usize,
}

impl Calls {
    /// Counts one more.
    pub fn add(&mut self, mutating: bool, status: u16) {
        *if mutating { &mut self.mutations } else { &mut self.reads } += 1;
        self.refused += usize::from(status >= 400);
    }

    fn all(self) -> usize {
        self.reads + self.mutations
    }
}

/// An instance's own account of its boot.
#[derive(Debug, Clone, Deserialize)]
pub struct Boot {
    /// The runner's name, which holds the instance's id.
    pub runner: String,
    /// From the process's start to a registered runner.
    pub ms: u64,
    /// Who am I, where am I.
    pub identify_ms: u64,
    /// What am I to be.
    pub configure_ms: u64,
    /// The App's key and GitHub's token.
    pub mint_ms: u64,
    /// A runner at GitHub.
    pub register_ms: u64,
    /// Processor time.
    pub cpu_ms: u64,
    /// The most memory it had.
    pub peak_kib: u64,
    /// Requests to GitHub.
    pub requests: u64,
}

impl Report {
    /// Writes the page, and the folder it is in.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, self.html())
    }

    /// The page.
    pub fn html(&self) -> String {
        page::page(self).into_string()
    }
}

/// The boots of every instance there was, from what their processes said.
pub(crate) fn boots(world: &World) -> Vec<Boot> {
    let instances = world.aws.instances().into_iter();
    let logs = instances.filter_map(|instance| std::fs::read_to_string(instance.log).ok());
    logs.flat_map(|log| log.lines().filter_map(registered).collect::<Vec<_>>()).collect()
}

fn registered(line: &str) -> Option<Boot> {
    serde_json::from_str(line.get(line.find('{')?..)?).ok()
}

/// Calls to AWS by service.
pub(crate) fn aws_calls(world: &World) -> BTreeMap<String, Calls> {
    let mut calls: BTreeMap<String, Calls> = BTreeMap::new();
    for request in world.aws.requests() {
        calls.entry(request.service).or_default().add(request.mutating, request.status);
    }
    calls
}

/// Calls to GitHub by endpoint.
pub(crate) fn github_calls(world: &World) -> BTreeMap<String, Calls> {
    let mut calls: BTreeMap<String, Calls> = BTreeMap::new();
    // Archives and the runner's own long polls are no part of the API.
    for request in world.github.requests().iter().filter(|request| request.path.contains("/api/")) {
        let endpoint = format!("{} {}", request.method, endpoint(&request.path));
        calls.entry(endpoint).or_default().add(request.method != "GET", request.status);
    }
    calls
}

/// A path without its query, with numbers in a placeholder's place.
fn endpoint(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let path = path.split_once("/api/v3").map_or(path, |(_, path)| path);
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    path.split('/').map(|part| if number(part) { "{id}" } else { part }).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_read_from_the_line_that_sums_it_up() {
        let line = r#"{"level":"INFO","message":"registered","runner":"linux-i-1","ms":30,"identify_ms":5,"configure_ms":1,"mint_ms":14,"register_ms":9,"requests":2,"cpu_ms":4,"peak_kib":5000}"#;
        assert_eq!(registered(line).map(|boot| (boot.runner, boot.mint_ms)), Some(("linux-i-1".to_owned(), 14)));
        assert!(registered(r#"{"message":"identified","ms":5}"#).is_none());
        assert!(registered("no JSON").is_none());
    }

    #[test]
    fn endpoints_are_told_without_what_differs() {
        let table =
            [("/api/v3/orgs/acme/actions/runners/17?x=1", "/orgs/acme/actions/runners/{id}"), ("/api/v3/app", "/app")];
        for (path, wanted) in table {
            assert_eq!(endpoint(path), wanted);
        }
    }
}
