//! What the stand-in knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::manifest::Registration;
use super::release::Release;

pub(super) const APP_ID: u64 = 990_001;
pub(super) const CLIENT_ID: &str = "Iv23liKilnRehearsal0";
pub(super) const INSTALLATION_ID: u64 = 77_001;

/// GitHub's default, per installation and hour.
pub(super) const HOURLY_LIMIT: u64 = 5000;

/// Since 2026-09-25 an older version can't register.
///
/// source: the refusal of `…/actions/runner-registration` in <https://github.com/man-group/ArcticDB/issues/3404>
const OLDEST: &str = "2.329.0";

/// A runner is heard from at least once a second; one that was silent this long is offline.
const SILENT: Duration = Duration::from_secs(5);

/// An App and its keys.
#[derive(Debug)]
pub(super) struct App {
    pub(super) id: u64,
    pub(super) client_id: String,
    pub(super) slug: String,
    pub(super) owner: String,
    pub(super) installed: bool,
    pub(super) keys: Vec<Key>,
}

/// A public half of one of the App's keys.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) fingerprint: String,
    pub(super) pkcs1: Vec<u8>,
}

/// A call as the stand-in saw it. No headers, so no secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// The status answered; 0 when the connection was ended without an answer.
    pub status: u16,
}

/// A call that is to fail.
#[derive(Debug, Clone)]
pub struct Fault {
    pub method: &'static str,
    /// Part of the path.
    pub path_contains: String,
    /// How many calls fail.
    pub times: u32,
    pub answer: Answer,
}

/// How a call fails.
#[derive(Debug, Clone)]
pub enum Answer {
    /// With a status, headers and a message.
    Status(u16, Vec<(&'static str, String)>, String),
    /// What was asked for is done, but the answer breaks off in the middle.
    Truncated,
    /// Nothing is done, the connection ends.
    Dropped,
    /// The answer comes late.
    Late(Duration),
    /// Nothing is done; headers come at once, and of the body a byte at such a time, without an end.
    Dripping(Duration),
}

impl Answer {
    /// A status with headers and a message.
    pub fn status(code: u16, headers: &[(&'static str, &str)], message: &str) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self::Status(code, headers, message.to_owned())
    }
}

/// A registered runner.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) group: u64,
    pub(super) labels: Vec<String>,
    pub(super) ephemeral: bool,
    pub(super) version: Option<String>,
    pub(super) credential: String,
    pub(super) session: Option<String>,
    pub(super) seen: Option<Instant>,
    pub(super) job: Option<JobId>,
    /// It is simulated: online or not, as it is told.
    pub(super) simulated: Option<bool>,
    /// It was deleted while it ran a job, which goes on to its end.
    pub(super) deleted: bool,
}

impl Runner {
    pub(super) fn online(&self) -> bool {
        self.simulated.unwrap_or_else(|| self.session.is_some() && !self.silent_for(SILENT))
    }

    fn silent_for(&self, bound: Duration) -> bool {
        self.simulated.is_none() && self.seen.is_none_or(|seen| seen.elapsed() >= bound)
    }
}

/// A runner as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRunner {
    pub id: u64,
    pub name: String,
    /// It has a session and was heard from.
    pub online: bool,
    /// It runs a job.
    pub busy: bool,
    /// It takes one job only.
    pub ephemeral: bool,
    /// Its version, once it had a session.
    pub version: Option<String>,
    /// Its labels, GitHub's own among them.
    pub labels: Vec<String>,
}

impl KnownRunner {
    pub(super) fn of(runner: &Runner) -> Self {
        Self {
            id: runner.id,
            name: runner.name.clone(),
            online: runner.online(),
            busy: runner.job.is_some(),
            ephemeral: runner.ephemeral,
            version: runner.version.clone(),
            labels: runner.labels.clone(),
        }
    }
}

/// A job's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// What a job wants and does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// As a person sees it in the run, and as the runner prints it; the job's number where it has none.
    pub name: Option<String>,
    /// Labels the runner must have, all of them.
    pub labels: Vec<String>,
    /// In order.
    pub steps: Vec<Step>,
}

impl JobSpec {
    /// A job without steps.
    pub fn new<const N: usize>(labels: [&str; N]) -> Self {
        Self { name: None, labels: labels.map(str::to_owned).to_vec(), steps: Vec::new() }
    }

