//! From YAML to [`Document`], with every mistake on the way collected rather than the first one returned.

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml_ng::{Mapping, Value};

use super::{
    Action, Document, Input, Kind, Loop, LoopOver, MAX_CHARACTERS, OnFailure, Parameter, Phase, PhaseName, Problem,
    Shape, Step, references,
};

/// Image Builder's own default for a step, in seconds.
const TIMEOUT_SECONDS: u32 = 7200;

pub(super) fn read(yaml: &str) -> Result<Document, Vec<Problem>> {
    let mut reader = Reader { problems: Vec::new() };
    let characters = yaml.chars().count();
    if characters > MAX_CHARACTERS {
        reader.problem(
            ".",
            format!("{characters} characters, more than the {MAX_CHARACTERS} a component may have inline"),
        );
    }
    let value: Value = match serde_yaml_ng::from_str(yaml) {
        Ok(value) => value,
        Err(error) => {
            reader.problem(".", format!("not YAML: {error}"));
            return Err(reader.problems);
        }
    };
    let document = reader.document(&value);
    match document {
        Some(document) if reader.problems.is_empty() => Ok(document),
        _ => Err(reader.problems),
    }
}

struct Reader {
    problems: Vec<Problem>,
}

/// `base.key`, or the key alone at the top.
fn below(base: &str, key: &str) -> String {
    if base == "." { key.to_owned() } else { format!("{base}.{key}") }
}

