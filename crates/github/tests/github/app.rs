//! What the App asks with a JWT, and everything it can be refused for.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{ORGANIZATION, app, app_as, assert_secretless, fail, start};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use kiln_github::{AppKey, AppSigner, BoxFuture, ErrorKind, SignError, jwt};
use kiln_stand_ins::github::Answer;
use secrecy::ExposeSecret as _;

const AHEAD: &str = "'Expiration time' claim ('exp') is too far in the future";

#[tokio::test]
async fn a_jwt_is_what_github_asks_for_and_never_twice_the_same() {
    let (_github, key) = start().await;
    let now = SystemTime::now();
    let token = jwt("Iv23li", key.as_ref(), now).await.unwrap();
    let again = jwt("Iv23li", key.as_ref(), now).await.unwrap();
    assert_ne!(token.expose_secret(), again.expose_secret());
    let pair = aws_lc_rs::rsa::KeyPair::from_pkcs8(&key.pkcs8_der()).unwrap();
    let public = aws_lc_rs::signature::KeyPair::public_key(&pair).as_ref().to_vec();
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_required_spec_claims(&["exp", "iss"]);
    validation.set_issuer(&["Iv23li"]);
    let decoded = jsonwebtoken::decode::<serde_json::Value>(
        token.expose_secret(),
        &DecodingKey::from_rsa_der(&public),
        &validation,
    );
    let claims = decoded.unwrap().claims;
    let seconds = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(claims["iat"], seconds - 60);
    assert_eq!(claims["exp"], seconds + 480);
    assert!(claims["jti"].as_str().unwrap().len() > 20);
}

#[tokio::test]
async fn the_app_is_who_it_says_by_either_id() {
    let (github, key) = start().await;
    for issuer in [github.client_id(), github.app_id().to_string()] {
        let app = app_as(&github, &issuer, &key).app().await.unwrap();
        assert_eq!(app.id, github.app_id());
        assert_eq!(app.client_id, Some(github.client_id()));
        let web = "https://github.example.com/".parse().unwrap();
        let settings = format!("https://github.example.com/organizations/{ORGANIZATION}/settings/apps/{}", app.slug);
        assert_eq!(app.settings_url(&web), settings);
    }
    let installation = app(&github, &key).org_installation(ORGANIZATION).await.unwrap();
    assert_eq!(installation.id, github.installation_id());
    assert_eq!(installation.permissions["organization_self_hosted_runners"], "write");
    let token = app(&github, &key).installation_token(installation.id).await.unwrap();
    assert!(token.token.expose_secret().len() > 500);
    assert!(!format!("{token:?}").contains("ghs_"));
}

#[tokio::test]
async fn what_the_app_lacks_is_told_by_kind_and_at_once() {
    let (github, key) = start().await;
    let client = app(&github, &key);
    let id = github.installation_id();

    let others = Arc::new(AppKey::from_pem(github.other_apps_key().as_bytes()).unwrap());
    let error = app(&github, &others).app().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::BadKey);
    assert!(error.hint().unwrap().contains("rotate-key"));
    assert_secretless(&error);
    assert!(error.to_string().contains(&format!("GET {}/app: 401", github.api_url())), "{error}");
    assert!(error.request_id.is_some() && error.to_string().contains(error.request_id.as_ref().unwrap()), "{error}");

    // The other App's own id: GitHub answers as that App, which has no installation here.
    let other = app_as(&github, &github.other_apps_client_id(), &others);
    assert_eq!(other.app().await.unwrap().slug, "somebody-elses");
    assert_eq!(other.org_installation(ORGANIZATION).await.unwrap_err().kind, ErrorKind::NotInstalled);
    assert_eq!(other.installation_token(id).await.unwrap_err().kind, ErrorKind::NotInstalled);

    assert_eq!(app_as(&github, "Iv0", &key).app().await.unwrap_err().kind, ErrorKind::UnknownApp);
    assert_eq!(client.org_installation("acmee").await.unwrap_err().kind, ErrorKind::NotInstalled);
    assert_eq!(client.installation_token(id + 1).await.unwrap_err().kind, ErrorKind::NotInstalled);

    github.grant(false);
    let error = client.installation_token(id).await.unwrap_err();
    let accepted = "organization_self_hosted_runners=write".to_owned();
    assert_eq!(error.kind, ErrorKind::MissingPermission { accepted });
    github.grant(true);
    github.suspend(true);
    assert!(client.org_installation(ORGANIZATION).await.unwrap().suspended_at.is_some());
    assert_eq!(client.installation_token(id).await.unwrap_err().kind, ErrorKind::Suspended);
    github.suspend(false);
    github.install(false);
    assert_eq!(client.installation_token(id).await.unwrap_err().kind, ErrorKind::NotInstalled);
    github.install(true);

    github.revoke_key(key.fingerprint().as_str());
    let before = github.requests().len();
    let error = client.app().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::BadKey);
    assert!(!error.is_retryable());
    assert_eq!(github.requests().len(), before + 1, "a final refusal is not asked for again");
}

