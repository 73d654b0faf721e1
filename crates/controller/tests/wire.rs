//! The controller's port on GitHub over a real socket, against an emulator of the scale set service that nobody here wrote
//! (the crate `scaleset`), and a few answers that it does not give.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, Uri};
use kiln_controller::clock::{Clock, Timestamp};
use kiln_controller::documents::{Control, FORMAT, LaunchSettings, Settings};
use kiln_controller::github::GithubQueue;
use kiln_controller::ids::{FleetName, InstanceId, MessageId, RequestId, RunnerId, RunnerName, ScaleSetId};
use kiln_controller::intents::IntentFile;
use kiln_controller::ports::{
    Document, Etag, Jit, JobEvent, Launch, Launched, Machine, Machines, MachinesError, Polled, Queue, QueueError, Read,
    Removal, Runner, ScaleSetSpec, Session, Store, StoreError,
};
use kiln_controller::reconcile::Controller;
use kiln_github::scale_set::{ClientInfo, ScaleSetClient};
use kiln_github::{AppSigner, BoxFuture, OrgClient, SignError};
use scaleset::testing::{Emulator, Endpoint, Fault, JobState};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use url::Url;

/// The emulator looks at a JWT's form, not at its signature.
#[derive(Debug)]
struct Signer;

impl AppSigner for Signer {
    fn sign<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>> {
        Box::pin(async { Ok(vec![1; 256]) })
    }
}

const INSTALLATION: i64 = 7;

fn queue(api: &str, config: &str) -> GithubQueue {
    let (api, config) = (Url::parse(api).unwrap(), Url::parse(config).unwrap());
    let org = OrgClient::new(&api, "kiln", "Iv1.test".to_owned(), Arc::new(Signer), "org", Some(7)).unwrap();
    let part = |text: &str| text.to_owned();
    let info = ClientInfo { system: part("kiln"), version: part("0"), subsystem: part("controller") };
    GithubQueue(ScaleSetClient::new(&api, &config, &info, org).unwrap())
}

fn of(emulator: &Emulator) -> GithubQueue {
    queue(&format!("{}/api/v3", emulator.uri()), &emulator.config_url())
}

async fn emulator(run: Option<Duration>) -> Emulator {
    let builder = Emulator::builder().github_app(INSTALLATION).long_poll(Duration::from_millis(100));
    match run {
        Some(duration) => builder.auto_run_jobs(duration).start().await,
        None => builder.start().await,
    }
}

fn spec() -> ScaleSetSpec {
    ScaleSetSpec { name: "linux".to_owned(), group: 1, labels: vec!["linux".to_owned(), "arm64".to_owned()] }
}

fn five() -> NonZeroU32 {
    NonZeroU32::new(5).unwrap()
}

#[tokio::test]
async fn a_job_goes_from_the_queue_to_a_runner() {
    let emulator = emulator(None).await;
    let queue = of(&emulator);
    let set = queue.ensure_set(&spec()).await.unwrap();
    assert_eq!(queue.ensure_set(&spec()).await.unwrap(), set, "it is found again");
    let labels = &emulator.state().scale_sets[0].labels;
    assert_eq!(labels.iter().map(|label| label.name.as_str()).collect::<Vec<_>>(), ["linux", "arm64"]);

    let session = queue.open(set, "here").await.unwrap();
    assert_eq!(queue.open(set, "there").await.unwrap_err(), QueueError::Conflict);
    assert!(matches!(queue.poll(&session, None, five()).await, Ok(Polled::Nothing)));

    let job = emulator.queue_job(set.0.into(), ["linux"]);
    let Polled::Message(message) = queue.poll(&session, None, five()).await.unwrap() else { panic!("no message") };
    assert_eq!(message.jobs, [JobEvent::Available(RequestId(job.get()))]);
    queue.acquire(&session, &[RequestId(job.get())]).await.unwrap();
    queue.acknowledge(&session, message.id).await.unwrap();
    queue.acknowledge(&session, message.id).await.unwrap();

    let name = RunnerName::new("linux-i-1");
    let jit = queue.register(set, &name).await.unwrap();
    assert!(!jit.config.expose_secret().is_empty());
    assert_eq!(queue.register(set, &name).await.unwrap_err(), QueueError::NameTaken);
    emulator.start_job(job, Some("linux-i-1"));
    assert_eq!(queue.remove(jit.runner).await.unwrap(), Removal::Busy);
    emulator.complete_job(job, None);
    assert_eq!(queue.remove(jit.runner).await.unwrap(), Removal::Gone);
    let idle = queue.register(set, &name).await.unwrap();
    assert_eq!(queue.remove(idle.runner).await.unwrap(), Removal::Removed);

    let polled = queue.poll(&session, Some(message.id), five()).await.unwrap();
    let Polled::Message(message) = polled else { panic!("no message") };
    assert_eq!(message.statistics.unwrap().assigned, 0);
    assert!(message.jobs.iter().any(|job| matches!(job, JobEvent::Started(_, runner) if *runner == name)));
    assert!(message.jobs.iter().any(|job| matches!(job, JobEvent::Completed(_, Some(runner)) if *runner == name)));
    queue.close(&session).await.unwrap();
    let capacities = emulator.requests_to(Endpoint::GetMessage).into_iter().map(|request| request.max_capacity);
    assert!(capacities.into_iter().all(|capacity| capacity == Some(5)));
    let agents = emulator.requests().into_iter().filter_map(|request| request.user_agent);
    assert!(agents.into_iter().any(|agent| agent.contains("\"system\":\"kiln\"")));
}

