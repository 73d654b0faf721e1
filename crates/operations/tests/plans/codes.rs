//! Failures by name: each is documented, and made by a test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_github::ErrorKind as GitHub;
use kiln_operations::ports::{CloudError, CloudErrorKind};
use kiln_operations::{Code, Error};

/// Those that no test makes: what they need can't be had in a test, or takes longer than they are worth.
const UNTRIED: &[(Code, &str)] = &[
    (Code::AppNotRegistered, "a person who closes the form, or a code of an hour ago"),
    (Code::ShredFailed, "a disk that fails between two writes"),
    (Code::ToolchainMissing, "a toolchain without a target"),
    (Code::CheckoutNotReady, "a checkout that is not committed"),
    (Code::ImageCopyMissing, "an Image Builder that forgets a region"),
    (Code::KeyNotSettled, "an alias that stays where it was"),
    (Code::RefreshTimeout, "a refresh without progress for hours"),
    (Code::DrainTimeout, "a job of two days"),
    (Code::BuildTimeout, "a bake of hours"),
    (Code::StackDrifted, "a stack whose outputs somebody took away"),
    (Code::GroupMissing, "a group that somebody deleted below its stack"),
    (Code::Internal, "what is not expected to happen"),
    // By their exit codes and words in xtask/tests/commands, which run the command itself.
    (Code::UnknownFleet, "bad_input.rs"),
    (Code::VersionDiffers, "kiln.toml's version, by its message"),
    (Code::RunnerDigestMissing, "plans/ami.rs"),
    (Code::BootConfigTooLarge, "config's own tests"),
    (Code::KeyFileUnreadable, "rotation.rs"),
    (Code::KeyFileInvalid, "rotation.rs"),
    (Code::AppMismatch, "rotation.rs"),
    (Code::InstallationMismatch, "rotation.rs"),
    (Code::SubnetNotUsable, "init.rs"),
    (Code::AnswerInvalid, "init.rs"),
    (Code::NoTerminal, "init.rs"),
    (Code::FileExists, "init.rs"),
    (Code::FileUnwritable, "pin.rs"),
    (Code::BootstrapInvalid, "bad_input.rs"),
    (Code::BootstrapMissing, "a kiln without the binaries, outside of a checkout"),
    (Code::KeyUnproved, "rotation.rs"),
    (Code::ImageUnavailable, "deploy.rs"),
    (Code::BakeNetworkNotUsable, "a subnet of an account"),
    (Code::BakeTypesNotOffered, "the bake's own tests, by its message"),
    (Code::ImageForeign, "deploy.rs"),
    (Code::ImageResourceForeign, "plans/ami.rs, by its message"),
    (Code::RunnerUnsupported, "pin.rs"),
    (Code::ConsentMissing, "failures.rs"),
    (Code::ConsentRefused, "failures.rs"),
    (Code::FleetDraining, "destroy.rs"),
    (Code::GitHubNotAsked, "status.rs"),
    (Code::RefreshFailed, "failures.rs, and the two hundred rollouts"),
    (Code::RefreshCancelled, "the two hundred rollouts"),
    (Code::RunnersOffline, "the two hundred rollouts"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every text of a folder's Rust files, this one left out.
fn texts(folder: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            texts(&path, into);
        } else if path.extension().is_some_and(|end| end == "rs" || end == "trycmd") && !path.ends_with("codes.rs") {
            into.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The tests of the workspace: files of theirs, and modules in others.
fn tests() -> String {
    let mut tests = Vec::new();
    texts(&root().join("xtask/tests"), &mut tests);
    for krate in std::fs::read_dir(root().join("crates")).unwrap().flatten() {
        texts(&krate.path().join("tests"), &mut tests);
        let mut sources = Vec::new();
        texts(&krate.path().join("src"), &mut sources);
        tests.extend(sources.iter().filter_map(|text| Some(text.split_once("#[cfg(test)]")?.1.to_owned())));
    }
    tests.push(include_str!("codes.rs").rsplit("fn what_aws").next().unwrap_or_default().to_owned());
    tests.concat()
}

#[test]
fn every_failure_is_documented_and_made_by_a_test() {
    let page = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let tests = tests();
    let untried: BTreeSet<&str> = UNTRIED.iter().map(|(code, _)| code.name()).collect();
    assert_eq!(untried.len(), UNTRIED.len(), "one is listed twice");
    for code in Code::ALL {
        assert!(
            page.contains(&format!("\n## {code}\n")),
            "{code} is not in docs/errors.md: `cargo xtask explain` makes it"
        );
        let tried = tests.contains(&format!("Code::{code:?}"))
            || ["[{}]", "\"{}\""].iter().any(|form| tests.contains(&form.replace("{}", code.name())));
        assert_eq!(
            tried,
            !untried.contains(code.name()),
            "{code}: is it made by a test (here: {tried}), or listed as untried?"
        );
    }
}

#[test]
fn what_aws_answers_has_a_name() {
    for (kind, code) in [
        (CloudErrorKind::Credentials, Code::AwsCredentials),
        (CloudErrorKind::AccessDenied, Code::AwsAccessDenied),
        (CloudErrorKind::Unreachable, Code::AwsUnreachable),
        (CloudErrorKind::Throttled, Code::AwsThrottled),
        (CloudErrorKind::Quota, Code::AwsQuota),
        (CloudErrorKind::Conflict, Code::AwsConflict),
        (CloudErrorKind::TooLong, Code::AwsListTooLong),
        (CloudErrorKind::NotFound, Code::AwsRejected),
        (CloudErrorKind::Invalid, Code::AwsRejected),
        (CloudErrorKind::Other, Code::AwsRejected),
    ] {
        let error = CloudError { doing: "do it".to_owned(), region: "eu-central-1".to_owned(), kind, source: None };
        let error = Error::from(error);
        assert_eq!((error.code, error.message.as_str()), (code, "do it in eu-central-1"));
        assert!(error.hint.is_some() || code == Code::AwsRejected, "{code}: what is to be done?");
    }
}

#[test]
fn what_github_answers_has_a_name() {
    let accepted = "organization_self_hosted_runners=write".to_owned();
    for (kind, code) in [
        (GitHub::BadKey, Code::GitHubBadKey),
        (GitHub::UnknownApp, Code::GitHubUnknownApp),
        (GitHub::NotInstalled, Code::GitHubNotInstalled),
        (GitHub::Suspended, Code::GitHubSuspended),
        (GitHub::MissingPermission { accepted }, Code::GitHubPermission),
        (GitHub::Forbidden, Code::GitHubToken),
        (GitHub::BadToken, Code::GitHubToken),
        (GitHub::ClockSkew { seconds: 90 }, Code::GitHubClock),
        (GitHub::RateLimited { retry_after: Duration::from_secs(60) }, Code::GitHubRateLimited),
        (GitHub::Connect, Code::GitHubUnreachable),
        (GitHub::Timeout, Code::GitHubUnreachable),
        (GitHub::Tls, Code::GitHubUnreachable),
        (GitHub::Server(502), Code::GitHubRejected),
        (GitHub::Body, Code::GitHubRejected),
    ] {
        let (operation, message) = ("GET /app".to_owned(), "it".to_owned());
        let error = kiln_github::Error { operation, kind, message, request_id: None, source: None };
        assert_eq!(Error::from(error).code, code);
    }
}
