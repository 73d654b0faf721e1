//! What `rotate-key` would do.

use kiln_config::model::KeyStore::{self, Kms, SecretsManager};
use kiln_github::Fingerprint;
use kiln_operations::Code;
use kiln_operations::keys::{HeldKey, KeyRecord, KeyState, StoreContents, StoredKey, Timestamp};
use kiln_operations::plan::Plan;
use kiln_operations::rotate_key::{
    Observed, ObservedStore, Step, StoreUse, formers, plan_retirement, plan_rollback, plan_rotation,
};

use crate::assert_nothing_to_do;

const NEW: &str = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const OLD: &str = "SHA256:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA=";
const OLDER: &str = "SHA256:CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCA=";
const KEEP_DAYS: u32 = 7;

fn now() -> Timestamp {
    "2026-11-24T20:15:00Z".parse().unwrap()
}

fn print(text: &str) -> Fingerprint {
    text.parse().unwrap()
}

/// A key as a run that got through has left it.
fn held(store: KeyStore, fingerprint: &str) -> HeldKey {
    let then = Some("2026-11-01T00:00:00Z".parse().unwrap());
    HeldKey {
        key: StoredKey { store, id: fingerprint.to_owned(), fingerprint: print(fingerprint) },
        state: KeyState::Usable,
        record: KeyRecord { since: then, proved: then, ..KeyRecord::default() },
        created: then,
        managed: true,
    }
}

fn kept(store: KeyStore, fingerprint: &str, until: &str) -> HeldKey {
    let mut held = held(store, fingerprint);
    held.record.keep_until = Some(until.parse().unwrap());
    held
}

const PAST: &str = "2026-11-24T20:14:59Z";
const FUTURE: &str = "2026-11-25T00:00:00Z";

fn used(store: KeyStore, current: Option<HeldKey>, previous: Option<HeldKey>, others: Vec<HeldKey>) -> ObservedStore {
    ObservedStore { store, used: StoreUse::Configured, contents: StoreContents { current, previous, others } }
}

fn unused(store: KeyStore, current: HeldKey) -> ObservedStore {
    ObservedStore { used: StoreUse::Unused, ..used(store, Some(current), None, vec![]) }
}

fn seen(stores: Vec<ObservedStore>) -> Observed {
    Observed { now: now(), stores }
}

fn rotation(stores: Vec<ObservedStore>) -> Plan<Step> {
    plan_rotation(&seen(stores), &print(NEW), KEEP_DAYS)
}

fn shape(plan: &Plan<Step>) -> Vec<String> {
    let name = |step: &Step| match step {
        Step::Stage { store, .. } => format!("stage {store}"),
        Step::ProveStored { store, .. } => format!("prove stored {store}"),
        Step::Promote { store, former, .. } => match former {
            Some(former) => format!("promote {store} over {}", &former.fingerprint().as_str()[7..8]),
            None => format!("promote {store}"),
        },
        Step::RollBack { store, to, .. } => format!("roll back {store} to {}", &to.fingerprint().as_str()[7..8]),
        Step::ProveCurrent { store, .. } => format!("prove current {store}"),
        Step::Record { store, .. } => format!("record {store}"),
        Step::Leave { held, .. } => format!("leave {}", held.key.store),
        Step::Retire { held, .. } => format!("retire {} {}", held.key.store, &held.fingerprint().as_str()[7..8]),
        Step::RetireStore { store } => format!("retire all of {store}"),
    };
    plan.steps.iter().map(name).collect()
}

#[test]
fn nothing_changed() {
    let stores = [Kms, SecretsManager].map(|store| {
        used(store, Some(held(store, NEW)), Some(kept(store, OLD, FUTURE)), vec![kept(store, OLDER, FUTURE)])
    });
    let plan = rotation(stores.to_vec());
    assert_nothing_to_do(&plan);
    assert!(plan.settled.contains(NEW));
    assert_nothing_to_do(&plan_retirement(&seen(stores.to_vec()), KEEP_DAYS));
}

#[test]
fn a_key_is_proved_before_and_after_it_is_promoted_and_the_former_one_is_kept() {
    let plan = rotation(vec![used(Kms, Some(held(Kms, OLD)), None, vec![])]);
    assert_eq!(
        shape(&plan),
        ["stage kms", "prove stored kms", "promote kms over B", "prove current kms", "record kms"]
    );
    let Step::Promote { former: Some(former), .. } = &plan.steps[2] else { panic!("{plan}") };
    assert_eq!(former.record.keep_until, Some(now().plus_days(KEEP_DAYS)));
    assert_eq!(former.record.since, held(Kms, OLD).record.since, "since when it served is not forgotten");
    assert!(plan.to_string().contains("kept until 2026-12-01"), "{plan}");
}

