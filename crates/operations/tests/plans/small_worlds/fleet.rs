//! `deploy` over every state of a small world: two images, of which one may be bad, at most two instances, and runs that are
//! killed after any of their steps. From each state that can be reached the planner must lead on, and never break what it
//! promises.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::SystemTime;

use kiln_config::config::{Config, Fleet};
use kiln_config::model::AmiId;
use kiln_github::Runner;
use kiln_operations::deploy::{self, Observed, Record, Request, Step, Target};
use kiln_operations::fleet_stack::SERVING;
use kiln_operations::ports::{
    Group, GroupInstance, LaunchTemplateVersion, Refresh, RefreshStatus, Stack, StackRequest,
};

use crate::config;

/// How many actions lead to the states that are looked at.
const DEPTH: usize = 8;
/// A run of `deploy` that is not killed leaves nothing to do after so many more.
const MOST_RUNS: usize = 3;

const IMAGES: [&str; 2] = ["ami-000000000000000aa", "ami-000000000000000bb"];

/// What is true in AWS and at GitHub. Images and versions are numbers: launch template version `n` has image `versions[n - 1]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    baked: usize,
    current: Option<usize>,
    former: Option<usize>,
    rejected: Option<usize>,
    /// The images of the launch template's versions. None: there is no stack.
    versions: Vec<usize>,
    /// The stack's parameter that pins the group's version; 0 follows the newest.
    pinned: usize,
    /// What the group launches new instances from.
    launches: usize,
    /// Each instance's version.
    instances: Vec<usize>,
    /// A refresh that runs.
    refreshing: bool,
}

/// What somebody does, or what happens.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// An image is baked.
    Bake(usize),
    /// A run of `deploy`; it is killed once so many steps are done, and within the next one if that is a roll.
    Deploy(Target, Option<usize>),
    /// An instance is lost, and the group launches another.
    Lose(usize),
}

/// Why a run ends early.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Killed,
    /// A step, or the planner, gives a reason.
    Reason(String),
}

struct Explorer {
    config: Config,
    /// The images whose instances never serve.
    bad: BTreeSet<usize>,
}

impl World {
    const NOTHING: Self = Self {
        baked: 0,
        current: None,
        former: None,
        rejected: None,
        versions: Vec::new(),
        pinned: 0,
        launches: 0,
        instances: Vec::new(),
        refreshing: false,
    };

    fn image_of(&self, version: usize) -> usize {
        self.versions[version - 1]
    }
}

fn ami(image: usize) -> AmiId {
    IMAGES[image].parse().unwrap()
}

fn image(ami: &AmiId) -> usize {
    IMAGES.iter().position(|known| *known == ami.as_str()).unwrap()
}

fn version(number: usize) -> LaunchTemplateVersion {
    LaunchTemplateVersion { id: "lt-1".to_owned(), version: number.to_string() }
}

fn instance_id(index: usize) -> String {
    format!("i-0000000000000000{index}")
}

impl Explorer {
    fn fleet(&self) -> &Fleet {
        &self.config.fleets[&"linux".parse().unwrap()]
    }

    fn serves(&self, world: &World, version: usize) -> bool {
        !self.bad.contains(&world.image_of(version))
    }

    /// The world as `deploy` observes it.
    fn observe(&self, world: &World, target: Target) -> kiln_operations::Result<Observed> {
        let at = |image: Option<usize>| image.map(ami);
        let record = Record { current: at(world.current), former: at(world.former), rejected: at(world.rejected) };
        let newest = world.versions.last().copied();
        let stack = newest.map(|image| self.stack(world, image));
        let aim = record.aim(target, &ami(world.baked), newest.map(ami).as_ref())?;
        let group = (!world.versions.is_empty()).then(|| self.group(world));
        let refresh = world.refreshing.then(|| Refresh {
            id: "refresh".to_owned(),
            status: RefreshStatus::Running("InProgress".to_owned()),
            percent: 50,
            remaining: 1,
            reason: None,
            to: Some(version(world.versions.len())),
            stops: false,
        });
        let serving = world.instances.iter().enumerate().filter(|(_, version)| self.serves(world, **version));
        let runners = serving.map(|(index, _)| runner(&instance_id(index))).collect();
        let (tags, tags_now) = (BTreeMap::new(), BTreeMap::new());
        let (network, dead, lifetime, at) = (None, Vec::new(), None, SystemTime::UNIX_EPOCH);
        Ok(Observed { aim, tags, tags_now, record, network, stack, dead, group, refresh, runners, lifetime, at })
    }

