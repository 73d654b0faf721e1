//! The committed kiln.toml and its schema.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "config")]

use std::str::FromStr;

use kiln_config::boot::BootConfig;
use kiln_config::config::{Config, is_version, json_schema, wanted_version};
use kiln_config::model::{
    AccountId, FleetName, InstanceType, KmsKeyArn, Label, NodeVersion, Organization, Region, RunnerVersion, Sha256,
    SubnetId, VpcId,
};
use proptest::prelude::*;
use serde_json::Value;

const EXAMPLE: &str = include_str!("../../../docs/kiln.toml");

fn schema() -> Value {
    serde_json::from_str(&json_schema()).unwrap()
}

fn problems(text: &str) -> Vec<String> {
    let value: Value = toml::from_str(text).unwrap();
    let validator = jsonschema::validator_for(&schema()).unwrap();
    validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// Reads the comments that stand for keys (`# key = …`, `# [table]`) as keys.
fn uncommented() -> String {
    let is_key =
        |line: &str| line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let lines = EXAMPLE.lines().map(|line| line.strip_prefix("# ").filter(|line| is_key(line)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_valid_for_us_and_for_editors() {
    let config = Config::from_toml("kiln.toml", EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(problems(EXAMPLE), Vec::<String>::new());
    for fleet in config.fleets.values() {
        let sent = config.boot_config(fleet);
        assert_eq!(BootConfig::from_json(&sent.to_json().unwrap()).unwrap(), sent);
    }
}

#[test]
fn the_example_is_for_this_version() {
    let wanted = wanted_version(EXAMPLE).unwrap();
    assert_eq!(wanted, env!("CARGO_PKG_VERSION"), "docs/kiln.toml names another version than Cargo.toml");
    for (version, wanted, is) in [
        ("0.1.0", "0.1.0", true),
        ("0.1.0", "0.1", true),
        ("0.1.10", "0.1.1", false),
        ("0.10.0", "0.1", false),
        ("0.2.0", "0.1", false),
    ] {
        assert_eq!(is_version(version, wanted), is, "{version}, {wanted}");
    }
    let newer = "[kiln]\nversion = \"7.0\"\n[unheard_of]\nkey = 1\n";
    assert_eq!(wanted_version(newer).as_deref(), Some("7.0"), "what else is in the file does not matter");
}

#[test]
fn what_the_example_suggests_in_comments_is_valid_too() {
    let text = uncommented();
    assert!(text.lines().count() == EXAMPLE.lines().count() && text != EXAMPLE);
    let config = Config::from_toml_with_on_demand("kiln.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.fleets.len() > 1);
    assert_eq!(problems(&text), Vec::<String>::new());
}

#[test]
fn the_example_shows_every_key() {
    let text = uncommented();
    let schema = schema();
    let tables = [
        "",
        "/properties/app",
        "/properties/kiln",
        "/properties/github",
        "/properties/image_defaults",
        "/properties/runner",
        "/properties/runner/properties/sha256",
        "/properties/runner/properties/node/additionalProperties",
    ];
    let fleet = "/properties/fleet/additionalProperties";
    let parts = ["spot", "volume"].map(|part| format!("{fleet}/properties/{part}"));
    for table in tables.into_iter().chain([fleet]).chain(parts.iter().map(String::as_str)) {
        let keys = schema.pointer(&format!("{table}/properties")).and_then(Value::as_object).unwrap();
        for key in keys.keys() {
            let shown = EXAMPLE.contains(&format!("{key} ="))
                || text.contains(&format!("[{key}"))
                || text.contains(&format!(".{key}]"))
                || text.contains(&format!(".{key}."));
            assert!(shown, "{table}: {key}");
        }
    }
}

#[test]
fn the_committed_schema_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kiln.schema.json");
    if std::env::var_os("KILN_UPDATE").is_some() {
        std::fs::write(path, json_schema()).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == json_schema(), "kiln.schema.json is out of date: run `cargo xtask schema`");
}

/// An editor shows what this says, and `Config::from_toml` lists it.
#[test]
fn every_key_has_a_description() {
    fn walk(schema: &Value, path: &str) {
        for (key, value) in schema["properties"].as_object().into_iter().flatten() {
            assert!(value["description"].as_str().is_some_and(|text| text.ends_with('.')), "{path}.{key}: {value}");
            walk(value, &format!("{path}.{key}"));
            walk(&value["additionalProperties"], &format!("{path}.{key}.*"));
        }
    }
    walk(&schema(), "");
}

/// Whether an editor takes a value where a newtype's pattern stands, and whether the newtype does.
fn agree<T: FromStr>(pointer: &str, text: &str) -> Result<(), TestCaseError> {
    let schema = schema();
    let place = schema.pointer(pointer).unwrap();
    let editor = jsonschema::is_valid(place, &Value::from(text));
    prop_assert_eq!(editor, text.parse::<T>().is_ok(), "{}: {:?}", pointer, text);
    Ok(())
}

fn all_agree(text: &str) -> Result<(), TestCaseError> {
    let fleet = "/properties/fleet/additionalProperties";
    let subnets = format!("{fleet}/properties/network/anyOf/1/properties");
    agree::<Organization>("/properties/organization", text)?;
    agree::<Region>("/properties/region", text)?;
    agree::<RunnerVersion>("/properties/runner/properties/version", text)?;
    agree::<Sha256>("/properties/runner/properties/sha256/properties/x86_64", text)?;
    agree::<NodeVersion>("/properties/runner/properties/node/additionalProperties/properties/version", text)?;
    agree::<AccountId>("/properties/image_defaults/properties/share_with/items", text)?;
    agree::<Region>("/properties/image_defaults/properties/copy_to/items", text)?;
    agree::<KmsKeyArn>("/properties/image_defaults/properties/kms_key", text)?;
    agree::<FleetName>("/properties/fleet/propertyNames", text)?;
    agree::<Label>(&format!("{fleet}/properties/labels/items"), text)?;
    agree::<InstanceType>(&format!("{fleet}/properties/instance_types/items"), text)?;
    agree::<VpcId>(&format!("{subnets}/vpc"), text)?;
    agree::<SubnetId>(&format!("{subnets}/subnets/items"), text)
}

#[test]
fn the_schemas_patterns_and_the_model_agree_at_the_edges() {
    let long = |length: usize| "a".repeat(length);
    let edges = [
        "",
        "a",
        "-a",
        "a-",
        "a--b",
        "A",
        "é",
        "a\n",
        "1",
        "eu-central-1",
        "eu-central-1a",
        "eu-1",
        "2.338.0",
        "2.338",
        "1234567.0.0",
        "m6i.large",
        "m6i",
        "a.b.c",
        "u-6tb1.metal",
        ".",
        "vpc-01234567",
        "vpc-0123456",
        "subnet-01234567",
        "vpc-0123456789abcdef01",
        "subnet-0123456789abcdefg",
        "123456789012",
        "12345678901",
        "arn:aws:kms:eu-central-1:111122223333:key/mrk-0",
        "arn:aws:kms:eu-central-1:111122223333:key/",
        "arn:aws:kms:eu-central-1:111122223333:alias/a",
    ];
    let lengths = [24, 25, 39, 40, 63, 64, 65, 256, 257];
    for text in edges.into_iter().map(str::to_owned).chain(lengths.map(long)) {
        all_agree(&text).unwrap();
    }
}

proptest! {
    // Each case builds the schema anew.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_schemas_patterns_and_the_model_agree(text in "(vpc-|subnet-)?[-a-g0-9.A_]{0,20}") {
        all_agree(&text)?;
    }

    #[test]
    fn any_valid_file_gives_a_boot_config_that_comes_back_as_sent(
        organization in "[A-Za-z0-9]{1,12}(-[A-Za-z0-9]{1,12}){0,2}",
        fleet in "[a-z]([a-z0-9-]{0,22}[a-z0-9])?",
        labels in proptest::collection::btree_set("ä[a-z0-9._/=:ß-]{1,30}", 1..12),
        group in "[A-Za-z0-9ä\"\\\\][ A-Za-z0-9ä\"\\\\]{0,30}[A-Za-z0-9ä]",
        ephemeral: bool,
        installation in 1..1_i64 << 53,
        max in 1_u32..=10_000,
        heartbeat in 30_u32..=7200,
    ) {
        let mut value: Value = toml::from_str(EXAMPLE).unwrap();
        value["organization"] = organization.into();
        value["app"]["installation_id"] = installation.into();
        let mut table = value["fleet"]["linux"].clone();
        table["labels"] = labels.into_iter().collect();
        table["runner_group"] = group.into();
        table["registration"] = if ephemeral { "ephemeral" } else { "persistent" }.into();
        table["max"] = max.into();
        table["min"] = (max / 2).into();
        table["termination_heartbeat_timeout_secs"] = heartbeat.into();
        table["drain_timeout_secs"] = (heartbeat * 100).min(172_800).into();
        value["fleet"] = serde_json::json!({ fleet: table });
        let text = toml::to_string(&value).unwrap();
        prop_assert_eq!(problems(&text), Vec::<String>::new());
        let config = Config::from_toml("kiln.toml", &text).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let sent = config.boot_config(config.fleets.values().next().unwrap());
        prop_assert_eq!(BootConfig::from_json(&sent.to_json().unwrap()).unwrap(), sent);
    }
}
