//! `destroy`: jobs end undisturbed, then nothing is left but what is said to stay; killed anywhere, it goes on.

use std::time::Duration;

use kiln_e2e::story::{FLEETS, VERSIONS};
use kiln_stand_ins::github::{Conclusion, JobSpec, JobState, Step};

use crate::kill::die_all_the_way;
use crate::support::{World, quiet, refused, world};

const SOON: Duration = Duration::from_secs(60);

async fn well(world: &World, arguments: &[&str]) -> String {
    world.run(arguments, quiet).await.unwrap().success().unwrap().stderr
}

/// The fleet that is named first.
fn first() -> &'static str {
    FLEETS.split("[fleet.once]").next().unwrap()
}

async fn served(fleets: &str) -> World {
    let world = world().await;
    world.write_config(VERSIONS[0], fleets).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    well(&world, &["rotate-key", "--pem", pem.to_str().unwrap()]).await;
    well(&world, &["ami"]).await;
    well(&world, &["deploy"]).await;
    world
}

fn runners(world: &World, fleet: &str) -> usize {
    world.github.runners().iter().filter(|runner| runner.name.starts_with(fleet)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_goes_once_its_jobs_are_done() {
    let world = served(FLEETS).await;
    let job = world.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Hold));
    let running = |state: &JobState| matches!(state, JobState::InProgress { .. });
    world.github.wait_job(job, running, SOON).await.unwrap();

    let before = world.aws.mutations();
    let said = refused(&world, &["destroy", "--fleet", "linux"], 5).await;
    assert!(said.contains("nobody is there to confirm"), "{said}");
    let said = refused(&world, &["destroy", "--fleet", "other", "--yes"], 3).await;
    assert!(said.contains("there is no stack kiln-rehearsal-fleet-other"), "{said}");
    let dry = well(&world, &["destroy", "--fleet", "linux", "--dry-run"]).await;
    assert!(dry.contains("1 instance(s) terminate when their jobs end, 1 of them run a job now"), "{dry}");
    assert_eq!(world.aws.mutations(), before, "nobody confirmed it");

    let going = world.spawn(&["destroy", "--fleet", "linux", "--yes"], quiet).unwrap();
    let leaving =
        || world.aws.instances().iter().any(|it| it.group.ends_with("-linux") && it.state == "Terminating:Wait");
    let deadline = tokio::time::Instant::now() + SOON;
    while !leaving() {
        assert!(tokio::time::Instant::now() < deadline, "the instance never drains");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Whoever deploys meanwhile is told, and a fleet that drains is not taken for one that serves.
    let said = refused(&world, &["deploy", "--fleet", "linux", "--lock-wait", "0"], 5).await;
    assert!(said.contains("is being taken down"), "{said}");
    assert!(running(&world.github.job(job).state), "{:?}", world.github.job(job).state);
    world.github.release_job(job);
    going.end().await.unwrap().success().unwrap();
    let JobState::Completed { conclusion, .. } = world.github.job(job).state else { panic!("the job was lost") };
    assert_eq!(conclusion, Conclusion::Success);
    assert_eq!(world.aws.stack_names().await.unwrap(), ["kiln-rehearsal-bake", "kiln-rehearsal-fleet-once"]);
    assert_eq!((runners(&world, "linux-i-"), runners(&world, "once-i-")), (0, 1));
    let before = world.aws.mutations();
    assert!(well(&world, &["destroy", "--fleet", "linux", "--yes"]).await.contains("nothing to do"));
    assert_eq!(world.aws.mutations(), before);

    // A fleet that kiln.toml does not name any more; without waiting, and with it the runner that GitHub has not missed yet.
    world.write_config(VERSIONS[0], first()).unwrap();
    well(&world, &["destroy", "--fleet", "once", "--now", "--yes"]).await;
    assert_eq!(world.aws.stack_names().await.unwrap(), ["kiln-rehearsal-bake"]);
    assert_eq!(runners(&world, "once-i-"), 0);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_destruction_is_gone_on_with_and_the_fleet_can_be_made_anew() {
    let world = served(first()).await;
    let kills = die_all_the_way(&world, &["destroy", "--all", "--yes"]).await;
    assert!(kills >= 4, "killed only {kills} times: are its calls seen?");
    assert_eq!(world.aws.stack_names().await.unwrap(), ["kiln-rehearsal-bake"]);
    assert!(world.github.runners().is_empty(), "{:?}", world.github.runners());
    assert!(well(&world, &["destroy", "--all", "--yes"]).await.contains("nothing to do"));
    well(&world, &["deploy"]).await;
    assert_eq!(runners(&world, "linux-i-"), 1);
    world.shutdown().await.unwrap();
}
