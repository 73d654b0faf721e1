//! The client for calls of the App's installation in an organization: registrations and runners.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use crate::app::AppClient;
use crate::error::{Error, ErrorKind, Result};
use crate::http::{Bounds, Call, Credentials};
use crate::jwt::AppSigner;

/// When to renew a token. Tokens are valid for one hour and renewed five minutes before, which is longer than a call with all its
/// retries. The time counts from the mint, so a wrong clock does not matter.
const RENEW_AFTER: Duration = Duration::from_secs(55 * 60);

/// GitHub's largest page size.
const PAGE: usize = 100;

/// The maximum number of pages: 10,000 entries, GitHub's limit of runners in a group. A longer list would use too many of the 5,000
/// requests per hour.
///
/// Source: <https://docs.github.com/en/actions/reference/limits>
const MOST_PAGES: usize = 100;

/// Up to this number of runners, the whole organization is listed, in ten requests. In a larger organization only the requested groups
/// are listed.
const FEW: usize = 10 * PAGE;

/// A token for `config.sh`.
#[derive(Debug, Clone, Deserialize)]
pub struct RegistrationToken {
    /// The token; valid for one hour.
    pub token: SecretString,
    /// When it expires, RFC 3339.
    pub expires_at: String,
}

/// The request for a just-in-time runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JitRequest {
    /// The runner's name. Unique to each boot: GitHub refuses a name in use.
    pub name: String,
    /// The group's id; 1 is `Default`.
    pub runner_group_id: u64,
    /// The labels, 1 to 100.
    pub labels: Vec<String>,
    /// The work folder, relative to the runner's directory.
    pub work_folder: String,
}

/// A just-in-time configuration.
#[derive(Debug, Clone, Deserialize)]
pub struct JitConfig {
    /// The runner, which is already registered.
    pub runner: Runner,
    /// The argument of `Runner.Listener run --jitconfig`. It contains the runner's credentials.
    #[serde(rename = "encoded_jit_config")]
    pub encoded: SecretString,
}

/// A runner as GitHub lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Runner {
    pub id: u64,
    pub name: String,
    /// `linux`…
    #[serde(default)]
    pub os: String,
    /// `online` or `offline`.
    pub status: String,
    /// Whether it runs a job.
    pub busy: bool,
    /// Whether it takes only one job.
    pub ephemeral: Option<bool>,
    /// The version of its software, if GitHub reports it.
    pub version: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: Vec<RunnerLabel>,
}

/// A label as GitHub lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunnerLabel {
    pub name: String,
}

impl Runner {
    /// Whether it is online.
    pub fn is_online(&self) -> bool {
        self.status == "online"
    }
}

/// A runner group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunnerGroup {
    pub id: u64,
    pub name: String,
    /// Whether it is the default group, for runners that name none.
    #[serde(default)]
    pub default: bool,
    /// Which repositories may use it: `all`, `selected` or `private`.
    pub visibility: Option<String>,
    /// Whether public repositories may use it, and so anyone who opens a pull request there.
    #[serde(default)]
    pub allows_public_repositories: bool,
}

/// A runner release that GitHub offers the organization for download.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunnerDownload {
    /// `linux`…
    pub os: String,
    /// `x64`, `arm64`…
    pub architecture: String,
    /// The URL of the asset.
    pub download_url: String,
    /// The asset's name, which contains the version.
    pub filename: String,
    /// The SHA-256 of the asset.
    pub sha256_checksum: Option<String>,
}

/// The dates until which GitHub supports a runner version, if it has announced any.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunnerDeprecation {
    /// The version.
    pub runner_version: String,
    /// When it can no longer register; RFC 3339.
    pub registration_deprecates_at: Option<String>,
    /// When it gets no more jobs; RFC 3339.
    pub runtime_deprecates_at: Option<String>,
}

/// A release of actions/runner, from the list of releases.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunnerRelease {
    /// The version with the prefix `v`.
    pub tag_name: String,
    /// The publication date; RFC 3339. A draft has none.
    pub published_at: Option<String>,
    /// Whether it is a pre-release.
    #[serde(default)]
    pub prerelease: bool,
}

