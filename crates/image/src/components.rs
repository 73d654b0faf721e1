//! EC2 Image Builder's component documents: a typed model, and a validator, since Image Builder itself tells of most
//! mistakes only in the middle of a bake.
//!
//! Source of the rules: <https://docs.aws.amazon.com/imagebuilder/latest/userguide/toe-use-documents.html>,
//! <https://docs.aws.amazon.com/imagebuilder/latest/userguide/toe-action-modules.html> and
//! <https://docs.aws.amazon.com/imagebuilder/latest/userguide/toe-user-defined-variables.html>. Where Image Builder is
//! lenient and a bake would suffer from it, this is not: see [`Document::parse`].

mod checks;
mod references;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_yaml_ng::Value;

/// The documents of `ami/components`, by name, in the order in which a recipe uses them.
pub const COMPONENTS: [(&str, &str); 6] = [
    ("os", include_str!("../../../ami/components/os.yml")),
    ("runner", include_str!("../../../ami/components/runner.yml")),
    ("bootstrap", include_str!("../../../ami/components/bootstrap.yml")),
    ("manifest", include_str!("../../../ami/components/manifest.yml")),
    ("proof", include_str!("../../../ami/components/proof.yml")),
    ("cleanup", include_str!("../../../ami/components/cleanup.yml")),
];

/// The parameter by which a component that only lays files down can be pointed at another root than `/`. A component
/// that does not declare it needs a real machine.
pub const DEST_DIR: &str = "DestDir";

/// The longest document that `CreateComponent` takes inline, in characters.
///
/// Source: <https://docs.aws.amazon.com/imagebuilder/latest/APIReference/API_CreateComponent.html>
pub const MAX_CHARACTERS: usize = 16_000;

/// A mistake in a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Problem {
    /// Where: `phases[build].steps[2].inputs`; steps count from 0. `.` is the document as a whole.
    pub path: String,
    /// What is wrong, as a lower-case fragment.
    pub message: String,
}

/// A component document without a mistake.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Document {
    pub name: String,
    pub description: String,
    /// `1.0`, the only version there is.
    #[serde(deserialize_with = "schema_version")]
    pub schema_version: String,
    /// By name.
    #[serde(default, deserialize_with = "parameters")]
    pub parameters: BTreeMap<String, Parameter>,
    /// In the order they run.
    pub phases: Vec<Phase>,
}

/// A declared parameter.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    r#type: ParameterType,
    /// The value when none is given; a parameter without one must be given.
    #[serde(default, deserialize_with = "quoted")]
    pub default: Option<String>,
    pub description: String,
}

/// YAML reads an unquoted `0` or `true` as something else than a text.
fn quoted<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(Some(text)),
        _ => Err(D::Error::custom("expected a string as default: put it in quotes")),
    }
}

/// The only type of a parameter that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ParameterType {
    String,
}

/// A phase: `build` and `validate` run on the machine that becomes the image, `test` on one started from it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub name: PhaseName,
    /// In the order they run; never empty.
    pub steps: Vec<Step>,
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    /// Unique in its phase.
    pub name: String,
    pub action: Action,
    /// What its failure means.
    #[serde(default = "OnFailure::abort")]
    pub on_failure: OnFailure,
    /// How often it is tried.
    #[serde(default = "one_attempt", deserialize_with = "at_least_one")]
    pub max_attempts: u32,
    /// The timeout of one attempt. Image Builder's `-1`, no timeout, is refused.
    #[serde(default = "step_timeout", deserialize_with = "at_least_one")]
    pub timeout_seconds: u32,
    /// As the action wants them; references to parameters (`{{ Name }}`) are still in there.
    #[serde(default)]
    pub inputs: Value,
    /// The step runs once for each turn.
    pub r#loop: Option<Loop>,
}

fn one_attempt() -> u32 {
    1
}

/// Image Builder's own default.
fn step_timeout() -> u32 {
    7200
}

fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    std::num::NonZeroU32::deserialize(deserializer).map(std::num::NonZeroU32::get)
}

/// Unquoted, as in every example of AWS's, YAML reads the version as a number.
fn schema_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    if text == "1.0" { Ok(text) } else { Err(D::Error::custom("schemaVersion is not 1.0, the only one there is")) }
}

/// A document lists its parameters as mappings from one name to its settings.
fn parameters<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Parameter>, D::Error> {
    let mut parameters = BTreeMap::new();
    for item in Vec::<BTreeMap<String, Parameter>>::deserialize(deserializer)? {
        if item.len() != 1 {
            return Err(D::Error::custom("an item of parameters is not a mapping from one name to its settings"));
        }
        for (name, parameter) in item {
            if parameters.insert(name.clone(), parameter).is_some() {
                return Err(D::Error::custom(format!("parameter {name} is declared twice")));
            }
        }
    }
    Ok(parameters)
}

