//! The stand-in runner, unpacked from its release and run as an unprivileged user, against the stand-in GitHub.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_github::{AppKey, Deleted, JitRequest, OrgClient};
use kiln_stand_ins::github::{Conclusion, GitHub, GitHubOptions, JobId, JobSpec, JobState, Release, Step};
use kiln_stand_ins::machine::{give_to_runner, runner_ids};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const VERSION: &str = "2.338.0";

/// Everything here takes a second or two; a minute is for a machine under load.
const SOON: Duration = Duration::from_secs(60);

struct Fixture {
    github: GitHub,
    client: OrgClient,
}

async fn fixture(lease: Duration) -> Fixture {
    let listener = Some(env!("CARGO_BIN_EXE_stand-in-runner").into());
    let github = GitHub::start(GitHubOptions { listener, lease, ..GitHubOptions::new("acme") }).await.unwrap();
    let key = Arc::new(AppKey::from_pem(github.generate_key().as_bytes()).unwrap());
    let api = github.api_url().parse().unwrap();
    let client = OrgClient::new(&api, "kiln-tests/0", github.client_id(), key, "acme", None).unwrap();
    Fixture { github, client }
}

/// A runner's folder.
struct Installed {
    folder: TempDir,
}

impl Installed {
    async fn new(github: &GitHub, version: &str) -> Self {
        let release = github.runner_release(version).unwrap();
        let folder = tempfile::tempdir().unwrap();
        unpack(&download(&release).await, folder.path());
        give_to_runner(folder.path()).unwrap();
        Self { folder }
    }

    /// A command of the runner's, as an unprivileged user and in an environment of its own.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let program = self.folder.path().join(program);
        let (uid, gid) = runner_ids();
        let mut command = if geteuid().is_root() {
            let mut setpriv = Command::new("setpriv");
            setpriv.args([format!("--reuid={uid}"), format!("--regid={gid}")]).args(["--clear-groups", "--"]);
            setpriv.arg(program);
            setpriv
        } else {
            Command::new(program)
        };
        command.args(arguments).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `config.sh` as Kiln calls it, by environment.
    fn configure(&self, fixture: &Fixture, token: &str, name: &str) -> Command {
        let mut command = self.command("config.sh", &[]);
        let url = format!("{}/acme", fixture.github.url());
        for (input, value) in [
            ("UNATTENDED", "true"),
            ("URL", &url),
            ("TOKEN", token),
            ("NAME", name),
            ("LABELS", "linux-x64,big"),
            ("DISABLEUPDATE", "true"),
        ] {
            command.env(format!("ACTIONS_RUNNER_INPUT_{input}"), value);
        }
        command
    }

    async fn configured(fixture: &Fixture, name: &str) -> Self {
        let installed = Self::new(&fixture.github, VERSION).await;
        let token = fixture.client.registration_token().await.unwrap();
        let output = output(installed.configure(fixture, token.token.expose_secret(), name)).await;
        assert!(output.status.success(), "{output:?}");
        installed
    }

    fn listen(&self) -> Child {
        self.command("bin/Runner.Listener", &["run"]).spawn().unwrap()
    }

    fn has(&self, file: &str) -> bool {
        self.folder.path().join(file).exists()
    }
}

async fn download(release: &Release) -> Vec<u8> {
    let bytes = reqwest::get(&release.url).await.unwrap().error_for_status().unwrap().bytes().await.unwrap().to_vec();
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, release.sha256);
    bytes
}

fn unpack(bytes: &[u8], folder: &Path) {
    tar::Archive::new(flate2::read::GzDecoder::new(bytes)).unpack(folder).unwrap();
}

async fn output(mut command: Command) -> Output {
    tokio::time::timeout(SOON, command.output()).await.unwrap().unwrap()
}

/// The exit code and all that was said.
async fn end(child: Child) -> (Option<i32>, String) {
    said(&tokio::time::timeout(SOON, child.wait_with_output()).await.unwrap().unwrap())
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), signal).unwrap();
}

