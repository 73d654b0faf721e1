//! The shipped program at the wire: jobs are queued, instances come, and all is gone again; killed in the middle, too.
//!
//! GitHub is the emulator of the crate `scaleset`, with the one answer that it lacks, the list of runners, added in front. AWS
//! is the stand-in of EC2 Fleet and of the bucket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use kiln_config::boot::{CONTROL_KEY, STATUS_KEY, hand_over_key};
use kiln_controller::documents::{Control, FORMAT, LaunchSettings, Settings, Status};
use kiln_controller::ids::FleetName;
use kiln_controller::ports::ScaleSetSpec;
use kiln_stand_ins::aws::{FleetAws, FleetOptions, Imds, ImdsOptions, Pool};
use kiln_stand_ins::github::{GitHub, GitHubOptions};
use scaleset::testing::Emulator;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

const CONTROLLER: &str = "i-0c000000000000001";
const ROLE: &str = "AROASTANDIN";
const BUCKET: &str = "control";
const FLEETS: [&str; 2] = ["linux", "arm"];

/// Seconds of work; two minutes are for a machine under load.
const SOON: Duration = Duration::from_secs(120);

/// The emulator, with a list of its runners.
struct Front {
    emulator: Arc<Emulator>,
    http: reqwest::Client,
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Front {
    async fn start(emulator: Arc<Emulator>) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Arc::new_cyclic(|front: &std::sync::Weak<Self>| {
            let state = front.clone();
            let app = Router::new().fallback(pass).with_state(state);
            let task = tokio::spawn(async move {
                let _ = axum::serve(listener, app).await;
            });
            Self { emulator, http: reqwest::Client::new(), url, task }
        })
    }

    /// What the emulator does not answer.
    fn runners(&self) -> Response {
        let runner = |one: &scaleset::testing::EmulatedRunner| {
            json!({ "id": one.id.get(), "name": one.name, "runnerScaleSetId": one.scale_set_id.get(),
                    "status": "online", "busy": one.job.is_some() })
        };
        let runners: Vec<_> = self.emulator.state().runners.iter().map(runner).collect();
        axum::Json(json!({ "count": runners.len(), "value": runners })).into_response()
    }
}

async fn pass(State(front): State<std::sync::Weak<Front>>, request: Request) -> Response {
    let Some(front) = front.upgrade() else { return StatusCode::BAD_GATEWAY.into_response() };
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    if parts.method == "GET" && parts.uri.path().ends_with("/agents") && !path.contains("agentName") {
        return front.runners();
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let mut passed = front.http.request(parts.method, format!("{}{path}", front.emulator.uri())).body(body);
    for (name, value) in parts.headers.iter().filter(|(name, _)| **name != header::HOST) {
        passed = passed.header(name, value);
    }
    let Ok(answer) = passed.send().await else { return StatusCode::BAD_GATEWAY.into_response() };
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        if !["content-length", "transfer-encoding"].contains(&name.as_str()) {
            response = response.header(name, value);
        }
    }
    // Its own addresses lead past this front.
    let text = answer.text().await.unwrap_or_default().replace(&front.emulator.uri(), &front.url);
    response.body(Body::from(text)).unwrap()
}

/// A controller's instance, with what it talks to.
struct There {
    front: Arc<Front>,
    fleets: Arc<FleetAws>,
    imds: Imds,
    root: tempfile::TempDir,
    machines: JoinHandle<()>,
}

impl Drop for There {
    fn drop(&mut self) {
        self.machines.abort();
    }
}

