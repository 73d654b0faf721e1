//! Brings a CloudFormation stack to its desired state. The two are compared first: if they are equal, no mutating call is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::code::Code;
use crate::error::{Error, Result};
use crate::json_diff::{Change, changes};
use crate::ports::{
    ChangeSet, Confirmation, Consent, Progress, ResourceChange, Stack, StackEvent, StackRequest, Stacks,
};
use crate::wait::{PollBackoff, human};

/// How long a stack operation may take. A NAT gateway and an Auto Scaling group with its first instances need minutes.
/// CloudFormation itself waits six hours for a group; the next run of the command resumes the wait.
pub const STACK_LIMIT: Duration = Duration::from_secs(3600);

/// The step that brings a stack to its desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackStep {
    /// The desired state.
    pub request: StackRequest,
    /// How the stack differs from it.
    pub difference: Difference,
}

/// How a stack differs from its desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// There is no stack.
    Absent,
    /// The stack's creation or deletion failed: it must be deleted and created again.
    Dead {
        /// `ROLLBACK_COMPLETE`…
        status: String,
        /// The reason of the first failure, if it is known.
        reason: String,
    },
    /// Template, parameters or tags differ.
    Changed {
        /// The template's text differs.
        template: bool,
        /// The parameters that differ.
        parameters: Vec<ValueChange>,
        /// The stack's tags that differ.
        tags: Vec<ValueChange>,
    },
}

/// Name, current value (if any), desired value (if any).
pub type ValueChange = (String, Option<String>, Option<String>);

impl Difference {
    /// Whether this changes the template or one of the named parameters.
    pub fn touches(&self, names: &[&str]) -> bool {
        match self {
            Self::Absent | Self::Dead { .. } => true,
            Self::Changed { template, parameters, .. } => {
                *template || parameters.iter().any(|(name, _, _)| names.contains(&name.as_str()))
            }
        }
    }
}

impl fmt::Display for StackStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.request.name;
        match &self.difference {
            Difference::Absent => {
                write!(f, "create stack {name}")?;
                self.supplied(f)
            }
            Difference::Dead { status, reason } => {
                write!(
                    f,
                    "delete stack {name}, which is in {status} and has no instance in service, and create it again"
                )?;
                write!(f, "\n{reason}")?;
                self.supplied(f)
            }
            Difference::Changed { template, parameters, tags } => {
                write!(f, "update stack {name}")?;
                if *template {
                    f.write_str("\n~ template")?;
                }
                for (parameter, now, wanted) in parameters {
                    match now.as_deref().zip(wanted.as_deref()).and_then(|(now, wanted)| changes(now, wanted)) {
                        Some(places) => {
                            for Change { path, now, wanted } in places {
                                let variable = path.split('.').next() == Some("environment");
                                let text = |value: serde_json::Value| match variable {
                                    true => masked(value).to_string(),
                                    false => value.to_string(),
                                };
                                let [now, wanted] = [now, wanted].map(|value| value.map(text));
                                change(f, &format!("{parameter}: {path}"), now.as_deref(), wanted.as_deref())?;
                            }
                        }
                        None => change(f, parameter, now.as_deref(), wanted.as_deref())?,
                    }
                }
                for (tag, now, wanted) in tags {
                    change(f, &format!("tag {tag}"), now.as_deref(), wanted.as_deref())?;
                }
                Ok(())
            }
        }
    }
}

impl StackStep {
    /// The parameters of a new stack.
    fn supplied(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An empty parameter means that the feature is off.
        for (parameter, value) in self.request.parameters.iter().filter(|(_, value)| !value.is_empty()) {
            write!(f, "\n+ {parameter} = {}", shown(value))?;
        }
        Ok(())
    }
}

fn change(f: &mut fmt::Formatter<'_>, what: &str, now: Option<&str>, wanted: Option<&str>) -> fmt::Result {
    match (now, wanted) {
        (Some(now), Some(wanted)) => write!(f, "\n~ {what} = {} -> {}", shown(now), shown(wanted)),
        (None, Some(wanted)) => write!(f, "\n+ {what} = {}", shown(wanted)),
        (Some(now), None) => write!(f, "\n- {what} = {}", shown(now)),
        (None, None) => Ok(()),
    }
}

