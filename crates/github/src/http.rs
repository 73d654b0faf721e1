//! HTTP requests to GitHub, with retries.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{Method, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use url::Url;

use crate::connections::{Connections, Counters, Usage};
use crate::error::{Error, ErrorKind, Result};

/// The timeout of a connection. A handshake takes three round trips; 5 s is ten times the slowest one seen across continents.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The maximum number of redirects. GitHub redirects once for a renamed organization; a longer chain is a loop.
const MOST_REDIRECTS: usize = 3;

/// The pause if a secondary rate limit names no time. GitHub asks for at least one minute.
///
/// Source: <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit>
const SECONDARY_PAUSE: Duration = Duration::from_secs(60);

/// The tracing target of the events about calls, here and in `kiln-aws`.
pub const CALLS: &str = "kiln::calls";

/// Timeouts and retries of a call. At worst it takes `retries + 1` attempts and `retries` pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The timeout of an attempt, from the request to the end of the response.
    pub answer: Duration,
    /// The number of attempts after the first, for transient failures.
    pub retries: usize,
    /// The pause before the first retry. It doubles, with jitter, before each further retry.
    pub first_pause: Duration,
    /// The longest pause. If a rate limit asks for a longer one, the call fails instead of waiting.
    pub longest_pause: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            // GitHub ends requests after 10 s.
            // Source: <https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#timeouts>
            answer: Duration::from_secs(15),
            // Pauses of about 0.5, 1, 2 and 4 s: long enough for a deployment at GitHub.
            retries: 4,
            first_pause: Duration::from_millis(500),
            // Secondary limits ask for a minute.
            longest_pause: Duration::from_secs(90),
        }
    }
}

/// Provides the tokens of calls.
pub(crate) trait Credentials: Sync {
    /// A token for one attempt. Each attempt gets a newly signed JWT: GitHub has answered the second use of the same JWT with 404.
    fn token(&self) -> impl Future<Output = Result<SecretString>> + Send;
}

#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
    counters: Arc<Counters>,
    base: Url,
    pub(crate) bounds: Bounds,
}

/// A request that can be sent again.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<serde_json::Value>,
    once: bool,
}

impl Call {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), query: Vec::new(), body: None, once: false }
    }

    pub(crate) fn query(mut self, name: &'static str, value: String) -> Self {
        self.query.push((name, value));
        self
    }

    pub(crate) fn body(mut self, body: serde_json::Value) -> Self {
        self.body = Some(body);
        self
    }

    /// Marks a call that must not be retried automatically: if its response is lost, the resource may exist, and the caller has to check.
    pub(crate) fn once(mut self) -> Self {
        self.once = true;
        self
    }
}

/// A successful response, read completely.
struct Answer {
    bytes: Vec<u8>,
    request_id: Option<String>,
}

