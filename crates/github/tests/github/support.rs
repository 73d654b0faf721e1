//! A stand-in GitHub and clients of it.

use std::sync::Arc;
use std::time::Duration;

use kiln_github::{AppClient, AppKey, Bounds, Error, OrgClient};
use kiln_stand_ins::github::{Answer, Fault, GitHub, GitHubOptions};
use url::Url;

pub(crate) const ORGANIZATION: &str = "acme";
const USER_AGENT: &str = "kiln-tests/0";

/// Failures show at once, but a slow machine's answers are waited for.
pub(crate) const QUICK: Bounds = Bounds {
    answer: Duration::from_secs(10),
    retries: 2,
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_secs(5),
};

/// GitHub with a key of the App's.
pub(crate) async fn start() -> (GitHub, Arc<AppKey>) {
    let github = GitHub::start(GitHubOptions::new(ORGANIZATION)).await.unwrap();
    let key = Arc::new(AppKey::from_pem(github.generate_key().as_bytes()).unwrap());
    (github, key)
}

pub(crate) fn api(github: &GitHub) -> Url {
    github.api_url().parse().unwrap()
}

pub(crate) fn app_as(github: &GitHub, issuer: &str, key: &Arc<AppKey>) -> AppClient {
    AppClient::new(&api(github), USER_AGENT, issuer.to_owned(), Arc::clone(key) as _).unwrap().with_bounds(QUICK)
}

pub(crate) fn app(github: &GitHub, key: &Arc<AppKey>) -> AppClient {
    app_as(github, &github.client_id(), key)
}

pub(crate) fn organization(github: &GitHub, key: &Arc<AppKey>) -> OrgClient {
    organization_at(&api(github), github, key)
}

pub(crate) fn organization_at(api: &Url, github: &GitHub, key: &Arc<AppKey>) -> OrgClient {
    let installation = Some(github.installation_id());
    OrgClient::new(api, USER_AGENT, github.client_id(), Arc::clone(key) as _, ORGANIZATION, installation)
        .unwrap()
        .with_bounds(QUICK)
}

/// The next `times` calls of a method to a path fail.
pub(crate) fn fail(github: &GitHub, method: &'static str, path: &str, times: u32, answer: Answer) {
    github.inject(Fault { method, path_contains: path.to_owned(), times, answer });
}

/// No error shows a token, in any form it is printed in.
pub(crate) fn assert_secretless(error: &Error) {
    let shown = format!("{error} {error:?} {:?}", error.hint());
    assert!(!shown.contains("ghs_") && !shown.contains("eyJ") && !shown.contains("Bearer"), "{shown}");
}
