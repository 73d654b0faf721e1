//! What is wrong with a `kiln.toml`, shown in its own text.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use annotate_snippets::renderer::Renderer;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Snippet};
use toml::Spanned;

use crate::model::Malformed;

/// More than this nobody mends in one go; a file that is no TOML at all would print a screenful for each of its lines.
const MOST_SHOWN: usize = 20;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Diagnostic {
    span: Range<usize>,
    /// A lower-case fragment.
    message: String,
    /// Beside the place: what was expected there.
    expected: Option<String>,
    /// The other half of a contradiction, and what it says.
    related: Option<(Range<usize>, String)>,
    hint: Option<String>,
    /// The line holds a secret: name it, but don't print it.
    secret: bool,
}

impl Diagnostic {
    pub(super) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { span, message: message.into(), expected: None, related: None, hint: None, secret: false }
    }

    pub(super) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub(super) fn related(mut self, span: Range<usize>, says: impl Into<String>) -> Self {
        self.related = Some((span, says.into()));
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    fn report<'a>(&'a self, file: &'a str, text: &'a str) -> Group<'a> {
        let title = Level::ERROR.primary_title(self.message.as_str());
        let group = if self.secret {
            let before = text.get(..self.span.start).unwrap_or_default();
            title.element(Origin::path(file).line(before.matches('\n').count() + 1))
        } else {
            let place = AnnotationKind::Primary.span(within(&self.span, text)).label(self.expected.as_deref());
            let other = self
                .related
                .iter()
                .map(|(span, says)| AnnotationKind::Context.span(within(span, text)).label(says.as_str()));
            title.element(Snippet::source(text).path(file).annotation(place).annotations(other))
        };
        group.elements(self.hint.iter().map(|hint| Level::HELP.message(hint.as_str())))
    }
}

fn within(span: &Range<usize>, text: &str) -> Range<usize> {
    let end = span.end.min(text.len());
    span.start.min(end)..end
}

/// One thing that is wrong, for machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From one.
    pub line: usize,
    /// From one, in characters.
    pub column: usize,
    /// A lower-case fragment.
    pub message: String,
    /// What was expected there.
    pub expected: Option<String>,
    /// What a person may have meant.
    pub hint: Option<String>,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Diagnostic>);

impl Findings {
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// What the TOML parser says, which begins with what is wrong and often ends with what it expected.
    pub(super) fn push_toml(&mut self, error: &toml::de::Error) {
        let span = error.span().unwrap_or_default();
        self.push(match error.message().split_once(", expected ") {
            Some((what, expected)) => Diagnostic::new(span, what).expected(format!("expected {expected}")),
            None => Diagnostic::new(span, error.message()),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Parses a value to its type; what does not fit is added and gives `None`.
    pub(super) fn parse<T: FromStr<Err = Malformed>>(&mut self, key: &str, value: &Spanned<String>) -> Option<T> {
        self.parse_or(key, value, |_| None)
    }

    /// The same with a hint for mistakes that are often made.
    pub(super) fn parse_or<T: FromStr<Err = Malformed>>(
        &mut self,
        key: &str,
        value: &Spanned<String>,
        hint: impl FnOnce(&str) -> Option<String>,
    ) -> Option<T> {
        match value.get_ref().parse() {
            Ok(parsed) => Some(parsed),
            Err(Malformed { value: text, expected }) => {
                let mut diagnostic = Diagnostic::new(value.span(), format!("{key} is `{text}`"));
                diagnostic.hint = hint(&text);
                self.push(diagnostic.expected(format!("expected {expected}")));
                None
            }
        }
    }
}

/// Everything that is wrong with a `kiln.toml`.
///
/// Displayed, it begins with a line that says how much, then shows each with file, line, column, the line itself, what
/// was expected and, where there is one, a hint.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{file}` has {}\n\n{}", count(.found.len()), self.render(false))]
pub struct ConfigError {
    file: String,
    text: String,
    found: Vec<Diagnostic>,
}

fn count(problems: usize) -> String {
    if problems == 1 { "a problem".to_owned() } else { format!("{problems} problems") }
}

impl ConfigError {
    /// In the order of the text.
    pub(super) fn new(file: &str, text: &str, found: Findings) -> Self {
        let Findings(mut found) = found;
        found.sort_by_key(|diagnostic| diagnostic.span.start);
        Self { file: file.to_owned(), text: text.to_owned(), found }
    }

    /// The file's name, as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Each problem with its place.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        self.found.iter().map(|found| {
            let before = self.text.get(..found.span.start).unwrap_or_default();
            let line = before.rsplit('\n').next().unwrap_or_default();
            Problem {
                line: before.matches('\n').count() + 1,
                column: line.chars().count() + 1,
                message: found.message.clone(),
                expected: found.expected.clone(),
                hint: found.hint.clone(),
            }
        })
    }

    /// Each problem in the file's own text; with colours for a terminal, or without.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let shown = self.found.iter().take(MOST_SHOWN);
        let mut parts: Vec<String> =
            shown.map(|found| renderer.render(&[found.report(&self.file, &self.text)])).collect();
        if let Some(more @ 1..) = self.found.len().checked_sub(MOST_SHOWN) {
            parts.push(format!("and {} more", count(more)));
        }
        parts.join("\n\n")
    }
}

/// Without the text, which may hold what does not belong into a log.
impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigError({self})")
    }
}
