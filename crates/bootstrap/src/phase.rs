//! Phases: each has a deadline and a line in the log.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::anyhow;

/// Runs a phase until its deadline and logs how long it took.
///
/// # Errors
/// The phase's own, or that its deadline came.
pub(crate) async fn phase<T>(
    name: &'static str,
    deadline: Duration,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, u64)> {
    let begin = Instant::now();
    let done = tokio::time::timeout(deadline, work)
        .await
        .unwrap_or_else(|_| Err(anyhow!("no end within {} s", deadline.as_secs())))
        .map_err(|error| error.context(format!("phase {name}")))?;
    let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(phase = name, ms, "done");
    Ok((done, ms))
}
