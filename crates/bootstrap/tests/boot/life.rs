//! From the boot to the end.

use std::time::Duration;

use kiln_stand_ins::aws::Refusal;
use kiln_stand_ins::github::{Answer, Conclusion, Fault, GitHub, JobSpec, JobState, Step};

use crate::support::{Fixture, SOON, fixture, fixture_with};

#[tokio::test]
async fn one_line_sums_a_boot_up() {
    let fixture = fixture().await;
    let mut booted = fixture.boot(&fixture.ephemeral()).await;
    let said = booted.said("registered").await;
    assert_eq!((said["requests"].as_u64(), said["connections"].as_u64()), (Some(2), Some(1)), "{said}");
    for key in ["ms", "identify_ms", "configure_ms", "mint_ms", "register_ms", "bytes", "cpu_ms", "peak_kib"] {
        assert!(said[key].is_u64(), "{key} is missing: {said}");
    }
    assert!(said["config_sh_ms"].is_null(), "a just-in-time runner needs no config.sh: {said}");
    assert!(said["runner"].as_str().unwrap().starts_with("linux-i-0abc0000000000001-"), "{said}");
    booted.online().await;
    assert_eq!(booted.stop().await, Some(0));
    // Every line tells where it belongs.
    for line in &booted.log {
        assert!(line["at_ms"].is_u64() && line["phase"].is_string() && line["timestamp"].is_string(), "{line}");
        assert!(
            line["instance"] == "i-0abc0000000000001" || line["phase"] == "identify" || line["phase"] == "configure"
        );
    }
    let phases: Vec<&str> = booted.log.iter().filter_map(|line| line["phase"].as_str()).collect();
    let mut order = phases.clone();
    order.dedup();
    assert_eq!(order[..6], ["identify", "configure", "mint", "register", "serve", "drain"], "{phases:?}");
    let left = booted.log.iter().find(|line| line["message"] == "left").unwrap();
    assert!(left["ms"].is_u64(), "{left}");
}

#[tokio::test]
async fn asked_to_end_it_waits_for_the_job_and_leaves_no_runner() {
    let fixture = fixture().await;
    let mut booted = fixture.boot(&fixture.config()).await;
    let said = booted.said("registered").await;
    let (config_sh, register) = (said["config_sh_ms"].as_u64().unwrap(), said["register_ms"].as_u64().unwrap());
    assert!(config_sh <= register, "{said}");
    booted.online().await;
    let job = fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Hold));
    fixture.github.wait_job(job, |state| matches!(state, JobState::InProgress { .. }), SOON).await.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(booted.id()), nix::sys::signal::Signal::SIGTERM).unwrap();
    booted.said("a job is running: waiting for its end").await;
    fixture.github.release_job(job);
    assert_eq!(booted.end().await, Some(0), "{:#?}", booted.log);
    let JobState::Completed { conclusion, .. } = fixture.github.job(job).state else { panic!("the job has not ended") };
    assert_eq!(conclusion, Conclusion::Success);
    assert_eq!(fixture.runner(), None);
}

#[tokio::test]
async fn a_listener_that_dies_is_started_again() {
    let fixture = fixture().await;
    let mut booted = fixture.boot(&fixture.config()).await;
    booted.online().await;
    let listener = fixture.path("opt/actions-runner/bin/Runner.Listener");
    let found = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find(|process| std::fs::read_link(process.path().join("exe")).is_ok_and(|executable| executable == listener));
    let id: i32 = found.unwrap().file_name().to_str().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL).unwrap();
    booted.said("the listener ended").await;
    let job = fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run("true".to_owned())));
    fixture.github.wait_job(job, |state| matches!(state, JobState::Completed { .. }), SOON).await.unwrap();
    assert_eq!(booted.stop().await, Some(0));
}

#[tokio::test]
async fn a_version_that_github_serves_no_more_is_not_registered_again_and_again() {
    let fixture = fixture().await;
    fixture.github.deprecate(crate::support::VERSION);
    let mut booted = fixture.boot(&fixture.config()).await;
    let said = booted.said("GitHub serves this runner version no more").await;
    assert!(said["hint"].as_str().unwrap().contains("pin a newer runner"), "{said}");
    assert_eq!(fixture.github.count("POST", "/registration-token"), 1);
    assert_eq!(booted.stop().await, Some(0));
    assert_eq!(fixture.runner(), None);
}

