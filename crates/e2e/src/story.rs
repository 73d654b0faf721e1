//! What a rehearsal tells: from an empty account to a rotated key, each command as a pipeline runs it, each expectation
//! checked in the world and not in the command's own words.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};

use crate::report::{self, Calls, Plan, Ran, Report, Span, SpanKind};
use crate::world::{Outcome, World};
use kiln_stand_ins::github::{Conclusion, JobId, JobSpec, JobState, Step};

/// The runner pinned at first, and the one it is moved to.
pub const VERSIONS: [&str; 2] = ["2.337.1", "2.338.0"];

/// The network is the emulator's default VPC, which has the same ids in every world: it can't make a NAT gateway.
/// Its instances are processes of this machine, from which nothing keeps a job away: hence `job_metadata_access`.
///
/// Two fleets that share an image and nothing else: persistent runners signed for by KMS, ephemeral ones by a secret.
pub const FLEETS: &str = r#"
[fleet.linux]
labels = ["linux-x64"]
registration = "persistent"
instance_types = ["m6i.large", "m5.large"]
min = 1
max = 2
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001", "subnet-00000002"] }
key_store = "kms"
failed_boot_grace_secs = 1
job_metadata_access = "allowed"

[fleet.once]
labels = ["once"]
registration = "ephemeral"
instance_types = ["m6i.large"]
min = 1
max = 2
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001", "subnet-00000002"] }
key_store = "secrets-manager"
failed_boot_grace_secs = 1
job_metadata_access = "allowed"
"#;

/// Processes on this machine do in seconds what instances do in minutes.
const SOON: Duration = Duration::from_secs(60);

/// What happened, and when.
#[derive(Debug)]
pub struct Timeline {
    begin: Instant,
    entries: Vec<Span>,
}

impl Timeline {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self { begin: Instant::now(), entries: Vec::new() }
    }

    /// Adds something that has just ended and took `took`.
    pub fn add(&mut self, took: Duration, what: impl Into<String>) {
        self.push(took, what, SpanKind::Event);
    }

    fn push(&mut self, took: Duration, what: impl Into<String>, kind: SpanKind) {
        let at = self.begin.elapsed().saturating_sub(took);
        self.entries.push(Span { at, took, what: what.into(), kind });
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>9}  {:>9}", "at", "took")?;
        for Span { at, took, what, .. } in &self.entries {
            writeln!(f, "{:>7.1} s  {:>7.1} s  {what}", at.as_secs_f64(), took.as_secs_f64())?;
        }
        Ok(())
    }
}

/// Tells the whole story in a fresh world.
#[derive(Debug)]
pub struct Story<'a> {
    world: &'a World,
    say: fn(&str),
    begun: SystemTime,
    timeline: Timeline,
    commands: Vec<Ran>,
}

/// A story that was told, to its end or to the first expectation that the world did not meet.
#[derive(Debug)]
pub struct RunReport {
    /// What happened.
    pub timeline: Timeline,
    /// The same as a page.
    pub report: Report,
    /// The first expectation that the world did not meet.
    pub result: anyhow::Result<()>,
}

impl<'a> Story<'a> {
    /// A story in a world in which nothing has happened yet.
    pub fn new(world: &'a World, say: fn(&str)) -> Self {
        Self { world, say, begun: SystemTime::now(), timeline: Timeline::start(), commands: Vec::new() }
    }

    /// Tells it.
    pub async fn tell(mut self) -> RunReport {
        let result = self.chapters().await;
        let report = Report {
            begun: self.begun,
            took: self.timeline.begin.elapsed(),
            failure: result.as_ref().err().map(|error| format!("{error:#}")),
            timeline: self.timeline.entries.clone(),
            commands: self.commands,
            boots: report::boots(self.world),
            aws: report::aws_calls(self.world),
            github: report::github_calls(self.world),
        };
        RunReport { timeline: self.timeline, report, result }
    }

    async fn chapters(&mut self) -> anyhow::Result<()> {
        let first_key = self.install().await.context("installing Kiln")?;
        let (first_ami, mut first_runner) = self.rollout_first().await.context("the first image")?;
        first_runner = self.work(&first_runner).await.context("a runner's work")?;
        self.rollout_second(&first_ami, &first_runner).await.context("the second image, while a job runs")?;
        let second_key = self.rotate(&first_key).await.context("rotating the key")?;
        self.nothing_changed(&second_key).await.context("every command once more")?;
        self.look_around().await.context("the commands that check")?;
        self.take_down().await.context("taking it down")
    }

