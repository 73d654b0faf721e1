//! GitHub's scale set service: scale sets, their sessions and queues, and their single-use runners.
//!
//! The service is in public preview. Its only descriptions are the source of the official client (`actions/scaleset`) and measurements by
//! others. docs/design/scale-set-client.md says why this is our own client. It makes each call once, except after GitHub did not accept
//! a token: its caller polls and decides again anyway.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use crate::error::ErrorKind;
use crate::http::{CALLS, CONNECT_LIMIT};
use crate::org::OrgClient;

/// The version of the service's API that the official client uses.
const API_VERSION: &str = "6.0-preview";

/// The timeout of a poll. GitHub answers a poll after at most 50 s.
const POLL: Duration = Duration::from_secs(62);

/// The timeout of all other calls.
const CALL: Duration = Duration::from_secs(20);

/// The service's token is renewed when it is valid for less than this.
const MARGIN: Duration = Duration::from_secs(60);

/// The error of a call.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct ScaleSetError {
    /// The method and URL of the call. Never contains a token.
    pub operation: String,
    /// The kind of failure.
    pub kind: ScaleSetErrorKind,
    /// The service's own message.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleSetErrorKind {
    /// 409: another session is open.
    SessionConflict,
    /// The session does not exist.
    SessionGone,
    /// The scale set does not exist.
    SetGone,
    /// 401 of the queue.
    QueueToken,
    /// A runner with that name exists.
    RunnerExists,
    /// The runner does not exist.
    RunnerGone,
    /// The runner runs a job.
    RunnerBusy,
    /// GitHub's rate limit was reached.
    Limited(Duration),
    /// A success whose body is empty.
    EmptyBody,
    /// Anything else.
    Other,
}

/// The result type of this module.
pub type Result<T> = std::result::Result<T, ScaleSetError>;

/// A scale set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleSet {
    pub id: i64,
    /// Its name, unique in its group.
    pub name: String,
    /// Its group's id.
    #[serde(default)]
    pub runner_group_id: i64,
    /// The labels that a job may request.
    #[serde(default)]
    pub labels: Vec<ScaleSetLabel>,
}

/// A label of a scale set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleSetLabel {
    /// The label.
    pub name: String,
    /// `System`.
    #[serde(rename = "type", default)]
    pub kind: String,
}

/// GitHub's statistics of a scale set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScaleSetStatistics {
    /// Jobs that match the scale set and are not acquired yet.
    pub total_available_jobs: i64,
    /// Acquired jobs: they wait for a runner or run.
    pub total_assigned_jobs: i64,
    /// Jobs that run.
    pub total_running_jobs: i64,
    /// Runners.
    pub total_registered_runners: i64,
    /// Busy ones.
    pub total_busy_runners: i64,
    /// Idle ones.
    pub total_idle_runners: i64,
}

/// A session on a scale set's queue.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleSetSession {
    /// Its id.
    pub session_id: String,
    /// The URL of its message queue.
    #[serde(default)]
    pub message_queue_url: String,
    /// The token for the queue.
    pub message_queue_access_token: SecretString,
    /// The current statistics. A restarted controller acts on them at once to learn about waiting jobs.
    pub statistics: Option<ScaleSetStatistics>,
}

/// A message.
#[derive(Debug, Clone)]
pub struct ScaleSetMessage {
    pub id: i64,
    /// The current statistics.
    pub statistics: Option<ScaleSetStatistics>,
    /// The events, at most 50.
    pub events: Vec<JobEvent>,
}

/// An event of a job. Unknown and unreadable events are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "messageType", rename_all_fields = "camelCase")]
pub enum JobEvent {
    /// The job can be acquired.
    #[serde(rename = "JobAvailable")]
    Available {
        /// The id with which to acquire it.
        runner_request_id: i64,
    },
    /// The job was assigned to the scale set.
    #[serde(rename = "JobAssigned")]
    Assigned {
        /// Its id.
        #[serde(default)]
        job_id: String,
    },
    /// A runner started the job.
    #[serde(rename = "JobStarted")]
    Started {
        /// Its id.
        #[serde(default)]
        job_id: String,
        /// The runner.
        runner_name: String,
    },
    /// The job has completed.
    #[serde(rename = "JobCompleted")]
    Completed {
        /// Its id.
        #[serde(default)]
        job_id: String,
        /// The runner's name; empty if the job never ran.
        #[serde(default)]
        runner_name: String,
    },
}