impl Reader {
    fn problem(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { path: path.to_owned(), message: message.into() });
    }

    fn document(&mut self, value: &Value) -> Option<Document> {
        let known = ["name", "description", "schemaVersion", "parameters", "phases"];
        let map = self.mapping(".", value, &known)?;
        let name = self.text(".", map, "name");
        let description = self.text(".", map, "description");
        let schema_version = self.schema_version(map);
        let parameters = self.parameters(map.get("parameters"));
        let phases = self.phases(map.get("phases"));
        self.problems.extend(references::check(&parameters, &phases));
        Some(Document { name: name?, description: description?, schema_version: schema_version?, parameters, phases })
    }

    fn schema_version(&mut self, map: &Mapping) -> Option<String> {
        // Unquoted, as in every example of AWS's, YAML reads it as a number.
        match map.get("schemaVersion") {
            Some(Value::String(text)) if text == "1.0" => return Some(text.clone()),
            Some(Value::Number(number)) if number.to_string() == "1.0" => return Some(number.to_string()),
            None => self.problem("schemaVersion", "missing: 1.0 is the only one there is"),
            Some(_) => self.problem("schemaVersion", "not 1.0, the only one there is"),
        }
        None
    }

    fn parameters(&mut self, value: Option<&Value>) -> BTreeMap<String, Parameter> {
        let mut parameters = BTreeMap::new();
        for (index, item) in self.list("parameters", value, Presence::Optional).iter().enumerate() {
            let place = format!("parameters[{index}]");
            let one = item.as_mapping().filter(|map| map.len() == 1).and_then(|map| map.iter().next());
            let Some((Value::String(name), settings)) = one else {
                self.problem(&place, "not a mapping from one parameter's name to its settings");
                continue;
            };
            let path = format!("parameters[{name}]");
            if !is_parameter_name(name) {
                self.problem(&path, "not 3 to 128 letters, digits, - and _");
            }
            let parameter = self.parameter(&path, settings);
            if let Some(parameter) = parameter
                && parameters.insert(name.clone(), parameter).is_some()
            {
                self.problem(&path, "declared twice");
            }
        }
        parameters
    }

    fn parameter(&mut self, path: &str, settings: &Value) -> Option<Parameter> {
        let map = self.mapping(path, settings, &["type", "default", "description"])?;
        let kind = self.text(path, map, "type");
        if kind.as_deref().is_some_and(|kind| kind != "string") {
            self.problem(&below(path, "type"), "not `string`, the only type there is");
        }
        let description = self.text(path, map, "description");
        let default = match map.get("default") {
            None => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => {
                self.problem(&below(path, "default"), "not a string: put it in quotes");
                None
            }
        };
        Some(Parameter { default, description: description? })
    }

    fn phases(&mut self, value: Option<&Value>) -> Vec<Phase> {
        let mut phases: Vec<Phase> = Vec::new();
        for (index, item) in self.list("phases", value, Presence::Required).iter().enumerate() {
            let place = format!("phases[{index}]");
            let Some(map) = self.mapping(&place, item, &["name", "steps"]) else { continue };
            let Some(name) = self.word(&place, map, "name", PhaseName::ALL, PhaseName::as_str, None) else { continue };
            let path = format!("phases[{name}]");
            if phases.iter().any(|phase| phase.name == name) {
                self.problem(&path, "there twice");
            }
            let steps = self.steps(&path, map.get("steps"));
            phases.push(Phase { name, steps });
        }
        phases
    }

    fn steps(&mut self, phase: &str, value: Option<&Value>) -> Vec<Step> {
        let path = below(phase, "steps");
        let mut names = BTreeSet::new();
        let mut steps = Vec::new();
        for (index, item) in self.list(&path, value, Presence::Required).iter().enumerate() {
            let path = format!("{path}[{index}]");
            let Some(step) = self.step(&path, item) else { continue };
            if !names.insert(step.name.clone()) {
                self.problem(
                    &below(&path, "name"),
                    format!("`{}` names another step of this phase already", step.name),
                );
            }
            steps.push(step);
        }
        steps
    }

    fn step(&mut self, path: &str, value: &Value) -> Option<Step> {
        let known = ["name", "action", "onFailure", "maxAttempts", "timeoutSeconds", "inputs", "loop"];
        let map = self.mapping(path, value, &known)?;
        let name = self.text(path, map, "name");
        let action = self.word(path, map, "action", Action::ALL, Action::as_str, None);
        let on_failure = self.word(path, map, "onFailure", OnFailure::ALL, OnFailure::as_str, Some(OnFailure::Abort));
        let max_attempts = self.count(path, map, "maxAttempts", 1);
        let timeout_seconds = self.count(path, map, "timeoutSeconds", TIMEOUT_SECONDS);
        let inputs = map.get("inputs").cloned().unwrap_or(Value::Null);
        if let Some(action) = action {
            self.inputs(&below(path, "inputs"), action, &inputs);
        }
        let r#loop = map.get("loop").and_then(|value| self.r#loop(&below(path, "loop"), value));
        Some(Step {
            name: name?,
            action: action?,
            on_failure: on_failure?,
            max_attempts: max_attempts?,
            timeout_seconds: timeout_seconds?,
            inputs,
            r#loop,
        })
    }

    fn inputs(&mut self, path: &str, action: Action, value: &Value) {
        let (shape, inputs) = action.inputs();
        match (shape, value) {
            (Shape::Optional, Value::Null) => {}
            (_, Value::Null) => self.problem(path, format!("missing: {action} can't do without")),
            (Shape::One | Shape::Optional, _) => self.input_mapping(path, action, inputs, value),
            (Shape::Many, Value::Sequence(items)) if !items.is_empty() => {
                for (index, item) in items.iter().enumerate() {
                    self.input_mapping(&format!("{path}[{index}]"), action, inputs, item);
                }
            }
            (Shape::Many, _) => self.problem(path, format!("not a list of mappings, as {action} wants")),
            (Shape::Operators, value) => {
                if value.as_mapping().is_none_or(Mapping::is_empty) {
                    self.problem(path, format!("not a mapping of operators, as {action} wants"));
                }
            }
        }
    }

    fn input_mapping(&mut self, path: &str, action: Action, inputs: &[Input], value: &Value) {
        let known: Vec<&str> = inputs.iter().map(|input| input.name).collect();
        let Some(map) = self.mapping(path, value, &known) else { return };
        for input in inputs {
            match map.get(input.name) {
                None if input.required => self.problem(&below(path, input.name), format!("missing: {action} wants it")),
                None => {}
                Some(value) => self.input(&below(path, input.name), input.kind, value),
            }
        }
    }

    fn input(&mut self, path: &str, kind: Kind, value: &Value) {
        let expected = match (kind, value) {
            (Kind::Text | Kind::OneOf(_), Value::String(text)) if text.is_empty() => "not to be empty".to_owned(),
            (Kind::OneOf(words), Value::String(text)) if !words.contains(&text.as_str()) => {
                format!("one of {}", words.join(", "))
            }
            (Kind::Text | Kind::OneOf(_), Value::String(_)) | (Kind::Flag, Value::Bool(_)) => return,
            (Kind::Number, Value::Number(number)) if number.is_u64() => return,
            (Kind::TextList, Value::Sequence(items)) if !items.is_empty() && items.iter().all(Value::is_string) => {
                return;
            }
            (Kind::Text | Kind::OneOf(_), _) => "a string: put it in quotes".to_owned(),
            (Kind::Flag, _) => "true or false".to_owned(),
            (Kind::Number, _) => "a whole number".to_owned(),
            (Kind::TextList, _) => "a list of strings, not empty".to_owned(),
        };
        self.problem(path, format!("expected {expected}"));
    }

    fn r#loop(&mut self, path: &str, value: &Value) -> Option<Loop> {
        let map = self.mapping(path, value, &["name", "for", "forEach"])?;
        let name = match map.get("name") {
            None => "loop".to_owned(),
            Some(_) => self.text(path, map, "name")?,
        };
        let over = match (map.get("for"), map.get("forEach")) {
            (Some(range), None) => self.range(&below(path, "for"), range)?,
            (None, Some(Value::Sequence(items))) if !items.is_empty() && items.iter().all(Value::is_string) => {
                LoopOver::Each(items.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            (None, Some(split @ Value::Mapping(_))) => {
                let path = below(path, "forEach");
                let map = self.mapping(&path, split, &["list", "delimiter"])?;
                let list = self.text(&path, map, "list");
                let delimiter = self.text(&path, map, "delimiter");
                LoopOver::Split { list: list?, delimiter: delimiter? }
            }
            (None, Some(_)) => {
                self.problem(&below(path, "forEach"), "neither a list of strings nor `list` and `delimiter`");
                return None;
            }
            _ => {
                self.problem(path, "expected one of `for` and `forEach`");
                return None;
            }
        };
        Some(Loop { name, over })
    }

    fn range(&mut self, path: &str, value: &Value) -> Option<LoopOver> {
        let keys = ["start", "end", "updateBy"];
        let map = self.mapping(path, value, &keys)?;
        let numbers = keys.map(|key| map.get(key).and_then(Value::as_i64));
        for (key, number) in keys.iter().zip(numbers) {
            if number.is_none() {
                self.problem(&below(path, key), "expected a whole number");
            }
        }
        let [start, end, update_by] = numbers;
        if update_by == Some(0) {
            self.problem(&below(path, "updateBy"), "0 never ends");
        }
        Some(LoopOver::For { start: start?, end: end?, update_by: update_by? })
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Leaves

    fn mapping<'v>(&mut self, path: &str, value: &'v Value, known: &[&str]) -> Option<&'v Mapping> {
        let Value::Mapping(map) = value else {
            self.problem(path, "expected a mapping");
            return None;
        };
        for key in map.keys() {
            let name = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
            if !known.contains(&name.as_str()) {
                self.problem(&below(path, &name), format!("unknown key; known are {}", known.join(", ")));
            }
        }
        Some(map)
    }

    fn list<'v>(&mut self, path: &str, value: Option<&'v Value>, presence: Presence) -> &'v [Value] {
        match (value, presence) {
            (None, Presence::Optional) => &[],
            (Some(Value::Sequence(items)), _) if !items.is_empty() => items,
            (None, Presence::Required) => {
                self.problem(path, "missing");
                &[]
            }
            (Some(_), _) => {
                self.problem(path, "expected a list that is not empty");
                &[]
            }
        }
    }

    fn text(&mut self, path: &str, map: &Mapping, key: &str) -> Option<String> {
        match map.get(key) {
            Some(Value::String(text)) if !text.is_empty() => return Some(text.clone()),
            Some(_) => self.problem(&below(path, key), "expected a string that is not empty"),
            None => self.problem(&below(path, key), "missing"),
        }
        None
    }

    /// A number of at least 1.
    fn count(&mut self, path: &str, map: &Mapping, key: &str, default: u32) -> Option<u32> {
        let Some(value) = map.get(key) else { return Some(default) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0);
        if number.is_none() {
            self.problem(&below(path, key), "expected a whole number of at least 1");
        }
        number
    }

    fn word<T: Copy>(
        &mut self,
        path: &str,
        map: &Mapping,
        key: &str,
        all: &[T],
        as_str: fn(T) -> &'static str,
        default: Option<T>,
    ) -> Option<T> {
        if default.is_some() && !map.contains_key(key) {
            return default;
        }
        let text = self.text(path, map, key)?;
        let found = all.iter().copied().find(|word| as_str(*word) == text);
        if found.is_none() {
            let known: Vec<&str> = all.iter().map(|word| as_str(*word)).collect();
            self.problem(&below(path, key), format!("unknown: `{text}`; known are {}", known.join(", ")));
        }
        found
    }
}

/// May a list be left out?
#[derive(Debug, Clone, Copy)]
enum Presence {
    Required,
    Optional,
}

fn is_parameter_name(name: &str) -> bool {
    (3..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
