//! The shape of a `kiln.toml`: which keys there are, which are required, and what kind of value each has.
//!
//! Serde would stop at the first mistake and speak of Rust's types. This goes by the same schema that editors use, finds
//! them all, and takes out of the document what it complains about, so that serde meets only what fits.

use std::fmt;
use std::ops::Range;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeTable, DeValue};

use super::diagnostic::{Diagnostic, Findings, cut};
use super::secret;

/// Checks a document, and takes out of it what is complained about.
pub(super) fn check(document: &mut DeTable<'_>, schema: &Value, found: &mut Findings) {
    Shape { root: schema, found }.table(document, 0..0, schema, &Path::default());
}

struct Shape<'a> {
    root: &'a Value,
    found: &'a mut Findings,
}

impl Shape<'_> {
    fn table(&mut self, table: &mut DeTable<'_>, span: Range<usize>, schema: &Value, path: &Path) {
        let known = properties(schema);
        let rest = schema.get("additionalProperties").filter(|rest| rest.is_object());
        // A key that is misspelt, or refused for its value, is not missing as well.
        let mut meant: Vec<String> = Vec::new();
        let mut refused = Vec::new();
        for (key, value) in table.iter_mut() {
            let name = key.get_ref().as_ref();
            meant.push(name.to_owned());
            let fits = match known.and_then(|known| known.get(name)).or(rest) {
                Some(schema) => self.value(value, schema, &path.with(name)),
                None => {
                    meant.extend(self.unknown(name, (key.span(), value.span()), schema, path));
                    false
                }
            };
            if !fits {
                self.found.refuse(path.with(name).keys.join("."));
                refused.push(name.to_owned());
            }
        }
        let conditional = conditionally_required(schema, table, &refused);
        for key in refused {
            table.remove(key.as_str());
        }
        let required = required(schema).chain(conditional);
        let missing: Vec<&str> = required.filter(|key| !meant.iter().any(|meant| meant == key)).collect();
        if !missing.is_empty() {
            self.missing(&missing, span, schema, path);
        }
    }

    /// Does the value stay?
    fn value(&mut self, value: &mut Spanned<DeValue<'_>>, schema: &Value, path: &Path) -> bool {
        let span = value.span();
        let forms = forms(schema);
        let kind = kind(value.get_ref());
        let Some(form) = forms.iter().find(|form| form.get("type").and_then(Value::as_str) == Some(kind)) else {
            self.found.push(wrong_kind(kind, span, schema, path));
            return false;
        };
        match value.get_mut() {
            DeValue::String(text) => match choices(&forms).as_slice() {
                [] => true,
                choices if choices.contains(&text.as_ref()) => true,
                choices => {
                    self.found.push(wrong_choice(text, span, choices, path));
                    false
                }
            },
            DeValue::Integer(integer) => self.integer(integer, span, form, path),
            DeValue::Array(array) => self.array(array, span, form, path),
            DeValue::Table(table) => {
                let empty = table.is_empty();
                self.table(table, span.clone(), form, path);
                if empty && form.get("minProperties").is_some() {
                    let diagnostic = Diagnostic::new(span, format!("{} is empty", path.name()));
                    self.found.push(with_about(diagnostic, &[(path.last(), schema)]));
                    return false;
                }
                true
            }
            _ => true,
        }
    }

    fn integer(&mut self, integer: &DeInteger<'_>, span: Range<usize>, form: &Value, path: &Path) -> bool {
        let bound = |name: &str| form.get(name).and_then(Value::as_i64).map(i128::from);
        let least = bound("minimum").unwrap_or(i128::MIN);
        let most = bound("maximum");
        // TOML's integers have 64 bits; serde reads some of ours into 32.
        let widest = if form["format"] == "uint32" { u32::MAX.into() } else { i64::MAX.into() };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        if number.is_some_and(|number| (least..=most.unwrap_or(widest)).contains(&number)) {
            return true;
        }
        let expected = match most {
            Some(most) => format!("expected {least} to {most}"),
            None if number.is_some_and(|number| number < least) => format!("expected at least {least}"),
            None => format!("expected at most {widest}"),
        };
        self.found.push(Diagnostic::new(span, format!("{} is {integer}", path.name())).expected(expected));
        false
    }

    fn array(&mut self, array: &mut DeArray<'_>, span: Range<usize>, form: &Value, path: &Path) -> bool {
        let entries = array.len();
        let bound = |name: &str| form.get(name).and_then(Value::as_u64).and_then(|bound| usize::try_from(bound).ok());
        let (least, most) = (bound("minItems").unwrap_or(0), bound("maxItems").unwrap_or(usize::MAX));
        let mut fits = true;
        if let Some(schema) = form.get("items") {
            for entry in array.iter_mut() {
                fits &= self.value(entry, schema, &path.entry());
            }
        }
        if !(least..=most).contains(&entries) {
            let expected = if entries < least { format!("at least {least}") } else { format!("at most {most}") };
            let message = format!("{} has {entries} entries", path.name());
            self.found.push(Diagnostic::new(span, message).expected(format!("expected {expected}")));
            fits = false;
        }
        fits
    }

    fn missing(&mut self, missing: &[&str], span: Range<usize>, schema: &Value, path: &Path) {
        let names = missing.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        let verb = if missing.len() == 1 { "is" } else { "are" };
        let diagnostic =
            Diagnostic::new(span, format!("{names} {verb} missing")).expected(format!("expected in {path}"));
        let properties = properties(schema).into_iter();
        let about: Vec<(&str, &Value)> = properties
            .flat_map(|properties| missing.iter().filter_map(|key| Some((*key, properties.get(*key)?))))
            .collect();
        self.found.push(with_about(diagnostic, &about));
    }

    /// Complains about a key, and tells which one was probably meant.
    fn unknown(
        &mut self,
        key: &str,
        (span, value): (Range<usize>, Range<usize>),
        schema: &Value,
        path: &Path,
    ) -> Option<String> {
        if self.found.is_full() {
            self.found.push(Diagnostic::new(span, String::new()));
            return None;
        }
        let hidden = span.start..value.end;
        let mut diagnostic = Diagnostic::new(span, format!("unknown key `{}` in {path}", cut(key)));
        if secret::is_announced_by(key) {
            diagnostic = diagnostic.hiding(hidden);
        }
        let Some(properties) = properties(schema) else {
            self.found.push(diagnostic);
            return None;
        };
        let keys: Vec<&str> = properties.keys().map(String::as_str).collect();
        let list = format!("{path} has: {}", keys.join(", "));
        if let Some((_, now)) =
            MOVED.iter().find(|(moved, _)| *moved == key && path.keys.first().is_some_and(|first| first == "fleet"))
        {
            self.found.push(diagnostic.expected(format!("it is {now}")));
            return None;
        }
        let nearest = nearest(key, &keys);
        self.found.push(match (nearest, self.elsewhere(key), as_value(key, properties)) {
            (Some(nearest), ..) => diagnostic.expected(format!("did you mean `{nearest}`?")).hint(list),
            (None, Some(home), _) => diagnostic.expected(format!("`{key}` is a key of {home}")).hint(list),
            (None, None, Some(line)) => diagnostic.expected(format!("did you mean `{line}`?")).hint(list),
            (None, None, None) => diagnostic.expected("expected one of the keys below").hint(list),
        });
        nearest.map(str::to_owned)
    }

    /// The tables that have such a key.
    fn elsewhere(&self, key: &str) -> Option<String> {
        let mut homes = Vec::new();
        collect_homes(self.root, key, &Path::default(), &mut homes);
        let last = homes.pop()?;
        Some(if homes.is_empty() { last } else { format!("{} and {last}", homes.join(", ")) })
    }
}

