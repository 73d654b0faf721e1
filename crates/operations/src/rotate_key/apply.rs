//! Carries out a plan. Until the promotion the store's former key is in use; if GitHub does not accept the promoted key, the former key
//! becomes the current one again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kiln_config::config::Config;
use kiln_config::model::KeyStore;
use kiln_github::{AppKey, Fingerprint, SignError};

use super::plan::Step;
use super::{Observed, prove};
use crate::code::Code;
use crate::deploy::key_names;
use crate::error::{Error, Result};
use crate::keys::{StoredKey, Timestamp};
use crate::plan::{Plan, StepTracker};
use crate::ports::{CloudError, CloudErrorKind, KeyNames, Keys, Progress};
use crate::wait::PollBackoff;

/// How long to wait until the store signs with the new key. KMS moves an alias within seconds, but policies with conditions on aliases
/// or tags may take up to five minutes to allow the new key. The pause before the last check is 15 s.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/alias-authorization.html>
pub const SETTLE_LIMIT: Duration = Duration::from_secs(330);

/// The message to sign to find out which key an alias points to. It is not a JWT, so its signature is useless to others.
const PROBE: &[u8] = b"kiln: which key is this?";

/// Carries out the plan. `key` is the key to store, for a rotation.
///
/// # Errors
/// The error of the first step that fails, with the steps done before it and the keys in use.
pub async fn apply(
    config: &Config,
    key: Option<&Arc<AppKey>>,
    observed: &Observed,
    plan: &Plan<Step>,
    cloud: &impl Keys,
    progress: &dyn Progress,
) -> Result<()> {
    let names = key_names(config);
    let mut work = Work::new(config, &names, key, observed, cloud, progress);
    let mut tally = StepTracker::new(plan, progress);
    for step in &plan.steps {
        tally.begin(&step.to_string());
        if let Err(error) = Box::pin(work.step(step)).await {
            let error = work.go_back(step, error).await;
            return Err(tally.failed(work.telling_what_serves(error)));
        }
    }
    Ok(())
}

struct Work<'a, C> {
    config: &'a Config,
    names: &'a KeyNames,
    key: Option<&'a Arc<AppKey>>,
    cloud: &'a C,
    progress: &'a dyn Progress,
    /// The keys in the stores, including those that this run stored.
    stored: Vec<StoredKey>,
    /// The key that instances sign with, by store.
    serving: BTreeMap<KeyStore, Option<Fingerprint>>,
    /// The key that this run replaced, by store.
    former: BTreeMap<KeyStore, StoredKey>,
}

impl<'a, C: Keys> Work<'a, C> {
    fn new(
        config: &'a Config,
        names: &'a KeyNames,
        key: Option<&'a Arc<AppKey>>,
        observed: &Observed,
        cloud: &'a C,
        progress: &'a dyn Progress,
    ) -> Self {
        let stored = observed.stores.iter().flat_map(|store| store.contents.all());
        let used = observed.stores.iter().filter(|store| store.is_used());
        Self {
            config,
            names,
            key,
            cloud,
            progress,
            stored: stored.filter(|held| held.is_usable()).map(|held| held.key.clone()).collect(),
            serving: used.map(|s| (s.store, s.contents.serving().map(|held| held.fingerprint().clone()))).collect(),
            former: BTreeMap::new(),
        }
    }

    fn find(&self, store: KeyStore, fingerprint: &Fingerprint) -> Result<StoredKey> {
        let found = self.stored.iter().find(|key| key.store == store && key.fingerprint == *fingerprint);
        found.cloned().ok_or_else(|| Error::new(Code::Internal, format!("key {fingerprint} is not in {store}")))
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        let (config, names, cloud) = (self.config, self.names, self.cloud);
        match step {
            Step::Stage { store, fingerprint, record } => {
                let key =
                    self.key.ok_or_else(|| Error::new(Code::Internal, format!("key {fingerprint} is not at hand")))?;
                self.stored.push(cloud.stage_key(names, *store, key, record).await?);
            }
            Step::ProveStored { store, fingerprint } => {
                let key = self.find(*store, fingerprint)?;
                prove(config, cloud.key_signer(names, &key).into()).await?;
            }
            Step::Promote { store, fingerprint, former } => {
                let key = self.find(*store, fingerprint)?;
                cloud.promote_key(names, &key, former.as_ref()).await?;
                self.serves(*store, fingerprint, former.as_ref().map(|held| &held.key));
            }
            Step::RollBack { store, to, from } => {
                cloud.roll_back_key(names, to, from).await?;
                self.serves(*store, to.fingerprint(), Some(&from.key));
            }
            Step::ProveCurrent { store, fingerprint } => {
                self.settle(&self.find(*store, fingerprint)?).await?;
                prove(config, cloud.current_signer(names, *store).into()).await?;
            }
            Step::Record { store, fingerprint, record } => {
                cloud.record_key(names, &self.find(*store, fingerprint)?, record).await?;
            }
            Step::Leave { held, .. } => cloud.record_key(names, &held.key, &held.record).await?,
            Step::Retire { held, .. } => cloud.retire_key(names, &held.key).await?,
            Step::RetireStore { store } => cloud.retire_store(names, *store).await?,
        }
        Ok(())
    }

