//! What somebody who has taken over a pipeline would try: attacks.yaml, and every change that CloudFormation's handlers make,
//! of something that is not Kiln's.

use std::collections::{BTreeMap, BTreeSet};

use kiln_stand_ins::iam::Call;
use serde::Deserialize;

use crate::python;
use crate::roles::{KEY_STORES, ROLES, policies_with};
use crate::stack_role::{foreign_calls, handlers_calls, types_of};

/// A list entry: each action on each resource.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attack {
    why: String,
    actions: Vec<String>,
    resources: Vec<String>,
    #[serde(default)]
    context: BTreeMap<String, String>,
}

fn attacks() -> Vec<Attack> {
    serde_yaml_ng::from_str(include_str!("attacks.yaml")).unwrap()
}

fn calls(attack: &Attack) -> Vec<Call> {
    let pairs = attack.actions.iter().flat_map(|action| attack.resources.iter().map(move |on| (action, on)));
    let call = |(action, on): (&String, &String)| {
        attack.context.iter().fold(Call::new(action, on), |call, (key, value)| call.with(key, value))
    };
    pairs.map(call).collect()
}

#[test]
fn no_role_of_a_pipeline_can_touch_what_is_not_kilns() {
    let attacks = attacks();
    let tried: Vec<Call> = attacks.iter().flat_map(calls).collect();
    assert!(tried.len() > 250, "{}", tried.len());
    for role in ROLES {
        for store in KEY_STORES {
            let policies = policies_with(role, &[("KeyStore", store)]);
            let granted: BTreeSet<Call> = policies.allowed(&python(), &tried).unwrap().into_iter().cloned().collect();
            let reasons: Vec<String> = attacks
                .iter()
                .flat_map(|attack| calls(attack).into_iter().map(move |call| (call, &attack.why)))
                .filter(|(call, _)| granted.contains(call))
                .map(|(call, why)| format!("{why}: {call}"))
                .collect();
            assert!(reasons.is_empty(), "{role} ({store}) may:\n{}", reasons.join("\n"));
        }
    }
}

/// A list that asks what nobody could do anyway shows nothing: an administrator may do each of it.
#[test]
fn the_attacks_are_calls_that_rights_would_allow() {
    let everything = serde_json::json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] });
    let administrator = kiln_stand_ins::iam::Policies::new(vec![everything]);
    let tried: Vec<Call> = attacks().iter().flat_map(calls).collect();
    assert_eq!(administrator.allowed(&python(), &tried).unwrap().len(), tried.len());
}

/// Every action by which CloudFormation makes, changes or links anything of the types in our templates.
#[test]
fn no_handler_changes_what_is_not_kilns() {
    let files = ["bake.yaml", "controller.yaml", "fleet.yaml", "network.yaml", "on-demand.yaml"];
    let kinds = files.iter().flat_map(|file| types_of(file)).collect();
    let actions: BTreeSet<String> = handlers_calls(&kinds).into_values().flatten().collect();
    let tried: Vec<Call> = actions.iter().flat_map(|action| foreign_calls(action)).collect();
    assert!(tried.len() > 150, "{}", tried.len());
    for role in ROLES {
        policies_with(role, &[]).check(&python(), &[], &tried).unwrap_or_else(|error| panic!("{role}: {error:#}"));
    }
}