/// Served no more, it marks itself, and the group keeps it: the next one would fare no better.
#[tokio::test]
async fn an_instance_whose_runner_is_deprecated_is_marked_and_not_replaced() {
    let fixture = fixture().await;
    fixture.github.deprecate(crate::support::VERSION);
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 300).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("marked this instance").await;
    assert_eq!(booted.imds.tags()["kiln:state"], "runner-deprecated");
    assert!(aws.state().starts_with("Pending"), "{}", aws.state());
    assert_eq!(booted.stop().await, Some(0), "{:#?}", booted.log);
    assert_eq!(aws.count("TerminateInstanceInAutoScalingGroup"), 0);
    assert_eq!((aws.state(), fixture.runner()), ("Terminating:Proceed".to_owned(), None));
}

/// GitHub refuses the registration of a version that is too old.
#[tokio::test]
async fn a_version_that_github_registers_no_more_is_marked_and_tried_once() {
    let fixture = fixture_with("2.300.0").await;
    fixture.github.deprecate("2.300.0");
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 60).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("marked this instance").await;
    let said = booted.said("not registered").await;
    assert!(said["error"].as_str().unwrap().contains("registers this runner version no more"), "{said}");
    assert!(said["hint"].as_str().unwrap().contains("pin a newer runner"), "{said}");
    assert_eq!(booted.stop().await, Some(1), "{:#?}", booted.log);
    assert_eq!(
        (fixture.github.count("POST", "/registration-token"), aws.state()),
        (1, "Terminating:Proceed".to_owned())
    );
}

/// There is no such list, but GitHub offers no newer version than the one that it refuses.
#[tokio::test]
async fn a_refusal_of_the_newest_version_is_waited_out() {
    let fixture = fixture_with("2.300.0").await;
    fixture.github.list_no_deprecations();
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("keeping the launch waiting: this is no fault of this instance").await;
    assert!(!booted.imds.tags().contains_key("kiln:state"));
    assert_eq!(booted.stop().await, Some(1), "{:#?}", booted.log);
    assert_eq!(aws.state(), "Terminating:Proceed");
}

/// GitHub refuses the version, and its own list says that it serves it: it has been wrong before.
#[tokio::test]
async fn a_refusal_that_githubs_own_list_contradicts_is_waited_out() {
    let fixture = fixture_with("2.300.0").await;
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    let said = booted.said("not registered").await;
    assert_eq!(said["again_in_secs"], 60, "{said}");
    booted.said("keeping the launch waiting: this is no fault of this instance").await;
    assert!(!booted.imds.tags().contains_key("kiln:state"));
    assert_eq!(booted.stop().await, Some(1), "{:#?}", booted.log);
    assert_eq!(aws.state(), "Terminating:Proceed");
}

/// A tag that can't be set costs nothing else.
#[tokio::test]
async fn an_instance_that_may_not_mark_itself_says_so_and_stays() {
    let fixture = fixture().await;
    fixture.github.deprecate(crate::support::VERSION);
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 300).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    aws.refuse(Refusal { service: "ec2", operation: "CreateTags", times: 9, code: "UnauthorizedOperation" });
    let said = booted.said("could not mark this instance; its log says it all the same").await;
    assert!(said["error"].as_str().unwrap().contains("UnauthorizedOperation"), "{said}");
    assert_eq!(booted.stop().await, Some(0), "{:#?}", booted.log);
}

#[tokio::test]
async fn asked_to_end_before_it_is_registered_it_does_not_try_for_ever() {
    let fixture = fixture().await;
    let answer = Answer::Dripping(Duration::from_secs(1));
    fixture.github.inject(Fault { method: "POST", path_contains: "/access_tokens".to_owned(), times: 9, answer });
    let mut booted = fixture.boot(&fixture.config()).await;
    let asked = |github: &GitHub| (github.count("POST", "/access_tokens") > 0).then_some(());
    fixture.github.until(SOON, "the request for a token", asked).await.unwrap();
    assert_eq!(booted.stop().await, Some(1), "{:#?}", booted.log);
    assert_eq!(fixture.runner(), None);
}

/// The registration is let through, and then left.
#[tokio::test]
async fn asked_to_end_while_it_registers_it_leaves_no_runner() {
    let fixture = fixture().await;
    let answer = Answer::Late(Duration::from_secs(3));
    fixture.github.inject(Fault { method: "POST", path_contains: "/generate-jitconfig".to_owned(), times: 1, answer });
    let mut booted = fixture.boot(&fixture.ephemeral()).await;
    booted.said("done").await;
    let minted = |github: &GitHub| (github.count("POST", "/access_tokens") > 0).then_some(());
    fixture.github.until(SOON, "the token", minted).await.unwrap();
    assert_eq!(booted.stop().await, Some(0), "{:#?}", booted.log);
    assert_eq!(fixture.runner(), None);
}

