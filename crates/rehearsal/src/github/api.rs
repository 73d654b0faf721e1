//! The REST API, with GitHub's own statuses and messages.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use super::Shared;
use super::runners;
use super::state::{
    APP_ID, Answer, CLIENT_ID, INSTALLATION_ID, KnownRunner, Recorded, Runner, State, TokenKind, random,
};

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

    fn query(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes()).find(|(n, _)| n == name).map(|(_, value)| value.into_owned())
    }

    fn bearer(&self) -> Option<&str> {
        let value = self.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")).or_else(|| value.strip_prefix("token "))
    }
}

/// A body of GitHub's is no larger.
const MOST_BYTES: usize = 1 << 20;

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
        Some(Answer::Dropped) => broken_off(),
        Some(Answer::Status(status, headers, message)) => refuse_with(status, &message, headers),
        Some(Answer::Truncated) => {
            answer(&shared, &call).await;
            broken_off()
        }
        Some(Answer::Late(by)) => {
            tokio::time::sleep(by).await;
            answer(&shared, &call).await
        }
        None => answer(&shared, &call).await,
    };
    let mut state = shared.state();
    state.requests.push(Recorded { method: call.method.to_string(), path: full, status: response.status().as_u16() });
    dated(&state, response)
}

fn take_fault(state: &mut State, call: &Call, path: &str) -> Option<Answer> {
    let fault = state.faults.iter_mut().find(|fault| {
        fault.times > 0 && fault.method == call.method.as_str() && path.contains(&fault.path_contains)
    })?;
    fault.times -= 1;
    Some(fault.answer.clone())
}

/// An answer that says it is longer than it is: the client sees the connection end in its middle.
fn broken_off() -> Response {
    let body = Body::from("{");
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_LENGTH, header::HeaderValue::from_static("4096"));
    response
}