async fn there(max: u32) -> There {
    let builder = Emulator::builder().github_app(7).long_poll(Duration::from_millis(200));
    let emulator = Arc::new(builder.auto_run_jobs(Duration::from_millis(300)).start().await);
    let front = Front::start(Arc::clone(&emulator)).await;
    let (bucket, role_id) = (BUCKET.to_owned(), ROLE.to_owned());
    let options = FleetOptions { bucket, role_id, controller: CONTROLLER.to_owned() };
    let fleets = Arc::new(FleetAws::start(options).await.unwrap());
    fleets.put(CONTROL_KEY, control(max));
    let root = tempfile::tempdir().unwrap();
    // The emulator does not look at what signed; the key is any.
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let key = root.path().join("app.pem");
    std::fs::write(&key, github.generate_key()).unwrap();
    let user_data = json!({ "format": 1, "controller": {
        "organization": "acme",
        "github": { "api_url": format!("{}/api/v3", front.url), "url": front.url },
        "app": { "issuer": "Iv1.test", "installation_id": 7 },
        "key": { "file": key.to_str().unwrap() },
        "bucket": BUCKET, "region": "eu-central-1",
    } });
    let options = ImdsOptions {
        instance: CONTROLLER.to_owned(),
        ami: "ami-1".to_owned(),
        user_data: Some(user_data.to_string()),
        target: Box::new(|| None),
    };
    let imds = Imds::start(options).await.unwrap();
    let machines = tokio::spawn(live(Arc::clone(&fleets), emulator));
    There { front, fleets, imds, root, machines }
}

fn control(max: u32) -> Vec<u8> {
    let settings = |name: &str| Settings {
        set: ScaleSetSpec { name: name.to_owned(), group: 1, labels: vec![name.to_owned()] },
        min_idle: 0,
        max,
        version: 3,
        launch: LaunchSettings {
            template: "lt-0a".to_owned(),
            types: vec!["m7i.large".to_owned()],
            subnets: vec!["subnet-0a".to_owned(), "subnet-0b".to_owned()],
            role_id: ROLE.to_owned(),
        },
        spot: true,
        paused: false,
        linger_secs: 1,
        boot_limit_secs: 240,
        max_age_secs: 86_400,
    };
    let fleets = FLEETS.map(|name| (FleetName::new(name), settings(name)));
    serde_json::to_vec(&Control { format: FORMAT, fleets: fleets.into() }).unwrap()
}