#[tokio::test]
async fn tokens_and_sessions_that_end_are_told_apart() {
    let emulator = emulator(None).await;
    let queue = of(&emulator);
    let set = queue.ensure_set(&spec()).await.unwrap();
    let session = queue.open(set, "here").await.unwrap();
    emulator.expire_queue_token(set.0.into());
    assert_eq!(queue.poll(&session, None, five()).await.unwrap_err(), QueueError::TokenExpired);
    let session = queue.refresh(&session).await.unwrap();
    assert!(matches!(queue.poll(&session, None, five()).await, Ok(Polled::Nothing)));

    emulator.expire_admin_tokens();
    queue.register(set, &RunnerName::new("r")).await.unwrap();

    emulator.expire_session(set.0.into());
    assert_eq!(queue.poll(&session, None, five()).await.unwrap_err(), QueueError::SessionGone);
    assert_eq!(queue.refresh(&session).await.unwrap_err(), QueueError::SessionGone);
    assert_eq!(queue.close(&session).await.unwrap_err(), QueueError::SessionGone);
    assert_eq!(queue.open(ScaleSetId(1), "here").await.unwrap_err(), QueueError::SetGone);

    emulator.inject(Fault::too_many_requests(Endpoint::GenerateJitConfig, Some(Duration::from_secs(9))).times(1));
    let error = queue.register(set, &RunnerName::new("s")).await.unwrap_err();
    assert_eq!(error, QueueError::Limited(Duration::from_secs(9)));
    emulator.inject(Fault::status(Endpoint::GetMessage, 503).times(1));
    assert!(matches!(queue.poll(&session, None, five()).await, Err(QueueError::Failed(_))));
}