/// A runner that was just registered.
#[derive(Debug, Deserialize)]
pub struct ScaleSetJit {
    pub runner: ScaleSetRunner,
    /// The argument of `Runner.Listener run --jitconfig`. It contains the runner's credentials.
    #[serde(rename = "encodedJITConfig")]
    pub encoded: SecretString,
}

/// A runner as the service lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleSetRunner {
    pub id: i64,
    pub name: String,
    /// The id of its scale set; 0 if it belongs to none.
    #[serde(default)]
    pub runner_scale_set_id: i64,
    /// The status, as a word or a number.
    #[serde(default)]
    status: Value,
    /// Whether it runs a job.
    #[serde(default)]
    pub busy: bool,
}

impl ScaleSetRunner {
    /// Whether it is online.
    ///
    /// assumption: the word is `online`, the number 2, as in Azure Pipelines' TaskAgentStatus, where this service comes from.
    pub fn is_online(&self) -> bool {
        match &self.status {
            Value::String(word) => word.eq_ignore_ascii_case("online"),
            Value::Number(number) => number.as_i64() == Some(2),
            _ => false,
        }
    }
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "Vec::new")]
    value: Vec<T>,
}

/// The service's URL and a token for it.
#[derive(Debug, Clone)]
struct Connection {
    base: Url,
    token: SecretString,
    renew: Instant,
}

/// The client of an organization's scale sets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ScaleSetClient {
    http: reqwest::Client,
    api: Url,
    config: Url,
    org: OrgClient,
    connection: Arc<Mutex<Option<Connection>>>,
}

/// One request.
struct Request<'a> {
    method: Method,
    url: Url,
    bearer: &'a SecretString,
    headers: HeaderMap,
    body: Option<Value>,
    limit: Duration,
}

impl ScaleSetClient {
    /// A client for the organization of `org`. `api` is the base URL of the REST API; `config` is the URL of the organization's page.
    /// Makes no call.
    ///
    /// # Errors
    /// If HTTPS can't be set up.
    pub fn new(api: &Url, config: &Url, user_agent: &ClientInfo, org: OrgClient) -> Result<Self> {
        let fail = |message: String| ScaleSetError {
            operation: "set up HTTPS".to_owned(),
            kind: ScaleSetErrorKind::Other,
            message,
        };
        let agent = serde_json::to_string(user_agent).map_err(|error| fail(error.to_string()))?;
        let http = reqwest::Client::builder()
            .user_agent(agent)
            .connect_timeout(CONNECT_LIMIT)
            // The service never redirects; a redirect would carry the token elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| fail(error.to_string()))?;
        let mut api = api.clone();
        if !api.path().ends_with('/') {
            api.set_path(&format!("{}/", api.path()));
        }
        Ok(Self { http, api, config: config.clone(), org, connection: Arc::default() })
    }

