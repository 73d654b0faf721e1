//! What goes wrong on AWS's side or GitHub's: an end that is defined, told, and gone on from.

use std::time::Duration;

use kiln_e2e::story::{FLEETS, VERSIONS};
use kiln_stand_ins::aws::Refusal;
use kiln_stand_ins::github::GitHub;

use crate::models::assert_modelled;
use crate::support::{World, quiet, refused, world};

async fn installed() -> World {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    world
}

/// Waits until another runner than this one is online.
async fn successor(world: &World, first: u64) {
    let other = |github: &GitHub| github.runners().into_iter().find(|runner| runner.online && runner.id != first);
    world.github.until(Duration::from_secs(120), "another runner", other).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_bake_records_nothing_and_the_next_run_starts_a_new_build() {
    let world = installed().await;
    world.aws.fail_build_step("CheckVersion");
    let said = refused(&world, &["ami"], 6).await;
    assert!(said.contains("CheckVersion") && said.contains("told to fail"), "{said}");
    assert!(said.contains("already done:"), "{said}");
    assert!(world.aws.images().is_empty());
    let said = refused(&world, &["deploy"], 5).await;
    assert!(said.contains("run `cargo xtask ami` first"), "{said}");

    let again = world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    assert_eq!(again.stdout.trim_end(), world.aws.images()[0].ami);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_can_not_serve_is_rolled_back_from() {
    let world = installed().await;
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    world.run(&["deploy"], quiet).await.unwrap().success().unwrap();
    let serving = world.github.runners();

    world.write_config(VERSIONS[1], FLEETS).unwrap();
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    // Between the bake and the rollout GitHub stops registering what was baked, and its own list says so. Where the list
    // contradicts the refusal, an instance waits instead.
    world.github.deprecate(VERSIONS[1]);
    world.github.set_oldest_version("99.0.0");
    let said = refused(&world, &["deploy", "--fleet", "linux"], 6).await;
    assert!(said.contains("launches of kiln-rehearsal-fleet-linux in a row failed"), "{said}");
    assert!(said.contains("rolled back: the previous version is in service"), "{said}");
    assert!(said.contains("already done:"), "{said}");
    let runners = world.github.runners();
    let online: Vec<_> = runners.iter().filter(|runner| runner.online && runner.name.starts_with("linux-")).collect();
    assert_eq!(online.len(), 1, "{runners:?}");
    assert_eq!(online[0].version.as_deref(), Some(VERSIONS[0]));
    assert!(serving.iter().any(|runner| runner.id == online[0].id), "the runner that served before still does");

    // Back to the pin that is served: the same command ends right.
    world.github.set_oldest_version(VERSIONS[0]);
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    world.run(&["deploy"], quiet).await.unwrap().success().unwrap();
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}

/// CloudFormation goes back by itself, before any instance is touched.
#[tokio::test(flavor = "multi_thread")]
async fn a_stack_that_can_not_be_updated_goes_back_and_what_served_still_does() {
    let world = installed().await;
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap().success().unwrap();
    let serving: Vec<_> = world.aws.instances().into_iter().map(|instance| instance.id).collect();

    world.write_config(VERSIONS[1], FLEETS).unwrap();
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    world.aws.spoil_change_set();
    let said = refused(&world, &["deploy", "--fleet", "linux"], 6).await;
    assert!(said.contains("Unmakeable") && said.contains("kiln-rehearsal-fleet-linux"), "{said}");
    assert!(said.contains("UPDATE_ROLLBACK_COMPLETE"), "{said}");
    let left: Vec<_> = world.aws.instances().into_iter().map(|instance| instance.id).collect();
    assert_eq!(left, serving);

    // What was in the way is gone: the same command goes on.
    world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap().success().unwrap();
    let runners = world.github.runners();
    assert!(
        runners.iter().any(|runner| runner.online && runner.version.as_deref() == Some(VERSIONS[1])),
        "{runners:?}"
    );
    let again = world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap().success().unwrap();
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_whose_first_creation_failed_is_made_anew_once_somebody_agrees() {
    let world = installed().await;
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    world.aws.make_dead_stack("kiln-rehearsal-fleet-linux").await.unwrap();
    let before = world.aws.mutations();
    let said = refused(&world, &["deploy", "--fleet", "linux"], 5).await;
    assert!(said.contains("ROLLBACK_COMPLETE") && said.contains("--yes"), "{said}");
    let dry = world.run(&["deploy", "--fleet", "linux", "--dry-run"], quiet).await.unwrap();
    assert!(
        dry.stderr.contains("kiln-rehearsal-fleet-linux") && dry.stderr.contains("ROLLBACK_COMPLETE"),
        "{}",
        dry.stderr
    );
    // But for deploy's own lock, taken and given back.
    let made: Vec<_> = world.aws.requests().into_iter().filter(|request| request.mutating).skip(before).collect();
    assert!(made.iter().all(|request| request.service == "s3"), "{made:?}");

    world.run(&["deploy", "--fleet", "linux", "--yes"], quiet).await.unwrap().success().unwrap();
    assert_eq!(world.github.runners().iter().filter(|runner| runner.online).count(), 1);
    let again = world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap().success().unwrap();
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);
    world.shutdown().await.unwrap();
}

/// Credentials of a pipeline's role last an hour: whatever they end in the middle of, AWS goes on with it.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_in_the_middle_are_told_and_gone_on_from() {
    let world = installed().await;
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    for nth in [2, 12, 25] {
        world.aws.refuse_from(nth, "ExpiredToken");
        let outcome = world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap();
        world.aws.lift();
        assert_eq!(outcome.code, Some(4), "call {nth}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("ExpiredToken") && outcome.stderr.contains("hint: "), "{}", outcome.stderr);
    }
    world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap().success().unwrap();
    assert_eq!(world.github.runners().iter().filter(|runner| runner.online).count(), 1);
    world.shutdown().await.unwrap();
}

/// A whole fleet boots at once, and KMS throttles an account.
#[tokio::test(flavor = "multi_thread")]
async fn throttling_is_ridden_out_by_commands_and_instances() {
    let world = installed().await;
    let refuse = |service, operation, code| world.aws.refuse(Refusal { service, operation, times: 2, code });
    refuse("kms", "Sign", "ThrottlingException");
    refuse("ssm", "GetParameter", "ThrottlingException");
    refuse("cloudformation", "DescribeStacks", "Throttling");
    refuse("autoscaling", "DescribeAutoScalingGroups", "Throttling");
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap().success().unwrap();

    refuse("kms", "Sign", "ThrottlingException");
    refuse("autoscaling", "CompleteLifecycleAction", "Throttling");
    let first = world.github.runners()[0].clone();
    let instance = first.name.trim_start_matches("linux-");
    world.aws.terminate_instance(instance).await.unwrap();
    successor(&world, first.id).await;
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_be_used_is_final_and_costs_one_instance() {
    let world = installed().await;
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    let code = "AccessDeniedException";
    world.run(&["deploy", "--fleet", "linux"], quiet).await.unwrap().success().unwrap();
    let first = world.github.runners()[0].clone();
    world.aws.refuse(Refusal { service: "kms", operation: "Sign", times: 1, code });
    // While it drains, its successor boots, and is refused the signature.
    world.aws.terminate_instance(first.name.trim_start_matches("linux-")).await.unwrap();
    successor(&world, first.id).await;
    let refused: Vec<String> = world
        .aws
        .instances()
        .iter()
        .filter_map(|instance| std::fs::read_to_string(&instance.log).ok())
        .filter(|log| log.contains("this boot can't succeed"))
        .collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].contains("AccessDeniedException") && refused[0].contains("alias/"), "{}", refused[0]);
    world.shutdown().await.unwrap();
}
