//! The client for calls of the App itself, which authenticate with a JWT.

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

/// The App, as `GET /app` returns it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct App {
    /// The app id.
    pub id: u64,
    /// Its name in URLs.
    pub slug: String,
    pub client_id: Option<String>,
    /// The URL of the App's page.
    pub html_url: Option<String>,
    /// The App's owner.
    pub owner: Option<Owner>,
}

impl App {
    /// The URL of the App's settings, where its keys are generated and deleted. `web` is the URL of GitHub's web interface.
    pub fn settings_url(&self, web: &Url) -> String {
        let base = web.as_str().trim_end_matches('/');
        let owner = match &self.owner {
            Some(Owner { login: Some(login), kind: Some(kind), .. }) if kind == "Organization" => {
                format!("/organizations/{login}")
            }
            Some(Owner { login: None, slug: Some(enterprise), .. }) => format!("/enterprises/{enterprise}"),
            // The App belongs to a user.
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
    /// An enterprise's name in URLs.
    pub slug: Option<String>,
    /// `Organization` or `User`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// The App's installation in an organization.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Installation {
    pub id: u64,
    /// The granted permissions: `organization_self_hosted_runners` → `write`.
    #[serde(default)]
    pub permissions: BTreeMap<String, String>,
    /// When it was suspended, if it is.
    pub suspended_at: Option<String>,
}

impl Installation {
    /// Whether the App may register and remove the organization's runners.
    pub fn manages_runners(&self) -> bool {
        self.permissions.get(PERMISSION).is_some_and(|level| level == "write")
    }
}

/// An installation token. Opaque: GitHub has changed its length and shape before.
#[derive(Debug, Clone, Deserialize)]
pub struct InstallationToken {
    pub token: SecretString,
    /// When it expires, RFC 3339; one hour after its creation.
    pub expires_at: String,
}

/// The App's client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppClient {
    http: Http,
    issuer: String,
    signer: Arc<dyn AppSigner>,
    /// How far this machine's clock is ahead of GitHub's, in seconds, known from a refusal.
    clock_error: Arc<AtomicI64>,
}

impl AppClient {
    /// A client that signs with `signer` as `issuer`, the client id or the app id. Makes no call.
    ///
    /// # Errors
    /// If HTTPS can't be set up.
    pub fn new(api_url: &Url, user_agent: &str, issuer: String, signer: Arc<dyn AppSigner>) -> Result<Self> {
        let http = Http::new(api_url, user_agent)?;
        Ok(Self { http, issuer, signer, clock_error: Arc::default() })
    }

    /// Sets other timeouts and retries.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.http.bounds = bounds;
        self
    }

    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    /// Starts to open the connection for the first call, while the caller waits for a signature. Sends nothing; the first call reports a
    /// failure.
    pub async fn open_ahead(&self) {
        self.http.open_ahead().await;
    }

    /// The requests, connections and bytes so far.
    pub fn usage(&self) -> Usage {
        self.http.usage()
    }

    /// How many seconds this machine's clock is ahead of GitHub's; 0 if GitHub never refused a JWT because of it.
    pub fn clock_error_secs(&self) -> i64 {
        self.clock_error.load(Ordering::Relaxed)
    }

    /// `GET /app`: the App that the JWT authenticates.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn app(&self) -> Result<App> {
        self.ask(&Call::new(Method::GET, "app")).await
    }

    /// `GET /orgs/{org}/installation`.
    ///
    /// # Errors
    /// [`ErrorKind::NotInstalled`] if there is none.
    pub async fn org_installation(&self, organization: &str) -> Result<Installation> {
        let call = Call::new(Method::GET, format!("orgs/{organization}/installation"));
        self.ask(&call).await.map_err(not_installed)
    }

    /// `POST /app/installations/{id}/access_tokens`, with only the permission that Kiln needs, even if the App has more.
    ///
    /// # Errors
    /// [`ErrorKind::NotInstalled`], [`ErrorKind::Suspended`], and [`ErrorKind::MissingPermission`] if it was not
    /// granted to the App.
    pub async fn installation_token(&self, installation: u64) -> Result<InstallationToken> {
        let call = Call::new(Method::POST, format!("app/installations/{installation}/access_tokens"))
            .body(json!({ "permissions": { PERMISSION: "write" } }));
        self.ask(&call).await.map_err(|error| match error.kind {
            // GitHub answers 422 if the request asks for more than was granted.
            ErrorKind::Validation => {
                Error { kind: ErrorKind::MissingPermission { accepted: format!("{PERMISSION}=write") }, ..error }
            }
            _ => not_installed(error),
        })
    }

    /// Makes a call. If GitHub refuses the signature, retries once with the previous key, because a rotation may be in progress.
    async fn ask<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let refused = match Box::pin(self.ask_in_time(call)).await {
            Err(error) if error.kind == ErrorKind::BadKey => error,
            answer => return answer,
        };
        let Some(signer) = self.signer.previous() else { return Err(refused) };
        let previous = Self { signer, ..self.clone() };
        Box::pin(previous.ask_in_time(call)).await.map_err(|error| match error.kind {
            // GitHub refuses the previous key, too: report the refusal of the current key, which has to be fixed.
            ErrorKind::BadKey | ErrorKind::Sign { .. } => refused,
            _ => error,
        })
    }

    /// Makes a call. If this machine's clock is off, retries once with GitHub's time.
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
    /// A new JWT, with GitHub's time if the difference is known.
    async fn token(&self) -> Result<SecretString> {
        let error = self.clock_error_secs();
        let ahead = Duration::from_secs(error.unsigned_abs());
        let now = if error >= 0 { SystemTime::now() - ahead } else { SystemTime::now() + ahead };
        jwt(&self.issuer, self.signer.as_ref(), now).await.map_err(|error| Error::signing("sign as the App", error))
    }
}

/// The only permission that Kiln needs: it allows the App to register and remove the organization's runners.
pub const PERMISSION: &str = "organization_self_hosted_runners";

fn not_installed(error: Error) -> Error {
    match error.kind {
        ErrorKind::NotFound => Error { kind: ErrorKind::NotInstalled, ..error },
        _ => error,
    }
}
