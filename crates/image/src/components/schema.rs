//! The JSON schema of component documents, for editors. It is made from the tables that [`super::Document::parse`] reads
//! by; what a schema can't say (references, unique names) only the parser tells.

use serde_json::{Map, Value, json};

use super::{Action, Input, Kind, OnFailure, PhaseName, Shape};

/// The schema as `ami/component.schema.json` holds it.
pub fn schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kiln's EC2 Image Builder component document",
        "type": "object",
        "additionalProperties": false,
        "required": ["name", "description", "schemaVersion", "phases"],
        "properties": {
            "name": text(),
            "description": text(),
            "schemaVersion": { "enum": [1.0, "1.0"] },
            "parameters": { "type": "array", "minItems": 1, "items": parameter() },
            "phases": { "type": "array", "minItems": 1, "maxItems": PhaseName::ALL.len(), "items": phase() },
        },
    })
}

fn text() -> Value {
    json!({ "type": "string", "minLength": 1 })
}

fn words<T: Copy>(all: &[T], as_str: fn(T) -> &'static str) -> Value {
    json!({ "enum": all.iter().map(|word| as_str(*word)).collect::<Vec<_>>() })
}

fn parameter() -> Value {
    json!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "propertyNames": { "pattern": "^[A-Za-z0-9_-]{3,128}$" },
        "additionalProperties": {
            "type": "object",
            "additionalProperties": false,
            "required": ["type", "description"],
            "properties": { "type": { "const": "string" }, "default": { "type": "string" }, "description": text() },
        },
    })
}

fn phase() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["name", "steps"],
        "properties": {
            "name": words(PhaseName::ALL, PhaseName::as_str),
            "steps": { "type": "array", "minItems": 1, "items": step() },
        },
    })
}

fn step() -> Value {
    let count = json!({ "type": "integer", "minimum": 1 });
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["name", "action"],
        "properties": {
            "name": text(),
            "action": words(Action::ALL, Action::as_str),
            "onFailure": words(OnFailure::ALL, OnFailure::as_str),
            "maxAttempts": count,
            "timeoutSeconds": count,
            "inputs": true,
            "loop": r#loop(),
        },
        "allOf": Action::ALL.iter().map(|action| inputs_of(*action)).collect::<Vec<_>>(),
    })
}

fn r#loop() -> Value {
    let number = json!({ "type": "integer" });
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "name": text(),
            "for": {
                "type": "object",
                "additionalProperties": false,
                "required": ["start", "end", "updateBy"],
                "properties": { "start": number, "end": number, "updateBy": number },
            },
            "forEach": { "oneOf": [
                { "type": "array", "minItems": 1, "items": { "type": "string" } },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["list", "delimiter"],
                    "properties": { "list": text(), "delimiter": text() },
                },
            ] },
        },
        "oneOf": [{ "required": ["for"] }, { "required": ["forEach"] }],
    })
}

fn inputs_of(action: Action) -> Value {
    let (shape, inputs) = action.inputs();
    let one = mapping(inputs);
    let (schema, required) = match shape {
        Shape::One => (one, true),
        Shape::Optional => (one, false),
        Shape::Many => (json!({ "type": "array", "minItems": 1, "items": one }), true),
        Shape::Operators => (json!({ "type": "object", "minProperties": 1 }), true),
    };
    let mut then = json!({ "properties": { "inputs": schema } });
    if required {
        then["required"] = json!(["inputs"]);
    }
    json!({ "if": { "required": ["action"], "properties": { "action": { "const": action.as_str() } } }, "then": then })
}

fn mapping(inputs: &[Input]) -> Value {
    let properties: Map<String, Value> = inputs.iter().map(|input| (input.name.to_owned(), kind(input.kind))).collect();
    let required: Vec<&str> = inputs.iter().filter(|input| input.required).map(|input| input.name).collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": required })
}

fn kind(kind: Kind) -> Value {
    match kind {
        Kind::Text => text(),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Number => json!({ "type": "integer", "minimum": 0 }),
        Kind::TextList => json!({ "type": "array", "minItems": 1, "items": { "type": "string" } }),
        Kind::OneOf(words) => json!({ "enum": words }),
    }
}