/// The keys from the top level down to a value, and whether it is an entry of an array there.
#[derive(Default, Clone)]
struct Path {
    keys: Vec<String>,
    entry: bool,
}

impl Path {
    fn with(&self, key: &str) -> Self {
        Self { keys: self.keys.iter().map(String::as_str).chain([key]).map(str::to_owned).collect(), entry: false }
    }

    fn entry(&self) -> Self {
        Self { entry: true, ..self.clone() }
    }

    fn last(&self) -> &str {
        self.keys.last().map_or("", String::as_str)
    }

    /// The value, as a sentence's subject.
    fn name(&self) -> String {
        let last = self.last();
        if self.entry { format!("an entry of `{last}`") } else { format!("`{last}`") }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keys.is_empty() {
            f.write_str("the top level, above the first [table]")
        } else {
            write!(f, "[{}]", self.keys.join("."))
        }
    }
}

fn wrong_kind(kind: &str, span: Range<usize>, schema: &Value, path: &Path) -> Diagnostic {
    let forms = forms(schema);
    let mut expected: Vec<String> = choices(&forms).iter().map(|choice| format!("\"{choice}\"")).collect();
    let kinds = forms.iter().filter(|form| form.get("const").is_none()).filter_map(|form| form["type"].as_str());
    expected.extend(kinds.map(|kind| with_article(kind).to_owned()));
    let diagnostic = Diagnostic::new(span, format!("{} is {}", path.name(), with_article(kind)))
        .expected(format!("expected {}", expected.join(" or ")));
    if let [table, name] = path.keys.as_slice()
        && let Some((article, example)) = named_table(table)
    {
        return diagnostic
            .hint(format!("{article} {table} has a name: write [{table}.{example}], for one, above `{name}`"));
    }
    if path.entry { diagnostic } else { with_about(diagnostic, &[(path.last(), schema)]) }
}

/// Tables whose entries have names of the user's: with article and example.
fn named_table(table: &str) -> Option<(&'static str, &'static str)> {
    match table {
        "fleet" => Some(("a", "linux")),
        "image" => Some(("an", "tools")),
        _ => None,
    }
}

/// Keys that are another one elsewhere.
const MOVED: [(&str, &str); 2] = [
    ("base_image", "`base` of a table [image.NAME], which the fleet's `image` names"),
    ("architecture", "`architecture` of a table [image.NAME], which the fleet's `image` names"),
];

