//! What serde can't say of a document: texts that must not be empty, names that must differ, and the inputs of each action.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;

use super::{Action, Document, LoopOver, Phase, Problem, Step};

pub(super) fn check(document: &Document) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut problem = |path: String, message: &str| problems.push(Problem { path, message: message.to_owned() });
    for name in document.parameters.keys().filter(|name| !is_parameter_name(name)) {
        problem(format!("parameters[{name}]"), "not 3 to 128 letters, digits, - and _");
    }
    for (field, text) in [("name", &document.name), ("description", &document.description)] {
        if text.is_empty() {
            problem(field.to_owned(), "empty");
        }
    }
    if document.phases.is_empty() {
        problem("phases".to_owned(), "empty");
    }
    let mut names = BTreeSet::new();
    for phase in &document.phases {
        let path = format!("phases[{}]", phase.name);
        if !names.insert(phase.name) {
            problem(path.clone(), "there twice");
        }
        check_phase(&path, phase, &mut problem);
    }
    problems
}

/// Source: the pattern of a parameter's name in
/// <https://docs.aws.amazon.com/imagebuilder/latest/userguide/toe-user-defined-variables.html>.
fn is_parameter_name(name: &str) -> bool {
    (3..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn check_phase(path: &str, phase: &Phase, problem: &mut impl FnMut(String, &str)) {
    if phase.steps.is_empty() {
        problem(format!("{path}.steps"), "empty");
    }
    let mut names = BTreeSet::new();
    for (index, step) in phase.steps.iter().enumerate() {
        let path = format!("{path}.steps[{index}]");
        if !names.insert(&step.name) {
            problem(format!("{path}.name"), &format!("`{}` names another step of this phase already", step.name));
        }
        check_step(&path, step, problem);
    }
}

fn check_step(path: &str, step: &Step, problem: &mut impl FnMut(String, &str)) {
    if step.name.is_empty() {
        problem(format!("{path}.name"), "empty");
    }
    match step.r#loop.as_ref().map(|r#loop| &r#loop.over) {
        Some(LoopOver::For { update_by: 0, .. }) => problem(format!("{path}.loop.for.updateBy"), "0 never ends"),
        Some(LoopOver::Each(items)) if items.is_empty() => problem(format!("{path}.loop.forEach"), "empty"),
        _ => {}
    }
    if let Err(error) = check_inputs(step.action, &step.inputs) {
        problem(format!("{path}.inputs"), &format!("{} of {}", error, step.action));
    }
}

/// Fails with what is wrong with the inputs of an action.
fn check_inputs(action: Action, inputs: &Value) -> Result<(), String> {
    match action {
        Action::ExecuteBash => one::<Commands>(inputs).and_then(|inputs| not_empty("commands", &inputs.commands)),
        Action::S3Download => many::<S3Download>(inputs),
        Action::S3Upload => many::<S3Upload>(inputs),
        Action::WebDownload => many::<WebDownload>(inputs),
        Action::CreateFile => many::<CreateFile>(inputs),
        Action::UpdateOs => optional::<UpdateOs>(inputs),
        Action::Reboot => optional::<Reboot>(inputs),
        // Its keys are operators, which the executor knows.
        Action::Assert => match inputs.as_mapping() {
            Some(operators) if !operators.is_empty() => Ok(()),
            _ => Err("expected a mapping of operators as inputs".to_owned()),
        },
    }
}

fn one<T: DeserializeOwned>(inputs: &Value) -> Result<T, String> {
    serde_yaml_ng::from_value(inputs.clone()).map_err(|error| error.to_string())
}

fn many<T: DeserializeOwned>(inputs: &Value) -> Result<(), String> {
    one::<Vec<T>>(inputs).and_then(|items| not_empty("inputs", &items))
}

fn optional<T: DeserializeOwned>(inputs: &Value) -> Result<(), String> {
    if inputs.is_null() { Ok(()) } else { one::<T>(inputs).map(drop) }
}

fn not_empty<T>(name: &str, items: &[T]) -> Result<(), String> {
    if items.is_empty() { Err(format!("empty list of {name}")) } else { Ok(()) }
}

/// Declares the inputs of an action, in the words of a document.
///
/// Source: <https://docs.aws.amazon.com/imagebuilder/latest/userguide/toe-action-modules.html>.
macro_rules! inputs {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),+ $(,)? })+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Deserialize)]
            #[serde(deny_unknown_fields, rename_all = "camelCase")]
            #[allow(dead_code, reason = "the executor reads the inputs; here only their form counts")]
            struct $name { $($field: $kind),+ }
        )+
    };
}

/// A text that is not empty.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Text;

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() { Err("a text is empty") } else { Ok(Self) }
    }
}

/// Of the algorithms that Image Builder knows, those that still prove something.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Algorithm {
    Sha256,
    Sha512,
}

inputs! {
    Commands { commands: Vec<String> }
    S3Download { source: Text, destination: Text, expected_bucket_owner: Option<Text>, overwrite: Option<bool> }
    S3Upload { source: Text, destination: Text, recurse: Option<bool>, expected_bucket_owner: Option<Text> }
    /// Image Builder asks for neither checksum nor algorithm, and checks nothing unless both are there. Both are asked for
    /// here.
    WebDownload { source: Text, destination: Text, checksum: Text, algorithm: Algorithm, overwrite: Option<bool> }
    CreateFile {
        path: Text,
        content: Option<String>,
        encoding: Option<Text>,
        owner: Option<Text>,
        group: Option<Text>,
        permissions: Option<Text>,
        overwrite: Option<bool>,
    }
    UpdateOs { include: Option<Vec<String>>, exclude: Option<Vec<String>> }
    Reboot { delay_seconds: Option<u32> }
}
