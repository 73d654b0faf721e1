//! On-demand fleets in kiln.toml: what they have, what they have not, and that this version says what it can't deploy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "config")]

use kiln_config::boot::UserData;
use kiln_config::config::{Config, OnDemand};

const VALID: &str = r#"organization = "Acme"
region = "eu-central-1"

[app]
client_id = "Iv23liEXAMPLE"

[runner]
version = "2.338.0"
sha256 = { x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32" }

[fleet.pull-requests]
registration = "on-demand"
labels = ["linux-x64"]
instance_types = ["m6i.large", "m5.large"]
max = 40
network = "create-vpc"
"#;

fn read(text: &str) -> Config {
    Config::from_toml_with_on_demand("kiln.toml", text).unwrap_or_else(|error| panic!("{}", error.render(false)))
}

fn error(more: &str) -> String {
    Config::from_toml_with_on_demand("kiln.toml", &format!("{VALID}{more}\n")).unwrap_err().render(false)
}

/// A key that is accepted works; one that does not work yet is refused by name, and so is nothing else of the file.
#[test]
fn a_fleet_that_can_not_be_deployed_yet_is_refused_by_name() {
    match Config::from_toml("kiln.toml", VALID) {
        Ok(config) => assert_eq!(config, read(VALID), "once it is deployed it is read as here"),
        Err(error) => {
            let said = error.render(false);
            assert!(said.contains("this version can't deploy fleet `pull-requests` on demand"), "{said}");
            assert!(said.contains("kiln.toml:12:16"), "{said}");
            assert_eq!(said.matches("error:").count(), 1, "{said}");
        }
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = read(VALID);
    let fleet = config.on_demand_fleets().next().unwrap();
    assert_eq!(fleet.on_demand, Some(OnDemand { min_idle: 0, linger_secs: 120 }));
    assert_eq!((fleet.min, fleet.max), (0, 40));
    assert_eq!(config.scale_set(&fleet.name), "kiln-pull-requests-eu-central-1");
    assert_eq!(config.controller_stack(), "kiln-acme-controller");
    let fuller = read(&format!("{VALID}min_idle = 2\nlinger_secs = 0\nspot = {{}}\nmax_age_secs = 3600\n"));
    let fleet = fuller.on_demand_fleets().next().unwrap();
    assert_eq!(fleet.on_demand, Some(OnDemand { min_idle: 2, linger_secs: 0 }));
    assert!(fleet.spot.is_some());
}

/// It names a bucket and a runner; no App, no key, no label.
#[test]
fn an_instance_finds_its_own_document_in_its_user_data() {
    let config = read(&format!("{VALID}job_docker_access = \"blocked\"\nenvironment = {{ LANG = \"C.UTF-8\" }}\n"));
    let fleet = config.on_demand_fleets().next().unwrap();
    let data = UserData::OnDemand(Box::new(config.on_demand_config(fleet, "kiln-acme--control-1-eu-central-1")));
    let text = data.to_json().unwrap();
    assert_eq!(UserData::from_json(&text).unwrap(), data);
    assert!(text.contains("kiln-acme--control-1-eu-central-1") && text.contains("C.UTF-8"), "{text}");
    for foreign in ["Iv23liEXAMPLE", "alias/", "linux-x64", "api.github.com"] {
        assert!(!text.contains(foreign), "{foreign}: {text}");
    }
}

#[test]
fn more_idle_runners_than_there_may_be_are_refused() {
    let said = error("min_idle = 41");
    assert!(said.contains("`min_idle` is 41, more than `max`") && said.contains("expected at most 40"), "{said}");
    let said = error("min_idle = 4294967296");
    assert!(said.contains("`min_idle` is 4294967296"), "{said}");
}

/// What is about a group, its hooks, or an instance that registers by itself: each is named, and what is there in its place.
#[test]
fn what_is_about_a_group_is_refused() {
    for (line, instead) in [
        ("min = 1", "`min_idle`"),
        ("termination_heartbeat_timeout_secs = 300", "ends with its job"),
        ("drain_timeout_secs = 300", "ends with its job"),
        ("failed_boot_grace_secs = 300", "ends with its job"),
        ("idle_limit_secs = 300", "`linger_secs`"),
        ("canary_check = \"./try\"", "none to try first"),
        ("spot = { on_demand_base = 1 }", "`spot = {}`"),
        ("spot = { on_demand_percent = 20 }", "`spot = {}`"),
        ("spot = { strategy = \"capacity-optimized\" }", "`spot = {}`"),
        ("spot = { capacity_rebalance = true }", "`spot = {}`"),
    ] {
        let said = error(line);
        assert!(said.contains("means nothing to an on-demand fleet"), "{line}: {said}");
        assert!(said.contains(instead), "{line}: {said}");
        assert_eq!(said.matches("error:").count(), 1, "{line}: {said}");
    }
}

#[test]
fn a_fleet_of_another_kind_has_none_of_its_keys() {
    for line in ["min_idle = 1", "linger_secs = 60"] {
        let text = VALID.replace("registration = \"on-demand\"", "min = 0") + line;
        let said = Config::from_toml_with_on_demand("kiln.toml", &text).unwrap_err().render(false);
        assert!(said.contains("is a key of on-demand fleets"), "{said}");
    }
}

/// `min` is required of the other kinds alone, and where nobody knows which kind is meant, of none.
#[test]
fn the_least_size_is_required_of_groups_alone() {
    for (registration, missing) in [
        ("\"persistent\"", true),
        ("\"ephemeral\"", true),
        ("\"on-demand\"", false),
        ("\"on-demnd\"", false),
        ("1", false),
    ] {
        let text = VALID.replace("\"on-demand\"", registration);
        let said = Config::from_toml_with_on_demand("kiln.toml", &text)
            .map_or_else(|error| error.render(false), |_| String::new());
        assert_eq!(said.contains("`min` is missing"), missing, "{registration}: {said}");
    }
    let said = Config::from_toml_with_on_demand("kiln.toml", &VALID.replace("registration = \"on-demand\"\n", ""))
        .unwrap_err()
        .render(false);
    assert!(said.contains("`min` is missing"), "{said}");
}

/// GitHub gives a scale set's runners no labels by itself: one is needed, and its usual ones may be asked for.
#[test]
fn labels_are_all_that_jobs_find_it_by() {
    let said = Config::from_toml_with_on_demand("kiln.toml", &VALID.replace("labels = [\"linux-x64\"]\n", ""))
        .unwrap_err()
        .render(false);
    assert!(said.contains("an on-demand fleet has no label"), "{said}");
    let config = read(&VALID.replace("[\"linux-x64\"]", "[\"self-hosted\", \"Linux\", \"X64\", \"ci\"]"));
    assert_eq!(config.on_demand_fleets().next().unwrap().labels.len(), 4);
    let said = Config::from_toml_with_on_demand("kiln.toml", &VALID.replace("[\"linux-x64\"]", "[\"arm64\"]"))
        .unwrap_err()
        .render(false);
    assert!(said.contains("`arm64` is the label of another architecture"), "{said}");
}

#[test]
fn one_controller_signs_by_one_store() {
    let other = VALID[VALID.find("[fleet").unwrap()..].replace("pull-requests", "release").replace("linux-x64", "rel");
    let both = format!("{VALID}\n{other}key_store = \"secrets-manager\"\n");
    let said = Config::from_toml_with_on_demand("kiln.toml", &both).unwrap_err().render(false);
    assert!(said.contains("have the App's key in different stores"), "{said}");
    read(&format!("{VALID}\n{other}key_store = \"kms\"\n"));
}