#[test]
fn a_first_key_replaces_none() {
    let plan = rotation(vec![used(SecretsManager, None, None, vec![])]);
    assert_eq!(shape(&plan)[2], "promote secrets-manager");
}

#[test]
fn a_run_that_was_interrupted_is_gone_on_from() {
    // Staged.
    let staged = HeldKey { record: KeyRecord::default(), ..held(Kms, NEW) };
    let plan = rotation(vec![used(Kms, Some(held(Kms, OLD)), None, vec![staged.clone()])]);
    assert_eq!(shape(&plan), ["prove stored kms", "promote kms over B", "prove current kms", "record kms"]);
    // Half made: no key there yet.
    let half = HeldKey { state: KeyState::Unfinished, ..staged.clone() };
    let plan = rotation(vec![used(Kms, Some(held(Kms, OLD)), None, vec![half])]);
    assert_eq!(shape(&plan)[0], "stage kms");
    // The previous alias was moved, the current one not.
    let plan = rotation(vec![used(Kms, Some(held(Kms, OLD)), None, vec![staged.clone(), kept(Kms, OLDER, FUTURE)])]);
    assert_eq!(shape(&plan)[1], "promote kms over B");
    // Promoted, nothing written down.
    let plan = rotation(vec![used(Kms, Some(staged), Some(kept(Kms, OLD, FUTURE)), vec![])]);
    assert_eq!(shape(&plan), ["prove current kms", "record kms"]);
    // A current key that was to be given up is not any more.
    let plan = rotation(vec![used(Kms, Some(kept(Kms, NEW, FUTURE)), None, vec![])]);
    assert_eq!(shape(&plan), ["prove current kms", "record kms"]);
}

#[test]
fn a_store_that_has_the_key_is_left_alone() {
    let stores = vec![used(Kms, Some(held(Kms, NEW)), None, vec![]), used(SecretsManager, None, None, vec![])];
    let plan = rotation(stores);
    assert_eq!(plan.steps.len(), 5, "{plan}");
    assert!(shape(&plan).iter().all(|step| step.contains("secrets-manager")), "{plan}");
}

#[test]
fn a_current_key_that_can_not_sign_is_replaced_even_by_itself() {
    let leaving = HeldKey { state: KeyState::Leaving(None), ..held(Kms, NEW) };
    let plan = rotation(vec![used(Kms, Some(leaving), None, vec![])]);
    assert_eq!(shape(&plan)[..3], ["stage kms", "prove stored kms", "promote kms"]);
}

#[test]
fn instances_that_are_deployed_get_the_key_into_the_store_they_sign_with() {
    let deployed = ObservedStore {
        used: StoreUse::Deployed,
        ..used(SecretsManager, Some(held(SecretsManager, OLD)), None, vec![])
    };
    let plan = rotation(vec![used(Kms, Some(held(Kms, NEW)), None, vec![]), deployed]);
    assert_eq!(shape(&plan)[2], "promote secrets-manager over B");
}

#[test]
fn what_is_due_is_retired_and_nothing_else() {
    let leaving = HeldKey { state: KeyState::Leaving(None), ..kept(Kms, OLDER, PAST) };
    let others_key = HeldKey { managed: false, ..kept(Kms, OLDER, PAST) };
    let staged = HeldKey { record: KeyRecord::default(), ..held(Kms, OLDER) };
    for (key, retired) in [
        (kept(Kms, OLDER, PAST), true),
        (HeldKey { state: KeyState::Disabled, ..kept(Kms, OLDER, PAST) }, true),
        (kept(Kms, OLDER, FUTURE), false),
        (leaving, false),
        (others_key, false),
        (staged, false),
    ] {
        let store = used(Kms, Some(kept(Kms, NEW, PAST)), Some(kept(Kms, OLD, FUTURE)), vec![key]);
        let plan = plan_retirement(&seen(vec![store]), KEEP_DAYS);
        assert_eq!(shape(&plan), if retired { vec!["prove current kms", "retire kms C"] } else { vec![] });
    }
    // A rotation retires too: at its end, and never the key it brings back.
    let store = used(Kms, Some(held(Kms, OLD)), Some(kept(Kms, OLDER, PAST)), vec![kept(Kms, NEW, PAST)]);
    assert_eq!(shape(&rotation(vec![store])).last().unwrap(), "retire kms C");
    // Secrets Manager keeps one former version: the promotion itself pushes this one out.
    let store = used(SecretsManager, Some(held(SecretsManager, OLD)), Some(kept(SecretsManager, OLDER, PAST)), vec![]);
    assert!(!shape(&rotation(vec![store])).iter().any(|step| step.starts_with("retire")));
}

