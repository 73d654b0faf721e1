//! What differs between two JSON documents, place by place.

use serde_json::{Map, Value};

/// A place in both documents, and its values there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// `runner.version`; a list is one place.
    pub(crate) path: String,
    /// Now, if it is there.
    pub(crate) now: Option<Value>,
    /// Wanted, if it is to be there.
    pub(crate) wanted: Option<Value>,
}

/// The places that differ, in the order of their names; `None` where one of the texts is no JSON object.
pub(crate) fn changes(now: &str, wanted: &str) -> Option<Vec<Change>> {
    let object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok();
    let mut found = Vec::new();
    compare("", &object(now)?, &object(wanted)?, &mut found);
    Some(found)
}

fn compare(prefix: &str, now: &Map<String, Value>, wanted: &Map<String, Value>, found: &mut Vec<Change>) {
    let mut names: Vec<&String> = now.keys().chain(wanted.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let path = format!("{prefix}{name}");
        match (now.get(name), wanted.get(name)) {
            (Some(Value::Object(now)), Some(Value::Object(wanted))) => compare(&format!("{path}."), now, wanted, found),
            (now, wanted) if now != wanted => {
                found.push(Change { path, now: now.cloned(), wanted: wanted.cloned() });
            }
            _ => {}
        }
    }
}