    fn heading(&self, text: &str) {
        (self.say)("");
        (self.say)(&format!("── {text}"));
    }

    /// Runs a command first with `--dry-run`: it must print the plan that then runs, and change nothing.
    async fn planned(&mut self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        let dry: Vec<&str> = arguments.iter().copied().chain(["--dry-run", "--json"]).collect();
        let before = self.world.aws.mutations();
        let outcome = self.ran(&dry, SpanKind::DryRun).await?.success()?;
        let mutations = self.world.aws.mutations() - before;
        let line = dry.join(" ");
        ensure!(mutations == 0, "`{line}` made {mutations} mutating calls: {:?}", self.world.aws.requests());
        let plan = outcome.stderr;
        let outcome = self.command(arguments).await?.success()?;
        for step in plan_lines(&plan) {
            ensure!(outcome.stderr.contains(step), "the dry run promised `{step}`, the real run did not say it");
        }
        Ok(outcome)
    }

    async fn command(&mut self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        self.ran(arguments, SpanKind::Command).await
    }

    async fn ran(&mut self, arguments: &[&str], kind: SpanKind) -> anyhow::Result<Outcome> {
        let line = format!("cargo xtask {}", arguments.join(" "));
        self.heading(&line);
        let before = self.world.aws.requests().len();
        let outcome = self.world.run(arguments, self.say).await?;
        self.account_for(&line, &outcome, before, kind);
        Ok(outcome)
    }

    /// Notes a command that has ended, with the calls it made since there were `before`.
    fn account_for(&mut self, line: &str, outcome: &Outcome, before: usize, kind: SpanKind) {
        let kind = if outcome.code == Some(0) { kind } else { SpanKind::Refused };
        self.timeline.push(outcome.took, format!("{line}{}", exit_note(outcome)), kind);
        let mut calls = Calls::default();
        for request in self.world.aws.requests().iter().skip(before) {
            calls.add(request.mutating, request.status);
        }
        let plans = serde_json::from_str(&outcome.stdout).map(|Planned { plans }| plans).unwrap_or_default();
        let (code, took, said) = (outcome.code, outcome.took, outcome.stderr.clone());
        self.commands.push(Ran { line: line.to_owned(), code, took, plans, calls, said });
    }

    async fn install(&mut self) -> anyhow::Result<String> {
        self.world.write_config(VERSIONS[0], FLEETS)?;
        let outcome = self.command(&["deploy"]).await?;
        ensure!(outcome.code == Some(5), "a deploy without a key must exit with 5, not {:?}", outcome.code);
        ensure!(outcome.stderr.contains("rotate-key --pem"), "it must say to run rotate-key");
        let pem = self.world.download_key("first.pem")?;
        let pem = pem.to_str().context("the path is text")?;
        self.planned(&["rotate-key", "--pem", pem]).await?;
        Ok(pem.to_owned())
    }

    async fn rollout_first(&mut self) -> anyhow::Result<(String, String)> {
        let outcome = self.planned(&["ami"]).await?;
        let ami = ami_of(&outcome)?;
        self.planned(&["deploy"]).await?;
        let runner = self.online_runner("linux", VERSIONS[0]).await?;
        self.online_runner("once", VERSIONS[0]).await?;
        Ok((ami, runner))
    }

