//! kiln.toml: what is right parses, and what is wrong is shown with line, column, expectation and hint.
#![cfg(feature = "config")]

use kiln_fleet::boot::BootConfig;
use kiln_fleet::config::{Config, json_schema};

const EXAMPLE: &str = include_str!("../../../kiln.toml");

fn error(text: &str) -> String {
    Config::from_toml("kiln.toml", text).unwrap_err().to_string()
}

/// The example with one piece of text replaced.
fn with(piece: &str, replacement: &str) -> String {
    assert!(EXAMPLE.contains(piece), "the example has no {piece}");
    EXAMPLE.replacen(piece, replacement, 1)
}

#[test]
fn the_committed_example_is_valid_and_its_boot_config_comes_back_as_sent() {
    let config = Config::from_toml("kiln.toml", EXAMPLE).unwrap();
    let fleet = config.fleets.values().next().unwrap();
    let sent = config.boot_config(fleet);
    assert_eq!(BootConfig::from_json(&sent.to_json().unwrap()).unwrap(), sent);
}

#[test]
fn instances_in_the_field_read_this_very_document() {
    let config = Config::from_toml("kiln.toml", EXAMPLE).unwrap();
    let text = config.boot_config(config.fleets.values().next().unwrap()).to_json().unwrap();
    insta::assert_snapshot!(text, @r#"{"version":1,"organization":"acme","fleet":"linux","github":{"api_url":"https://api.github.com/","url":"https://github.com/"},"app":{"issuer":"Iv23liEXAMPLE0000000"},"key":{"kms":"alias/kiln-acme-app-key"},"registration":"persistent","labels":["linux-x64"],"runner_group":"Default","runner":{"version":"2.338.0","user":"runner","directory":"/opt/actions-runner"},"lifecycle":{"group":"kiln-acme-fleet-linux","launch_hook":"kiln-launch","termination_hook":"kiln-terminate","heartbeat_secs":300,"drain_limit_secs":21600}}"#);
}

#[test]
fn a_boot_config_of_another_version_or_with_more_in_it_is_refused() {
    let config = Config::from_toml("kiln.toml", EXAMPLE).unwrap();
    let text = config.boot_config(config.fleets.values().next().unwrap()).to_json().unwrap();
    let foreign = BootConfig::from_json(&text.replace("\"version\":1", "\"version\":2")).unwrap_err().to_string();
    assert!(foreign.contains("version 2 is not supported"), "{foreign}");
    let more = BootConfig::from_json(&text.replace("\"labels\"", "\"secret\":1,\"labels\"")).unwrap_err().to_string();
    assert!(more.contains("unknown field `secret`"), "{more}");
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_one() {
    insta::assert_snapshot!(error(&with("labels =", "lables =")), @r#"
    error: unknown field `lables`
      --> kiln.toml:30:1
       |
    30 | lables = ["linux-x64"]
       | ^^^^^^ expected one of `labels`, `runner_group`, `registration`, `base_image`, `architecture`, `instance_types`, `min`, `max`, `network`, `key_store`, `heartbeat_secs`, `drain_limit_secs`
       |
       = help: did you mean `labels`?
    "#);
}

#[test]
fn everything_wrong_is_told_at_once() {
    let text = with("\"eu-central-1\"", "\"Frankfurt\"").replace("min = 1", "min = 9").replace("\"m5.large\"", "\"m6g.large\"");
    insta::assert_snapshot!(error(&text), @r#"
    error: `region` is `Frankfurt`
     --> kiln.toml:6:10
      |
    6 | region = "Frankfurt"
      |          ^^^^^^^^^^^ expected an AWS region's code such as eu-central-1

    error: m6g.large is an aarch64 type, the fleet's architecture is x86_64
      --> kiln.toml:38:32
       |
    38 | instance_types = ["m6i.large", "m6g.large"]
       |                                ^^^^^^^^^^^ expected a type of the fleet's architecture
       |
       = help: set architecture = "aarch64", or choose another type

    error: `min` is 9, more than `max`
      --> kiln.toml:40:7
       |
    40 | min = 9
       |       ^ expected at most 4
    "#);
}

#[test]
fn each_mistake_is_refused_for_its_own_reason() {
    for (piece, replacement, reason) in [
        ("organization = \"acme\"", "organization = \"-acme\"", "`organization` is `-acme`"),
        ("client_id = \"Iv23liEXAMPLE0000000\"", "", "nothing names the App"),
        ("[app]", "[app]\napp_id = 1", "both `client_id` and `app_id`"),
        ("[runner]\n", "[github]\nurl = \"http://ghes.example\"\n[runner]\n", "expected an https address"),
        ("2.338.0\"", "2.328.0\"", "can't register any more"),
        ("2.338.0\"", "v2.338\"", "expected a runner version"),
        ("af4b794c", "AF4B794C", "expected a SHA-256 digest"),
        ("[fleet.linux]", "[fleet.Linux]", "expected a fleet's name"),
        ("architecture = \"x86_64\"", "architecture = \"aarch64\"", "no JavaScript action would run"),
        ("architecture = \"x86_64\"", "architecture = \"riscv\"", "unknown variant `riscv`"),
        ("[\"linux-x64\"]", "[\"linux-x64\", \"Linux-X64\"]", "is there twice"),
        ("[\"linux-x64\"]", "[\"a,b\"]", "expected a label"),
        ("max = 4", "max = 0", "`max` is 0"),
        ("max = 4", "max = -1", "invalid value"),
        ("network = \"create-vpc\"", "network = \"vpc\"", "expected \"create-vpc\" or"),
        ("network = \"create-vpc\"", "network = { vpc = \"vpc-1\", subnets = [] }", "`subnets` is empty"),
        ("heartbeat_secs = 300", "heartbeat_secs = 5", "expected 30 to 7200"),
        ("drain_limit_secs = 21600", "drain_limit_secs = 172801", "whichever is less"),
        ("runner_group = \"Default\"", "runner_group = \"\"", "`runner_group` is empty"),
        ("[\"m6i.large\", \"m5.large\"]", "[]", "expected 1 to 5"),
    ] {
        let text = error(&with(piece, replacement));
        assert!(text.contains(reason), "{replacement}: {reason} is not in\n{text}");
        assert!(text.contains("--> kiln.toml:"), "{replacement}: no place in\n{text}");
    }
}

#[test]
fn ghes_has_its_api_below_its_own_host() {
    let config = Config::from_toml("kiln.toml", &with("[runner]\n", "[github]\nurl = \"https://ghes.example\"\n[runner]\n"));
    assert_eq!(config.unwrap().github.api_url.as_str(), "https://ghes.example/api/v3");
}

#[test]
fn a_boot_config_that_does_not_fit_into_a_parameter_is_told_at_the_labels() {
    let many: Vec<String> = (0..40).map(|n| format!("\"{}{n}\"", "x".repeat(120))).collect();
    let text = error(&with("\"linux-x64\"", &many.join(", ")));
    assert!(text.contains("more than the 4096") && text.contains("fewer or shorter labels"), "{text}");
}

#[test]
fn the_committed_schema_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kiln.schema.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == json_schema(), "kiln.schema.json is out of date: run `cargo xtask schema`");
}

#[test]
fn the_example_fits_the_schema() {
    let schema: serde_json::Value = serde_json::from_str(&json_schema()).unwrap();
    let value: serde_json::Value = toml::from_str(EXAMPLE).unwrap();
    let problems: Vec<String> =
        jsonschema::validator_for(&schema).unwrap().iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{problems:?}");
    let wrong: serde_json::Value = toml::from_str(&with("max = 4", "max = 0")).unwrap();
    assert!(!jsonschema::is_valid(&schema, &wrong));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(at in 0..EXAMPLE.len(), junk in "\\PC{0,8}") {
        let at = (0..=at).rev().find(|at| EXAMPLE.is_char_boundary(*at)).unwrap();
        let mut text = EXAMPLE.to_owned();
        text.insert_str(at, &junk);
        if let Err(error) = Config::from_toml("kiln.toml", &text) {
            proptest::prop_assert!(!error.to_string().is_empty());
        }
    }
}