fn shown(value: &str) -> String {
    if value.is_empty() {
        return "\"\"".to_owned();
    }
    // Plans are printed in logs and comments, so they show only the names of environment variables.
    match serde_json::from_str::<serde_json::Value>(value) {
        Ok(mut document) if document["environment"].is_object() => {
            document["environment"] = masked(document["environment"].take());
            document.to_string()
        }
        _ => value.to_owned(),
    }
}

/// Hides the value of an environment variable, or the values of several: they may be secrets after all.
fn masked(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(variables) => {
            variables.into_iter().map(|(name, value)| (name, masked(value))).collect()
        }
        serde_json::Value::Null => serde_json::Value::Null,
        _ => "…".into(),
    }
}

/// The resource types in a template. It relies on the format of Kiln's templates: each type is on its own line.
pub fn resource_types(template: &str) -> BTreeSet<String> {
    let mut in_resources = false;
    let mut types = BTreeSet::new();
    for line in template.lines() {
        if !line.starts_with([' ', '#']) && !line.is_empty() {
            in_resources = line.trim_end() == "Resources:";
        }
        if let Some(kind) = line.strip_prefix("    Type: ").filter(|_| in_resources) {
            types.insert(kind.trim().to_owned());
        }
    }
    types
}

/// Compares a stack with its desired state; `None` if they are equal.
pub fn difference(stack: Option<&Stack>, wanted: &StackRequest) -> Option<Difference> {
    // A change set created this stack and was never executed, so the stack has no resources.
    let Some(stack) = stack.filter(|s| s.status != "REVIEW_IN_PROGRESS") else {
        return Some(Difference::Absent);
    };
    if is_dead(&stack.status) {
        let reason = stack.reason.clone().unwrap_or_else(|| "CloudFormation gives no reason".to_owned());
        return Some(Difference::Dead { status: stack.status.clone(), reason });
    }
    let template = !stack.template.as_deref().is_some_and(|now| is_same(now, &wanted.template));
    let parameters = changed(&stack.parameters, &wanted.parameters);
    let tags = changed(&stack.tags, &wanted.tags);
    let differs = template || !parameters.is_empty() || !tags.is_empty();
    differs.then_some(Difference::Changed { template, parameters, tags })
}

fn changed(now: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> Vec<ValueChange> {
    let names: BTreeSet<&String> = now.keys().chain(wanted.keys()).collect();
    let differs = |name: &&String| match (now.get(*name), wanted.get(*name)) {
        (Some(now), Some(wanted)) => !is_same(now, wanted),
        _ => true,
    };
    let change = |name: &String| (name.clone(), now.get(name).cloned(), wanted.get(name).cloned());
    names.into_iter().filter(differs).map(change).collect()
}

/// Whether a text that CloudFormation returns is the one that it received. CloudFormation replaces each non-ASCII letter with a
/// question mark.
///
/// Source: <https://github.com/aws-cloudformation/cloudformation-coverage-roadmap/issues/814>. The issue does not say
/// whether a mark stands for a letter or for one of its bytes, so a run of marks counts as one.
fn is_same(now: &str, wanted: &str) -> bool {
    let marked = |text: &str| {
        let mut marked = String::with_capacity(text.len());
        for letter in text.chars().map(|letter| if letter.is_ascii() { letter } else { '?' }) {
            if letter != '?' || !marked.ends_with('?') {
                marked.push(letter);
            }
        }
        marked
    };
    now == wanted || (!wanted.is_ascii() && marked(now) == marked(wanted))
}

/// Whether the stack's creation or deletion failed, so that it can only be deleted.
fn is_dead(status: &str) -> bool {
    matches!(status, "ROLLBACK_COMPLETE" | "ROLLBACK_FAILED" | "DELETE_FAILED")
}

/// A stack on which no operation is in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The stack does not exist.
    Absent,
    /// The stack can be updated, or is in review.
    Usable(Stack),
    /// The stack's creation or deletion failed. No instance is in service, and the stack can only be deleted.
    Dead(DeadStack),
}

/// A stack that can only be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadStack {
    /// The stack's name.
    pub name: String,
    /// `ROLLBACK_COMPLETE`…
    pub status: String,
    /// The reason of the first failure, if it is known.
    pub reason: String,
}

