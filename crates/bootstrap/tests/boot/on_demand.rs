//! An instance of an on-demand fleet: one object, one job, and off.

use std::sync::Arc;
use std::time::Duration;

use kiln_github::{AppKey, JitRequest, OrgClient};
use kiln_stand_ins::aws::{FleetAws, FleetOptions, Refusal};
use kiln_stand_ins::github::{Conclusion, JobSpec, JobState, Step};
use kiln_stand_ins::machine::{KEY, runner_ids};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::support::{Booted, Fixture, INSTANCE, SOON, VERSION, fixture};

const ROLE: &str = "AROASTANDIN";
const BUCKET: &str = "kiln-control-acme-000000000000-eu-central-1";

async fn fleets() -> FleetAws {
    let (bucket, role_id) = (BUCKET.to_owned(), ROLE.to_owned());
    FleetAws::start(FleetOptions { bucket, role_id, controller: "i-0c".to_owned() }).await.unwrap()
}

fn key() -> String {
    format!("runners/{ROLE}:{INSTANCE}/config")
}

/// What its launch template has as user data.
fn user_data(change: impl FnOnce(&mut Value)) -> Value {
    let mut config = json!({
        "fleet": "linux", "bucket": BUCKET, "region": "eu-central-1", "role_id": ROLE,
        "runner": { "version": VERSION, "user": "runner", "directory": "/opt/actions-runner" },
        // Nothing keeps a process of this machine away from its stand-in.
        "job_metadata_access": "allowed",
    });
    change(&mut config);
    json!({ "format": 1, "on_demand": config })
}

/// Registers the instance's runner, as the controller does, and gives its configuration.
async fn registered(fixture: &Fixture) -> Vec<u8> {
    let pem = std::fs::read(fixture.path(KEY)).unwrap();
    let key = Arc::new(AppKey::from_pem(&pem).unwrap());
    let github = &fixture.github;
    let (api, issuer) = (github.api_url().parse().unwrap(), github.client_id());
    let org = OrgClient::new(&api, "controller", issuer, key, "acme", Some(github.installation_id())).unwrap();
    let (name, labels) = (format!("linux-{INSTANCE}"), vec!["linux-x64".to_owned()]);
    let request = JitRequest { name, runner_group_id: 1, labels, work_folder: "_work".to_owned() };
    org.generate_jit_config(&request).await.unwrap().encoded.expose_secret().as_bytes().to_vec()
}

async fn boot(fixture: &Fixture, fleets: &FleetAws, user_data: &Value) -> Booted {
    // It has no key, and no use for one.
    std::fs::remove_file(fixture.path(KEY)).unwrap_or_default();
    fixture.boot_at(&user_data.to_string(), fleets.url()).await
}

fn gets(fleets: &FleetAws) -> usize {
    fleets.count(&format!("GET /{BUCKET}/{}", key()))
}

/// The object is there when the machine is up: one request, the listener, one job, and the end.
#[tokio::test]
async fn one_request_one_job_and_off() {
    let fixture = fixture().await;
    let fleets = fleets().await;
    fleets.put(&key(), registered(&fixture).await);
    let asked = fixture.github.requests().len();
    let mut booted = boot(&fixture, &fleets, &user_data(|_| {})).await;
    booted.said("the listener is started").await;
    assert_eq!(fleets.calls().len(), 1, "{:?}", fleets.calls());
    assert_eq!(gets(&fleets), 1);
    booted.online().await;
    booted.said("the hand-over object is deleted").await;
    assert!(fleets.keys().is_empty());
    let api =
        |request: &&kiln_stand_ins::github::Recorded| request.path.contains("/orgs/") || request.path.contains("/app/");
    let by_the_binary = fixture.github.requests().into_iter().skip(asked).filter(|one| api(&one)).count();
    assert_eq!(by_the_binary, 0, "{:#?}", fixture.github.requests());

    let job = fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run("id -u".to_owned())));
    let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
    let state = fixture.github.wait_job(job, ended, SOON).await.unwrap();
    let JobState::Completed { conclusion, output, .. } = state else { panic!("it has ended") };
    assert_eq!((conclusion, output), (Conclusion::Success, format!("{}\n", runner_ids().0)));
    let left = booted.said("left: switching the machine off").await;
    assert_eq!(left["why"], "the one job is done");
    assert_eq!(booted.end().await, Some(0));
}

