//! What the App itself asks, with a JWT.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use reqwest::Method;
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use url::Url;

use crate::connections::Usage;
use crate::error::{Error, ErrorKind, Result};
use crate::http::{Bounds, Call, Credentials, Http};
use crate::jwt::{AppSigner, jwt};

/// The App, as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct App {
    /// The app id.
    pub id: u64,
    /// Its name in addresses.
    pub slug: String,
    pub client_id: Option<String>,
    /// The App's page.
    pub html_url: Option<String>,
    /// Whose it is.
    pub owner: Option<Owner>,
}

impl App {
    /// The page with its settings, where its keys are made and deleted. `web` is GitHub's own address.
    pub fn settings_url(&self, web: &Url) -> String {
        let base = web.as_str().trim_end_matches('/');
        let owner = match &self.owner {
            Some(Owner { login: Some(login), kind: Some(kind), .. }) if kind == "Organization" => {
                format!("/organizations/{login}")
            }
            Some(Owner { login: None, slug: Some(enterprise), .. }) => format!("/enterprises/{enterprise}"),
            // A person's own.
            _ => String::new(),
        };
        format!("{base}{owner}/settings/apps/{}", self.slug)
    }
}

/// An App's owner: an organization, a user, or an enterprise.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Owner {
    /// Its login; an enterprise has none.
    pub login: Option<String>,
    /// An enterprise's name in addresses.
    pub slug: Option<String>,
    /// `Organization` or `User`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// The App's installation in an organization.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Installation {
    pub id: u64,
    /// What was granted, by name: `organization_self_hosted_runners` → `write`.
    #[serde(default)]
    pub permissions: BTreeMap<String, String>,
    /// When it was suspended, if it is.
    pub suspended_at: Option<String>,
}

impl Installation {
    /// May the App register and remove the organization's runners?
    pub fn manages_runners(&self) -> bool {
        self.permissions.get(PERMISSION).is_some_and(|level| level == "write")
    }
}

/// An installation token. Opaque: GitHub has changed its length and shape before.
#[derive(Debug, Clone, Deserialize)]
pub struct InstallationToken {
    pub token: SecretString,
    /// When it ends, RFC 3339; an hour after it was made.
    pub expires_at: String,
}

/// The App's client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppClient {
    http: Http,
    issuer: String,
    signer: Arc<dyn AppSigner>,
    /// How far this machine's clock is ahead of GitHub's, in seconds, as learnt from a refusal.
    clock_error: Arc<AtomicI64>,
}

impl AppClient {
    /// A client that signs with `signer` as `issuer`, the client id or the app id. Makes no call.
    ///
    /// # Errors
    /// HTTPS can't be set up.
    pub fn new(api_url: &Url, user_agent: &str, issuer: String, signer: Arc<dyn AppSigner>) -> Result<Self> {
        let http = Http::new(api_url, user_agent)?;
        Ok(Self { http, issuer, signer, clock_error: Arc::default() })
    }

    /// The same within other bounds.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.http.bounds = bounds;
        self
    }

    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    /// Begins to open the connection that the first call will use, so that a signature can be waited for meanwhile. Sends
    /// nothing; a failure shows with the first call.
    pub async fn open_ahead(&self) {
        self.http.open_ahead().await;
    }

    /// What was used so far.
    pub fn usage(&self) -> Usage {
        self.http.usage()
    }

    /// By how many seconds this machine's clock was found to be ahead of GitHub's; 0 if it was never refused.
    pub fn clock_error_secs(&self) -> i64 {
        self.clock_error.load(Ordering::Relaxed)
    }

    /// `GET /app`: who am I?
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn app(&self) -> Result<App> {
        self.ask(&Call::new(Method::GET, "app")).await
    }

    /// `GET /orgs/{org}/installation`.
    ///
    /// # Errors
    /// [`ErrorKind::NotInstalled`] where there is none.
    pub async fn org_installation(&self, organization: &str) -> Result<Installation> {
        let call = Call::new(Method::GET, format!("orgs/{organization}/installation"));
        self.ask(&call).await.map_err(not_installed)
    }

    /// `POST /app/installations/{id}/access_tokens` with the one permission Kiln needs, whatever more the App has.
    ///
    /// # Errors
    /// [`ErrorKind::NotInstalled`], [`ErrorKind::Suspended`], and [`ErrorKind::MissingPermission`] where the App was not
    /// granted it.
    pub async fn installation_token(&self, installation: u64) -> Result<InstallationToken> {
        let call = Call::new(Method::POST, format!("app/installations/{installation}/access_tokens"))
            .body(json!({ "permissions": { PERMISSION: "write" } }));
        self.ask(&call).await.map_err(|error| match error.kind {
            // GitHub answers 422 when more is asked for than was granted.
            ErrorKind::Validation => {
                Error { kind: ErrorKind::MissingPermission { accepted: format!("{PERMISSION}=write") }, ..error }
            }
            _ => not_installed(error),
        })
    }

    /// Asks; once more with the previous key where GitHub refuses this one's signature: a rotation may be under way.
    async fn ask<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let refused = match Box::pin(self.ask_in_time(call)).await {
            Err(error) if error.kind == ErrorKind::BadKey => error,
            answer => return answer,
        };
        let Some(signer) = self.signer.previous() else { return Err(refused) };
        let previous = Self { signer, ..self.clone() };
        Box::pin(previous.ask_in_time(call)).await.map_err(|error| match error.kind {
            // It is gone too: the refusal of the current one is what has to be mended.
            ErrorKind::BadKey | ErrorKind::Sign { .. } => refused,
            _ => error,
        })
    }

    /// Asks; once more by GitHub's clock where this machine's is off.
    async fn ask_in_time<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        match self.http.json(call, self).await {
            Err(Error { kind: ErrorKind::ClockSkew { seconds }, .. }) if seconds != self.clock_error_secs() => {
                self.clock_error.store(seconds, Ordering::Relaxed);
                self.http.json(call, self).await
            }
            answer => answer,
        }
    }
}

impl Credentials for AppClient {
    /// A fresh JWT, by GitHub's clock as far as it is known.
    async fn token(&self) -> Result<SecretString> {
        let error = self.clock_error_secs();
        let ahead = Duration::from_secs(error.unsigned_abs());
        let now = if error >= 0 { SystemTime::now() - ahead } else { SystemTime::now() + ahead };
        jwt(&self.issuer, self.signer.as_ref(), now).await.map_err(|error| Error::signing("sign as the App", error))
    }
}

/// The one permission Kiln needs: it lets the App register and remove the organization's runners.
pub const PERMISSION: &str = "organization_self_hosted_runners";

fn not_installed(error: Error) -> Error {
    match error.kind {
        ErrorKind::NotFound => Error { kind: ErrorKind::NotInstalled, ..error },
        _ => error,
    }
}
