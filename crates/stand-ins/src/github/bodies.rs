//! The larger documents of GitHub's answers, complete as its OpenAPI description has them (`tests/openapi.rs` holds them
//! against it), so that a client that came to need one more field of them finds it here too.
//!
//! source: the API's description, npm package `@octokit/openapi`.

use serde_json::{Map, Value, json};

use super::api::stamp;
use super::state::{App, INSTALLATION_ID};

/// When everything here was made.
const BEGINNING: &str = "2026-01-01T00:00:00Z";

const WEB: &str = "https://github.com";
const API: &str = "https://api.github.com";

/// The organization's id.
const ORGANIZATION_ID: u64 = 880_001;

/// A user or an organization.
fn account(login: &str) -> Value {
    let url = format!("{API}/users/{login}");
    json!({
        "login": login, "id": ORGANIZATION_ID, "node_id": "O_kgDOKiln", "type": "Organization", "site_admin": false,
        "avatar_url": format!("{WEB}/{login}.png"), "gravatar_id": "", "url": url, "html_url": format!("{WEB}/{login}"),
        "followers_url": format!("{url}/followers"), "following_url": format!("{url}/following{{/other_user}}"),
        "gists_url": format!("{url}/gists{{/gist_id}}"), "starred_url": format!("{url}/starred{{/owner}}{{/repo}}"),
        "subscriptions_url": format!("{url}/subscriptions"), "organizations_url": format!("{url}/orgs"),
        "repos_url": format!("{url}/repos"), "events_url": format!("{url}/events{{/privacy}}"),
        "received_events_url": format!("{url}/received_events"),
    })
}

pub(super) fn app(app: &App, permissions: &Value) -> Value {
    json!({
        "id": app.id, "slug": app.slug, "node_id": "A_kwDOKiln", "client_id": app.client_id, "name": app.slug,
        "owner": account(&app.owner), "description": null, "external_url": WEB,
        "html_url": format!("{WEB}/apps/{}", app.slug), "created_at": BEGINNING, "updated_at": BEGINNING,
        "permissions": permissions, "events": [],
    })
}

pub(super) fn installation(
    organization: &str,
    app: &App,
    permissions: &Map<String, Value>,
    suspended_at: Option<&str>,
) -> Value {
    json!({
        "id": INSTALLATION_ID, "account": account(organization), "repository_selection": "all",
        "access_tokens_url": format!("{API}/app/installations/{INSTALLATION_ID}/access_tokens"),
        "repositories_url": format!("{API}/installation/repositories"),
        "html_url": format!("{WEB}/organizations/{organization}/settings/installations/{INSTALLATION_ID}"),
        "app_id": app.id, "app_slug": app.slug, "target_id": ORGANIZATION_ID, "target_type": "Organization",
        "permissions": permissions, "events": [], "created_at": BEGINNING, "updated_at": BEGINNING,
        "single_file_name": null, "suspended_by": suspended_at.map(|_| account(organization)),
        "suspended_at": suspended_at,
    })
}

/// A release of the runner.
pub(super) fn release(version: &str, published: u64) -> Value {
    let (url, web) = (format!("{API}/repos/actions/runner/releases/1"), format!("{WEB}/actions/runner/releases"));
    json!({
        "id": 1, "node_id": "RE_kwDOKiln", "tag_name": format!("v{version}"), "name": format!("v{version}"),
        "target_commitish": "main", "draft": false, "prerelease": false, "author": account("actions"),
        "created_at": stamp(published), "published_at": stamp(published), "url": url, "assets_url": format!("{url}/assets"),
        "html_url": format!("{web}/tag/v{version}"), "assets": [],
        "upload_url": "https://uploads.github.com/repos/actions/runner/releases/1/assets{?name,label}",
        "tarball_url": format!("{API}/repos/actions/runner/tarball/v{version}"),
        "zipball_url": format!("{API}/repos/actions/runner/zipball/v{version}"),
    })
}
