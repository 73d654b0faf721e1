//! `cargo xtask rotate-key`: puts a new private key of the GitHub App into its stores, and looks after the former ones.
//!
//! GitHub has no API to add or delete an App's keys: a person makes one in the App's settings, this command proves and
//! stores it, and the person deletes the old one, named here by its fingerprint.
//!
//! A former key is kept, able to sign, until its date: for an instance that GitHub refuses the new one, and for going
//! back. What is due is retired by the next run of any kind.

mod apply;
mod plan;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_config::config::{AppId, Config};
use kiln_config::model::KeyStore;
use kiln_github::{App, AppClient, AppKey, AppSigner, ErrorKind, Fingerprint, Installation, PERMISSION};

use crate::code::Code;
use crate::deploy::key_names;
use crate::error::{Error, Result};
use crate::keys::{StoreContents, Timestamp};
use crate::ports::{Cloud, CloudErrorKind};

pub use apply::{Former, SETTLE_BOUND, apply, formers};
pub use plan::{Step, plan_retirement, plan_rollback, plan_rotation};
pub use status::{Acceptance, Role, Row, Status, status};

/// The user agent's product name towards GitHub.
pub const USER_AGENT: &str = concat!("kiln/", env!("CARGO_PKG_VERSION"));

/// Who signs with a store's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreUse {
    /// The fleets of kiln.toml.
    Configured,
    /// Not kiln.toml's fleets any more, but their instances until the next deploy.
    Deployed,
    /// Nobody.
    Unused,
}

/// A store as `rotate-key` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedStore {
    pub store: KeyStore,
    /// Who signs with its key.
    pub used: StoreUse,
    /// Its keys.
    pub contents: StoreContents,
}

impl ObservedStore {
    /// Does anybody sign with its key?
    pub fn is_used(&self) -> bool {
        self.used != StoreUse::Unused
    }
}

/// The world as `rotate-key` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub now: Timestamp,
    /// The stores that are used, and those that hold something.
    pub stores: Vec<ObservedStore>,
}

/// Looks at the stores. Makes no mutating call.
///
/// # Errors
/// What AWS answers.
pub async fn observe(config: &Config, cloud: &impl Cloud, now: Timestamp) -> Result<Observed> {
    let names = key_names(config);
    let configured = config.key_stores();
    let deployed = deployed_stores(config, cloud).await?;
    let mut stores = Vec::new();
    for store in [KeyStore::Kms, KeyStore::SecretsManager] {
        let used = match (configured.contains(&store), &deployed) {
            (true, _) => StoreUse::Configured,
            (false, Some(deployed)) if !deployed.contains(&store) => StoreUse::Unused,
            // Where it can't be told, nothing may be taken away.
            (false, _) => StoreUse::Deployed,
        };
        let contents = match cloud.contents(&names, store).await {
            // Who has but one store need not grant anything on the other.
            Err(error) if used != StoreUse::Configured && error.kind == CloudErrorKind::AccessDenied => continue,
            answer => answer?,
        };
        if used == StoreUse::Configured || contents.all().next().is_some() {
            stores.push(ObservedStore { store, used, contents });
        }
    }
    Ok(Observed { now, stores })
}

/// The stores that the deployed fleets' instances use, whatever kiln.toml says by now. `None`: it can't be told.
async fn deployed_stores(config: &Config, cloud: &impl Cloud) -> Result<Option<BTreeSet<KeyStore>>> {
    let mut stores = BTreeSet::new();
    for fleet in config.fleets.keys() {
        let stack = match cloud.stack(&config.fleet_stack(fleet)).await {
            Err(error) if error.kind == CloudErrorKind::AccessDenied => return Ok(None),
            answer => answer?,
        };
        let Some(stack) = stack else { continue };
        for (parameter, store) in [("KeyAlias", KeyStore::Kms), ("SecretName", KeyStore::SecretsManager)] {
            if stack.parameters.get(parameter).is_some_and(|value| !value.is_empty()) {
                stores.insert(store);
            }
        }
    }
    Ok(Some(stores))
}

