//! What `cargo xtask rehearse --boot` tells: an image is baked, and machines booted from it, each expectation checked at
//! GitHub or on the machine itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use tokio::net::TcpListener;

use super::image::{Image, ImageBuild, Inputs, KEY};
use super::layers::Layers;
use super::machine::{Machine, Parts};
use super::network::{Clock, GITHUB, IMDS, Network};
use super::phases::{self, Boot, CONFIG_SH, Span};
use super::{Options, boot_chart, release_of_debian};
use kiln_e2e::story::Timeline;
use kiln_e2e::world::ORGANIZATION;
use kiln_stand_ins::aws::{Imds, ImdsOptions};
use kiln_stand_ins::github::{Conclusion, GitHub, GitHubOptions, JobId, JobSpec, JobState, Step};

const RUNNER_VERSION: &str = "2.338.0";

/// An emulated machine boots in a quarter of a minute where nothing else runs; twenty times that are for a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// A job of a few commands, or a container, takes ten seconds; thirty times that as above.
const JOB_LIMIT: Duration = Duration::from_secs(300);

/// From the power button until the machine is off takes a few seconds without a job.
const OFF_LIMIT: Duration = Duration::from_secs(180);

/// A look into the machine.
const LOOK_LIMIT: Duration = Duration::from_secs(60);

/// A machine on which everything takes ten times as long is not to be taken for one that is gone.
const LEASE: Duration = Duration::from_secs(180);

/// What the bootstrap is to add to a boot at most.
const ADDED_AIM: Duration = Duration::from_secs(1);

/// What a job of the runner's sees on a machine without docker's daemon. A probe ends with 0 where the metadata service
/// is out of reach, and with 10 where it is not.
const JOB: &str = r#"
[[ $(id -un) == runner ]]
if docker info >/dev/null 2>&1; then echo 'docker answers'; exit 1; fi
/usr/local/bin/kiln-bootstrap probe-metadata
echo done by "$(id -un)"
"#;

/// The same with docker: a container of an image that holds nothing but the binary.
const CONTAINER_JOB: &str = r#"
[[ $(id -un) == runner ]]
tar --create --directory /usr/local/bin kiln-bootstrap | docker import - probe
docker run --rm probe /kiln-bootstrap --version
docker run --rm probe /kiln-bootstrap probe-metadata --forwarded
docker run --rm --network host probe /kiln-bootstrap probe-metadata
/usr/local/bin/kiln-bootstrap probe-metadata
echo done by "$(id -un)"
"#;

/// Whom the guard keeps away is one thing, whether there is something to be kept away from another.
const GUARD: &str = "
set -euo pipefail
systemctl is-active kiln-metadata-guard.service
iptables --list-rules OUTPUT
iptables --table raw --list-rules PREROUTING
code=0
/usr/local/bin/kiln-bootstrap probe-metadata || code=$?
[[ $code == 10 ]] || { echo \"root's probe ended with $code, not 10\"; exit 1; }
";

/// What was told.
#[derive(Debug)]
pub struct RunReport {
    timeline: Timeline,
    boot: Boot,
    load: String,
    analysis: String,
    boot_chart: PathBuf,
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeline, boot, load, analysis, boot_chart } = self;
        writeln!(f, "{timeline}\n{analysis}")?;
        let (registered, added) = (boot.registered.as_secs_f64(), boot.added());
        writeln!(f, "from the kernel's start to registered: {registered:.2} s, on an emulated processor")?;
        let verdict = if added < ADDED_AIM { "below" } else { "above" };
        let seconds = |span: &Span| format!("{} {:.2}", span.name, span.took().as_secs_f64());
        let parts: Vec<String> = boot.phases.iter().filter(|phase| phase.name != CONFIG_SH).map(seconds).collect();
        writeln!(
            f,
            "what the bootstrap itself adds: {:.2} s ({}; {:.2} of it on the processor), {verdict} the {} s aimed at",
            added.as_secs_f64(),
            parts.join(", "),
            boot.cpu.as_secs_f64(),
            ADDED_AIM.as_secs()
        )?;
        writeln!(
            f,
            "beside that, the runner's config.sh, a stand-in here: {:.2} s, which an ephemeral fleet's runner has not",
            boot.config_sh().as_secs_f64()
        )?;
        writeln!(f, "this machine's load meanwhile: {load} (a minute's average of running processes)")?;
        writeln!(f, "a picture of it: {}", boot_chart.display())
    }
}