    /// The same by another name. GitHub takes any: line ends too, where a matrix brings them in.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The same with a step more.
    #[must_use]
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// A job's step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A bash script, really run by the runner.
    Run(String),
    /// The job goes on when it is released.
    Hold,
}

/// A job.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it wants and does.
    pub spec: JobSpec,
    /// How far it is.
    pub state: JobState,
    pub(super) released: bool,
    /// Its runner has it: an offer that was not taken up is made again.
    pub(super) taken: bool,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// No runner has it yet.
    Queued,
    /// A runner has it.
    InProgress {
        /// Its name.
        runner: String,
    },
    /// It ended.
    Completed {
        conclusion: Conclusion,
        /// On which runner.
        runner: String,
        /// Of that runner's software.
        version: String,
        /// What its steps printed.
        output: String,
    },
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conclusion {
    /// Every step succeeded.
    Success,
    /// A step failed.
    Failure,
    /// Its runner was told to end while it ran.
    Cancelled,
}

/// What a token is good for, and until when.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) expires: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Installation { runners: bool },
    Registration,
    Removal,
    Admin,
}

/// When a version may no longer register, and when it gets no more jobs; seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deprecation {
    pub(super) registration: Option<u64>,
    pub(super) runtime: Option<u64>,
}

/// A runner group.
#[derive(Debug, Clone)]
pub(super) struct RunnerGroup {
    pub(super) id: u64,
    pub(super) name: String,
    /// How many repositories may use it; all of them when absent.
    pub(super) repositories: Option<u64>,
    /// May public repositories use it?
    pub(super) public: bool,
}

impl RunnerGroup {
    /// One that every private repository may use.
    pub(super) fn open(id: u64, name: &str) -> Self {
        Self { id, name: name.to_owned(), repositories: None, public: false }
    }
}

#[derive(Debug)]
pub(super) struct State {
    /// Kiln's, then somebody else's.
    pub(super) apps: Vec<App>,
    /// Of Apps registered from a manifest, by their codes.
    pub(super) registrations: BTreeMap<String, Registration>,
    pub(super) suspended: bool,
    pub(super) granted: bool,
    /// What the installation was granted beside the App's permission.
    pub(super) granted_too: BTreeMap<String, String>,
    pub(super) skew: i64,
    pub(super) seen_jwts: BTreeSet<String>,
    pub(super) tokens: BTreeMap<String, Token>,
    pub(super) runners: BTreeMap<u64, Runner>,
    pub(super) groups: Vec<RunnerGroup>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    /// A job whose runner was silent this long is given up. Until then its runner is offline and busy.
    pub(super) lease: Duration,
    pub(super) deprecated: BTreeMap<String, Deprecation>,
    /// The oldest version that may register.
    pub(super) oldest: String,
    /// A runner that runs a job is deleted as well.
    pub(super) deletes_busy: bool,
    /// It is an Enterprise Server, which has no list of deprecated versions.
    pub(super) lists_no_deprecations: bool,
    /// Lists of runners pass over the name that was asked for.
    pub(super) ignores_names: bool,
    /// Lists leave out the runners with more than this id: they are behind.
    pub(super) listed_up_to: Option<u64>,
    /// Calls left, and when there are [`HOURLY_LIMIT`] again.
    pub(super) limit: (u64, u64),
    /// The secondary limit, and for each path the minute that runs and how many POSTs it has seen.
    posts_per_minute: Option<u32>,
    posts: BTreeMap<String, (Instant, u32)>,
    pub(super) releases: BTreeMap<String, Release>,
    /// When a release was published, by version; seconds since 1970.
    pub(super) published: BTreeMap<String, u64>,
    /// Builds of Node, by version.
    pub(super) nodes: BTreeMap<String, Release>,
    pub(super) faults: Vec<Fault>,
    pub(super) requests: Vec<Recorded>,
    next: u64,
}

impl State {
    pub(super) fn new(organization: &str, lease: Duration, posts_per_minute: Option<u32>) -> Self {
        let ours = App {
            id: APP_ID,
            client_id: CLIENT_ID.to_owned(),
            slug: "kiln-stand-ins".to_owned(),
            owner: organization.to_owned(),
            installed: true,
            keys: Vec::new(),
        };
        let others = App {
            id: 990_002,
            client_id: "Iv23liSomebodyElse00".to_owned(),
            slug: "somebody-elses".to_owned(),
            owner: "somebody-else".to_owned(),
            installed: false,
            keys: Vec::new(),
        };
        Self {
            apps: vec![ours, others],
            registrations: BTreeMap::new(),
            suspended: false,
            granted: true,
            granted_too: BTreeMap::from([("metadata".to_owned(), "read".to_owned())]),
            skew: 0,
            seen_jwts: BTreeSet::new(),
            tokens: BTreeMap::new(),
            runners: BTreeMap::new(),
            groups: vec![RunnerGroup::open(1, "Default")],
            jobs: BTreeMap::new(),
            lease,
            deprecated: BTreeMap::new(),
            oldest: OLDEST.to_owned(),
            deletes_busy: false,
            lists_no_deprecations: false,
            ignores_names: false,
            listed_up_to: None,
            limit: (HOURLY_LIMIT, 0),
            posts_per_minute,
            posts: BTreeMap::new(),
            releases: BTreeMap::new(),
            published: BTreeMap::new(),
            nodes: BTreeMap::new(),
            faults: Vec::new(),
            requests: Vec::new(),
            next: 0,
        }
    }