impl Http {
    pub(crate) fn new(base: &Url, user_agent: &str) -> Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        headers.insert(HeaderName::from_static("x-github-api-version"), HeaderValue::from_static("2022-11-28"));
        let counters = Arc::<Counters>::default();
        let client = reqwest::Client::builder()
            .connector_layer(Connections(Arc::clone(&counters)))
            .user_agent(user_agent)
            .default_headers(headers)
            .connect_timeout(CONNECT_LIMIT)
            .redirect(Policy::custom(stay))
            .build()
            .map_err(|error| transport("set up HTTPS", error))?;
        let mut base = base.clone();
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        Ok(Self { client, counters, base, bounds: Bounds::default() })
    }

    /// Starts to open the connection for the first call. Sends nothing; that call reports a failure.
    pub(crate) async fn open_ahead(&self) {
        self.counters.ask_ahead();
        // This request only asks for a connection. The connection is kept for another request, so this one is never sent.
        let asking = self.client.head(self.base.clone()).send();
        tokio::select! {
            biased;
            () = self.counters.begun() => {}
            _ = asking => {}
        }
    }

    /// The requests, connections and bytes so far.
    pub(crate) fn usage(&self) -> Usage {
        self.counters.usage()
    }

    /// The method and URL of a call, for messages: `GET https://api.github.com/app`. Never holds a token.
    pub(crate) fn operation(&self, call: &Call) -> String {
        format!("{} {}{}", call.method, self.base, call.path)
    }

    /// Sends a call and reads its JSON response.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: &Call, credentials: &impl Credentials) -> Result<T> {
        let Answer { bytes, request_id } = self.exchange(call, credentials).await?;
        serde_json::from_slice(&bytes).map_err(|error| Error {
            operation: self.operation(call),
            kind: ErrorKind::Body,
            message: "the answer is not what the API promises".to_owned(),
            request_id,
            source: Some(Box::new(error)),
        })
    }

    /// Sends a call whose response has no body.
    pub(crate) async fn nothing(&self, call: &Call, credentials: &impl Credentials) -> Result<()> {
        self.exchange(call, credentials).await.map(drop)
    }

    /// Sends a call, and retries transient failures.
    async fn exchange(&self, call: &Call, credentials: &impl Credentials) -> Result<Answer> {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(self.bounds.first_pause)
            .with_jitter()
            .with_max_times(self.bounds.retries)
            .build();
        let mut limited_in_a_row = 0;
        loop {
            let token = credentials.token().await?;
            let error = match self.once(call, &token).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if let ErrorKind::RateLimited { .. } = error.kind {
                limited_in_a_row += 1;
                self.counters.limited.fetch_add(1, Ordering::Relaxed);
                self.counters.limited_in_a_row.fetch_max(limited_in_a_row, Ordering::Relaxed);
            } else {
                limited_in_a_row = 0;
            }
            let pause = match error.kind {
                ErrorKind::RateLimited { retry_after } if retry_after > self.bounds.longest_pause => return Err(error),
                ErrorKind::RateLimited { retry_after } => {
                    pauses.next().map(|jitter| retry_after + spread(retry_after) + jitter)
                }
                ErrorKind::Body if call.once => None,
                _ if error.is_retryable() => pauses.next(),
                _ => None,
            };
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    async fn once(&self, call: &Call, token: &SecretString) -> Result<Answer> {
        let operation = self.operation(call);
        let url = self.base.join(&call.path).map_err(|error| Error {
            operation: operation.clone(),
            kind: ErrorKind::Status(0),
            message: "not an address".to_owned(),
            request_id: None,
            source: Some(Box::new(error)),
        })?;
        let request = self.client.request(call.method.clone(), url).timeout(self.bounds.answer);
        let mut request = request.query(&call.query).bearer_auth(token.expose_secret());
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let begin = Instant::now();
        let response = request.send().await.map_err(|error| transport(&operation, error));
        log(&operation, begin, &response);
        let response = response?;
        if !response.status().is_success() {
            return Err(refused(operation, response).await);
        }
        let request_id = request_id(response.headers());
        let bytes = body(response, MOST_OF_ANSWER).await.map_err(|error| transport(&operation, error))?;
        let Some(bytes) = bytes else { return Err(too_long(operation, request_id)) };
        self.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(Answer { bytes, request_id })
    }
}

/// The size limit of a successful response. A page of 100 runners with 100 labels each has a tenth of it.
const MOST_OF_ANSWER: usize = 10 << 20;

/// The size limit of an error response, which is a sentence or two.
const MOST_OF_REFUSAL: usize = 64 << 10;

/// Reads a response body; `None` if it is longer than `most`, whatever its headers say.
async fn body(mut response: Response, most: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > most {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

fn too_long(operation: String, request_id: Option<String>) -> Error {
    Error {
        operation,
        kind: ErrorKind::Status(0),
        message: format!("the answer is longer than {} MiB", MOST_OF_ANSWER >> 20),
        request_id,
        source: None,
    }
}

/// Logs a call and its result, never a header or a body that was sent.
fn log(operation: &str, begin: Instant, response: &Result<Response>) {
    let millis = begin.elapsed().as_millis();
    match response {
        Ok(response) => tracing::debug!(
            target: CALLS,
            "github {operation}: {} in {millis} ms (request {}, {} left of the limit)",
            response.status().as_u16(),
            text(response.headers(), "x-github-request-id").unwrap_or("-"),
            text(response.headers(), "x-ratelimit-remaining").unwrap_or("-"),
        ),
        Err(error) => tracing::debug!(target: CALLS, "github {operation}: {} after {millis} ms", error.message),
    }
}

/// A random time to wait in addition to `retry_after`, so that the whole pause is up to three times as long. Otherwise all instances that
/// were refused together would also return together.
fn spread(retry_after: Duration) -> Duration {
    retry_after.mul_f64(fastrand::f64() * 2.0)
}

/// Follows redirects only to the same origin: another host would get the token.
fn stay(attempt: Attempt<'_>) -> Action {
    let here = attempt.previous().first().map(Url::origin);
    if attempt.previous().len() <= MOST_REDIRECTS && here == Some(attempt.url().origin()) {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

fn transport(operation: &str, error: reqwest::Error) -> Error {
    // The operation already contains the URL.
    let error = error.without_url();
    let (kind, message) = if error.is_timeout() {
        (ErrorKind::Timeout, "no answer in time")
    } else if is_tls(&error) {
        (ErrorKind::Tls, "no trusted TLS connection")
    } else if error.is_connect() {
        (ErrorKind::Connect, "no connection")
    } else {
        (ErrorKind::Body, "the connection broke off")
    };
    Error {
        operation: operation.to_owned(),
        kind,
        message: message.to_owned(),
        request_id: None,
        source: Some(Box::new(error)),
    }
}

/// Finds rustls' error. It is inside an I/O error, which does not return it as its source.
fn is_tls(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if cause.is::<rustls::Error>() || inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
        {
            return true;
        }
        source = match inner {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    false
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    text(headers, "x-github-request-id").map(str::to_owned)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn refused(operation: String, response: Response) -> Error {
    let (status, headers) = (response.status(), response.headers().clone());
    let body = body(response, MOST_OF_REFUSAL).await.ok().flatten().unwrap_or_default();
    refusal_of(operation, status, &headers, &body)
}

/// Converts an error response. Public for the fuzzer.
#[doc(hidden)]
pub fn refusal<'a>(
    operation: String,
    status: u16,
    headers: impl Iterator<Item = (&'static str, &'a str)>,
    body: &[u8],
) -> Error {
    let headers = headers.filter_map(|(name, value)| Some((HeaderName::from_static(name), value.parse().ok()?)));
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    refusal_of(operation, status, &headers.collect(), body)
}

fn refusal_of(operation: String, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let said = body["message"].as_str().unwrap_or_default();
    let kind = kind_of(status, said, headers);
    let message = match text(headers, "location") {
        _ if !said.is_empty() => format!("{} {said}{}", status.as_u16(), details(&body)),
        Some(elsewhere) => format!("{status}, to {elsewhere}"),
        None => status.to_string(),
    };
    Error { operation, kind, message, request_id: request_id(headers), source: None }
}

/// An entry of `errors` in a 422 response: text, or an object with a `message`, or with a `field` and a `code`.
fn details(body: &serde_json::Value) -> String {
    let one = |error: &serde_json::Value| match (error.as_str(), error["message"].as_str()) {
        (Some(text), _) | (None, Some(text)) => text.to_owned(),
        _ => format!("{} {}", error["field"].as_str().unwrap_or("?"), error["code"].as_str().unwrap_or("?")),
    };
    let all: Vec<String> = body["errors"].as_array().into_iter().flatten().map(one).collect();
    if all.is_empty() { String::new() } else { format!(": {}", all.join(", ")) }
}

fn kind_of(status: StatusCode, message: &str, headers: &HeaderMap) -> ErrorKind {
    match status.as_u16() {
        300..=399 => ErrorKind::Redirected,
        401 if message.contains("'Expiration time' claim") || message.contains("'Issued at' claim") => {
            ErrorKind::ClockSkew { seconds: clock_error(headers) }
        }
        401 if message.contains("JSON web token") => ErrorKind::BadKey,
        401 => ErrorKind::BadToken,
        403 | 429 if is_limit(status, message, headers) => ErrorKind::RateLimited { retry_after: retry_after(headers) },
        403 if message.contains("suspended") => ErrorKind::Suspended,
        403 => match text(headers, "x-accepted-github-permissions") {
            Some(accepted) => ErrorKind::MissingPermission { accepted: accepted.to_owned() },
            None => ErrorKind::Forbidden,
        },
        404 if message.contains("Integration not found") => ErrorKind::UnknownApp,
        404 => ErrorKind::NotFound,
        409 => ErrorKind::NameTaken,
        422 if message.contains("running a job") => ErrorKind::Busy,
        422 => ErrorKind::Validation,
        code @ 500..=599 => ErrorKind::Server(code),
        code => ErrorKind::Status(code),
    }
}

fn is_limit(status: StatusCode, message: &str, headers: &HeaderMap) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || headers.contains_key(header::RETRY_AFTER)
        || text(headers, "x-ratelimit-remaining") == Some("0")
        || message.contains("rate limit")
}

/// The pause that GitHub asks for: `retry-after`, otherwise until the reset of the primary limit, otherwise one minute.
fn retry_after(headers: &HeaderMap) -> Duration {
    let number = |name| text(headers, name).and_then(|value| value.parse::<u64>().ok());
    if let Some(seconds) = number("retry-after") {
        return Duration::from_secs(seconds);
    }
    match (number("x-ratelimit-remaining"), number("x-ratelimit-reset")) {
        (Some(0), Some(reset)) => {
            // With GitHub's clock, which the reset time refers to.
            let now = since_1970(their_time(headers).unwrap_or_else(SystemTime::now));
            Duration::from_secs(reset.saturating_sub(now.unsigned_abs()))
        }
        _ => SECONDARY_PAUSE,
    }
}

/// How far this machine's clock is ahead of GitHub's, in seconds; 0 if the response has no date.
fn clock_error(headers: &HeaderMap) -> i64 {
    their_time(headers).map_or(0, |theirs| since_1970(SystemTime::now()) - since_1970(theirs))
}

fn their_time(headers: &HeaderMap) -> Option<SystemTime> {
    text(headers, "date").and_then(|date| httpdate::parse_http_date(date).ok())
}

fn since_1970(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    /// Some endpoints describe the error as text, others as field and code. GitHub's API description has both.
    #[test]
    fn each_field_that_is_not_valid_is_told() {
        let body =
            json!({ "errors": ["a is short", { "field": "b", "code": "invalid" }, { "message": "c is taken" }] });
        assert_eq!(super::details(&body), ": a is short, b invalid, c is taken");
        assert_eq!(super::details(&json!({ "message": "no" })), "");
    }
}
