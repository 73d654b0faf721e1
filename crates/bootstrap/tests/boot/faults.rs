//! The table of faults in docs/design/instance.md, row by row: what passes by itself is ridden out, what does not is told at once.

use std::time::Duration;

use kiln_stand_ins::aws::ImdsFault;
use kiln_stand_ins::github::{Answer, Fault};
use serde_json::json;

use crate::support::{Fixture, fixture};

const TOKEN: &str = "/access_tokens";

fn inject(fixture: &Fixture, path: &str, times: u32, answer: Answer) {
    fixture.github.inject(Fault { method: "POST", path_contains: path.to_owned(), times, answer });
}

#[tokio::test]
async fn what_passes_by_itself_is_ridden_out() {
    let fixture = fixture().await;
    for answer in [
        Answer::status(500, &[], "Server Error"),
        Answer::status(502, &[], "Bad Gateway"),
        Answer::status(503, &[], "Service Unavailable"),
        Answer::status(429, &[("retry-after", "1")], "Too Many Requests"),
        Answer::status(403, &[("retry-after", "1")], "You have exceeded a secondary rate limit."),
        Answer::Dropped,
        Answer::Truncated,
        Answer::Late(Duration::from_secs(1)),
    ] {
        for path in [TOKEN, "/registration-token"] {
            inject(&fixture, path, 1, answer.clone());
        }
        let mut booted = fixture.boot(&fixture.config()).await;
        booted.online().await;
        assert_eq!(booted.stop().await, Some(0), "{answer:?}: {:#?}", booted.log);
        assert_eq!(fixture.runner(), None, "{answer:?}");
    }
}

#[tokio::test]
async fn a_body_that_drips_is_cut_off_and_asked_for_again() {
    let fixture = fixture().await;
    inject(&fixture, TOKEN, 1, Answer::Dripping(Duration::from_secs(1)));
    let mut booted = fixture.boot(&fixture.config()).await;
    booted.online().await;
    assert_eq!(fixture.github.count("POST", TOKEN), 2);
    assert_eq!(booted.stop().await, Some(0));
}

#[tokio::test]
async fn a_clock_that_is_off_is_corrected_by_githubs() {
    for skew in [-3600, 3600] {
        let fixture = fixture().await;
        fixture.github.skew_clock(skew);
        let mut booted = fixture.boot(&fixture.config()).await;
        let said = booted.said("this machine's clock is off; GitHub's was used instead").await;
        let error = said["clock_error_secs"].as_i64().unwrap();
        assert!((error + skew).abs() < 60, "{said}");
        booted.online().await;
        assert_eq!(booted.stop().await, Some(0));
    }
}

#[tokio::test]
async fn a_metadata_service_that_is_slow_or_fails_at_first_is_waited_for() {
    let fixture = fixture().await;
    let imds = fixture.imds(Some(fixture.config().to_string())).await;
    imds.inject(ImdsFault::Status(503));
    imds.inject(ImdsFault::Late(Duration::from_millis(1500)));
    imds.inject(ImdsFault::Status(500));
    let mut booted = fixture.boot_with(imds);
    booted.online().await;
    assert_eq!(booted.stop().await, Some(0));
}

#[tokio::test]
async fn a_name_that_is_taken_or_an_answer_that_is_lost_costs_a_name_and_leaves_no_half_made_runner() {
    let jit = "/generate-jitconfig";
    for answer in [Answer::status(409, &[], "Already exists"), Answer::Truncated] {
        let fixture = fixture().await;
        inject(&fixture, jit, 1, answer.clone());
        let before = fixture.github.count("POST", jit);
        let mut booted = fixture.boot(&fixture.ephemeral()).await;
        booted.said("no configuration came back: taking another name").await;
        booted.online().await;
        assert_eq!(fixture.github.count("POST", jit), before + 2, "{answer:?}");
        assert_eq!(fixture.github.runners().len(), 1, "{answer:?}: {:?}", fixture.github.runners());
        assert_eq!(booted.stop().await, Some(0));
        assert_eq!(fixture.github.runners().len(), 0);
    }
}

/// Whatever a list holds, a runner of another name is nobody's to delete, nor to take for one's own.
#[tokio::test]
async fn a_server_that_ignores_the_name_loses_no_other_runner() {
    let jit = "/generate-jitconfig";
    for answer in [Answer::status(409, &[], "Already exists"), Answer::Truncated] {
        let fixture = fixture().await;
        fixture.github.ignore_names();
        fixture.github.simulate_runner("linux-i-0abc0000000000009", &[], "2.338.0", true);
        inject(&fixture, jit, 1, answer.clone());
        let mut booted = fixture.boot(&fixture.ephemeral()).await;
        booted.online().await;
        assert_eq!(fixture.github.runners().len(), 2, "{answer:?}: {:?}", fixture.github.runners());
        assert_eq!(booted.stop().await, Some(0));
        let left = fixture.github.runners();
        assert!(left.len() == 1 && left[0].name == "linux-i-0abc0000000000009", "{answer:?}: {left:?}");
    }
    // A persistent one finds itself by its name.
    let fixture = fixture().await;
    fixture.github.ignore_names();
    fixture.github.simulate_runner("linux-i-0abc0000000000009", &[], "2.338.0", true);
    let mut booted = fixture.boot(&fixture.config()).await;
    booted.online().await;
    assert_eq!(booted.stop().await, Some(0));
    assert_eq!((fixture.runner(), fixture.github.runners().len()), (None, 1));
}