    fn stack(&self, world: &World, image: usize) -> Stack {
        let fleet = self.fleet();
        let pin = if world.pinned == 0 { String::new() } else { world.pinned.to_string() };
        let made = kiln_operations::fleet_stack::stack_request(&self.config, fleet, &ami(image), None, &pin).unwrap();
        let newest = version(world.versions.len());
        Stack {
            name: made.name,
            status: "UPDATE_COMPLETE".to_owned(),
            reason: None,
            template: Some(made.template),
            parameters: made.parameters,
            outputs: [("LaunchTemplateId", newest.id), ("LaunchTemplateVersion", newest.version)]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            tags: made.tags,
        }
    }

    fn group(&self, world: &World) -> Group {
        let instances = world.instances.iter().enumerate().map(|(index, made_of)| GroupInstance {
            id: instance_id(index).parse().unwrap(),
            state: if self.serves(world, *made_of) { "InService" } else { "Pending" }.to_owned(),
            healthy: true,
            launch_template: Some(version(*made_of)),
        });
        Group {
            name: self.config.group(&self.fleet().name),
            launch_template: Some(version(world.launches)),
            min: 1,
            max: 4,
            desired: u32::try_from(world.instances.len()).unwrap(),
            instances: instances.collect(),
            suspended: Vec::new(),
        }
    }

    fn plan(&self, world: &World, target: Target) -> kiln_operations::Result<Vec<Step>> {
        let observed = self.observe(world, target)?;
        let request = Request { target, ..Request::new(&self.config, self.fleet()) };
        Ok(deploy::plan(&request, &observed)?.steps)
    }

    /// One run. What it promises is looked at after each step.
    fn run(&self, world: &mut World, target: Target, killed_after: Option<usize>) -> Result<bool, Stop> {
        let steps = self.plan(world, target).map_err(|error| Stop::Reason(error.to_string()))?;
        for (index, step) in steps.iter().enumerate() {
            let killed = killed_after == Some(index);
            if killed && matches!(step, Step::Roll { .. }) {
                world.refreshing = true;
                self.replace_one(world);
            }
            if killed {
                return Err(Stop::Killed);
            }
            self.apply(world, step)?;
            if step.ends_the_plan() {
                let killed_after = killed_after.map(|after| after - index - 1);
                return self.run(world, target, killed_after).map(|_| true);
            }
        }
        Ok(!steps.is_empty())
    }

    /// What AWS does of a step.
    fn apply(&self, world: &mut World, step: &Step) -> Result<(), Stop> {
        let newest = world.versions.len();
        match step {
            Step::Reject { ami } => world.rejected = Some(image(ami)),
            Step::Accept { .. } => world.rejected = None,
            Step::Stack(step) => self.update(world, &step.request),
            Step::Settle(request) => self.update(world, request),
            Step::AwaitRefresh { .. } | Step::Roll { .. } => {
                let former = world.launches;
                world.refreshing = false;
                if !self.serves(world, newest) {
                    // The refresh goes back to what the group launches.
                    world.instances.iter_mut().for_each(|instance| *instance = former);
                    return Err(Stop::Reason("the new instances do not serve".to_owned()));
                }
                world.instances.iter_mut().for_each(|instance| *instance = newest);
                world.launches = newest;
            }
            Step::Verify { back_to, .. } => {
                if !self.all_serve(world) {
                    if let Some(former) = back_to.as_ref().and_then(|version| version.parse::<usize>().ok()) {
                        world.instances.iter_mut().for_each(|instance| *instance = former);
                        world.launches = former;
                    }
                    return Err(Stop::Reason("a runner is not online".to_owned()));
                }
            }
            Step::Mark { ami, .. } => {
                assert!(self.all_serve(world), "an image is recorded that does not serve: {world:?}");
                assert!(world.instances.iter().all(|version| world.image_of(*version) == image(ami)), "{world:?}");
                if world.current != Some(image(ami)) {
                    world.former = world.current.or(world.former);
                }
                world.current = Some(image(ami));
            }
            Step::CleanUp { .. } | Step::Clear(_) => {}
        }
        Ok(())
    }

    fn all_serve(&self, world: &World) -> bool {
        world.instances.iter().all(|version| self.serves(world, *version))
    }