/// A service as awkward as the real one: a base with a path, a mark before the answer, a token that is not known at once, a
/// queue with a query of its own, a success without a body, a list with words and numbers.
async fn awkward() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (seen, here) = (Arc::clone(&asked), base.clone());
    let mut unknown = 1;
    let state = Arc::new(Mutex::new(move |method: String, uri: Uri, headers: HeaderMap| {
        let header =
            |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let line = format!("{method} {uri} {} {}", header("authorization"), header("x-scalesetmaxcapacity"));
        seen.lock().unwrap().push(line);
        let (ok, marked) = (StatusCode::OK, |text: &str| format!("\u{feff}{text}"));
        match uri.path() {
            "/app/installations/7/access_tokens" => {
                (StatusCode::CREATED, r#"{"token":"inst","expires_at":"2030-01-01T00:00:00Z"}"#.to_owned())
            }
            "/orgs/org/actions/runners/registration-token" => {
                (StatusCode::CREATED, r#"{"token":"reg","expires_at":"2030-01-01T00:00:00Z"}"#.to_owned())
            }
            "/actions/runner-registration" if unknown > 0 => {
                unknown -= 1;
                (StatusCode::UNAUTHORIZED, "{}".to_owned())
            }
            "/actions/runner-registration" => {
                (ok, format!(r#"{{"url":"{here}/tenant/rest/","token":"a.eyJleHAiOjQwMDAwMDAwMDB9.c"}}"#))
            }
            path if path.ends_with("/sessions") => (
                ok,
                marked(&format!(
                    r#"{{"sessionId":"s","messageQueueUrl":"{here}/queue/message?shard=3",
                    "messageQueueAccessToken":"queue"}}"#
                )),
            ),
            "/queue/message" => (ok, String::new()),
            "/queue/message/9" => (StatusCode::NO_CONTENT, String::new()),
            path if path.ends_with("/agents") => (
                ok,
                marked(
                    r#"{"count":3,"value":[{"id":1,"name":"a","runnerScaleSetId":4,"status":"online","busy":true},
                    {"id":2,"name":"b","runnerScaleSetId":4,"status":2},{"id":3,"name":"c","status":1}]}"#,
                ),
            ),
            _ => (StatusCode::NOT_FOUND, String::new()),
        }
    }));
    let app = axum::Router::new().fallback(move |method: axum::http::Method, uri: Uri, headers: HeaderMap| {
        let answer = (state.lock().unwrap())(method.to_string(), uri, headers);
        std::future::ready(answer)
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    (base, asked)
}

#[tokio::test]
async fn answers_that_are_awkward_are_understood() {
    let (base, asked) = awkward().await;
    let queue = queue(&base, &format!("{base}/org"));
    let set = ScaleSetId(4);
    let session = queue.open(set, "here").await.unwrap();
    assert!(matches!(queue.poll(&session, Some(MessageId(8)), five()).await, Ok(Polled::EmptyAnswer)));
    queue.acknowledge(&session, MessageId(9)).await.unwrap();
    let runners = queue.runners(set).await.unwrap();
    let shown: Vec<_> = runners.iter().map(|one| (one.name.as_str(), one.online, one.busy)).collect();
    assert_eq!(shown, [("a", true, true), ("b", true, false)], "the third one is another scale set's");
    let asked = asked.lock().unwrap();
    for line in [
        "GET /queue/message?shard=3&lastMessageId=8 Bearer queue 5",
        "DELETE /queue/message/9?shard=3 Bearer queue ",
        "GET /tenant/rest/_apis/distributedtask/pools/0/agents?api-version=6.0-preview Bearer a.eyJleHAiOjQwMDAwMDAwMDB9.c ",
    ] {
        assert!(asked.iter().any(|one| one == line), "{line} is missing in {asked:#?}");
    }
    let exchanges = asked.iter().filter(|line| line.contains("runner-registration")).collect::<Vec<_>>();
    assert_eq!(exchanges.len(), 2, "once more after the refusal, and never again");
    assert!(exchanges[0].contains("RemoteAuth reg"));
}

// ---- the whole controller over the wire ----

/// The emulator does not list runners, so that the list comes from its state.
struct Wire {
    queue: GithubQueue,
    emulator: Arc<Emulator>,
}

impl Wire {
    fn registered(&self) -> Vec<Runner> {
        let state = self.emulator.state();
        let runner = |one: &scaleset::testing::EmulatedRunner| Runner {
            id: RunnerId(one.id.get()),
            name: RunnerName::new(one.name.clone()),
            online: true,
            busy: one.job.is_some(),
        };
        state.runners.iter().map(runner).collect()
    }
}

impl Queue for Wire {
    async fn ensure_set(&self, spec: &ScaleSetSpec) -> Result<ScaleSetId, QueueError> {
        self.queue.ensure_set(spec).await
    }
    async fn open(&self, set: ScaleSetId, owner: &str) -> Result<Session, QueueError> {
        self.queue.open(set, owner).await
    }
    async fn refresh(&self, session: &Session) -> Result<Session, QueueError> {
        self.queue.refresh(session).await
    }
    async fn close(&self, session: &Session) -> Result<(), QueueError> {
        self.queue.close(session).await
    }
    async fn poll(
        &self,
        session: &Session,
        last: Option<MessageId>,
        capacity: NonZeroU32,
    ) -> Result<Polled, QueueError> {
        self.queue.poll(session, last, capacity).await
    }
    async fn acknowledge(&self, session: &Session, message: MessageId) -> Result<(), QueueError> {
        self.queue.acknowledge(session, message).await
    }
    async fn acquire(&self, session: &Session, jobs: &[RequestId]) -> Result<(), QueueError> {
        self.queue.acquire(session, jobs).await
    }
    async fn register(&self, set: ScaleSetId, name: &RunnerName) -> Result<Jit, QueueError> {
        self.queue.register(set, name).await
    }
    async fn remove(&self, runner: RunnerId) -> Result<Removal, QueueError> {
        self.queue.remove(runner).await
    }
    async fn runners(&self, _: ScaleSetId) -> Result<Vec<Runner>, QueueError> {
        Ok(self.registered())
    }
}

/// EC2 and the store, which are not what is tried here.
struct Rest {
    machines: Mutex<BTreeMap<InstanceId, Machine>>,
    documents: Mutex<BTreeMap<Document, (Etag, Vec<u8>)>>,
}

impl Machines for Rest {
    async fn launch(&self, launch: &Launch) -> Result<Launched, MachinesError> {
        let mut machines = self.machines.lock().unwrap();
        let ids = (0..launch.count).map(|_| {
            let id = InstanceId::new(format!("i-{}", machines.len()));
            let (fleet, token) = (launch.fleet.clone(), launch.token.clone());
            let machine = Machine { id: id.clone(), fleet, token, launched: Timestamp(0), version: 1, ending: false };
            machines.insert(id.clone(), machine);
            id
        });
        Ok(Launched { ids: ids.collect(), errors: Vec::new() })
    }
    async fn list(&self) -> Result<Vec<Machine>, MachinesError> {
        Ok(self.machines.lock().unwrap().values().cloned().collect())
    }
    async fn terminate(&self, _: &[InstanceId]) -> Result<(), MachinesError> {
        Ok(())
    }
}

impl Store for Rest {
    async fn hand_over(&self, _: &str, _: &InstanceId, _: &SecretString) -> Result<(), StoreError> {
        Ok(())
    }
    async fn take_back(&self, _: &str, _: &InstanceId) -> Result<(), StoreError> {
        Ok(())
    }
    async fn read(&self, document: Document, known: Option<&Etag>) -> Result<Read, StoreError> {
        Ok(match self.documents.lock().unwrap().get(&document) {
            None => Read::Missing,
            Some((etag, _)) if Some(etag) == known => Read::Unchanged,
            Some((etag, bytes)) => Read::Found(etag.clone(), bytes.clone()),
        })
    }
    async fn write(&self, document: Document, _: Option<&Etag>, bytes: Vec<u8>) -> Result<Etag, StoreError> {
        let mut documents = self.documents.lock().unwrap();
        let etag = Etag(bytes.len().to_string());
        documents.insert(document, (etag.clone(), bytes));
        Ok(etag)
    }
}

fn control(max: u32) -> Vec<u8> {
    let settings = Settings {
        set: spec(),
        min_idle: 0,
        max,
        version: 1,
        launch: LaunchSettings::default(),
        spot: false,
        paused: false,
        linger_secs: 120,
        boot_limit_secs: 240,
        max_age_secs: 86_400,
    };
    serde_json::to_vec(&Control { format: FORMAT, fleets: [(FleetName::new("linux"), settings)].into() }).unwrap()
}

/// One run: some jobs, some faults, the whole controller over the wire.
async fn one(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let emulator = Arc::new(emulator(Some(Duration::from_millis(rng.u64(1..300)))).await);
    let max = rng.u32(1..=5);
    let endpoints = [
        Endpoint::RegistrationToken,
        Endpoint::AdminConnection,
        Endpoint::ScaleSets,
        Endpoint::Sessions,
        Endpoint::GetMessage,
        Endpoint::DeleteMessage,
        Endpoint::AcquireJobs,
        Endpoint::GenerateJitConfig,
    ];
    // Each costs a pause in real time, and pauses double.
    for _ in 0..rng.u32(0..3) {
        let endpoint = *rng.choice(&endpoints).unwrap();
        let status = *rng.choice(&[500, 502, 503]).unwrap();
        emulator.inject(Fault::status(endpoint, status).times(1));
    }
    let folder = tempfile::tempdir().unwrap();
    let intents = IntentFile::open(&folder.path().join("intents")).unwrap();
    let rest = Arc::new(Rest { machines: Mutex::default(), documents: Mutex::default() });
    rest.documents.lock().unwrap().insert(Document::Control, (Etag("1".to_owned()), control(max)));
    let wire = Arc::new(Wire { queue: of(&emulator), emulator: Arc::clone(&emulator) });
    let controller = Controller::new(wire, Arc::clone(&rest), rest, intents, "here".to_owned(), Clock::start());
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(controller.run(stopped));

    let limit = Duration::from_secs(60);
    let state = emulator.wait_until(limit, |state| !state.sessions.is_empty()).await;
    let set = state.scale_sets[0].id;
    // No more than there may be runners, so that none has to wait for a machine to end.
    let count = rng.usize(1..=max as usize);
    for index in 0..count {
        emulator.queue_job(set, ["linux"]);
        match rng.u32(0..4) {
            0 if index == 0 => emulator.expire_admin_tokens(),
            1 if index == 0 => emulator.expire_queue_token(set),
            2 if index == 0 => emulator.expire_session(set),
            _ => {}
        }
    }
    let most = max as usize;
    let all = |state: &scaleset::testing::EmulatorState| {
        assert!(state.runners.len() <= most, "seed {seed}: {} runners, and {most} are the most", state.runners.len());
        state.jobs.iter().filter(|job| job.state == JobState::Completed).count() == count
    };
    emulator.wait_until(limit, all).await;
    stop.send_replace(true);
    running.await.unwrap();
    assert!(emulator.state().sessions.is_empty(), "seed {seed}: the session was not closed");
    let capacities = emulator.requests_to(Endpoint::GetMessage);
    assert!(capacities.iter().all(|one| one.max_capacity.is_some_and(|capacity| (1..=max).contains(&capacity))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_dozen_runs_over_the_wire() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..36 {
        runs.spawn(one(seed));
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}
