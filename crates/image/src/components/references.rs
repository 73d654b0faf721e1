//! `{{ … }}` in a document's steps: what may be referred to, and that all that is declared is.

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml_ng::Value;

use super::{LoopOver, Parameter, Phase, Problem, Step};

pub(super) fn check(parameters: &BTreeMap<String, Parameter>, phases: &[Phase]) -> Vec<Problem> {
    let mut check = Check { parameters, used: BTreeSet::new(), earlier: Vec::new(), problems: Vec::new() };
    for phase in phases {
        for (index, step) in phase.steps.iter().enumerate() {
            check.step(&format!("phases[{}].steps[{index}]", phase.name), step);
            check.earlier.push(format!("{}.{}.", phase.name, step.name));
        }
    }
    for name in parameters.keys().filter(|name| !check.used.contains(name.as_str())) {
        check
            .problems
            .push(Problem { path: format!("parameters[{name}]"), message: "declared but never used".to_owned() });
    }
    check.problems
}

struct Check<'d> {
    parameters: &'d BTreeMap<String, Parameter>,
    used: BTreeSet<String>,
    /// The beginnings of references to earlier steps: `build.Download.`
    earlier: Vec<String>,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn step(&mut self, path: &str, step: &Step) {
        let mut own = None;
        if let Some(r#loop) = &step.r#loop {
            let path = format!("{path}.loop");
            match &r#loop.over {
                LoopOver::For { .. } => {}
                LoopOver::Each(items) => items.iter().for_each(|item| self.text(&path, item, None)),
                LoopOver::Split { list, delimiter } => {
                    [list, delimiter].iter().for_each(|text| self.text(&path, text, None));
                }
            }
            own = Some(r#loop.name.as_str());
        }
        self.value(&format!("{path}.inputs"), &step.inputs, own);
    }

    fn value(&mut self, path: &str, value: &Value, own_loop: Option<&str>) {
        match value {
            Value::String(text) => self.text(path, text, own_loop),
            Value::Sequence(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.value(&format!("{path}[{index}]"), item, own_loop);
                }
            }
            Value::Mapping(map) => {
                for (key, item) in map {
                    self.value(&format!("{path}.{}", key.as_str().unwrap_or("?")), item, own_loop);
                }
            }
            _ => {}
        }
    }

    fn text(&mut self, path: &str, text: &str, own_loop: Option<&str>) {
        let mut rest = text;
        while let Some(begin) = rest.find("{{") {
            rest = &rest[begin + 2..];
            let Some(end) = rest.find("}}") else {
                self.problem(path, "`{{` without `}}`");
                return;
            };
            self.reference(path, rest[..end].trim(), own_loop);
            rest = &rest[end + 2..];
        }
    }

    fn reference(&mut self, path: &str, name: &str, own_loop: Option<&str>) {
        if self.parameters.contains_key(name) {
            self.used.insert(name.to_owned());
        } else if name.starts_with("aws:") {
            let message = format!(
                "`{{{{ {name} }}}}` is looked up on the build machine, which the digest of the image's inputs does not cover; \
                 declare a parameter"
            );
            self.problem(path, message);
        } else if !self.is_chained(name) && !is_of_loop(name, own_loop) {
            self.problem(
                path,
                format!("`{{{{ {name} }}}}` is neither a declared parameter, nor an earlier step's, nor its loop's"),
            );
        }
    }

    /// `build.Download.outputs.destination`, of a step that has run.
    fn is_chained(&self, name: &str) -> bool {
        let rest = self.earlier.iter().find_map(|begin| name.strip_prefix(begin.as_str()));
        rest.is_some_and(|rest| rest.starts_with("inputs") || rest.starts_with("outputs."))
    }

    fn problem(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { path: path.to_owned(), message: message.into() });
    }
}

fn is_of_loop(name: &str, own_loop: Option<&str>) -> bool {
    own_loop.and_then(|own| name.strip_prefix(own)).is_some_and(|rest| matches!(rest, ".index" | ".value"))
}
