//! Plans are pure: from what was observed, the steps. First of all: nothing changed, nothing to do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ami;
mod cdk;
mod codes;
mod deploy;
mod destroy;
mod on_demand;
mod pin;
mod prune;
mod rotate_key;
mod small_worlds;
mod stacks;
mod status;
mod templates;

use std::fmt::Display;

use kiln_config::config::Config;
use kiln_operations::plan::Plan;

/// One fleet in subnets of its own, and one more that shares everything but the key's store.
const KILN_TOML: &str = r#"
organization = "acme"
region = "eu-central-1"

[app]
client_id = "Iv23liEXAMPLE0000000"

[runner]
version = "2.338.0"
[runner.sha256]
x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32"

[fleet.linux]
labels = ["linux-x64"]
registration = "persistent"
instance_types = ["m6i.large"]
min = 1
max = 4
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001"] }

[fleet.once]
labels = ["once"]
registration = "ephemeral"
instance_types = ["m6i.large"]
min = 1
max = 4
network = "create-vpc"
key_store = "secrets-manager"
"#;

/// The same with Amazon Linux 2 under the fleets.
fn on_amazon_linux_2() -> String {
    let named = KILN_TOML.replace("registration =", "image = \"old\"\nregistration =");
    format!("{named}\n[image.old]\nbase = \"amazon-linux-2\"\n")
}

fn config() -> Config {
    Config::from_toml("kiln.toml", KILN_TOML).unwrap()
}

/// The first line of each step.
fn steps<S: Display>(plan: &Plan<S>) -> Vec<String> {
    plan.steps.iter().map(|step| step.to_string().lines().next().unwrap().to_owned()).collect()
}

#[track_caller]
fn assert_nothing_to_do<S: Display>(plan: &Plan<S>) {
    assert_eq!(steps(plan), [""; 0]);
    assert!(plan.to_string().contains(": nothing to do: "), "{plan}");
    assert!(!plan.settled.is_empty(), "an empty plan says why it is empty");
}
