//! What the installation asks: registrations, runners, and a token that is renewed in time.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{ORGANIZATION, app, assert_secretless, fail, organization, start};
use kiln_github::{Deleted, ErrorKind, JitRequest};
use kiln_stand_ins::github::Answer;
use secrecy::ExposeSecret as _;

fn jit(name: &str) -> JitRequest {
    let labels = vec!["self-hosted".to_owned(), "linux".to_owned()];
    JitRequest { name: name.to_owned(), runner_group_id: 1, labels, work_folder: "_work".to_owned() }
}

#[tokio::test]
async fn one_token_serves_many_calls_and_is_renewed_before_its_hour_ends() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    let clone = client.clone();
    let (one, two) = tokio::join!(client.registration_token(), clone.runners(None));
    let token = one.unwrap();
    assert!(two.unwrap().is_empty());
    assert!(!format!("{token:?}").contains(token.token.expose_secret()));
    assert_ne!(client.remove_token().await.unwrap().token.expose_secret(), token.token.expose_secret());
    assert_eq!(github.count("POST", "/access_tokens"), 1);
    for (minutes, minted) in [(50, 1), (6, 2), (30, 2)] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(minutes * 60)).await;
        tokio::time::resume();
        client.runners(None).await.unwrap();
        assert_eq!(github.count("POST", "/access_tokens"), minted, "{minutes} minutes later");
    }
}

#[tokio::test]
async fn a_token_that_ends_early_is_minted_anew_once() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    client.mint().await.unwrap();
    github.expire_tokens();
    client.runners(None).await.unwrap();
    github.expire_tokens();
    assert_eq!(client.delete_runner(1).await.unwrap(), Deleted::Absent);
    assert_eq!(github.count("POST", "/access_tokens"), 3);
    fail(&github, "GET", "/runners", 9, Answer::status(401, &[], "Bad credentials"));
    assert_eq!(client.runners(None).await.unwrap_err().kind, ErrorKind::BadToken);
    assert_eq!(github.count("POST", "/access_tokens"), 4);
}

#[tokio::test]
async fn the_installation_is_looked_up_where_it_is_not_given() {
    let (github, key) = start().await;
    let client = |login: &str| {
        let signer = std::sync::Arc::clone(&key) as _;
        kiln_github::OrgClient::new(
            &crate::support::api(&github),
            "kiln-tests/0",
            github.client_id(),
            signer,
            login,
            None,
        )
        .unwrap()
    };
    client(ORGANIZATION).registration_token().await.unwrap();
    assert_eq!(github.count("GET", "/orgs/acme/installation"), 1);
    assert_eq!(client("acmee").registration_token().await.unwrap_err().kind, ErrorKind::NotInstalled);
    assert_eq!(app(&github, &key).clock_error_secs(), 0);
}

#[tokio::test]
async fn a_just_in_time_runner_is_registered_under_a_name_of_its_own() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    let made = client.generate_jit_config(&jit("linux-i-0-1")).await.unwrap();
    assert_eq!((made.runner.name.as_str(), made.runner.os.as_str()), ("linux-i-0-1", "Linux"));
    assert_eq!(made.runner.ephemeral, Some(true));
    let labels: Vec<_> = made.runner.labels.iter().map(|label| label.name.as_str()).collect();
    assert_eq!(labels, ["self-hosted", "linux"], "GitHub adds none to a just-in-time runner");
    assert!(!made.runner.is_online() && !made.runner.busy);
    assert!(!format!("{made:?}").contains(made.encoded.expose_secret()));

    let error = client.generate_jit_config(&jit("linux-i-0-1")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NameTaken);
    assert!(!error.is_retryable());
    assert_secretless(&error);
    let error = client.generate_jit_config(&jit(&"x".repeat(65))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Validation);
    assert!(error.to_string().contains("422 Validation Failed: name is invalid"), "{error}");
    let elsewhere = JitRequest { runner_group_id: 4711, ..jit("linux-i-0-2") };
    assert_eq!(client.generate_jit_config(&elsewhere).await.unwrap_err().kind, ErrorKind::NotFound);
    let group = github.add_runner_group("builders");
    let groups = client.runner_groups().await.unwrap();
    assert!(groups.iter().any(|known| known.id == group && known.name == "builders" && !known.default), "{groups:?}");
    client.generate_jit_config(&JitRequest { runner_group_id: group, ..jit("linux-i-0-2") }).await.unwrap();
}

