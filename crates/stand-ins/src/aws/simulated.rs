//! Simulated instances: each a few words of memory that register at the stand-in GitHub, so that a fleet of five hundred,
//! or two hundred rollouts, fit into a test. What they do of a life is what a rollout sees of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::groups::{Instance, State};
use crate::github::GitHub;

/// How long one takes to boot.
const BOOT: Duration = Duration::from_millis(30);

/// What is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageFault {
    /// Its instances never come into service.
    NeverBoots,
    /// Its instances come into service, their runners never online.
    NeverOnline,
    /// Its runners have another version than its tag says.
    OtherVersion(String),
}

/// An image that instances are simulated of.
#[derive(Debug)]
struct Image {
    version: String,
    fault: Option<ImageFault>,
}

/// Where instances are simulated, what there is to know of them.
#[derive(Debug, Default)]
pub(super) struct Machines {
    github: Option<GitHub>,
    images: BTreeMap<String, Image>,
}

impl Machines {
    /// From here on instances are simulated.
    pub(super) fn simulate(&mut self, github: GitHub) {
        self.github = Some(github);
    }

    pub(super) fn simulated(&self) -> bool {
        self.github.is_some()
    }

    /// How long a refresh launches instances that never come into service: an hour, which passes a hundred times as fast
    /// where instances are simulated.
    pub(super) fn patience(&self) -> Duration {
        let hour = Duration::from_secs(3600);
        if self.simulated() { hour / 100 } else { hour }
    }

    pub(super) fn add(&mut self, ami: &str, version: &str) {
        self.images.insert(ami.to_owned(), Image { version: version.to_owned(), fault: None });
    }

    pub(super) fn spoil(&mut self, ami: &str, fault: Option<ImageFault>) {
        if let Some(image) = self.images.get_mut(ami) {
            image.fault = fault;
        }
    }
}

/// A simulated instance.
#[derive(Debug)]
pub(super) struct SimulatedInstance {
    fleet: String,
    labels: Vec<String>,
    /// Its runner's id at GitHub, once registered.
    runner: Option<u64>,
}

impl SimulatedInstance {
    /// One that is told this, where instances are simulated.
    pub(super) fn new(machines: &Machines, user_data: &str) -> anyhow::Result<Option<Self>> {
        if machines.github.is_none() {
            return Ok(None);
        }
        let told: Value = serde_json::from_str(user_data).context("user data is a BootConfig")?;
        let fleet = told["fleet"].as_str().context("a BootConfig names its fleet")?.to_owned();
        let labels = told["labels"].as_array().into_iter().flatten();
        let labels = labels.filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Some(Self { fleet, labels, runner: None }))
    }
}

/// Moves a simulated instance on.
pub(super) fn advance(instance: &mut Instance, deaths: &mut u32, machines: &Machines) {
    let Some(github) = &machines.github else { return };
    match instance.state {
        State::PendingWait if instance.since.elapsed() >= BOOT => boot(instance, deaths, machines, github),
        State::TerminatingWait => {
            // GitHub refuses while a job runs, and the termination hook is drawn out.
            let runner = instance.simulated.as_ref().and_then(|simulated| simulated.runner);
            if runner.is_none_or(|runner| github.remove_simulated(runner)) {
                instance.enter(State::Terminated);
            }
        }
        State::PoweringOff => instance.enter(State::Terminated),
        State::PendingWait | State::InService | State::Terminated => {}
    }
}

fn boot(instance: &mut Instance, deaths: &mut u32, machines: &Machines, github: &GitHub) {
    let Some(image) = machines.images.get(&instance.ami) else { return };
    if image.fault == Some(ImageFault::NeverBoots) {
        *deaths += 1;
        instance.failed = true;
        instance.enter(State::PoweringOff);
        return;
    }
    let version = match &image.fault {
        Some(ImageFault::OtherVersion(version)) => version,
        _ => &image.version,
    };
    let online = image.fault != Some(ImageFault::NeverOnline);
    if let Some(simulated) = &mut instance.simulated {
        let name = format!("{}-{}", simulated.fleet, instance.id);
        simulated.runner = Some(github.simulate_runner(&name, &simulated.labels, version, online));
    }
    instance.enter(State::InService);
}

/// Ends one without a word, as its hardware may.
pub(super) fn die(instance: &mut Instance, machines: &Machines) {
    let runner = instance.simulated.as_ref().and_then(|simulated| simulated.runner);
    if let (Some(github), Some(runner)) = (&machines.github, runner) {
        github.set_online(runner, false);
    }
    instance.enter(State::Terminated);
}
