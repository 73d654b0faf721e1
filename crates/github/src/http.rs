//! One HTTP exchange with GitHub, and the retries around it.

use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use url::Url;

use crate::error::{Error, ErrorKind, Result};

/// GitHub's own advice is to give up on an answer after ten seconds; it cuts its side off there.
///
/// Source: <https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#timeouts>
const ANSWER_BOUND: Duration = Duration::from_secs(15);

/// A handshake takes three round trips; five seconds are ten times the slowest seen across continents.
const CONNECT_BOUND: Duration = Duration::from_secs(5);

/// A try and four more, with pauses of about 0.5, 1, 2 and 4 s: rides out a deployment of GitHub's.
const MOST_RETRIES: usize = 4;

/// A limit that asks for more than this is told to the caller instead of slept on. Secondary limits ask for a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(90);

/// GitHub asks for at least a minute where a secondary limit names no time.
///
/// Source: <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit>
const SECONDARY_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
    base: Url,
}

/// A request, kept so that it can be sent again.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) token: &'a SecretString,
    pub(crate) body: Option<serde_json::Value>,
}

impl Call<'_> {
    pub(crate) fn operation(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

impl Http {
    pub(crate) fn new(base: &Url, user_agent: &str) -> Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        headers.insert(HeaderName::from_static("x-github-api-version"), HeaderValue::from_static("2022-11-28"));
        let client = reqwest::Client::builder()
            .user_agent(user_agent)
            .default_headers(headers)
            .connect_timeout(CONNECT_BOUND)
            .timeout(ANSWER_BOUND)
            // A redirect would carry the token to wherever it points.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| transport("set up HTTPS", error))?;
        let mut base = base.clone();
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        Ok(Self { client, base })
    }

    /// Sends a call, again where its failure is of a kind that passes.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Response> {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_jitter()
            .with_max_times(MOST_RETRIES)
            .build();
        loop {
            let error = match self.once(call).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let pause = match error.kind {
                ErrorKind::RateLimited { retry_after } if retry_after > LONGEST_PAUSE => return Err(error),
                ErrorKind::RateLimited { retry_after } => pauses.next().map(|jitter| retry_after + jitter),
                _ if error.is_retryable() => pauses.next(),
                _ => None,
            };
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    /// Sends a call and reads its JSON answer. An answer that breaks off is asked for again by the caller's own retry
    /// only where the call may be repeated: a registration that was made is not made twice here.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T> {
        let response = self.send(call).await?;
        let request_id = request_id(response.headers());
        let bytes = response.bytes().await.map_err(|error| transport(&call.operation(), error))?;
        serde_json::from_slice(&bytes).map_err(|error| Error {
            operation: call.operation(),
            kind: ErrorKind::Body,
            message: "the answer is not what the API promises".to_owned(),
            request_id,
            source: Some(Box::new(error)),
        })
    }

    async fn once(&self, call: &Call<'_>) -> Result<Response> {
        let operation = call.operation();
        let url = self.base.join(call.path.trim_start_matches('/')).map_err(|error| Error {
            operation: operation.clone(),
            kind: ErrorKind::Status(0),
            message: "not an address".to_owned(),
            request_id: None,
            source: Some(Box::new(error)),
        })?;
        let mut request = self.client.request(call.method.clone(), url).bearer_auth(call.token.expose_secret());
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| transport(&operation, error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(operation, response).await)
    }
}

fn transport(operation: &str, error: reqwest::Error) -> Error {
    // The URL is part of the operation already.
    let error = error.without_url();
    let (kind, message) = if error.is_timeout() {
        (ErrorKind::Timeout, "no answer in time")
    } else if is_tls(&error) {
        (ErrorKind::Tls, "the certificate is not trusted")
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

/// rustls is below several layers, none of which names it in its type.
fn is_tls(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.to_string().contains("certificate") {
            return true;
        }
        source = cause.source();
    }
    false
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    text(headers, "x-github-request-id").map(str::to_owned)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn refusal(operation: String, response: Response) -> Error {
    let status = response.status();
    let headers = response.headers().clone();
    let body = response.bytes().await.unwrap_or_default();
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|body| body.get("message")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("answered {status}"));
    let kind = kind_of(status, &message, &headers);
    Error { operation, kind, message: format!("{} {message}", status.as_u16()), request_id: request_id(&headers), source: None }
}

fn kind_of(status: StatusCode, message: &str, headers: &HeaderMap) -> ErrorKind {
    match status.as_u16() {
        401 if message.contains("'Expiration time' claim") || message.contains("'Issued at' claim") => {
            ErrorKind::ClockSkew { seconds: clock_error(headers) }
        }
        401 if message.contains("JSON web token") => ErrorKind::BadKey,
        401 => ErrorKind::BadToken,
        403 | 429 if is_limit(status, message, headers) => ErrorKind::RateLimited { retry_after: retry_after(headers) },
        403 if message.contains("suspended") => ErrorKind::Suspended,
        403 => ErrorKind::MissingPermission {
            accepted: text(headers, "x-accepted-github-permissions").unwrap_or("not named by GitHub").to_owned(),
        },
        404 if message.contains("Integration not found") => ErrorKind::UnknownApp,
        404 => ErrorKind::NotFound,
        409 => ErrorKind::NameTaken,
        422 => ErrorKind::Unprocessable,
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

/// `retry-after` first, then the primary limit's reset, then the minute GitHub asks for.
fn retry_after(headers: &HeaderMap) -> Duration {
    let number = |name| text(headers, name).and_then(|value| value.parse::<u64>().ok());
    if let Some(seconds) = number("retry-after") {
        return Duration::from_secs(seconds);
    }
    match (number("x-ratelimit-remaining"), number("x-ratelimit-reset")) {
        (Some(0), Some(reset)) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Duration::from_secs(reset).saturating_sub(now)
        }
        _ => SECONDARY_PAUSE,
    }
}

/// How far this machine's clock is ahead of GitHub's, in seconds.
fn clock_error(headers: &HeaderMap) -> i64 {
    let Some(theirs) = text(headers, "date").and_then(|date| httpdate::parse_http_date(date).ok()) else { return 0 };
    let seconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    };
    seconds(SystemTime::now()) - seconds(theirs)
}
