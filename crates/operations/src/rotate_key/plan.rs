//! Makes the plans of `rotate-key`. Pure functions.

use std::fmt;

use kiln_config::model::KeyStore;
use kiln_github::Fingerprint;

use super::{Observed, ObservedStore};
use crate::code::Code;
use crate::error::{Error, Result};
use crate::keys::{HeldKey, KeyRecord, KeyState, Timestamp};
use crate::plan::Plan;

/// A staged key becomes deletable after one day, so that a concurrent rotation can still use it.
const STAGED_DAYS: u32 = 1;

/// The key of a store that no fleet uses any more is kept for at least two days: an instance that was launched with it may run its
/// job for up to 48 hours, and signs during that time.
const LEFT_STORE_DAYS: u32 = 2;

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Store the key without using it yet.
    Stage {
        store: KeyStore,
        /// The key.
        fingerprint: Fingerprint,
        /// The record to store with it.
        record: KeyRecord,
    },
    /// Check that GitHub accepts a signature of a stored key that is not the current one.
    ProveStored {
        store: KeyStore,
        /// The key.
        fingerprint: Fingerprint,
    },
    /// Make a stored key the current one.
    Promote {
        store: KeyStore,
        /// The key.
        fingerprint: Fingerprint,
        /// The former key, with its new record.
        former: Option<HeldKey>,
    },
    /// Make the former key the current one again.
    RollBack {
        store: KeyStore,
        /// The former key.
        to: HeldKey,
        /// The current key, with its new record.
        from: HeldKey,
    },
    /// Check that GitHub accepts a signature that is made with this key in the way in which an instance signs.
    ProveCurrent {
        store: KeyStore,
        /// The key.
        fingerprint: Fingerprint,
    },
    /// Record since when the key is the current one, and that GitHub accepted it.
    Record {
        store: KeyStore,
        /// The key.
        fingerprint: Fingerprint,
        record: KeyRecord,
    },
    /// Set the deletion date of the key of a store that no fleet uses any more.
    Leave {
        /// The key, with its new record.
        held: HeldKey,
        /// The date in that record.
        until: Timestamp,
    },
    /// Delete a key whose date has passed.
    Retire {
        /// The key.
        held: HeldKey,
        /// The date until which it was kept.
        until: Timestamp,
    },
    /// Delete all keys from a store that no fleet uses any more.
    RetireStore { store: KeyStore },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage { store, fingerprint, .. } => write!(f, "store key {fingerprint} in {store}, unused as yet"),
            Self::ProveStored { store, fingerprint } => {
                write!(f, "see GitHub accept {fingerprint} from {store}, before it serves")
            }
            Self::Promote { store, fingerprint, former: None } => {
                write!(f, "make {fingerprint} the current key in {store}")
            }
            Self::Promote { store, fingerprint, former: Some(former) } => {
                write!(f, "make {fingerprint} the current key in {store}, in place of {}", Kept(former))
            }
            Self::RollBack { store, to, from } => {
                write!(f, "make {} the current key in {store} again, in place of {}", to.fingerprint(), Kept(from))
            }
            Self::ProveCurrent { store, fingerprint } => {
                write!(f, "see GitHub accept {fingerprint} as the current key in {store}, as an instance uses it")
            }
            Self::Record { store, fingerprint, .. } => {
                write!(f, "record in {store} that {fingerprint} serves, and that GitHub accepted it")
            }
            Self::Leave { held, until } => {
                let (store, fingerprint) = (held.key.store, held.fingerprint());
                write!(f, "keep {fingerprint} in {store} until {}: no fleet uses {store} any more", until.date())
            }
            Self::Retire { held, until } => {
                let (store, fingerprint) = (held.key.store, held.fingerprint());
                write!(f, "let {store} delete {fingerprint}, which was kept until {}", until.date())
            }
            Self::RetireStore { store } => {
                write!(f, "let {store}, which no fleet uses any more, delete all it has of the App's keys")
            }
        }
    }
}

