//! What IAM policies allow, asked of the emulator's own evaluator, conditions and all.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::aws::{ACCOUNT, REGION};

/// Run by the Python that the emulator is installed in.
const ASK: &str = include_str!("iam.py");

/// A call that someone means to make.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// `kms:Sign`
    pub action: String,
    /// The ARN of what it is about; `*` where the action knows none.
    pub resource: String,
    /// What else IAM knows of it: condition keys with one value or more.
    pub context: BTreeMap<String, Vec<String>>,
}

impl Call {
    /// A call about something.
    pub fn new(action: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { action: action.into(), resource: resource.into(), context: BTreeMap::new() }
    }

    /// The same, with a condition key's value. Given twice, the key has two values.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.context.entry(key.into()).or_default().push(value.into());
        self
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.action, self.resource)?;
        for (key, values) in &self.context {
            write!(f, ", {key}={}", values.join("+"))?;
        }
        Ok(())
    }
}

/// Policies of a role, as AWS would put them together.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// Identity policies: any of them may allow, none may deny.
    pub documents: Vec<Value>,
    /// Permissions boundaries: each must allow too.
    pub boundaries: Vec<Value>,
}

impl Policies {
    /// Policies without a boundary.
    pub fn new(documents: Vec<Value>) -> Self {
        Self { documents, boundaries: Vec::new() }
    }

    /// Of these calls, the ones that are allowed; in order.
    ///
    /// # Errors
    /// The evaluator can't be run: `python` is the one that the emulator is installed in.
    pub fn allowed<'a>(&self, python: &Path, calls: &'a [Call]) -> anyhow::Result<Vec<&'a Call>> {
        let question = |call: &Call| {
            let context = call.context.iter().map(|(key, values)| match values.as_slice() {
                [one] => (key.clone(), json!(one)),
                several => (key.clone(), json!(several)),
            });
            json!({
                "action": call.action,
                "resource": call.resource,
                "context": context.collect::<serde_json::Map<_, _>>(),
            })
        };
        let asked = json!({
            "account": ACCOUNT,
            "region": REGION,
            "principal": format!("arn:aws:sts::{ACCOUNT}:assumed-role/role/session"),
            "policies": self.documents,
            "boundaries": self.boundaries,
            "questions": calls.iter().map(question).collect::<Vec<_>>(),
        });
        let answers = ask(python, &asked)?;
        ensure!(answers.len() == calls.len(), "{} answers to {} questions", answers.len(), calls.len());
        Ok(calls.iter().zip(answers).filter(|(_, answer)| answer == "Allow").map(|(call, _)| call).collect())
    }

    /// Sees that each of the first calls is allowed and none of the second.
    ///
    /// # Errors
    /// Every call that is not as it should be.
    pub fn check(&self, python: &Path, allowed: &[Call], refused: &[Call]) -> anyhow::Result<()> {
        let all: Vec<Call> = allowed.iter().chain(refused).cloned().collect();
        let granted = self.allowed(python, &all)?;
        let missing = allowed.iter().filter(|call| !granted.contains(call)).map(|call| format!("not allowed: {call}"));
        let excess = refused.iter().filter(|call| granted.contains(call)).map(|call| format!("allowed: {call}"));
        let wrong: Vec<String> = missing.chain(excess).collect();
        ensure!(wrong.is_empty(), "the policies are not as they should be:\n{}", wrong.join("\n"));
        Ok(())
    }
}

fn ask(python: &Path, asked: &Value) -> anyhow::Result<Vec<String>> {
    // Isolated: nothing of this directory or environment is imported.
    let mut command = Command::new(python);
    command.args(["-I", "-c", ASK]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {}", python.display()))?;
    child.stdin.take().context("stdin is piped")?.write_all(asked.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the evaluator of policies ended with {}", output.status);
    serde_json::from_slice(&output.stdout).context("read the evaluator's answers")
}
