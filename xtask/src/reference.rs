//! Generates the handbook's page about the keys of kiln.toml from the JSON schema.

use std::fmt::Write as _;

use serde_json::Value;

const HEAD: &str = "\
# kiln.toml reference

`cargo xtask schema` generates this page and `kiln.schema.json`, which is for editors, from Kiln's source. docs/kiln.toml in the
repository is an example with comments. A key that is not listed here is an error.
";

/// The page as Markdown: a section for each table, a heading for each key.
pub(crate) fn page(schema: &Value) -> String {
    let mut page = HEAD.to_owned();
    table(&mut page, "", schema, &[]);
    page
}

/// Writes a table's section with its `notes`, then the sections of the tables in it.
fn table(page: &mut String, path: &str, schema: &Value, notes: &[String]) {
    let title = if path.is_empty() { "Top-level keys".to_owned() } else { format!("`[{path}]`") };
    let _ = write!(page, "\n## {title}\n");
    if !path.is_empty() {
        paragraph(page, schema);
        page.push('\n');
    }
    for note in notes {
        let _ = writeln!(page, "* {note}");
    }
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let conditional = schema["else"]["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let conditional: Vec<&str> = conditional.collect();
    let condition = schema["if"]["properties"].as_object().and_then(|keys| keys.iter().next());
    let unless = condition.map(|(name, wanted)| format!("required, unless `{name} = {}`", wanted["const"]));
    let must = |name: &str| match &unless {
        Some(unless) if conditional.contains(&name) => unless.clone(),
        _ => must(&required, name).to_owned(),
    };
    let keys = schema["properties"].as_object();
    let mut inner = Vec::new();
    for (name, key) in keys.into_iter().flatten() {
        match below(path, name, key) {
            Some((path, schema)) => inner.push((path, schema, key, must(name))),
            None => one(page, name, key, &must(name)),
        }
    }
    for (path, schema, key, must) in inner {
        // The description of a table of tables is at its key, not in the schema of one of its tables.
        let mut described = schema.clone();
        described["description"] = key["description"].clone();
        let kind = if key["items"].is_object() { "a list of tables" } else { "a table" };
        let notes: Vec<String> = std::iter::once(format!("{kind}, {must}")).chain(bounds(key)).collect();
        table(page, &path, &described, &notes);
    }
}

fn must(required: &[&str], name: &str) -> &'static str {
    if required.contains(&name) { "required" } else { "optional" }
}

/// The path and the schema of a key that is a table with keys of its own.
fn below<'a>(path: &str, name: &str, key: &'a Value) -> Option<(String, &'a Value)> {
    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    if key["properties"].is_object() {
        return Some((path, key));
    }
    if key["items"]["properties"].is_object() {
        return Some((path, &key["items"]));
    }
    let each = &key["additionalProperties"];
    let placeholder = if name == "node" { "MAJOR" } else { "NAME" };
    each["properties"].is_object().then(|| (format!("{path}.{placeholder}"), each))
}

/// One key.
fn one(page: &mut String, name: &str, key: &Value, must: &str) {
    let _ = write!(page, "\n### `{name}`\n");
    paragraph(page, key);
    let _ = write!(page, "\n* {}, {must}\n", kind(key));
    for choice in choices(key) {
        let _ = writeln!(page, "  * {choice}");
    }
    for bound in bounds(key) {
        let _ = writeln!(page, "* {bound}");
    }
    if let Some(default) = key.get("default").filter(|default| !default.is_null()) {
        let _ = writeln!(page, "* default: `{}`", toml(default));
    }
    for example in key["examples"].as_array().into_iter().flatten() {
        let _ = writeln!(page, "* example: `{name} = {}`", toml(example));
    }
}

/// Writes a schema's description as one paragraph: the line breaks of the doc comment become spaces.
fn paragraph(page: &mut String, schema: &Value) {
    if let Some(text) = schema["description"].as_str() {
        let _ = write!(page, "\n{}\n", text.replace('\n', " "));
    }
}

/// The type of a value, for readers.
fn kind(schema: &Value) -> String {
    if schema["anyOf"].is_array() || schema["oneOf"].is_array() {
        return "one of".to_owned();
    }
    match schema["type"].as_str() {
        Some("string") => "a string".to_owned(),
        Some("integer") => "an integer".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("array") => format!("a list; each is {}", kind(&schema["items"])),
        Some("object") => format!("a table; each value is {}", kind(&schema["additionalProperties"])),
        other => unreachable!("kiln.toml has no key of type {other:?}"),
    }
}

/// The allowed values, if the schema lists them.
fn choices(schema: &Value) -> Vec<String> {
    let alternatives = [&schema["anyOf"], &schema["oneOf"]].into_iter().filter_map(Value::as_array).flatten();
    let mut choices = Vec::new();
    for alternative in alternatives {
        if alternative["oneOf"].is_array() {
            choices.extend(self::choices(alternative));
            continue;
        }
        let text = alternative["description"].as_str().unwrap_or_default().replace('\n', " ");
        match alternative.get("const") {
            Some(value) => choices.push(format!("`{}`: {text}", toml(value))),
            None => {
                let keys = alternative["properties"].as_object().into_iter().flatten();
                let shown = keys.map(|(name, key)| format!("{name} = {}", toml(&key["examples"][0])));
                choices.push(format!("`{{ {} }}`: {text}", shown.collect::<Vec<_>>().join(", ")));
            }
        }
    }
    choices
}

/// The limits of a value, in addition to its type.
fn bounds(schema: &Value) -> Vec<String> {
    let limits = [
        ("minimum", "minimum:"),
        ("maximum", "maximum:"),
        ("minLength", "minimum length:"),
        ("maxLength", "maximum length:"),
        ("minItems", "minimum number of entries:"),
        ("maxItems", "maximum number of entries:"),
        ("maxProperties", "maximum number of keys:"),
    ];
    let mut bounds: Vec<String> = limits
        .into_iter()
        .filter_map(|(name, words)| Some(format!("{words} {}", schema[name].as_u64().filter(|bound| *bound > 0)?)))
        .collect();
    for (place, words) in
        [("", "pattern:"), ("/items", "pattern of each entry:"), ("/propertyNames", "pattern of each key:")]
    {
        if let Some(pattern) = schema.pointer(&format!("{place}/pattern")).and_then(Value::as_str) {
            bounds.push(format!("{words} `{pattern}`"));
        }
    }
    bounds
}

/// A value in TOML's syntax.
fn toml(value: &Value) -> String {
    match value {
        Value::Array(entries) => format!("[{}]", entries.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields: Vec<_> = fields.iter().map(|(name, field)| format!("{name} = {}", toml(field))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        // Numbers, booleans, and strings without an escape have the same syntax in JSON and TOML.
        plain => plain.to_string(),
    }
}
