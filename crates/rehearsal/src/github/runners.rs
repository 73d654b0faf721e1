//! What a runner says to GitHub. The real protocol is private; this one is the stand-in runner's.

use std::time::{Duration, Instant};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Shared;
use super::api::{Call, ok, refuse};
use super::state::{Conclusion, JobId, JobState, Runner, State, TokenKind, random};

/// How long a poll is held open. The real one holds for 50 s; a shorter one notices the end of a rehearsal.
const POLL: Duration = Duration::from_millis(900);

pub(super) fn download(shared: &Shared, path: &str) -> Response {
    let state = shared.state();
    let found = state.releases.iter().find(|(version, _)| {
        path.ends_with(&format!("/v{version}/actions-runner-linux-x64-{version}.tar.gz"))
            || path.ends_with(&format!("/v{version}/actions-runner-linux-arm64-{version}.tar.gz"))
    });
    match found {
        Some((_, release)) => ([(header::CONTENT_TYPE, "application/octet-stream")], release.bytes.clone()).into_response(),
        None => refuse(404, "Not Found"),
    }
}

pub(super) fn register<'a>(state: &'a mut State, name: &str, labels: Vec<String>, ephemeral: bool) -> &'a Runner {
    let id = state.next();
    let mut all = vec!["self-hosted".to_owned(), "Linux".to_owned(), "X64".to_owned()];
    all.extend(labels);
    let runner = Runner {
        id,
        name: name.to_owned(),
        labels: all,
        ephemeral,
        version: None,
        credential: random(24),
        session: None,
        seen: None,
        job: None,
    };
    state.runners.entry(id).or_insert(runner)
}

/// Files by name, each in base64, the whole in base64: the real document's form.
pub(super) fn encoded_jit(runner: &Runner, host: &str) -> String {
    let settings =
        json!({ "agentId": runner.id, "agentName": runner.name, "ephemeral": runner.ephemeral, "serverUrl": host });
    let files = [
        (".runner", settings),
        (".credentials", json!({ "scheme": "OAuth", "data": { "credential": runner.credential } })),
        (".credentials_rsaparams", json!({})),
    ];
    let files: serde_json::Map<String, Value> = files
        .into_iter()
        .map(|(name, content)| (name.to_owned(), Value::String(STANDARD.encode(content.to_string()))))
        .collect();
    STANDARD.encode(Value::Object(files).to_string())
}

pub(super) async fn handle(shared: &Shared, call: &Call) -> Response {
    let path = call.path.clone();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let response = match (call.method.as_str(), segments.as_slice()) {
        ("POST", ["actions", "runner-registration"]) => exchange(shared, call),
        ("POST", ["_runner", "register"]) => configure(shared, call),
        ("POST", ["_runner", "sessions"]) => open_session(shared, call),
        ("POST", ["_runner", "sessions", session, "poll"]) => return poll(shared, session).await,
        ("POST", ["_runner", "sessions", session, "held"]) => return held(shared, session).await,
        ("POST", ["_runner", "sessions", session, "complete"]) => complete(shared, session, call),
        ("DELETE", ["_runner", "sessions", session]) => close(shared, session),
        _ => refuse(404, "Not Found"),
    };
    shared.changed.notify_waiters();
    response
}

fn authorized(state: &State, call: &Call, scheme: &str, kind: TokenKind) -> bool {
    let value = call.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = value.strip_prefix(scheme).and_then(|token| state.tokens.get(token.trim_start()));
    token.is_some_and(|token| token.kind == kind && token.expires > state.now())
}

/// The registration token is exchanged for the right to register, as the real runner does.
fn exchange(shared: &Shared, call: &Call) -> Response {
    let mut state = shared.state();
    let here = call.json()["url"].as_str().is_some_and(|url| url.ends_with(&format!("/{}", shared.organization)));
    if !authorized(&state, call, "RemoteAuth", TokenKind::Registration) || !here {
        return refuse(404, "Not Found");
    }
    let (token, _) = state.mint(TokenKind::Admin);
    ok(200, &json!({ "token": token, "token_schema": "OAuthAccessToken" }))
}

