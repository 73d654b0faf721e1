//! An instance's metadata service, version 2 only.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State as Extract};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{ACCOUNT, INSTANCE_KEY, REGION, Shared, lock};

const TOKEN: &str = "imds-session-token";
const ROLE: &str = "kiln-runner";

struct Instance {
    shared: Arc<Shared>,
    id: String,
    ami: String,
    user_data: String,
}

/// Serves an instance's metadata on a port of its own.
pub(super) async fn serve(
    shared: Arc<Shared>,
    id: String,
    ami: String,
    user_data: String,
) -> anyhow::Result<(String, JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let state = Arc::new(Instance { shared, id, ami, user_data });
    let app = Router::new().fallback(answer).with_state(state);
    let task = tokio::spawn(async move {
        let _ = axum::serve(listener, app).await;
    });
    Ok((endpoint, task))
}

async fn answer(Extract(instance): Extract<Arc<Instance>>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches("/latest/").trim_end_matches('/').to_owned();
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if request.method() == Method::PUT && path == "api/token" {
        let Some(ttl) = header("x-aws-ec2-metadata-token-ttl-seconds") else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        return ([("x-aws-ec2-metadata-token-ttl-seconds", ttl.to_owned())], TOKEN).into_response();
    }
    if header("x-aws-ec2-metadata-token") != Some(TOKEN) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    match value(&instance, &path) {
        Some(value) => value.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn value(instance: &Instance, path: &str) -> Option<String> {
    Some(match path {
        "meta-data/instance-id" => instance.id.clone(),
        "meta-data/ami-id" => instance.ami.clone(),
        "meta-data/placement/region" => REGION.to_owned(),
        "meta-data/placement/availability-zone" => format!("{REGION}a"),
        "meta-data/autoscaling/target-lifecycle-state" => {
            lock(&instance.shared.groups).target_state(&instance.id)?.to_owned()
        }
        "user-data" => instance.user_data.clone(),
        "dynamic/instance-identity/document" => {
            json!({ "instanceId": instance.id, "region": REGION, "accountId": ACCOUNT, "imageId": instance.ami })
                .to_string()
        }
        "meta-data/iam/security-credentials" => ROLE.to_owned(),
        "meta-data/iam/security-credentials/kiln-runner" => json!({
            "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
            "AccessKeyId": INSTANCE_KEY, "SecretAccessKey": "instance", "Token": "session",
            "Expiration": "2099-01-01T00:00:00Z",
        })
        .to_string(),
        _ => return None,
    })
}