/// Checks, during a wait for a stack, why CloudFormation itself is waiting.
pub(crate) trait Beyond: Send {
    /// The reason why the wait can't succeed, if there is one.
    fn hopeless(&mut self, progress: &dyn Progress) -> impl Future<Output = Result<Option<String>>> + Send;
    /// Whether the stack already has an instance in service.
    fn serves(&self) -> impl Future<Output = Result<bool>> + Send;
}

/// Checks nothing.
struct Nothing;

impl Beyond for Nothing {
    async fn hopeless(&mut self, _: &dyn Progress) -> Result<Option<String>> {
        Ok(None)
    }
    async fn serves(&self) -> Result<bool> {
        Ok(true)
    }
}

/// Finds a stack. Waits for an operation that is in progress on it.
///
/// # Errors
/// [`crate::Kind::Precondition`] for a stack that a person must fix, [`crate::Kind::Timeout`] for one that stays in progress.
pub async fn find(cloud: &impl Stacks, name: &str, progress: &dyn Progress) -> Result<Found> {
    find_beyond(cloud, name, &mut Nothing, progress).await
}

/// Like [`find`], with a check of why the stack is in progress. A stack whose creation can't succeed, and that has no instance in
/// service, counts as dead.
pub(crate) async fn find_beyond(
    cloud: &impl Stacks,
    name: &str,
    beyond: &mut impl Beyond,
    progress: &dyn Progress,
) -> Result<Found> {
    let mut pace = PollBackoff::new(STACK_LIMIT);
    loop {
        let Some(stack) = cloud.stack(name).await? else { return Ok(Found::Absent) };
        match stack.status.as_str() {
            "REVIEW_IN_PROGRESS" => return Ok(Found::Usable(stack)),
            "CREATE_IN_PROGRESS" if !beyond.serves().await? => match beyond.hopeless(progress).await? {
                Some(reason) => return Ok(Found::Dead(DeadStack { name: stack.name, status: stack.status, reason })),
                None => wait_on(&mut pace, &stack, progress).await?,
            },
            status if status.ends_with("_IN_PROGRESS") => wait_on(&mut pace, &stack, progress).await?,
            status if can_be_updated(status) => return Ok(Found::Usable(stack)),
            status if is_dead(status) => {
                let reason = reason(cloud, &stack).await;
                return Ok(Found::Dead(DeadStack { name: stack.name, status: stack.status, reason }));
            }
            _ => return Err(broken(cloud, &stack).await),
        }
    }
}

async fn wait_on(pace: &mut PollBackoff, stack: &Stack, progress: &dyn Progress) -> Result<()> {
    let Stack { name, status, .. } = stack;
    progress.state(&format!("stack {name} is {status}: waiting for it"));
    pace.pause().await.map_err(|_| still_busy(name, status))
}

/// Reads a stack after any operation in progress on it has ended. Fails for a stack that can be neither updated nor created again.
/// If the stack's creation failed, its `reason` is the first failure.
///
/// # Errors
/// [`crate::Kind::Precondition`] for a stack that a person must fix, [`crate::Kind::Timeout`] for one that stays in progress.
pub async fn settled_stack(cloud: &impl Stacks, name: &str, progress: &dyn Progress) -> Result<Option<Stack>> {
    match find(cloud, name, progress).await? {
        Found::Absent => Ok(None),
        Found::Usable(stack) => Ok(Some(stack)),
        Found::Dead(DeadStack { name, status, reason }) => Ok(Some(Stack {
            name,
            status,
            reason: Some(reason),
            template: None,
            parameters: BTreeMap::new(),
            outputs: BTreeMap::new(),
            tags: BTreeMap::new(),
        })),
    }
}

/// Asks for confirmation, deletes a stack that has no instance in service, and waits until it is gone.
///
/// # Errors
/// [`crate::Kind::Precondition`] without a confirmation; [`crate::Kind::Failed`] if the stack can't be deleted;
/// [`crate::Kind::Timeout`].
pub async fn clear(
    cloud: &impl Stacks,
    dead: &DeadStack,
    consent: &dyn Consent,
    progress: &dyn Progress,
) -> Result<()> {
    let DeadStack { name, status, reason } = dead;
    agreed(consent, &format!("delete stack {name}, which is in {status} and has no instance in service?"), name)?;
    progress.say(&format!("its creation failed: {reason}"));
    delete(cloud, name, progress).await
}

