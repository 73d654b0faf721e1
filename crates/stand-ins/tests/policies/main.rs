//! What the roles of our templates may do, and what they may not, asked of an evaluator of IAM policies.
//!
//! A statement that is missing stops a fleet; one that is too wide hands the account to whoever writes a workflow.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod bake;
mod instance;
mod on_demand;
mod pipeline;
mod roles;
mod rotate_key;
mod stack_role;

use std::path::{Path, PathBuf};

use kiln_stand_ins::iam::{Call, Policies};
use kiln_stand_ins::template::Template;

/// The Python that the emulator is installed in.
fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/venv/bin/python");
    assert!(python.exists(), "the emulator is not installed: `cargo xtask setup` installs it");
    python
}

/// A template of ours as a stack of that name.
fn template(file: &str, stack: &str, parameters: &[(&str, &str)]) -> Template {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../infra").join(file);
    let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Template::new(stack, &std::fs::read_to_string(path).unwrap(), parameters).unwrap()
}

/// Sees that a role may make these calls and none of those.
fn check(template: &Template, role: &str, allowed: &[Call], refused: &[Call]) {
    let policies = Policies::new(template.policies(role).unwrap());
    policies.check(&python(), allowed, refused).unwrap();
}

/// A call about a resource of the account and region that everything is in.
fn call(action: &str, service: &str, resource: &str) -> Call {
    Call::new(action, format!("arn:aws:{service}:eu-central-1:000000000000:{resource}"))
}
