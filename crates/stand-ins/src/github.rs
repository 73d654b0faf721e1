//! A stand-in GitHub at the wire: the App, its installation, runners and jobs, as far as Kiln and a runner see them.
//!
//! It holds state, verifies signatures for real, answers with GitHub's own statuses and messages, and can be told to
//! fail. Below `/_runner` it speaks to the stand-in runner, in a protocol of its own: the real one is private.
//!
//! source: beside each rule, in the modules below.

mod api;
mod app;
mod bodies;
mod manifest;
mod organization;
mod release;
mod runners;
mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub(crate) use api::stamp;
pub use release::{Release, listener_path};
pub use state::{Answer, Conclusion, Fault, Job, JobId, JobSpec, JobState, KnownRunner, Recorded, Step};
use state::{Deprecation, RunnerGroup, State};

/// Where things are, and whose.
#[derive(Debug, Clone)]
pub struct GitHubOptions {
    /// The organization's login.
    pub organization: String,
    /// The stand-in runner's executable; [`listener_path`]'s when absent.
    pub listener: Option<PathBuf>,
    /// A job whose runner was silent this long is given up, about ten minutes at GitHub. Until then its runner is offline
    /// and busy, and can't be deleted.
    pub lease: Duration,
    /// How many POSTs to one path are answered in a minute, beyond which it is GitHub's secondary limit. 180 at GitHub: 900
    /// points, of which a POST takes five.
    pub posts_per_minute: Option<u32>,
}

impl GitHubOptions {
    /// For an organization.
    pub fn new(organization: &str) -> Self {
        Self {
            organization: organization.to_owned(),
            listener: None,
            lease: Duration::from_secs(30),
            posts_per_minute: None,
        }
    }
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    organization: String,
    listener: Option<PathBuf>,
    state: Mutex<State>,
    /// Jobs or runners changed.
    changed: Notify,
}

/// An address that is served until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn serve(shared: &Arc<Shared>, listener: TcpListener) -> Serving {
    let app = Router::new().fallback(api::handle).with_state(Arc::clone(shared));
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    Serving(tokio::spawn(async move {
        // Ends only with the task.
        let _ = axum::serve(listener, app).await;
    }))
}

/// The handle of a running stand-in; it ends with the last clone.
#[derive(Debug, Clone)]
pub struct GitHub {
    shared: Arc<Shared>,
    _serving: Arc<Serving>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sweep();
        state
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl GitHub {
    /// Starts it on a free port of this machine.
    ///
    /// # Errors
    /// No port could be had.
    pub async fn start(options: GitHubOptions) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("open a port for the stand-in GitHub")?;
        Self::start_at(options, listener)
    }