async fn online(github: &GitHub, name: &str) {
    let look = |github: &GitHub| github.runners().into_iter().find(|runner| runner.name == name && runner.online);
    let runner = github.until(SOON, name, look).await.unwrap();
    assert_eq!(runner.version.as_deref(), Some(VERSION));
}

fn script(text: &str) -> JobSpec {
    JobSpec::new(["big"]).step(Step::Run(text.to_owned()))
}

async fn in_progress(github: &GitHub, job: JobId) {
    github.wait_job(job, |state| matches!(state, JobState::InProgress { .. }), SOON).await.unwrap();
}

async fn completed(github: &GitHub, job: JobId) -> (Conclusion, String) {
    match github.wait_job(job, |state| matches!(state, JobState::Completed { .. }), SOON).await.unwrap() {
        JobState::Completed { conclusion, output, .. } => (conclusion, output),
        state => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn a_persistent_runner_works_job_after_job_and_leaves_when_it_is_deleted() {
    let fixture = fixture(SOON).await;
    let github = &fixture.github;
    let installed = Installed::configured(&fixture, "linux-i-0").await;
    let mode = |file: &str| std::fs::metadata(installed.folder.path().join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(".credentials_rsaparams"), 0o600);
    assert!(installed.has(".runner") && installed.has(".credentials"));
    let known = fixture.client.runners(Some("linux-i-0")).await.unwrap();
    let labels: Vec<&str> = known[0].labels.iter().map(|label| label.name.as_str()).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "ARM64" } else { "X64" };
    assert_eq!(labels, ["self-hosted", "Linux", architecture, "linux-x64", "big"]);
    assert!(!known[0].is_online());

    // The runner's own inputs are no job's.
    let mut run = installed.command("bin/Runner.Listener", &["run"]);
    let listener = run.env("ACTIONS_RUNNER_INPUT_TOKEN", "secret").env("SEEN", "by jobs").spawn().unwrap();
    online(github, "linux-i-0").await;
    let first = github.queue_job(script("id -u; pwd; env; echo on stderr >&2"));
    let (conclusion, output) = completed(github, first).await;
    assert_eq!(conclusion, Conclusion::Success, "{output}");
    let (user, _) = runner_ids();
    assert!(output.starts_with(&format!("{user}\n")), "{output}");
    assert!(
        output.contains("/_work/rehearsal/rehearsal\n")
            && output.contains("SEEN=by jobs\n")
            && output.ends_with("on stderr\n"),
        "{output}"
    );
    assert!(!output.contains("ACTIONS_RUNNER_INPUT") && !output.contains("secret"), "{output}");
    let (conclusion, _) = completed(github, github.queue_job(script("true; exit 3"))).await;
    assert_eq!(conclusion, Conclusion::Failure);

    let job = github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Hold).step(Step::Run("echo went on".to_owned())));
    in_progress(github, job).await;
    assert_eq!(fixture.client.delete_runner(known[0].id).await.unwrap(), Deleted::Busy);
    github.release_job(job);
    assert_eq!(completed(github, job).await, (Conclusion::Success, "went on\n".to_owned()));
    assert_eq!(fixture.client.delete_runner(known[0].id).await.unwrap(), Deleted::Gone);
    // It ends well, as it does after a job: an exit code says nothing of the work done.
    let (code, said) = end(listener).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(!installed.has(".runner"), "it forgets what it was");
    let lines = [
        "√ Connected to GitHub",
        "Current runner version: '2.338.0'",
        ": Listening for Jobs",
        ": Running job: ",
        " completed with result: Succeeded",
        " completed with result: Failed",
        "The runner no longer exists on the server. Cleaning up local configuration.",
    ];
    for line in lines {
        assert!(said.contains(line), "{line:?} is missing: {said}");
    }
}