#[tokio::test]
async fn a_job_is_taken_only_once_docker_answers_where_that_is_asked_for() {
    let fixture = fixture().await;
    let mut config = fixture.config();
    config["wait_for_docker"] = serde_json::json!(true);
    let mut booted = fixture.boot(&config).await;
    booted.said("registered").await;
    let job = fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run("true".to_owned())));
    assert_eq!(fixture.github.job(job).state, JobState::Queued);
    assert!(!fixture.runner().unwrap().online);
    std::fs::create_dir_all(fixture.path("var/run")).unwrap();
    let _docker = tokio::net::UnixListener::bind(fixture.path("var/run/docker.sock")).unwrap();
    booted.online().await;
    assert!(booted.log.iter().any(|line| line["phase"] == "docker" && line["message"] == "done"), "{:#?}", booted.log);
    fixture.github.wait_job(job, |state| matches!(state, JobState::Completed { .. }), SOON).await.unwrap();
    assert_eq!(booted.stop().await, Some(0));
}

#[tokio::test]
async fn a_spot_notice_is_read_from_the_metadata_service() {
    let fixture = fixture().await;
    let mut config = fixture.config();
    config["lifecycle"] = serde_json::json!({
        "group": "g", "launch_hook": "l", "termination_hook": "t",
        "termination_heartbeat_timeout_secs": 300, "drain_timeout_secs": 3600, "failed_boot_grace_secs": 0,
    });
    let mut booted = fixture.boot(&config).await;
    booted.online().await;
    booted.imds.recommend_rebalance();
    booted.said("EC2 recommends to rebalance: asking for a replacement").await;
    booted.imds.interrupt_spot();
    let said = booted.said("leaving").await;
    assert_eq!(said["why"], "spot interruption", "{said}");
    // Two minutes from the notice, less the 45 s that a cancelled job needs to end itself.
    assert!((50..=75).contains(&said["bound_secs"].as_u64().unwrap()), "{said}");
    booted.said("left").await;
    assert_eq!(fixture.runner(), None);
}

/// Auto Scaling does not wait yet, and answers as if it no longer did.
#[tokio::test]
async fn both_hooks_are_completed_until_the_group_accepts_it() {
    let fixture = fixture().await;
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 300).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    aws.wait_late(Duration::from_secs(10), Duration::from_secs(5));
    booted.said("no lifecycle action to complete").await;
    booted.said("lifecycle action completed").await;
    assert_eq!(aws.state(), "InService");
    aws.terminate();
    booted.said("left").await;
    booted.said("no lifecycle action to complete").await;
    assert_eq!(booted.end().await, Some(0), "{:#?}", booted.log);
    assert_eq!((aws.state(), fixture.runner()), ("Terminating:Proceed".to_owned(), None));
}

/// GitHub lets a runner go that works, and does not list it: what is heard here counts for more.
#[tokio::test]
async fn a_job_goes_on_whatever_github_says_of_its_runner() {
    let fixture = fixture().await;
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("in service").await;
    let job = fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Hold));
    fixture.github.wait_job(job, |state| matches!(state, JobState::InProgress { .. }), SOON).await.unwrap();
    for (method, status) in [("DELETE", 204), ("GET", 404)] {
        let answer = Answer::status(status, &[], "");
        fixture.github.inject(Fault { method, path_contains: "/actions/runners/".to_owned(), times: 1, answer });
    }
    aws.terminate();
    booted.said("a job is running: waiting for its end").await;
    fixture.github.release_job(job);
    assert_eq!(booted.end().await, Some(0), "{:#?}", booted.log);
    let JobState::Completed { conclusion, .. } = fixture.github.job(job).state else { panic!("the job has not ended") };
    assert_eq!((conclusion, aws.state()), (Conclusion::Success, "Terminating:Proceed".to_owned()));
}

