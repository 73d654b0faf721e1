//! Connections to GitHub. It counts them, and can open one before the request that will use it.
//!
//! A new connection takes two round trips before the first request. The binary on an instance waits for a signature anyway, so it opens
//! the connection at the same time.

use std::any::Any;
use std::fmt;
use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tower_layer::Layer;
use tower_service::Service;

use crate::http::CONNECT_LIMIT;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The requests, connections and bytes of a client so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Requests sent, including retries.
    pub requests: u64,
    /// Connections requested.
    pub connections: u64,
    /// Bytes of response bodies.
    pub bytes: u64,
    /// Responses that reported a rate limit.
    pub limited: u64,
    /// The largest number of them in a row, for one call.
    pub limited_in_a_row: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) limited: AtomicU64,
    pub(crate) limited_in_a_row: AtomicU64,
    connections: AtomicU64,
    /// Whether to keep the next requested connection for the request after the one that asks for it.
    ahead: AtomicBool,
    begun: Notify,
}

impl Counters {
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            requests: self.requests.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            limited: self.limited.load(Ordering::Relaxed),
            limited_in_a_row: self.limited_in_a_row.load(Ordering::Relaxed),
        }
    }

    /// Requests that the next connection is kept.
    pub(crate) fn ask_ahead(&self) {
        self.ahead.store(true, Ordering::Relaxed);
    }

    /// Resolves when the connection is being opened.
    pub(crate) async fn begun(&self) {
        self.begun.notified().await;
    }
}

/// A layer around the client's connector.
#[derive(Debug, Clone)]
pub(crate) struct Connections(pub(crate) Arc<Counters>);

impl<S> Layer<S> for Connections {
    type Service = Connector<S>;

    fn layer(&self, inner: S) -> Connector<S> {
        Connector { inner, counters: Arc::clone(&self.0), kept: Arc::default() }
    }
}

/// The client's connector, which may have a prepared connection.
#[derive(Clone)]
pub(crate) struct Connector<S> {
    inner: S,
    counters: Arc<Counters>,
    /// The task that opens it. reqwest keeps its connection's type to itself.
    kept: Arc<Mutex<Option<Box<dyn Any + Send>>>>,
}

impl<S> fmt::Debug for Connector<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl<S, R> Service<R> for Connector<S>
where
    S: Service<R, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let opening = kept.take().and_then(|kept| kept.downcast::<JoinHandle<Result<S::Response, BoxError>>>().ok());
        if let Some(opening) = opening {
            return Box::pin(async move { opening.await? });
        }
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        let connecting = self.inner.call(request);
        if !self.counters.ahead.swap(false, Ordering::Relaxed) {
            return Box::pin(connecting);
        }
        // The client's own timeout applies to the request that asks for the connection, and nothing waits for that request.
        let bounded = async { tokio::time::timeout(CONNECT_LIMIT, connecting).await? };
        *kept = Some(Box::new(tokio::spawn(bounded)));
        self.counters.begun.notify_one();
        Box::pin(pending())
    }
}