fn wrong_choice(text: &str, span: Range<usize>, choices: &[&str], path: &Path) -> Diagnostic {
    let list = choices.iter().map(|choice| format!("\"{choice}\"")).collect::<Vec<_>>().join(" or ");
    let diagnostic = Diagnostic::of_value(span, &path.name(), text).expected(format!("expected {list}"));
    match nearest(text, choices) {
        Some(nearest) => diagnostic.hint(format!("did you mean \"{nearest}\"?")),
        None => diagnostic,
    }
}

/// Hints at what keys are for, in the words of the schema, each with an example.
fn with_about(diagnostic: Diagnostic, keys: &[(&str, &Value)]) -> Diagnostic {
    let lines: Vec<String> = keys
        .iter()
        .filter_map(|(key, schema)| {
            let about = schema.get("description")?.as_str()?.split_whitespace().collect::<Vec<_>>().join(" ");
            let example = schema.get("examples").and_then(|examples| examples.get(0)).or(schema.get("default"));
            // A string, a number or a short array is the same text in JSON and TOML.
            Some(match example {
                Some(example) => format!("`{key} = {example}`: {about}"),
                None => format!("`{key}`: {about}"),
            })
        })
        .collect();
    if lines.is_empty() { diagnostic } else { diagnostic.hint(lines.join("\n")) }
}

fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// What is required only where other keys have certain values, or do not have them. Where such a key was refused nobody
/// knows what was meant, and nothing is.
fn conditionally_required<'a>(schema: &'a Value, table: &DeTable<'_>, refused: &[String]) -> Vec<&'a str> {
    let Some(condition) = schema.get("if") else { return Vec::new() };
    let mut wanted = properties(condition).into_iter().flatten();
    if wanted.clone().any(|(key, _)| refused.contains(key)) {
        return Vec::new();
    }
    let holds = wanted.all(|(key, wanted)| {
        let value = table.get(key.as_str()).and_then(|value| value.get_ref().as_str());
        value.is_some() && value == wanted.get("const").and_then(Value::as_str)
    });
    schema.get(if holds { "then" } else { "else" }).map(|branch| required(branch).collect()).unwrap_or_default()
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}

/// What a value may be: the schema's alternatives, one level or two of them, or the schema itself.
fn forms(schema: &Value) -> Vec<&Value> {
    match schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array) {
        Some(alternatives) => alternatives.iter().flat_map(forms).collect(),
        None => vec![schema],
    }
}

/// The words that a value may be, where only some are allowed.
fn choices<'a>(forms: &[&'a Value]) -> Vec<&'a str> {
    forms.iter().filter_map(|form| form.get("const").and_then(Value::as_str)).collect()
}

/// As JSON schema names it; what JSON does not have is no type of any key of ours.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "string",
        DeValue::Integer(_) => "integer",
        DeValue::Array(_) => "array",
        DeValue::Table(_) => "object",
        DeValue::Boolean(_) => "boolean",
        DeValue::Float(_) => "number",
        DeValue::Datetime(_) => "date",
    }
}

/// As TOML names it.
fn with_article(kind: &str) -> &str {
    match kind {
        "string" => "a string",
        "integer" => "an integer",
        "array" => "an array",
        "object" => "a table",
        "boolean" => "a boolean",
        "number" => "a float",
        _ => "a date or time",
    }
}

/// The name that differs least, if it is near enough for a slip of the hand.
fn nearest<'a>(given: &str, names: &[&'a str]) -> Option<&'a str> {
    // The distance takes the product of the lengths to find, and no name of ours is as long.
    const LONGEST_NAME: usize = 64;
    if given.len() > LONGEST_NAME {
        return None;
    }
    let plain = |name: &str| name.to_lowercase().replace('-', "_");
    let given = plain(given);
    let distance = |name: &&str| strsim::osa_distance(&given, &plain(name));
    let nearest = names.iter().copied().min_by_key(distance)?;
    // A third of the letters, as cargo has it.
    (distance(&nearest) <= given.chars().count().max(3) / 3).then_some(nearest)
}

/// A word given as a key that is a value, such as `create_vpc`: the line that was meant.
fn as_value(word: &str, properties: &Map<String, Value>) -> Option<String> {
    properties.iter().find_map(|(key, schema)| {
        let choices = choices(&forms(schema));
        choices.iter().find(|choice| choice.replace('-', "_") == word).map(|choice| format!("{key} = \"{choice}\""))
    })
}

fn collect_homes(schema: &Value, key: &str, path: &Path, homes: &mut Vec<String>) {
    for form in forms(schema) {
        if let Some(properties) = properties(form) {
            if properties.contains_key(key) {
                homes.push(path.to_string());
            }
            for (name, schema) in properties {
                collect_homes(schema, key, &path.with(name), homes);
            }
        }
        if let Some(rest) = form.get("additionalProperties").filter(|rest| rest.is_object()) {
            collect_homes(rest, key, &path.with("NAME"), homes);
        }
    }
}
