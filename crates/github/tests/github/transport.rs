//! What passes by itself is tried again, within bounds; what does not is told at once.

use std::time::Duration;

use crate::support::{ORGANIZATION, QUICK, app, assert_secretless, fail, organization, organization_at, start};
use kiln_github::{Bounds, ErrorKind};
use kiln_stand_ins::github::{Answer, GitHub, GitHubOptions};

#[tokio::test]
async fn a_failure_that_passes_is_not_noticed() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    let passing = [
        Answer::status(502, &[], "Server Error"),
        Answer::status(503, &[], "Service Unavailable"),
        Answer::status(429, &[("retry-after", "0")], "Too Many Requests"),
        Answer::status(403, &[("retry-after", "0")], "You have exceeded a secondary rate limit."),
        Answer::Dropped,
        Answer::Truncated,
    ];
    for answer in passing {
        let before = github.count("GET", "/actions/runners");
        fail(&github, "GET", "/actions/runners", 2, answer.clone());
        client.runners(None).await.unwrap_or_else(|error| panic!("{answer:?}: {error:?}"));
        assert_eq!(github.count("GET", "/actions/runners"), before + 3, "{answer:?}");
    }
}

#[tokio::test]
async fn a_failure_that_stays_is_given_up_with_its_kind() {
    let (github, key) = start().await;
    let client = app(&github, &key);
    let staying = [
        (Answer::status(500, &[], "Server Error"), ErrorKind::Server(500)),
        (Answer::Dropped, ErrorKind::Body),
        (Answer::Truncated, ErrorKind::Body),
        (
            Answer::status(429, &[("retry-after", "0")], "slow down"),
            ErrorKind::RateLimited { retry_after: Duration::ZERO },
        ),
    ];
    for (answer, kind) in staying {
        let before = github.requests().len();
        fail(&github, "GET", "/app", 3, answer);
        let error = client.app().await.unwrap_err();
        assert_eq!(error.kind, kind);
        assert!(error.is_retryable(), "{error:?}");
        assert_secretless(&error);
        assert_eq!(github.requests().len(), before + 3, "a try and two more: {error}");
        client.app().await.unwrap();
    }
    fail(&github, "GET", "/app", 1, Answer::status(418, &[], "teapot"));
    assert_eq!(client.app().await.unwrap_err().kind, ErrorKind::Status(418));
}

#[tokio::test]
async fn a_limit_that_ends_late_is_told_and_not_slept_on() {
    let (github, key) = start().await;
    let client = app(&github, &key);
    fail(&github, "GET", "/app", 1, Answer::status(403, &[("retry-after", "3600")], "secondary rate limit"));
    let error = client.app().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::RateLimited { retry_after: Duration::from_secs(3600) });
    assert!(error.hint().unwrap().contains("3600 s"));
    // Without a time GitHub asks for a minute.
    fail(&github, "GET", "/app", 1, Answer::status(429, &[], "secondary rate limit"));
    let error = client.app().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::RateLimited { retry_after: Duration::from_secs(60) });
    // The hour's limit: until its reset by GitHub's clock, not by this machine's.
    github.skew_clock(100_000);
    github.use_up_limit(0, 1800);
    let error = client.app().await.unwrap_err();
    let ErrorKind::RateLimited { retry_after } = error.kind else { panic!("{error:?}") };
    assert!((1795..=1800).contains(&retry_after.as_secs()), "{retry_after:?}");
    assert_eq!(github.count("GET", "/app"), 3);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_a_timeout() {
    let (github, key) = start().await;
    let bounds = Bounds { answer: Duration::from_millis(300), retries: 1, ..QUICK };
    let client = app(&github, &key).with_bounds(bounds);
    fail(&github, "GET", "/app", 9, Answer::Late(Duration::from_secs(30)));
    let error = client.app().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_host_that_is_not_there_and_one_without_tls_are_told_apart() {
    let (github, key) = start().await;
    let nowhere = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/api/v3", listener.local_addr().unwrap()).parse().unwrap()
    };
    let error = organization_at(&nowhere, &github, &key).mint().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connect);
    assert!(error.is_retryable() && error.hint().is_some());
    let plain = github.api_url().replace("http://", "https://").parse().unwrap();
    let error = organization_at(&plain, &github, &key).mint().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Tls, "{error:?}");
    assert!(!error.is_retryable() && error.hint().is_some());
    assert_secretless(&error);
}

#[tokio::test]
async fn a_token_is_carried_to_no_other_host() {
    let (github, key) = start().await;
    let elsewhere = GitHub::start(GitHubOptions::new(ORGANIZATION)).await.unwrap();
    let client = app(&github, &key);
    fail(&github, "GET", "/app", 1, Answer::status(302, &[("location", &format!("{}/app", elsewhere.api_url()))], ""));
    let error = client.app().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Redirected);
    assert!(error.to_string().contains(&elsewhere.api_url()), "{error}");
    assert!(elsewhere.requests().is_empty());
    // Within the host it is: GitHub moves things, and says so.
    fail(&github, "GET", "/app", 1, Answer::status(301, &[("location", "/api/v3/app")], "Moved Permanently"));
    client.app().await.unwrap();
    let around = ("location", "/api/v3/app");
    fail(&github, "GET", "/app", 99, Answer::status(307, &[around], "Temporary Redirect"));
    assert_eq!(client.app().await.unwrap_err().kind, ErrorKind::Redirected);
}

#[tokio::test]
async fn an_answer_of_another_shape_is_no_success() {
    let (github, key) = start().await;
    fail(&github, "GET", "/app", 1, Answer::status(200, &[], "a captive portal says hello"));
    let error = app(&github, &key).app().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Body);
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn a_connection_opened_ahead_is_the_only_one() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    client.app().open_ahead().await;
    client.mint().await.unwrap();
    client.registration_token().await.unwrap();
    let usage = client.app().usage();
    assert_eq!((usage.requests, usage.connections), (2, 1), "{usage:?}");
    assert!(usage.bytes > 100, "{usage:?}");
    assert_eq!(github.requests().len(), 2, "nothing is sent ahead: {:?}", github.requests());
}

#[tokio::test]
async fn a_connection_that_can_not_be_opened_ahead_is_the_first_calls_error() {
    let (github, key) = start().await;
    let nowhere = "http://127.0.0.1:9/".parse().unwrap();
    let client = organization_at(&nowhere, &github, &key);
    client.app().open_ahead().await;
    assert_eq!(client.mint().await.unwrap_err().kind, ErrorKind::Connect);
}

/// Whoever answers in GitHub's place must not fill the memory of a process that is root.
#[tokio::test]
async fn an_answer_without_an_end_is_read_to_a_limit() {
    let (github, key) = start().await;
    let client = app(&github, &key);
    let long = "x".repeat(11 << 20);
    fail(&github, "GET", "/app", 1, Answer::status(200, &[], &long));
    let error = client.app().await.unwrap_err();
    assert!(error.message.contains("longer than 10 MiB"), "{error:?}");
    assert!(!error.is_retryable());
    fail(&github, "GET", "/app", 1, Answer::status(403, &[], &long));
    let error = client.app().await.unwrap_err();
    assert!(error.message.len() < 1000, "a refusal is not read whole either");
}