#[tokio::test]
async fn a_lost_configuration_is_told_and_not_asked_for_again() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    fail(&github, "POST", "/generate-jitconfig", 1, Answer::Truncated);
    let error = client.generate_jit_config(&jit("once")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Body);
    assert_eq!(github.count("POST", "/generate-jitconfig"), 1);
    // The caller's way out: the half-made runner is there to be removed.
    let left = client.runners(Some("once")).await.unwrap();
    assert_eq!(client.delete_runner(left[0].id).await.unwrap(), Deleted::Gone);
    client.generate_jit_config(&jit("once")).await.unwrap();
}

#[tokio::test]
async fn every_page_is_read_and_a_name_is_asked_for_as_it_is() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    github.add_offline_runners((0..250).map(|number| format!("runner {number}&page=9")));
    let all = client.runners(None).await.unwrap();
    assert_eq!(all.len(), 250);
    assert_eq!(github.count("GET", "/actions/runners?"), 3);
    let one = client.runners(Some("runner 7&page=9")).await.unwrap();
    assert_eq!(one.iter().map(|runner| runner.name.as_str()).collect::<Vec<_>>(), ["runner 7&page=9"]);
    assert_eq!(client.runner(one[0].id).await.unwrap().unwrap(), one[0]);
    assert_eq!(client.runner(4711).await.unwrap(), None);
    assert!(client.runners(Some("nobody")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_listing_without_end_is_given_up() {
    let (github, key) = start().await;
    github.add_offline_runners((0..10_001).map(|number| number.to_string()));
    let error = organization(&github, &key).runners(None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Validation);
    assert_eq!(github.count("GET", "/actions/runners?"), 100);
}

#[tokio::test]
async fn a_small_organization_is_listed_as_a_whole() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    let builders = BTreeSet::from(["builders".to_owned()]);
    assert!(client.runners_in(&builders).await.unwrap().is_empty());
    for count in [100, 250, 1000] {
        let there = github.runners().len();
        github.add_offline_runners((there..count).map(|number| number.to_string()));
        let before = github.count("GET", "/actions/");
        assert_eq!(client.runners_in(&builders).await.unwrap().len(), count);
        let asked = github.count("GET", "/actions/") - before;
        assert_eq!(asked, count.div_ceil(100), "requests for {count}");
    }
}

/// GitHub allows ten thousand runners in a group, and an organization has many groups.
#[tokio::test]
async fn of_a_large_organization_only_some_groups_are_listed_and_each_as_a_whole() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    github.add_offline_runners((0..10_000).map(|number| number.to_string()));
    let builders = github.add_runner_group("builders");
    github.add_offline_runners_in(builders, (0..150).map(|number| format!("builder-{number}")));
    let names =
        |runners: Vec<kiln_github::Runner>| runners.into_iter().map(|runner| runner.name).collect::<BTreeSet<_>>();
    let of = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<String>>();

    let before = github.count("GET", "/actions/");
    let found = names(client.runners_in(&of(&["builders"])).await.unwrap());
    assert_eq!(found.len(), 150);
    assert!(found.iter().all(|name| name.starts_with("builder-")), "{found:?}");
    assert_eq!(github.count("GET", "/actions/") - before, 4, "the first page, the groups, two pages of the group");
    assert_eq!(names(client.runners_in(&of(&["Default"])).await.unwrap()).len(), 10_000, "a full group");
    assert_eq!(names(client.runners_in(&of(&["Default", "builders"])).await.unwrap()).len(), 10_150);
    assert_eq!(names(client.runners_in(&BTreeSet::new()).await.unwrap()).len(), 10_150, "all groups");
    assert!(client.runners_in(&of(&["no such group"])).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_full_runner_group_is_told_with_what_empties_it() {
    let (github, key) = start().await;
    let full = "Runner group 1 has reached max limit of 10000 runners";
    fail(&github, "POST", "/generate-jitconfig", 1, Answer::status(422, &[], full));
    let error = organization(&github, &key).generate_jit_config(&jit("linux-i-0")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Validation);
    assert!(error.hint().is_some_and(|hint| hint.contains("cargo xtask status --fix")), "{:?}", error.hint());
}

#[tokio::test]
async fn a_runner_is_deleted_absent_or_busy() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    github.add_offline_runners(["one".to_owned()]);
    let id = github.runners()[0].id;
    let busy = "Bad request - Runner \"one\" is currently running a job and cannot be deleted.";
    for message in [busy, "Bad request - Runner \"one\" is still running a job", "said otherwise"] {
        fail(&github, "DELETE", "/runners/", 1, Answer::status(422, &[], message));
        assert_eq!(client.delete_runner(id).await.unwrap(), Deleted::Busy);
    }
    // The first answer is lost: the second finds it gone.
    fail(&github, "DELETE", "/runners/", 1, Answer::Truncated);
    assert_eq!(client.delete_runner(id).await.unwrap(), Deleted::Absent);
    assert!(github.runners().is_empty());
}

#[tokio::test]
async fn a_permission_that_is_taken_away_is_named() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    client.mint().await.unwrap();
    github.grant(false);
    let error = client.registration_token().await.unwrap_err();
    let accepted = "organization_self_hosted_runners=write".to_owned();
    assert_eq!(error.kind, ErrorKind::MissingPermission { accepted });
    assert!(error.hint().unwrap().contains("organization_self_hosted_runners=write"));
    assert_secretless(&error);
    github.grant(true);
    fail(
        &github,
        "POST",
        "/registration-token",
        1,
        Answer::status(403, &[], "the organization has an IP allow list enabled"),
    );
    assert_eq!(client.registration_token().await.unwrap_err().kind, ErrorKind::Forbidden);
    github.suspend(true);
    assert_eq!(client.registration_token().await.unwrap_err().kind, ErrorKind::Suspended);
}

