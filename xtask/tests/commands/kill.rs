//! Every command is killed with SIGKILL at every mutating call it makes, before the call takes effect and after, and run
//! again each time, until a run gets through: it must resume or start cleanly, and end right.

use crate::support::{World, quiet, world};
use kiln_e2e::story::{FLEETS, VERSIONS};
use kiln_stand_ins::aws::When;

/// More than any command's mutating calls, twice over: one that makes no progress is found out.
const MOST_RUNS: usize = 150;

/// Runs a command that dies at a mutating call, in turns before and after it took effect, until it gets through. The call
/// is the first one, or the next where dying there twice over has left the plan as it was. Gives the number of kills.
pub(crate) async fn die_all_the_way(world: &World, arguments: &[&str]) -> usize {
    let mut plan = dry_run(world, arguments).await;
    let mut nth = 1;
    let mut stalled = false;
    for kills in 0..MOST_RUNS {
        let when = if kills % 2 == 0 { When::Before } else { When::After };
        let mut reached = std::pin::pin!(world.aws.on_mutation(nth, when));
        let mut command = world.spawn(arguments, quiet).unwrap();
        let reached = tokio::select! {
            () = &mut reached => true,
            () = command.exited() => false,
        };
        if !reached {
            world.aws.disarm();
            command.end().await.unwrap().success().unwrap();
            return kills;
        }
        command.kill().await.unwrap();
        world.aws.disarm();
        if kills % 2 == 1 {
            let left = dry_run(world, arguments).await;
            // A call may be half of what makes a step of the plan.
            (nth, stalled) = match (left == plan, stalled) {
                (false, _) => (1, false),
                (true, false) => (nth, true),
                (true, true) => (nth + 1, false),
            };
            plan = left;
        }
    }
    panic!("{arguments:?} makes no progress: killed {MOST_RUNS} times, and this is left:\n{plan}");
}

/// What a command would do now. Doing it is no part of telling it.
async fn dry_run(world: &World, arguments: &[&str]) -> String {
    let before = world.aws.mutations();
    let outcome = world.run(&[arguments, &["--dry-run"]].concat(), quiet).await.unwrap().success().unwrap();
    assert_eq!(world.aws.mutations(), before, "{arguments:?} --dry-run made a mutating call");
    outcome.stderr
}

/// The world serves: each fleet has as many runners online as wanted, with this version, and nothing is left to do.
async fn serves(world: &World, version: &str, pem: &str) {
    for arguments in [&["rotate-key", "--pem", pem][..], &["ami"], &["deploy"]] {
        let before = world.aws.mutations();
        let outcome = world.run(arguments, quiet).await.unwrap().success().unwrap();
        assert!(outcome.stderr.contains("nothing to do"), "{arguments:?}:\n{}", outcome.stderr);
        assert_eq!(world.aws.mutations(), before, "{arguments:?} with nothing to do made a mutating call");
    }
    for fleet in ["linux-", "once-"] {
        let runners = world.github.runners();
        let online = runners.iter().filter(|runner| {
            runner.name.starts_with(fleet) && runner.online && runner.version.as_deref() == Some(version)
        });
        assert_eq!(online.count(), 1, "{runners:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_survives_being_killed_at_every_call() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let first = world.download_key("first.pem").unwrap();
    let first = first.to_str().unwrap();
    for (arguments, least) in [(&["rotate-key", "--pem", first][..], 8), (&["ami"], 14), (&["deploy"], 4)] {
        let kills = die_all_the_way(&world, arguments).await;
        assert!(kills >= least, "{arguments:?} was killed only {kills} times: are its calls seen?");
    }
    serves(&world, VERSIONS[0], first).await;

    world.write_config(VERSIONS[1], FLEETS).unwrap();
    let second = world.download_key("second.pem").unwrap();
    let second = second.to_str().unwrap();
    for (arguments, least) in [(&["ami"][..], 6), (&["deploy"], 8), (&["rotate-key", "--pem", second], 8)] {
        let kills = die_all_the_way(&world, arguments).await;
        assert!(kills >= least, "{arguments:?} was killed only {kills} times: are its calls seen?");
    }
    serves(&world, VERSIONS[1], second).await;
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_and_letting_go_survive_being_killed_at_every_call() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pems = ["first.pem", "second.pem", "third.pem"].map(|name| world.download_key(name).unwrap());
    let [first, second, third] = pems.each_ref().map(|path| path.to_str().unwrap());
    for pem in [first, second] {
        world.run(&["rotate-key", "--pem", pem], quiet).await.unwrap().success().unwrap();
    }
    for arguments in [&["rotate-key", "--rollback"][..], &["rotate-key", "--pem", second]] {
        let kills = die_all_the_way(&world, arguments).await;
        assert!(kills >= 8, "{arguments:?} was killed only {kills} times: are its calls seen?");
        let outcome = world.run(arguments, quiet).await.unwrap().success().unwrap();
        assert!(outcome.stderr.contains("nothing to do"), "{arguments:?}:\n{}", outcome.stderr);
    }
    world.run(&["rotate-key", "--pem", third, "--keep-days", "0"], quiet).await.unwrap().success().unwrap();
    let kills = die_all_the_way(&world, &["rotate-key", "--retire"]).await;
    assert!(kills >= 4, "killed only {kills} times: are its calls seen?");
    world.run(&["rotate-key", "--status"], quiet).await.unwrap().success().unwrap();
    world.shutdown().await.unwrap();
}
