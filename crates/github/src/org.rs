//! What the App's installation in an organization asks: registrations and runners.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Mutex;
use url::Url;

use crate::app::AppClient;
use crate::error::{Error, ErrorKind, Result};
use crate::http::Call;
use crate::jwt::AppSigner;

/// Tokens last an hour; one is renewed after 50 minutes, so that a call never begins with one about to end.
const RENEW_AFTER: Duration = Duration::from_secs(50 * 60);

/// GitHub's largest page.
const PAGE: usize = 100;

/// An organization has at most 10,000 runners in a group; a hundred such groups is beyond any.
const MOST_PAGES: usize = 10_000;

/// A token for `config.sh`.
#[derive(Debug, Clone, Deserialize)]
pub struct RegistrationToken {
    /// The token; lasts an hour.
    pub token: SecretString,
    /// When it ends, RFC 3339.
    pub expires_at: String,
}

/// What a just-in-time runner is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JitRequest {
    /// Unique to each boot: a name in use is refused.
    pub name: String,
    /// The group's id; 1 is `Default`.
    pub runner_group_id: u64,
    /// 1 to 100.
    pub labels: Vec<String>,
    /// Relative to the runner's directory.
    pub work_folder: String,
}

/// A just-in-time configuration.
#[derive(Debug, Clone, Deserialize)]
pub struct JitConfig {
    /// The runner it belongs to, registered already.
    pub runner: Runner,
    /// For `Runner.Listener run --jitconfig`; as good as the runner's credentials.
    #[serde(rename = "encoded_jit_config")]
    pub encoded: SecretString,
}

/// A runner as GitHub lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Runner {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// `online` or `offline`.
    pub status: String,
    /// Runs a job.
    pub busy: bool,
    /// Takes one job only.
    pub ephemeral: Option<bool>,
    /// Its software's version, where GitHub tells.
    pub version: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: Vec<RunnerLabel>,
}

/// A label as GitHub lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunnerLabel {
    /// Its name.
    pub name: String,
}

impl Runner {
    /// Does GitHub hear from it?
    pub fn is_online(&self) -> bool {
        self.status == "online"
    }
}

/// A runner group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunnerGroup {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// How a request to delete a runner ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone now.
    Gone,
    /// It was gone before.
    Absent,
    /// It runs a job, so GitHub keeps it. The race-free answer to "is it idle?".
    Busy,
}

#[derive(Debug)]
struct Token {
    token: SecretString,
    made: Instant,
}

/// The installation's client. Mints its token on first use and renews it; cheap to clone.
#[derive(Debug, Clone)]
pub struct OrgClient {
    app: AppClient,
    organization: String,
    installation: Option<u64>,
    token: Arc<Mutex<Option<Token>>>,
}

impl OrgClient {
    /// A client for an organization; `installation` saves the request that looks it up. Makes no call.
    ///
    /// # Errors
    /// HTTPS can't be set up.
    pub fn new(
        api_url: &Url,
        user_agent: &str,
        issuer: String,
        signer: Arc<dyn AppSigner>,
        organization: &str,
        installation: Option<u64>,
    ) -> Result<Self> {
        let app = AppClient::new(api_url, user_agent, issuer, signer)?;
        Ok(Self { app, organization: organization.to_owned(), installation, token: Arc::default() })
    }

    /// The App's own client, below this one.
    pub fn app(&self) -> &AppClient {
        &self.app
    }

    /// Mints the installation token now, rather than with the first call.
    ///
    /// # Errors
    /// As [`AppClient::installation_token`].
    pub async fn mint(&self) -> Result<()> {
        self.token().await.map(drop)
    }

    async fn token(&self) -> Result<SecretString> {
        let mut slot = self.token.lock().await;
        if let Some(Token { token, made }) = slot.as_ref()
            && made.elapsed() < RENEW_AFTER
        {
            return Ok(token.clone());
        }
        let installation = match self.installation {
            Some(id) => id,
            None => self.app.org_installation(&self.organization).await?.id,
        };
        let minted = self.app.installation_token(installation).await?;
        *slot = Some(Token { token: minted.token.clone(), made: Instant::now() });
        Ok(minted.token)
    }

