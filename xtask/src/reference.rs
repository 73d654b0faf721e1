//! The handbook's page of every key of kiln.toml, made from its JSON schema, which is made from the code.

use std::fmt::Write as _;

use serde_json::Value;

const HEAD: &str = "\
# kiln.toml, key by key

Made by `cargo xtask schema` from the types that kiln.toml is read into; `kiln.schema.json`, from the same, is for editors. The
commented example is docs/kiln.toml in the repository. A key that is not listed here is an error.
";

/// Markdown of a schema: a section for each table, a heading for each key.
pub(crate) fn page(schema: &Value) -> String {
    let mut page = HEAD.to_owned();
    table(&mut page, "", schema, &[]);
    page
}

/// A table's section, with what is to be noted of it, and after it those of the tables in it.
fn table(page: &mut String, path: &str, schema: &Value, notes: &[String]) {
    let title = if path.is_empty() { "At the top".to_owned() } else { format!("`[{path}]`") };
    let _ = write!(page, "\n## {title}\n");
    if !path.is_empty() {
        paragraph(page, schema);
        page.push('\n');
    }
    for note in notes {
        let _ = writeln!(page, "* {note}");
    }
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let keys = schema["properties"].as_object();
    let mut inner = Vec::new();
    for (name, key) in keys.into_iter().flatten() {
        match below(path, name, key) {
            Some((path, schema)) => inner.push((path, schema, key, must(&required, name))),
            None => one(page, name, key, must(&required, name)),
        }
    }
    for (path, schema, key, must) in inner {
        // A table of tables is described where it is named.
        let mut described = schema.clone();
        described["description"] = key["description"].clone();
        let notes: Vec<String> = std::iter::once(format!("a table, {must}")).chain(bounds(key)).collect();
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
    let each = &key["additionalProperties"];
    let placeholder = if name == "fleet" { "NAME" } else { "MAJOR" };
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
        let _ = writeln!(page, "* for example `{name} = {}`", toml(example));
    }
}

/// A schema's description, its source's line breaks undone.
fn paragraph(page: &mut String, schema: &Value) {
    if let Some(text) = schema["description"].as_str() {
        let _ = write!(page, "\n{}\n", text.replace('\n', " "));
    }
}

/// What a value is, in plain words.
fn kind(schema: &Value) -> String {
    if schema["anyOf"].is_array() || schema["oneOf"].is_array() {
        return "one of".to_owned();
    }
    match schema["type"].as_str() {
        Some("string") => "a text".to_owned(),
        Some("integer") => "a whole number".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("array") => format!("a list; each is {}", kind(&schema["items"])),
        Some("object") => format!("a table of names; each value is {}", kind(&schema["additionalProperties"])),
        other => unreachable!("kiln.toml has no key of type {other:?}"),
    }
}

/// What a value may be, where there is a choice.
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

/// What holds for a value beside its type.
fn bounds(schema: &Value) -> Vec<String> {
    let told = [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minLength", "characters at least:"),
        ("maxLength", "characters at most:"),
        ("minItems", "entries at least:"),
        ("maxItems", "entries at most:"),
        ("maxProperties", "names at most:"),
    ];
    let mut bounds: Vec<String> = told
        .into_iter()
        .filter_map(|(name, words)| Some(format!("{words} {}", schema[name].as_u64().filter(|bound| *bound > 0)?)))
        .collect();
    for (place, words) in [("", "of the form"), ("/items", "each of the form"), ("/propertyNames", "names of the form")]
    {
        if let Some(pattern) = schema.pointer(&format!("{place}/pattern")).and_then(Value::as_str) {
            bounds.push(format!("{words} `{pattern}`"));
        }
    }
    bounds
}

/// A value as kiln.toml has it.
fn toml(value: &Value) -> String {
    match value {
        Value::Array(entries) => format!("[{}]", entries.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields: Vec<_> = fields.iter().map(|(name, field)| format!("{name} = {}", toml(field))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        // Numbers, truths, and texts without an escape: the same in both.
        plain => plain.to_string(),
    }
}