/// Deletes a stack and prints its events until it is gone. Succeeds if the stack does not exist. First waits for any operation
/// that is in progress, including a deletion.
///
/// # Errors
/// [`crate::Kind::Failed`] with the first resource that could not be deleted; [`crate::Kind::Timeout`].
pub async fn delete(cloud: &impl Stacks, name: &str, progress: &dyn Progress) -> Result<()> {
    let mut seen: BTreeSet<String> = cloud.events(name).await?.into_iter().map(|event| event.id).collect();
    let mut pace = PollBackoff::new(STACK_LIMIT);
    let (mut asked, mut begun) = (false, false);
    loop {
        let Some(stack) = cloud.stack(name).await? else { return Ok(()) };
        // A creation need not end first: CloudFormation cancels it.
        let breaks_off = matches!(stack.status.as_str(), "REVIEW_IN_PROGRESS" | "CREATE_IN_PROGRESS");
        let under_way = stack.status.ends_with("_IN_PROGRESS") && !breaks_off;
        if !under_way && !asked {
            cloud.delete_stack(name).await?;
            asked = true;
        }
        // Right after the call the stack may still show how an earlier deletion ended.
        if asked && begun && stack.status == "DELETE_FAILED" {
            return Err(not_deleted(cloud, &stack).await);
        }
        for event in tell_new(cloud, name, &mut seen, progress).await? {
            pace.reset();
            begun |= asked && event.status.starts_with("DELETE");
        }
        progress.state(&format!("stack {name} is {}", stack.status));
        if pace.pause().await.is_err() {
            return Err(still_busy(name, &stack.status));
        }
    }
}

async fn not_deleted(cloud: &impl Stacks, stack: &Stack) -> Error {
    let events = cloud.events(&stack.name).await.unwrap_or_default();
    let begin = events
        .iter()
        .rposition(|event| event.kind == "AWS::CloudFormation::Stack" && event.status == "DELETE_IN_PROGRESS")
        .unwrap_or(0);
    let first = events[begin..].iter().find(|event| event.status == "DELETE_FAILED");
    let reason = first.map_or_else(
        || stack.reason.clone().unwrap_or_else(|| "CloudFormation gives no reason".to_owned()),
        |event| {
            format!("{} ({}): {}", event.resource, event.kind, event.reason.as_deref().unwrap_or("no reason given"))
        },
    );
    Error::new(Code::StackFailed, format!("stack `{}` can't be deleted: {reason}", stack.name))
        .hint("fix the cause that the error names (another resource may still use it), then run the command again")
}

/// Asks for confirmation. Any answer but yes is an error.
fn agreed(consent: &dyn Consent, question: &str, stack: &str) -> Result<()> {
    let what = question.trim_end_matches('?');
    match consent.ask(question) {
        Confirmation::Yes => Ok(()),
        Confirmation::No => Err(Error::new(Code::ConsentRefused, format!("you did not confirm: {what}"))
            .hint(format!("stack `{stack}` is unchanged"))),
        Confirmation::NonInteractive => {
            Err(Error::new(Code::ConsentMissing, format!("there is no terminal to confirm: {what}"))
                .hint(format!("stack `{stack}` is unchanged; `--yes` confirms this in advance")))
        }
    }
}

fn can_be_updated(status: &str) -> bool {
    // Source: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/view-stack-events.html
    matches!(
        status,
        "CREATE_COMPLETE"
            | "UPDATE_COMPLETE"
            | "UPDATE_ROLLBACK_COMPLETE"
            | "IMPORT_COMPLETE"
            | "IMPORT_ROLLBACK_COMPLETE"
            | "UPDATE_FAILED"
            | "CREATE_FAILED"
    )
}

fn still_busy(name: &str, status: &str) -> Error {
    Error::new(Code::StackTimeout, format!("stack `{name}` was still {status} after {}", human(STACK_LIMIT)))
        .hint("run the same command again: it keeps waiting, and resumes there")
}

async fn reason(cloud: &impl Stacks, stack: &Stack) -> String {
    match first_failure(cloud, &stack.name).await {
        Some(reason) => reason,
        None => stack.reason.clone().unwrap_or_else(|| "CloudFormation gives no reason".to_owned()),
    }
}

