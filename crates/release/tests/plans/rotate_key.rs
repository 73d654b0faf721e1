//! What `rotate-key` would do.

use kiln_fleet::model::KeyStore;
use kiln_github::Fingerprint;
use kiln_release::plan::Plan;
use kiln_release::ports::StoredKey;
use kiln_release::rotate_key::{self, Observed, ObservedStore, Step};

use crate::{assert_nothing_to_do, steps};

const NEW: &str = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const OLD: &str = "SHA256:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA=";

fn key(store: KeyStore, fingerprint: &str) -> Option<StoredKey> {
    Some(StoredKey { store, id: "key".to_owned(), fingerprint: fingerprint.parse().unwrap() })
}

fn plan(stores: Vec<ObservedStore>) -> Plan<Step> {
    let fingerprint: Fingerprint = NEW.parse().unwrap();
    rotate_key::plan(&Observed { fingerprint, stores })
}

fn store(store: KeyStore, current: Option<&str>, staged: bool) -> ObservedStore {
    let current = current.and_then(|fingerprint| key(store, fingerprint));
    ObservedStore { store, current, staged: staged.then(|| key(store, NEW)).flatten() }
}

#[test]
fn nothing_changed() {
    let plan = plan(vec![store(KeyStore::Kms, Some(NEW), false), store(KeyStore::SecretsManager, Some(NEW), false)]);
    assert_nothing_to_do(&plan);
    assert!(plan.settled.contains(NEW));
}

#[test]
fn a_key_is_proved_before_and_after_it_is_promoted() {
    let plan = plan(vec![store(KeyStore::Kms, Some(OLD), false)]);
    let shape: Vec<&str> = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::Stage { .. } => "stage",
            Step::ProveStaged { .. } => "prove staged",
            Step::Promote { former, .. } => {
                assert_eq!(former.as_ref().unwrap().to_string(), OLD);
                "promote"
            }
            Step::ProveCurrent { .. } => "prove current",
        })
        .collect();
    assert_eq!(shape, ["stage", "prove staged", "promote", "prove current"]);
}

#[test]
fn what_was_staged_is_not_staged_again() {
    let plan = plan(vec![store(KeyStore::Kms, Some(OLD), true)]);
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::Stage { .. })), "{plan}");
    assert_eq!(plan.steps.len(), 3, "{plan}");
}

#[test]
fn a_store_that_has_the_key_is_left_alone() {
    let plan = plan(vec![store(KeyStore::Kms, Some(NEW), false), store(KeyStore::SecretsManager, None, false)]);
    assert_eq!(plan.steps.len(), 4, "{plan}");
    for step in steps(&plan) {
        assert!(step.contains("secrets-manager"), "{step}");
    }
}