/// GitHub's API answers, and what `config.sh` asks does not: the launch waits as long as for any other outage.
#[tokio::test]
async fn a_registration_that_fails_for_want_of_github_is_an_outage() {
    let fixture = fixture().await;
    let many = Fault {
        method: "POST",
        path_contains: "/actions/runner-registration".to_owned(),
        times: 100,
        answer: Answer::status(503, &[], "Service Unavailable"),
    };
    fixture.github.inject(many);
    // Without patience for faults of its own.
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 0).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    let said = booted.said("not registered").await;
    assert!(said["error"].as_str().unwrap().contains("ServiceUnavailable"), "{said}");
    booted.said("keeping the launch waiting: this is no fault of this instance").await;
    assert_eq!(booted.stop().await, Some(1), "{:#?}", booted.log);
    assert_eq!(aws.state(), "Terminating:Proceed");
}

#[tokio::test]
async fn what_does_not_pass_is_told_at_once_with_what_to_do() {
    let fixture = fixture().await;
    fixture.write("etc/kiln/other.pem", &fixture.github.other_apps_key(), 0o600);
    let mut config = fixture.config();
    config["key"] = json!({ "file": "/etc/kiln/other.pem" });
    fixture.boot(&config).await.given_up("install one of them with `cargo xtask rotate-key`").await;

    fixture.github.suspend(true);
    fixture.boot(&fixture.config()).await.given_up("can unsuspend it").await;
    fixture.github.suspend(false);
    fixture.github.grant(false);
    fixture.boot(&fixture.config()).await.given_up("organization_self_hosted_runners=write").await;
    fixture.github.grant(true);
    fixture.github.install(false);
    fixture.boot(&fixture.config()).await.given_up("install the App in the organization").await;
    fixture.github.install(true);

    inject(&fixture, "/generate-jitconfig", 1, Answer::status(422, &[], "Invalid request"));
    fixture.boot(&fixture.ephemeral()).await.given_up("422 Invalid request").await;
    config = fixture.ephemeral();
    config["runner_group"] = json!("nowhere");
    fixture.boot(&config).await.given_up("no runner group `nowhere`").await;
    config = fixture.config();
    config["key"] = json!({ "file": "/etc/kiln/none.pem" });
    fixture.boot(&config).await.given_up("none.pem").await;
    config = fixture.config();
    config["runner"]["user"] = json!("nobody-of-this-name");
    fixture.boot(&config).await.given_up("no user `nobody-of-this-name`").await;
    assert_eq!(fixture.github.runners(), []);
}

#[tokio::test]
async fn a_host_that_can_not_be_reached_is_tried_again_and_then_told() {
    let fixture = fixture().await;
    let mut config = fixture.config();
    // Refused; no such name; no TLS on that port.
    let (_, port) =
        fixture.github.url().rsplit_once(':').map(|(host, port)| (host.to_owned(), port.to_owned())).unwrap();
    config["github"]["api_url"] = json!(format!("https://127.0.0.1:{port}"));
    fixture.boot(&config).await.given_up("there is no HTTPS on that port").await;
    let mut boots = Vec::new();
    for address in ["http://127.0.0.1:9", "http://nowhere.invalid"] {
        config["github"]["api_url"] = json!(address);
        boots.push(fixture.boot(&config).await);
    }
    for boot in boots {
        boot.given_up("check that this machine can reach GitHub").await;
    }
}

#[tokio::test]
async fn user_data_that_is_none_of_kilns_is_told() {
    let fixture = fixture().await;
    let imds = fixture.imds(None).await;
    fixture.boot_with(imds).given_up("the instance has no user data").await;
    let imds = fixture.imds(Some("#!/bin/sh".to_owned())).await;
    fixture.boot_with(imds).given_up("the user data is not a BootConfig").await;
    let imds = fixture.imds(Some(r#"{"version":2}"#.to_owned())).await;
    fixture.boot_with(imds).given_up("bake a new image").await;
}

#[tokio::test]
async fn what_a_person_mends_in_time_needs_no_new_instance() {
    let fixture = fixture().await;
    fixture.github.suspend(true);
    let mut config = fixture.config();
    config["lifecycle"] = json!({
        "group": "g", "launch_hook": "l", "termination_hook": "t",
        "termination_heartbeat_timeout_secs": 300, "drain_timeout_secs": 3600, "failed_boot_grace_secs": 300,
    });
    let mut booted = fixture.boot(&config).await;
    let said = booted.said("not registered").await;
    assert!(said["hint"].as_str().unwrap().contains("can unsuspend it"), "{said}");
    fixture.github.suspend(false);
    booted.online().await;
}
