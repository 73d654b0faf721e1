//! `rotate-key` in a world of three keys and two stores: whatever is done in whatever order, killed after whichever step, no run
//! makes a key current that GitHub refuses, and none deletes the last key that works.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kiln_config::model::KeyStore;
use kiln_github::Fingerprint;
use kiln_operations::keys::{HeldKey, KeyState, StoreContents, StoredKey, Timestamp};
use kiln_operations::plan::Plan;
use kiln_operations::rotate_key::{
    Observed, ObservedStore, Step, StoreUse, plan_retirement, plan_rollback, plan_rotation,
};

/// How many actions lead to the states that are looked at.
const DEPTH: usize = 5;
const KEEP_DAYS: u32 = 7;
const KEYS: [&str; 3] = [
    "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "SHA256:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA=",
    "SHA256:CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCA=",
];

#[derive(Debug, Clone)]
struct World {
    day: u32,
    /// The keys that GitHub has deleted.
    refused: BTreeSet<Fingerprint>,
    stores: BTreeMap<KeyStore, StoreContents>,
}

#[derive(Debug, Clone, Copy)]
enum Command {
    Rotate(usize),
    RollBack,
    Retire,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    /// A run, killed once so many steps are done.
    Run(Command, Option<usize>),
    /// Ten days pass.
    Wait,
    /// The key is deleted at GitHub.
    Delete(usize),
}

fn key(index: usize) -> Fingerprint {
    KEYS[index].parse().unwrap()
}

impl World {
    fn new(stores: &[KeyStore]) -> Self {
        let stores = stores.iter().map(|store| (*store, StoreContents::default())).collect();
        Self { day: 0, refused: BTreeSet::new(), stores }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_unix_secs(1_790_000_000).plus_days(self.day)
    }

    fn accepts(&self, fingerprint: &Fingerprint) -> bool {
        !self.refused.contains(fingerprint)
    }

    fn plan(&self, command: Command) -> Option<Plan<Step>> {
        let stores = self.stores.iter().map(|(store, contents)| ObservedStore {
            store: *store,
            used: StoreUse::Configured,
            contents: contents.clone(),
        });
        let observed = Observed { now: self.now(), stores: stores.collect() };
        match command {
            // The command proves the file's key at GitHub before it plans.
            Command::Rotate(index) => {
                self.accepts(&key(index)).then(|| plan_rotation(&observed, &key(index), KEEP_DAYS))
            }
            Command::RollBack => plan_rollback(&observed, KEEP_DAYS).ok(),
            Command::Retire => Some(plan_retirement(&observed, KEEP_DAYS)),
        }
    }

    /// One run: did it find something to do, and did it come to its end?
    fn run(&mut self, command: Command, killed_after: Option<usize>) -> (bool, bool) {
        let Some(plan) = self.plan(command) else { return (false, true) };
        for (index, step) in plan.steps.iter().enumerate() {
            if killed_after == Some(index) {
                return (true, false);
            }
            let before = self.clone();
            if !self.apply(step) {
                return (true, false);
            }
            self.assert_kept(&before, &format!("{command:?}: {step}"));
        }
        (!plan.steps.is_empty(), true)
    }

    /// What a store does of a step. False where GitHub refuses.
    fn apply(&mut self, step: &Step) -> bool {
        let created = Some(self.now());
        let accepts = |fingerprint: &Fingerprint| !self.refused.contains(fingerprint);
        match step {
            Step::Stage { store, fingerprint, record } => {
                let id = format!("{fingerprint}-{}", self.day);
                let key = StoredKey { store: *store, id, fingerprint: fingerprint.clone() };
                let held = HeldKey { key, state: KeyState::Usable, record: *record, created, managed: true };
                self.contents(*store).others.push(held);
            }
            Step::ProveStored { fingerprint, .. } | Step::ProveCurrent { fingerprint, .. } => {
                return accepts(fingerprint);
            }
            Step::Promote { store, fingerprint, former } => {
                let contents = self.contents(*store);
                let held = contents.usable(fingerprint).expect("what is promoted is stored").clone();
                contents.forget(&held);
                let displaced = std::mem::replace(&mut contents.previous, former.clone());
                if *store == KeyStore::Kms {
                    contents.others.extend(displaced);
                }
                contents.current = Some(held);
            }
            Step::RollBack { store, to, from } => {
                let contents = self.contents(*store);
                (contents.current, contents.previous) = (Some(to.clone()), Some(from.clone()));
            }
            Step::Record { store, fingerprint, record } => {
                let current = self.contents(*store).current.as_mut().expect("a key serves");
                assert_eq!(current.fingerprint(), fingerprint);
                current.record = *record;
            }
            Step::Retire { held, .. } => {
                let contents = self.contents(held.key.store);
                contents.forget(held);
                if held.key.store == KeyStore::Kms {
                    contents.others.push(HeldKey { state: KeyState::Leaving(None), ..held.clone() });
                }
            }
            Step::Leave { .. } | Step::RetireStore { .. } => unreachable!("both stores are in use: {step}"),
        }
        true
    }

