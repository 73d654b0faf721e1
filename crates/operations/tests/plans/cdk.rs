//! What CDK users deploy is what `deploy` would: `infra/cdk`'s own test compares its props with this same document.

use std::collections::BTreeMap;

use kiln_config::config::Config;
use kiln_operations::fleet_stack::{SHORT_NAME, stack_request};
use serde_json::{Value, json};

/// Nothing but what has to be said.
const LEAST: &str = r#"
organization = "acme"
region = "eu-central-1"
[app]
client_id = "Iv23liEXAMPLE0000000"
[runner]
version = "2.338.0"
sha256 = { x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32" }
[fleet.linux]
instance_types = ["m6i.large"]
min = 1
max = 4
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001", "subnet-00000002"] }
"#;

/// All that the stack can be told.
const MOST: &str = r#"
organization = "Acme-Inc"
region = "eu-central-1"
alarm_topic = "arn:aws:sns:eu-central-1:123456789012:alarms"
permissions_boundary = "arn:aws:iam::123456789012:policy/kiln-acme-inc-boundary"
[app]
app_id = 123456
installation_id = 12345678
[github]
url = "https://ghes.example:8443"
[runner]
version = "2.338.0"
sha256 = { aarch64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32" }
[tags]
team = "ci"
cost-center = "42"
[fleet.once]
labels = ["linux-arm64", "single-use"]
runner_group = "Größe XL"
registration = "ephemeral"
instance_types = ["m7g.large", "m6g.large", "c7g.large"]
min = 0
max = 200
spot = { on_demand_base = 2, on_demand_percent = 10, strategy = "capacity-optimized", capacity_rebalance = true }
volume = { gib = 200, iops = 6000, throughput_mibps = 500 }
egress_ports = [22]
session_manager = true
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001", "subnet-00000002"] }
key_store = "secrets-manager"
termination_heartbeat_timeout_secs = 600
drain_timeout_secs = 3600
failed_boot_grace_secs = 60
max_age_secs = 604800
idle_limit_secs = 1800
job_metadata_access = "allowed"
wait_for_docker = true
environment = { https_proxy = "http://proxy.example:3128", LANG = "C.UTF-8" }
"#;

fn supplied(text: &str) -> Value {
    let config = Config::from_toml("kiln.toml", text).unwrap_or_else(|error| panic!("{error}"));
    let fleet = config.fleets.values().next().unwrap();
    let mut request = stack_request(&config, fleet, &"ami-00000001".parse().unwrap(), None, "").unwrap();
    // In CDK a stack may have any name, and CloudFormation makes those of what is in it.
    request.parameters.insert(SHORT_NAME.to_owned(), String::new());
    json!({ "stack": request.name, "parameters": request.parameters })
}

#[test]
fn cdk_is_shown_what_deploy_supplies() {
    let cases = BTreeMap::from([("least", supplied(LEAST)), ("most", supplied(MOST))]);
    let text = serde_json::to_string_pretty(&cases).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../infra/cdk/test/supplied.json");
    if std::env::var_os("KILN_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == text, "{path} is out of date: run this test with KILN_BLESS=1, then mend infra/cdk");
}
