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

/// The processor time that this process has spent, in milliseconds, and the most memory it has held, in KiB.
pub(crate) fn spent() -> (u64, u64) {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return (0, 0) };
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() * 1000 + time.tv_usec() / 1000;
    let cpu = ms(usage.user_time()) + ms(usage.system_time());
    (u64::try_from(cpu).unwrap_or_default(), u64::try_from(usage.max_rss()).unwrap_or_default())
}
