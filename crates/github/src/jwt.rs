//! The App's JWTs and their signers.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use serde_json::json;

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Signs as the App.
pub trait AppSigner: Send + Sync + fmt::Debug {
    /// Signs the bytes with RSASSA-PKCS1-v1_5 and SHA-256.
    fn sign<'a>(&'a self, signing_input: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>>;

    /// The signer with the previous key, for the case that GitHub refuses this key. `None` if there is no previous key.
    fn previous(&self) -> Option<Arc<dyn AppSigner>> {
        None
    }
}

/// The error of a signer.
#[derive(Debug, thiserror::Error)]
#[error("can't {what}")]
pub struct SignError {
    /// The operation, with a reference to the key: "sign with alias/kiln-acme-app-key".
    pub what: String,
    /// Whether a retry of the same call is useful.
    pub retryable: bool,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// How far `iat` is in the past. GitHub recommends 60 s, so that a clock that is ahead of GitHub's is accepted.
///
/// Source: <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app>
const ISSUED_BEFORE: Duration = Duration::from_secs(60);

/// How far `exp` is in the future. GitHub allows at most ten minutes; exactly ten fails when clocks drift.
const VALID_FOR: Duration = Duration::from_secs(9 * 60);

/// Makes and signs a JWT of the App.
///
/// It has a random `jti`: two boots that sign in the same second would otherwise send identical tokens, one of which GitHub has answered
/// with 404.
///
/// # Errors
/// The signer's errors.
pub async fn jwt(issuer: &str, signer: &dyn AppSigner, now: SystemTime) -> Result<SecretString, SignError> {
    let issued = now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(ISSUED_BEFORE);
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| SignError {
        what: "draw a random number".to_owned(),
        retryable: true,
        source: None,
    })?;
    let header = json!({ "alg": "RS256", "typ": "JWT" });
    let claims = json!({
        "iat": issued.as_secs(),
        "exp": (issued + VALID_FOR).as_secs(),
        "iss": issuer,
        "jti": URL_SAFE_NO_PAD.encode(id),
    });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let input = format!("{}.{}", part(&header), part(&claims));
    let signature = signer.sign(input.as_bytes()).await?;
    Ok(SecretString::from(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))))
}
