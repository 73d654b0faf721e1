//! Every request: faults, the log, the headers of every answer, and which part answers.
//!
//! source: <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api> for limits and their headers,
//! <https://docs.github.com/en/rest/using-the-rest-api/getting-started-with-the-rest-api> for the user agent and the version.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::state::{Answer, HOURLY_LIMIT, Recorded, State, random};
use super::{Shared, app, manifest, organization, runners};

/// A request, read whole.
pub(super) struct Call {
    pub(super) method: Method,
    /// Without the query and the API's own prefix.
    pub(super) path: String,
    query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Call {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(super) fn query(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes()).find(|(n, _)| n == name).map(|(_, value)| value.into_owned())
    }

    pub(super) fn bearer(&self) -> Option<&str> {
        let value = self.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")).or_else(|| value.strip_prefix("token "))
    }

    /// Where only runners speak, and sessions are named.
    fn is_private(&self) -> bool {
        self.path.starts_with("/_runner/")
    }
}

/// An answer, or a refusal.
pub(super) type Answered = Result<Response, Box<Response>>;

/// A body of GitHub's is no larger.
const MOST_BYTES: usize = 1 << 20;

/// The API versions there are.
const API_VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];

pub(super) async fn handle(Extract(shared): Extract<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MOST_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let full = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let path = parts.uri.path();
    let call = Call {
        method: parts.method,
        path: path.strip_prefix("/api/v3").unwrap_or(path).to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
    };
    let fault = take_fault(&mut shared.state(), &call, &full);
    let response = match fault {
        Some(Answer::Dropped) => None,
        Some(Answer::Status(status, headers, message)) => Some(refuse_with(status, &message, headers)),
        Some(Answer::Truncated) => {
            answer(&shared, &call).await;
            Some(broken_off())
        }
        Some(Answer::Late(by)) => {
            tokio::time::sleep(by).await;
            Some(answer(&shared, &call).await)
        }
        Some(Answer::Dripping(pause)) => {
            let drops = futures_util::stream::repeat(()).then(move |()| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, std::convert::Infallible>(" ")
            });
            Some(Response::new(Body::from_stream(drops)))
        }
        None => Some(answer(&shared, &call).await),
    };
    let mut state = shared.state();
    if !call.is_private() {
        let status = response.as_ref().map_or(0, |response| response.status().as_u16());
        state.requests.push(Recorded { method: call.method.to_string(), path: full, status });
    }
    match response {
        Some(response) => dated(&state, response),
        None => {
            drop(state);
            // Ends the connection's task, and so the connection; nothing is printed, since this is no panic.
            resume_unwind(Box::new("the connection is dropped"))
        }
    }
}

fn take_fault(state: &mut State, call: &Call, path: &str) -> Option<Answer> {
    let fault = state
        .faults
        .iter_mut()
        .find(|fault| fault.times > 0 && fault.method == call.method.as_str() && path.contains(&fault.path_contains))?;
    fault.times -= 1;
    Some(fault.answer.clone())
}

/// An answer that says it is longer than it is: the client sees the connection end in its middle.
fn broken_off() -> Response {
    let mut response = Response::new(Body::from("{"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("4096"));
    response
}

/// GitHub's own clock and limits, as on every real answer. What a fault has set stays.
fn dated(state: &State, mut response: Response) -> Response {
    let now = UNIX_EPOCH + Duration::from_secs(state.now());
    let (left, reset) = state.limit;
    let values = [
        ("date", httpdate::fmt_http_date(now)),
        ("x-github-request-id", random(6)),
        ("x-ratelimit-limit", HOURLY_LIMIT.to_string()),
        ("x-ratelimit-remaining", left.to_string()),
        ("x-ratelimit-reset", reset.max(state.now()).to_string()),
    ];
    for (name, value) in values {
        if let Ok(value) = value.parse() {
            response.headers_mut().entry(name).or_insert(value);
        }
    }
    response
}

pub(super) fn ok(status: u16, body: &Value) -> Response {
    (StatusCode::from_u16(status).unwrap_or(StatusCode::OK), axum::Json(body)).into_response()
}

pub(super) fn refuse(status: u16, message: &str) -> Response {
    ok(status, &json!({ "message": message, "documentation_url": "https://docs.github.com/rest" }))
}

/// A refusal, as what a call comes to.
pub(super) fn no<T>(status: u16, message: &str) -> Result<T, Box<Response>> {
    Err(Box::new(refuse(status, message)))
}

pub(super) fn refuse_with(status: u16, message: &str, headers: Vec<(&'static str, String)>) -> Response {
    let mut response = refuse(status, message);
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn answer(shared: &Shared, call: &Call) -> Response {
    if call.path.starts_with("/actions/runner/releases/download/") {
        return runners::download(shared, &call.path);
    }
    if let Some(path) = call.path.strip_prefix("/nodejs/release/") {
        return runners::download_node(shared, path);
    }
    if let Some(page) = manifest::page(shared, call) {
        shared.changed.notify_waiters();
        return page;
    }
    if call.path == "/actions/runner-registration" || call.is_private() {
        return runners::handle(shared, call).await;
    }
    let wait = if call.method == Method::POST { shared.state().post(&call.path) } else { None };
    if let Some(wait) = wait {
        let message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.";
        return refuse_with(403, message, vec![("retry-after", wait.to_string())]);
    }
    let answered = rest(shared, &mut shared.state(), call);
    shared.changed.notify_waiters();
    answered.unwrap_or_else(|refusal| *refusal)
}

/// The REST API.
fn rest(shared: &Shared, state: &mut State, call: &Call) -> Answered {
    if call.headers.get(header::USER_AGENT).is_none() {
        let message =
            "Request forbidden by administrative rules. Please make sure your request has a User-Agent header";
        return no(403, message);
    }
    if let Some(version) = call.headers.get("x-github-api-version")
        && !API_VERSIONS.iter().any(|known| version == known)
    {
        return no(400, "The requested API version is not supported");
    }
    limit(state)?;
    let segments: Vec<&str> = call.path.trim_matches('/').split('/').collect();
    match (call.method.as_str(), segments.as_slice()) {
        (method, ["orgs", login, "actions", rest @ ..]) => {
            organization::handle(shared, state, call, *login == shared.organization, method, rest)
        }
        ("GET", ["repos", "actions", "runner", "releases"]) => organization::releases(state, call),
        ("POST", ["app-manifests", code, "conversions"]) => manifest::convert(shared, state, code),
        (method, rest) => app::handle(&shared.organization, state, call, method, rest),
    }
}

/// Counts against the hour's limit.
fn limit(state: &mut State) -> Result<(), Box<Response>> {
    if state.limit.1 <= state.now() {
        state.limit = (HOURLY_LIMIT, state.now() + 3600);
    }
    match state.limit.0.checked_sub(1) {
        Some(left) => state.limit.0 = left,
        None => return no(403, "API rate limit exceeded for installation."),
    }
    Ok(())
}

/// RFC 3339, as GitHub writes times.
pub(crate) fn stamp(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}
