//! What `--json` prints: one document a command, with plan, result and error. `docs/output.schema.json` is made from this.

use std::collections::BTreeMap;
use std::fmt;

use kiln_config::config::ConfigError;
use kiln_operations::plan::Plan;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::failure::Account;

/// Grows when a field goes or changes its meaning, not when one is added.
const VERSION: u32 = 1;

/// The one document that a command prints on stdout with `--json`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(title = "What Kiln's commands print with --json")]
pub(crate) struct Document {
    /// The form's version. It grows when a field goes or changes its meaning, not when one is added.
    pub(crate) version: u32,
    /// Kiln's version.
    pub(crate) kiln: &'static str,
    /// The command: `deploy`.
    pub(crate) command: String,
    /// Was it a dry run?
    pub(crate) dry_run: bool,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// The process's exit code.
    pub(crate) exit_code: u8,
    /// One for each image, fleet or key that the command is about, as far as it came.
    pub(crate) plans: Vec<PlanReport>,
    /// What a person should know though nothing failed.
    pub(crate) warnings: Vec<String>,
    /// The command's data, by name; `cargo xtask COMMAND --help` names them.
    pub(crate) result: BTreeMap<String, Value>,
    /// Why it did not succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<ErrorReport>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// All of it was done.
    Done,
    /// Everything was as wanted already.
    NothingToDo,
    /// A dry run: `plans` hold what would be done.
    Planned,
    /// `error` tells why.
    Failed,
    /// Ctrl-C or SIGTERM; the same command again goes on from there.
    Interrupted,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::NothingToDo => "nothing-to-do",
            Self::Planned => "planned",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        })
    }
}

/// What would be done, or was begun.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct PlanReport {
    /// What it is about: `fleet linux`.
    pub(crate) subject: String,
    /// Why there is nothing to do, where there are no steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) settled: Option<String>,
    /// In order; none when everything is as wanted.
    pub(crate) steps: Vec<StepReport>,
}

/// One step.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct StepReport {
    /// In a line: `update stack kiln-acme-linux`.
    pub(crate) text: String,
    /// What of it changes, each with `+`, `-` or `~` in front.
    pub(crate) details: Vec<String>,
}

/// Why a command did not succeed.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ErrorReport {
    /// The stable name: `image-not-recorded`; `cargo xtask explain` lists them. Beside those, `usage` and `interrupted`.
    code: &'static str,
    /// How it is to be mended: `configuration`, `access`, `precondition`, `failed`, `timeout`, `due`, `other`,
    /// `usage`, `interrupted`.
    kind: &'static str,
    /// What happened.
    message: String,
    /// What lies below it, outermost first.
    causes: Vec<String>,
    /// Steps of the plan that were carried out before it.
    done: Vec<String>,
    /// What a person can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// What is wrong with kiln.toml, with places, where that is it.
    problems: Vec<ProblemReport>,
}

/// One thing that is wrong with kiln.toml.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ProblemReport {
    /// The file, as it was given.
    file: String,
    /// From one.
    line: usize,
    /// From one, in characters.
    column: usize,
    /// What is wrong.
    message: String,
    /// What was expected there.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    /// What a person may have meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Document {
    pub(crate) fn new(command: &str, dry_run: bool) -> Self {
        Self {
            version: VERSION,
            kiln: env!("CARGO_PKG_VERSION"),
            command: command.to_owned(),
            dry_run,
            outcome: Outcome::Done,
            exit_code: 0,
            plans: Vec::new(),
            warnings: Vec::new(),
            result: BTreeMap::new(),
            error: None,
        }
    }

    /// Is there, or was there, anything to do?
    pub(crate) fn changes(&self) -> bool {
        self.plans.iter().any(|plan| !plan.steps.is_empty())
    }

    /// How a command ended that did not fail.
    pub(crate) fn succeeded(&mut self) {
        self.outcome = match (self.dry_run, self.plans.is_empty(), self.changes()) {
            (true, _, _) => Outcome::Planned,
            (false, false, false) => Outcome::NothingToDo,
            (false, _, _) => Outcome::Done,
        };
    }

    /// How a command ended that did.
    pub(crate) fn failed(&mut self, account: Account, config: Option<&ConfigError>) {
        self.outcome = if account.kind == "interrupted" { Outcome::Interrupted } else { Outcome::Failed };
        self.exit_code = account.exit_code;
        let Account { code, kind, message, causes, done, hint, .. } = account;
        let problems = config.map(problems).unwrap_or_default();
        self.error = Some(ErrorReport { code, kind, message, causes, done, hint, problems });
    }
}

fn problems(config: &ConfigError) -> Vec<ProblemReport> {
    let problems = config.problems().map(|problem| ProblemReport {
        file: config.file().to_owned(),
        line: problem.line,
        column: problem.column,
        message: problem.message,
        expected: problem.expected,
        hint: problem.hint,
    });
    problems.collect()
}

impl<S: fmt::Display> From<&Plan<S>> for PlanReport {
    fn from(plan: &Plan<S>) -> Self {
        let steps = plan.steps.iter().map(|step| {
            let text = step.to_string();
            let mut lines = text.lines().map(str::to_owned);
            StepReport { text: lines.next().unwrap_or_default(), details: lines.collect() }
        });
        Self {
            subject: plan.subject.clone(),
            settled: plan.is_empty().then(|| plan.settled.clone()),
            steps: steps.collect(),
        }
    }
}

/// The schema, as it is committed.
pub fn schema() -> String {
    let schema = schemars::schema_for!(Document);
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
    text.push('\n');
    text
}
