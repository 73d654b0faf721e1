//! Leaving without losing a job.
//!
//! Deleting the runner at GitHub is the race-free question whether it is idle: GitHub refuses while a job runs, and gives
//! a deleted runner no other.

use std::time::Duration;

use kiln_github::{Deleted, OrgClient};
use tokio::time::Instant;

use crate::aws::Group;
use crate::serve::Listener;

/// How long a job may delay the end of an instance that is in no group: Auto Scaling's own longest.
const LONGEST: Duration = Duration::from_secs(48 * 3600);

/// Between two tries to delete a busy runner: from a second, so that a short job's end is noticed, to fifteen, which a
/// fleet of 500 that drains at once can ask for an hour within GitHub's limits only in part: 429 is waited out.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Waits until the runner is idle and gone from GitHub, then ends the listener.
pub(crate) async fn drain(
    github: &OrgClient,
    name: &str,
    id: Option<u64>,
    listener: &mut Listener,
    group: Option<&Group>,
) {
    let (limit, heartbeat) = match group {
        Some(group) => {
            let lifecycle = group.lifecycle();
            let half = Duration::from_secs(u64::from(lifecycle.heartbeat_secs)) / 2;
            (Duration::from_secs(u64::from(lifecycle.drain_limit_secs)), half)
        }
        None => (LONGEST, LONGEST),
    };
    let deadline = Instant::now() + limit;
    let mut next_heartbeat = Instant::now() + heartbeat;
    let mut pause = PAUSES.0;
    loop {
        if removed(github, name, id).await {
            break;
        }
        if Instant::now() >= deadline {
            tracing::error!(
                phase = "drain",
                limit_secs = limit.as_secs(),
                "the bound is reached: the running job is lost"
            );
            break;
        }
        if let Some(group) = group.filter(|_| Instant::now() >= next_heartbeat) {
            group.heartbeat().await;
            next_heartbeat = Instant::now() + heartbeat;
        }
        let until = (Instant::now() + pause).min(deadline).min(next_heartbeat.max(Instant::now() + PAUSES.0));
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            // An ephemeral runner ends with its job.
            _ = listener.exit() => break,
        }
        pause = (pause * 3 / 2).min(PAUSES.1);
    }
    listener.stop().await;
    tracing::info!(phase = "drain", runner = name, "left");
}

/// Is the runner gone from GitHub?
async fn removed(github: &OrgClient, name: &str, id: Option<u64>) -> bool {
    let deleted = async {
        let id = match id {
            Some(id) => id,
            None => match github.runners(Some(name)).await?.first() {
                Some(runner) => runner.id,
                None => return Ok(Deleted::Absent),
            },
        };
        github.delete_runner(id).await
    };
    match deleted.await {
        Ok(Deleted::Gone | Deleted::Absent) => true,
        Ok(Deleted::Busy) => {
            tracing::info!(phase = "drain", runner = name, "a job is running: waiting for its end");
            false
        }
        Err(error) => {
            tracing::warn!(phase = "drain", %error, "GitHub could not be asked; trying again");
            false
        }
    }
}
