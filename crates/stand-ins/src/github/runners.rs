//! What a runner says to GitHub. The real protocol is private; this one is the stand-in runner's.
//!
//! assumption: every address below `/_runner` and what is said there. The order of what happens is the real one's, with sources.

use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Shared;
use super::api::{Call, ok, refuse};
use super::organization::LONGEST_NAME;
use super::release::Release;
use super::state::{Conclusion, JobState, Runner, State, TokenKind, random, version_number};

/// How long a poll is held open. The real one holds for 50 s; a shorter one notices the end of a rehearsal.
const POLL: Duration = Duration::from_millis(900);

pub(super) fn download(shared: &Shared, path: &str) -> Response {
    let state = shared.state();
    let found = state.releases.iter().find(|(version, _)| {
        path.ends_with(&format!("/v{version}/actions-runner-linux-x64-{version}.tar.gz"))
            || path.ends_with(&format!("/v{version}/actions-runner-linux-arm64-{version}.tar.gz"))
    });
    match found {
        Some((_, release)) => {
            ([(header::CONTENT_TYPE, "application/octet-stream")], release.bytes.clone()).into_response()
        }
        None => refuse(404, "Not Found"),
    }
}

/// A build of Node, the digests beside it, or the list of what there is.
pub(super) fn download_node(shared: &Shared, path: &str) -> Response {
    let state = shared.state();
    if path == "index.json" {
        let names = |(version, build): (&String, &Release)| {
            let name = build.url.rsplit('/').next().unwrap_or_default();
            let kind = name.trim_start_matches(&format!("node-v{version}-")).trim_end_matches(".tar.gz");
            json!({ "version": format!("v{version}"), "files": [kind] })
        };
        return Json(state.nodes.iter().map(names).collect::<Vec<_>>()).into_response();
    }
    let Some((build, file)) = path
        .strip_prefix('v')
        .and_then(|path| path.split_once('/'))
        .and_then(|(version, file)| Some((state.nodes.get(version)?, file)))
    else {
        return refuse(404, "Not Found");
    };
    let name = build.url.rsplit('/').next().unwrap_or_default();
    if file == "SHASUMS256.txt" {
        return format!("{}  {name}\n", build.sha256).into_response();
    }
    if file != name {
        return refuse(404, "Not Found");
    }
    ([(header::CONTENT_TYPE, "application/octet-stream")], build.bytes.clone()).into_response()
}

pub(super) fn register<'a>(
    state: &'a mut State,
    name: &str,
    group: u64,
    labels: Vec<String>,
    ephemeral: bool,
) -> &'a Runner {
    let id = state.next();
    let runner = Runner {
        id,
        name: name.to_owned(),
        group,
        labels,
        ephemeral,
        version: None,
        credential: random(24),
        session: None,
        seen: None,
        job: None,
        simulated: None,
        deleted: false,
    };
    state.runners.entry(id).or_insert(runner)
}

/// Files by name, each in base64, the whole in base64: the real document's form.
pub(super) fn encoded_jit(runner: &Runner, url: &str, work: &str) -> String {
    // source: a `.runner` of GitHub's read in <https://github.com/vitalyiegorov/tart-runner-fleet>, ADR 0041: text values, and
    // names that begin with a capital letter.
    let settings = json!({
        "AgentId": runner.id.to_string(), "AgentName": runner.name, "Ephemeral": "True", "DisableUpdate": "True",
        "PoolId": "1", "PoolName": "Default", "ServerUrl": url, "WorkFolder": work,
    });
    let files = [
        (".runner", settings),
        (".credentials", json!({ "scheme": "OAuth", "data": { "clientId": runner.id.to_string() } })),
        (".credentials_rsaparams", json!({ "d": runner.credential })),
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
        ("POST", ["_runner", "remove"]) => remove(shared, call),
        ("POST", ["_runner", "sessions"]) => open_session(shared, call),
        ("POST", ["_runner", "sessions", session, "poll"]) => return poll(shared, session).await,
        ("POST", ["_runner", "sessions", session, "held"]) => return held(shared, session).await,
        ("POST", ["_runner", "sessions", session, "renew"]) => return renew(shared, session),
        ("POST", ["_runner", "sessions", session, "complete"]) => complete(shared, session, call),
        ("DELETE", ["_runner", "sessions", session]) => close(shared, session),
        _ => refuse(404, "Not Found"),
    };
    shared.changed.notify_waiters();
    response
}

fn authorized(state: &State, call: &Call, scheme: &str, kinds: &[TokenKind]) -> bool {
    let value = call.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = value.strip_prefix(scheme).and_then(|token| state.tokens.get(token.trim_start()));
    token.is_some_and(|token| kinds.contains(&token.kind) && token.expires > state.now())
}