    /// The scale set with that name in that runner group.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn find(&self, group: i64, name: &str) -> Result<Option<ScaleSet>> {
        let query = [("runnerGroupId", group.to_string()), ("name", name.to_owned())];
        let list: List<ScaleSet> = self.ask(Method::GET, SETS, &query, None, StatusCode::OK).await?;
        // Names are compared without regard to case elsewhere.
        Ok(list.value.into_iter().find(|set| set.name.eq_ignore_ascii_case(name)))
    }

    /// Creates a scale set. Its runners do not update themselves.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn create(&self, group: i64, name: &str, labels: &[String]) -> Result<ScaleSet> {
        let labels: Vec<_> =
            labels.iter().map(|label| ScaleSetLabel { name: label.clone(), kind: "System".to_owned() }).collect();
        let body = json!({
            "name": name,
            "runnerGroupId": group,
            "labels": labels,
            "RunnerSetting": { "disableUpdate": true },
        });
        self.ask(Method::POST, SETS, &[], Some(body), StatusCode::OK).await
    }

    /// Deletes a scale set. Succeeds if it does not exist.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn delete(&self, set: i64) -> Result<()> {
        let path = format!("{SETS}/{set}");
        match self.exchange(Method::DELETE, &path, &[], None, StatusCode::NO_CONTENT).await {
            Err(error) if error.kind != ScaleSetErrorKind::SetGone => Err(error),
            _ => Ok(()),
        }
    }

    /// Opens a session. Only one can be open at a time.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn open(&self, set: i64, owner: &str) -> Result<ScaleSetSession> {
        let path = format!("{SETS}/{set}/sessions");
        let body = json!({ "ownerName": owner });
        self.session(Method::POST, &path, Some(body)).await
    }

    /// Renews a session's token.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn refresh(&self, set: i64, session: &str) -> Result<ScaleSetSession> {
        self.session(Method::PATCH, &format!("{SETS}/{set}/sessions/{session}"), None).await
    }

    async fn session(&self, method: Method, path: &str, body: Option<Value>) -> Result<ScaleSetSession> {
        let session: ScaleSetSession = self.ask(method, path, &[], body, StatusCode::OK).await?;
        // Observed during an outage at GitHub.
        if session.message_queue_url.is_empty() {
            let operation = path.to_owned();
            let message = "the session has no queue".to_owned();
            return Err(ScaleSetError { operation, kind: ScaleSetErrorKind::Other, message });
        }
        Ok(session)
    }

    /// Closes a session by its id, also one of a predecessor.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn close(&self, set: i64, session: &str) -> Result<()> {
        let path = format!("{SETS}/{set}/sessions/{session}");
        self.exchange(Method::DELETE, &path, &[], None, StatusCode::NO_CONTENT).await.map(drop)
    }

    /// Waits for a message; `None` if none comes before GitHub answers the poll.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn poll(
        &self,
        queue: &str,
        token: &SecretString,
        last: Option<i64>,
        capacity: u32,
    ) -> Result<Option<ScaleSetMessage>> {
        let mut url = self.queue_url(queue)?;
        if let Some(last) = last.filter(|last| *last > 0) {
            url.query_pairs_mut().append_pair("lastMessageId", &last.to_string());
        }
        let headers = HeaderMap::from_iter([
            (header::ACCEPT, HeaderValue::from_static("application/json; api-version=6.0-preview")),
            (header::HeaderName::from_static("x-scalesetmaxcapacity"), HeaderValue::from(capacity)),
        ]);
        let request = Request { method: Method::GET, url, bearer: token, headers, body: None, limit: POLL };
        let (operation, status, body) = self.send(request).await.map_err(of_queue)?;
        if status == StatusCode::ACCEPTED {
            return Ok(None);
        }
        if body.is_empty() {
            let message = "a success without a body".to_owned();
            return Err(ScaleSetError { operation, kind: ScaleSetErrorKind::EmptyBody, message });
        }
        message(&operation, &body).map(Some)
    }

    /// Acknowledges a message. Succeeds if it does not exist any more.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn acknowledge(&self, queue: &str, token: &SecretString, message: i64) -> Result<()> {
        let mut url = self.queue_url(queue)?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(&message.to_string());
        }
        let headers = json_headers();
        let request = Request { method: Method::DELETE, url, bearer: token, headers, body: None, limit: CALL };
        self.send(request).await.map_err(of_queue).map(drop)
    }

    /// Acquires jobs by their request ids, if GitHub requires it.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn acquire(&self, set: i64, token: &SecretString, jobs: &[i64]) -> Result<Vec<i64>> {
        let connection = self.connection().await?;
        // It goes where the other calls go, but with the queue's token.
        let url = connection.url(&format!("{SETS}/{set}/acquirejobs"), &[])?;
        let (headers, body) = (json_headers(), Some(json!(jobs)));
        let request = Request { method: Method::POST, url, bearer: token, headers, body, limit: CALL };
        let (operation, _, bytes) = self.send(request).await.map_err(of_queue)?;
        decode::<List<i64>>(&operation, &bytes).map(|list| list.value)
    }

    /// Registers a runner of a scale set. It runs one job.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn register(&self, set: i64, name: &str) -> Result<ScaleSetJit> {
        let path = format!("{SETS}/{set}/generatejitconfig");
        let body = json!({ "name": name, "workFolder": "_work" });
        self.ask(Method::POST, &path, &[], Some(body), StatusCode::OK).await
    }

    /// All runners that the service lists.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn runners(&self) -> Result<Vec<ScaleSetRunner>> {
        let list: List<ScaleSetRunner> = self.ask(Method::GET, AGENTS, &[], None, StatusCode::OK).await?;
        Ok(list.value)
    }

    /// Removes a runner, unless it is busy.
    ///
    /// # Errors
    /// As [`ScaleSetErrorKind`] lists them.
    pub async fn remove(&self, runner: i64) -> Result<()> {
        let path = format!("{AGENTS}/{runner}");
        self.exchange(Method::DELETE, &path, &[], None, StatusCode::NO_CONTENT).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<Value>,
        expected: StatusCode,
    ) -> Result<T> {
        let (operation, bytes) = self.exchange(method, path, query, body, expected).await?;
        decode(&operation, &bytes)
    }

    /// Makes a call to the service. If it does not accept the token, retries once with a new one.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<Value>,
        expected: StatusCode,
    ) -> Result<(String, Vec<u8>)> {
        let mut renewed = false;
        loop {
            let connection = self.connection().await?;
            let (url, headers) = (connection.url(path, query)?, json_headers());
            let (method, bearer) = (method.clone(), &connection.token);
            let request = Request { method, url, bearer, headers, body: body.clone(), limit: CALL };
            match self.send(request).await {
                Ok((operation, status, bytes)) if status == expected => return Ok((operation, bytes)),
                Ok((operation, status, _)) => {
                    let message = format!("{status} was not expected");
                    return Err(ScaleSetError { operation, kind: ScaleSetErrorKind::Other, message });
                }
                Err(error) if error.kind == ScaleSetErrorKind::QueueToken && !renewed => {
                    renewed = true;
                    *self.connection.lock().await = None;
                }
                Err(error) if error.kind == ScaleSetErrorKind::QueueToken => {
                    return Err(ScaleSetError { kind: ScaleSetErrorKind::Other, ..error });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The service's URL and token. About once an hour the client exchanges a registration token for them.
    async fn connection(&self) -> Result<Connection> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|connection| Instant::now() < connection.renew) {
            return Ok(connection.clone());
        }
        let registration = self.org.registration_token().await.map_err(of_github)?;
        let url = self.api.join("actions/runner-registration").map_err(|error| not_an_address(&error))?;
        let mut pause = Duration::from_millis(500);
        let mut tries = 4;
        let connection = loop {
            match self.connect(&url, &registration.token).await {
                Ok(connection) => break connection,
                // A new token is not valid everywhere immediately.
                Err((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)) if tries > 0 => {}
                Err((_, error)) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            (pause, tries) = (pause * 2, tries - 1);
        };
        *kept = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(
        &self,
        url: &Url,
        registration: &SecretString,
    ) -> std::result::Result<Connection, (StatusCode, ScaleSetError)> {
        #[derive(Deserialize)]
        struct Answer {
            url: Url,
            token: SecretString,
        }
        let operation = format!("POST {url}");
        let none = |error: ScaleSetError| (StatusCode::INTERNAL_SERVER_ERROR, error);
        let mut authorization = HeaderValue::from_str(&format!("RemoteAuth {}", registration.expose_secret()))
            .map_err(|error| none(other(&operation, error.to_string())))?;
        authorization.set_sensitive(true);
        let body = json!({ "url": self.config.as_str().trim_end_matches('/'), "runner_event": "register" });
        let request =
            self.http.post(url.clone()).header(header::AUTHORIZATION, authorization).json(&body).timeout(CALL);
        let begin = Instant::now();
        let answer = request.send().await.map_err(|error| none(transport(&operation, error)))?;
        let status = answer.status();
        log(&operation, begin, status);
        let bytes = answer.bytes().await.map_err(|error| none(transport(&operation, error)))?;
        if !status.is_success() {
            return Err((status, other(&operation, format!("{status}"))));
        }
        let answer: Answer = decode(&operation, without_mark(&bytes)).map_err(none)?;
        secure(&answer.url, &self.api).map_err(none)?;
        let renew = Instant::now() + lifetime(&answer.token).saturating_sub(MARGIN);
        Ok(Connection { base: answer.url, token: answer.token, renew })
    }

    fn queue_url(&self, queue: &str) -> Result<Url> {
        let url = Url::parse(queue).map_err(|error| not_an_address(&error))?;
        secure(&url, &self.api)?;
        Ok(url)
    }

    async fn send(&self, request: Request<'_>) -> Result<(String, StatusCode, Vec<u8>)> {
        // Without its query, which the service fills in the queue's address.
        let mut shown = request.url.clone();
        shown.set_query(None);
        let operation = format!("{} {shown}", request.method);
        let mut call = self.http.request(request.method, request.url).headers(request.headers).timeout(request.limit);
        call = call.bearer_auth(request.bearer.expose_secret());
        if let Some(body) = request.body {
            call = call.json(&body);
        }
        let begin = Instant::now();
        let answer = call.send().await.map_err(|error| transport(&operation, error))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        log(&operation, begin, status);
        let bytes = answer.bytes().await.map_err(|error| transport(&operation, error))?;
        let body = without_mark(&bytes).to_vec();
        if status.is_success() {
            Ok((operation, status, body))
        } else {
            Err(refusal(operation, status, &headers, &body))
        }
    }
}

/// The caller's name: GitHub asks integrators to identify themselves in the user agent.
#[derive(Debug, Clone, Serialize)]
pub struct ClientInfo {
    /// The product.
    pub system: String,
    pub version: String,
    /// The component of the product.
    pub subsystem: String,
}

const SETS: &str = "_apis/runtime/runnerscalesets";
const AGENTS: &str = "_apis/distributedtask/pools/0/agents";

impl Connection {
    /// The base URL may have a path, with or without a trailing slash.
    fn url(&self, path: &str, query: &[(&str, String)]) -> Result<Url> {
        let joined = format!("{}/{path}", self.base.as_str().trim_end_matches('/'));
        let mut url = Url::parse(&joined).map_err(|error| not_an_address(&error))?;
        url.query_pairs_mut().extend_pairs(query).append_pair("api-version", API_VERSION);
        Ok(url)
    }
}

fn json_headers() -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))])
}