    /// A job on each fleet: the persistent runner stays, the ephemeral one's instance is replaced.
    async fn work(&mut self, runner: &str) -> anyhow::Result<String> {
        let begin = Instant::now();
        let job = self.world.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run("id -u; pwd".to_owned())));
        let done = self.completed(job).await?;
        ensure!(done == runner, "the job ran on {done}, not on {runner}");
        self.timeline.add(begin.elapsed(), format!("a job ran on {runner}"));
        let begin = Instant::now();
        let once = self.online_runner("once", VERSIONS[0]).await?;
        let job = self.world.github.queue_job(JobSpec::new(["once"]).step(Step::Run("true".to_owned())));
        let done = self.completed(job).await?;
        ensure!(done == once, "the job ran on {done}, not on {once}");
        let next = self.wait("a fresh ephemeral runner", || {
            self.runners("once", VERSIONS[0]).into_iter().find(|name| *name != once)
        });
        let next = next.await?;
        self.timeline.add(begin.elapsed(), format!("a job ran on {once}; {next} took its place"));
        Ok(runner.to_owned())
    }

    async fn rollout_second(&mut self, first_ami: &str, old: &str) -> anyhow::Result<()> {
        self.world.write_config(VERSIONS[1], FLEETS)?;
        let job = self.world.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Hold));
        self.wait("the job to start", || matches!(self.state(job), JobState::InProgress { .. }).then_some(())).await?;
        let started = Instant::now();
        let ami = ami_of(&self.planned(&["ami"]).await?)?;
        ensure!(ami != first_ami, "a changed pin must give a new AMI");
        let line = "cargo xtask deploy (while a job is running)";
        self.heading(line);
        let before = self.world.aws.requests().len();
        let deploy = self.world.spawn(&["deploy"], self.say)?;
        let new = self.online_runner("linux", VERSIONS[1]).await?;
        self.wait("the old instance to drain", || self.draining(old).then_some(())).await?;
        ensure!(matches!(self.state(job), JobState::InProgress { .. }), "the job did not outlast the rollout");
        ensure!(self.registered(old), "{old} left GitHub while its job was running");
        self.timeline.add(started.elapsed(), format!("{new} is online; {old} drains, its job still running"));
        let released = Instant::now();
        self.world.github.release_job(job);
        let done = self.completed(job).await?;
        ensure!(done == old, "the job ended on {done}, not on {old}");
        self.wait("the old runner to leave", || (!self.registered(old)).then_some(())).await?;
        self.timeline.add(released.elapsed(), format!("the job ended well on {old}, and only then it left"));
        let outcome = deploy.end().await?.success()?;
        self.account_for(line, &outcome, before, SpanKind::Command);
        Ok(())
    }

    async fn rotate(&mut self, first: &str) -> anyhow::Result<String> {
        let old_fingerprints = self.world.github.keys();
        let pem = self.world.download_key("second.pem")?;
        let pem = pem.to_str().context("the path is text")?.to_owned();
        let outcome = self.planned(&["rotate-key", "--pem", &pem]).await?;
        for fingerprint in &old_fingerprints {
            ensure!(outcome.stderr.contains(fingerprint), "it must name {fingerprint} as the one to delete");
            self.world.github.revoke_key(fingerprint);
        }
        let outcome = self.command(&["rotate-key", "--pem", first]).await?;
        ensure!(outcome.code == Some(4), "a revoked key must be refused with exit code 4, not {:?}", outcome.code);
        for fleet in ["linux", "once"] {
            let begin = Instant::now();
            let before = self.online_runner(fleet, VERSIONS[1]).await?;
            let instance = instance_of(&before)?;
            self.world.aws.terminate_instance(&instance).await?;
            let after = self.wait("a new instance with the new key", || {
                self.runners(fleet, VERSIONS[1]).into_iter().find(|name| !name.contains(&instance))
            });
            let after = after.await?;
            // A runner is online before its group has the instance in service.
            let id = instance_of(&after)?;
            let serves = || self.world.aws.instances().into_iter().find(|one| one.id == id && one.state == "InService");
            self.wait("the new instance to be in service", serves).await?;
            self.timeline.add(begin.elapsed(), format!("{after} came up with the new key, the old one revoked"));
        }
        Ok(pem)
    }

    async fn nothing_changed(&mut self, pem: &str) -> anyhow::Result<()> {
        for arguments in [&["rotate-key", "--pem", pem][..], &["ami"], &["deploy"]] {
            let before = self.world.aws.mutations();
            let outcome = self.command(arguments).await?.success()?;
            let mutations = self.world.aws.mutations() - before;
            ensure!(mutations == 0, "`{}` made {mutations} mutating calls", arguments.join(" "));
            ensure!(outcome.stderr.contains("nothing to do"), "`{}` had something to do", arguments.join(" "));
        }
        Ok(())
    }

    /// The commands that check and change nothing here.
    async fn look_around(&mut self) -> anyhow::Result<()> {
        for arguments in [&["doctor", "--skip-machine"][..], &["status"], &["pin", "--check"], &["prune"]] {
            let before = self.world.aws.mutations();
            self.command(arguments).await?.success()?;
            let mutations = self.world.aws.mutations() - before;
            ensure!(mutations == 0, "`{}` made {mutations} mutating calls", arguments.join(" "));
        }
        Ok(())
    }

    async fn take_down(&mut self) -> anyhow::Result<()> {
        self.planned(&["destroy", "--all", "--yes"]).await?;
        let left: Vec<_> = self.world.github.runners().into_iter().map(|runner| runner.name).collect();
        ensure!(left.is_empty(), "GitHub still has {left:?}");
        let stacks = self.world.aws.stack_names().await?;
        ensure!(!stacks.iter().any(|stack| stack.contains("-fleet-")), "AWS still has {stacks:?}");
        Ok(())
    }

    fn state(&self, job: JobId) -> JobState {
        self.world.github.job(job).state
    }

    async fn completed(&self, job: JobId) -> anyhow::Result<String> {
        let (conclusion, runner) = self
            .wait("the job to end", || match self.state(job) {
                JobState::Completed { conclusion, runner, .. } => Some((conclusion, runner)),
                _ => None,
            })
            .await?;
        ensure!(conclusion == Conclusion::Success, "the job ended with {conclusion:?}");
        Ok(runner)
    }

    /// Names of a fleet's runners that are online with a version.
    fn runners(&self, fleet: &str, version: &str) -> Vec<String> {
        let prefix = format!("{fleet}-i-");
        let runners = self.world.github.runners().into_iter();
        runners
            .filter(|runner| {
                runner.name.starts_with(&prefix) && runner.online && runner.version.as_deref() == Some(version)
            })
            .map(|runner| runner.name)
            .collect()
    }

    async fn online_runner(&self, fleet: &str, version: &str) -> anyhow::Result<String> {
        self.wait(&format!("a runner of fleet {fleet} with version {version}"), || {
            self.runners(fleet, version).into_iter().next()
        })
        .await
    }

    fn registered(&self, runner: &str) -> bool {
        self.world.github.runners().iter().any(|known| known.name == runner)
    }

    fn draining(&self, runner: &str) -> bool {
        let instances = self.world.aws.instances();
        instances.iter().any(|i| runner.contains(i.id.as_str()) && i.state == "Terminating:Wait")
    }

    /// Looks at the world until it is as expected. Bounded by [`SOON`].
    async fn wait<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> anyhow::Result<T> {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if tokio::time::Instant::now() >= deadline {
                bail!("waited {} s for {what}\n{}", SOON.as_secs(), self.account());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The world's own account, for an expectation that was not met.
    fn account(&self) -> String {
        let mut text = String::new();
        for instance in self.world.aws.instances() {
            let log = std::fs::read_to_string(&instance.log).unwrap_or_default();
            text.push_str(&format!(
                "instance {} is {}:\n{}\n",
                instance.id,
                instance.state,
                crate::world::tail(&log, 15)
            ));
        }
        for runner in self.world.github.runners() {
            text.push_str(&format!("runner {runner:?}\n"));
        }
        text
    }
}

/// Of what `--json` prints, the part that the report shows.
#[derive(Debug, serde::Deserialize)]
struct Planned {
    plans: Vec<Plan>,
}

fn exit_note(outcome: &Outcome) -> String {
    match outcome.code {
        Some(0) => String::new(),
        Some(code) => format!(" (refused as it should be, exit code {code})"),
        None => " (killed)".to_owned(),
    }
}

/// The numbered lines of a printed plan.
fn plan_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| line.trim_start().split_once(". ").is_some_and(|(n, _)| n.parse::<u32>().is_ok()))
}

/// `ami` prints the id alone on stdout.
fn ami_of(outcome: &Outcome) -> anyhow::Result<String> {
    let id = outcome.stdout.trim_end();
    ensure!(id.starts_with("ami-") && id.lines().count() == 1, "stdout must be an AMI id alone, not {id:?}");
    Ok(id.to_owned())
}

/// The instance id in a runner's name.
fn instance_of(runner: &str) -> anyhow::Result<String> {
    let (_, rest) = runner.split_once("-i-").context("a runner's name holds its instance's id")?;
    Ok(format!("i-{}", rest.split('-').next().unwrap_or_default()))
}