#[tokio::test]
async fn a_versions_end_is_told_where_there_is_a_date_and_its_release_where_there_is_a_list() {
    let (github, key) = start().await;
    let client = organization(&github, &key);
    assert_eq!(client.runner_deprecation("2.300.0").await.unwrap(), None);
    github.publish("2.338.0", Duration::from_secs(3600));
    let open = client.runner_deprecation("2.338.0").await.unwrap().unwrap();
    assert_eq!((open.runner_version.as_str(), open.runtime_deprecates_at), ("2.338.0", None));
    github.announce_end("2.337.1", None, Some(Duration::from_secs(60)));
    let ending = client.runner_deprecation("2.337.1").await.unwrap().unwrap();
    assert!(ending.registration_deprecates_at.is_none() && ending.runtime_deprecates_at.is_some(), "{ending:?}");

    let releases = client.runner_releases().await.unwrap();
    assert_eq!(releases.iter().map(|release| release.tag_name.as_str()).collect::<Vec<_>>(), ["v2.338.0"]);
    assert!(releases[0].published_at.as_ref().unwrap().ends_with('Z'));
    // GitHub Enterprise Server has no such repository, or does not show it.
    for status in [404, 403] {
        fail(&github, "GET", "/repos/actions/runner/releases", 1, Answer::status(status, &[], "no"));
        assert!(client.runner_releases().await.unwrap().is_empty());
    }
}
