//! What is wrong with a `kiln.toml`, shown in its own text.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Diagnostic {
    pub(super) span: Range<usize>,
    /// A lower-case fragment.
    pub(super) message: String,
    /// Beside the place: what was expected.
    pub(super) expected: String,
    pub(super) hint: Option<String>,
}

/// Everything that is wrong with a `kiln.toml`. Displayed, each with file, line, column and the line itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    text: String,
    found: Vec<Diagnostic>,
}

impl ConfigError {
    pub(super) fn new(file: &str, text: &str, found: Vec<Diagnostic>) -> Self {
        Self { file: file.to_owned(), text: text.to_owned(), found }
    }

    pub(super) fn of_syntax(file: &str, text: &str, error: &toml::de::Error) -> Self {
        let message = error.message();
        let (message, expected, hint) = match message.split_once(", expected ") {
            Some((what, expected)) => (what, format!("expected {expected}"), suggestion(message)),
            None => (message, String::new(), None),
        };
        let found =
            Diagnostic { span: error.span().unwrap_or(0..0), message: lower_case(message), expected, hint };
        Self::new(file, text, vec![found])
    }

    /// As text, with colours for a terminal.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let each = self.found.iter().map(|found| renderer.render(&self.report(found)).clone());
        each.collect::<Vec<_>>().join("\n\n")
    }

    fn report<'a>(&'a self, found: &'a Diagnostic) -> Vec<annotate_snippets::Group<'a>> {
        let end = found.span.end.min(self.text.len());
        let place = AnnotationKind::Primary.span(found.span.start.min(end)..end).label(found.expected.as_str());
        let snippet = Snippet::source(self.text.as_str()).path(self.file.as_str()).annotation(place);
        let mut group = Level::ERROR.primary_title(found.message.as_str()).element(snippet);
        if let Some(hint) = &found.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        vec![group]
    }
}

/// "unknown field `lables`, expected one of `labels`, …": the nearest of those expected.
fn suggestion(message: &str) -> Option<String> {
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next().filter(|_| message.starts_with("unknown"))?;
    let nearest = names.map(|name| (strsim::jaro_winkler(unknown, name), name)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (nearest.0 > 0.75).then(|| format!("did you mean `{}`?", nearest.1))
}

fn lower_case(message: &str) -> String {
    let mut characters = message.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => String::new(),
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ConfigError {}
