//! What an installation token opens: the organization's runners.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Shared;
use super::api::{Answered, Call, no, ok, refuse, refuse_with, stamp};
use super::app::PERMISSION;
use super::bodies;
use super::runners;
use super::state::{Deprecation, KnownRunner, Runner, RunnerGroup, State, TokenKind, version_number};

/// GitHub's own bound for a runner's name.
pub(super) const LONGEST_NAME: usize = 64;

const MOST_LABELS: usize = 100;

pub(super) fn handle(
    shared: &Shared,
    state: &mut State,
    call: &Call,
    here: bool,
    method: &str,
    path: &[&str],
) -> Answered {
    let token = call.bearer().and_then(|token| state.tokens.get(token)).cloned();
    let token =
        token.filter(|token| token.expires > state.now()).ok_or_else(|| Box::new(refuse(401, "Bad credentials")))?;
    if state.suspended {
        return no(403, "This installation has been suspended");
    }
    // A permission that is taken away is taken from the tokens there are, too.
    if token.kind != (TokenKind::Installation { runners: true }) || !state.granted {
        let accepted = vec![("x-accepted-github-permissions", format!("{PERMISSION}=write"))];
        return Err(Box::new(refuse_with(403, "Resource not accessible by integration", accepted)));
    }
    if !here {
        return no(404, "Not Found");
    }
    match (method, path) {
        ("POST", ["runners", "registration-token"]) => Ok(short_token(state, TokenKind::Registration)),
        ("POST", ["runners", "remove-token"]) => Ok(short_token(state, TokenKind::Removal)),
        ("POST", ["runners", "generate-jitconfig"]) => jit_config(state, &call.json(), &shared.url()),
        ("GET", ["runners"]) => {
            let name = call.query("name");
            // source: <https://github.com/github-aws-runners/terraform-aws-github-runner/issues/4391>: a new runner is not in the
            // list at once. By its id it is found.
            let newest = state.listed_up_to.unwrap_or(u64::MAX);
            let fits = |runner: &&Runner| {
                // assumption: an Enterprise Server that does not know the parameter passes over it, as it does over any other
                let named = state.ignores_names || name.as_ref().is_none_or(|name| runner.name == *name);
                !runner.deleted && runner.id <= newest && named
            };
            let all: Vec<&Runner> = state.runners.values().filter(fits).collect();
            Ok(page(call, "runners", &all, |runner| described(runner)))
        }
        ("GET", ["runners", "downloads"]) => Ok(downloads(state)),
        ("GET", ["runners", "deprecations", version]) => deprecation(state, version),
        ("GET", ["runners", id]) => {
            let runner = id.parse().ok().and_then(|id| state.runners.get(&id)).filter(|runner| !runner.deleted);
            runner.map(|runner| ok(200, &described(runner))).ok_or_else(|| Box::new(refuse(404, "Not Found")))
        }
        ("DELETE", ["runners", id]) => delete(state, id),
        ("GET", ["runner-groups"]) => {
            let one = |group: &RunnerGroup| {
                json!({
                    "id": group.id, "name": group.name, "default": group.id == 1,
                    "visibility": if group.repositories.is_some() { "selected" } else { "all" },
                    "allows_public_repositories": group.public, "inherited": false,
                    "runners_url": format!(
                        "https://api.github.com/orgs/{}/actions/runner-groups/{}/runners",
                        shared.organization, group.id
                    ),
                })
            };
            Ok(page(call, "runner_groups", &state.groups, one))
        }
        ("GET", ["runner-groups", id, "runners"]) => {
            let group = state.groups.iter().map(|group| group.id).find(|group| group.to_string() == *id);
            let Some(group) = group else { return no(404, "Not Found") };
            let all: Vec<&Runner> = state.runners.values().filter(|runner| runner.group == group).collect();
            Ok(page(call, "runners", &all, |runner| described(runner)))
        }
        ("GET", ["runner-groups", id, "repositories"]) => {
            let group = state.groups.iter().find(|group| group.id.to_string() == *id);
            let Some(group) = group else { return no(404, "Not Found") };
            // Which ones they are concerns nobody here.
            let count = group.repositories.unwrap_or_default();
            Ok(ok(200, &json!({ "total_count": count, "repositories": [] })))
        }
        _ => no(404, "Not Found"),
    }
}

fn short_token(state: &mut State, kind: TokenKind) -> Response {
    let (token, expires) = state.mint(kind);
    ok(201, &json!({ "token": token, "expires_at": stamp(expires) }))
}

