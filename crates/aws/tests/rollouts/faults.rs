//! Two hundred rollouts, each with a fault at a random moment. `KILN_ROLLOUT_SEED=n` runs the one of that seed alone.
//!
//! At every moment as many runners are online as wanted, but for one where the fault itself takes one. After each rollout
//! either image serves. The runs that follow bring the fleet to the image, and the last of them finds nothing to do.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use kiln_operations::Kind;
use kiln_operations::deploy::{Canary, Request, Target};
use kiln_stand_ins::aws::{ImageFault, Refusal, When};
use kiln_stand_ins::github::{Answer, Conclusion, Fault as GitHubFault, JobId, JobState};

use crate::env::{RolloutEnv, Said, kill, process};

/// As many as the project promises.
const ROLL_OUTS: u64 = 200;

/// Worlds side by side: pauses of one are another's time to work.
const LANES: u64 = 4;

const INSTANCES: u32 = 3;

/// What goes wrong.
#[derive(Debug, Clone)]
enum Fault {
    Nothing,
    /// The pipeline's machine is gone, at its n-th mutating call.
    Killed(u32, When),
    /// The credentials end, with the pipeline's n-th call.
    DeadlineExceeded(u32),
    Throttled(&'static str, &'static str),
    /// A call of CloudFormation's or Auto Scaling's is refused.
    Refused(&'static str, &'static str),
    Image(ImageFault),
    BadCanary,
    /// Somebody cancels the refresh.
    Cancelled,
    GitHub(Answer),
    /// An instance that serves is lost without a word.
    Lost,
    /// A second pipeline starts in the middle.
    Twice,
}

