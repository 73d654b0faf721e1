//! What `status` says of an on-demand fleet: what it is to be, and what its controller says of it.

use std::time::Duration;

use kiln_config::config::{Config, Fleet};
use kiln_controller::clock::Timestamp;
use kiln_controller::documents::{FleetStatus, Settings};

use super::observe::{named, now};
use super::plan::SILENT;
use super::{control_bucket, read_control, read_status};
use crate::error::Result;
use crate::ports::Cloud;

/// An on-demand fleet, by the two documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What it is to be; nothing before its first deploy.
    pub settings: Option<Settings>,
    /// What the controller said last.
    pub said: Option<FleetStatus>,
    /// When it was looked.
    pub at: Timestamp,
}

/// Looks at a fleet; nothing where it is of another kind.
///
/// # Errors
/// What AWS answers.
pub async fn health(config: &Config, fleet: &Fleet, cloud: &impl Cloud) -> Result<Option<Health>> {
    if fleet.on_demand.is_none() {
        return Ok(None);
    }
    let bucket = control_bucket(config, &cloud.caller().await?);
    let name = named(&fleet.name);
    let settings = read_control(&bucket, cloud).await?.document.fleets.remove(&name);
    let said = read_status(&bucket, cloud).await?.fleets.remove(&name);
    Ok(Some(Health { settings, said, at: now() }))
}

impl Health {
    /// Jobs that wait for a runner, by GitHub's count.
    pub fn waiting(&self) -> Option<u32> {
        self.said.as_ref().map(|said| said.statistics.assigned.saturating_sub(said.statistics.running))
    }

    /// For how long the controller has said nothing, where that is too long.
    pub fn silent_for(&self) -> Option<Duration> {
        let silent = self.at.since(self.said.as_ref()?.at);
        (silent > SILENT).then_some(silent)
    }

    /// What somebody should look at; pure.
    pub fn notes(&self, fleet: &str) -> Vec<String> {
        let mut notes = Vec::new();
        let Some(settings) = &self.settings else { return notes };
        if settings.paused {
            notes
                .push(format!("fleet {fleet}: paused; `cargo xtask destroy` ends it, `cargo xtask deploy` resumes it"));
        }
        let Some(said) = &self.said else {
            notes.push(format!("fleet {fleet}: its controller has not said anything of it yet"));
            return notes;
        };
        if let Some(silent) = self.silent_for() {
            let minutes = silent.as_secs() / 60;
            notes.push(format!(
                "fleet {fleet}: its controller has been silent for {minutes} min, so nothing is launched; running jobs continue"
            ));
        }
        if let Some(why) = &said.waiting_because {
            notes.push(format!("fleet {fleet}: jobs wait: {why}"));
        }
        if let Some(error) = said.last_errors.first() {
            notes.push(format!("fleet {fleet}: its controller's last failure: {error}"));
        }
        notes
    }
}
