//! GitHub's own OpenAPI description, held against what the client sends and what the stand-in answers.
//!
//! `KILN_GITHUB_OPENAPI` names the description's file; `cargo xtask ci --only github-api` fetches it and runs this.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kiln_github::{AppKey, Bounds, Deleted, JitRequest, OrgClient};
use kiln_stand_ins::github::{GitHub, GitHubOptions};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

const ORGANIZATION: &str = "acme";

/// A request and its answer.
#[derive(Debug)]
struct Exchange {
    method: String,
    uri: Uri,
    sent: Bytes,
    status: u16,
    answered: Bytes,
}

/// Between client and stand-in; keeps all that is said.
#[derive(Debug, Clone)]
struct Tap {
    upstream: String,
    client: reqwest::Client,
    heard: Arc<Mutex<Vec<Exchange>>>,
}

impl Tap {
    /// Gives itself and its address.
    async fn start(upstream: String) -> (Self, String) {
        let tap = Self { upstream, client: reqwest::Client::new(), heard: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(pass_on).with_state(tap.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (tap, address)
    }
}

async fn pass_on(State(tap): State<Tap>, method: Method, uri: Uri, mut headers: HeaderMap, sent: Bytes) -> Response {
    headers.remove("host");
    let url = format!("{}{uri}", tap.upstream);
    let request = tap.client.request(method.clone(), url).headers(headers).body(sent.clone());
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let answered = response.bytes().await.unwrap();
    tap.heard.lock().unwrap().push(Exchange {
        method: method.to_string(),
        uri,
        sent,
        status,
        answered: answered.clone(),
    });
    let mut response = (StatusCode::from_u16(status).unwrap(), answered).into_response();
    *response.headers_mut() = headers;
    response
}

/// The description, with OpenAPI 3.0's `nullable` said as JSON schema says it.
struct Description(Value);

impl Description {
    fn load() -> Self {
        let path = std::env::var_os("KILN_GITHUB_OPENAPI").expect("KILN_GITHUB_OPENAPI names the description");
        let mut description: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        nullable(&mut description);
        Self(description)
    }

    /// The template of a path, by literal parts first: `/runners/downloads` is not `/runners/{runner_id}`.
    fn template(&self, path: &str) -> Option<&str> {
        let parts: Vec<&str> = path.split('/').collect();
        let is_parameter = |part: &str| part.starts_with('{');
        let paths = self.0["paths"].as_object().unwrap();
        let fits = |template: &&String| {
            let template: Vec<&str> = template.split('/').collect();
            template.len() == parts.len() && template.iter().zip(&parts).all(|(t, p)| is_parameter(t) || t == p)
        };
        let parameters = |template: &&String| template.split('/').filter(|part| is_parameter(part)).count();
        paths.keys().filter(fits).min_by_key(parameters).map(String::as_str)
    }

    /// A value in it, with a reference followed.
    fn followed<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.0.pointer(reference.trim_start_matches('#')).unwrap(),
            None => value,
        }
    }

    /// What of a document is not as a schema says.
    fn faults(&self, what: &str, schema: &Value, document: &[u8]) -> Vec<String> {
        let Ok(document) = serde_json::from_slice(document) else { return vec![format!("{what} is no JSON")] };
        let mut schema = schema.clone();
        // References are meant from the description's root.
        schema.as_object_mut().unwrap().insert("components".to_owned(), self.0["components"].clone());
        let validator = jsonschema::options().with_draft(jsonschema::Draft::Draft4).build(&schema).unwrap();
        validator.iter_errors(&document).map(|error| format!("{what}{}: {error}", error.instance_path())).collect()
    }

    /// What of an exchange the description does not know.
    fn held_against(&self, exchange: &Exchange) -> Vec<String> {
        let path = exchange.uri.path().trim_start_matches("/api/v3");
        let Some(template) = self.template(path) else { return vec!["there is no such path".to_owned()] };
        let operation = &self.0["paths"][template][exchange.method.to_lowercase()];
        if operation.is_null() {
            return vec![format!("{template} has no such method")];
        }
        let mut faults = Vec::new();
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let known: Vec<&str> = parameters
            .iter()
            .map(|parameter| self.followed(parameter))
            .filter(|parameter| parameter["in"] == "query")
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        let query = exchange.uri.query().unwrap_or_default();
        for (name, _) in url::form_urlencoded::parse(query.as_bytes()) {
            if !known.contains(&name.as_ref()) {
                faults.push(format!("it has no parameter {name}, but {known:?}"));
            }
        }
        let body = &operation["requestBody"]["content"]["application/json"]["schema"];
        match (body.is_null(), exchange.sent.is_empty()) {
            (true, false) => faults.push("it takes no body".to_owned()),
            (false, false) => faults.extend(self.faults("request", body, &exchange.sent)),
            (false, true) if operation["requestBody"]["required"] == true => {
                faults.push("a body is missing".to_owned());
            }
            (_, true) => {}
        }
        let answer = self.followed(&operation["responses"][exchange.status.to_string()]);
        let schema = &answer["content"]["application/json"]["schema"];
        match (answer.is_null(), schema.is_null()) {
            // Refusals that every call can meet are described in words only.
            (true, _) if exchange.status >= 400 => {
                let error = json!({ "$ref": "#/components/schemas/basic-error" });
                faults.extend(self.faults("answer", &error, &exchange.answered));
            }
            (true, _) => faults.push(format!("it does not answer {}", exchange.status)),
            (false, true) if exchange.answered.is_empty() => {}
            (false, true) => faults.push(format!("its {} has no body", exchange.status)),
            (false, false) => faults.extend(self.faults("answer", schema, &exchange.answered)),
        }
        faults
    }
}