fn client(config: &Config, signer: Arc<dyn AppSigner>) -> Result<AppClient> {
    Ok(AppClient::new(&config.github.api_url, USER_AGENT, config.app.id.issuer(), signer)?)
}

/// Proves that a signer signs for the configured App: `GET /app` answers with it.
///
/// # Errors
/// [`crate::Kind::Configuration`] when it is another App's key; what GitHub answers.
pub async fn prove(config: &Config, signer: Arc<dyn AppSigner>) -> Result<App> {
    let app = client(config, signer)?.app().await?;
    check_app(config, &app)?;
    Ok(app)
}

fn check_app(config: &Config, app: &App) -> Result<()> {
    let matches = match &config.app.id {
        AppId::Client(id) => app.client_id.as_deref() == Some(id),
        AppId::App(id) => app.id == *id,
    };
    if matches {
        return Ok(());
    }
    Err(Error::new(
        Code::WrongApp,
        format!("GitHub answers with App `{}` ({}), not {}", app.slug, app.id, config.app.id.issuer()),
    )
    .hint("[app] in kiln.toml names the App; its keys are made in that App's settings"))
}

/// Proves a key that is in no store yet: it is the configured App's, and that App can serve the organization.
///
/// # Errors
/// [`prove`]'s and the installation's, each with what to do about it.
pub async fn prove_new(config: &Config, key: &Arc<AppKey>) -> Result<App> {
    let fingerprint = key.fingerprint();
    let ask = async {
        let client = client(config, Arc::clone(key) as _)?;
        let app = client.app().await.map_err(|error| not_a_key_of_the_app(config, &fingerprint, error))?;
        check_app(config, &app)?;
        let installation = client.org_installation(config.organization.as_str()).await?;
        check_installation(config, &app, &installation)?;
        Ok(app)
    };
    ask.await.map_err(|error: Error| Error {
        message: format!("key {fingerprint} can't be used: {}", error.message),
        hint: error.hint.map(|hint| format!("{hint}\nnothing was changed: what served still does")),
        ..error
    })
}

/// A refusal of a key in hand says more than one of a key somewhere.
fn not_a_key_of_the_app(config: &Config, fingerprint: &Fingerprint, error: kiln_github::Error) -> Error {
    let refused = error.kind == ErrorKind::BadKey;
    let error = Error::from(error);
    if !refused {
        return error;
    }
    error.hint(format!(
        "it is another App's, or has been deleted: look for {fingerprint} under \"Private keys\" of App {} at \
         {}/organizations/{}/settings/apps; where it is not, generate a key there and give its file",
        config.app.id.issuer(),
        web(config),
        config.organization
    ))
}

/// GitHub's own address, without a slash at its end.
fn web(config: &Config) -> &str {
    config.github.url.as_str().trim_end_matches('/')
}

fn check_installation(config: &Config, app: &App, installation: &Installation) -> Result<()> {
    let (organization, id) = (&config.organization, installation.id);
    if let Some(wanted) = config.app.installation_id
        && wanted != id
    {
        let message = format!("the App's installation in `{organization}` is {id}, not {wanted}");
        return Err(Error::new(Code::WrongInstallation, message)
            .hint("correct `installation_id` in kiln.toml, or leave it out: it is looked up then"));
    }
    if let Some(since) = &installation.suspended_at {
        let message = format!("the App's installation {id} in `{organization}` is suspended since {since}");
        return Err(Error::new(Code::GitHubSuspended, message).hint(format!(
            "an owner of the organization lifts it at {}/organizations/{organization}/settings/installations/{id}",
            web(config)
        )));
    }
    if !installation.manages_runners() {
        let message = format!("the App's installation {id} in `{organization}` lacks `{PERMISSION}: write`");
        return Err(Error::new(Code::GitHubPermission, message).hint(format!(
            "give the App \"Self-hosted runners: read and write\" (organization) at {}/permissions, and accept it in \
             the organization, at {}/organizations/{organization}/settings/installations/{id}",
            app.settings_url(&config.github.url),
            web(config)
        )));
    }
    Ok(())
}