    fn contents(&mut self, store: KeyStore) -> &mut StoreContents {
        self.stores.get_mut(&store).unwrap()
    }

    /// What each step promises.
    fn assert_kept(&self, before: &Self, what: &str) {
        for (store, contents) in &self.stores {
            let former = &before.stores[store];
            let serves = |contents: &StoreContents| {
                contents
                    .current
                    .iter()
                    .chain(&contents.previous)
                    .any(|held| held.is_usable() && self.accepts(held.fingerprint()))
            };
            assert!(serves(contents) || !serves(former), "{what}: no key works in {store} any more: {before:#?}");
            let changed = contents.current.as_ref().map(HeldKey::fingerprint)
                != former.current.as_ref().map(HeldKey::fingerprint);
            let accepted = contents.current.as_ref().is_none_or(|held| self.accepts(held.fingerprint()));
            assert!(accepted || !changed, "{what}: GitHub refuses the current key of {store}: {before:#?}");
        }
    }

    fn after(&self, action: Action) -> Option<Self> {
        let mut next = self.clone();
        match action {
            Action::Run(command, killed_after) => {
                next.run(command, killed_after);
            }
            Action::Wait => next.day += 10,
            Action::Delete(index) => {
                next.refused.insert(key(index));
            }
        }
        Some(next)
    }

    /// The same command again leaves nothing to do.
    fn assert_it_ends(&self, command: Command) {
        let mut now = self.clone();
        let (_, done) = now.run(command, None);
        if !done {
            return;
        }
        if let Command::Rotate(index) = command
            && self.accepts(&key(index))
        {
            let all = now
                .stores
                .values()
                .all(|contents| contents.serving().is_some_and(|held| *held.fingerprint() == key(index)));
            assert!(all, "{command:?} ended, and another key serves: {now:#?}");
        }
        let again = now.plan(command).map(|plan| plan.steps).unwrap_or_default();
        assert!(again.is_empty(), "{command:?} twice: {again:#?} from {self:#?}");
    }
}

trait Forget {
    fn forget(&mut self, held: &HeldKey);
}

impl Forget for StoreContents {
    /// Takes a key out of wherever it is.
    fn forget(&mut self, held: &HeldKey) {
        let is_it = |other: &HeldKey| other.key.id == held.key.id;
        self.previous.take_if(|other| is_it(other));
        self.others.retain(|other| !is_it(other));
    }
}

fn explore(stores: &[KeyStore]) -> usize {
    let commands = || (0..KEYS.len()).map(Command::Rotate).chain([Command::RollBack, Command::Retire]);
    let kills = (0..5).map(Some).chain([None]);
    let runs = commands().flat_map(|command| kills.clone().map(move |killed| Action::Run(command, killed)));
    let actions: Vec<Action> = runs.chain([Action::Wait]).chain((0..KEYS.len()).map(Action::Delete)).collect();
    let mut seen = BTreeSet::new();
    let mut queue = VecDeque::from([(World::new(stores), 0)]);
    while let Some((world, depth)) = queue.pop_front() {
        if !seen.insert(format!("{world:?}")) {
            continue;
        }
        commands().for_each(|command| world.assert_it_ends(command));
        if depth < DEPTH {
            queue.extend(actions.iter().filter_map(|action| Some((world.after(*action)?, depth + 1))));
        }
    }
    seen.len()
}

#[test]
fn no_order_of_commands_leaves_the_app_without_a_key() {
    for stores in [&[KeyStore::Kms][..], &[KeyStore::SecretsManager]] {
        let states = explore(stores);
        println!("{states} states of {stores:?}");
        assert!(states > 1000, "only {states} states of {stores:?}");
    }
}
