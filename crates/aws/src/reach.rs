//! Nothing is gained by trying a host again that has never answered: the region is mistyped, or there is no network. Once
//! AWS has answered at all, a lost connection is worth every retry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction};

/// Has any call of this process been answered? Shared by all clients.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reached(Arc<AtomicBool>);

impl Reached {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ClassifyRetry for Reached {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        if self.0.load(Ordering::Relaxed) {
            return RetryAction::NoActionIndicated;
        }
        let failed = context.output_or_error().and_then(Result::err);
        match failed.and_then(|error| error.as_connector_error()) {
            Some(error) if error.is_io() || error.is_timeout() => RetryAction::RetryForbidden,
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "Reached"
    }
}
