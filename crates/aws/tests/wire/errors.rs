//! Which kind a failed call is of: it decides the exit code and the hint.

use aws_config::BehaviorVersion;
use aws_credential_types::provider::{error::CredentialsError, future};
use aws_sdk_sts::config::{Credentials, ProvideCredentials, SharedCredentialsProvider, SharedHttpClient};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use kiln_operations::ports::{CloudErrorKind, Identity as _};

use crate::{Answer, query, wire};

/// A connection that fails in one way.
#[derive(Debug, Clone)]
struct Broken(fn() -> ConnectorError);

impl HttpConnector for Broken {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::ready(Err(self.0()))
    }
}

fn client(error: fn() -> ConnectorError) -> SharedHttpClient {
    http_client_fn(move |_, _| SharedHttpConnector::new(Broken(error)))
}

#[derive(Debug)]
struct NoCredentials;

impl ProvideCredentials for NoCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(CredentialsError::not_loaded(
            "no providers in chain provided credentials",
        )))
    }
}

async fn kind(error: fn() -> ConnectorError, credentials: Option<SharedCredentialsProvider>) -> CloudErrorKind {
    let mut config = aws_config::SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(aws_config::Region::new("eu-central-1"))
        .endpoint_url("https://wire.invalid")
        .retry_config(aws_config::retry::RetryConfig::disabled())
        .http_client(client(error));
    config.set_credentials_provider(credentials);
    let cloud = kiln_aws::Aws::new(&"eu-central-1".parse().unwrap(), &config.build());
    cloud.caller().await.unwrap_err().kind
}

/// A certificate that is not trusted, or a proxy that refuses, has nothing to do with credentials.
#[tokio::test]
async fn a_call_that_can_not_be_sent_is_no_lack_of_credentials() {
    let some = || {
        let credentials = Credentials::new("AKIAPIPELINE00000000", "pipeline", None, None, "test");
        Some(SharedCredentialsProvider::new(credentials))
    };
    let failures: [fn() -> ConnectorError; 4] = [
        || ConnectorError::other("invalid peer certificate: UnknownIssuer".into(), None),
        || ConnectorError::user("the proxy wants a password".into()),
        || ConnectorError::io("connection reset".into()),
        || ConnectorError::timeout("no answer".into()),
    ];
    for failure in failures {
        assert_eq!(kind(failure, some()).await, CloudErrorKind::Unreachable, "{:?}", failure());
    }
    let none = Some(SharedCredentialsProvider::new(NoCredentials));
    assert_eq!(kind(failures[0], none).await, CloudErrorKind::Credentials);
    assert_eq!(kind(failures[0], None).await, CloudErrorKind::Credentials);
}

#[tokio::test]
async fn a_services_code_says_of_which_kind_a_failure_is() {
    for (code, expected) in [
        ("ExpiredToken", CloudErrorKind::Credentials),
        ("RequestExpired", CloudErrorKind::Credentials),
        ("IncompleteSignature", CloudErrorKind::Credentials),
        ("UnauthorizedOperation", CloudErrorKind::AccessDenied),
        ("OptInRequired", CloudErrorKind::AccessDenied),
        ("ThrottledException", CloudErrorKind::Throttled),
        ("EC2ThrottledException", CloudErrorKind::Throttled),
        ("RequestThrottled", CloudErrorKind::Throttled),
        ("VcpuLimitExceeded", CloudErrorKind::Quota),
        ("RequestLimitExceeded", CloudErrorKind::Throttled),
        ("BandwidthLimitExceeded", CloudErrorKind::Throttled),
        ("LimitExceededException", CloudErrorKind::Quota),
        ("InvalidAMIID.NotFound", CloudErrorKind::NotFound),
        ("InternalFailure", CloudErrorKind::Other),
    ] {
        let error = format!("<ErrorResponse><Error><Code>{code}</Code><Message>m</Message></Error></ErrorResponse>");
        let (cloud, _) = wire(move |_| Answer::of(400, error.clone())).await;
        assert_eq!(cloud.caller().await.unwrap_err().kind, expected, "{code}");
    }
    let answer = "<Account>000000000000</Account><Arn>arn:aws:iam::000000000000:user/a</Arn><UserId>A</UserId>";
    let (cloud, _) = wire(move |_| Answer::of(200, query("GetCallerIdentity", answer))).await;
    cloud.caller().await.unwrap();
}