#[tokio::test]
async fn a_clock_that_is_off_is_corrected_once_and_told() {
    for skew in [-3600, -400, 3600] {
        let (github, key) = start().await;
        github.skew_clock(skew);
        let client = app(&github, &key);
        client.app().await.unwrap();
        let (error, off) = (client.clock_error_secs(), client.clock_error_secs() + skew);
        assert!(off.abs() <= 5, "skewed by {skew}, told {error}");
        assert_eq!(github.count("GET", "/app"), 2);
        client.installation_token(github.installation_id()).await.unwrap();
        assert_eq!(github.count("POST", "/access_tokens"), 1, "what was learnt is kept");
        // Set right again.
        github.skew_clock(0);
        client.app().await.unwrap();
    }
}

#[tokio::test]
async fn a_clock_that_can_not_be_corrected_is_an_error() {
    let (github, key) = start().await;
    let client = app(&github, &key);
    fail(&github, "GET", "/app", 9, Answer::status(401, &[("date", "Thu, 01 Jan 2026 00:00:00 GMT")], AHEAD));
    let error = client.app().await.unwrap_err();
    let ErrorKind::ClockSkew { seconds } = error.kind else { panic!("{error:?}") };
    assert!(seconds > 86_400);
    assert!(error.hint().unwrap().contains("ahead"), "{:?}", error.hint());
    assert!(!error.is_retryable());
    // The second answer tells a second or two more; at most that is tried.
    assert!(github.count("GET", "/app") <= 3);
}

#[tokio::test]
async fn each_try_is_signed_anew() {
    let (github, key) = start().await;
    // The stand-in answers a JWT it has seen with 404, as GitHub has.
    fail(&github, "POST", "/access_tokens", 2, Answer::Truncated);
    app(&github, &key).installation_token(github.installation_id()).await.unwrap();
    assert_eq!(github.count("POST", "/access_tokens"), 3);
}

/// Two keys of a store in the midst of a rotation.
#[derive(Debug)]
struct Rotating {
    current: Arc<AppKey>,
    previous: Option<Arc<AppKey>>,
}

impl AppSigner for Rotating {
    fn sign<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>> {
        self.current.sign(input)
    }

    fn previous(&self) -> Option<Arc<dyn AppSigner>> {
        self.previous.clone().map(|key| key as _)
    }
}

#[tokio::test]
async fn where_github_refuses_the_current_key_the_previous_one_is_tried_once() {
    let (github, kept) = start().await;
    let refused = Arc::new(AppKey::from_pem(github.generate_key().as_bytes()).unwrap());
    github.revoke_key(refused.fingerprint().as_str());
    let client = |current: &Arc<AppKey>, previous: Option<&Arc<AppKey>>| {
        let signer = Rotating { current: Arc::clone(current), previous: previous.cloned() };
        kiln_github::AppClient::new(&github.api_url().parse().unwrap(), "t/0", github.client_id(), Arc::new(signer))
            .unwrap()
    };
    let asked = || github.count("POST", "/access_tokens");
    let id = github.installation_id();
    client(&kept, Some(&refused)).installation_token(id).await.unwrap();
    assert_eq!(asked(), 1, "a key that is accepted costs no request more");
    client(&refused, Some(&kept)).installation_token(id).await.unwrap();
    assert_eq!(asked(), 3);
    for previous in [None, Some(&refused)] {
        let error = client(&refused, previous).installation_token(id).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadKey);
    }
    assert_eq!(asked(), 6);
    // The previous key is accepted, and what GitHub then says counts.
    github.suspend(true);
    let error = client(&refused, Some(&kept)).installation_token(id).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Suspended);
}

#[derive(Debug)]
struct Failing {
    retryable: bool,
}

impl AppSigner for Failing {
    fn sign<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>> {
        let what = "sign with alias/kiln-acme".to_owned();
        let error = SignError { what, retryable: self.retryable, source: Some("throttled".into()) };
        Box::pin(std::future::ready(Err(error)))
    }
}

#[tokio::test]
async fn a_signer_tells_itself_whether_to_try_again() {
    let (github, _) = start().await;
    for retryable in [true, false] {
        let api = github.api_url().parse().unwrap();
        let signer = Arc::new(Failing { retryable });
        let client = kiln_github::AppClient::new(&api, "kiln-tests/0", github.client_id(), signer).unwrap();
        let error = tokio::time::timeout(Duration::from_secs(10), client.app()).await.unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Sign { retryable });
        assert_eq!(error.is_retryable(), retryable);
        let mut chain = vec![error.to_string()];
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        while let Some(error) = cause {
            chain.push(error.to_string());
            cause = error.source();
        }
        assert_eq!(
            chain.join("; "),
            "GitHub: sign as the App: no signature; can't sign with alias/kiln-acme; throttled"
        );
    }
    assert!(github.requests().is_empty());
}
