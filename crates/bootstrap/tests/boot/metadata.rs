//! `job_metadata_access = "off"`: no metadata service while the job runs, and the instance still hears and is heard.

use std::time::Duration;

use kiln_stand_ins::aws::{IMDS_ADDRESS, InstanceAws, Refusal};
use kiln_stand_ins::github::{Conclusion, JobSpec, JobState, Step};
use serde_json::json;

use crate::support::{Booted, SOON, There, there};

/// The guard's rule, in a network namespace in which this test is run again.
const GUARDED: &str = r#"
set -euo pipefail
ip link set lo up
iptables --insert OUTPUT --destination "$METADATA" --match owner --uid-owner 65534 --jump REJECT
exec "$@"
"#;

/// Is this run inside, where the runner's user is kept away from the metadata service? From outside it runs the test there.
fn is_inside(name: &str) -> bool {
    if std::env::var_os("KILN_GUARDED").is_some() {
        return true;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: network namespaces and iptables are out of reach");
        return false;
    }
    let output = std::process::Command::new("unshare")
        .args(["--net", "bash", "-c", GUARDED, "-"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("KILN_GUARDED", "1")
        .env("METADATA", IMDS_ADDRESS)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

async fn boot(there: &There, valid: Duration, replace_pause_secs: u32) -> (Booted, InstanceAws) {
    let mut config = There::in_group(there.ephemeral(), replace_pause_secs);
    config["job_metadata_access"] = json!("off");
    let imds = there.imds(Some(config.to_string())).await;
    imds.credentials_last(valid);
    there.boot_in_group(imds).await
}

const OFF: &str = "the metadata service is off; credentials are kept in memory";
const HOURS: Duration = Duration::from_secs(6 * 3600);

/// As root, which a privileged container is.
async fn is_refused(booted: &Booted) -> bool {
    let request = reqwest::Client::new().put(format!("{}/latest/api/token", booted.imds.url()));
    let answer = request.header("x-aws-ec2-metadata-token-ttl-seconds", "60").send().await.unwrap();
    answer.status() == reqwest::StatusCode::FORBIDDEN
}

#[tokio::test]
async fn it_is_off_before_the_job_and_a_termination_is_heard_all_the_same() {
    if !is_inside("metadata::it_is_off_before_the_job_and_a_termination_is_heard_all_the_same") {
        return;
    }
    let there = there().await;
    let job = there.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Hold));
    let (mut booted, aws) = boot(&there, HOURS, 0).await;
    booted.said(OFF).await;
    assert!(!booted.imds.is_on());
    booted.said("registered").await;
    let running = |state: &JobState| matches!(state, JobState::InProgress { .. });
    there.github.wait_job(job, running, SOON).await.unwrap();
    assert!(is_refused(&booted).await);
    aws.terminate();
    let said = booted.said("leaving").await;
    assert_eq!(said["why"], "Auto Scaling terminates it", "{said}");
    booted.said("a job is running: waiting for its end").await;
    there.github.release_job(job);
    assert_eq!(booted.end().await, Some(0), "{:#?}", booted.log);
    let JobState::Completed { conclusion, .. } = there.github.job(job).state else { panic!("the job has not ended") };
    assert_eq!((conclusion, there.runner()), (Conclusion::Success, None));
    assert_eq!(aws.state(), "Terminating:Proceed");
    assert_eq!((aws.count("ModifyInstanceMetadataOptions"), booted.imds.is_on()), (1, false));
}

/// A job outlives the credentials: they are renewed while it runs, and the instance is replaced with the new ones.
#[tokio::test]
async fn credentials_are_renewed_for_as_long_as_the_job_takes() {
    if !is_inside("metadata::credentials_are_renewed_for_as_long_as_the_job_takes") {
        return;
    }
    let there = there().await;
    let job = there.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Hold));
    let (mut booted, aws) = boot(&there, Duration::from_secs(40), 0).await;
    booted.said(OFF).await;
    let running = |state: &JobState| matches!(state, JobState::InProgress { .. });
    there.github.wait_job(job, running, SOON).await.unwrap();
    // Each time half of them is over: after the second time the first are invalid.
    for _ in 0..2 {
        booted.said("credentials renewed, the metadata service off again").await;
        assert!(is_refused(&booted).await);
    }
    there.github.release_job(job);
    booted.said("asked the group to terminate this instance").await;
    assert_eq!(booted.end().await, Some(0), "{:#?}", booted.log);
    assert_eq!(aws.state(), "Terminating:Proceed");
    // Off, and twice on and off; on a slow machine once more while it leaves, but never on without off.
    let switched = aws.count("ModifyInstanceMetadataOptions");
    assert!(switched >= 5 && switched % 2 == 1, "{switched}");
    assert!(!booted.imds.is_on());
}

#[tokio::test]
async fn an_instance_that_may_not_switch_it_off_takes_no_job() {
    if !is_inside("metadata::an_instance_that_may_not_switch_it_off_takes_no_job") {
        return;
    }
    let there = there().await;
    let job = there.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run("true".to_owned())));
    let (booted, aws) = boot(&there, HOURS, 0).await;
    aws.refuse(Refusal {
        service: "ec2",
        operation: "ModifyInstanceMetadataOptions",
        times: 9,
        code: "UnauthorizedOperation",
    });
    let log =
        booted.given_up("ec2:ModifyInstanceMetadataOptions of i-0abc0000000000001: 400 UnauthorizedOperation").await;
    assert!(!log.iter().any(|line| line["message"] == "online"), "{log:#?}");
    assert_eq!((there.runner(), there.github.job(job).state), (None, JobState::Queued));
    assert_eq!(aws.state(), "Terminating:Proceed");
}

/// A second start finds no metadata service, and can't know who it is: its group has to see it gone.
#[tokio::test]
async fn a_start_after_the_switch_asks_to_be_noticed() {
    let there = there().await;
    there.write("var/lib/kiln/metadata-off", "", 0o600);
    let imds = there.imds(None).await;
    let mut booted = there.boot_with(imds);
    booted.said("an earlier start has switched the metadata service off: powering off for the group to notice").await;
    assert_eq!(booted.end().await, Some(1));
}
