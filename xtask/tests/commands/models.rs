//! AWS's own models of its services, held against what was sent: names, requirements, lengths, patterns, choices. The SDK
//! checks none of the latter three, and an emulator only those somebody thought of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Map, Value};

use crate::support::World;

/// As the emulator's requirements bring them.
fn folder() -> PathBuf {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/tools/venv/lib");
    let python = std::fs::read_dir(&venv).unwrap().flatten().map(|entry| entry.path());
    let mut found = python.map(|path| path.join("site-packages/botocore/data")).filter(|path| path.is_dir());
    found.next().unwrap_or_else(|| panic!("botocore is not below {}", venv.display()))
}

/// A service.
struct Model(Value);

impl Model {
    /// The newest of its versions; `None` for S3, whose requests have no one form.
    fn load(folder: &Path, service: &str) -> Option<Self> {
        let service = match service {
            "s3" => return None,
            "servicequotas" => "service-quotas",
            other => other,
        };
        let versions = std::fs::read_dir(folder.join(service)).unwrap_or_else(|_| panic!("no model of {service}"));
        let newest = versions.flatten().map(|entry| entry.path()).max().unwrap();
        let packed = std::fs::File::open(newest.join("service-2.json.gz")).unwrap();
        Some(Self(serde_json::from_reader(flate2::read::GzDecoder::new(packed)).unwrap()))
    }

    fn shape(&self, name: &Value) -> &Value {
        &self.0["shapes"][name.as_str().unwrap()]
    }

    fn protocol(&self) -> &str {
        self.0["metadata"]["protocol"].as_str().unwrap()
    }

    /// What of a request is not as the model says.
    fn faults(&self, operation: &str, body: &[u8]) -> Vec<String> {
        let Some(input) = self.0["operations"][operation].get("input") else {
            return vec!["there is no such operation, or it takes nothing".to_owned()];
        };
        let shape = self.shape(&input["shape"]);
        let sent = match self.protocol() {
            "query" | "ec2" => self.structure(shape, &Tree::of_form(body)),
            _ => match serde_json::from_slice(body) {
                Ok(sent) => sent,
                Err(error) => return vec![error.to_string()],
            },
        };
        let mut faults = Vec::new();
        self.check(shape, &sent, "", &mut faults);
        faults
    }

    /// A member's name on the wire.
    fn wire_name(&self, name: &str, member: &Value) -> String {
        match (self.protocol(), member["queryName"].as_str(), member["locationName"].as_str()) {
            ("ec2", Some(name), _) => name.to_owned(),
            ("ec2", None, name_there) => {
                let name = name_there.unwrap_or(name);
                name.chars().take(1).flat_map(char::to_uppercase).chain(name.chars().skip(1)).collect()
            }
            (_, _, name_there) => name_there.unwrap_or(name).to_owned(),
        }
    }

    /// A form's fields as the document they stand for. What no member is named for is kept, to be told.
    fn structure(&self, shape: &Value, tree: &Tree) -> Value {
        let mut names: BTreeMap<String, &Value> = BTreeMap::new();
        for (name, member) in shape["members"].as_object().into_iter().flatten() {
            names.insert(self.wire_name(name, member), member);
        }
        let fields = tree.children.iter().filter(|(name, _)| !matches!(name.as_str(), "Action" | "Version"));
        let value = |(name, child): (&String, &Tree)| {
            let value = names.get(name).map_or(Value::Null, |member| self.value(self.shape(&member["shape"]), child));
            (name.clone(), value)
        };
        Value::Object(fields.map(value).collect())
    }

    fn value(&self, shape: &Value, tree: &Tree) -> Value {
        let text = || tree.value.clone().unwrap_or_default();
        match shape["type"].as_str().unwrap() {
            "structure" => self.structure(shape, tree),
            "list" => {
                let flat = self.protocol() == "ec2" || shape["flattened"] == true;
                let name = shape["member"]["locationName"].as_str().unwrap_or("member");
                let items = if flat { Some(tree) } else { tree.children.get(name) };
                let member = self.shape(&shape["member"]["shape"]);
                let mut numbered: Vec<(usize, &Tree)> =
                    items.into_iter().flat_map(|t| &t.children).map(|(n, child)| (n.parse().unwrap(), child)).collect();
                numbered.sort_by_key(|(number, _)| *number);
                numbered.into_iter().map(|(_, child)| self.value(member, child)).collect()
            }
            "integer" | "long" => text().parse::<i64>().map_or_else(|_| text().into(), Value::from),
            "double" | "float" => text().parse::<f64>().map_or_else(|_| text().into(), Value::from),
            "boolean" => text().parse::<bool>().map_or_else(|_| text().into(), Value::from),
            _ => text().into(),
        }
    }

