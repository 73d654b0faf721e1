//! EC2 Image Builder's component documents: a typed model, and a validator, since Image Builder itself tells of most
//! mistakes only in the middle of a bake.
//!
//! Source of the rules: <https://docs.aws.amazon.com/imagebuilder/latest/userguide/toe-use-documents.html>,
//! <https://docs.aws.amazon.com/imagebuilder/latest/userguide/toe-action-modules.html> and
//! <https://docs.aws.amazon.com/imagebuilder/latest/userguide/toe-user-defined-variables.html>. Where Image Builder is
//! lenient and a bake would suffer from it, this is not: see [`Document::parse`].

mod reader;
mod references;
mod schema;

use std::collections::BTreeMap;
use std::fmt;

use serde_yaml_ng::Value;

pub use schema::schema;

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
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// `1.0`, the only one there is.
    pub schema_version: String,
    /// What it can be told, by name.
    pub parameters: BTreeMap<String, Parameter>,
    /// In the order they run.
    pub phases: Vec<Phase>,
}

/// A declared parameter. Its type is always `string`, the only one there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The value when none is given; a parameter without one must be given.
    pub default: Option<String>,
    /// What it means.
    pub description: String,
}

/// A phase: `build` and `validate` run on the machine that becomes the image, `test` on one started from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// Which one.
    pub name: PhaseName,
    /// In the order they run; never empty.
    pub steps: Vec<Step>,
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Unique in its phase.
    pub name: String,
    /// What is done.
    pub action: Action,
    /// What its failure means.
    pub on_failure: OnFailure,
    /// How often it is tried, at least once.
    pub max_attempts: u32,
    /// How long one try may take, in seconds.
    pub timeout_seconds: u32,
    /// As the action wants them; references to parameters (`{{ Name }}`) are still in there.
    pub inputs: Value,
    /// It runs once for each turn of this.
    pub r#loop: Option<Loop>,
}

/// How often a step runs, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    /// The first part of `{{ NAME.index }}` and `{{ NAME.value }}`; `loop` unless given.
    pub name: String,
    /// What it runs over.
    pub over: LoopOver,
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
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every one of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

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

/// The form of an action's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One mapping.
    One,
    /// One mapping, or none at all.
    Optional,
    /// A list of mappings.
    Many,
    /// A mapping whose keys are operators, which is not looked into.
    Operators,
}

/// The form of one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Flag,
    Number,
    TextList,
    /// A string, one of these.
    OneOf(&'static [&'static str]),
}

/// One input of an action.
#[derive(Debug, Clone, Copy)]
struct Input {
    name: &'static str,
    kind: Kind,
    required: bool,
}

const fn required(name: &'static str, kind: Kind) -> Input {
    Input { name, kind, required: true }
}

const fn optional(name: &'static str, kind: Kind) -> Input {
    Input { name, kind, required: false }
}

/// Of the algorithms AWSTOE knows, those that still prove something.
const ALGORITHMS: &[&str] = &["SHA256", "SHA512"];

impl Action {
    /// The inputs it takes. Image Builder does not ask for WebDownload's checksum and algorithm, and checks nothing unless
    /// both are there; here both are asked for.
    fn inputs(self) -> (Shape, &'static [Input]) {
        match self {
            Self::ExecuteBash => (Shape::One, const { &[required("commands", Kind::TextList)] }),
            Self::S3Download => (
                Shape::Many,
                const {
                    &[
                        required("source", Kind::Text),
                        required("destination", Kind::Text),
                        optional("expectedBucketOwner", Kind::Text),
                        optional("overwrite", Kind::Flag),
                    ]
                },
            ),
            Self::S3Upload => (
                Shape::Many,
                const {
                    &[
                        required("source", Kind::Text),
                        required("destination", Kind::Text),
                        optional("recurse", Kind::Flag),
                        optional("expectedBucketOwner", Kind::Text),
                    ]
                },
            ),
            Self::WebDownload => (
                Shape::Many,
                const {
                    &[
                        required("source", Kind::Text),
                        required("destination", Kind::Text),
                        required("checksum", Kind::Text),
                        required("algorithm", Kind::OneOf(ALGORITHMS)),
                        optional("overwrite", Kind::Flag),
                    ]
                },
            ),
            Self::CreateFile => (
                Shape::Many,
                const {
                    &[
                        required("path", Kind::Text),
                        optional("content", Kind::Text),
                        optional("encoding", Kind::Text),
                        optional("owner", Kind::Text),
                        optional("group", Kind::Text),
                        optional("permissions", Kind::Text),
                        optional("overwrite", Kind::Flag),
                    ]
                },
            ),
            Self::UpdateOs => {
                (Shape::Optional, const { &[optional("include", Kind::TextList), optional("exclude", Kind::TextList)] })
            }
            Self::Reboot => (Shape::Optional, const { &[optional("delaySeconds", Kind::Number)] }),
            Self::Assert => (Shape::Operators, &[]),
        }
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
    /// Every mistake found, in the document's order.
    pub fn parse(yaml: &str) -> Result<Self, Vec<Problem>> {
        reader::read(yaml)
    }

    /// Can it be run against another root than `/`?
    pub fn lays_files_down_only(&self) -> bool {
        self.parameters.contains_key(DEST_DIR)
    }
}

#[cfg(test)]
mod tests;