/// Is docker's daemon there?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Docker {
    Absent,
    Present,
}

impl Docker {
    /// The same image serves both: its units can be masked from outside.
    fn kernel_options(self) -> &'static str {
        match self {
            Self::Absent => "systemd.mask=docker.service systemd.mask=docker.socket systemd.mask=containerd.service",
            Self::Present => "",
        }
    }

    fn instance(self) -> &'static str {
        match self {
            Self::Absent => "i-0b007000000000001",
            Self::Present => "i-0b007000000000002",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Absent => "without-docker",
            Self::Present => "with-docker",
        }
    }
}

/// Tells it all.
///
/// # Errors
/// The first expectation that is not met.
pub(super) async fn tell(options: &Options, workdir: &Path) -> anyhow::Result<RunReport> {
    let mut story = Story::begin(options, workdir).await?;
    let image = story.bake().await.context("the image")?;
    let (boot, analysis) = story.without_docker(&image).await.context("a machine without docker")?;
    let load = load();
    let boot_chart = options.directory.join("boot.svg");
    let title =
        format!("kiln: from the kernel's start to a registered runner ({:.2} s)", boot.registered.as_secs_f64());
    std::fs::write(&boot_chart, boot_chart::svg(&boot, &title))
        .with_context(|| format!("write {}", boot_chart.display()))?;
    story.with_docker(&image).await.context("a machine with docker")?;
    Ok(RunReport { timeline: story.timeline, boot, load, analysis, boot_chart })
}

/// How busy this machine is, without which a time on an emulated processor says little.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().filter(|load| !load.is_empty()).unwrap_or("unknown").to_owned()
}

struct Story<'a> {
    options: &'a Options,
    workdir: &'a Path,
    network: Network,
    _clock: Clock,
    /// Where the metadata service of each instance listens.
    imds: std::net::TcpListener,
    github: GitHub,
    sockets: tempfile::TempDir,
    timeline: Timeline,
}

/// A machine that is up, and what goes with it.
struct Up {
    machine: Machine,
    instance: &'static str,
    runner: String,
    _imds: Imds,
}

impl<'a> Story<'a> {
    async fn begin(options: &'a Options, workdir: &'a Path) -> anyhow::Result<Self> {
        let timeline = Timeline::start();
        let network = Network::new().await?;
        let listener = TcpListener::from_std(network.listen(GITHUB, 80)?)?;
        let github = GitHubOptions { lease: LEASE, ..GitHubOptions::new(ORGANIZATION) };
        let github = GitHub::start_at(github, listener)?;
        let imds = network.listen(IMDS, 80)?;
        let clock = network.start_clock()?;
        let sockets = tempfile::Builder::new().prefix("kiln-boot-").tempdir().context("make a folder for sockets")?;
        Ok(Self { options, workdir, network, _clock: clock, imds, github, sockets, timeline })
    }

    fn heading(&self, text: &str) {
        (self.options.say)(&format!("── {text}"));
    }

    async fn bake(&mut self) -> anyhow::Result<Image> {
        self.heading("the component documents, on Debian with Debian's packages");
        let (debian, system) = release_of_debian()?;
        let release = self.github.runner_release(RUNNER_VERSION)?;
        // The instance's network is not this machine's, which downloads.
        let here = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", here.local_addr()?);
        let _serving = self.github.also_at(here);
        let inputs = Inputs {
            debian: &debian,
            system,
            bootstrap: &self.options.bootstrap,
            runner_version: RUNNER_VERSION,
            runner_url: release.url.replace(&self.github.url(), &address),
            runner_sha256: release.sha256,
            key: &self.github.generate_key(),
        };
        let layers = Layers::new(self.options.directory.join("layers"));
        let bakery = ImageBuild { layers, workdir: self.workdir, say: self.options.say };
        bakery.bake(&inputs, &mut self.timeline).await
    }