/// The machines: each takes its configuration, and switches itself off once its runner is gone. The emulator's runners work
/// from the moment they are registered, so that a machine that is slow to look may find its configuration taken back already.
async fn live(fleets: Arc<FleetAws>, emulator: Arc<Emulator>) {
    loop {
        let handed = |id: &str| {
            let key = hand_over_key(&format!("{ROLE}:{id}"));
            (fleets.count(&format!("PUT /{BUCKET}/{key}")) > 0).then_some(key)
        };
        let alive = fleets.instances().into_iter().filter(|one| one.alive);
        let serving: Vec<_> = alive.filter_map(|one| Some((handed(&one.id)?, one.id))).collect();
        // A runner is there before its configuration.
        let state = emulator.state();
        for (key, id) in serving {
            fleets.delete(&key);
            if !state.runners.iter().any(|runner| runner.name.ends_with(&id)) {
                fleets.power_off(&id);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The program, and what it says.
struct Running {
    child: Child,
    log: JoinHandle<Vec<String>>,
}

impl Running {
    async fn end(mut self) -> (Option<i32>, Vec<String>) {
        let status = tokio::time::timeout(SOON, self.child.wait()).await.unwrap().unwrap();
        (status.code(), self.log.await.unwrap())
    }

    async fn stop(self) -> (Option<i32>, Vec<String>) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        let status = std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status().unwrap();
        assert!(status.success());
        self.end().await
    }

    async fn kill(mut self) -> Vec<String> {
        self.child.start_kill().unwrap();
        self.end().await.1
    }
}

impl There {
    fn start(&self) -> Running {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiln-controller"))
            .arg("--root")
            .arg(self.root.path())
            .env_clear()
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.imds.url())
            .env("AWS_ENDPOINT_URL", self.fleets.url())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = tokio::spawn(async move {
            let mut log = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                log.push(line);
            }
            log
        });
        Running { child, log }
    }

    /// Queues jobs for a fleet once its scale set is there.
    async fn queue(&self, fleet: &str, jobs: usize) {
        let named = |state: &scaleset::testing::EmulatorState| {
            let set = state.scale_sets.iter().find(|set| set.name == fleet).map(|set| set.id);
            set.is_some_and(|set| state.sessions.iter().any(|session| session.scale_set_id == set))
        };
        let state = self.front.emulator.wait_until(SOON, named).await;
        let set = state.scale_sets.iter().find(|set| set.name == fleet).unwrap().id;
        for _ in 0..jobs {
            self.front.emulator.queue_job(set, [fleet]);
        }
    }

    /// All jobs are done, and never were there too many runners.
    async fn all_done(&self, jobs: usize, max: usize) {
        let done = |state: &scaleset::testing::EmulatorState| {
            for set in &state.scale_sets {
                let runners = state.runners.iter().filter(|runner| runner.scale_set_id == set.id).count();
                assert!(runners <= max, "{runners} runners of {}, and {max} are the most", set.name);
            }
            state.jobs.iter().filter(|job| job.state == scaleset::testing::JobState::Completed).count() == jobs
        };
        self.front.emulator.wait_until(SOON, done).await;
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let look = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let found = tokio::time::timeout(SOON, look).await;
        assert!(found.is_ok(), "{what}: {:#?}", self.fleets.instances());
    }

    fn at_rest(&self) -> bool {
        let gone = self.fleets.instances().iter().all(|one| !one.alive);
        gone && self.front.emulator.state().runners.is_empty() && self.fleets.keys().len() <= 2
    }

    fn status(&self) -> Status {
        serde_json::from_slice(&self.fleets.object(STATUS_KEY).unwrap()).unwrap()
    }
}

/// Two fleets, one process: nothing, a burst of jobs, nothing. Asked to end, it closes its sessions and says so in the status.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_nothing_to_a_burst_to_nothing() {
    let there = there(3).await;
    let running = there.start();
    there.fleets.set_pool("m7i.large", "subnet-0a", Pool { left: 1, code: "InsufficientInstanceCapacity" });
    for fleet in FLEETS {
        there.queue(fleet, 3).await;
    }
    there.all_done(6, 3).await;
    there.until("all is gone again", There::at_rest).await;
    let instances = there.fleets.instances();
    assert_eq!(instances.iter().filter(|one| one.tags["kiln:fleet"] == "linux").count(), 3, "{instances:#?}");
    assert!(instances.iter().all(|one| one.tags["kiln:organization"] == "kiln-acme" && one.market == "spot"));

    let (code, log) = running.stop().await;
    assert_eq!(code, Some(0), "{log:#?}");
    assert!(there.front.emulator.state().sessions.is_empty(), "the sessions are closed: {log:#?}");
    let status = there.status();
    assert!(FLEETS.iter().all(|fleet| status.fleets[&FleetName::new(*fleet)].closed), "{status:#?}");
    for line in &log {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["at_ms"].is_u64() && line["phase"].is_string(), "{line}");
    }
    assert!(!log.iter().any(|line| line.contains("eyJ") || line.contains("PRIVATE KEY")), "{log:#?}");
}

/// Killed while EC2's answer to a launch is under way, and while the new instances are not listed yet: what was asked for is
/// counted by the next process, which goes on without more than the maximum.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_it_never_has_too_many() {
    let there = there(2).await;
    there.fleets.list_late(Duration::from_secs(8));
    there.fleets.lose_answers(1);
    let first = there.start();
    there.queue("linux", 2).await;
    there.until("a launch", |there| !there.fleets.instances().is_empty()).await;
    first.kill().await;
    // As the session of a process that was killed ends at GitHub.
    for set in there.front.emulator.state().scale_sets {
        there.front.emulator.expire_session(set.id);
    }
    let second = there.start();
    there.all_done(2, 2).await;
    there.until("all is gone again", There::at_rest).await;
    let (code, log) = second.stop().await;
    assert_eq!(code, Some(0), "{log:#?}");
    assert!(there.fleets.most_alive() <= 2, "{} instances at once: {log:#?}", there.fleets.most_alive());
}

#[tokio::test]
async fn a_runners_instance_is_not_taken_for_the_controllers() {
    let root = tempfile::tempdir().unwrap();
    let options = ImdsOptions {
        instance: "i-1".to_owned(),
        ami: "ami-1".to_owned(),
        user_data: Some("{\"format\":1}".to_owned()),
        target: Box::new(|| None),
    };
    let imds = Imds::start(options).await.unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kiln-controller"))
        .arg("--root")
        .arg(root.path())
        .env_clear()
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url())
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not one of `on_demand` and `controller`"));
}