#[tokio::test]
async fn a_just_in_time_runner_works_once_and_is_gone() {
    let fixture = fixture(SOON).await;
    let request = JitRequest {
        name: "once".to_owned(),
        runner_group_id: 1,
        labels: vec!["big".to_owned()],
        work_folder: "_elsewhere".to_owned(),
    };
    let made = fixture.client.generate_jit_config(&request).await.unwrap();
    let installed = Installed::new(&fixture.github, VERSION).await;
    let mut run = installed.command("bin/Runner.Listener", &["run"]);
    let listener = run.env("ACTIONS_RUNNER_INPUT_JITCONFIG", made.encoded.expose_secret()).spawn().unwrap();
    online(&fixture.github, "once").await;
    let jobs = [fixture.github.queue_job(script("env; pwd")), fixture.github.queue_job(script("true"))];
    let (conclusion, output) = completed(&fixture.github, jobs[0]).await;
    assert_eq!(conclusion, Conclusion::Success);
    assert!(output.contains("/_elsewhere/rehearsal/rehearsal\n") && !output.contains("JITCONFIG"), "{output}");
    let (code, said) = end(listener).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(fixture.client.runners(None).await.unwrap().is_empty());
    assert_eq!(fixture.github.job(jobs[1]).state, JobState::Queued);
    assert!(!installed.has(".runner") && !installed.has(".credentials_rsaparams"));

    // Any file is written, as the real one does.
    let other = STANDARD.encode(json!({ ".other": STANDARD.encode("text") }).to_string());
    output_code(installed.command("bin/Runner.Listener", &["run", "--jitconfig", &other])).await;
    assert!(installed.has(".other"));
    let broken = installed.command("bin/Runner.Listener", &["run", "--jitconfig", "bm90IGpzb24="]);
    assert_eq!(output_code(broken).await.0, Some(1));
}

async fn output_code(command: Command) -> (Option<i32>, String) {
    said(&output(command).await)
}

#[tokio::test]
async fn either_signal_cancels_the_job_and_ends_what_it_left_running() {
    let fixture = fixture(SOON).await;
    let installed = Installed::configured(&fixture, "linux-i-0").await;
    for (number, its_code) in [(Signal::SIGINT, 0), (Signal::SIGTERM, 143)] {
        let listener = installed.listen();
        online(&fixture.github, "linux-i-0").await;
        let pid = installed.folder.path().join("_work/rehearsal/rehearsal/pid");
        let job = fixture.github.queue_job(script("setsid sleep 600 & echo $! > pid.new; mv pid.new pid; wait"));
        let started = fixture.github.until(SOON, "the job's process", |_| pid.exists().then_some(())).await;
        started.unwrap();
        let left = std::fs::read_to_string(&pid).unwrap().trim().to_owned();
        std::fs::remove_file(&pid).unwrap();
        assert!(Path::new("/proc").join(&left).exists());
        signal(&listener, number);
        let (code, said) = end(listener).await;
        assert_eq!(code, Some(its_code), "{said}");
        assert_eq!(said.contains("Exiting..."), number == Signal::SIGINT, "{said}");
        assert!(said.contains("completed with result: Canceled"), "{said}");
        assert_eq!(completed(&fixture.github, job).await.0, Conclusion::Cancelled);
        let ended = |_: &GitHub| (!runs(&left)).then_some(());
        fixture.github.until(SOON, "the end of what the job left", ended).await.unwrap();
        assert!(fixture.github.runners().iter().all(|runner| !runner.online && !runner.busy));
    }
}