    /// `POST …/actions/runners/registration-token`, for `config.sh`.
    ///
    /// # Errors
    /// As [`crate::ErrorKind`] lists them.
    pub async fn registration_token(&self) -> Result<RegistrationToken> {
        self.ask(Method::POST, "/actions/runners/registration-token", None).await
    }

    /// `POST …/actions/runners/generate-jitconfig`. Registers the runner.
    ///
    /// # Errors
    /// [`ErrorKind::NameTaken`]; [`ErrorKind::NotFound`] for an unknown group.
    pub async fn generate_jit_config(&self, request: &JitRequest) -> Result<JitConfig> {
        let JitRequest { name, runner_group_id, labels, work_folder } = request;
        let body = json!({
            "name": name, "runner_group_id": runner_group_id, "labels": labels, "work_folder": work_folder,
        });
        self.ask(Method::POST, "/actions/runners/generate-jitconfig", Some(body)).await
    }

    /// The organization's runners, or the one of a name. A request a hundred.
    ///
    /// # Errors
    /// As [`crate::ErrorKind`] lists them.
    pub async fn runners(&self, name: Option<&str>) -> Result<Vec<Runner>> {
        #[derive(Deserialize)]
        struct Page {
            runners: Vec<Runner>,
        }
        let name = name.map(|name| format!("&name={name}")).unwrap_or_default();
        let mut all = Vec::new();
        for page in 1..=MOST_PAGES {
            let path = format!("/actions/runners?per_page={PAGE}&page={page}{name}");
            let Page { runners } = self.ask(Method::GET, &path, None).await?;
            let last = runners.len() < PAGE;
            all.extend(runners);
            if last {
                break;
            }
        }
        Ok(all)
    }

    /// A runner by id; `None` when GitHub does not know it.
    ///
    /// # Errors
    /// As [`crate::ErrorKind`] lists them.
    pub async fn runner(&self, id: u64) -> Result<Option<Runner>> {
        match self.ask(Method::GET, &format!("/actions/runners/{id}"), None).await {
            Ok(runner) => Ok(Some(runner)),
            Err(Error { kind: ErrorKind::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `DELETE …/actions/runners/{id}`: the race-free way to drain, since GitHub refuses while a job runs.
    ///
    /// # Errors
    /// As [`crate::ErrorKind`] lists them.
    pub async fn delete_runner(&self, id: u64) -> Result<Deleted> {
        let path = format!("/orgs/{}/actions/runners/{id}", self.organization);
        let token = self.token().await?;
        let call = Call { method: Method::DELETE, path, token: &token, body: None };
        match self.app.http().send(&call).await {
            Ok(_) => Ok(Deleted::Gone),
            Err(Error { kind: ErrorKind::NotFound, .. }) => Ok(Deleted::Absent),
            Err(Error { kind: ErrorKind::Unprocessable, .. }) => Ok(Deleted::Busy),
            Err(error) => Err(error),
        }
    }

    /// The organization's runner groups, the first hundred.
    ///
    /// # Errors
    /// As [`crate::ErrorKind`] lists them.
    pub async fn runner_groups(&self) -> Result<Vec<RunnerGroup>> {
        #[derive(Deserialize)]
        struct Page {
            runner_groups: Vec<RunnerGroup>,
        }
        let path = format!("/actions/runner-groups?per_page={PAGE}");
        let Page { runner_groups } = self.ask(Method::GET, &path, None).await?;
        Ok(runner_groups)
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<serde_json::Value>) -> Result<T> {
        let token = self.token().await?;
        let path = format!("/orgs/{}{path}", self.organization);
        self.app.http().json(&Call { method, path, token: &token, body }).await
    }
}
