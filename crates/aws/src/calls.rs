//! A line for each call to AWS, for whoever follows them.

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::{ConfigBag, Storable, StoreReplace};
use kiln_github::CALLS;
use tokio::time::Instant;

use crate::reach::Reached;

/// Tells of every attempt: service, operation, status, duration, request id. Never a header or a body that was sent, so
/// that there is nothing in it to be kept secret.
#[derive(Debug, Clone)]
pub(crate) struct CallLog(pub(crate) Reached);

/// When an attempt began.
#[derive(Debug)]
struct Begun(Instant);

impl Storable for Begun {
    type Storer = StoreReplace<Self>;
}

impl Intercept for CallLog {
    fn name(&self) -> &'static str {
        "CallLog"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(Begun(Instant::now()));
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let (service, operation) =
            config.load::<Metadata>().map_or(("?", "?"), |metadata| (metadata.service(), metadata.name()));
        let millis = config.load::<Begun>().map_or(0, |Begun(at)| at.elapsed().as_millis());
        match context.response() {
            Some(response) => {
                self.0.set();
                let id = ["x-amzn-requestid", "x-amz-request-id"].iter().find_map(|name| response.headers().get(*name));
                tracing::debug!(
                    target: CALLS,
                    "aws {service} {operation}: {} in {millis} ms (request {})",
                    response.status().as_u16(),
                    id.unwrap_or("-"),
                );
            }
            None => tracing::debug!(target: CALLS, "aws {service} {operation}: no answer after {millis} ms"),
        }
        Ok(())
    }
}