    fn serves(&mut self, store: KeyStore, fingerprint: &Fingerprint, former: Option<&StoredKey>) {
        self.serving.insert(store, Some(fingerprint.clone()));
        if let Some(former) = former {
            self.former.insert(store, former.clone());
        }
    }

    /// Waits until the store signs with this key when an instance uses the current key. PKCS#1 v1.5 signatures are deterministic, so
    /// equal signatures mean equal keys.
    async fn settle(&self, key: &StoredKey) -> Result<()> {
        let failed = |error: SignError| Error::new(Code::SignFailed, error.to_string()).caused_by(error);
        let by_id = self.cloud.key_signer(self.names, key);
        let current = self.cloud.current_signer(self.names, key.store);
        let mut pace = PollBackoff::new(SETTLE_LIMIT);
        loop {
            let signed = async { Ok::<_, SignError>((by_id.sign(PROBE).await?, current.sign(PROBE).await?)) };
            let refused = match signed.await {
                Ok((expected, signature)) if signature == expected => return Ok(()),
                // The store still uses the former key.
                Ok(_) => None,
                Err(error) if error.retryable || is_denied(&error) => Some(error),
                Err(error) => return Err(failed(error)),
            };
            self.progress.state(&format!("waiting for {} to sign with {}", key.store, key.fingerprint));
            if pace.pause().await.is_err() {
                return Err(refused.map_or_else(|| not_settled(key), failed));
            }
        }
    }

    /// Makes the former key the current one again after GitHub did not accept the promoted key.
    async fn go_back(&mut self, step: &Step, error: Error) -> Error {
        let Step::ProveCurrent { store, .. } = step else { return error };
        let Some(former) = self.former.remove(store) else { return error };
        self.progress.say(&format!("make {} the current key in {store} again", former.fingerprint));
        match self.cloud.promote_key(self.names, &former, None).await {
            Ok(()) => {
                self.serving.insert(*store, Some(former.fingerprint));
                error
            }
            Err(undo) => {
                let message =
                    format!("{}; and the former key could not be made the current one again: {undo}", error.message);
                let hint = "`cargo xtask rotate-key --rollback` tries the rollback again".to_owned();
                Error { message, hint: Some(hint), ..error }
            }
        }
    }

    fn telling_what_serves(&self, error: Error) -> Error {
        let serving: Vec<String> = self
            .serving
            .iter()
            .map(|(store, serving)| match serving {
                Some(fingerprint) => format!("{fingerprint} is current in {store}"),
                None => format!("no key is current in {store} yet"),
            })
            .collect();
        Error { message: format!("{}; {}", error.message, serving.join(", ")), ..error }
    }
}

fn not_settled(key: &StoredKey) -> Error {
    let secs = SETTLE_LIMIT.as_secs();
    Error::new(Code::KeyNotSettled, format!("{} still signs with the former key after {secs} s", key.store))
        .hint("run the same command again: it resumes there")
}

/// Whether the caller lacked a permission. For minutes after an alias was moved, that may only mean that KMS does not see the change
/// yet.
fn is_denied(error: &SignError) -> bool {
    let cause = error.source.as_ref().and_then(|source| source.downcast_ref::<CloudError>());
    cause.is_some_and(|cause| cause.kind == CloudErrorKind::AccessDenied)
}

/// A key that was in use before and is, or was until now, in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    /// The key.
    pub fingerprint: Fingerprint,
    /// Until when it is kept.
    pub keep_until: Option<Timestamp>,
}

/// The keys that are no longer in use after the plan, which a person must delete at GitHub.
pub fn formers(observed: &Observed, plan: &Plan<Step>) -> Vec<Former> {
    let mut serving: BTreeMap<KeyStore, Fingerprint> = observed
        .stores
        .iter()
        .filter(|store| store.is_used())
        .filter_map(|store| Some((store.store, store.contents.serving()?.fingerprint().clone())))
        .collect();
    let mut once: BTreeMap<Fingerprint, Option<Timestamp>> = BTreeMap::new();
    for held in observed.stores.iter().flat_map(|store| store.contents.all()) {
        if held.record.since.is_some() && held.is_usable() {
            let until = once.entry(held.fingerprint().clone()).or_default();
            *until = (*until).max(held.record.keep_until);
        }
    }
    for step in &plan.steps {
        let (store, now, before) = match step {
            Step::Promote { store, fingerprint, former: Some(former) } => (store, fingerprint, former),
            Step::RollBack { store, to, from } => (store, to.fingerprint(), from),
            Step::Promote { store, fingerprint, former: None } => {
                serving.insert(*store, fingerprint.clone());
                continue;
            }
            _ => continue,
        };
        serving.insert(*store, now.clone());
        once.insert(before.fingerprint().clone(), before.record.keep_until);
    }
    once.retain(|fingerprint, _| !serving.values().any(|serving| serving == fingerprint));
    once.into_iter().map(|(fingerprint, keep_until)| Former { fingerprint, keep_until }).collect()
}
