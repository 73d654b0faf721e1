//! What is wrong with a `kiln.toml`, shown in its own text.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use annotate_snippets::renderer::Renderer;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Snippet};
use toml::Spanned;

use crate::model::Malformed;

/// More than this nobody mends in one go; a file that is no TOML at all would print a screenful for each of its lines.
const MOST_SHOWN: usize = 20;

/// So many are kept: what is shown, and as many as any reader of the JSON document asks for. The others are counted.
const MOST_KEPT: usize = 200;

/// A line that is longer is not printed, nor is more than this of a value.
const LONGEST_LINE: usize = 1000;
const LONGEST_VALUE: usize = 100;

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
    /// What is a secret, or may be one: its lines are not printed, by no other diagnostic either.
    hidden: Option<Range<usize>>,
    /// The line says nothing: it is the whole file, for one.
    without_its_line: bool,
}

impl Diagnostic {
    pub(super) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { span, message, expected: None, related: None, hint: None, hidden: None, without_its_line: false }
    }

    /// What a value is, in a sentence: quoted, cut where it is long, or said to be empty.
    pub(super) fn of_value(span: Range<usize>, what: &str, value: &str) -> Self {
        let message = if value.is_empty() {
            format!("{what} is empty")
        } else if value.trim().is_empty() {
            format!("{what} is blank")
        } else {
            format!("{what} is `{}`", cut(value))
        };
        Self::new(span, message)
    }

    /// Where it begins.
    pub(super) fn place(&self) -> usize {
        self.span.start
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

    /// Its place holds a secret.
    pub(super) fn secret(self) -> Self {
        let span = self.span.clone();
        self.hiding(span)
    }

    /// What lies there may be a secret.
    pub(super) fn hiding(mut self, secret: Range<usize>) -> Self {
        self.hidden = Some(secret);
        self
    }

    pub(super) fn without_its_line(mut self) -> Self {
        self.without_its_line = true;
        self
    }

    /// From the first line that its snippet shows to the end of the last.
    fn shown(&self, text: &str) -> Range<usize> {
        let spans = self.related.iter().map(|(span, _)| span).chain([&self.span]);
        let (start, end) = spans.fold((usize::MAX, 0), |(start, end), span| (start.min(span.start), end.max(span.end)));
        lines_of(&(start..end), text)
    }

    fn report<'a>(&'a self, file: &'a str, text: &'a str, hidden: &[Range<usize>]) -> Group<'a> {
        let title = Level::ERROR.primary_title(self.message.as_str());
        let shown = self.shown(text);
        let hides = |secret: &Range<usize>| secret.start < shown.end.max(shown.start + 1) && shown.start < secret.end;
        let long = text[shown.clone()].lines().any(|line| line.len() > LONGEST_LINE);
        let secret = hidden.iter().any(hides);
        let group = if self.without_its_line || long || secret {
            let before = text.get(..self.span.start).unwrap_or_default();
            let origin = Origin::path(file).line(before.matches('\n').count() + 1);
            let column = self.span.start.saturating_sub(shown.start) + 1;
            let place = title.element(if secret { origin } else { origin.char_column(column) });
            let expected = self.expected.as_deref().filter(|_| self.hidden.is_none());
            place.elements(expected.map(|expected| Level::NOTE.message(expected)))
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

/// A value in a message: on one line, and no longer than anyone reads.
pub(super) fn cut(value: &str) -> String {
    let shown: String = value.chars().take(LONGEST_VALUE).collect();
    let rest = if shown.len() < value.len() { "…" } else { "" };
    format!("{}{rest}", shown.replace(['\n', '\r'], " "))
}

/// The whole lines that a span lies on.
fn lines_of(span: &Range<usize>, text: &str) -> Range<usize> {
    let Range { start, end } = within(span, text);
    let before = text.as_bytes()[..start].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let after = text.as_bytes()[end..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| end + at);
    before..after
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
pub(super) struct Findings {
    kept: Vec<Diagnostic>,
    /// How many more there were.
    more: usize,
    /// Keys that were complained about and taken out of the document, such as `app.app_id`.
    refused: BTreeSet<String>,
}

impl Findings {
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        if self.is_full() {
            self.more += 1;
        } else {
            self.kept.push(diagnostic);
        }
    }

    /// Would one more only be counted?
    pub(super) fn is_full(&self) -> bool {
        self.kept.len() >= MOST_KEPT
    }

    /// Leaves out what lies behind a place: it follows from what is wrong there.
    pub(super) fn keep_before(&mut self, at: usize) {
        self.kept.retain(|diagnostic| diagnostic.span.end < at);
        self.more = 0;
    }

    pub(super) fn refuse(&mut self, path: String) {
        self.refused.insert(path);
    }

    /// Was the key there, but not taken?
    pub(super) fn was_refused(&self, path: &str) -> bool {
        self.refused.contains(path)
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
        self.kept.is_empty()
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
                let mut diagnostic = Diagnostic::of_value(value.span(), key, &text);
                diagnostic.hint = hint(&text).or_else(|| slip::<T>(&text));
                self.push(diagnostic.expected(format!("expected {expected}")));
                None
            }
        }
    }
}