/// Displays a former key and until when it is kept.
struct Kept<'a>(&'a HeldKey);

impl fmt::Display for Kept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.fingerprint())?;
        match self.0.record.keep_until {
            Some(until) => write!(f, ", which is kept until {}", until.date()),
            None => Ok(()),
        }
    }
}

/// Whether the record of the current key is complete.
fn is_recorded(held: &HeldKey) -> bool {
    let KeyRecord { since, proved, keep_until, rolled_back } = held.record;
    !held.managed || (since.is_some() && proved.is_some() && keep_until.is_none() && rolled_back.is_none())
}

fn prove_and_record(store: KeyStore, fingerprint: &Fingerprint, since: Timestamp, now: Timestamp) -> [Step; 2] {
    let record = KeyRecord { since: Some(since), proved: Some(now), keep_until: None, rolled_back: None };
    [
        Step::ProveCurrent { store, fingerprint: fingerprint.clone() },
        Step::Record { store, fingerprint: fingerprint.clone(), record },
    ]
}

/// The former key, with a record of the date until which it is kept.
fn kept(held: &HeldKey, now: Timestamp, keep_days: u32) -> HeldKey {
    let record =
        KeyRecord { since: held.since(), keep_until: Some(now.plus_days(keep_days)), rolled_back: None, ..held.record };
    HeldKey { record, ..held.clone() }
}

/// The plan that makes a checked key the current one in every store in use, and retires keys whose date has passed.
pub fn plan_rotation(observed: &Observed, fingerprint: &Fingerprint, keep_days: u32) -> Plan<Step> {
    let mut steps = Vec::new();
    for store in observed.stores.iter().filter(|store| store.is_used()) {
        rotate_store(store, fingerprint, keep_days, observed.now, &mut steps);
    }
    retire(observed, Some(fingerprint), keep_days, &mut steps);
    Plan { subject: "App key".to_owned(), steps, settled: format!("{fingerprint} is the current key already") }
}

fn rotate_store(
    observed: &ObservedStore,
    fingerprint: &Fingerprint,
    keep_days: u32,
    now: Timestamp,
    steps: &mut Vec<Step>,
) {
    let ObservedStore { store, contents, .. } = observed;
    let store = *store;
    let serving = contents.serving();
    if let Some(held) = serving.filter(|held| held.fingerprint() == fingerprint) {
        if !is_recorded(held) {
            steps.extend(prove_and_record(store, fingerprint, held.since().unwrap_or(now), now));
        }
        return;
    }
    let stored = contents.usable(fingerprint);
    if stored.is_none() {
        let keep_until = Some(now.plus_days(keep_days.max(STAGED_DAYS)));
        let record = KeyRecord { keep_until, ..KeyRecord::default() };
        steps.push(Step::Stage { store, fingerprint: fingerprint.clone(), record });
    }
    steps.push(Step::ProveStored { store, fingerprint: fingerprint.clone() });
    let former = serving.map(|held| kept(held, now, keep_days));
    steps.push(Step::Promote { store, fingerprint: fingerprint.clone(), former });
    let since = stored.and_then(|held| held.record.since).unwrap_or(now);
    steps.extend(prove_and_record(store, fingerprint, since, now));
}

