//! The only place on the instance that speaks to AWS: the App's key, the instance's place in its group, and the instance
//! itself.

mod ec2;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_autoscaling::error::SdkError;
pub(crate) use aws_sdk_autoscaling::primitives::{DateTime, DateTimeFormat};
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{MessageType, SigningAlgorithmSpec};
use kiln_config::boot::{KeySource, Lifecycle, STATE_TAG, previous_alias};
use kiln_config::model::InstanceId;
use kiln_github::{AppKey, AppSigner, BoxFuture, SignError};

use crate::identify::Metadata;
use crate::life::{Completion, Hook, Verdict};
use crate::machine::Machine;

pub(crate) use ec2::Ec2;

/// The SDK's own backoff between these spans about half a minute: KMS throttles per account, and a fleet boots at once.
const MOST_ATTEMPTS: u32 = 6;

/// Clients made when they are first asked for.
#[derive(Debug, Clone)]
pub(crate) struct Aws {
    config: SdkConfig,
    region: String,
    /// Gives what it gave last when the metadata service does not answer.
    credentials: SharedCredentialsProvider,
}

impl Aws {
    /// Makes no call. Credentials come from the instance's role alone.
    pub(crate) fn connect(region: &str, metadata: &Metadata) -> Self {
        let credentials = ImdsCredentialsProvider::builder().imds_client(metadata.client()).build();
        let credentials = SharedCredentialsProvider::new(credentials);
        let mut builder = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .credentials_provider(credentials.clone())
            .retry_config(RetryConfig::standard().with_max_attempts(MOST_ATTEMPTS));
        if let Ok(endpoint) = std::env::var("AWS_ENDPOINT_URL") {
            builder = builder.endpoint_url(endpoint);
        }
        Self { config: builder.build(), region: region.to_owned(), credentials }
    }

    /// The instance itself.
    fn ec2(&self, instance: &InstanceId) -> Option<Ec2> {
        let credentials = Arc::new(ec2::OfSdk(self.credentials.clone()));
        match kiln_instance::aws::Aws::new(&self.region, credentials) {
            Ok(aws) => Some(Ec2 { aws, instance: instance.clone() }),
            Err(error) => {
                tracing::warn!(%error, "this instance can't be marked for its operator");
                None
            }
        }
    }

    /// Who signs as the App. Asks for nothing yet.
    pub(crate) fn signer(&self, source: &KeySource, machine: &Machine) -> Signer {
        let source = match source {
            KeySource::Kms(alias) => {
                Source::Kms { client: aws_sdk_kms::Client::new(&self.config), alias: alias.clone() }
            }
            KeySource::SecretsManager(name) => Source::Secret {
                client: aws_sdk_secretsmanager::Client::new(&self.config),
                name: name.clone(),
                stage: "AWSCURRENT",
            },
            KeySource::File(path) => Source::File(machine.path(path)),
        };
        Signer(source)
    }

    /// The instance's place in its group.
    pub(crate) fn group(&self, lifecycle: &Lifecycle, instance: &InstanceId) -> Group {
        Group {
            client: aws_sdk_autoscaling::Client::new(&self.config),
            ec2: self.ec2(instance),
            lifecycle: lifecycle.clone(),
            instance: instance.clone(),
        }
    }
}

/// Signs as the App. A key that has to be read is read for each signature, an hour apart, and not kept.
#[derive(Debug)]
pub(crate) struct Signer(Source);

