//! What an instance asks of EC2: one call about itself, by the small client.

use anyhow::Context as _;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use backon::{ExponentialBuilder, Retryable as _};
use kiln_config::model::InstanceId;
use kiln_instance::aws::{Aws, Credentials, Error, ErrorKind, Provided, Provider};

/// With pauses of one to four seconds between them these stay within half a minute, as the SDK's own for the other services.
const MOST_RETRIES: usize = 3;

/// EC2, for one instance.
#[derive(Debug, Clone)]
pub(crate) struct Ec2 {
    pub(super) aws: Aws,
    pub(super) instance: InstanceId,
}

/// The same credentials as the SDK's clients have.
#[derive(Debug)]
pub(super) struct OfSdk(pub(super) SharedCredentialsProvider);

impl Provider for OfSdk {
    fn credentials(&self) -> Provided<'_> {
        Box::pin(async {
            let given = self.0.provide_credentials().await.map_err(|error| Error {
                kind: ErrorKind::Unusable,
                message: format!("ask for the role's credentials: {error}"),
            })?;
            Ok(Credentials {
                id: given.access_key_id().to_owned(),
                secret: given.secret_access_key().into(),
                token: given.session_token().map(Into::into),
                expires: given.expiry(),
            })
        })
    }
}

impl Ec2 {
    /// Tags the instance.
    ///
    /// # Errors
    /// EC2 refuses, or does not answer.
    pub(crate) async fn tag(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let instance = self.instance.as_str();
        let fields = [("ResourceId.1", instance), ("Tag.1.Key", key), ("Tag.1.Value", value)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let pauses = ExponentialBuilder::default().with_max_times(MOST_RETRIES).with_jitter();
        let done = (|| self.aws.ec2("CreateTags", &fields)).retry(pauses).when(Error::is_passing).await;
        done.map(drop).with_context(|| format!("ec2:CreateTags of {instance}"))
    }
}
