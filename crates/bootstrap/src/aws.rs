//! The only place on the instance that uses the AWS SDK: the App's key, and the instance's place in its group.

use std::sync::Arc;

use anyhow::Context as _;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_autoscaling::error::SdkError;
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{MessageType, SigningAlgorithmSpec};
use kiln_fleet::boot::{KeySource, Lifecycle};
use kiln_fleet::model::InstanceId;
use kiln_github::{AppKey, AppSigner, BoxFuture, SignError};

use crate::identify::Metadata;
use crate::machine::Machine;

/// The SDK's own backoff between these spans about half a minute: KMS throttles per account, and a fleet boots at once.
const MOST_ATTEMPTS: u32 = 6;

/// Clients made when they are first asked for.
#[derive(Debug, Clone)]
pub(crate) struct Aws {
    config: SdkConfig,
}

impl Aws {
    /// Makes no call. Credentials come from the instance's role alone.
    pub(crate) fn connect(region: &str, metadata: &Metadata) -> Self {
        let credentials = ImdsCredentialsProvider::builder().imds_client(metadata.client()).build();
        let mut builder = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .credentials_provider(aws_sdk_kms::config::SharedCredentialsProvider::new(credentials))
            .retry_config(RetryConfig::standard().with_max_attempts(MOST_ATTEMPTS));
        if let Ok(endpoint) = std::env::var("AWS_ENDPOINT_URL") {
            builder = builder.endpoint_url(endpoint);
        }
        Self { config: builder.build() }
    }

    /// Who signs as the App.
    ///
    /// # Errors
    /// The secret or the file can't be read, or holds no key.
    pub(crate) async fn signer(&self, source: &KeySource, machine: &Machine) -> anyhow::Result<Arc<dyn AppSigner>> {
        match source {
            KeySource::Kms(alias) => {
                Ok(Arc::new(KmsSigner { client: aws_sdk_kms::Client::new(&self.config), alias: alias.clone() }))
            }
            KeySource::SecretsManager(name) => {
                let client = aws_sdk_secretsmanager::Client::new(&self.config);
                let secret = client.get_secret_value().secret_id(name).send().await;
                let secret = secret.with_context(|| format!("read secret {name}"))?;
                let pem = secret.secret_string().with_context(|| format!("secret {name} holds no text"))?;
                Ok(Arc::new(AppKey::from_pem(pem.as_bytes()).with_context(|| format!("secret {name}"))?))
            }
            KeySource::File(path) => {
                let pem = zeroize::Zeroizing::new(std::fs::read(machine.path(path)).with_context(|| path.clone())?);
                Ok(Arc::new(AppKey::from_pem(&pem).with_context(|| path.clone())?))
            }
        }
    }

    /// The instance's place in its group.
    pub(crate) fn group(&self, lifecycle: &Lifecycle, instance: &InstanceId) -> Group {
        Group {
            client: aws_sdk_autoscaling::Client::new(&self.config),
            lifecycle: lifecycle.clone(),
            instance: instance.clone(),
        }
    }
}

#[derive(Debug)]
struct KmsSigner {
    client: aws_sdk_kms::Client,
    alias: String,
}

impl AppSigner for KmsSigner {
    fn sign<'a>(&'a self, signing_input: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>> {
        Box::pin(async move {
            let answer = self
                .client
                .sign()
                .key_id(&self.alias)
                // RAW lets KMS hash; a signing input is far below its 4,096 bytes.
                .message(Blob::new(signing_input))
                .message_type(MessageType::Raw)
                .signing_algorithm(SigningAlgorithmSpec::RsassaPkcs1V15Sha256)
                .send()
                .await;
            let failed = |retryable, source| SignError { what: format!("sign with {}", self.alias), retryable, source };
            match answer {
                Ok(answer) => answer.signature.map(Blob::into_inner).ok_or_else(|| failed(false, None)),
                Err(error) => {
                    // What the SDK has tried often enough is worth another phase only if KMS was not the one to refuse.
                    let refused = matches!(
                        error.code(),
                        Some(
                            "AccessDeniedException"
                                | "NotFoundException"
                                | "DisabledException"
                                | "KMSInvalidStateException"
                        )
                    );
                    Err(failed(!refused, Some(Box::new(error))))
                }
            }
        })
    }
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
    lifecycle: Lifecycle,
    instance: InstanceId,
}

/// How a lifecycle action ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Continue,
    Abandon,
}

impl Group {
    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// Lets a new instance into service, or gives it up.
    pub(crate) async fn complete_launch(&self, verdict: Verdict) {
        self.complete(&self.lifecycle.launch_hook, verdict).await;
    }

    /// Lets a leaving instance go.
    pub(crate) async fn complete_termination(&self) {
        self.complete(&self.lifecycle.termination_hook, Verdict::Continue).await;
    }

    /// An instance outside its hook's wait (a restart of the service, a group without hooks) has nothing to complete.
    async fn complete(&self, hook: &str, verdict: Verdict) {
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
            Ok(_) => tracing::info!(hook, ?verdict, "lifecycle action completed"),
            Err(error) => tracing::warn!(hook, error = said(&error), "lifecycle action not completed"),
        }
    }

    /// Tells the group that the leaving instance is still busy.
    pub(crate) async fn heartbeat(&self) {
        let answer = self
            .client
            .record_lifecycle_action_heartbeat()
            .auto_scaling_group_name(self.lifecycle.group.as_str())
            .lifecycle_hook_name(&self.lifecycle.termination_hook)
            .instance_id(self.instance.as_str())
            .send()
            .await;
        if let Err(error) = answer {
            tracing::warn!(phase = "drain", error = said(&error), "heartbeat not recorded");
        }
    }

    /// Asks for another instance in this one's place. The group's desired capacity stays.
    pub(crate) async fn replace(&self) {
        let answer = self
            .client
            .terminate_instance_in_auto_scaling_group()
            .instance_id(self.instance.as_str())
            .should_decrement_desired_capacity(false)
            .send()
            .await;
        match answer {
            Ok(_) => tracing::info!("asked to be replaced"),
            Err(error) => tracing::error!(error = said(&error), "could not ask to be replaced"),
        }
    }
}