fn configure(shared: &Shared, call: &Call) -> Response {
    let mut state = shared.state();
    if !authorized(&state, call, "Bearer", TokenKind::Admin) {
        return refuse(401, "Unauthorized");
    }
    let wanted = call.json();
    let name = wanted["name"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() || name.len() > 64 {
        return refuse(422, "a runner's name has 1 to 64 characters");
    }
    let existing = state.runners.values().find(|runner| runner.name == name).map(|runner| runner.id);
    if let Some(id) = existing {
        if wanted["replace"] != true {
            return refuse(409, "A runner exists with the same name");
        }
        state.runners.remove(&id);
    }
    let labels = wanted["labels"].as_str().unwrap_or_default();
    let labels = labels.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect();
    let runner = register(&mut state, &name, labels, wanted["ephemeral"] == true);
    ok(200, &json!({ "id": runner.id, "credential": runner.credential }))
}

fn open_session(shared: &Shared, call: &Call) -> Response {
    let mut state = shared.state();
    let wanted = call.json();
    let version = wanted["version"].as_str().unwrap_or_default().to_owned();
    let deprecated = state.deprecated.contains(&version);
    let Some(runner) = state.runners.values_mut().find(|runner| wanted["credential"] == runner.credential.as_str()) else {
        return refuse(404, "the runner registration has been deleted from the server");
    };
    if deprecated {
        return refuse(403, "Runner version is deprecated and cannot receive messages");
    }
    if runner.online() {
        return refuse(409, "A session for this runner already exists");
    }
    let session = random(12);
    runner.session = Some(session.clone());
    runner.seen = Some(Instant::now());
    runner.version = Some(version);
    ok(200, &json!({ "session": session, "name": runner.name, "ephemeral": runner.ephemeral }))
}

/// A message, or none within the poll's time.
async fn poll(shared: &Shared, session: &str) -> Response {
    let deadline = tokio::time::Instant::now() + POLL;
    loop {
        let changed = shared.changed.notified();
        match take_job(shared, session) {
            None => return refuse(404, "the session is gone"),
            Some(Some(job)) => {
                shared.changed.notify_waiters();
                return ok(200, &job);
            }
            Some(None) => {}
        }
        if tokio::time::timeout_at(deadline, changed).await.is_err() {
            return StatusCode::NO_CONTENT.into_response();
        }
    }
}

/// `None`: no such session. `Some(None)`: nothing to do.
fn take_job(shared: &Shared, session: &str) -> Option<Option<Value>> {
    let mut guard = shared.state();
    let State { runners, jobs, .. } = &mut *guard;
    let runner = runners.values_mut().find(|runner| runner.session.as_deref() == Some(session))?;
    runner.seen = Some(Instant::now());
    if runner.job.is_some() {
        return Some(None);
    }
    let fits = |labels: &[String]| {
        labels.iter().all(|label| runner.labels.iter().any(|has| has.eq_ignore_ascii_case(label)))
    };
    let Some((id, job)) =
        jobs.iter_mut().find(|(_, job)| job.state == JobState::Queued && fits(&job.spec.labels))
    else {
        return Some(None);
    };
    job.state = JobState::InProgress { runner: runner.name.clone() };
    runner.job = Some(*id);
    Some(Some(json!({ "job": id, "steps": job.spec.steps })))
}

/// Is the session's job still to hold?
async fn held(shared: &Shared, session: &str) -> Response {
    let deadline = tokio::time::Instant::now() + POLL;
    loop {
        let changed = shared.changed.notified();
        let released = {
            let mut state = shared.state();
            let job = state.runners.values_mut().find(|runner| runner.session.as_deref() == Some(session)).and_then(
                |runner| {
                    runner.seen = Some(Instant::now());
                    runner.job
                },
            );
            job.and_then(|job| state.jobs.get(&job)).map(|job| job.released)
        };
        match released {
            None => return refuse(404, "the session is gone"),
            Some(true) => return ok(200, &json!({ "released": true })),
            Some(false) if tokio::time::timeout_at(deadline, changed).await.is_err() => {
                return ok(200, &json!({ "released": false }));
            }
            Some(false) => {}
        }
    }
}

fn complete(shared: &Shared, session: &str, call: &Call) -> Response {
    let mut guard = shared.state();
    let State { runners, jobs, .. } = &mut *guard;
    let wanted = call.json();
    let Some(runner) = runners.values_mut().find(|runner| runner.session.as_deref() == Some(session)) else {
        return refuse(404, "the session is gone");
    };
    runner.seen = Some(Instant::now());
    let Some(id) = runner.job.take() else { return refuse(409, "the runner has no job") };
    let conclusion: Conclusion = serde_json::from_value(wanted["conclusion"].clone()).unwrap_or(Conclusion::Failure);
    let output = wanted["output"].as_str().unwrap_or_default().to_owned();
    if let Some(job) = jobs.get_mut(&id) {
        job.state = JobState::Completed { conclusion, runner: runner.name.clone(), output };
    }
    let (gone, ephemeral): (u64, bool) = (runner.id, runner.ephemeral);
    if ephemeral {
        runners.remove(&gone);
    }
    ok(200, &json!({ "job": JobId(id.0) }))
}

fn close(shared: &Shared, session: &str) -> Response {
    let mut state = shared.state();
    if let Some(runner) = state.runners.values_mut().find(|runner| runner.session.as_deref() == Some(session)) {
        runner.session = None;
        runner.seen = None;
    }
    StatusCode::NO_CONTENT.into_response()
}