    /// Counts a POST; the seconds to wait where it is one too many in its minute.
    pub(super) fn post(&mut self, path: &str) -> Option<u64> {
        let most = self.posts_per_minute?;
        let minute = Duration::from_secs(60);
        let (begun, count) = self.posts.entry(path.to_owned()).or_insert((Instant::now(), 0));
        if begun.elapsed() >= minute {
            (*begun, *count) = (Instant::now(), 0);
        }
        *count += 1;
        (*count > most).then(|| (minute - begun.elapsed()).as_secs() + 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// GitHub's clock, seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        here.saturating_add_signed(self.skew)
    }

    pub(super) fn mint(&mut self, kind: TokenKind) -> (String, u64) {
        let expires = self.now() + 3600;
        let token = match kind {
            // About as long as the real ones, so that nobody counts on fewer.
            TokenKind::Installation { .. } => format!("ghs_{}", random(384)),
            TokenKind::Registration | TokenKind::Removal | TokenKind::Admin => random(24),
        };
        self.tokens.insert(token.clone(), Token { kind, expires });
        (token, expires)
    }

    pub(super) fn queue(&mut self, spec: JobSpec) -> JobId {
        let id = JobId(self.next());
        self.jobs.insert(id, Job { spec, state: JobState::Queued, released: false, taken: false });
        id
    }

    pub(super) fn release(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.released = true;
        }
    }

    /// Ends a runner's job without its word: what was only offered goes back to the queue.
    pub(super) fn abandon(&mut self, runner: u64, conclusion: Conclusion, why: &str) {
        let Some(runner) = self.runners.get_mut(&runner) else { return };
        let Some(job) = runner.job.take().and_then(|id| self.jobs.get_mut(&id)) else { return };
        job.state = if job.taken {
            let version = runner.version.clone().unwrap_or_default();
            JobState::Completed { conclusion, runner: runner.name.clone(), version, output: why.to_owned() }
        } else {
            JobState::Queued
        };
    }

    /// Gives up the jobs of runners that were not heard from.
    pub(super) fn sweep(&mut self) {
        let lost = |runner: &&Runner| runner.job.is_some() && runner.silent_for(self.lease);
        let lost: Vec<u64> = self.runners.values().filter(lost).map(|runner| runner.id).collect();
        for runner in lost {
            self.abandon(runner, Conclusion::Failure, "The self-hosted runner lost communication with the server.");
        }
    }
}

/// By number: 2.100.0 is newer than 2.99.0.
pub(super) fn version_number(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or_default()).collect()
}

/// Random text of so many bytes before base64.
pub(super) fn random(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    aws_lc_rs::rand::fill(&mut buffer).expect("the system has random numbers");
    URL_SAFE_NO_PAD.encode(buffer)
}

/// A new RSA-2048 key as GitHub gives it, PKCS#1 in PEM.
pub(super) fn generate_pem() -> (String, Key) {
    // What stands before the PKCS#1 document in PKCS#8 for a key of this size.
    const HEADER: usize = 26;
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key can be made");
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().expect("a new key can be written");
    let pkcs1 = &pkcs8.as_ref()[HEADER..];
    assert_eq!(&pkcs1[..2], [0x30, 0x82], "PKCS#1 begins with a long sequence");
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("a new key has a public half");
    let fingerprint = format!("SHA256:{}", STANDARD.encode(Sha256::digest(spki.as_ref())));
    let mut pem = "-----BEGIN RSA PRIVATE KEY-----\n".to_owned();
    for line in STANDARD.encode(pkcs1).as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str("-----END RSA PRIVATE KEY-----\n");
    (pem, Key { fingerprint, pkcs1: pair.public_key().as_ref().to_vec() })
}
