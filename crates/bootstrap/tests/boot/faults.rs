//! The table of faults in docs/design/instance.md, row by row: what passes by itself is ridden out, what does not is told at once.

use std::time::Duration;

use kiln_stand_ins::aws::ImdsFault;
use kiln_stand_ins::github::{Answer, Fault};
use serde_json::json;

use crate::support::{There, there};

const TOKEN: &str = "/access_tokens";

fn inject(there: &There, path: &str, times: u32, answer: Answer) {
    there.github.inject(Fault { method: "POST", path_contains: path.to_owned(), times, answer });
}

#[tokio::test]
async fn what_passes_by_itself_is_ridden_out() {
    let there = there().await;
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
            inject(&there, path, 1, answer.clone());
        }
        let mut booted = there.boot(&there.config()).await;
        booted.online().await;
        assert_eq!(booted.stop().await, Some(0), "{answer:?}: {:#?}", booted.log);
        assert_eq!(there.runner(), None, "{answer:?}");
    }
}

#[tokio::test]
async fn a_body_that_drips_is_cut_off_and_asked_for_again() {
    let there = there().await;
    inject(&there, TOKEN, 1, Answer::Dripping(Duration::from_secs(1)));
    let mut booted = there.boot(&there.config()).await;
    booted.online().await;
    assert_eq!(there.github.count("POST", TOKEN), 2);
    assert_eq!(booted.stop().await, Some(0));
}

#[tokio::test]
async fn a_clock_that_is_off_is_corrected_by_githubs() {
    for skew in [-3600, 3600] {
        let there = there().await;
        there.github.skew_clock(skew);
        let mut booted = there.boot(&there.config()).await;
        let said = booted.said("this machine's clock is off; GitHub's was used instead").await;
        let error = said["clock_error_secs"].as_i64().unwrap();
        assert!((error + skew).abs() < 60, "{said}");
        booted.online().await;
        assert_eq!(booted.stop().await, Some(0));
    }
}

#[tokio::test]
async fn a_metadata_service_that_is_slow_or_fails_at_first_is_waited_for() {
    let there = there().await;
    let imds = there.imds(Some(there.config().to_string())).await;
    imds.inject(ImdsFault::Status(503));
    imds.inject(ImdsFault::Late(Duration::from_millis(1500)));
    imds.inject(ImdsFault::Status(500));
    let mut booted = there.boot_with(imds);
    booted.online().await;
    assert_eq!(booted.stop().await, Some(0));
}

#[tokio::test]
async fn a_name_that_is_taken_or_an_answer_that_is_lost_costs_a_name_and_leaves_no_half_made_runner() {
    let jit = "/generate-jitconfig";
    for answer in [Answer::status(409, &[], "Already exists"), Answer::Truncated] {
        let there = there().await;
        inject(&there, jit, 1, answer.clone());
        let before = there.github.count("POST", jit);
        let mut booted = there.boot(&there.ephemeral()).await;
        booted.said("no configuration came back: taking another name").await;
        booted.online().await;
        assert_eq!(there.github.count("POST", jit), before + 2, "{answer:?}");
        assert_eq!(there.github.runners().len(), 1, "{answer:?}: {:?}", there.github.runners());
        assert_eq!(booted.stop().await, Some(0));
        assert_eq!(there.github.runners().len(), 0);
    }
}

/// Whatever a list holds, a runner of another name is nobody's to delete, nor to take for one's own.
#[tokio::test]
async fn a_server_that_ignores_the_name_loses_no_other_runner() {
    let jit = "/generate-jitconfig";
    for answer in [Answer::status(409, &[], "Already exists"), Answer::Truncated] {
        let there = there().await;
        there.github.ignore_names();
        there.github.simulate_runner("linux-i-0abc0000000000009", &[], "2.338.0", true);
        inject(&there, jit, 1, answer.clone());
        let mut booted = there.boot(&there.ephemeral()).await;
        booted.online().await;
        assert_eq!(there.github.runners().len(), 2, "{answer:?}: {:?}", there.github.runners());
        assert_eq!(booted.stop().await, Some(0));
        let left = there.github.runners();
        assert!(left.len() == 1 && left[0].name == "linux-i-0abc0000000000009", "{answer:?}: {left:?}");
    }
    // A persistent one finds itself by its name.
    let there = there().await;
    there.github.ignore_names();
    there.github.simulate_runner("linux-i-0abc0000000000009", &[], "2.338.0", true);
    let mut booted = there.boot(&there.config()).await;
    booted.online().await;
    assert_eq!(booted.stop().await, Some(0));
    assert_eq!((there.runner(), there.github.runners().len()), (None, 1));
}

