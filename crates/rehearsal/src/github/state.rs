//! What the stand-in knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::release::Release;

pub(super) const APP_ID: u64 = 990_001;
pub(super) const CLIENT_ID: &str = "Iv23liKilnRehearsal0";
pub(super) const INSTALLATION_ID: u64 = 77_001;

/// A runner polls at least once a second; one that was silent this long is offline.
const SILENT: Duration = Duration::from_secs(5);

/// A public half of one of the App's keys.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) fingerprint: String,
    pub(super) pkcs1: Vec<u8>,
}

/// A call as the stand-in saw it. No headers, so no secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The method.
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// The status answered; 0 when the connection was broken off.
    pub status: u16,
}

/// A call that is to fail.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The method.
    pub method: &'static str,
    /// Part of the path.
    pub path_contains: String,
    /// How many calls fail.
    pub times: u32,
    /// How.
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
}

/// A registered runner.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) labels: Vec<String>,
    pub(super) ephemeral: bool,
    pub(super) version: Option<String>,
    pub(super) credential: String,
    pub(super) session: Option<String>,
    pub(super) seen: Option<Instant>,
    pub(super) job: Option<JobId>,
}

impl Runner {
    pub(super) fn online(&self) -> bool {
        self.session.is_some() && self.seen.is_some_and(|seen| seen.elapsed() < SILENT)
    }
}

/// A runner as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRunner {
    /// Its id.
    pub id: u64,
    /// Its name.
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
    /// Labels the runner must have, all of them.
    pub labels: Vec<String>,
    /// In order.
    pub steps: Vec<Step>,
}

impl JobSpec {
    /// A job without steps.
    pub fn new<const N: usize>(labels: [&str; N]) -> Self {
        Self { labels: labels.map(str::to_owned).to_vec(), steps: Vec::new() }
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
        /// How.
        conclusion: Conclusion,
        /// On which runner.
        runner: String,
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
    /// The runner was told to end while it ran.
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
    Admin,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) keys: Vec<Key>,
    pub(super) installed: bool,
    pub(super) suspended: bool,
    pub(super) granted: bool,
    pub(super) skew: i64,
    pub(super) seen_jwts: BTreeSet<String>,
    pub(super) tokens: BTreeMap<String, Token>,
    pub(super) runners: BTreeMap<u64, Runner>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) deprecated: BTreeSet<String>,
    pub(super) releases: BTreeMap<String, Release>,
    pub(super) faults: Vec<Fault>,
    pub(super) requests: Vec<Recorded>,
    next: u64,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            keys: Vec::new(),
            installed: true,
            suspended: false,
            granted: true,
            skew: 0,
            seen_jwts: BTreeSet::new(),
            tokens: BTreeMap::new(),
            runners: BTreeMap::new(),
            jobs: BTreeMap::new(),
            deprecated: BTreeSet::new(),
            releases: BTreeMap::new(),
            faults: Vec::new(),
            requests: Vec::new(),
            next: 0,
        }
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

    pub(super) fn generate_key(&mut self) -> String {
        let (pem, key) = generate_pem();
        self.keys.push(key);
        pem
    }

    pub(super) fn mint(&mut self, kind: TokenKind) -> (String, u64) {
        let expires = self.now() + 3600;
        let token = match kind {
            // About as long as the real ones, so that nobody counts on fewer.
            TokenKind::Installation { .. } => format!("ghs_{}", random(384)),
            TokenKind::Registration | TokenKind::Admin => random(24),
        };
        self.tokens.insert(token.clone(), Token { kind, expires });
        (token, expires)
    }

    pub(super) fn queue(&mut self, spec: JobSpec) -> JobId {
        let id = JobId(self.next());
        self.jobs.insert(id, Job { spec, state: JobState::Queued, released: false });
        id
    }

    pub(super) fn release(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.released = true;
        }
    }
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
