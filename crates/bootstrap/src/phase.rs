//! Phases: each has a deadline and a line in the log.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use tracing::Instrument as _;

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
    let span = tracing::info_span!("phase", phase = name);
    let done = tokio::time::timeout(deadline, work.instrument(span))
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
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() * 1000 + time.tv_usec() / 1000;
    let cpu = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| ms(usage.user_time()) + ms(usage.system_time()));
    // Its own peak: rusage's would be that of whoever started it, from before the exec.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    (u64::try_from(cpu).unwrap_or_default(), peak.unwrap_or_default())
}