fn jit_config(state: &mut State, wanted: &Value, url: &str) -> Answered {
    let name = wanted["name"].as_str().unwrap_or_default();
    let labels: Vec<String> = wanted["labels"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|label| label.as_str().map(str::to_owned))
        .collect();
    let invalid = [
        ("name", name.is_empty() || name.len() > LONGEST_NAME),
        ("labels", labels.is_empty() || labels.len() > MOST_LABELS),
        ("runner_group_id", !wanted["runner_group_id"].is_u64()),
    ];
    if let Some((field, _)) = invalid.iter().find(|(_, invalid)| *invalid) {
        let body = json!({
            "message": "Validation Failed", "errors": [format!("{field} is invalid")],
            "documentation_url": "https://docs.github.com/rest",
        });
        return Err(Box::new(ok(422, &body)));
    }
    let Some(group) = state.groups.iter().map(|group| group.id).find(|id| wanted["runner_group_id"] == *id) else {
        return no(404, "Not Found");
    };
    if state.runners.values().any(|runner| runner.name == name) {
        return no(409, "Already exists - A runner with the same name already exists.");
    }
    // GitHub adds no labels of its own to a just-in-time runner.
    let runner = runners::register(state, name, group, labels, true);
    let work = wanted["work_folder"].as_str().unwrap_or("_work");
    let encoded = runners::encoded_jit(runner, url, work);
    let body = json!({ "runner": described(runner), "encoded_jit_config": encoded });
    Ok(ok(201, &body))
}

fn described(runner: &Runner) -> Value {
    let known = KnownRunner::of(runner);
    let kind =
        |label: &str| if matches!(label, "self-hosted" | "Linux" | "X64" | "ARM64") { "read-only" } else { "custom" };
    let labels: Vec<Value> = known.labels.iter().map(|label| json!({ "name": label, "type": kind(label) })).collect();
    json!({
        "id": known.id, "name": known.name, "os": "Linux", "busy": known.busy, "ephemeral": known.ephemeral,
        "status": if known.online { "online" } else { "offline" }, "version": known.version, "labels": labels,
        "runner_group_id": runner.group,
    })
}

/// The page that was asked for, thirty items long unless asked for otherwise.
fn page<T>(call: &Call, name: &str, all: &[T], described: impl Fn(&T) -> Value) -> Response {
    let number = |name, default| call.query(name).and_then(|value| value.parse().ok()).unwrap_or(default);
    let (per_page, page): (usize, usize) = (number("per_page", 30).clamp(1, 100), number("page", 1).max(1));
    let shown: Vec<Value> = all.iter().skip((page - 1) * per_page).take(per_page).map(described).collect();
    ok(200, &json!({ "total_count": all.len(), name: shown }))
}

fn downloads(state: &State) -> Response {
    let newest = state.releases.iter().max_by_key(|(version, _)| version_number(version));
    let one = |(version, release): (&String, &super::Release), architecture: &str| {
        let filename = format!("actions-runner-linux-{architecture}-{version}.tar.gz");
        let url = format!("{}/{filename}", release.url.rsplit_once('/').map_or("", |(folder, _)| folder));
        json!({
            "os": "linux", "architecture": architecture, "sha256_checksum": release.sha256,
            "download_url": url, "filename": filename,
        })
    };
    let all: Vec<Value> =
        newest.map(|newest| ["x64", "arm64"].map(|arch| one(newest, arch))).into_iter().flatten().collect();
    ok(200, &Value::Array(all))
}

/// A version without a date has none of the two; one that was never released is unknown.
fn deprecation(state: &State, version: &str) -> Answered {
    let ends = state.deprecated.get(version);
    // source: generated/ghec.json of @octokit/openapi has the path, and no description of an Enterprise Server
    if state.lists_no_deprecations {
        return no(404, "Not Found");
    }
    if ends.is_none() && !state.releases.contains_key(version) && !state.published.contains_key(version) {
        return no(404, "Not Found");
    }
    let at = |of: fn(&Deprecation) -> Option<u64>| ends.and_then(of).map(stamp);
    let body = json!({
        "runner_version": version,
        "registration_deprecates_at": at(|ends| ends.registration),
        "runtime_deprecates_at": at(|ends| ends.runtime),
    });
    Ok(ok(200, &body))
}

/// The releases of the public repository actions/runner, the newest first. Any token that is good reads it.
pub(super) fn releases(state: &State, call: &Call) -> Answered {
    let token = call.bearer().and_then(|token| state.tokens.get(token));
    if token.is_none_or(|token| token.expires <= state.now()) {
        return no(401, "Bad credentials");
    }
    let mut versions: Vec<(&String, &u64)> = state.published.iter().collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(version_number(version)));
    let one = |(version, at): &(&String, &u64)| bodies::release(version, **at);
    Ok(ok(200, &Value::Array(versions.iter().take(100).map(one).collect())))
}

fn delete(state: &mut State, id: &str) -> Answered {
    let id: u64 = id.parse().map_err(|_| Box::new(refuse(404, "Not Found")))?;
    let deletes_busy = state.deletes_busy;
    let runner = state.runners.get_mut(&id).filter(|runner| !runner.deleted);
    let Some(runner) = runner else { return no(404, "Not Found") };
    // source: <https://github.com/github-aws-runners/terraform-aws-github-runner/issues/5085>: a 204 while a job runs.
    if runner.job.is_some() && deletes_busy {
        runner.deleted = true;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    if runner.job.is_some() {
        let name = &runner.name;
        return no(422, &format!("Bad request - Runner \"{name}\" is currently running a job and cannot be deleted."));
    }
    state.runners.remove(&id);
    Ok(StatusCode::NO_CONTENT.into_response())
}