fn fault(rng: &mut Rng) -> Fault {
    let throttled = [
        ("autoscaling", "DescribeAutoScalingGroups"),
        ("autoscaling", "StartInstanceRefresh"),
        ("cloudformation", "DescribeStacks"),
        ("cloudformation", "CreateChangeSet"),
    ];
    let refused = [
        ("autoscaling", "StartInstanceRefresh"),
        ("cloudformation", "CreateChangeSet"),
        ("cloudformation", "ExecuteChangeSet"),
        ("ssm", "PutParameter"),
    ];
    let images = [ImageFault::NeverBoots, ImageFault::NeverOnline, ImageFault::OtherVersion("2.330.0".to_owned())];
    match rng.u32(0..16) {
        0 => Fault::Nothing,
        1..=4 => Fault::Killed(rng.u32(1..14), if rng.bool() { When::Before } else { When::After }),
        5 | 6 => Fault::DeadlineExceeded(rng.u32(1..60)),
        7 => rng.choice(throttled).map_or(Fault::Nothing, |(service, call)| Fault::Throttled(service, call)),
        8 => rng.choice(refused).map_or(Fault::Nothing, |(service, call)| Fault::Refused(service, call)),
        9 | 10 => rng.choice(images).map_or(Fault::Nothing, Fault::Image),
        11 => Fault::BadCanary,
        12 => Fault::Cancelled,
        13 => Fault::GitHub(if rng.bool() { Answer::status(502, &[], "Server Error") } else { Answer::Truncated }),
        14 => Fault::Lost,
        _ => Fault::Twice,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_rollouts_each_with_a_fault() {
    let seeds: Vec<u64> = match std::env::var("KILN_ROLLOUT_SEED") {
        Ok(seed) => vec![seed.parse().expect("KILN_ROLLOUT_SEED is a number")],
        Err(_) => (0..ROLL_OUTS).collect(),
    };
    let lanes = (0..LANES).map(|env| {
        let seeds: Vec<u64> = seeds.iter().copied().filter(|seed| seed % LANES == env).collect();
        tokio::spawn(async move {
            if seeds.is_empty() {
                return;
            }
            let mut world = RolloutEnv::new(INSTANCES).await;
            world.local.wait_for_leaving(env % 2 == 1);
            let (_, mut version) = world.bake().await;
            world.deploy(&world.request()).await;
            assert!(world.serves(&version), "{:?}", world.runners());
            for seed in seeds {
                let replay = Replay(seed);
                version = rollout(&mut world, seed, &version).await;
                eprintln!("seed {seed} is well");
                replay.well();
            }
            world.local.shutdown().await;
        })
    });
    for env in lanes.collect::<Vec<_>>() {
        env.await.unwrap();
    }
}

/// Tells the seed of a rollout that panics.
struct Replay(u64);

impl Replay {
    fn well(self) {
        std::mem::forget(self);
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        eprintln!("this one alone: KILN_ROLLOUT_SEED={}", self.0);
    }
}

/// One rollout from what serves to a new image, through a fault; the version that serves in the end.
async fn rollout(world: &mut RolloutEnv, seed: u64, before: &str) -> String {
    let mut rng = Rng::with_seed(seed);
    let fault = fault(&mut rng);
    let (ami, version) = world.bake().await;
    let world = &*world;
    let jobs = occupy(world, &mut rng);
    let patience = rng.u64(20..300);
    let watching = AtomicBool::new(true);
    let fewest = AtomicUsize::new(usize::MAX);
    let faulty = async {
        let said = one_run(world, &fault, &ami, &mut rng).await;
        watching.store(false, Ordering::Relaxed);
        said
    };
    let (said, (), ()) = tokio::join!(faulty, watch(world, &watching, &fewest), finish(world, &jobs, patience));
    let account = || format!("seed {seed}: {fault:?}\n{said}\nrunners: {:?}", world.runners());

    let fewest = fewest.load(Ordering::Relaxed);
    let lost = matches!(fault, Fault::Lost | Fault::Image(ImageFault::NeverOnline));
    assert!(
        fewest >= INSTANCES as usize - usize::from(lost),
        "only {fewest} runners were online at a time\n{}",
        account()
    );
    for runner in world.runners().iter().filter(|runner| runner.online) {
        let has = runner.version.as_deref().unwrap_or_default();
        let spoilt = matches!(&fault, Fault::Image(ImageFault::OtherVersion(wrong)) if wrong == has);
        assert!(has == before || has == version || spoilt, "neither old nor new: {runner:?}\n{}", account());
    }

    // What was wrong is mended, and the pipeline runs again. A refresh that was killed under its run may fail the next one.
    world.local.lift();
    world.local.spoil_image(&ami, None);
    converge(world, &Request::new(world.request().config, world.fleet()), &account).await;
    assert!(world.serves(&version), "the new image does not serve\n{}", account());
    for job in jobs {
        let state = world.github.job(job).state;
        let well = matches!(state, JobState::Completed { conclusion: Conclusion::Success, .. });
        assert!(well, "a job was lost: {state:?}\n{}", account());
    }
    version
}

/// Gives some runners a job.
fn occupy(world: &RolloutEnv, rng: &mut Rng) -> Vec<JobId> {
    world.runners().iter().filter(|_| rng.u32(0..3) == 0).filter_map(|runner| world.github.occupy(runner.id)).collect()
}

/// Ends the jobs after a while.
async fn finish(world: &RolloutEnv, jobs: &[JobId], after_millis: u64) {
    tokio::time::sleep(Duration::from_millis(after_millis)).await;
    jobs.iter().for_each(|job| world.github.finish(*job));
}

/// The least number of runners online at a time.
async fn watch(world: &RolloutEnv, watching: &AtomicBool, fewest: &AtomicUsize) {
    while watching.load(Ordering::Relaxed) {
        fewest.fetch_min(world.online(), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// A run through the fault. What it said.
async fn one_run(world: &RolloutEnv, fault: &Fault, ami: &str, rng: &mut Rng) -> String {
    let said = Said::default();
    let mut request = world.request();
    if rng.u32(0..4) == 0 {
        request.canary = None;
    }
    if rng.u32(0..4) == 0 || matches!(fault, Fault::BadCanary) {
        let check = if matches!(fault, Fault::BadCanary) { "false" } else { "true" };
        request.canary = Some(Canary { check: Some(check.to_owned()) });
    }
    let pipeline = process();
    match fault {
        Fault::Killed(nth, when) => {
            let reached = world.local.on_mutation(*nth, *when);
            tokio::select! {
                result = world.run(&request, &pipeline, &said) => assert!(result.is_ok(), "{result:?}"),
                () = reached => kill(&pipeline),
            }
            world.local.disarm();
        }
        _ => {
            inject(world, fault, ami);
            let (result, ()) =
                tokio::join!(world.run(&request, &pipeline, &said), meanwhile(world, fault, rng.u64(5..400)));
            let kind = result.as_ref().err().map(kiln_operations::Error::kind);
            let expected: &[Option<Kind>] = match fault {
                Fault::DeadlineExceeded(_) => &[None, Some(Kind::Access)],
                Fault::Refused(..) => &[None, Some(Kind::Other)],
                Fault::Image(_) | Fault::BadCanary => &[Some(Kind::Failed)],
                Fault::Cancelled | Fault::Lost => &[None, Some(Kind::Failed)],
                _ => &[None],
            };
            assert!(expected.contains(&kind), "{fault:?}: {result:?}\n{}", said.0.lock().unwrap().join("\n"));
            if kind == Some(Kind::Failed) && matches!(fault, Fault::Image(_) | Fault::BadCanary) {
                let error = result.unwrap_err();
                assert!(error.to_string().to_lowercase().contains("roll") || error.hint.is_some(), "{error}");
                said.0.lock().unwrap().push(format!("error: {error}"));
            }
        }
    }
    said.0.into_inner().unwrap().join("\n")
}

fn inject(world: &RolloutEnv, fault: &Fault, ami: &str) {
    match fault {
        Fault::DeadlineExceeded(nth) => world.local.refuse_from(*nth, "ExpiredToken"),
        Fault::Throttled(service, operation) => {
            world.local.refuse(Refusal { service, operation, times: 3, code: "Throttling" });
        }
        Fault::Refused(service, operation) => {
            world.local.refuse(Refusal { service, operation, times: 1, code: "ValidationError" });
        }
        Fault::Image(fault) => world.local.spoil_image(ami, Some(fault.clone())),
        Fault::GitHub(answer) => world.github.inject(GitHubFault {
            method: "GET",
            path_contains: "actions/runners".to_owned(),
            times: 1,
            answer: answer.clone(),
        }),
        _ => {}
    }
}

/// What happens while the run is under way.
async fn meanwhile(world: &RolloutEnv, fault: &Fault, after_millis: u64) {
    tokio::time::sleep(Duration::from_millis(after_millis)).await;
    match fault {
        Fault::Cancelled => {
            for _ in 0..100 {
                if world.local.cancel_refresh(&world.group()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Fault::Lost => {
            let idle = world.runners().into_iter().find(|runner| runner.online && !runner.busy);
            if let Some(runner) = idle {
                world.local.kill_instance(runner.name.trim_start_matches("linux-"));
            }
        }
        Fault::Twice => {
            // It waits for nobody: the first one goes on, or has ended already.
            let result = world.run(&world.request(), &process(), &Said::default()).await;
            let kind = result.as_ref().err().map(kiln_operations::Error::kind);
            assert!(matches!(kind, None | Some(Kind::Precondition)), "{result:?}");
        }
        _ => {}
    }
}

/// Runs again until there is nothing to do; the last run makes no mutating call.
pub(crate) async fn converge(world: &RolloutEnv, request: &Request<'_>, account: &impl Fn() -> String) {
    let mut told = Vec::new();
    for _ in 0..4 {
        let before = world.local.mutations();
        let said = Said::default();
        let result = world.run(request, &process(), &said).await;
        let text = said.0.into_inner().unwrap().join("\n");
        match result {
            Ok(plan) if plan.is_empty() => {
                assert_eq!(world.local.mutations(), before, "nothing to do, and mutating calls all the same");
                return;
            }
            Ok(_) => told.push(text),
            Err(error) if error.kind() == Kind::Failed => told.push(format!("{text}\nerror: {error}")),
            Err(error) => panic!("{error:?}\n{text}\n{}", account()),
        }
    }
    panic!("no end to it (target {:?}):\n{}\n{}", Target::Latest, told.join("\n---\n"), account());
}