/// GitHub's own clock and limits, as on every real answer.
fn dated(state: &State, mut response: Response) -> Response {
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(state.now());
    let values = [
        ("date", httpdate::fmt_http_date(now)),
        ("x-github-request-id", random(6)),
        ("x-ratelimit-limit", "5000".to_owned()),
    ];
    for (name, value) in values {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    if let Ok(value) = "4999".parse() {
        response.headers_mut().entry("x-ratelimit-remaining").or_insert(value);
    }
    response
}

pub(super) fn ok(status: u16, body: &Value) -> Response {
    (StatusCode::from_u16(status).unwrap_or(StatusCode::OK), axum::Json(body)).into_response()
}

pub(super) fn refuse(status: u16, message: &str) -> Response {
    ok(status, &json!({ "message": message, "documentation_url": "https://docs.github.com/rest" }))
}

fn refuse_with(status: u16, message: &str, headers: Vec<(&'static str, String)>) -> Response {
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
    if call.path == "/actions/runner-registration" || call.path.starts_with("/_runner/") {
        return runners::handle(shared, call).await;
    }
    if call.headers.get(header::USER_AGENT).is_none() {
        return refuse(403, "Request forbidden by administrative rules. Please make sure your request has a User-Agent header");
    }
    let mut state = shared.state();
    let segments: Vec<&str> = call.path.trim_matches('/').split('/').collect();
    let response = match (call.method.as_str(), segments.as_slice()) {
        ("GET", ["app"]) => as_app(&mut state, call, false, |_| Ok(app())),
        ("GET", ["orgs", organization, "installation"]) => {
            let here = *organization == shared.organization;
            as_app(&mut state, call, false, |state| installation(state, here))
        }
        ("POST", ["app", "installations", id, "access_tokens"]) => {
            let here = id.parse() == Ok(INSTALLATION_ID);
            let wanted = call.json();
            as_app(&mut state, call, true, |state| access_token(state, here, &wanted))
        }
        (method, ["orgs", organization, "actions", rest @ ..]) => {
            let host = format!("http://{}", shared.address);
            organization_call(&mut state, call, *organization == shared.organization, method, rest, &host)
        }
        _ => Err(refuse(404, "Not Found")),
    };
    drop(state);
    shared.changed.notify_waiters();
    response.unwrap_or_else(|refusal| refusal)
}

type Answered = Result<Response, Response>;

/// Verifies the JWT, then answers.
fn as_app(state: &mut State, call: &Call, once: bool, then: impl FnOnce(&mut State) -> Answered) -> Answered {
    let token = call.bearer().ok_or_else(|| refuse(401, "A JSON web token could not be decoded"))?;
    let claims = verify(state, token)?;
    let (issued, expires) = (claims["iat"].as_u64(), claims["exp"].as_u64());
    let (Some(issued), Some(expires)) = (issued, expires) else {
        return Err(refuse(401, "Missing 'issued at' claim ('iat') in assertion"));
    };
    let now = state.now();
    if expires <= now {
        return Err(refuse(
            401,
            "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion \
             expires",
        ));
    }
    if expires > now + 600 {
        return Err(refuse(401, "'Expiration time' claim ('exp') is too far in the future"));
    }
    if issued > now {
        return Err(refuse(401, "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"));
    }
    let app = &claims["iss"];
    if app != CLIENT_ID && app.as_str().and_then(|id| id.parse().ok()).or(app.as_u64()) != Some(APP_ID) {
        return Err(refuse(404, "Integration not found"));
    }
    // Byte-identical assertions have been answered so.
    if once && !state.seen_jwts.insert(token.to_owned()) {
        return Err(refuse(404, "Not Found"));
    }
    then(state)
}

fn verify(state: &State, token: &str) -> Result<Value, Response> {
    let mut validation = Validation::new(Algorithm::RS256);
    // Times are checked against GitHub's own clock, with its own messages.
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    state
        .keys
        .iter()
        .find_map(|key| jsonwebtoken::decode(token, &DecodingKey::from_rsa_der(&key.pkcs1), &validation).ok())
        .map(|data| data.claims)
        .ok_or_else(|| refuse(401, "A JSON web token could not be decoded"))
}

fn app() -> Response {
    ok(200, &json!({
        "id": APP_ID, "slug": "kiln-rehearsal", "client_id": CLIENT_ID, "name": "Kiln rehearsal",
        "html_url": "https://github.com/apps/kiln-rehearsal",
        "permissions": { "organization_self_hosted_runners": "write" },
    }))
}

fn installation(state: &State, here: bool) -> Answered {
    if !here || !state.installed {
        return Err(refuse(404, "Not Found"));
    }
    let permissions = if state.granted { json!({ "organization_self_hosted_runners": "write" }) } else { json!({}) };
    let suspended = state.suspended.then_some("2026-01-01T00:00:00Z");
    Ok(ok(200, &json!({ "id": INSTALLATION_ID, "permissions": permissions, "suspended_at": suspended })))
}

fn access_token(state: &mut State, here: bool, wanted: &Value) -> Answered {
    if !here || !state.installed {
        return Err(refuse(404, "Not Found"));
    }
    if state.suspended {
        return Err(refuse(403, "This installation has been suspended"));
    }
    let asks = wanted.get("permissions");
    let runners = asks.is_none_or(|asks| asks["organization_self_hosted_runners"] == "write");
    if runners && !state.granted && asks.is_some() {
        return Err(refuse(422, "The permissions requested are not granted to this installation."));
    }
    let (token, expires) = state.mint(TokenKind::Installation { runners: runners && state.granted });
    Ok(ok(201, &json!({ "token": token, "expires_at": stamp(expires), "permissions": asks })))
}

/// RFC 3339, as GitHub writes times.
fn stamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil-from-days, for days since 1970.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

fn organization_call(
    state: &mut State,
    call: &Call,
    here: bool,
    method: &str,
    rest: &[&str],
    host: &str,
) -> Answered {
    let token = call.bearer().and_then(|token| state.tokens.get(token)).cloned();
    let token = token.filter(|token| token.expires > state.now()).ok_or_else(|| refuse(401, "Bad credentials"))?;
    if token.kind != (TokenKind::Installation { runners: true }) {
        return Err(refuse_with(403, "Resource not accessible by integration", vec![(
            "x-accepted-github-permissions",
            "organization_self_hosted_runners=write".to_owned(),
        )]));
    }
    if !here {
        return Err(refuse(404, "Not Found"));
    }
    match (method, rest) {
        ("POST", ["runners", "registration-token" | "remove-token"]) => {
            let (token, expires) = state.mint(TokenKind::Registration);
            Ok(ok(201, &json!({ "token": token, "expires_at": stamp(expires) })))
        }
        ("POST", ["runners", "generate-jitconfig"]) => jit_config(state, &call.json(), host),
        ("GET", ["runners"]) => Ok(list(state, call)),
        ("GET", ["runners", "downloads"]) => Ok(downloads(state)),
        ("GET", ["runners", id]) => {
            let runner = id.parse().ok().and_then(|id| state.runners.get(&id));
            runner.map(|runner| ok(200, &described(runner))).ok_or_else(|| refuse(404, "Not Found"))
        }
        ("DELETE", ["runners", id]) => delete(state, id),
        ("GET", ["runner-groups"]) => Ok(ok(200, &json!({
            "total_count": 1, "runner_groups": [{ "id": 1, "name": "Default", "default": true }],
        }))),
        _ => Err(refuse(404, "Not Found")),
    }
}

fn jit_config(state: &mut State, wanted: &Value, host: &str) -> Answered {
    let name = wanted["name"].as_str().unwrap_or_default();
    let labels: Vec<String> = wanted["labels"]
        .as_array()
        .map(|labels| labels.iter().filter_map(|label| label.as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    if name.is_empty() || name.len() > 64 || labels.is_empty() || labels.len() > 100 {
        return Err(refuse(422, "Validation Failed"));
    }
    if wanted["runner_group_id"] != 1 {
        return Err(refuse(404, "Not Found"));
    }
    if state.runners.values().any(|runner| runner.name == name) {
        return Err(refuse(409, "Already exists - A runner with the same name already exists."));
    }
    let runner = runners::register(state, name, labels, true);
    let encoded = runners::encoded_jit(runner, host);
    let body = json!({ "runner": described(runner), "encoded_jit_config": encoded });
    Ok(ok(201, &body))
}

fn described(runner: &Runner) -> Value {
    let known = KnownRunner::of(runner);
    let labels: Vec<Value> = known.labels.iter().map(|label| json!({ "name": label, "type": "custom" })).collect();
    json!({
        "id": known.id, "name": known.name, "os": "linux", "busy": known.busy, "ephemeral": known.ephemeral,
        "status": if known.online { "online" } else { "offline" }, "version": known.version, "labels": labels,
    })
}

fn list(state: &State, call: &Call) -> Response {
    let number = |name, default| call.query(name).and_then(|value| value.parse().ok()).unwrap_or(default);
    let (per_page, page): (usize, usize) = (number("per_page", 30).clamp(1, 100), number("page", 1).max(1));
    let name = call.query("name");
    let matching: Vec<&Runner> =
        state.runners.values().filter(|runner| name.as_ref().is_none_or(|name| runner.name == *name)).collect();
    let shown: Vec<Value> =
        matching.iter().skip((page - 1) * per_page).take(per_page).map(|runner| described(runner)).collect();
    ok(200, &json!({ "total_count": matching.len(), "runners": shown }))
}

fn downloads(state: &State) -> Response {
    let newest = state.releases.iter().next_back();
    let all: Vec<Value> = newest
        .map(|(version, release)| {
            json!([{
                "os": "linux", "architecture": "x64", "sha256_checksum": release.sha256,
                "filename": format!("actions-runner-linux-x64-{version}.tar.gz"),
            }])
        })
        .and_then(|value| value.as_array().cloned())
        .unwrap_or_default();
    ok(200, &Value::Array(all))
}

fn delete(state: &mut State, id: &str) -> Answered {
    let id: u64 = id.parse().map_err(|_| refuse(404, "Not Found"))?;
    let Some(runner) = state.runners.get(&id) else { return Err(refuse(404, "Not Found")) };
    if runner.job.is_some() {
        let name = &runner.name;
        return Err(refuse(422, &format!("Bad request - Runner \"{name}\" is currently running a job and cannot be deleted.")));
    }
    state.runners.remove(&id);
    Ok(StatusCode::NO_CONTENT.into_response())
}