/// A zombie runs no more, though nobody has asked for its exit code.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
async fn configuring_is_refused_for_every_wrong_input() {
    let fixture = fixture(SOON).await;
    let token = fixture.client.registration_token().await.unwrap();
    let token = token.token.expose_secret();
    let configured = Installed::configured(&fixture, "taken").await;
    assert_eq!(output_code(configured.configure(&fixture, token, "other")).await.0, Some(1), "configured already");

    let fresh = Installed::new(&fixture.github, VERSION).await;
    let (code, said) = output_code(fresh.configure(&fixture, "no-token", "fresh")).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("Http response code: NotFound from 'POST"), "{said}");
    let removal = fixture.client.remove_token().await.unwrap();
    let (code, _) = output_code(fresh.configure(&fixture, removal.token.expose_secret(), "fresh")).await;
    assert_eq!(code, Some(1), "a removal token registers nothing");
    let (code, said) = output_code(fresh.configure(&fixture, token, "taken")).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("A runner exists with the same name"), "{said}");
    let mut elsewhere = fresh.configure(&fixture, token, "fresh");
    elsewhere.env("ACTIONS_RUNNER_INPUT_RUNNERGROUP", "nowhere");
    let (code, said) = output_code(elsewhere).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("runner group named \"nowhere\""), "{said}");
    let old = Installed::new(&fixture.github, "2.328.9").await;
    let output = output(old.configure(&fixture, token, "old")).await;
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        complaint.contains("Your runner version is out of date and can no longer register with GitHub."),
        "{complaint}"
    );
    assert_eq!(fixture.github.runners().len(), 1);
    assert!(!fresh.has(".runner"));

    // An argument wins over the environment.
    let mut replacing = fresh.configure(&fixture, token, "not this");
    replacing.args(["--name", "taken", "--replace"]);
    let (code, said) = output_code(replacing).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("√ Runner successfully added") && said.contains("√ Settings Saved."), "{said}");
    assert_eq!(fixture.github.runners().len(), 1);
    let (code, _) = end(configured.listen()).await;
    assert_eq!(code, Some(1), "the runner that was replaced is not known any more");
    let remove = fresh.command("config.sh", &["remove", "--token", removal.token.expose_secret()]);
    assert_eq!(output_code(remove).await.0, Some(0));
    assert!(fixture.github.runners().is_empty() && !fresh.has(".credentials"));
}

#[tokio::test]
async fn root_is_refused_by_the_script_alone() {
    if !geteuid().is_root() {
        return;
    }
    let fixture = fixture(SOON).await;
    let installed = Installed::new(&fixture.github, VERSION).await;
    let mut command = Command::new(installed.folder.path().join("config.sh"));
    command.env_clear().env("PATH", "/usr/bin:/bin");
    let (code, said) = output_code(command).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("Must not run with sudo"), "{said}");
    // The listener itself runs as anybody.
    let mut allowed = Command::new(installed.folder.path().join("bin/Runner.Listener"));
    allowed.arg("run");
    let (_, said) = output_code(allowed).await;
    assert!(said.contains("Runner is not configured."), "{said}");
}

#[tokio::test]
async fn each_end_of_the_listener_has_its_exit_code() {
    let fixture = fixture(SOON).await;
    let installed = Installed::new(&fixture.github, VERSION).await;
    let version = output_code(installed.command("bin/Runner.Listener", &["--version"])).await;
    assert_eq!(version, (Some(0), format!("{VERSION}\n")));
    assert_eq!(end(installed.listen()).await.0, Some(1), "not configured");

    let installed = Installed::configured(&fixture, "linux-i-0").await;
    let first = installed.listen();
    online(&fixture.github, "linux-i-0").await;
    let (code, said) = end(installed.listen()).await;
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("A session for this runner already exists."), "{said}");
    signal(&first, Signal::SIGTERM);
    assert_eq!(end(first).await.0, Some(143));

    fixture.github.deprecate(VERSION);
    assert_eq!(end(installed.listen()).await.0, Some(1));
    let mut told = installed.command("bin/Runner.Listener", &["run"]);
    told.env("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE", "1");
    let (code, said) = output_code(told).await;
    assert_eq!(code, Some(7));
    assert!(said.contains(": Listening for Jobs") && said.contains("v2.338.0 is deprecated"), "{said}");
}