/// The result of a request to delete a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// The runner was deleted.
    Gone,
    /// The runner did not exist.
    Absent,
    /// GitHub refused because the runner runs a job. Not reliable: GitHub has also deleted runners that ran a job.
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
    /// A client for an organization. `installation` saves the request that looks up the installation. Makes no call.
    ///
    /// # Errors
    /// If HTTPS can't be set up.
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

    /// Sets other timeouts and retries.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.app = self.app.with_bounds(bounds);
        self
    }

    /// The App's client, which this client uses.
    pub fn app(&self) -> &AppClient {
        &self.app
    }

    /// Mints the installation token now instead of with the first call.
    ///
    /// # Errors
    /// As [`AppClient::installation_token`].
    pub async fn mint(&self) -> Result<()> {
        self.token().await.map(drop)
    }

    /// `POST …/actions/runners/registration-token`, for `config.sh`.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn registration_token(&self) -> Result<RegistrationToken> {
        self.json(self.call(Method::POST, "actions/runners/registration-token")).await
    }

    /// `POST …/actions/runners/remove-token`, for `config.sh remove`.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn remove_token(&self) -> Result<RegistrationToken> {
        self.json(self.call(Method::POST, "actions/runners/remove-token")).await
    }

    /// `POST …/actions/runners/generate-jitconfig`. Registers the runner.
    ///
    /// # Errors
    /// [`ErrorKind::NameTaken`]; [`ErrorKind::NotFound`] for an unknown group; [`ErrorKind::Body`] if the response
    /// was lost: the runner may exist, but its configuration can't be read again.
    pub async fn generate_jit_config(&self, request: &JitRequest) -> Result<JitConfig> {
        let JitRequest { name, runner_group_id, labels, work_folder } = request;
        let body = json!({
            "name": name, "runner_group_id": runner_group_id, "labels": labels, "work_folder": work_folder,
        });
        self.json(self.call(Method::POST, "actions/runners/generate-jitconfig").body(body).once()).await
    }

    /// The organization's runners, or the runner with a name. Makes one request for every 100 runners.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them; [`ErrorKind::Validation`] if there are more than 10,000.
    pub async fn runners(&self, name: Option<&str>) -> Result<Vec<Runner>> {
        let mut call = self.call(Method::GET, "actions/runners");
        if let Some(name) = name {
            call = call.query("name", name.to_owned());
        }
        self.pages(call, Vec::new()).await
    }

    /// The runners of some groups, possibly with others: in a small organization it lists all. Without a group it lists the runners of all
    /// groups. It works for every size of the organization, because each group can be listed.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn runners_in(&self, groups: &BTreeSet<String>) -> Result<Vec<Runner>> {
        let all = self.call(Method::GET, "actions/runners");
        let first: RunnerPage = self.json(page(&all, 1)).await?;
        let (total, first) = first.into_parts();
        if total <= first.len() {
            return Ok(first);
        }
        if total <= FEW {
            return self.pages(all, first).await;
        }
        let mut runners = Vec::new();
        for group in self.runner_groups().await? {
            if groups.is_empty() || groups.contains(&group.name) {
                let path = format!("actions/runner-groups/{}/runners", group.id);
                match self.pages(self.call(Method::GET, &path), Vec::new()).await {
                    Ok(found) => runners.extend(found),
                    // The group was deleted meanwhile.
                    Err(Error { kind: ErrorKind::NotFound, .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(runners)
    }

    /// A runner by id; `None` if it does not exist.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn runner(&self, id: u64) -> Result<Option<Runner>> {
        match self.json(self.call(Method::GET, &format!("actions/runners/{id}"))).await {
            Ok(runner) => Ok(Some(runner)),
            Err(Error { kind: ErrorKind::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `DELETE …/actions/runners/{id}`. GitHub refuses while the runner has a job, and assigns no job to a deleted runner.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn delete_runner(&self, id: u64) -> Result<Deleted> {
        let call = self.call(Method::DELETE, &format!("actions/runners/{id}"));
        let http = self.app.http();
        let mut answer = http.nothing(&call, self).await;
        if self.outlived(answer.as_ref().err()).await {
            answer = http.nothing(&call, self).await;
        }
        match answer {
            Ok(()) => Ok(Deleted::Gone),
            Err(Error { kind: ErrorKind::NotFound, .. }) => Ok(Deleted::Absent),
            // The API reference documents no other meaning of a 422 here, and GitHub has changed the message before.
            Err(Error { kind: ErrorKind::Busy | ErrorKind::Validation, .. }) => Ok(Deleted::Busy),
            Err(error) => Err(error),
        }
    }

    /// The organization's runner groups.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn runner_groups(&self) -> Result<Vec<RunnerGroup>> {
        self.pages(self.call(Method::GET, "actions/runner-groups"), Vec::new()).await
    }

    /// How many repositories may use a runner group whose visibility is `selected`.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn runner_group_repositories(&self, group: u64) -> Result<u64> {
        #[derive(Deserialize)]
        struct Page {
            total_count: u64,
        }
        let path = format!("actions/runner-groups/{group}/repositories");
        let page: Page = self.json(self.call(Method::GET, &path).query("per_page", "1".to_owned())).await?;
        Ok(page.total_count)
    }

    /// The newest release of the runner's software for each system and architecture.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn runner_downloads(&self) -> Result<Vec<RunnerDownload>> {
        self.json(self.call(Method::GET, "actions/runners/downloads")).await
    }

    /// Until when GitHub supports a version; `None` if GitHub does not know the version, or has no such list (Enterprise Server).
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn runner_deprecation(&self, version: &str) -> Result<Option<RunnerDeprecation>> {
        match self.json(self.call(Method::GET, &format!("actions/runners/deprecations/{version}"))).await {
            Ok(deprecation) => Ok(Some(deprecation)),
            Err(Error { kind: ErrorKind::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The 100 newest releases of actions/runner; empty if this GitHub server does not have that repository, or the App can't read it.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn runner_releases(&self) -> Result<Vec<RunnerRelease>> {
        let call = Call::new(Method::GET, "repos/actions/runner/releases".to_owned());
        match self.json(call.query("per_page", PAGE.to_string())).await {
            Ok(releases) => Ok(releases),
            Err(Error {
                kind: ErrorKind::NotFound | ErrorKind::Forbidden | ErrorKind::MissingPermission { .. },
                ..
            }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn call(&self, method: Method, path: &str) -> Call {
        Call::new(method, format!("orgs/{}/{path}", self.organization))
    }

    /// Makes a call. If GitHub has revoked the token early, retries once with a new token.
    async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let answer = self.app.http().json(&call, self).await;
        if self.outlived(answer.as_ref().err()).await { self.app.http().json(&call, self).await } else { answer }
    }

    /// Whether GitHub refused the token. Drops it then, so that the next call mints another.
    async fn outlived(&self, error: Option<&Error>) -> bool {
        let refused = matches!(error, Some(Error { kind: ErrorKind::BadToken, .. }));
        if refused {
            *self.token.lock().await = None;
        }
        refused
    }

    /// All items of a list. Full pages may already be known.
    async fn pages<T: Listed>(&self, call: Call, mut all: Vec<T>) -> Result<Vec<T>> {
        for number in all.len() / PAGE + 1..=MOST_PAGES {
            let answer: T::Page = self.json(page(&call, number)).await?;
            let (total, items) = answer.into_parts();
            let full = items.len() >= PAGE;
            all.extend(items);
            if !full || all.len() >= total {
                return Ok(all);
            }
        }
        Err(Error {
            operation: self.app.http().operation(&call),
            kind: ErrorKind::Validation,
            message: format!("there are more than {}", MOST_PAGES * PAGE),
            request_id: None,
            source: None,
        })
    }
}

fn page(call: &Call, number: usize) -> Call {
    call.clone().query("per_page", PAGE.to_string()).query("page", number.to_string())
}

/// The items that GitHub lists in pages.
trait Listed: Sized {
    type Page: DeserializeOwned + Pages<Self>;
}

/// A page: the total number of items, and the items of the page.
trait Pages<T> {
    fn into_parts(self) -> (usize, Vec<T>);
}

#[derive(Deserialize)]
struct RunnerPage {
    total_count: usize,
    runners: Vec<Runner>,
}

impl Listed for Runner {
    type Page = RunnerPage;
}

impl Pages<Runner> for RunnerPage {
    fn into_parts(self) -> (usize, Vec<Runner>) {
        (self.total_count, self.runners)
    }
}

#[derive(Deserialize)]
struct GroupPage {
    total_count: usize,
    runner_groups: Vec<RunnerGroup>,
}

impl Listed for RunnerGroup {
    type Page = GroupPage;
}

impl Pages<RunnerGroup> for GroupPage {
    fn into_parts(self) -> (usize, Vec<RunnerGroup>) {
        (self.total_count, self.runner_groups)
    }
}

impl Credentials for OrgClient {
    /// The installation token. Mints a new one if it is about to expire.
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
}