/// It is up before its configuration is there, and does not know its role: 403 is no reason to give up.
#[tokio::test]
async fn a_configuration_that_comes_late_is_waited_for() {
    let fixture = fixture().await;
    let fleets = fleets().await;
    let config = registered(&fixture).await;
    // Another instance's is none of its business.
    fleets.put(&format!("runners/{ROLE}:i-0other/config"), b"other".to_vec());
    let without_role = user_data(|config| drop(config.as_object_mut().unwrap().remove("role_id")));
    fleets.refuse(Refusal { service: "s3", operation: "GET", times: 1, code: "SlowDown" });
    let mut booted = boot(&fixture, &fleets, &without_role).await;
    while gets(&fleets) < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(fleets.count("GetCallerIdentity"), 1);
    fleets.put(&key(), config);
    booted.online().await;
    assert_eq!(booted.stop().await, Some(0));
    assert_eq!(fleets.keys().len(), 1, "the other instance's is left alone");
}

#[tokio::test]
async fn without_a_configuration_it_switches_itself_off() {
    let fixture = fixture().await;
    let fleets = fleets().await;
    let mut booted = boot(&fixture, &fleets, &user_data(|config| config["hand_over_limit_secs"] = json!(2))).await;
    let said = booted.said("this boot can't succeed").await;
    assert!(said["error"].as_str().unwrap().contains("phase configure"), "{said}");
    booted.said("left: switching the machine off").await;
    assert_eq!(booted.end().await, Some(0));
    assert!(gets(&fleets) > 1 && fixture.github.runners().is_empty());
}

/// Its runner was removed before it listened, or its configuration is not one: whatever ends the listener ends the machine.
#[tokio::test]
async fn a_listener_that_does_not_serve_ends_the_machine() {
    let fixture = fixture().await;
    let fleets = fleets().await;
    fleets.put(&key(), b"none".to_vec());
    let mut booted = boot(&fixture, &fleets, &user_data(|_| {})).await;
    let left = booted.said("left: switching the machine off").await;
    assert_eq!(left["why"], "the listener has ended without a job");
    assert_eq!(booted.end().await, Some(0));
}

/// The process is started again after a crash: the instance's one configuration is used up.
#[tokio::test]
async fn an_instance_that_has_served_never_serves_again() {
    let fixture = fixture().await;
    let fleets = fleets().await;
    fleets.put(&key(), registered(&fixture).await);
    let mut booted = boot(&fixture, &fleets, &user_data(|_| {})).await;
    booted.online().await;
    let imds = booted.crash().await;
    let asked = fleets.calls().len();
    let mut again = fixture.boot_again(imds, fleets.url());
    let left = again.said("left: switching the machine off").await;
    assert!(left["why"].as_str().unwrap().contains("single-use"), "{left}");
    assert_eq!((again.end().await, fleets.calls().len()), (Some(0), asked));
}

/// The metadata service is not guarded here, so that jobs would reach it.
#[tokio::test]
async fn it_serves_no_jobs_that_reach_the_metadata_service() {
    let fixture = fixture().await;
    let fleets = fleets().await;
    fleets.put(&key(), registered(&fixture).await);
    let mut booted =
        boot(&fixture, &fleets, &user_data(|config| config["job_metadata_access"] = json!("blocked"))).await;
    let said = booted.said("this boot can't succeed").await;
    assert!(said["error"].as_str().unwrap().contains("reaches the metadata service"), "{said}");
    assert_eq!(booted.end().await, Some(0));
}

/// Two minutes ahead EC2 says that it takes the instance: an idle runner takes no more job.
#[tokio::test]
async fn a_spot_instance_that_is_taken_leaves() {
    let fixture = fixture().await;
    let fleets = fleets().await;
    fleets.put(&key(), registered(&fixture).await);
    let mut booted = boot(&fixture, &fleets, &user_data(|_| {})).await;
    booted.online().await;
    booted.imds.interrupt_spot();
    let left = booted.said("left: switching the machine off").await;
    assert_eq!(left["why"], "spot interruption");
    assert_eq!(booted.end().await, Some(0));
}

/// The controller's instance has the same image: its own service is started in this one's place.
#[tokio::test]
async fn the_controllers_instance_is_left_to_its_own_service() {
    let fixture = fixture().await;
    let config = fixture.config();
    let controller = json!({ "format": 1, "controller": {
        "organization": "acme", "github": config["github"], "app": config["app"], "key": config["key"],
        "bucket": BUCKET, "region": "eu-central-1",
    } });
    let mut booted = fixture.boot(&controller).await;
    let said = booted.said("this instance is the controller's").await;
    assert_eq!(said["unit"], "kiln-controller.service");
    assert_eq!(booted.end().await, Some(0));
    assert!(fixture.github.requests().is_empty());
}
