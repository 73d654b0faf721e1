//! Converts the SDK's errors to the ports' errors.

use aws_credential_types::provider::error::CredentialsError;
use aws_runtime::retries::classifiers::THROTTLING_ERRORS;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use kiln_github::CALLS;
use kiln_operations::ports::{CloudError, CloudErrorKind};

use crate::Aws;

/// The service's message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Said(pub(crate) String);

impl Aws {
    /// Converts the error of a call. `doing` describes the operation with the resource's id.
    pub(crate) fn failed<E, R>(&self, doing: impl Into<String>, error: SdkError<E, R>) -> CloudError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let kind = kind_of(&error);
        let source: Box<dyn std::error::Error + Send + Sync> = match error.code() {
            Some(code) => Box::new(Said(format!("{code}: {}", error.message().unwrap_or("no message")))),
            // `--verbose` shows the SDK's own chain of causes.
            None if matches!(kind, CloudErrorKind::Credentials | CloudErrorKind::Unreachable) => {
                let chain = chain(&error);
                tracing::debug!(target: CALLS, "aws: {}", chain.join(": "));
                Box::new(Said(in_short(kind, &chain)))
            }
            None => Box::new(error),
        };
        CloudError { doing: doing.into(), region: self.region.clone(), kind, source: Some(source) }
    }

    /// An error for an unexpected response, or for a response that did not come in time.
    pub(crate) fn odd(&self, doing: impl Into<String>, what: impl Into<String>) -> CloudError {
        let source: Box<dyn std::error::Error + Send + Sync> = Box::new(Said(what.into()));
        CloudError {
            doing: doing.into(),
            region: self.region.clone(),
            kind: CloudErrorKind::Other,
            source: Some(source),
        }
    }
}

/// The messages of an error and its sources, outermost first.
fn chain(error: &dyn std::error::Error) -> Vec<String> {
    let mut chain = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        chain.push(error.to_string());
        source = error.source();
    }
    chain
}

/// The part of an error chain that a person needs: that there are no credentials, or the innermost error.
fn in_short(kind: CloudErrorKind, chain: &[String]) -> String {
    let says = |words: &str| chain.iter().any(|line| line.to_lowercase().contains(words));
    let last = chain.last().map_or("", String::as_str);
    match kind {
        CloudErrorKind::Unreachable if says("dns") || says("lookup address") => {
            format!("the host's name is not known: {last}")
        }
        CloudErrorKind::Unreachable => format!("no connection: {last}"),
        // The SDK says this to whoever builds with it.
        _ if says("credentials-login") => "the profile has a session of `aws login`, which is not read here: run \
             `eval \"$(aws configure export-credentials --format env)\"` first"
            .to_owned(),
        // The last provider of the chain is the instance's role, which a person's machine has none of.
        _ if says("imds") || says("the credential provider was not enabled") || says("no providers in chain") => {
            "no AWS credentials were found: neither in the environment, nor a profile, an SSO session or a role"
                .to_owned()
        }
        _ => format!("no AWS credentials: {last}"),
    }
}

fn kind_of<E, R>(error: &SdkError<E, R>) -> CloudErrorKind
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    match error {
        SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) if lacks_credentials(error) => {
            CloudErrorKind::Credentials
        }
        // A connection that broke, a TLS certificate that is not trusted, a proxy that refuses.
        SdkError::DispatchFailure(_) | SdkError::TimeoutError(_) => CloudErrorKind::Unreachable,
        SdkError::ConstructionFailure(_) => CloudErrorKind::Other,
        _ => kind_of_code(error.code().unwrap_or_default()),
    }
}

/// Whether no provider of the chain returned credentials, so that no request was sent.
fn lacks_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<CredentialsError>() {
            return true;
        }
        cause = error.source();
    }
    // Without any provider there is no such error, but only these words of the SDK's.
    chain(error).iter().any(|line| line.contains("no identity") || line.contains("auth scheme"))
}

/// Sources: the SDK's own list of throttling codes; the services' lists of common errors;
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>.
fn kind_of_code(code: &str) -> CloudErrorKind {
    match code {
        "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "InvalidToken"
        | "InvalidSecurity"
        | "IncompleteSignature"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "InvalidAccessKeyId"
        | "AuthFailure" => CloudErrorKind::Credentials,
        "AccessDenied"
        | "AccessDeniedException"
        | "UnauthorizedOperation"
        | "UnauthorizedException"
        | "NotAuthorized"
        | "AuthorizationError"
        | "ForbiddenException"
        | "Forbidden"
        | "OptInRequired"
        | "SubscriptionRequiredException" => CloudErrorKind::AccessDenied,
        "CallRateLimitExceededException" => CloudErrorKind::Throttled,
        // Some services mean a quota by it, and none that Kiln uses a rate.
        "LimitExceededException" => CloudErrorKind::Quota,
        code if THROTTLING_ERRORS.contains(&code) => CloudErrorKind::Throttled,
        "AlreadyExistsException"
        | "InstanceRefreshInProgress"
        | "InstanceRefreshInProgressFault"
        | "ScalingActivityInProgress"
        | "ResourceInUseException"
        | "ConflictException"
        | "InvalidSnapshot.InUse" => CloudErrorKind::Conflict,
        "ServiceQuotaExceededException" => CloudErrorKind::Quota,
        // `InstanceLimitExceeded`, `VcpuLimitExceeded`, `SecurityGroupLimitExceeded`…
        code if code.ends_with("LimitExceeded") => CloudErrorKind::Quota,
        "ValidationError"
        | "ValidationException"
        | "InvalidRequestException"
        | "InvalidParameterValueException"
        | "InvalidParameterException" => CloudErrorKind::Invalid,
        code if code.contains("NotFound") || code.starts_with("NoSuch") => CloudErrorKind::NotFound,
        _ => CloudErrorKind::Other,
    }
}