/// Tokens are sent only over HTTPS, unless the API's URL itself is HTTP: a stand-in.
fn secure(url: &Url, api: &Url) -> Result<()> {
    if url.scheme() == "https" || api.scheme() == url.scheme() {
        return Ok(());
    }
    Err(other(url.as_str(), "the address is not HTTPS".to_owned()))
}

/// How long a JWT is valid, without a check of its signature. The time counts on our clock from when the JWT arrived.
fn lifetime(token: &SecretString) -> Duration {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = token.expose_secret().split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<Claims> = claims.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // One that says nothing is asked for again soon.
    claims.map_or(Duration::from_secs(300), |claims| Duration::from_secs(claims.exp).saturating_sub(now))
}

/// Removes a byte order mark, with which some responses begin.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

fn decode<T: DeserializeOwned>(operation: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| other(operation, format!("the answer is not what the service promises: {error}")))
}

/// Parses a message. Public for the fuzzer.
///
/// # Errors
/// If the text is not a message. Unknown events are ignored: the caller acts on the statistics.
#[doc(hidden)]
pub fn message(operation: &str, bytes: &[u8]) -> Result<ScaleSetMessage> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raw {
        message_id: i64,
        #[serde(default)]
        message_type: String,
        #[serde(default)]
        body: String,
        statistics: Option<ScaleSetStatistics>,
    }
    let raw: Raw = decode(operation, bytes)?;
    let mut events = Vec::new();
    if raw.message_type == "RunnerScaleSetJobMessages" && !raw.body.is_empty() {
        let all: Vec<Value> = serde_json::from_str(&raw.body).unwrap_or_default();
        events.extend(all.into_iter().filter_map(|one| serde_json::from_value(one).ok()));
    }
    Ok(ScaleSetMessage { id: raw.message_id, statistics: raw.statistics, events })
}