#[tokio::test]
async fn a_session_that_can_not_be_opened_is_asked_for_again_and_again() {
    let fixture = fixture(SOON).await;
    let installed = Installed::configured(&fixture, "linux-i-0").await;
    let settings = installed.folder.path().join(".runner");
    let nowhere = std::fs::read_to_string(&settings).unwrap().replace(&fixture.github.url(), "http://127.0.0.1:9");
    std::fs::write(&settings, nowhere).unwrap();
    let mut lost = installed.listen();
    let mut complaints = BufReader::new(lost.stderr.take().unwrap()).lines();
    let complaint = tokio::time::timeout(SOON, complaints.next_line()).await.unwrap().unwrap().unwrap();
    assert!(
        complaint.contains(": Runner connect error: ") && complaint.ends_with(" Retrying until reconnected."),
        "{complaint}"
    );
    assert!(lost.try_wait().unwrap().is_none(), "it goes on");
    signal(&lost, Signal::SIGINT);
    let (code, said) = end(lost).await;
    assert_eq!(code, Some(0));
    assert!(!said.contains("Listening for Jobs"), "{said}");
}

/// Without a folder for its log no program of the runner's starts, not even to tell its version.
#[tokio::test]
async fn each_start_leaves_a_log_or_dies() {
    if !geteuid().is_root() {
        eprintln!("not root: a folder can't be given to another user");
        return;
    }
    let fixture = fixture(SOON).await;
    let installed = Installed::new(&fixture.github, VERSION).await;
    let version = || installed.command("bin/Runner.Listener", &["--version"]);
    assert!(!installed.has("_diag"), "no release has one");
    assert_eq!(output_code(version()).await.0, Some(0));
    let diag = installed.folder.path().join("_diag");
    let logs: Vec<_> = std::fs::read_dir(&diag).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!logs.is_empty());
    // A second start within the same second would open the same file.
    logs.iter().for_each(|log| std::fs::remove_file(log).unwrap());
    std::fs::set_permissions(&diag, std::fs::Permissions::from_mode(0o755)).unwrap();
    nix::unistd::chown(&diag, Some(nix::unistd::Uid::from_raw(0)), None).unwrap();
    let output = output(version()).await;
    assert_eq!(output.status.signal(), Some(6), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Access to the path"), "{output:?}");
}

#[tokio::test]
async fn the_file_of_the_environment_wins_over_the_environment() {
    let fixture = fixture(SOON).await;
    let installed = Installed::configured(&fixture, "linux-i-0").await;
    let path = installed.folder.path().join(".env");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}WHOSE=the file's\nGONE=\n")).unwrap();
    let mut run = installed.command("bin/Runner.Listener", &["run"]);
    let _listener = run.env("WHOSE", "the process's").env("GONE", "not yet").spawn().unwrap();
    let job = fixture.github.queue_job(script("echo \"$WHOSE, ${GONE-gone}\""));
    assert_eq!(completed(&fixture.github, job).await, (Conclusion::Success, "the file's, gone\n".to_owned()));
}

/// A name can be what the listener prints of itself, and can hold line ends.
#[tokio::test]
async fn a_jobs_name_is_printed_as_it_is() {
    let fixture = fixture(SOON).await;
    let installed = Installed::configured(&fixture, "linux-i-0").await;
    let listener = installed.listen();
    let job = fixture.github.queue_job(script("true").named("one\nListening for Jobs"));
    completed(&fixture.github, job).await;
    signal(&listener, Signal::SIGINT);
    let (_, said) = end(listener).await;
    assert!(said.contains(": Running job: one\nListening for Jobs\n"), "{said}");
    assert!(said.contains(": Job one\nListening for Jobs completed with result: Succeeded\n"), "{said}");
}

