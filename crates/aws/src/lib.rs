//! Implements the ports of `kiln-operations` with the AWS SDK, one file for each service.

mod account;
mod blobs;
mod calls;
mod error;
mod groups;
mod identity;
mod images;
mod inventory;
mod keys;
mod logs;
mod pages;
mod reach;
mod stacks;

use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, SdkConfig};
use kiln_config::model::Region;
use kiln_operations::ports::Caller;
use tokio::sync::OnceCell;

use crate::calls::CallLog;
use crate::reach::Reached;

/// The number of attempts for a call. The SDK's pauses between them add up to about a minute: other programs share the account's
/// quotas for describe calls.
const MOST_ATTEMPTS: u32 = 8;

/// The timeout of a connection. A handshake across continents takes a tenth of it. If no server answers, the user waits this long: see
/// [`reach`].
const CONNECT_LIMIT: Duration = Duration::from_secs(4);

/// The timeout of an attempt. The slowest call uploads the payload, which has a few megabytes.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(60);

/// Makes a client that reports its calls.
macro_rules! client {
    ($sdk:ident, $config:expr, $reached:expr) => {
        $sdk::Client::from_conf(
            $sdk::config::Builder::from($config)
                .interceptor(CallLog($reached.clone()))
                .retry_classifier($reached.clone())
                .build(),
        )
    };
}

/// AWS in one region, with the default credentials provider chain.
#[derive(Debug, Clone)]
pub struct Aws {
    region: String,
    autoscaling: aws_sdk_autoscaling::Client,
    cloudformation: aws_sdk_cloudformation::Client,
    ec2: aws_sdk_ec2::Client,
    iam: aws_sdk_iam::Client,
    imagebuilder: aws_sdk_imagebuilder::Client,
    kms: aws_sdk_kms::Client,
    logs: aws_sdk_cloudwatchlogs::Client,
    quotas: aws_sdk_servicequotas::Client,
    s3: aws_sdk_s3::Client,
    secrets: aws_sdk_secretsmanager::Client,
    ssm: aws_sdk_ssm::Client,
    sts: aws_sdk_sts::Client,
    caller: Arc<OnceCell<Caller>>,
    stack_role: Option<String>,
}

impl Aws {
    /// Loads the configuration and the credentials providers. Makes no call to AWS.
    pub async fn connect(region: &Region) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(aws_config::Region::new(region.to_string()))
            .retry_config(RetryConfig::standard().with_max_attempts(MOST_ATTEMPTS))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_LIMIT)
                    .operation_attempt_timeout(ATTEMPT_LIMIT)
                    .build(),
            );
        if let Ok(name) = AppName::new("kiln") {
            loader = loader.app_name(name);
        }
        let config = Box::pin(loader.load()).await;
        Self::new(region, &config)
    }

    /// Uses a configuration that is already loaded, for the same region.
    pub fn new(region: &Region, config: &SdkConfig) -> Self {
        let reached = Reached::default();
        // An endpoint that is given serves every bucket under one host name.
        let s3 = aws_sdk_s3::config::Builder::from(config)
            .force_path_style(config.endpoint_url().is_some())
            .interceptor(CallLog(reached.clone()))
            .retry_classifier(reached.clone())
            .build();
        Self {
            region: region.to_string(),
            autoscaling: client!(aws_sdk_autoscaling, config, reached),
            cloudformation: client!(aws_sdk_cloudformation, config, reached),
            ec2: client!(aws_sdk_ec2, config, reached),
            iam: client!(aws_sdk_iam, config, reached),
            imagebuilder: client!(aws_sdk_imagebuilder, config, reached),
            kms: client!(aws_sdk_kms, config, reached),
            logs: client!(aws_sdk_cloudwatchlogs, config, reached),
            quotas: client!(aws_sdk_servicequotas, config, reached),
            s3: aws_sdk_s3::Client::from_conf(s3),
            secrets: client!(aws_sdk_secretsmanager, config, reached),
            ssm: client!(aws_sdk_ssm, config, reached),
            sts: client!(aws_sdk_sts, config, reached),
            caller: Arc::default(),
            stack_role: None,
        }
    }

    /// Makes CloudFormation use this role to change stacks, instead of the caller's permissions.
    #[must_use]
    pub fn with_stack_role(mut self, role: Option<&str>) -> Self {
        self.stack_role = role.map(str::to_owned);
        self
    }
}