#[test]
fn a_store_that_no_fleet_uses_is_kept_and_then_emptied() {
    let kms = used(Kms, Some(held(Kms, NEW)), None, vec![]);
    let plan = rotation(vec![kms.clone(), unused(SecretsManager, held(SecretsManager, NEW))]);
    assert_eq!(shape(&plan), ["leave secrets-manager"]);
    // Instances may be finishing their jobs, however little is asked for.
    let plan = plan_retirement(&seen(vec![kms.clone(), unused(SecretsManager, held(SecretsManager, OLD))]), 0);
    let Step::Leave { until, .. } = plan.steps[0] else { panic!("{plan}") };
    assert_eq!(until, now().plus_days(2));
    let plan = rotation(vec![kms.clone(), unused(SecretsManager, kept(SecretsManager, NEW, FUTURE))]);
    assert_nothing_to_do(&plan);
    let plan = rotation(vec![kms.clone(), unused(SecretsManager, kept(SecretsManager, NEW, PAST))]);
    assert_eq!(shape(&plan), ["retire all of secrets-manager"]);
    let leaving = HeldKey { state: KeyState::Leaving(None), ..kept(SecretsManager, NEW, PAST) };
    assert_nothing_to_do(&rotation(vec![kms, unused(SecretsManager, leaving)]));
}

#[test]
fn going_back_is_proved_first_and_done_once() {
    let store = used(Kms, Some(held(Kms, NEW)), Some(kept(Kms, OLD, FUTURE)), vec![]);
    let plan = plan_rollback(&seen(vec![store]), KEEP_DAYS).unwrap();
    assert_eq!(shape(&plan), ["prove stored kms", "roll back kms to B", "prove current kms", "record kms"]);
    let Step::RollBack { from, .. } = &plan.steps[1] else { panic!("{plan}") };
    assert_eq!(from.record.rolled_back, Some(now()));
    assert_eq!(from.record.keep_until, Some(now().plus_days(KEEP_DAYS)));
    let from = from.clone();

    // Interrupted: written down, not moved; moved, not recorded.
    let store = used(Kms, Some(from.clone()), Some(kept(Kms, OLD, FUTURE)), vec![]);
    assert_eq!(shape(&plan_rollback(&seen(vec![store]), KEEP_DAYS).unwrap())[1], "roll back kms to B");
    let store = used(Kms, Some(kept(Kms, OLD, FUTURE)), None, vec![from.clone()]);
    let plan = plan_rollback(&seen(vec![store]), KEEP_DAYS).unwrap();
    assert_eq!(shape(&plan), ["prove current kms", "record kms"]);
    // Done, in either store: again is not forth.
    let in_secret = HeldKey { key: StoredKey { store: SecretsManager, ..from.key.clone() }, ..from.clone() };
    let stores = vec![
        used(Kms, Some(held(Kms, OLD)), None, vec![from]),
        used(SecretsManager, Some(held(SecretsManager, OLD)), Some(in_secret.clone()), vec![]),
    ];
    let plan = plan_rollback(&seen(stores.clone()), KEEP_DAYS).unwrap();
    assert_nothing_to_do(&plan);
    assert!(plan.settled.contains(OLD), "{plan}");
    // Forth is the key again, which is still there.
    let plan = plan_rotation(&seen(stores), &print(NEW), KEEP_DAYS);
    assert_eq!(shape(&plan)[..2], ["prove stored kms", "promote kms over B"]);
    assert!(!shape(&plan).iter().any(|step| step.starts_with("stage")), "{plan}");
}

#[test]
fn there_may_be_nothing_to_go_back_to() {
    let gone = HeldKey { state: KeyState::Leaving(None), ..kept(Kms, OLD, PAST) };
    for previous in [None, Some(gone)] {
        let store = used(Kms, Some(held(Kms, NEW)), previous, vec![]);
        let error = plan_rollback(&seen(vec![store]), KEEP_DAYS).unwrap_err();
        assert_eq!(error.code, Code::NoPreviousKey);
        assert!(error.hint.unwrap().contains("--pem"));
    }
}

#[test]
fn the_keys_to_delete_at_github_are_those_that_nothing_signs_with() {
    let stores = vec![
        used(Kms, Some(held(Kms, OLD)), Some(kept(Kms, OLDER, FUTURE)), vec![]),
        used(SecretsManager, Some(held(SecretsManager, NEW)), Some(kept(SecretsManager, OLD, PAST)), vec![]),
    ];
    let observed = seen(stores);
    let told = |plan: &Plan<Step>| -> Vec<String> {
        formers(&observed, plan).into_iter().map(|former| former.fingerprint.to_string()).collect()
    };
    assert_eq!(told(&rotation(observed.stores.clone())), [OLD, OLDER]);
    assert_eq!(told(&plan_retirement(&observed, KEEP_DAYS)), [OLDER], "OLD still serves in the other store");
}
