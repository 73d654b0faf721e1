//! GitHub Actions, where the command runs in a workflow: groups, annotations, outputs, the step's summary.
//!
//! Source: <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands>

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use kiln_config::config::ConfigError;
use serde_json::Value;

use super::clean::clean;
use super::document::Document;
use super::failure::Account;

/// GitHub shows ten errors of a step; what is beyond them is in the log.
const MOST_ANNOTATIONS: usize = 10;

/// Where the runner wants things.
#[derive(Debug)]
pub(crate) struct Actions {
    output: Option<PathBuf>,
    summary: Option<PathBuf>,
}

impl Actions {
    /// Is this a step of a workflow?
    pub(crate) fn here() -> Option<Self> {
        let file = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        (std::env::var_os("GITHUB_ACTIONS")? == "true")
            .then(|| Self { output: file("GITHUB_OUTPUT"), summary: file("GITHUB_STEP_SUMMARY") })
    }

    /// The step's outputs: each result by its name, `outcome`, `changed`, and `error-code` where there is one.
    pub(crate) fn write_outputs(&self, document: &Document, code: Option<&str>) -> std::io::Result<()> {
        let Some(path) = &self.output else { return Ok(()) };
        let mut text = String::new();
        for (name, value) in &document.result {
            text.push_str(&output(name, &plain(value)));
        }
        text.push_str(&output("outcome", &document.outcome.to_string()));
        text.push_str(&output("changed", if document.changes() && !document.dry_run { "true" } else { "false" }));
        if let Some(code) = code {
            text.push_str(&output("error-code", code));
        }
        append(path, &text)
    }

    /// The step's summary.
    pub(crate) fn write_summary(&self, document: &Document, failure: Option<&Account>) -> std::io::Result<()> {
        let Some(path) = &self.summary else { return Ok(()) };
        append(path, &clean(&summary(document, failure)))
    }
}

fn append(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes())
}

/// A value as a shell wants it: text as it is, anything else as JSON.
pub(crate) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `NAME=VALUE`, or the form for values of several lines, with an end that is no line of the value.
fn output(name: &str, value: &str) -> String {
    if !value.contains(['\n', '\r']) {
        return format!("{name}={value}\n");
    }
    let mut end = "END".to_owned();
    while value.contains(&end) {
        end.push('_');
    }
    format!("{name}<<{end}\n{value}\n{end}\n")
}

/// A group's begin, folded in the log.
pub(crate) fn group(title: &str) -> String {
    format!("::group::{}", data(title))
}

/// A warning at the run's page.
pub(crate) fn warning(title: &str, text: &str) -> String {
    format!("::warning title={}::{}", property(title), data(text))
}

/// The errors at the run's page: one, or one for each place in kiln.toml.
pub(crate) fn errors(command: &str, account: &Account, config: Option<&ConfigError>) -> Vec<String> {
    let title = property(&format!("kiln {command}: {}", account.code));
    let Some(config) = config else {
        let mut text = account.message.clone();
        for cause in &account.causes {
            let _ = write!(text, "\ncaused by: {cause}");
        }
        if let Some(hint) = &account.hint {
            let _ = write!(text, "\nhint: {hint}");
        }
        return vec![format!("::error title={title}::{}", data(&text))];
    };
    let one = |problem: kiln_config::config::Problem| {
        let more = problem.expected.iter().chain(&problem.hint);
        let text = more.fold(problem.message.clone(), |text, more| format!("{text}\n{more}"));
        let (line, column) = (problem.line, problem.column);
        format!("::error title={title},file={},line={line},col={column}::{}", property(config.file()), data(&text))
    };
    config.problems().take(MOST_ANNOTATIONS).map(one).collect()
}

/// A command's text on one line, in the runner's own escapes.
fn data(text: &str) -> String {
    clean(text).replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// Markdown of the plan and the result.
fn summary(document: &Document, failure: Option<&Account>) -> String {
    let mut text =
        format!("### `cargo xtask {}`: {}\n\n", document.command, document.outcome.to_string().replace('-', " "));
    for plan in &document.plans {
        let mut block = String::new();
        for (index, step) in plan.steps.iter().enumerate() {
            let _ = writeln!(block, "{}. {}", index + 1, step.text);
            for detail in &step.details {
                let _ = writeln!(block, "{detail}");
            }
        }
        match &plan.settled {
            Some(settled) => {
                let _ = writeln!(text, "**{}**: nothing to do: {settled}\n", plan.subject);
            }
            // As a diff, which colours what is added, changed and removed.
            None => {
                let _ = writeln!(text, "**{}**\n\n{}\n", plan.subject, fenced("diff", &block));
            }
        }
    }
    for warning in &document.warnings {
        let _ = writeln!(text, "> [!WARNING]\n> {}\n", warning.replace('\n', "\n> "));
    }
    if let Some(account) = failure {
        let _ = writeln!(text, "{}\n", fenced("text", &super::said(account).join("\n")));
    }
    if !document.result.is_empty() {
        text.push_str("| result | |\n|---|---|\n");
        for (name, value) in &document.result {
            let _ = writeln!(text, "| {name} | `{}` |", plain(value).replace('|', "\\|").replace(['\n', '\r'], " "));
        }
        text.push('\n');
    }
    text
}

/// A block of code whose fence is longer than any in it.
fn fenced(language: &str, text: &str) -> String {
    let mut fence = "```".to_owned();
    while text.contains(&fence) {
        fence.push('`');
    }
    format!("{fence}{language}\n{}\n{fence}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_several_lines_stay_one_command() {
        assert_eq!(group("[1/2] 100%\nof it"), "::group::[1/2] 100%25%0Aof it");
        assert_eq!(warning("a: b, c", "x\r\ny: z"), "::warning title=a%3A b%2C c::x%0Ay: z");
    }

    #[test]
    fn an_output_of_several_lines_ends_where_it_should() {
        assert_eq!(output("ami", "ami-1"), "ami=ami-1\n");
        assert_eq!(output("text", "a\nEND\nEND_"), "text<<END__\na\nEND\nEND_\nEND__\n");
        assert_eq!(output("text", "a\nb"), "text<<END\na\nb\nEND\n");
    }
}
