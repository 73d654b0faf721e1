//! An instance's metadata service, version 2 only.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State as Extract};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{ACCOUNT, INSTANCE_KEY, REGION, lock};

const TOKEN: &str = "imds-session-token";
const ROLE: &str = "kiln-runner";

/// What Auto Scaling wants an instance to become, such as `Terminated`; `None` where it wants nothing yet.
type Target = Box<dyn Fn() -> Option<&'static str> + Send + Sync>;

/// What an instance is.
pub struct ImdsOptions {
    /// Its id.
    pub instance: String,
    /// Its image.
    pub ami: String,
    /// Its user data, if it has any.
    pub user_data: Option<String>,
    /// Asked at each look.
    pub target: Target,
}

impl fmt::Debug for ImdsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImdsOptions").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// How the service fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImdsFault {
    /// With a status.
    Status(u16),
    /// The answer comes late.
    Late(Duration),
}

/// A running service. Dropping it ends it.
#[derive(Debug)]
pub struct Imds {
    url: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    options: ImdsOptions,
    spot: Mutex<bool>,
    rebalance: Mutex<bool>,
    faults: Mutex<VecDeque<ImdsFault>>,
}

impl Drop for Imds {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Imds {
    /// Serves an instance's metadata on a port of its own.
    ///
    /// # Errors
    /// No port can be opened.
    pub async fn start(options: ImdsOptions) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("open a port for the metadata service")?;
        Self::start_at(options, listener)
    }

    /// Serves it where that listener listens.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn start_at(options: ImdsOptions, listener: TcpListener) -> anyhow::Result<Self> {
        let url = format!("http://{}", listener.local_addr()?);
        let (spot, rebalance, faults) = (Mutex::default(), Mutex::default(), Mutex::default());
        let state = Arc::new(State { options, spot, rebalance, faults });
        let app = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let task = tokio::spawn(async move {
            // Ends only with the task.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { url, state, task })
    }

    /// What `AWS_EC2_METADATA_SERVICE_ENDPOINT` is set to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// EC2 takes the spot instance back in two minutes.
    pub fn interrupt_spot(&self) {
        *lock(&self.state.spot) = true;
    }

    /// EC2 sees the spot instance at risk.
    pub fn recommend_rebalance(&self) {
        *lock(&self.state.rebalance) = true;
    }

    /// The next request fails so, after those told before.
    pub fn inject(&self, fault: ImdsFault) {
        lock(&self.state.faults).push_back(fault);
    }
}

async fn answer(Extract(state): Extract<Arc<State>>, request: Request) -> Response {
    let fault = lock(&state.faults).pop_front();
    match fault {
        Some(ImdsFault::Status(code)) => {
            return StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        }
        Some(ImdsFault::Late(late)) => tokio::time::sleep(late).await,
        None => {}
    }
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
    match value(&state, &path) {
        Some(value) => value.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn value(state: &State, path: &str) -> Option<String> {
    let ImdsOptions { instance, ami, user_data, target } = &state.options;
    Some(match path {
        "meta-data/instance-id" => instance.clone(),
        "meta-data/ami-id" => ami.clone(),
        "meta-data/placement/region" => REGION.to_owned(),
        "meta-data/placement/availability-zone" => format!("{REGION}a"),
        "meta-data/autoscaling/target-lifecycle-state" => target()?.to_owned(),
        "meta-data/spot/instance-action" if *lock(&state.spot) => {
            json!({ "action": "terminate", "time": "2026-01-01T00:02:00Z" }).to_string()
        }
        "meta-data/events/recommendations/rebalance" if *lock(&state.rebalance) => {
            json!({ "noticeTime": "2026-01-01T00:00:00Z" }).to_string()
        }
        "user-data" => user_data.clone()?,
        "dynamic/instance-identity/document" => {
            json!({ "instanceId": instance, "region": REGION, "accountId": ACCOUNT, "imageId": ami }).to_string()
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
