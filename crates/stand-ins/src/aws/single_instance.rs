//! AWS as one instance sees it: its group, and itself. Without the emulator, for tests of the binary alone.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request as HttpRequest, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::gateway::{self, Call, Refusal};
use super::groups::Groups;
use super::imds::{Imds, State};
use super::{auto_scaling, ec2, lock};

/// An instance's place in the world.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The instance.
    pub instance: &'a str,
    /// Its group.
    pub group: &'a str,
    /// The hook that waits for its registration.
    pub launch_hook: &'a str,
    /// The hook that waits for its last job.
    pub termination_hook: &'a str,
}

/// A running stand-in. Dropping it ends it.
#[derive(Debug)]
pub struct InstanceAws {
    url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    instance: String,
    imds: Arc<State>,
    groups: Mutex<Groups>,
    refusals: Mutex<Vec<Refusal>>,
    calls: Mutex<Vec<String>>,
}

impl Drop for InstanceAws {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl InstanceAws {
    /// Serves an instance, whose machine is the caller's, while its launch hook waits.
    ///
    /// # Errors
    /// No port can be opened.
    pub async fn start(imds: &Imds, place: Place<'_>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("open a port for an instance's AWS")?;
        let url = format!("http://{}", listener.local_addr()?);
        let hooks = [place.launch_hook, place.termination_hook];
        let shared = Arc::new(Shared {
            instance: place.instance.to_owned(),
            imds: imds.state(),
            groups: Mutex::new(Groups::of_one(place.group, hooks, place.instance)),
            refusals: Mutex::default(),
            calls: Mutex::default(),
        });
        let app = Router::new().fallback(handle).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            // Ends only with the task.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { url, shared, task })
    }

    /// What `AWS_ENDPOINT_URL` is set to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Begins the instance's end, as `TerminateInstanceInAutoScalingGroup` would.
    pub fn terminate(&self) {
        let _ = lock(&self.shared.groups).terminate(&self.shared.instance);
        self.shared.tell_metadata();
    }

    /// How long from now on the group refuses to be told of the launch, and later of the end: it does not wait yet.
    pub fn wait_late(&self, launch: Duration, termination: Duration) {
        if let Some(instance) = lock(&self.shared.groups).instance(&self.shared.instance) {
            instance.late_hooks = [launch, termination];
        }
    }

    /// The instance's lifecycle state, such as `Terminating:Wait`.
    pub fn state(&self) -> String {
        let views = lock(&self.shared.groups).views();
        views.into_iter().next().map(|view| view.state).unwrap_or_default()
    }

    /// The next calls of this operation are refused.
    pub fn refuse(&self, refusal: Refusal) {
        lock(&self.shared.refusals).push(refusal);
    }

    /// How many calls of this operation there were.
    pub fn count(&self, operation: &str) -> usize {
        lock(&self.shared.calls).iter().filter(|call| *call == operation).count()
    }
}

impl Shared {
    /// The metadata service says what the group wants.
    fn tell_metadata(&self) {
        let target = lock(&self.groups).target_state(&self.instance);
        self.imds.want(target);
    }
}

async fn handle(Extract(shared): Extract<Arc<Shared>>, request: HttpRequest) -> Response {
    let Some(call) = Call::read(request).await else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    lock(&shared.calls).push(call.operation.clone());
    let session = call.headers.get("x-amz-security-token").and_then(|token| token.to_str().ok());
    if !session.is_some_and(|session| shared.imds.issued(session)) {
        return gateway::refusal(&call, "ExpiredToken");
    }
    if let Some(code) = gateway::told_to_refuse(&shared.refusals, &call) {
        return gateway::refusal(&call, code);
    }
    match call.service.as_str() {
        "autoscaling" => {
            let answer = auto_scaling::answer_to(&mut lock(&shared.groups), &call);
            // The group replaces what it is told to be unhealthy.
            if call.operation == "SetInstanceHealth" {
                let _ = lock(&shared.groups).terminate(&shared.instance);
            }
            shared.tell_metadata();
            answer
        }
        "ec2" if ec2::is_ours(&call) => {
            ec2::handle(&call, |id| (id == shared.instance).then(|| Arc::clone(&shared.imds)))
        }
        _ => gateway::refusal(&call, "InvalidAction"),
    }
}