fn nullable(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(nullable),
        Value::Object(fields) => {
            fields.values_mut().for_each(nullable);
            if fields.get("nullable") == Some(&Value::Bool(true)) {
                fields.remove("nullable");
                let schema = Value::Object(std::mem::take(fields));
                *fields = Map::from_iter([("anyOf".to_owned(), json!([schema, { "type": "null" }]))]);
            }
        }
        _ => {}
    }
}

/// All that the operator's side and an instance ask of GitHub, refusals among it.
async fn talk(github: &GitHub, api: &str) {
    let key = Arc::new(AppKey::from_pem(github.generate_key().as_bytes()).unwrap());
    let bounds = Bounds { retries: 0, longest_pause: Duration::ZERO, ..Bounds::default() };
    let client = |installation, key: &Arc<AppKey>| {
        let api = api.parse().unwrap();
        let client =
            OrgClient::new(&api, "kiln-tests/0", github.client_id(), Arc::clone(key) as _, ORGANIZATION, installation);
        client.unwrap().with_bounds(bounds)
    };
    let organization = client(None, &key);
    organization.app().app().await.unwrap();
    organization.app().org_installation(ORGANIZATION).await.unwrap();
    organization.mint().await.unwrap();
    organization.registration_token().await.unwrap();
    organization.remove_token().await.unwrap();

    let labels = vec!["self-hosted".to_owned(), "linux".to_owned()];
    let request = |name: &str, runner_group_id| JitRequest {
        name: name.to_owned(),
        runner_group_id,
        labels: labels.clone(),
        work_folder: "_work".to_owned(),
    };
    let made = organization.generate_jit_config(&request("once-1", 1)).await.unwrap();
    organization.generate_jit_config(&request("once-1", 1)).await.unwrap_err();
    organization.generate_jit_config(&request("", 1)).await.unwrap_err();
    organization.generate_jit_config(&request("once-2", 77)).await.unwrap_err();

    let busy = github.simulate_runner("linux-1", &labels, "2.338.0", true);
    github.occupy(busy).unwrap();
    organization.runners(None).await.unwrap();
    organization.runners(Some("linux-1")).await.unwrap();
    organization.runner(busy).await.unwrap().unwrap();
    assert_eq!(organization.runner(4_000_000).await.unwrap(), None);
    assert_eq!(organization.delete_runner(busy).await.unwrap(), Deleted::Busy);
    assert_eq!(organization.delete_runner(made.runner.id).await.unwrap(), Deleted::Gone);
    assert_eq!(organization.delete_runner(made.runner.id).await.unwrap(), Deleted::Absent);

    let group = github.add_runner_group("linux");
    github.limit_runner_group("linux", Some(3), false);
    organization.runner_groups().await.unwrap();
    organization.runner_group_repositories(group).await.unwrap();
    github.publish("2.338.0", Duration::from_secs(86_400));
    github.announce_end("2.337.1", Some(Duration::from_secs(86_400)), None);
    organization.runner_downloads().await.unwrap();
    organization.runner_releases().await.unwrap();
    organization.runner_deprecation("2.337.1").await.unwrap();
    organization.runner_deprecation("2.338.0").await.unwrap();
    organization.runner_deprecation("9.9.9").await.unwrap();

    github.grant(false);
    client(None, &key).mint().await.unwrap_err();
    github.grant(true);
    github.suspend(true);
    client(None, &key).mint().await.unwrap_err();
    github.suspend(false);
    github.install(false);
    organization.app().org_installation(ORGANIZATION).await.unwrap_err();
    github.install(true);
    let others = Arc::new(AppKey::from_pem(github.other_apps_key().as_bytes()).unwrap());
    client(None, &others).app().app().await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs GitHub's OpenAPI description: `cargo xtask ci --only github-api` fetches it"]
async fn client_and_stand_in_speak_as_github_describes() {
    let description = Description::load();
    let github = GitHub::start(GitHubOptions::new(ORGANIZATION)).await.unwrap();
    let (tap, address) = Tap::start(github.url().trim_end_matches('/').to_owned()).await;
    talk(&github, &format!("{address}/api/v3")).await;

    let heard = std::mem::take(&mut *tap.heard.lock().unwrap());
    let faults: Vec<String> = heard
        .iter()
        .flat_map(|exchange| {
            let what = format!("{} {} -> {}", exchange.method, exchange.uri, exchange.status);
            description.held_against(exchange).into_iter().map(move |fault| format!("{what}: {fault}"))
        })
        .collect();
    assert_eq!(faults, [""; 0]);
    // The checker sees what it is for.
    let mut wrong = heard.into_iter().find(|exchange| exchange.uri.path().ends_with("/generate-jitconfig")).unwrap();
    wrong.sent = Bytes::from_static(br#"{"name":"a","labels":[]}"#);
    wrong.answered = Bytes::from_static(br#"{"runner":{"id":"1"}}"#);
    let faults = description.held_against(&wrong);
    for part in ["runner_group_id", "/labels", "encoded_jit_config", "/runner/id"] {
        assert!(faults.iter().any(|fault| fault.contains(part)), "{part} is not in {faults:#?}");
    }
}
