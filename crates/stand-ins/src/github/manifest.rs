//! How an owner registers an App from a manifest, in a browser, and how the code that comes of it is exchanged.
//!
//! source: <https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-from-a-manifest>: the form with `manifest`
//! and `state`, the redirect with `code` and `state`, the exchange within an hour.
//!
//! source: <https://docs.github.com/en/apps/creating-github-apps/registering-a-github-app/registering-a-github-app>: a name has at
//! most 34 characters.
//!
//! assumption: a code that was used, is too old, or never was one, is answered with 404; so are the pages' words.

use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};
use serde_json::{Value, json};

use super::api::{Answered, Call, no, ok};
use super::state::{App, State, random};
use super::{Shared, app, bodies, state};

/// A code is good for an hour.
const CODE_SECS: u64 = 3600;

/// The longest name of an App.
const MOST_CHARACTERS: usize = 34;

/// A registration whose code nobody has exchanged yet.
#[derive(Debug)]
pub(super) struct Registration {
    client_id: String,
    pem: String,
    until: u64,
}

/// The pages that a browser sees; none where the path is another one.
pub(super) fn page(shared: &Shared, call: &Call) -> Option<Response> {
    let segments: Vec<&str> = call.path.trim_matches('/').split('/').collect();
    let form = |name: &str| {
        url::form_urlencoded::parse(&call.body).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    Some(match (call.method.as_str(), segments.as_slice()) {
        ("POST", ["organizations", login, "settings", "apps", "new"]) if *login == shared.organization => {
            let manifest = form("manifest").unwrap_or_default();
            let manifest_json: Value = serde_json::from_str(&manifest).unwrap_or_default();
            match wrong(&manifest_json) {
                Some(wrong) => said(StatusCode::UNPROCESSABLE_ENTITY, wrong),
                None => confirm(login, &manifest, &call.query("state").unwrap_or_default()),
            }
        }
        ("POST", ["organizations", login, "settings", "apps"]) if *login == shared.organization => {
            let manifest: Value = serde_json::from_str(&form("manifest").unwrap_or_default()).unwrap_or_default();
            create(shared, &manifest, &form("state").unwrap_or_default())
        }
        ("GET", ["apps", slug, "installations", "new"]) => Html(format!(
            "<!doctype html><title>Install</title><form method=post action='/apps/{slug}/installations'>\
             <button id=install>Install</button></form>"
        ))
        .into_response(),
        ("POST", ["apps", slug, "installations"]) => {
            match shared.state().apps.iter_mut().find(|app| app.slug == *slug) {
                Some(app) => {
                    app.installed = true;
                    said(StatusCode::OK, "installed")
                }
                None => said(StatusCode::NOT_FOUND, "no such App"),
            }
        }
        _ => return None,
    })
}

fn said(status: StatusCode, what: &str) -> Response {
    (status, Html(format!("<!doctype html><title>{what}</title><p id=said>{what}"))).into_response()
}

/// What GitHub would not take.
fn wrong(manifest: &Value) -> Option<&'static str> {
    let text = |key: &str| manifest[key].as_str().unwrap_or_default();
    if text("url").is_empty() {
        return Some("Url can't be blank");
    }
    if text("name").chars().count() > MOST_CHARACTERS {
        return Some("Name is too long (maximum is 34 characters)");
    }
    manifest["hook_attributes"].as_object().filter(|hook| !hook.contains_key("url")).map(|_| "Hook url can't be blank")
}

/// The page on which the owner agrees.
fn confirm(login: &str, manifest: &str, state: &str) -> Response {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    Html(format!(
        "<!doctype html><title>Create GitHub App</title><form method=post action=\"/organizations/{login}/settings/apps\">\
         <input type=hidden name=manifest value=\"{}\"><input type=hidden name=state value=\"{}\">\
         <button id=create>Create GitHub App for {login}</button></form>",
        escaped(manifest),
        escaped(state)
    ))
    .into_response()
}

fn create(shared: &Shared, manifest: &Value, sent: &str) -> Response {
    // Made before the lock is held: it takes a while.
    let (pem, key) = state::generate_pem();
    let mut state = shared.state();
    let client_id = format!("Iv23li{}", random(10).replace(['-', '_'], "x"));
    let name = manifest["name"].as_str().unwrap_or("unnamed");
    let id = 991_000 + state.apps.len() as u64;
    let app = App {
        id,
        client_id: client_id.clone(),
        slug: name.to_lowercase().replace(' ', "-"),
        owner: shared.organization.clone(),
        installed: false,
        keys: vec![key],
    };
    state.apps.push(app);
    let code = random(20);
    let until = state.now() + CODE_SECS;
    state.registrations.insert(code.clone(), Registration { client_id, pem, until });
    let Ok(mut to) = url::Url::parse(manifest["redirect_url"].as_str().unwrap_or_default()) else {
        return said(StatusCode::UNPROCESSABLE_ENTITY, "no redirect_url");
    };
    to.query_pairs_mut().append_pair("code", &code).append_pair("state", sent);
    (StatusCode::FOUND, [(header::LOCATION, to.to_string())]).into_response()
}

/// `POST /app-manifests/{code}/conversions`.
pub(super) fn convert(shared: &Shared, state: &mut State, code: &str) -> Answered {
    let now = state.now();
    let Some(Registration { client_id, pem, .. }) =
        state.registrations.remove(code).filter(|registration| registration.until > now)
    else {
        return no(404, "Not Found");
    };
    let Some(app) = state.apps.iter().find(|app| app.client_id == client_id) else { return no(404, "Not Found") };
    let mut body = bodies::app(app, &json!({ app::PERMISSION: "write" }));
    body["html_url"] = format!("{}/apps/{}", shared.url(), app.slug).into();
    for (key, value) in [("pem", pem), ("client_secret", random(20)), ("webhook_secret", random(20))] {
        body[key] = value.into();
    }
    Ok(ok(201, &body))
}