async fn broken(cloud: &impl Stacks, stack: &Stack) -> Error {
    let Stack { name, status, .. } = stack;
    let reason = reason(cloud, stack).await;
    let hint = match status.as_str() {
        "UPDATE_ROLLBACK_FAILED" => format!(
            "the previous instances are still in service; fix the cause that the error names, run `aws cloudformation \
             continue-update-rollback --stack-name {name}`, then run this command again"
        ),
        _ => format!("`aws cloudformation describe-stack-events --stack-name {name}` shows more"),
    };
    Error::new(Code::StackNotUpdatable, format!("stack `{name}` is in {status} and can't be updated: {reason}"))
        .hint(hint)
}

/// The reason of the first resource that failed in the latest operation. Later failures follow from it.
async fn first_failure(cloud: &impl Stacks, name: &str) -> Option<String> {
    let events = cloud.events(name).await.ok()?;
    let begin = events
        .iter()
        .rposition(|e| {
            e.kind == "AWS::CloudFormation::Stack"
                && matches!(e.status.as_str(), "CREATE_IN_PROGRESS" | "UPDATE_IN_PROGRESS")
        })
        .unwrap_or(0);
    events[begin..]
        .iter()
        .find(|e| e.status.ends_with("_FAILED"))
        .map(|e| format!("{} ({}): {}", e.resource, e.kind, e.reason.as_deref().unwrap_or("no reason given")))
}

/// Carries out a [`StackStep`]: creates a change set, prints and executes it, and prints the stack's events until the end.
///
/// # Errors
/// [`crate::Kind::Failed`] with the first failed resource's reason; [`crate::Kind::Timeout`].
pub async fn apply(cloud: &impl Stacks, step: &StackStep, progress: &dyn Progress) -> Result<()> {
    apply_agreed(cloud, step, &Always, progress).await
}

/// Confirms everything: for stacks whose resources can all be created again.
#[derive(Debug)]
struct Always;

impl Consent for Always {
    fn ask(&self, _: &str) -> Confirmation {
        Confirmation::Yes
    }
}

/// Like [`apply`], but asks before it replaces or removes a resource that runs jobs or holds data.
///
/// # Errors
/// [`crate::Kind::Precondition`] without a confirmation, and the change set is discarded; otherwise as [`apply`].
pub async fn apply_agreed(
    cloud: &impl Stacks,
    step: &StackStep,
    consent: &dyn Consent,
    progress: &dyn Progress,
) -> Result<()> {
    apply_beyond(cloud, step, &mut Nothing, consent, progress).await
}

/// Like [`apply_agreed`], but ends a wait that can't succeed.
pub(crate) async fn apply_beyond(
    cloud: &impl Stacks,
    step: &StackStep,
    beyond: &mut impl Beyond,
    consent: &dyn Consent,
    progress: &dyn Progress,
) -> Result<()> {
    let name = &step.request.name;
    if let Difference::Dead { status, reason } = &step.difference {
        let (name, status, reason) = (name.clone(), status.clone(), reason.clone());
        clear(cloud, &DeadStack { name, status, reason }, consent, progress).await?;
    }
    let before: BTreeSet<String> = match step.difference {
        Difference::Absent | Difference::Dead { .. } => BTreeSet::new(),
        Difference::Changed { .. } => cloud.events(name).await?.into_iter().map(|e| e.id).collect(),
    };
    let change_set = cloud.change_set(&step.request).await?;
    show(&change_set, progress);
    if change_set.changes.is_empty() {
        cloud.discard(&change_set).await?;
        return Ok(());
    }
    if let Some(question) = grave(&change_set)
        && let Err(error) = agreed(consent, &question, name)
    {
        cloud.discard(&change_set).await?;
        return Err(error);
    }
    cloud.execute(&change_set).await?;
    follow(cloud, name, before, beyond, progress).await
}

/// Resources that run jobs or hold data. Replacing one ends the jobs or loses the data.
///
/// Replacing a launch template, a role or a security group is harmless: running instances keep the old one.
const GRAVE: &[&str] = &[
    "AWS::AutoScaling::AutoScalingGroup",
    "AWS::EC2::NatGateway",
    "AWS::EC2::Subnet",
    "AWS::EC2::VPC",
    "AWS::KMS::Key",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SecretsManager::Secret",
];