/// The registration token is exchanged for the right to register, the removal token for the right to remove, as the real
/// runner does.
fn exchange(shared: &Shared, call: &Call) -> Response {
    let mut state = shared.state();
    let wanted = call.json();
    let here = wanted["url"].as_str().is_some_and(|url| url.ends_with(&format!("/{}", shared.organization)));
    let kinds: &[TokenKind] = match wanted["runner_event"].as_str() {
        Some("register") => &[TokenKind::Registration],
        Some("remove") => &[TokenKind::Registration, TokenKind::Removal],
        _ => &[],
    };
    if !authorized(&state, call, "RemoteAuth", kinds) || !here {
        return refuse(404, "Not Found");
    }
    // source: <https://github.com/man-group/ArcticDB/issues/3404>: with the status of an unknown organization.
    // assumption: GitHub reads the version from the user agent, the only place in this request that has it.
    let agent = call.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let version = agent.split_once('/').map_or("", |(_, version)| version.split(' ').next().unwrap_or_default());
    if wanted["runner_event"] == "register" && version_number(version) < version_number(&state.oldest) {
        return refuse(
            404,
            &format!(
                "Your runner version is out of date and can no longer register with GitHub. The minimum runner version \
                 required to register with GitHub Actions is now {}.",
                state.oldest
            ),
        );
    }
    let (token, _) = state.mint(TokenKind::Admin);
    ok(200, &json!({ "token": token, "token_schema": "OAuthAccessToken" }))
}

fn configure(shared: &Shared, call: &Call) -> Response {
    let mut state = shared.state();
    if !authorized(&state, call, "Bearer", &[TokenKind::Admin]) {
        return refuse(401, "Unauthorized");
    }
    let wanted = call.json();
    let text = |name: &str| wanted[name].as_str().unwrap_or_default();
    let name = text("name");
    if name.is_empty() || name.len() > LONGEST_NAME {
        return refuse(422, &format!("A runner's name has 1 to {LONGEST_NAME} characters."));
    }
    let group = if text("group").is_empty() { "Default" } else { text("group") };
    let known = state.groups.iter().find(|known| known.name.eq_ignore_ascii_case(group));
    let Some(group) = known.map(|known| known.id) else {
        return refuse(404, &format!("Could not find any self-hosted runner group named \"{group}\"."));
    };
    let existing = state.runners.values().find(|runner| runner.name == name).map(|runner| runner.id);
    if let Some(id) = existing {
        if wanted["replace"] != true {
            return refuse(409, &format!("A runner exists with the same name {name}."));
        }
        state.abandon(id, Conclusion::Failure, "The self-hosted runner was replaced by another of its name.");
        state.runners.remove(&id);
    }
    let mut labels = vec!["self-hosted".to_owned(), "Linux".to_owned(), text("architecture").to_owned()];
    labels.extend(text("labels").split(',').filter(|label| !label.is_empty()).map(str::to_owned));
    let runner = register(&mut state, name, group, labels, wanted["ephemeral"] == true);
    ok(200, &json!({ "id": runner.id, "credential": runner.credential }))
}