fn refusal(operation: String, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ScaleSetError {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Refusal {
        type_name: String,
        message: String,
    }
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let named = |name: &str| refusal.type_name.contains(name);
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let of_session = operation.contains("/sessions");
    let kind = match status.as_u16() {
        _ if named("AgentExistsException") => ScaleSetErrorKind::RunnerExists,
        _ if named("AgentNotFoundException") => ScaleSetErrorKind::RunnerGone,
        _ if named("JobStillRunningException") => ScaleSetErrorKind::RunnerBusy,
        _ if named("SessionConflictException") => ScaleSetErrorKind::SessionConflict,
        _ if named("SessionExpiredException") => ScaleSetErrorKind::SessionGone,
        _ if named("RunnerScaleSetNotFoundException") => ScaleSetErrorKind::SetGone,
        401 => ScaleSetErrorKind::QueueToken,
        409 if of_session => ScaleSetErrorKind::SessionConflict,
        // Of a session that is named, it is the session that is not found; else it is what is named before it.
        404 if of_session && !operation.ends_with("/sessions") => ScaleSetErrorKind::SessionGone,
        404 if operation.contains(AGENTS) => ScaleSetErrorKind::RunnerGone,
        404 if operation.contains(SETS) => ScaleSetErrorKind::SetGone,
        429 => ScaleSetErrorKind::Limited(Duration::from_secs(seconds.unwrap_or(60))),
        403 if seconds.is_some() => ScaleSetErrorKind::Limited(Duration::from_secs(seconds.unwrap_or(60))),
        _ => ScaleSetErrorKind::Other,
    };
    let message =
        if refusal.message.is_empty() { status.to_string() } else { format!("{status}: {}", refusal.message) };
    ScaleSetError { operation, kind, message }
}

/// Converts an error of the queue: a 404 means that the session does not exist.
fn of_queue(error: ScaleSetError) -> ScaleSetError {
    match error.kind {
        ScaleSetErrorKind::Other if error.message.starts_with("404") => {
            ScaleSetError { kind: ScaleSetErrorKind::SessionGone, ..error }
        }
        ScaleSetErrorKind::SetGone if error.operation.contains("/acquirejobs") => {
            ScaleSetError { kind: ScaleSetErrorKind::SessionGone, ..error }
        }
        _ => error,
    }
}

fn of_github(error: crate::Error) -> ScaleSetError {
    let kind = match error.kind {
        ErrorKind::RateLimited { retry_after } => ScaleSetErrorKind::Limited(retry_after),
        _ => ScaleSetErrorKind::Other,
    };
    ScaleSetError { operation: error.operation, kind, message: error.message }
}

fn other(operation: &str, message: String) -> ScaleSetError {
    ScaleSetError { operation: operation.to_owned(), kind: ScaleSetErrorKind::Other, message }
}

fn not_an_address(error: &url::ParseError) -> ScaleSetError {
    other("GitHub's scale set service", format!("not an address: {error}"))
}

fn transport(operation: &str, error: reqwest::Error) -> ScaleSetError {
    // The address is in the operation already, and its query may hold more than is to be shown.
    let error = error.without_url();
    let what = if error.is_timeout() { "no answer in time" } else { "no connection, or it broke off" };
    other(operation, format!("{what}: {error}"))
}

/// Logs a call, never a header or a body.
fn log(operation: &str, begin: Instant, status: StatusCode) {
    tracing::debug!(target: CALLS, "github {operation}: {} in {} ms", status.as_u16(), begin.elapsed().as_millis());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(operation: &str, status: u16, body: &str) -> ScaleSetErrorKind {
        let status = StatusCode::from_u16(status).unwrap();
        refusal(operation.to_owned(), status, &HeaderMap::new(), body.as_bytes()).kind
    }

    #[test]
    fn refusals_are_told_apart() {
        use ScaleSetErrorKind as Kind;
        let sets = "https://h/x/_apis/runtime/runnerscalesets/7";
        let agents = "DELETE https://h/x/_apis/distributedtask/pools/0/agents/9";
        let named = |name: &str| json!({ "typeName": format!("GitHub.{name}, Some"), "message": "m" }).to_string();
        for (operation, status, body, kind) in [
            (format!("POST {sets}/sessions"), 409, String::new(), Kind::SessionConflict),
            (
                format!("POST {sets}/sessions"),
                409,
                named("RunnerScaleSetSessionConflictException"),
                Kind::SessionConflict,
            ),
            (format!("POST {sets}/sessions"), 404, named("RunnerScaleSetNotFoundException"), Kind::SetGone),
            (format!("POST {sets}/sessions"), 404, String::new(), Kind::SetGone),
            (format!("PATCH {sets}/sessions/abc"), 404, named("RunnerAdminException"), Kind::SessionGone),
            (
                format!("PATCH {sets}/sessions/abc"),
                400,
                named("RunnerScaleSetSessionExpiredException"),
                Kind::SessionGone,
            ),
            (format!("POST {sets}/generatejitconfig"), 409, named("AgentExistsException"), Kind::RunnerExists),
            (agents.to_owned(), 404, String::new(), Kind::RunnerGone),
            (agents.to_owned(), 404, named("AgentNotFoundException"), Kind::RunnerGone),
            (agents.to_owned(), 400, named("JobStillRunningException"), Kind::RunnerBusy),
            (agents.to_owned(), 429, String::new(), Kind::Limited(Duration::from_secs(60))),
            (agents.to_owned(), 503, "<html>".to_owned(), Kind::Other),
        ] {
            assert_eq!(refused(&operation, status, &body), kind, "{operation} {status} {body}");
        }
    }

    #[test]
    fn events_that_are_not_understood_are_left_out() {
        let body = json!([
            { "messageType": "JobAssigned", "jobId": "a", "runnerRequestId": 0 },
            { "messageType": "JobStarted", "runnerName": 5 },
            { "messageType": "SomethingNew" },
            { "messageType": "JobStarted", "jobId": "b", "runnerName": "r", "runnerId": 1 },
            { "messageType": "JobCompleted", "jobId": "c", "result": "canceled" },
            { "messageType": "JobAvailable", "runnerRequestId": 7 },
        ]);
        let message = json!({
            "messageId": 100_000_001, "messageType": "RunnerScaleSetJobMessages", "body": body.to_string(),
            "statistics": { "totalAssignedJobs": 2 },
        });
        let message = super::message("poll", message.to_string().as_bytes()).unwrap();
        assert_eq!(message.id, 100_000_001);
        assert_eq!(message.statistics.unwrap().total_assigned_jobs, 2);
        let text = |text: &str| text.to_owned();
        assert_eq!(
            message.events,
            [
                JobEvent::Assigned { job_id: text("a") },
                JobEvent::Started { job_id: text("b"), runner_name: text("r") },
                JobEvent::Completed { job_id: text("c"), runner_name: String::new() },
                JobEvent::Available { runner_request_id: 7 },
            ]
        );
        let unknown = json!({ "messageId": 1, "messageType": "SomethingNew", "body": "x" });
        assert!(super::message("poll", unknown.to_string().as_bytes()).unwrap().events.is_empty());
    }

    #[test]
    fn a_runner_is_online_in_words_and_numbers() {
        let runner = |status: Value| {
            let runner = json!({ "id": 1, "name": "r", "status": status });
            serde_json::from_value::<ScaleSetRunner>(runner).unwrap().is_online()
        };
        assert!(runner(json!("online")) && runner(json!("Online")) && runner(json!(2)));
        assert!(!runner(json!("offline")) && !runner(json!(1)) && !runner(Value::Null));
    }

    #[test]
    fn secrets_are_not_shown() {
        let session: ScaleSetSession =
            serde_json::from_value(json!({ "sessionId": "s", "messageQueueAccessToken": "secret" })).unwrap();
        assert!(!format!("{session:?}").contains("secret"));
        let jit: ScaleSetJit =
            serde_json::from_value(json!({ "runner": { "id": 1, "name": "r" }, "encodedJITConfig": "secret" }))
                .unwrap();
        assert!(!format!("{jit:?}").contains("secret"));
    }
}
