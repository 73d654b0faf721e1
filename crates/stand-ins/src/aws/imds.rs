//! An instance's metadata service, version 2 only.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State as Extract};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{ACCOUNT, INSTANCE_KEY, REGION, lock};
use crate::github::stamp;

/// An address of its own, as the real one has, by which a firewall's rule can tell it from all else.
pub const ADDRESS: &str = "127.0.0.254";

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
pub(super) struct State {
    options: ImdsOptions,
    tags: Mutex<BTreeMap<String, String>>,
    sessions: Mutex<Sessions>,
    spot: Mutex<Option<SystemTime>>,
    /// What Auto Scaling wants, where it is not asked by the options.
    wanted: Mutex<Option<&'static str>>,
    rebalance: Mutex<bool>,
    faults: Mutex<VecDeque<ImdsFault>>,
}

/// The role's credentials, each with a session token of its own.
#[derive(Debug)]
struct Sessions {
    /// How long they are valid.
    valid: Duration,
    /// When each one given out so far expires.
    expiries: Vec<SystemTime>,
}

impl Default for Sessions {
    fn default() -> Self {
        // As EC2's.
        Self { valid: Duration::from_secs(6 * 3600), expiries: Vec::new() }
    }
}

impl Sessions {
    /// The newest one's token and expiry. There is a newer one when a third of its time is over.
    fn newest(&mut self, instance: &str) -> (String, SystemTime) {
        let now = SystemTime::now();
        let fresh = self.expiries.last().is_some_and(|expiry| *expiry > now + self.valid * 2 / 3);
        if !fresh {
            self.expiries.push(now + self.valid);
        }
        (token(instance, self.expiries.len() - 1), *self.expiries.last().unwrap_or(&now))
    }
}

/// A session's token says whose it is, so that a stand-in of several instances can tell them apart.
fn token(instance: &str, index: usize) -> String {
    format!("session-{instance}-{index}")
}

/// The instance that a session is of.
pub(super) fn instance_of(session: &str) -> Option<String> {
    let (instance, _) = session.strip_prefix("session-")?.rsplit_once('-')?;
    Some(instance.to_owned())
}

impl State {
    /// From now on Auto Scaling wants this.
    pub(super) fn want(&self, target: Option<&'static str>) {
        *lock(&self.wanted) = target;
    }

    pub(super) fn tag(&self, key: String, value: String) {
        lock(&self.tags).insert(key, value);
    }

    pub(super) fn tags(&self) -> BTreeMap<String, String> {
        lock(&self.tags).clone()
    }

    /// Is it the token of credentials that are valid now?
    pub(super) fn issued(&self, session: &str) -> bool {
        let now = SystemTime::now();
        lock(&self.sessions)
            .expiries
            .iter()
            .enumerate()
            .any(|(i, expiry)| *expiry > now && token(&self.options.instance, i) == session)
    }
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
        let listener = TcpListener::bind((ADDRESS, 0)).await.context("open a port for the metadata service")?;
        Self::start_at(options, listener)
    }

    /// Serves it where that listener listens.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn start_at(options: ImdsOptions, listener: TcpListener) -> anyhow::Result<Self> {
        let url = format!("http://{}", listener.local_addr()?);
        let state = Arc::new(State {
            options,
            tags: Mutex::default(),
            sessions: Mutex::default(),
            spot: Mutex::default(),
            wanted: Mutex::default(),
            rebalance: Mutex::default(),
            faults: Mutex::default(),
        });
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

    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// The tags that the instance has been given since its launch.
    pub fn tags(&self) -> BTreeMap<String, String> {
        self.state.tags()
    }

    /// EC2 takes the spot instance back in two minutes.
    pub fn interrupt_spot(&self) {
        *lock(&self.state.spot) = Some(SystemTime::now() + Duration::from_secs(120));
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
        "meta-data/autoscaling/target-lifecycle-state" => (*lock(&state.wanted)).or_else(target)?.to_owned(),
        // source: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
        "meta-data/spot/instance-action" => {
            let time = (*lock(&state.spot))?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            json!({ "action": "terminate", "time": stamp(time.as_secs()) }).to_string()
        }
        "meta-data/events/recommendations/rebalance" if *lock(&state.rebalance) => {
            json!({ "noticeTime": "2026-01-01T00:00:00Z" }).to_string()
        }
        "user-data" => user_data.clone()?,
        "dynamic/instance-identity/document" => {
            json!({ "instanceId": instance, "region": REGION, "accountId": ACCOUNT, "imageId": ami }).to_string()
        }
        "meta-data/iam/security-credentials" => ROLE.to_owned(),
        "meta-data/iam/security-credentials/kiln-runner" => {
            let (session, expiry) = lock(&state.sessions).newest(instance);
            let expiry = expiry.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            json!({
                "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
                "AccessKeyId": INSTANCE_KEY, "SecretAccessKey": "instance", "Token": session,
                "Expiration": stamp(expiry),
            })
            .to_string()
        }
        _ => return None,
    })
}