/// `config.sh remove`.
fn remove(shared: &Shared, call: &Call) -> Response {
    let mut state = shared.state();
    if !authorized(&state, call, "Bearer", &[TokenKind::Admin]) {
        return refuse(401, "Unauthorized");
    }
    let id = call.json()["id"].as_u64().unwrap_or_default();
    match state.runners.get(&id) {
        None => refuse(404, "Not Found"),
        Some(runner) if runner.job.is_some() => {
            refuse(422, &format!("Runner \"{}\" is currently running a job and cannot be deleted.", runner.name))
        }
        Some(_) => {
            state.runners.remove(&id);
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

fn open_session(shared: &Shared, call: &Call) -> Response {
    let mut state = shared.state();
    let wanted = call.json();
    let version = wanted["version"].as_str().unwrap_or_default().to_owned();
    let known = |runner: &&Runner| !runner.deleted && wanted["credential"] == runner.credential.as_str();
    let Some((id, online)) = state.runners.values().find(known).map(|runner| (runner.id, runner.online())) else {
        return refuse(404, "The runner registration has been deleted from the server, please re-configure.");
    };
    if online {
        return refuse(409, "A session for this runner already exists.");
    }
    state.abandon(id, Conclusion::Failure, "The self-hosted runner lost communication with the server.");
    let session = random(12);
    let Some(runner) = state.runners.get_mut(&id) else { return refuse(404, "Not Found") };
    runner.session = Some(session.clone());
    runner.seen = Some(Instant::now());
    runner.version = Some(version);
    ok(200, &json!({ "session": session, "name": runner.name, "ephemeral": runner.ephemeral }))
}

/// The runner of a session, which was heard from just now.
fn heard<'a>(state: &'a mut State, session: &str) -> Option<&'a mut Runner> {
    let runner = state.runners.values_mut().find(|runner| runner.session.as_deref() == Some(session))?;
    runner.seen = Some(Instant::now());
    Some(runner)
}

fn gone() -> Response {
    refuse(404, "The runner registration has been deleted from the server, please re-configure.")
}

/// A message, or none within the poll's time.
async fn poll(shared: &Shared, session: &str) -> Response {
    let deadline = Instant::now() + POLL;
    loop {
        let changed = shared.changed.notified();
        if let Some(refusal) = too_old(&shared.state(), session) {
            return refusal;
        }
        match take_job(shared, session) {
            None => return gone(),
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

/// A runner whose version is served no more has its session, and is refused at each poll.
///
/// source: Sdk/WebApi/WebApi/BrokerHttpClient.cs:121-125 (`RunnerVersionTooOld`); the words from
/// <https://github.com/actions/runner/issues/4613>
fn too_old(state: &State, session: &str) -> Option<Response> {
    let runner = state.runners.values().find(|runner| runner.session.as_deref() == Some(session))?;
    let version = runner.version.as_deref()?;
    let ends = state.deprecated.get(version)?.runtime?;
    let words = format!("Runner version v{version} is deprecated and cannot receive messages.");
    (ends <= state.now()).then(|| refuse(403, &words))
}

/// `None`: no such session. `Some(None)`: nothing to do.
fn take_job(shared: &Shared, session: &str) -> Option<Option<Value>> {
    let mut guard = shared.state();
    let state = &mut *guard;
    let runner = heard(state, session)?;
    if runner.job.is_some() {
        return Some(None);
    }
    if runner.deleted {
        let id = runner.id;
        state.runners.remove(&id);
        return None;
    }
    let (name, id, labels) = (runner.name.clone(), runner.id, runner.labels.clone());
    let fits = |wanted: &[String]| wanted.iter().all(|label| labels.iter().any(|has| has.eq_ignore_ascii_case(label)));
    let queued = state.jobs.iter_mut().find(|(_, job)| job.state == JobState::Queued && fits(&job.spec.labels));
    let Some((&number, job)) = queued else { return Some(None) };
    job.state = JobState::InProgress { runner: name };
    job.taken = false;
    let shown = job.spec.name.clone().unwrap_or_else(|| number.0.to_string());
    let message = json!({ "job": number, "name": shown, "steps": job.spec.steps });
    state.runners.get_mut(&id)?.job = Some(number);
    Some(Some(message))
}

/// The session's runner is at work on its job.
fn renew(shared: &Shared, session: &str) -> Response {
    let mut guard = shared.state();
    let Some(number) = heard(&mut guard, session).map(|runner| runner.job) else { return gone() };
    let Some(job) = number.and_then(|number| guard.jobs.get_mut(&number)) else {
        return refuse(409, "the runner has no job");
    };
    job.taken = true;
    StatusCode::NO_CONTENT.into_response()
}

/// Is the session's job still to hold?
async fn held(shared: &Shared, session: &str) -> Response {
    let deadline = Instant::now() + POLL;
    loop {
        let changed = shared.changed.notified();
        let released = {
            let mut state = shared.state();
            let job = heard(&mut state, session).and_then(|runner| runner.job);
            job.and_then(|job| state.jobs.get(&job)).map(|job| job.released)
        };
        match released {
            None => return gone(),
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
    let wanted = call.json();
    let Some(runner) = heard(&mut guard, session) else { return gone() };
    let Some(number) = runner.job.take() else { return refuse(409, "the runner has no job") };
    let (id, ephemeral, name) = (runner.id, runner.ephemeral, runner.name.clone());
    let version = runner.version.clone().unwrap_or_default();
    let conclusion: Conclusion = serde_json::from_value(wanted["conclusion"].clone()).unwrap_or(Conclusion::Failure);
    let output = wanted["output"].as_str().unwrap_or_default().to_owned();
    if let Some(job) = guard.jobs.get_mut(&number) {
        job.state = JobState::Completed { conclusion, runner: name, version, output };
    }
    if ephemeral {
        guard.runners.remove(&id);
    }
    StatusCode::NO_CONTENT.into_response()
}

fn close(shared: &Shared, session: &str) -> Response {
    let mut state = shared.state();
    if let Some(id) = heard(&mut state, session).map(|runner| runner.id) {
        state.abandon(id, Conclusion::Cancelled, "The self-hosted runner ended its session.");
        if let Some(runner) = state.runners.get_mut(&id) {
            runner.session = None;
            runner.seen = None;
        }
    }
    StatusCode::NO_CONTENT.into_response()
}