/// GitHub has answered both while all was well with the runner.
#[tokio::test]
async fn a_busy_runner_can_be_deleted_and_a_list_be_behind() {
    let fixture = fixture(SOON).await;
    fixture.github.lag_lists(true);
    let installed = Installed::configured(&fixture, "linux-i-0").await;
    let id = fixture.github.runners()[0].id;
    assert!(fixture.client.runners(None).await.unwrap().is_empty(), "not in the list yet");
    assert!(fixture.client.runner(id).await.unwrap().is_some(), "but there");
    fixture.github.lag_lists(false);
    assert_eq!(fixture.client.runners(None).await.unwrap().len(), 1);
    let listener = installed.listen();
    let job =
        fixture.github.queue_job(JobSpec::new(["big"]).step(Step::Hold).step(Step::Run("echo went on".to_owned())));
    in_progress(&fixture.github, job).await;
    fixture.github.delete_busy_runners(true);
    assert_eq!(fixture.client.delete_runner(id).await.unwrap(), Deleted::Gone);
    assert_eq!(fixture.client.delete_runner(id).await.unwrap(), Deleted::Absent);
    fixture.github.release_job(job);
    assert_eq!(completed(&fixture.github, job).await, (Conclusion::Success, "went on\n".to_owned()));
    assert_eq!(end(listener).await.0, Some(0));
}

#[tokio::test]
async fn a_killed_runner_is_offline_and_busy_until_its_lease_ends() {
    // The runner is offline after five seconds.
    let fixture = fixture(Duration::from_secs(8)).await;
    let github = &fixture.github;
    let installed = Installed::configured(&fixture, "linux-i-0").await;
    let listener = installed.listen();
    let job = github.queue_job(script("touch started").step(Step::Hold));
    in_progress(github, job).await;
    let id =
        github.until(SOON, "the job's start", |github| github.runners().first().map(|runner| runner.id)).await.unwrap();
    // Taken up, not only offered.
    let started = |_: &GitHub| installed.has("_work/rehearsal/rehearsal/started").then_some(());
    github.until(SOON, "the job to be taken up", started).await.unwrap();
    signal(&listener, Signal::SIGKILL);
    let offline = |github: &GitHub| github.runners().into_iter().find(|runner| !runner.online);
    assert!(github.until(SOON, "the runner to be offline", offline).await.unwrap().busy);
    assert_eq!(fixture.client.delete_runner(id).await.unwrap(), Deleted::Busy);
    let (conclusion, output) = completed(github, job).await;
    assert_eq!(conclusion, Conclusion::Failure);
    assert!(output.contains("lost communication"), "{output}");
    // It comes up again as the same runner.
    let again = installed.listen();
    online(github, "linux-i-0").await;
    assert_eq!(github.runners()[0].id, id);
    assert_eq!(fixture.client.delete_runner(id).await.unwrap(), Deleted::Gone);
    assert_eq!(end(again).await.0, Some(0));
}

#[tokio::test]
async fn a_job_that_was_only_offered_is_offered_again() {
    let fixture = fixture(SOON).await;
    let labels = vec!["big".to_owned()];
    let request = JitRequest { name: "once".to_owned(), runner_group_id: 1, labels, work_folder: "_work".to_owned() };
    let made = fixture.client.generate_jit_config(&request).await.unwrap();
    let files: Value = serde_json::from_slice(&STANDARD.decode(made.encoded.expose_secret()).unwrap()).unwrap();
    let secret = STANDARD.decode(files[".credentials_rsaparams"].as_str().unwrap()).unwrap();
    let secret: Value = serde_json::from_slice(&secret).unwrap();
    let (http, url) = (reqwest::Client::new(), fixture.github.url());
    let opened =
        http.post(format!("{url}/_runner/sessions")).json(&json!({ "credential": secret["d"], "version": VERSION }));
    let opened: Value = opened.send().await.unwrap().json().await.unwrap();
    let session = format!("{url}/_runner/sessions/{}", opened["session"].as_str().unwrap());
    let job = fixture.github.queue_job(script("true"));
    let offered: Value = http.post(format!("{session}/poll")).send().await.unwrap().json().await.unwrap();
    assert_eq!(offered["job"], job.0);
    in_progress(&fixture.github, job).await;
    http.delete(&session).send().await.unwrap();
    assert_eq!(fixture.github.job(job).state, JobState::Queued);
}

