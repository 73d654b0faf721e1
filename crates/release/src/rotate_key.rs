//! `cargo xtask rotate-key`: puts a new private key of the GitHub App into its stores.
//!
//! GitHub has no API to add or delete an App's keys: a person makes one in the App's settings, this command proves and
//! stores it, and the person deletes the old one, named here by its fingerprint.

use std::fmt;
use std::sync::Arc;

use kiln_fleet::config::{AppId, Config};
use kiln_fleet::model::KeyStore;
use kiln_github::{App, AppClient, AppKey, AppSigner, Fingerprint};

use crate::deploy::key_names;
use crate::error::{Error, Kind, Result};
use crate::plan::Plan;
use crate::ports::{Cloud, Keys, Progress, StoredKey};

/// The user agent's product name towards GitHub.
pub const USER_AGENT: &str = concat!("kiln/", env!("CARGO_PKG_VERSION"));

/// What is to be installed.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    /// The key.
    pub key: &'a Arc<AppKey>,
}

/// A store as `rotate-key` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedStore {
    /// The store.
    pub store: KeyStore,
    /// The key in use.
    pub current: Option<StoredKey>,
    /// The new key, if an earlier run staged it.
    pub staged: Option<StoredKey>,
}

/// The world as `rotate-key` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The new key's fingerprint.
    pub fingerprint: Fingerprint,
    /// The stores the fleets use.
    pub stores: Vec<ObservedStore>,
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Store the key, unused as yet.
    Stage {
        /// The store.
        store: KeyStore,
        /// The key.
        fingerprint: Fingerprint,
    },
    /// See GitHub accept a signature made by the staged key in its store.
    ProveStaged {
        /// The store.
        store: KeyStore,
    },
    /// Make the staged key the current one.
    Promote {
        /// The store.
        store: KeyStore,
        /// What served before.
        former: Option<Fingerprint>,
    },
    /// See GitHub accept a signature made the way an instance makes it.
    ProveCurrent {
        /// The store.
        store: KeyStore,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage { store, fingerprint } => write!(f, "store key {fingerprint} in {store}, unused as yet"),
            Self::ProveStaged { store } => write!(f, "see GitHub accept the key stored in {store}"),
            Self::Promote { store, former: None } => write!(f, "make it the current key in {store}"),
            Self::Promote { store, former: Some(former) } => {
                write!(f, "make it the current key in {store}, in place of {former}")
            }
            Self::ProveCurrent { store } => {
                write!(f, "see GitHub accept the current key in {store}, as an instance would use it")
            }
        }
    }
}

/// Proves that a signer signs for the configured App: `GET /app` answers with it.
///
/// # Errors
/// [`Kind::Configuration`] when it is another App's key; what GitHub answers.
pub async fn prove(config: &Config, signer: Arc<dyn AppSigner>) -> Result<App> {
    let client = AppClient::new(&config.github.api_url, USER_AGENT, config.app.id.issuer(), signer)?;
    let app = client.app().await?;
    let matches = match &config.app.id {
        AppId::Client(id) => app.client_id.as_deref() == Some(id),
        AppId::App(id) => app.id == *id,
    };
    if matches {
        return Ok(app);
    }
    Err(Error::new(
        Kind::Configuration,
        format!("GitHub answers with App `{}` ({}), not {}", app.slug, app.id, config.app.id.issuer()),
    )
    .hint("[app] in kiln.toml names the App; its keys are made in that App's settings"))
}

/// Proves the new key, then looks at the stores. Makes no mutating call.
///
/// # Errors
/// [`prove`]'s, with a hint about the file; what AWS answers.
pub async fn observe(request: &Request<'_>, cloud: &impl Cloud) -> Result<Observed> {
    let Request { config, key } = request;
    let fingerprint = key.fingerprint();
    prove(config, Arc::clone(key) as _).await.map_err(|error| Error {
        message: format!("GitHub does not accept key {fingerprint}: {}", error.message),
        ..error
    })?;
    let names = key_names(config);
    let mut stores = Vec::new();
    for store in config.key_stores() {
        let current = cloud.current_key(&names, store).await?;
        let staged = cloud.staged_key(&names, store, &fingerprint).await?;
        stores.push(ObservedStore { store, current, staged });
    }
    Ok(Observed { fingerprint, stores })
}

/// What has to be done; pure.
pub fn plan(observed: &Observed) -> Plan<Step> {
    let fingerprint = &observed.fingerprint;
    let mut steps = Vec::new();
    for ObservedStore { store, current, staged } in &observed.stores {
        if current.as_ref().is_some_and(|current| current.fingerprint == *fingerprint) {
            continue;
        }
        if staged.is_none() {
            steps.push(Step::Stage { store: *store, fingerprint: fingerprint.clone() });
        }
        steps.push(Step::ProveStaged { store: *store });
        steps.push(Step::Promote { store: *store, former: current.as_ref().map(|key| key.fingerprint.clone()) });
        steps.push(Step::ProveCurrent { store: *store });
    }
    Plan { subject: "App key".to_owned(), steps, settled: format!("{fingerprint} is the current key already") }
}

/// Carries the plan out; the keys that served before are the result, for a person to delete at GitHub.
///
/// # Errors
/// The first step that fails, with the steps done before it. Until a store's promotion its former key serves.
pub async fn apply(
    request: &Request<'_>,
    observed: &Observed,
    plan: &Plan<Step>,
    cloud: &impl Cloud,
    progress: &dyn Progress,
) -> Result<Vec<Fingerprint>> {
    let mut staged: Vec<StoredKey> = observed.stores.iter().filter_map(|store| store.staged.clone()).collect();
    let mut former = Vec::new();
    let mut done = Vec::new();
    for step in &plan.steps {
        progress.say(&step.to_string());
        apply_step(request, step, &mut staged, cloud).await.map_err(|error| error.after(&done))?;
        if let Step::Promote { former: Some(fingerprint), .. } = step
            && !former.contains(fingerprint)
        {
            former.push(fingerprint.clone());
        }
        done.push(step.to_string());
    }
    Ok(former)
}

async fn apply_step(request: &Request<'_>, step: &Step, staged: &mut Vec<StoredKey>, cloud: &impl Keys) -> Result<()> {
    let Request { config, key } = request;
    let names = key_names(config);
    let of = |staged: &[StoredKey], store: KeyStore| {
        staged.iter().find(|key| key.store == store).cloned().expect("a key is staged before it is used")
    };
    match step {
        Step::Stage { store, .. } => staged.push(cloud.stage_key(&names, *store, key).await?),
        Step::ProveStaged { store } => {
            prove(config, cloud.key_signer(&names, &of(staged, *store)).into()).await?;
        }
        Step::Promote { store, .. } => cloud.promote_key(&names, &of(staged, *store)).await?,
        Step::ProveCurrent { store } => {
            prove(config, cloud.current_signer(&names, *store).into()).await?;
        }
    }
    Ok(())
}