/// The confirmation to ask for before a change set is executed, if it needs one.
pub fn grave(change_set: &ChangeSet) -> Option<String> {
    let what: Vec<String> = change_set
        .changes
        .iter()
        .filter(|change| GRAVE.contains(&change.kind.as_str()))
        .filter_map(|change| match (change.action.as_str(), change.replacement) {
            ("Remove", _) => Some(format!("remove {} ({})", change.resource, change.kind)),
            ("Modify", true) => Some(format!("replace {} ({})", change.resource, change.kind)),
            _ => None,
        })
        .collect();
    (!what.is_empty()).then(|| format!("in stack {}, {}?", change_set.stack, what.join(", ")))
}

fn show(change_set: &ChangeSet, progress: &dyn Progress) {
    if change_set.changes.is_empty() {
        progress.say(&format!("stack {}: CloudFormation sees no change", change_set.stack));
    }
    for ResourceChange { action, resource, kind, replacement, details } in &change_set.changes {
        let sign = match action.as_str() {
            "Add" => '+',
            "Remove" => '-',
            _ => '~',
        };
        let replaced = if *replacement { " (REPLACED)" } else { "" };
        let details = if details.is_empty() { String::new() } else { format!(": {}", details.join(", ")) };
        progress.say(&format!("{sign} {resource} ({kind}){replaced}{details}"));
    }
}

/// Prints the events that are not in `seen`, and returns them.
async fn tell_new(
    cloud: &impl Stacks,
    name: &str,
    seen: &mut BTreeSet<String>,
    progress: &dyn Progress,
) -> Result<Vec<StackEvent>> {
    let mut new = cloud.events(name).await?;
    new.retain(|event| seen.insert(event.id.clone()));
    for event in &new {
        let reason = event.reason.as_deref().filter(|r| !r.is_empty()).map(|r| format!(": {r}")).unwrap_or_default();
        progress.say(&format!("{} {} ({}){reason}", event.status, event.resource, event.kind));
    }
    Ok(new)
}

async fn follow(
    cloud: &impl Stacks,
    name: &str,
    mut seen: BTreeSet<String>,
    beyond: &mut impl Beyond,
    progress: &dyn Progress,
) -> Result<()> {
    let mut pace = PollBackoff::new(STACK_LIMIT);
    // Right after the call the stack may still show its previous state. Only a state that a new event reports is final.
    let mut told = String::new();
    loop {
        // The state is read before the events, so that the last round prints the last events.
        let Some(stack) = cloud.stack(name).await? else {
            return Err(Error::new(
                Code::StackDrifted,
                format!("stack `{name}` was deleted while it was being changed"),
            ));
        };
        for event in tell_new(cloud, name, &mut seen, progress).await? {
            pace.reset();
            if event.kind == "AWS::CloudFormation::Stack" && event.resource == name {
                told = event.status;
            }
        }
        let status = stack.status.as_str();
        let ended = status == told && !status.ends_with("_IN_PROGRESS");
        if ended && matches!(status, "CREATE_COMPLETE" | "UPDATE_COMPLETE") {
            return Ok(());
        }
        if ended {
            let reason = first_failure(cloud, name).await.or(stack.reason).unwrap_or_else(|| "no reason given".into());
            return Err(Error::new(Code::StackFailed, format!("stack `{name}` ended in {status}: {reason}"))
                .hint(after_failure(name, status)));
        }
        if matches!(status, "CREATE_IN_PROGRESS" | "UPDATE_IN_PROGRESS")
            && let Some(reason) = beyond.hopeless(progress).await?
        {
            return Err(no_end(name, status, &reason));
        }
        progress.state(&format!("stack {name} is {status}"));
        if pace.pause().await.is_err() {
            return Err(still_busy(name, status));
        }
    }
}

/// The hint for an operation that failed: what is left, and what to do.
fn after_failure(name: &str, status: &str) -> String {
    match status {
        "ROLLBACK_COMPLETE" | "ROLLBACK_FAILED" | "CREATE_FAILED" => {
            "no instance is in service. Fix the cause that the error names and run the same \
             command again: it deletes the stack and creates it again (`deploy` asks first, unless it is given `--yes`)"
                .to_owned()
        }
        "UPDATE_ROLLBACK_FAILED" => format!(
            "CloudFormation's rollback failed too; no instance was replaced. Fix the cause that the error names, run `aws \
             cloudformation continue-update-rollback --stack-name {name}`, then run this command again"
        ),
        _ => "CloudFormation rolled the stack back; fix the cause that the error names and run this command again"
            .to_owned(),
    }
}