#[tokio::test]
async fn hooks_are_part_of_the_job() {
    let fixture = fixture(SOON).await;
    let installed = Installed::configured(&fixture, "linux-i-0").await;
    let hook = |name: &str, text: &str| {
        let path = installed.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut run = installed.command("bin/Runner.Listener", &["run"]);
    run.env("ACTIONS_RUNNER_HOOK_JOB_STARTED", hook("started.sh", "echo before"));
    run.env("ACTIONS_RUNNER_HOOK_JOB_COMPLETED", hook("completed.sh", "echo after; test ! -e ../../../fail"));
    let listener = run.spawn().unwrap();
    let (conclusion, output) = completed(&fixture.github, fixture.github.queue_job(script("echo during"))).await;
    assert_eq!((conclusion, output.as_str()), (Conclusion::Success, "before\nduring\nafter\n"));
    let (conclusion, _) = completed(&fixture.github, fixture.github.queue_job(script("touch ../../../fail"))).await;
    assert_eq!(conclusion, Conclusion::Failure, "a hook's failure is the job's");
    signal(&listener, Signal::SIGINT);
    assert_eq!(end(listener).await.0, Some(0));
}

#[tokio::test]
async fn a_release_is_the_same_bytes_each_time_and_in_the_real_form() {
    let (one, other) = (fixture(SOON).await, fixture(SOON).await);
    let (first, second) = (one.github.runner_release(VERSION).unwrap(), other.github.runner_release(VERSION).unwrap());
    assert_eq!(first.sha256, second.sha256);
    let older = one.github.runner_release("2.99.0").unwrap();
    assert_ne!(first.sha256, older.sha256);
    let offered = one.client.runner_downloads().await.unwrap();
    let mine = offered.iter().find(|download| download.download_url == first.url).unwrap();
    assert_eq!(mine.sha256_checksum.as_ref(), Some(&first.sha256));
    assert_eq!(mine.filename, first.url.rsplit('/').next().unwrap());

    let folder = tempfile::tempdir().unwrap();
    unpack(&download(&first).await, folder.path());
    for program in
        ["config.sh", "run.sh", "env.sh", "bin/Runner.Listener", "bin/Runner.Worker", "externals/node24/bin/node"]
    {
        let mode = std::fs::metadata(folder.path().join(program)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{program}");
    }
    assert!(std::fs::read_link(folder.path().join("externals/node")).unwrap().is_relative());
    assert!(folder.path().join("externals/node/bin/node").exists());
}

#[tokio::test]
async fn versions_and_limits_are_told_as_github_tells_them() {
    let fixture = fixture(SOON).await;
    fixture.github.runner_release(VERSION).unwrap();
    let minted = fixture.client.app().installation_token(fixture.github.installation_id()).await.unwrap();
    let ask = |version: &str| {
        let url = format!("{}/orgs/acme/actions/runners/deprecations/{version}", fixture.github.api_url());
        reqwest::Client::builder()
            .user_agent("tests")
            .build()
            .unwrap()
            .get(url)
            .bearer_auth(minted.token.expose_secret())
    };
    let answer = ask(VERSION).send().await.unwrap();
    let header = |name: &str| answer.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
    assert_eq!((header("x-ratelimit-limit"), header("x-ratelimit-remaining")), (5000, 4998));
    assert!(header("x-ratelimit-reset") > 1_700_000_000);
    let body: Value = answer.json().await.unwrap();
    let no_date =
        json!({ "runner_version": VERSION, "registration_deprecates_at": null, "runtime_deprecates_at": null });
    assert_eq!(body, no_date);
    fixture.github.deprecate(VERSION);
    let body: Value = ask(VERSION).send().await.unwrap().json().await.unwrap();
    assert!(body["runtime_deprecates_at"].as_str().unwrap().ends_with('Z'), "{body}");
    assert_eq!(ask("1.0.0").send().await.unwrap().status(), 404);
    assert_eq!(ask(VERSION).header("x-github-api-version", "1999-01-01").send().await.unwrap().status(), 400);
    let nobody = reqwest::Client::new().get(format!("{}/app", fixture.github.api_url()));
    assert_eq!(nobody.send().await.unwrap().status(), 403, "a request without a user agent");
}