    fn check(&self, shape: &Value, sent: &Value, place: &str, faults: &mut Vec<String>) {
        let mut fault = |what: &str| faults.push(format!("{}: {what}", if place.is_empty() { "." } else { place }));
        let bounds = |length: usize| {
            let length = length as f64;
            shape["min"].as_f64().is_none_or(|min| length >= min)
                && shape["max"].as_f64().is_none_or(|max| length <= max)
        };
        match (shape["type"].as_str().unwrap(), sent) {
            ("structure", Value::Object(fields)) => self.check_members(shape, fields, place, faults),
            ("list", Value::Array(items)) => {
                if !bounds(items.len()) {
                    fault(&format!("{} items", items.len()));
                }
                let member = self.shape(&shape["member"]["shape"]);
                for (index, item) in items.iter().enumerate() {
                    self.check(member, item, &format!("{place}[{index}]"), faults);
                }
            }
            ("map", Value::Object(entries)) => {
                if !bounds(entries.len()) {
                    fault(&format!("{} entries", entries.len()));
                }
                for (key, value) in entries {
                    let place = format!("{place}.{key}");
                    self.check(self.shape(&shape["key"]["shape"]), &Value::from(key.as_str()), &place, faults);
                    self.check(self.shape(&shape["value"]["shape"]), value, &place, faults);
                }
            }
            ("string", Value::String(text)) => {
                if !bounds(text.chars().count()) {
                    fault(&format!("{} characters", text.chars().count()));
                }
                let choices = shape["enum"].as_array();
                if choices.is_some_and(|choices| !choices.iter().any(|choice| choice == text.as_str())) {
                    fault(&format!("{text:?} is no choice"));
                }
                // Some use what Java has and this has not.
                let pattern = shape["pattern"].as_str().and_then(|p| Regex::new(&format!("^(?:{p})$")).ok());
                if pattern.is_some_and(|pattern| !pattern.is_match(text)) {
                    fault(&format!("{text:?} does not match {}", shape["pattern"]));
                }
            }
            ("integer" | "long" | "double" | "float", Value::Number(number)) => {
                let number = number.as_f64().unwrap();
                let within = shape["min"].as_f64().is_none_or(|min| number >= min)
                    && shape["max"].as_f64().is_none_or(|max| number <= max);
                if !within {
                    fault(&format!("{number} is out of bounds"));
                }
            }
            ("boolean", Value::Bool(_)) | ("timestamp", _) | ("blob", Value::String(_)) => {}
            (kind, other) => fault(&format!("{other} is no {kind}")),
        }
    }

    fn check_members(&self, shape: &Value, fields: &Map<String, Value>, place: &str, faults: &mut Vec<String>) {
        let members = shape["members"].as_object().cloned().unwrap_or_default();
        let mut left: Vec<&String> = fields.keys().collect();
        for (name, member) in &members {
            // In the address or a header, which the body does not show.
            if member.get("location").is_some() {
                continue;
            }
            let wire = self.wire_name(name, member);
            left.retain(|field| **field != wire);
            match fields.get(&wire) {
                Some(value) => self.check(self.shape(&member["shape"]), value, &format!("{place}.{name}"), faults),
                None if shape["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name.as_str())) => {
                    faults.push(format!("{place}.{name} is missing"));
                }
                None => {}
            }
        }
        faults.extend(left.into_iter().map(|field| format!("{place}.{field} is unknown")));
    }
}

/// A form's dotted names.
#[derive(Default)]
struct Tree {
    value: Option<String>,
    children: BTreeMap<String, Tree>,
}

impl Tree {
    fn of_form(body: &[u8]) -> Self {
        let mut root = Self::default();
        for (name, value) in url::form_urlencoded::parse(body) {
            let place = name.split('.').fold(&mut root, |tree, part| tree.children.entry(part.to_owned()).or_default());
            place.value = Some(value.into_owned());
        }
        root
    }
}

/// Everything that was sent to AWS in a world so far is as AWS models it.
pub(crate) fn assert_modelled(world: &World) {
    let folder = folder();
    let mut models: BTreeMap<String, Option<Model>> = BTreeMap::new();
    let mut faults = std::collections::BTreeSet::new();
    let mut looked_at = 0;
    for (call, body) in world.aws.bodies() {
        let (service, operation) = call.split_once(':').unwrap();
        let model = models.entry(service.to_owned()).or_insert_with(|| Model::load(&folder, service));
        // What asks by its address alone has no body.
        if let (Some(model), false) = (model, body.is_empty()) {
            looked_at += 1;
            faults.extend(model.faults(operation, &body).into_iter().map(|fault| format!("{call}{fault}")));
        }
    }
    assert!(looked_at > 0, "nothing was sent");
    assert_eq!(faults.into_iter().collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn what_no_model_allows_is_seen() {
    let setup = std::process::Command::new(env!("CARGO_BIN_EXE_xtask")).arg("setup").status().unwrap();
    assert!(setup.success());
    let model = |service| Model::load(&folder(), service).unwrap();
    let faults = |service, operation, body: &str| model(service).faults(operation, body.as_bytes());
    let expected = [
        ".clientToken is missing",
        ".name: \"-\" does not match \"^[-_A-Za-z-0-9][-_A-Za-z0-9 ]{1,126}[-_A-Za-z-0-9]$\"",
        ".platform: \"Plan9\" is no choice",
        ".semanticVersion is missing",
        ".colour is unknown",
    ];
    assert_eq!(faults("imagebuilder", "CreateComponent", r#"{"name":"-","platform":"Plan9","colour":1}"#), expected);
    let refresh = "Action=StartInstanceRefresh&AutoScalingGroupName=&Preferences.MinHealthyPercentage=200\
                   &Preferences.CheckpointPercentages.member.1=50&Preferences.CheckpointPercentages.member.2=x&Preferences.Q=1";
    let expected = [
        ".AutoScalingGroupName: 0 characters",
        ".Preferences.CheckpointPercentages[1]: \"x\" is no integer",
        ".Preferences.MinHealthyPercentage: 200 is out of bounds",
        ".Preferences.Q is unknown",
    ];
    assert_eq!(faults("autoscaling", "StartInstanceRefresh", refresh), expected);
    let tags = "Action=CreateTags&ResourceId.1=i-1&Tag.1.Key=a&Tag.1.Colour=b";
    assert_eq!(faults("ec2", "CreateTags", tags), [".Tags[0].Colour is unknown"]);
}