    fn update(&self, world: &mut World, wanted: &StackRequest) {
        let wanted_image = image(&wanted.parameters["AmiId"].parse().unwrap());
        let first = world.versions.is_empty();
        if world.versions.last() != Some(&wanted_image) {
            world.versions.push(wanted_image);
        }
        world.pinned = wanted.parameters[SERVING].parse().unwrap_or(0);
        let launches = if world.pinned == 0 { world.versions.len() } else { world.pinned };
        if first {
            world.instances = vec![launches; 2];
        } else {
            let proved = self.serves(world, launches) || launches == world.launches;
            assert!(proved, "new instances would come from an image that no instance has proved: {world:?}");
        }
        world.launches = launches;
    }

    /// A refresh that runs has replaced one instance; a new one that does not serve is not counted yet.
    fn replace_one(&self, world: &mut World) {
        let newest = world.versions.len();
        if self.serves(world, newest) {
            world.instances[0] = newest;
        }
    }

    /// What follows from an action; nothing where it makes no sense.
    fn after(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Bake(image) => next.baked = image,
            Action::Deploy(target, killed_after) => {
                let before = self.online(&next);
                let stop = self.run(&mut next, target, killed_after);
                let kept = self.online(&next) >= before;
                assert!(kept, "{action:?} costs capacity ({stop:?}): {world:?} -> {next:?}");
            }
            Action::Lose(index) => {
                let launches = next.launches;
                *next.instances.get_mut(index)? = launches;
            }
        }
        (next != *world).then_some(next)
    }

    fn online(&self, world: &World) -> usize {
        world.instances.iter().filter(|version| self.serves(world, **version)).count()
    }

    /// From here, run after run ends with nothing to do, or with a reason that an image gives.
    fn assert_it_ends(&self, world: &World, target: Target) {
        let mut now = world.clone();
        for _ in 0..MOST_RUNS {
            match self.run(&mut now, target, None) {
                Ok(true) => {}
                Ok(false) => return,
                Err(Stop::Reason(why)) if self.bad.is_empty() => {
                    let known = ["no image that was in service before"];
                    assert!(known.iter().any(|known| why.contains(known)), "{target:?} stops: {why}: {world:?}");
                    return;
                }
                Err(_) => return,
            }
        }
        panic!("{target:?} never ends: {world:?}, at last {now:?}: {:?}", self.plan(&now, target));
    }

    /// Once a rollback has begun, a plain `deploy` finishes it, and never rolls to what was rejected.
    fn assert_a_rejected_image_stays_out(&self, world: &World) {
        let Some(rejected) = world.rejected.filter(|rejected| *rejected == world.baked) else { return };
        let mut now = world.clone();
        if self.run(&mut now, Target::Latest, None).is_ok() {
            let serves = now.instances.iter().any(|version| now.image_of(*version) == rejected);
            assert!(!serves, "a rejected image is rolled out: {world:?} -> {now:?}");
        }
    }
}

fn runner(instance: &str) -> Runner {
    serde_json::from_value(serde_json::json!({
        "id": 1, "name": format!("linux-{instance}"), "status": "online", "busy": false, "ephemeral": false, "version": null
    }))
    .unwrap()
}

fn actions() -> Vec<Action> {
    let goals = [Target::Latest, Target::RetryLatest, Target::Previous];
    let kills = (0..6).map(Some).chain([None]);
    let runs = goals.into_iter().flat_map(|target| kills.clone().map(move |killed| Action::Deploy(target, killed)));
    (0..2).map(Action::Bake).chain((0..2).map(Action::Lose)).chain(runs).collect()
}

/// Every state that is at most [`DEPTH`] actions away.
fn explore(bad: &[usize]) -> usize {
    let explorer = Explorer { config: config(), bad: bad.iter().copied().collect() };
    let actions = actions();
    let mut seen = BTreeSet::from([World::NOTHING]);
    let mut queue = VecDeque::from([(World::NOTHING, 0)]);
    while let Some((world, depth)) = queue.pop_front() {
        for target in [Target::Latest, Target::RetryLatest, Target::Previous] {
            explorer.assert_it_ends(&world, target);
        }
        explorer.assert_a_rejected_image_stays_out(&world);
        if depth == DEPTH {
            continue;
        }
        for next in actions.iter().filter_map(|action| explorer.after(&world, *action)) {
            if seen.insert(next.clone()) {
                queue.push_back((next, depth + 1));
            }
        }
    }
    seen.len()
}

#[test]
fn every_state_of_a_small_world_leads_to_the_desired_one() {
    for bad in [&[][..], &[1], &[0]] {
        let states = explore(bad);
        println!("{states} states with {bad:?} bad");
        assert!(states > 20, "only {states} states with {bad:?} bad: the exploration stops early");
    }
}