/// How often a step runs, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "LoopKeys")]
pub struct Loop {
    /// The first part of `{{ NAME.index }}` and `{{ NAME.value }}`; `loop` unless given.
    pub name: String,
    /// What it runs over.
    pub over: LoopOver,
}

/// A loop's keys, as a document has them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LoopKeys {
    name: Option<String>,
    r#for: Option<Range>,
    for_each: Option<ForEach>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Range {
    start: i64,
    end: i64,
    update_by: i64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a list of strings, or `list` and `delimiter`")]
enum ForEach {
    Each(Vec<String>),
    Split(Split),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Split {
    list: String,
    delimiter: String,
}

impl TryFrom<LoopKeys> for Loop {
    type Error = &'static str;

    fn try_from(keys: LoopKeys) -> Result<Self, Self::Error> {
        let over = match (keys.r#for, keys.for_each) {
            (Some(Range { start, end, update_by }), None) => LoopOver::For { start, end, update_by },
            (None, Some(ForEach::Each(items))) => LoopOver::Each(items),
            (None, Some(ForEach::Split(Split { list, delimiter }))) => LoopOver::Split { list, delimiter },
            _ => return Err("a loop has one of `for` and `forEach`"),
        };
        Ok(Self { name: keys.name.unwrap_or_else(|| "loop".to_owned()), over })
    }
}

/// What a loop runs over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoopOver {
    /// `for`: numbers, both ends included.
    For {
        /// The first.
        start: i64,
        /// The last.
        end: i64,
        /// Added at each turn.
        update_by: i64,
    },
    /// `forEach` with a list of strings.
    Each(Vec<String>),
    /// `forEach` with one string that is cut at a delimiter.
    Split {
        /// The string.
        list: String,
        /// Where it is cut.
        delimiter: String,
    },
}

/// Declares an enum whose variants are the words of a document.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// As documents write it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// The phases Image Builder runs for an AMI.
    PhaseName {
        /// Makes the image.
        Build = "build",
        /// Looks at the result, on the same machine.
        Validate = "validate",
        /// Looks at a machine started from the image.
        Test = "test",
    }
}

words! {
    /// What a failing step means.
    OnFailure {
        /// Nothing after it is run.
        Abort = "Abort",
        /// The rest is run, and the document fails.
        Continue = "Continue",
        /// As if it had not failed.
        Ignore = "Ignore",
    }
}

words! {
    /// The actions that Kiln's documents may use.
    Action {
        /// Commands for bash.
        ExecuteBash = "ExecuteBash",
        /// Objects from S3.
        S3Download = "S3Download",
        /// Files to S3.
        S3Upload = "S3Upload",
        /// Files from a web server.
        WebDownload = "WebDownload",
        /// Files with a given content.
        CreateFile = "CreateFile",
        /// The operating system's own updates.
        UpdateOs = "UpdateOS",
        /// A restart of the machine.
        Reboot = "Reboot",
        /// A comparison.
        Assert = "Assert",
    }
}

impl Document {
    /// Reads a document.
    ///
    /// Beyond what Image Builder refuses, this refuses what would go wrong silently: a WebDownload without checksum and
    /// algorithm, a parameter that is never used, a reference that nothing declares (Image Builder leaves those in the
    /// text), a step without an end (`timeoutSeconds: -1`), and values looked up on the build machine (`aws:ssm:`), which
    /// the digest of an image's inputs would not cover.
    ///
    /// # Errors
    /// The first mistake of form, with its line and column; where the form is right, every other mistake.
    pub fn parse(yaml: &str) -> Result<Self, Vec<Problem>> {
        let problem = |message: String| Problem { path: ".".to_owned(), message };
        let characters = yaml.chars().count();
        let mut problems = Vec::new();
        if characters > MAX_CHARACTERS {
            problems.push(problem(format!(
                "{characters} characters, more than the {MAX_CHARACTERS} a component may have inline"
            )));
        }
        let document: Self = match serde_yaml_ng::from_str(yaml) {
            Ok(document) => document,
            Err(error) => {
                problems.push(problem(error.to_string()));
                return Err(problems);
            }
        };
        problems.extend(checks::check(&document));
        problems.extend(references::check(&document.parameters, &document.phases));
        if problems.is_empty() { Ok(document) } else { Err(problems) }
    }

    /// Can it be run against another root than `/`?
    pub fn lays_files_down_only(&self) -> bool {
        self.parameters.contains_key(DEST_DIR)
    }
}

impl OnFailure {
    /// Image Builder's own default.
    fn abort() -> Self {
        Self::Abort
    }
}

#[cfg(test)]
mod tests;
