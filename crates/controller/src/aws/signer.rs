//! Who signs as the App: a key in KMS, or one that is read from a secret for each signature, an hour apart, and not kept.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_config::boot::{KeySource, previous_alias};
use kiln_github::{AppKey, AppSigner, BoxFuture, SignError};
use kiln_instance::aws::{Aws, Error};
use serde_json::json;
use zeroize::Zeroizing;

/// The App's key, where it is.
#[derive(Debug, Clone)]
pub struct Signer {
    aws: Aws,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Kms(String),
    Secret { name: String, stage: &'static str },
    File(PathBuf),
}

impl Signer {
    /// Asks for nothing yet.
    pub fn new(aws: Aws, key: &KeySource) -> Self {
        let source = match key {
            KeySource::Kms(alias) => Source::Kms(alias.clone()),
            KeySource::SecretsManager(name) => Source::Secret { name: name.clone(), stage: "AWSCURRENT" },
            KeySource::File(path) => Source::File(path.into()),
        };
        Self { aws, source }
    }

    /// Signs with the current alias. KMS may take minutes to let a role use an alias that was just pointed at another key:
    /// meanwhile the former key, which the previous alias names, signs as well.
    ///
    /// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/alias-authorization.html>
    async fn by_kms(&self, alias: &str, input: &[u8]) -> Result<Vec<u8>, SignError> {
        let refused = match self.with_alias(alias, input).await {
            Ok(signature) => return Ok(signature),
            Err(refused) => refused,
        };
        let denied = refused.code() == "AccessDeniedException" && !alias.ends_with(&previous_alias(""));
        if denied && let Ok(signature) = self.with_alias(&previous_alias(alias), input).await {
            tracing::info!("KMS does not let this role use the current alias yet: signed with the key before");
            return Ok(signature);
        }
        Err(not_signed(format!("can't sign with {alias}"), refused))
    }

    async fn with_alias(&self, alias: &str, input: &[u8]) -> Result<Vec<u8>, Error> {
        let body = json!({
            "KeyId": alias,
            "Message": STANDARD.encode(input),
            "MessageType": "RAW",
            "SigningAlgorithm": "RSASSA_PKCS1_V1_5_SHA_256",
        });
        let answer = self.aws.json("kms", "TrentService.Sign", &body).await?;
        let signature = answer["Signature"].as_str().and_then(|text| STANDARD.decode(text).ok());
        signature.ok_or_else(|| Error::unusable("KMS answered without a signature".to_owned()))
    }

    async fn by_secret(&self, name: &str, stage: &str, input: &[u8]) -> Result<Vec<u8>, SignError> {
        let what = || format!("read the App's key in secret {name}, {stage}");
        let body = json!({ "SecretId": name, "VersionStage": stage });
        let answer = self.aws.json("secretsmanager", "secretsmanager.GetSecretValue", &body).await;
        let mut answer = answer.map_err(|error| not_signed(what(), error))?;
        let serde_json::Value::String(pem) = answer["SecretString"].take() else {
            return Err(not_signed(what(), Error::unusable("it holds no text".to_owned())));
        };
        sign_with(Zeroizing::new(pem.into_bytes()), what, input).await
    }
}

fn not_signed(what: String, error: Error) -> SignError {
    SignError { what, retryable: error.is_passing(), source: Some(Box::new(error)) }
}

async fn sign_with(pem: Zeroizing<Vec<u8>>, what: impl Fn() -> String, input: &[u8]) -> Result<Vec<u8>, SignError> {
    let unusable = |error| SignError { what: what(), retryable: false, source: Some(Box::new(error)) };
    AppKey::from_pem(&pem).map_err(unusable)?.sign(input).await
}

impl AppSigner for Signer {
    fn sign<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>> {
        Box::pin(async move {
            match &self.source {
                Source::Kms(alias) => self.by_kms(alias, input).await,
                Source::Secret { name, stage } => self.by_secret(name, stage, input).await,
                Source::File(path) => {
                    let what = || format!("read the App's key in {}", path.display());
                    let pem = std::fs::read(path);
                    let pem = pem.map_err(|error| SignError {
                        what: what(),
                        retryable: false,
                        source: Some(Box::new(error)),
                    })?;
                    sign_with(Zeroizing::new(pem), what, input).await
                }
            }
        })
    }

    fn previous(&self) -> Option<Arc<dyn AppSigner>> {
        let source = match &self.source {
            Source::Kms(alias) => Source::Kms(previous_alias(alias)),
            Source::Secret { name, .. } => Source::Secret { name: name.clone(), stage: "AWSPREVIOUS" },
            Source::File(_) => return None,
        };
        tracing::warn!("GitHub refuses the App's current key: trying the one before; has it been deleted there?");
        Some(Arc::new(Self { aws: self.aws.clone(), source }))
    }
}