    /// The boot that is measured: nothing but the runner.
    async fn without_docker(&mut self, image: &Image) -> anyhow::Result<(Boot, String)> {
        let up = self.boot(image, Docker::Absent).await?;
        let looked = async {
            self.job(&up, JOB).await?;
            let analysis = look(&up.machine, "systemd-analyze; systemd-analyze critical-chain kiln-bootstrap.service");
            let analysis = analysis.await?;
            anyhow::Ok((Boot::read(&look(&up.machine, phases::SCRIPT).await?)?, analysis))
        };
        let (boot, analysis) = explained(&up, looked.await).await?;
        self.drain(up).await?;
        Ok((boot, analysis))
    }

    /// The image's own tests, and a job with containers.
    async fn with_docker(&mut self, image: &Image) -> anyhow::Result<()> {
        let up = self.boot(image, Docker::Present).await?;
        let begin = Instant::now();
        let looked = async {
            self.job(&up, CONTAINER_JOB).await?;
            self.timeline.add(begin.elapsed(), "a job ran a container; neither reached the metadata service");
            look(&up.machine, GUARD).await.context("the metadata guard")?;
            let begin = Instant::now();
            self.heading("the component documents' tests, on the machine");
            image.test(&up.machine, self.options.say).await?;
            self.timeline.add(begin.elapsed(), "the image's own tests passed on it");
            anyhow::Ok(())
        };
        let looked = looked.await;
        explained(&up, looked).await?;
        self.drain(up).await
    }

    async fn boot(&mut self, image: &Image, docker: Docker) -> anyhow::Result<Up> {
        self.heading(&format!("a machine {}", docker.name().replace('-', " ")));
        let begin = Instant::now();
        let instance = docker.instance();
        let imds = ImdsOptions {
            instance: instance.to_owned(),
            ami: "ami-0b007000000000000".to_owned(),
            user_data: Some(self.boot_config(docker)),
            target: Box::new(|| None),
        };
        let imds = Imds::start_at(imds, TcpListener::from_std(self.imds.try_clone()?)?)?;
        let parts = Parts {
            disk: &image.disk,
            boot: &image.boot,
            kernel_options: docker.kernel_options(),
            sockets: self.sockets.path(),
            console: self.options.directory.join(format!("console-{}.log", docker.name())),
        };
        let machine = Machine::start(&self.network, parts).await?;
        let online = self.github.until(BOOT_LIMIT, "the runner", |github| {
            let online = github.runners().into_iter().find(|runner| runner.online && runner.name.contains(instance));
            online.map(|runner| runner.name)
        });
        let online = tokio::select! {
            online = online => online,
            off = machine.off() => Err(off.err().unwrap_or_else(|| anyhow::anyhow!("the machine went off:\n{}", machine.console()))),
        };
        let mut up = Up { machine, instance, runner: String::new(), _imds: imds };
        up.runner = explained(&up, online).await?;
        self.timeline.add(begin.elapsed(), format!("{} booted and is online", up.runner));
        let settled = async {
            // It ends with another code than 0 where a unit failed, which the next line tells by name.
            let ask = "systemctl is-system-running --wait; systemctl --failed --plain --no-legend";
            let failed = up.machine.bash(ask, BOOT_LIMIT).await?.success()?;
            ensure!(failed.trim() == "running", "not every unit came up: {failed}");
            Ok(())
        };
        explained(&up, settled.await).await?;
        Ok(up)
    }

    /// What the instance is told: in no group, its key in a file.
    fn boot_config(&self, docker: Docker) -> String {
        json!({
            "version": 1,
            "organization": ORGANIZATION,
            "fleet": "linux",
            "github": { "api_url": self.github.api_url(), "url": self.github.url() },
            "app": { "issuer": self.github.client_id(), "installation_id": self.github.installation_id() },
            "key": { "file": KEY },
            "registration": "persistent",
            "labels": ["linux-x64"],
            "runner_group": "Default",
            "runner": { "version": RUNNER_VERSION, "user": "runner", "directory": "/opt/actions-runner" },
            "job_metadata_access": "blocked",
            "wait_for_docker": docker == Docker::Present,
        })
        .to_string()
    }