/// systemd or a person stops the service, and the group knows nothing of it.
#[tokio::test]
async fn a_service_that_is_stopped_leaves_no_instance_in_service() {
    let fixture = fixture().await;
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("in service").await;
    assert_eq!(booted.stop().await, Some(0), "{:#?}", booted.log);
    assert_eq!(aws.count("TerminateInstanceInAutoScalingGroup"), 1);
    assert_eq!((aws.state(), fixture.runner()), ("Terminating:Proceed".to_owned(), None));
}

/// A crash, an out-of-memory stop, a reboot: whatever starts it again.
#[tokio::test]
async fn a_single_use_instance_registers_once() {
    let fixture = fixture().await;
    let imds = fixture.imds(Some(Fixture::in_group(fixture.ephemeral(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("in service").await;
    let mark = fixture.path("var/lib/kiln/instance.json");
    let mode = |path: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode(&mark), mode(mark.parent().unwrap())), (0o600, 0o700));
    let imds = booted.crash().await;
    let mut booted = fixture.boot_to(imds, Some(&aws));
    booted.said("an earlier start has used this single-use instance: it registers no more").await;
    assert_eq!(booted.end().await, Some(0), "{:#?}", booted.log);
    assert_eq!((fixture.github.count("POST", "/generate-jitconfig"), fixture.runner()), (1, None));
    assert_eq!(aws.count("TerminateInstanceInAutoScalingGroup"), 1);
    assert_eq!(aws.state(), "Terminating:Proceed");
}

/// An instance of a persistent fleet that starts again serves again, with the runner that it had.
#[tokio::test]
async fn a_persistent_instance_that_starts_again_serves_again() {
    let fixture = fixture().await;
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("in service").await;
    let imds = booted.crash().await;
    let completed = aws.count("CompleteLifecycleAction");
    let mut booted = fixture.boot_to(imds, Some(&aws));
    booted.online().await;
    let job = fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run("true".to_owned())));
    fixture.github.wait_job(job, |state| matches!(state, JobState::Completed { .. }), SOON).await.unwrap();
    // The launch was completed by the start before.
    assert_eq!((aws.count("CompleteLifecycleAction"), aws.state()), (completed, "InService".to_owned()));
    aws.terminate();
    assert_eq!(booted.end().await, Some(0), "{:#?}", booted.log);
}

/// In service, and not able to register any more: the group replaces it.
#[tokio::test]
async fn an_instance_in_service_that_can_not_register_again_is_replaced() {
    let fixture = fixture().await;
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("in service").await;
    let imds = booted.crash().await;
    fixture.github.suspend(true);
    aws.refuse(Refusal {
        service: "autoscaling",
        operation: "TerminateInstanceInAutoScalingGroup",
        times: 1,
        code: "AccessDenied",
    });
    let mut booted = fixture.boot_to(imds, Some(&aws));
    booted.said("this boot can't succeed").await;
    booted.said("marked this instance as unhealthy: the group replaces it").await;
    assert_eq!(booted.end().await, Some(1), "{:#?}", booted.log);
    assert_eq!(aws.state(), "Terminating:Proceed");
}

/// What systemd starts when it has given the service up.
#[tokio::test]
async fn a_service_that_systemd_gave_up_has_its_instance_replaced_once() {
    let fixture = fixture().await;
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("in service").await;
    let imds = booted.crash().await;
    let mut marked = fixture.start("mark-unhealthy", imds, Some(&aws));
    assert_eq!(marked.end().await, Some(0), "{:#?}", marked.log);
    assert_eq!((aws.state(), fixture.runner()), ("Terminating:Proceed".to_owned(), None));
    let asked = aws.count("TerminateInstanceInAutoScalingGroup");
    let mut again = fixture.start("mark-unhealthy", marked.imds, Some(&aws));
    again.said("nobody has to be told of this service's end").await;
    assert_eq!(again.end().await, Some(0), "{:#?}", again.log);
    assert_eq!(aws.count("TerminateInstanceInAutoScalingGroup"), asked);
}

/// GitHub is away: the launch waits for it, and the instance says so.
#[tokio::test]
async fn a_boot_in_an_outage_keeps_its_launch_waiting() {
    let fixture = fixture().await;
    let answer = Answer::status(503, &[], "Service Unavailable");
    fixture.github.inject(Fault { method: "POST", path_contains: "/access_tokens".to_owned(), times: 5, answer });
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("keeping the launch waiting: this is no fault of this instance").await;
    booted.said("in service").await;
    assert!(aws.count("RecordLifecycleActionHeartbeat") > 0);
    assert_eq!((aws.state(), booted.stop().await), ("InService".to_owned(), Some(0)));
}