    /// Starts it where that listener listens, which is then its address.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn start_at(options: GitHubOptions, listener: TcpListener) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            address: listener.local_addr()?,
            state: Mutex::new(State::new(&options.organization, options.lease, options.posts_per_minute)),
            organization: options.organization,
            listener: options.listener,
            changed: Notify::new(),
        });
        let serving = serve(&shared, listener);
        Ok(Self { shared, _serving: Arc::new(serving) })
    }

    /// Serves the same at another address too, for as long as what is returned is kept.
    pub fn also_at(&self, listener: TcpListener) -> Serving {
        serve(&self.shared, listener)
    }

    /// The organization's login.
    pub fn organization(&self) -> &str {
        &self.shared.organization
    }

    /// Where it listens, for what stands before it.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The web address, as a runner is configured with it.
    pub fn url(&self) -> String {
        self.shared.url()
    }

    /// The REST API's base.
    pub fn api_url(&self) -> String {
        format!("{}/api/v3", self.url())
    }

    /// Where releases of the runner are downloaded from.
    pub fn releases_url(&self) -> String {
        format!("{}/actions/runner/releases/download", self.url())
    }

    /// Where the Node project's builds are downloaded from: the same machine, for the sake of simplicity.
    pub fn node_url(&self) -> String {
        format!("{}/nodejs/release", self.url())
    }

    /// The App's client id.
    pub fn client_id(&self) -> String {
        state::CLIENT_ID.to_owned()
    }

    pub fn app_id(&self) -> u64 {
        state::APP_ID
    }

    /// The installation in the organization.
    pub fn installation_id(&self) -> u64 {
        state::INSTALLATION_ID
    }

    /// "Generate a private key" in the App's settings: the PEM a browser would download.
    pub fn generate_key(&self) -> String {
        self.add_key(0)
    }

    /// A private key of another App, one that is not installed in the organization.
    pub fn other_apps_key(&self) -> String {
        self.add_key(1)
    }

    /// That other App's client id.
    pub fn other_apps_client_id(&self) -> String {
        self.shared.state().apps[1].client_id.clone()
    }

    fn add_key(&self, app: usize) -> String {
        // Made before the lock is held: it takes a while.
        let (pem, key) = state::generate_pem();
        self.shared.state().apps[app].keys.push(key);
        pem
    }

    /// Fingerprints in the App's settings.
    pub fn keys(&self) -> Vec<String> {
        self.shared.state().apps[0].keys.iter().map(|key| key.fingerprint.clone()).collect()
    }

    /// "Delete" beside a key in the App's settings.
    pub fn revoke_key(&self, fingerprint: &str) {
        self.shared.state().apps[0].keys.retain(|key| key.fingerprint != fingerprint);
    }

    /// Suspends the installation, or lifts that.
    pub fn suspend(&self, suspended: bool) {
        self.shared.state().suspended = suspended;
    }

    /// Grants the App's permission in the organization, or takes it away.
    pub fn grant(&self, granted: bool) {
        self.shared.state().granted = granted;
    }

    /// Installs the App in the organization, or removes it.
    pub fn install(&self, installed: bool) {
        self.shared.state().apps[0].installed = installed;
    }

    /// From now on a runner of this version gets no job: it has its session, and is refused at the first poll.
    pub fn deprecate(&self, version: &str) {
        let mut state = self.shared.state();
        let now = state.now();
        let ends = Deprecation { registration: Some(now), runtime: Some(now) };
        state.deprecated.insert(version.to_owned(), ends);
    }

    /// From now on an older version can't register.
    pub fn set_oldest_version(&self, version: &str) {
        version.clone_into(&mut self.shared.state().oldest);
    }

    /// From now on there is no list of deprecated versions.
    pub fn list_no_deprecations(&self) {
        self.shared.state().lists_no_deprecations = true;
    }

    /// From now on lists of runners pass over the name that was asked for.
    pub fn ignore_names(&self) {
        self.shared.state().ignores_names = true;
    }

    /// Whether a runner that runs a job is deleted as well, with a 204, as GitHub has done. Its job goes on to its end.
    pub fn delete_busy_runners(&self, deletes: bool) {
        self.shared.state().deletes_busy = deletes;
    }

    /// Whether lists leave out the runners that register from now on, as GitHub's do for a while.
    pub fn lag_lists(&self, lags: bool) {
        let mut state = self.shared.state();
        state.listed_up_to = lags.then(|| state.next());
    }

    /// Announces a version's ends, counted from now; `None` sets no date.
    pub fn announce_end(&self, version: &str, registration: Option<Duration>, runtime: Option<Duration>) {
        let mut state = self.shared.state();
        let now = state.now();
        let at = |end: Option<Duration>| end.map(|end| now + end.as_secs());
        let ends = Deprecation { registration: at(registration), runtime: at(runtime) };
        state.deprecated.insert(version.to_owned(), ends);
    }

    /// Sets how long ago a version was released.
    pub fn publish(&self, version: &str, ago: Duration) {
        let mut state = self.shared.state();
        let at = state.now() - ago.as_secs();
        state.published.insert(version.to_owned(), at);
    }

    /// Adds a runner group and tells its id.
    pub fn add_runner_group(&self, name: &str) -> u64 {
        let mut state = self.shared.state();
        let id = state.next() + 1;
        state.groups.push(RunnerGroup::open(id, name));
        id
    }

    /// Lets so many selected repositories use a runner group, and public ones or not.
    pub fn limit_runner_group(&self, name: &str, repositories: Option<u64>, public: bool) {
        let mut state = self.shared.state();
        for group in state.groups.iter_mut().filter(|group| group.name == name) {
            (group.repositories, group.public) = (repositories, public);
        }
    }

    /// Grants the installation a permission beside the App's own.
    pub fn grant_too(&self, permission: &str, access: &str) {
        self.shared.state().granted_too.insert(permission.to_owned(), access.to_owned());
    }

    /// Adds runners that never come online, as a large organization has.
    pub fn add_offline_runners(&self, names: impl IntoIterator<Item = String>) {
        self.add_offline_runners_in(1, names);
    }

    /// The same in a runner group.
    pub fn add_offline_runners_in(&self, group: u64, names: impl IntoIterator<Item = String>) {
        let mut state = self.shared.state();
        for name in names {
            runners::register(&mut state, &name, group, vec!["self-hosted".to_owned()], false);
        }
    }

    /// Registers a runner that no program stands behind, and tells its id.
    pub fn simulate_runner(&self, name: &str, labels: &[String], version: &str, online: bool) -> u64 {
        let mut state = self.shared.state();
        let labels = ["self-hosted", "Linux", "X64"].map(str::to_owned).into_iter().chain(labels.iter().cloned());
        let id = runners::register(&mut state, name, 1, labels.collect(), false).id;
        if let Some(runner) = state.runners.get_mut(&id) {
            (runner.version, runner.simulated) = (Some(version.to_owned()), Some(online));
        }
        drop(state);
        self.shared.changed.notify_waiters();
        id
    }

    /// Whether a simulated runner is heard from.
    pub fn set_online(&self, id: u64, online: bool) {
        if let Some(runner) = self.shared.state().runners.get_mut(&id) {
            runner.simulated = Some(online);
        }
    }

    /// Removes a simulated runner, as its instance would; refused while it runs a job.
    pub fn remove_simulated(&self, id: u64) -> bool {
        let mut state = self.shared.state();
        if state.runners.get(&id).is_some_and(|runner| runner.job.is_some()) {
            return false;
        }
        state.runners.remove(&id);
        true
    }

    /// Gives a simulated runner a job that runs until [`GitHub::finish`].
    pub fn occupy(&self, id: u64) -> Option<JobId> {
        let mut guard = self.shared.state();
        let state = &mut *guard;
        let job = JobId(state.next());
        let runner = state.runners.get_mut(&id).filter(|runner| runner.online() && runner.job.is_none())?;
        runner.job = Some(job);
        let running = JobState::InProgress { runner: runner.name.clone() };
        let spec = JobSpec { name: None, labels: Vec::new(), steps: vec![Step::Hold] };
        state.jobs.insert(job, Job { spec, state: running, released: false, taken: true });
        Some(job)
    }

    /// Ends a simulated runner's job well, if it still runs.
    pub fn finish(&self, job: JobId) {
        let mut guard = self.shared.state();
        let state = &mut *guard;
        let Some(runner) = state.runners.values_mut().find(|runner| runner.job == Some(job)) else { return };
        runner.job = None;
        let (runner, version) = (runner.name.clone(), runner.version.clone().unwrap_or_default());
        if let Some(job) = state.jobs.get_mut(&job) {
            let conclusion = Conclusion::Success;
            job.state = JobState::Completed { conclusion, runner, version, output: String::new() };
        }
        drop(guard);
        self.shared.changed.notify_waiters();
    }

    /// Ends every token before its time.
    pub fn expire_tokens(&self) {
        self.shared.state().tokens.clear();
    }

    /// Uses the hour's calls up, but for some; they are given anew in so many seconds.
    pub fn use_up_limit(&self, left: u64, reset_in_secs: u64) {
        let mut state = self.shared.state();
        state.limit = (left, state.now() + reset_in_secs);
    }

    /// Sets GitHub's clock ahead of this machine's by seconds (behind, when negative).
    pub fn skew_clock(&self, seconds: i64) {
        self.shared.state().skew = seconds;
    }

    /// The next calls that match fail.
    pub fn inject(&self, fault: Fault) {
        self.shared.state().faults.push(fault);
    }

    /// Every call so far, but for what runners say once they are registered.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().requests.clone()
    }

    /// How many calls there were of a method to a path.
    pub fn count(&self, method: &str, path_contains: &str) -> usize {
        let fits = |call: &&Recorded| call.method == method && call.path.contains(path_contains);
        self.shared.state().requests.iter().filter(fits).count()
    }

    /// The runners it knows.
    pub fn runners(&self) -> Vec<KnownRunner> {
        self.shared.state().runners.values().filter(|runner| !runner.deleted).map(KnownRunner::of).collect()
    }

    /// A workflow run that wants a runner.
    pub fn queue_job(&self, spec: JobSpec) -> JobId {
        let id = self.shared.state().queue(spec);
        self.shared.changed.notify_waiters();
        id
    }

    /// Lets a job go on that holds.
    pub fn release_job(&self, id: JobId) {
        self.shared.state().release(id);
        self.shared.changed.notify_waiters();
    }

    /// A job as it stands.
    ///
    /// # Panics
    /// There is no such job.
    pub fn job(&self, id: JobId) -> Job {
        self.shared.state().jobs.get(&id).cloned().expect("a job's id comes from queue_job")
    }

    /// Every job.
    pub fn jobs(&self) -> Vec<(JobId, Job)> {
        self.shared.state().jobs.iter().map(|(id, job)| (*id, job.clone())).collect()
    }

    /// Waits until a job is as wanted.
    ///
    /// # Errors
    /// It was not within the bound.
    pub async fn wait_job(
        &self,
        id: JobId,
        wanted: impl Fn(&JobState) -> bool,
        bound: Duration,
    ) -> anyhow::Result<JobState> {
        let look = |github: &Self| Some(github.job(id).state).filter(&wanted);
        self.until(bound, &format!("job {}", id.0), look)
            .await
            .with_context(|| format!("it is {:?}", self.job(id).state))
    }

    /// Waits until what is looked for is there.
    ///
    /// # Errors
    /// It was not within the bound.
    pub async fn until<T>(&self, bound: Duration, what: &str, look: impl Fn(&Self) -> Option<T>) -> anyhow::Result<T> {
        let wait = async {
            loop {
                // Hears of every change from here on.
                let changed = self.shared.changed.notified();
                if let Some(found) = look(self) {
                    return found;
                }
                // A runner goes offline without a word.
                let _ = tokio::time::timeout(Duration::from_millis(200), changed).await;
            }
        };
        let found = tokio::time::timeout(bound, wait).await;
        found.with_context(|| format!("waited {} s for {what}; runners: {:?}", bound.as_secs(), self.runners()))
    }

    /// Packs a build of Node for glibc 2.17, the same bytes for a version each time.
    ///
    /// # Errors
    /// It can't be packed.
    pub fn node_build(&self, version: &str) -> anyhow::Result<Release> {
        if let Some(build) = self.shared.state().nodes.get(version) {
            return Ok(build.clone());
        }
        let name = format!("node-v{version}-linux-x64-glibc-217");
        let build = release::pack_node(version, &name, format!("{}/v{version}/{name}.tar.gz", self.node_url()))?;
        self.shared.state().nodes.insert(version.to_owned(), build.clone());
        Ok(build)
    }

    /// Packs a release of the runner, the same bytes for a version each time.
    ///
    /// # Errors
    /// The stand-in runner's executable can't be had.
    pub fn runner_release(&self, version: &str) -> anyhow::Result<Release> {
        if let Some(release) = self.shared.state().releases.get(version) {
            return Ok(release.clone());
        }
        let listener = match &self.shared.listener {
            Some(path) => path.clone(),
            None => listener_path()?,
        };
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
        let url = format!("{}/v{version}/actions-runner-linux-{architecture}-{version}.tar.gz", self.releases_url());
        let release = release::pack(version, &listener, url)?;
        let mut state = self.shared.state();
        let now = state.now();
        state.published.entry(version.to_owned()).or_insert(now);
        state.releases.insert(version.to_owned(), release.clone());
        Ok(release)
    }
}