    async fn job(&mut self, up: &Up, script: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        let job = self.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run(script.to_owned())));
        self.succeeds(job, up).await?;
        self.timeline.add(begin.elapsed(), format!("a job ran on {}", up.runner));
        Ok(())
    }

    async fn succeeds(&self, job: JobId, up: &Up) -> anyhow::Result<()> {
        let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
        let state = self.github.wait_job(job, ended, JOB_LIMIT).await?;
        let JobState::Completed { conclusion, runner, output, .. } = state else { bail!("the job has not ended") };
        ensure!(conclusion == Conclusion::Success, "the job ended with {conclusion:?}:\n{output}");
        ensure!(runner == up.runner, "the job ran on {runner}, not on {}", up.runner);
        Ok(())
    }

    /// The power button, while a job runs: it is done first, then the runner is gone, then the machine.
    async fn drain(&mut self, up: Up) -> anyhow::Result<()> {
        let drained = self.drained(&up).await;
        explained(&up, drained).await?;
        let off = tokio::time::timeout(OFF_LIMIT, up.machine.off()).await;
        off.with_context(|| format!("not off {} s after the drain:\n{}", OFF_LIMIT.as_secs(), up.machine.console()))?
    }

    /// Waits until systemd shows on the console that it waits for the service to stop.
    async fn stops_the_service(&self, up: &Up) -> anyhow::Result<()> {
        const SHOWN: &str = "kiln-bootstrap.service/stop running";
        let shown = async {
            while !up.machine.console().contains(SHOWN) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let shown = tokio::time::timeout(OFF_LIMIT, shown).await;
        shown.with_context(|| format!("the console does not show `{SHOWN}`:\n{}", up.machine.console()))
    }

    async fn drained(&mut self, up: &Up) -> anyhow::Result<()> {
        let github = &self.github;
        let begin = Instant::now();
        let job = github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Hold).step(Step::Run("true".to_owned())));
        github.wait_job(job, |state| matches!(state, JobState::InProgress { .. }), JOB_LIMIT).await?;
        let asked = github.count("DELETE", "/actions/runners/");
        up.machine.press_power_button().await?;
        self.stops_the_service(up).await?;
        ensure!(
            matches!(github.job(job).state, JobState::InProgress { .. }),
            "the job did not outlast the power button"
        );
        let deletes = github.count("DELETE", "/actions/runners/");
        ensure!(deletes == asked, "a runner that runs a job was to be deleted");
        github.release_job(job);
        self.succeeds(job, up).await?;
        let gone = |github: &GitHub| (!github.runners().iter().any(|known| known.name == up.runner)).then_some(());
        github.until(OFF_LIMIT, "the runner to leave GitHub", gone).await?;
        self.timeline
            .add(begin.elapsed(), format!("{} was switched off: its job ended well, then it left GitHub", up.instance));
        Ok(())
    }
}

async fn look(machine: &Machine, script: &str) -> anyhow::Result<String> {
    machine.bash(script, LOOK_LIMIT).await?.success()
}

/// What was hoped for, or why not, with the machine's own account.
async fn explained<T>(up: &Up, result: anyhow::Result<T>) -> anyhow::Result<T> {
    /// A machine that has nothing to say is not waited for.
    const BOUND: Duration = Duration::from_secs(20);
    let Err(error) = result else { return result };
    let asked = up
        .machine
        .bash("systemctl --failed --no-legend; journalctl --boot --unit 'kiln-*' --lines 30 --no-pager", BOUND);
    let account = match tokio::time::timeout(BOUND, asked).await {
        Ok(Ok(ended)) => ended.said,
        _ => format!("the machine does not answer; its console:\n{}", up.machine.console()),
    };
    Err(error.context(format!("on {}:\n{account}", up.instance)))
}