#[derive(Debug)]
enum Source {
    Kms { client: aws_sdk_kms::Client, alias: String },
    Secret { client: aws_sdk_secretsmanager::Client, name: String, stage: &'static str },
    File(PathBuf),
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl AppSigner for Signer {
    fn sign<'a>(&'a self, signing_input: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>> {
        Box::pin(async move {
            match &self.0 {
                Source::Kms { client, alias } => sign_by_either(client, alias, signing_input).await,
                Source::Secret { client, name, stage } => {
                    let what = || format!("read the App's key in secret {name}, {stage}");
                    let get = client.get_secret_value().secret_id(name).version_stage(*stage);
                    let answer = get.send().await.map_err(|error| SignError {
                        what: what(),
                        retryable: is_worth_another_try(&error),
                        source: Some(Box::new(error)),
                    })?;
                    let pem = answer.secret_string.map(zeroize::Zeroizing::new);
                    let pem = pem.ok_or_else(|| unusable(what(), "it holds no text".into()))?;
                    let key = AppKey::from_pem(pem.as_bytes()).map_err(|error| unusable(what(), error.into()))?;
                    key.sign(signing_input).await
                }
                Source::File(path) => {
                    let what = || format!("read the App's key in {}", path.display());
                    let pem = std::fs::read(path).map_err(|error| unusable(what(), error.into()))?;
                    let pem = zeroize::Zeroizing::new(pem);
                    let key = AppKey::from_pem(&pem).map_err(|error| unusable(what(), error.into()))?;
                    key.sign(signing_input).await
                }
            }
        })
    }

    fn previous(&self) -> Option<Arc<dyn AppSigner>> {
        let source = match &self.0 {
            Source::Kms { client, alias } => Source::Kms { client: client.clone(), alias: previous_alias(alias) },
            Source::Secret { client, name, .. } => {
                Source::Secret { client: client.clone(), name: name.clone(), stage: "AWSPREVIOUS" }
            }
            Source::File(_) => return None,
        };
        tracing::warn!("GitHub refuses the App's current key: trying the one before; has it been deleted there?");
        Some(Arc::new(Self(source)))
    }
}

fn unusable(what: String, source: Cause) -> SignError {
    SignError { what, retryable: false, source: Some(source) }
}

/// Signs with the current alias. KMS may take up to five minutes to let a role use an alias that was just pointed at another
/// key: meanwhile the former key, which the previous alias names, signs as well.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/alias-authorization.html>
async fn sign_by_either(client: &aws_sdk_kms::Client, alias: &str, input: &[u8]) -> Result<Vec<u8>, SignError> {
    let refused = match sign_by_kms(client, alias, input).await {
        Err(refused) => refused,
        signed => return signed,
    };
    let denied = refused.source.as_ref().is_some_and(|source| is_denied(source.as_ref()));
    if !denied || alias.ends_with(&previous_alias("")) {
        return Err(refused);
    }
    let signature = sign_by_kms(client, &previous_alias(alias), input).await.map_err(|_| refused)?;
    tracing::info!("KMS does not let this role use the current alias yet: signed with the key before");
    Ok(signature)
}

fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<SdkError<aws_sdk_kms::operation::sign::SignError>>();
    error.is_some_and(|error| error.code() == Some("AccessDeniedException"))
}

async fn sign_by_kms(client: &aws_sdk_kms::Client, alias: &str, input: &[u8]) -> Result<Vec<u8>, SignError> {
    let answer = client
        .sign()
        .key_id(alias)
        // RAW lets KMS hash; a signing input is far below its 4,096 bytes.
        .message(Blob::new(input))
        .message_type(MessageType::Raw)
        .signing_algorithm(SigningAlgorithmSpec::RsassaPkcs1V15Sha256)
        .send()
        .await;
    let what = || format!("sign with {alias}");
    match answer {
        Ok(answer) => answer.signature.map(Blob::into_inner).ok_or_else(|| unusable(what(), "no signature".into())),
        Err(error) => {
            Err(SignError { what: what(), retryable: is_worth_another_try(&error), source: Some(Box::new(error)) })
        }
    }
}

/// What the SDK has tried often enough is worth another phase only if it was not the service that refused.
fn is_worth_another_try<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> bool {
    !matches!(
        error.code(),
        Some(
            "AccessDeniedException"
                | "NotFoundException"
                | "ResourceNotFoundException"
                | "DisabledException"
                | "KMSInvalidStateException"
        )
    )
}

/// The service's own words, or what kept them from coming.
fn said<E, R>(error: &SdkError<E, R>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug,
{
    match (error.code(), error.message()) {
        (Some(code), message) => format!("{code}: {}", message.unwrap_or("no message")),
        (None, _) => error.to_string(),
    }
}

/// The instance's place in its Auto Scaling group.
#[derive(Debug)]
pub(crate) struct Group {
    client: aws_sdk_autoscaling::Client,
    ec2: Option<Ec2>,
    lifecycle: Lifecycle,
    instance: InstanceId,
}

impl Group {
    /// Lets a new instance into service, or gives it up.
    pub(crate) async fn complete_launch(&self, verdict: Verdict) -> Completion {
        self.complete(&self.lifecycle.launch_hook, verdict).await
    }

    /// Lets a leaving instance go.
    pub(crate) async fn complete_termination(&self) -> Completion {
        self.complete(&self.lifecycle.termination_hook, Verdict::Continue).await
    }

    /// An instance outside its hook's wait (before it and after it, a group without hooks) has nothing to complete.
    async fn complete(&self, hook: &str, verdict: Verdict) -> Completion {
        let answer = self
            .client
            .complete_lifecycle_action()
            .auto_scaling_group_name(self.lifecycle.group.as_str())
            .lifecycle_hook_name(hook)
            .instance_id(self.instance.as_str())
            .lifecycle_action_result(match verdict {
                Verdict::Continue => "CONTINUE",
                Verdict::Abandon => "ABANDON",
            })
            .send()
            .await;
        match answer {
            Ok(_) => {
                tracing::info!(hook, ?verdict, "lifecycle action completed");
                Completion::Done
            }
            Err(error) if error.code() == Some("ValidationError") => {
                tracing::info!(hook, error = said(&error), "no lifecycle action to complete");
                Completion::NoneActive
            }
            Err(error) => {
                tracing::warn!(hook, error = said(&error), "lifecycle action not completed");
                Completion::Unheard
            }
        }
    }

    /// Shows the group that the instance is still at work.
    pub(crate) async fn heartbeat(&self, hook: Hook) {
        let hook = match hook {
            Hook::Launch => &self.lifecycle.launch_hook,
            Hook::Termination => &self.lifecycle.termination_hook,
        };
        let answer = self
            .client
            .record_lifecycle_action_heartbeat()
            .auto_scaling_group_name(self.lifecycle.group.as_str())
            .lifecycle_hook_name(hook)
            .instance_id(self.instance.as_str())
            .send()
            .await;
        if let Err(error) = answer {
            tracing::warn!(hook, error = said(&error), "heartbeat not recorded");
        }
    }

    /// Marks the instance as unhealthy, at once: the group replaces it. Was it heard?
    pub(crate) async fn mark_unhealthy(&self) -> bool {
        let answer = self
            .client
            .set_instance_health()
            .instance_id(self.instance.as_str())
            .health_status("Unhealthy")
            .should_respect_grace_period(false)
            .send()
            .await;
        match answer {
            Ok(_) => {
                tracing::warn!("marked this instance as unhealthy: the group replaces it");
                true
            }
            Err(error) => {
                tracing::error!(error = said(&error), "could not mark this instance as unhealthy");
                false
            }
        }
    }

    /// Shows whoever looks at the group what has become of the instance.
    pub(crate) async fn show_state(&self, state: &str) {
        let Some(ec2) = &self.ec2 else { return };
        match ec2.tag(STATE_TAG, state).await {
            Ok(()) => tracing::info!(tag = STATE_TAG, value = state, "marked this instance"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, tag = STATE_TAG, "could not mark this instance; its log says it all the same");
            }
        }
    }

    /// Asks Auto Scaling to terminate this instance, through its hook: for another one in its place, or for none. Was it
    /// granted?
    pub(crate) async fn terminate(&self, decrement: bool) -> bool {
        let answer = self
            .client
            .terminate_instance_in_auto_scaling_group()
            .instance_id(self.instance.as_str())
            .should_decrement_desired_capacity(decrement)
            .send()
            .await;
        match answer {
            Ok(_) => {
                tracing::info!(decrement, "asked the group to terminate this instance");
                true
            }
            // A group of its least size keeps what it has.
            Err(error) if decrement => {
                tracing::info!(error = said(&error), "the group keeps this instance");
                false
            }
            Err(error) => {
                tracing::error!(error = said(&error), "could not ask to be replaced");
                false
            }
        }
    }
}
