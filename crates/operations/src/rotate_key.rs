//! `cargo xtask rotate-key`: installs a new private key of the GitHub App in its key stores, and manages the former keys.
//!
//! GitHub has no API to add or delete an App's keys. A person generates a key in the App's settings, this command checks and stores it,
//! and the person deletes the old key at GitHub, which the command names by its fingerprint.
//!
//! A former key can sign until its date, for instances whose new key GitHub refuses and for a rollback. The next run of any kind
//! retires keys whose date has passed.

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

pub use apply::{Former, SETTLE_LIMIT, apply, formers};
pub use plan::{Step, plan_retirement, plan_rollback, plan_rotation};
pub use status::{Acceptance, Role, Row, Status, status};

/// The user agent's product name towards GitHub.
pub const USER_AGENT: &str = concat!("kiln/", env!("CARGO_PKG_VERSION"));

/// What uses the key of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreUse {
    /// The fleets of kiln.toml.
    Configured,
    /// No fleet of kiln.toml any more, but deployed instances until the next `deploy`.
    Deployed,
    /// Nothing.
    Unused,
}

/// A key store that `rotate-key` observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedStore {
    pub store: KeyStore,
    /// What uses its key.
    pub used: StoreUse,
    /// Its keys.
    pub contents: StoreContents,
}

impl ObservedStore {
    /// Whether something uses its key.
    pub fn is_used(&self) -> bool {
        self.used != StoreUse::Unused
    }
}

/// The state that `rotate-key` observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub now: Timestamp,
    /// The stores that are in use, and those that contain a key.
    pub stores: Vec<ObservedStore>,
}

/// Observes the key stores. Makes no mutating call.
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
            // If the use is unknown, nothing may be deleted.
            (false, _) => StoreUse::Deployed,
        };
        let contents = match cloud.contents(&names, store).await {
            // Users of only one store need not grant permissions for the other.
            Err(error) if used != StoreUse::Configured && error.kind == CloudErrorKind::AccessDenied => continue,
            answer => answer?,
        };
        if used == StoreUse::Configured || contents.all().next().is_some() {
            stores.push(ObservedStore { store, used, contents });
        }
    }
    Ok(Observed { now, stores })
}

/// The stores that deployed instances use, whatever kiln.toml says now. `None` if that is unknown.
async fn deployed_stores(config: &Config, cloud: &impl Cloud) -> Result<Option<BTreeSet<KeyStore>>> {
    let mut stores = BTreeSet::new();
    // For on-demand fleets the controller signs.
    let controller = config.on_demand_fleets().next().map(|_| config.controller_stack());
    for name in config.fleets.keys().map(|fleet| config.fleet_stack(fleet)).chain(controller) {
        let stack = match cloud.stack(&name).await {
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

/// Checks that a signer signs for the configured App: `GET /app` returns that App.
///
/// # Errors
/// [`crate::Kind::Configuration`] if it is another App's key; GitHub's errors.
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
        Code::AppMismatch,
        format!("GitHub answers with App `{}` ({}), not {}", app.slug, app.id, config.app.id.issuer()),
    )
    .hint("[app] in kiln.toml names the App; generate its keys in that App's settings"))
}

/// Checks a key that is in no store yet: it belongs to the configured App, and the App's installation has the permission.
///
/// # Errors
/// The errors of [`prove`] and of the installation, each with a hint.
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
        hint: error.hint.map(|hint| format!("{hint}\nnothing was changed: the current key stays in use")),
        ..error
    })
}

/// Adds a more specific hint to GitHub's refusal of a key whose file the user gave.
fn not_a_key_of_the_app(config: &Config, fingerprint: &Fingerprint, error: kiln_github::Error) -> Error {
    let refused = error.kind == ErrorKind::BadKey;
    let error = Error::from(error);
    if !refused {
        return error;
    }
    error.hint(format!(
        "it is another App's, or has been deleted: look for {fingerprint} under \"Private keys\" of App {} at \
         {}/organizations/{}/settings/apps; if it is not listed, generate a key there and give its file",
        config.app.id.issuer(),
        web(config),
        config.organization
    ))
}

/// The URL of GitHub's web interface, without a trailing slash.
fn web(config: &Config) -> &str {
    config.github.url.as_str().trim_end_matches('/')
}

fn check_installation(config: &Config, app: &App, installation: &Installation) -> Result<()> {
    let (organization, id) = (&config.organization, installation.id);
    if let Some(wanted) = config.app.installation_id
        && wanted != id
    {
        let message = format!("the App's installation in `{organization}` is {id}, not {wanted}");
        return Err(Error::new(Code::InstallationMismatch, message)
            .hint("correct `installation_id` in kiln.toml, or remove it: Kiln then looks it up"));
    }
    if let Some(since) = &installation.suspended_at {
        let message = format!("the App's installation {id} in `{organization}` is suspended since {since}");
        return Err(Error::new(Code::GitHubSuspended, message).hint(format!(
            "an owner of the organization can unsuspend it at {}/organizations/{organization}/settings/installations/{id}",
            web(config)
        )));
    }
    if !installation.manages_runners() {
        let message = format!("the App's installation {id} in `{organization}` lacks `{PERMISSION}: write`");
        return Err(Error::new(Code::GitHubPermission, message).hint(format!(
            "grant the App \"Self-hosted runners: read and write\" (organization) at {}/permissions, and accept it in \
             the organization, at {}/organizations/{organization}/settings/installations/{id}",
            app.settings_url(&config.github.url),
            web(config)
        )));
    }
    Ok(())
}