/// What a value would be without the slips that are often made.
fn slip<T: FromStr>(text: &str) -> Option<String> {
    let is_one = |text: &str| text.parse::<T>().is_ok();
    let trimmed = text.trim();
    if trimmed != text && is_one(trimmed) {
        return Some("take out the blanks around it".to_owned());
    }
    let lower = trimmed.to_lowercase();
    (lower != trimmed && is_one(&lower)).then(|| format!("write it in lower case: \"{lower}\""))
}

/// Everything that is wrong with a `kiln.toml`.
///
/// Displayed, it begins with a line that says how much, then shows each with file, line, column, the line itself, what
/// was expected and, where there is one, a hint.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{file}` has {}\n\n{}", count(self.number()), self.render(false))]
pub struct ConfigError {
    file: String,
    text: String,
    found: Vec<Diagnostic>,
    more: usize,
}

fn count(problems: usize) -> String {
    if problems == 1 { "a problem".to_owned() } else { format!("{problems} problems") }
}

impl ConfigError {
    /// In the order of the text.
    pub(super) fn new(file: &str, text: &str, found: Findings) -> Self {
        let Findings { kept: mut found, more, .. } = found;
        found.sort_by_key(|diagnostic| diagnostic.span.start);
        Self { file: file.to_owned(), text: text.to_owned(), found, more }
    }

    /// How many problems there are, those that are not kept included.
    pub fn number(&self) -> usize {
        self.found.len() + self.more
    }

    /// The first line of what is displayed: how much is wrong with which file.
    pub fn summary(&self) -> String {
        format!("`{}` has {}", self.file, count(self.number()))
    }

    /// The file's name, as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Each problem with its place.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        // They are in the text's order, so each is counted from the one before.
        let (mut counted, mut line) = (0, 1);
        self.found.iter().map(move |found| {
            let at = within(&found.span, &self.text).start;
            line += self.text.as_bytes()[counted..at].iter().filter(|byte| **byte == b'\n').count();
            counted = at;
            let begin = lines_of(&(at..at), &self.text).start;
            Problem {
                line,
                column: self.text.get(begin..at).unwrap_or_default().chars().count() + 1,
                message: found.message.clone(),
                expected: found.expected.clone(),
                hint: found.hint.clone(),
            }
        })
    }

    /// Each problem in the file's own text; with colours for a terminal, or without.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let hidden: Vec<Range<usize>> = self
            .found
            .iter()
            .filter_map(|found| found.hidden.as_ref())
            .map(|span| lines_of(span, &self.text))
            .collect();
        let shown = self.found.iter().take(MOST_SHOWN);
        let mut parts: Vec<String> =
            shown.map(|found| renderer.render(&[found.report(&self.file, &self.text, &hidden)])).collect();
        if let Some(more @ 1..) = self.number().checked_sub(MOST_SHOWN) {
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