fn no_end(name: &str, status: &str, reason: &str) -> Error {
    let then = if status == "CREATE_IN_PROGRESS" {
        "run the same command again: it deletes the stack, which has no instance in service, and creates it again"
    } else {
        "run the same command again"
    };
    Error::new(Code::LaunchesFail, format!("stack `{name}` is {status} and can't succeed: {reason}"))
        .hint(format!("{}; then {then}", crate::launches::HINT))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::ports;

    /// A stack whose creation never ends.
    struct Endless;

    impl Stacks for Endless {
        async fn stack(&self, name: &str) -> ports::Result<Option<Stack>> {
            Ok(Some(Stack {
                name: name.to_owned(),
                status: "CREATE_IN_PROGRESS".to_owned(),
                reason: None,
                template: None,
                parameters: BTreeMap::new(),
                outputs: BTreeMap::new(),
                tags: BTreeMap::new(),
            }))
        }
        async fn change_set(&self, request: &StackRequest) -> ports::Result<ChangeSet> {
            let change = ResourceChange {
                action: "Add".to_owned(),
                resource: "Group".to_owned(),
                kind: "AWS::AutoScaling::AutoScalingGroup".to_owned(),
                replacement: false,
                details: Vec::new(),
            };
            Ok(ChangeSet { id: "1".to_owned(), stack: request.name.clone(), changes: vec![change] })
        }
        async fn execute(&self, _: &ChangeSet) -> ports::Result<()> {
            Ok(())
        }
        async fn discard(&self, _: &ChangeSet) -> ports::Result<()> {
            Ok(())
        }
        async fn events(&self, _: &str) -> ports::Result<Vec<StackEvent>> {
            Ok(Vec::new())
        }
        async fn delete_stack(&self, _: &str) -> ports::Result<()> {
            Ok(())
        }
    }

    struct Silent;

    impl Progress for Silent {
        fn say(&self, _: &str) {}
        fn state(&self, _: &str) {}
    }

    /// Reports that the wait can't succeed after `looks` checks.
    struct After {
        looks: u32,
        serves: bool,
    }

    impl Beyond for After {
        async fn hopeless(&mut self, _: &dyn Progress) -> Result<Option<String>> {
            self.looks = self.looks.saturating_sub(1);
            Ok((self.looks == 0).then(|| "two launches in a row failed: no quota".to_owned()))
        }
        async fn serves(&self) -> Result<bool> {
            Ok(self.serves)
        }
    }

    #[test]
    fn a_plan_shows_the_names_of_variables_and_not_their_values() {
        let text = shown(r#"{"version":1,"environment":{"NPM_TOKEN":"hunter2","A":"b c"},"labels":["x"]}"#);
        assert!(text.contains("NPM_TOKEN") && !text.contains("hunter2") && !text.contains("b c"), "{text}");
        assert_eq!(shown("[1, 2]"), "[1, 2]");
        assert_eq!(shown(r#"{"a": 1}"#), r#"{"a": 1}"#);
    }

    #[tokio::test(start_paused = true)]
    async fn a_creation_without_an_end_in_sight_is_not_waited_for_an_hour() {
        let request = StackRequest {
            name: "kiln-acme-fleet-linux".to_owned(),
            template: String::new(),
            parameters: BTreeMap::new(),
            tags: BTreeMap::new(),
        };
        let step = StackStep { request, difference: Difference::Absent };
        let begun = Instant::now();
        let mut beyond = After { looks: 10, serves: false };
        let error = apply_beyond(&Endless, &step, &mut beyond, &Always, &Silent).await.unwrap_err();
        assert_eq!(error.code, Code::LaunchesFail);
        assert!(error.message.contains("no quota"), "{error}");
        assert!(error.hint.is_some_and(|hint| hint.contains("the same command again: it deletes the stack")));
        assert!(begun.elapsed() < Duration::from_secs(300));

        // The next run of the command does that.
        let mut beyond = After { looks: 1, serves: false };
        let found = find_beyond(&Endless, &step.request.name, &mut beyond, &Silent).await.unwrap();
        assert!(matches!(found, Found::Dead(DeadStack { reason, .. }) if reason.contains("no quota")));
        // Kiln does not touch a stack that has an instance in service.
        let mut beyond = After { looks: 1, serves: true };
        let error = find_beyond(&Endless, &step.request.name, &mut beyond, &Silent).await.unwrap_err();
        assert_eq!(error.code, Code::StackTimeout);
    }
}
