//! Removes images. First it tags an image's snapshots, so that the run after an interruption finds them.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_config::model::SnapshotId;

use super::{IMAGE_TAG, PRUNED_TAG, Step};
use crate::error::Result;
use crate::plan::{Plan, StepTracker};
use crate::ports::{CloudErrorKind, Inventory, Progress};
use crate::wait::PollBackoff;

/// How long EC2 may refuse to delete the snapshots of a deregistered AMI. It takes seconds.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);

/// Carries out the plan. Returns the snapshots that EC2 refused to delete because an AMI was made from them meanwhile; they stay.
///
/// # Errors
/// The error of the first step that fails, with the steps done before it. The same command then resumes.
pub async fn apply(plan: &Plan<Step>, cloud: &impl Inventory, progress: &dyn Progress) -> Result<Vec<SnapshotId>> {
    let (mut tally, mut stuck) = (StepTracker::new(plan, progress), Vec::new());
    for step in &plan.steps {
        tally.begin(&step.to_string());
        stuck.extend(apply_step(step, cloud).await.map_err(|error| tally.failed(error))?);
    }
    Ok(stuck)
}

async fn apply_step(step: &Step, cloud: &impl Inventory) -> Result<Vec<SnapshotId>> {
    let snapshots: Vec<&SnapshotId> = match step {
        Step::Remove { image, name, snapshots, .. } => {
            let tags = BTreeMap::from([
                ("kiln:managed".to_owned(), "true".to_owned()),
                (IMAGE_TAG.to_owned(), name.clone()),
                (PRUNED_TAG.to_owned(), image.to_string()),
            ]);
            for (snapshot, _) in snapshots {
                cloud.tag_snapshot(snapshot, &tags).await?;
            }
            cloud.deregister(image).await?;
            snapshots.iter().map(|(snapshot, _)| snapshot).collect()
        }
        Step::DeleteLeft { snapshot, .. } => vec![snapshot],
    };
    let mut stuck = Vec::new();
    for snapshot in snapshots {
        if !delete(snapshot, cloud).await? {
            stuck.push(snapshot.clone());
        }
    }
    Ok(stuck)
}

/// Deletes a snapshot. EC2 refuses while it still considers the snapshot in use by an AMI. Returns false if it keeps refusing.
async fn delete(snapshot: &SnapshotId, cloud: &impl Inventory) -> Result<bool> {
    let mut pace = PollBackoff::new(RELEASE_LIMIT);
    loop {
        match cloud.delete_snapshot(snapshot).await {
            Ok(()) => return Ok(true),
            Err(error) if error.kind == CloudErrorKind::Conflict => {
                if pace.pause().await.is_err() {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