/// The plan that makes the former key the current one again in every store that has one.
///
/// # Errors
/// [`crate::Kind::Precondition`] if no store has one.
pub fn plan_rollback(observed: &Observed, keep_days: u32) -> Result<Plan<Step>> {
    let now = observed.now;
    let mut steps = Vec::new();
    let (mut serving, mut went_back) = (None, false);
    for ObservedStore { store, contents, .. } in observed.stores.iter().filter(|store| store.is_used()) {
        let Some(current) = &contents.current else { continue };
        serving = serving.or(Some(current.fingerprint().clone()));
        went_back |= contents.all().any(|held| held.record.rolled_back.is_some());
        let to = contents.previous.as_ref().filter(|held| held.is_usable() && held.record.rolled_back.is_none());
        if let Some(to) = to {
            let mut from = kept(current, now, keep_days);
            from.record.rolled_back = Some(now);
            let fingerprint = to.fingerprint().clone();
            steps.push(Step::ProveStored { store: *store, fingerprint: fingerprint.clone() });
            steps.push(Step::RollBack { store: *store, to: to.clone(), from });
            steps.extend(prove_and_record(*store, &fingerprint, to.since().unwrap_or(now), now));
        } else if current.is_usable() && !is_recorded(current) {
            steps.extend(prove_and_record(*store, current.fingerprint(), current.since().unwrap_or(now), now));
        }
    }
    let subject = "App key, back to the former one".to_owned();
    match serving {
        Some(serving) if went_back || !steps.is_empty() => {
            Ok(Plan { subject, steps, settled: format!("{serving} serves again already") })
        }
        _ => Err(Error::new(Code::NoPreviousKey, "no key store has a former key, so there is none to roll back to")
            .hint("a new key always works: generate one in the App's settings and install it with --pem")),
    }
}

/// The plan that retires keys whose date has passed, and nothing else. If GitHub does not accept a store's current key, the store keeps
/// its former key, because instances then sign with it.
pub fn plan_retirement(observed: &Observed, keep_days: u32) -> Plan<Step> {
    let mut due = Vec::new();
    retire(observed, None, keep_days, &mut due);
    let mut steps = Vec::new();
    for ObservedStore { store, contents, .. } in observed.stores.iter().filter(|store| store.is_used()) {
        let of_store: Vec<Step> =
            due.extract_if(.., |step| matches!(step, Step::Retire { held, .. } if held.key.store == *store)).collect();
        if let (Some(held), false) = (contents.serving(), of_store.is_empty()) {
            steps.push(Step::ProveCurrent { store: *store, fingerprint: held.fingerprint().clone() });
            steps.extend(of_store);
        }
    }
    steps.append(&mut due);
    Plan { subject: "former App keys".to_owned(), steps, settled: "none is due".to_owned() }
}

/// Adds the steps that retire former keys and unused stores whose date has passed. `promoted` is, or becomes, the current key.
fn retire(observed: &Observed, promoted: Option<&Fingerprint>, keep_days: u32, steps: &mut Vec<Step>) {
    let due = |held: &HeldKey| {
        let ends = held.record.keep_until.filter(|until| *until <= observed.now);
        ends.filter(|_| held.managed && !matches!(held.state, KeyState::Leaving(_)))
    };
    for ObservedStore { store, contents, used: _ } in observed.stores.iter().filter(|store| store.is_used()) {
        let promoting =
            promoted.is_some_and(|fingerprint| contents.serving().is_none_or(|held| held.fingerprint() != fingerprint));
        // Secrets Manager keeps only one previous version: the promotion itself removes the older one.
        let pushed_out = promoting && *store == KeyStore::SecretsManager;
        let previous = contents.previous.iter().filter(|_| !pushed_out);
        for held in previous.chain(&contents.others).filter(|held| promoted != Some(held.fingerprint())) {
            steps.extend(due(held).map(|until| Step::Retire { held: held.clone(), until }));
        }
    }
    for ObservedStore { store, contents, .. } in observed.stores.iter().filter(|store| !store.is_used()) {
        let current = contents.current.as_ref().filter(|held| held.managed);
        match current {
            Some(held) if due(held).is_some() => steps.push(Step::RetireStore { store: *store }),
            Some(held) if held.is_usable() && held.record.keep_until.is_none() => {
                let held = kept(held, observed.now, keep_days.max(LEFT_STORE_DAYS));
                steps.extend(held.record.keep_until.map(|until| Step::Leave { held: held.clone(), until }));
            }
            _ => {
                let rest = contents.previous.iter().chain(&contents.others);
                steps.extend(rest.filter_map(|held| Some(Step::Retire { held: held.clone(), until: due(held)? })));
            }
        }
    }
}