/// GitHub's API answers, and what `config.sh` asks does not: the launch waits as long as for any other outage.
#[tokio::test]
async fn a_registration_that_fails_for_want_of_github_is_an_outage() {
    let there = there().await;
    let many = Fault {
        method: "POST",
        path_contains: "/actions/runner-registration".to_owned(),
        times: 100,
        answer: Answer::status(503, &[], "Service Unavailable"),
    };
    there.github.inject(many);
    // Without patience for faults of its own.
    let imds = there.imds(Some(There::in_group(there.config(), 0).to_string())).await;
    let (mut booted, aws) = there.boot_in_group(imds).await;
    let said = booted.said("not registered").await;
    assert!(said["error"].as_str().unwrap().contains("ServiceUnavailable"), "{said}");
    booted.said("keeping the launch waiting: this is no fault of this instance").await;
    assert_eq!(booted.stop().await, Some(1), "{:#?}", booted.log);
    assert_eq!(aws.state(), "Terminating:Proceed");
}

#[tokio::test]
async fn what_does_not_pass_is_told_at_once_with_what_to_do() {
    let there = there().await;
    there.write("etc/kiln/other.pem", &there.github.other_apps_key(), 0o600);
    let mut config = there.config();
    config["key"] = json!({ "file": "/etc/kiln/other.pem" });
    there.boot(&config).await.given_up("install one of them with `cargo xtask rotate-key`").await;

    there.github.suspend(true);
    there.boot(&there.config()).await.given_up("can unsuspend it").await;
    there.github.suspend(false);
    there.github.grant(false);
    there.boot(&there.config()).await.given_up("organization_self_hosted_runners=write").await;
    there.github.grant(true);
    there.github.install(false);
    there.boot(&there.config()).await.given_up("install the App in the organization").await;
    there.github.install(true);

    inject(&there, "/generate-jitconfig", 1, Answer::status(422, &[], "Invalid request"));
    there.boot(&there.ephemeral()).await.given_up("422 Invalid request").await;
    config = there.ephemeral();
    config["runner_group"] = json!("nowhere");
    there.boot(&config).await.given_up("no runner group `nowhere`").await;
    config = there.config();
    config["key"] = json!({ "file": "/etc/kiln/none.pem" });
    there.boot(&config).await.given_up("none.pem").await;
    config = there.config();
    config["runner"]["user"] = json!("nobody-of-this-name");
    there.boot(&config).await.given_up("no user `nobody-of-this-name`").await;
    assert_eq!(there.github.runners(), []);
}

#[tokio::test]
async fn a_host_that_can_not_be_reached_is_tried_again_and_then_told() {
    let there = there().await;
    let mut config = there.config();
    // Refused; no such name; no TLS on that port.
    let (_, port) = there.github.url().rsplit_once(':').map(|(host, port)| (host.to_owned(), port.to_owned())).unwrap();
    config["github"]["api_url"] = json!(format!("https://127.0.0.1:{port}"));
    there.boot(&config).await.given_up("there is no HTTPS on that port").await;
    let mut boots = Vec::new();
    for address in ["http://127.0.0.1:9", "http://nowhere.invalid"] {
        config["github"]["api_url"] = json!(address);
        boots.push(there.boot(&config).await);
    }
    for boot in boots {
        boot.given_up("check that this machine can reach GitHub").await;
    }
}

#[tokio::test]
async fn user_data_that_is_none_of_kilns_is_told() {
    let there = there().await;
    let imds = there.imds(None).await;
    there.boot_with(imds).given_up("the instance has no user data").await;
    let imds = there.imds(Some("#!/bin/sh".to_owned())).await;
    there.boot_with(imds).given_up("the user data is not a BootConfig").await;
    let imds = there.imds(Some(r#"{"version":2}"#.to_owned())).await;
    there.boot_with(imds).given_up("bake a new image").await;
}

#[tokio::test]
async fn what_a_person_mends_in_time_needs_no_new_instance() {
    let there = there().await;
    there.github.suspend(true);
    let mut config = there.config();
    config["lifecycle"] = json!({
        "group": "g", "launch_hook": "l", "termination_hook": "t",
        "heartbeat_secs": 300, "drain_limit_secs": 3600, "replace_pause_secs": 300,
    });
    let mut booted = there.boot(&config).await;
    let said = booted.said("not registered").await;
    assert!(said["hint"].as_str().unwrap().contains("can unsuspend it"), "{said}");
    there.github.suspend(false);
    booted.online().await;
}
