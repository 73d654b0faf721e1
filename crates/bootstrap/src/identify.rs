//! Who am I? IMDSv2 tells the instance's id, its region and its user data; later, whether it has to leave.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::aws::{DateTime, DateTimeFormat};
use anyhow::Context as _;
use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use kiln_config::boot::{BootConfig, OnDemandConfig, UserData};
use kiln_config::model::InstanceId;

use crate::life::Notice;

/// The metadata service is on the same host; a second is a thousand times its usual answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// It throttles bursts; four tries with the client's own backoff ride that out.
const MOST_ATTEMPTS: u32 = 4;

/// Between two tries; grows.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// EC2 takes a spot instance two minutes after its notice.
///
/// Source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>
const SPOT_NOTICE: Duration = Duration::from_secs(120);

/// The instance's metadata service.
#[derive(Debug, Clone)]
pub(crate) struct Metadata(imds::Client);

/// What the metadata service tells, as it tells it.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    instance: String,
    pub(crate) region: String,
    user_data: Option<String>,
}

/// What the instance is to be.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    /// A runner that registers by itself.
    Runner(Box<Identity>),
    /// A runner of an on-demand fleet.
    OnDemand(InstanceId, Box<OnDemandConfig>),
    /// The controller of such fleets.
    Controller,
}

/// What the instance is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) instance: InstanceId,
    pub(crate) config: BootConfig,
}

impl Role {
    /// The variables of a runner and its jobs; the controller sees to its own.
    pub(crate) fn environment(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            Self::Runner(identity) => Some(&identity.config.environment),
            Self::OnDemand(_, config) => Some(&config.environment),
            Self::Controller => None,
        }
    }
}

impl Found {
    /// Reads it.
    ///
    /// # Errors
    /// The user data is none of Kiln's.
    pub(crate) fn configure(&self) -> anyhow::Result<Role> {
        let user_data = self
            .user_data
            .as_deref()
            .context("the instance has no user data: its launch template must hold a BootConfig")?;
        let instance = self.instance.trim().parse()?;
        Ok(match UserData::from_json(user_data)? {
            UserData::Boot(config) => Role::Runner(Box::new(Identity { instance, config: *config })),
            UserData::OnDemand(config) => Role::OnDemand(instance, config),
            UserData::Controller(_) => Role::Controller,
        })
    }
}

impl Metadata {
    pub(crate) fn connect() -> Self {
        let client = imds::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(CONNECT_LIMIT)
            .max_attempts(MOST_ATTEMPTS)
            .build();
        Self(client)
    }

    pub(crate) fn client(&self) -> imds::Client {
        self.0.clone()
    }

    async fn required(&self, path: &str) -> anyhow::Result<String> {
        let value = self.0.get(format!("/latest/{path}")).await;
        Ok(value.with_context(|| format!("ask the metadata service for {path}"))?.as_ref().to_owned())
    }

    /// `None` where the service knows no such thing (404).
    async fn optional(&self, path: &str) -> anyhow::Result<Option<String>> {
        match self.0.get(format!("/latest/{path}")).await {
            Ok(value) => Ok(Some(value.as_ref().to_owned())),
            Err(ImdsError::ErrorResponse(response)) if response.response().status().as_u16() == 404 => Ok(None),
            Err(error) => Err(error).with_context(|| format!("ask the metadata service for {path}")),
        }
    }

    /// Asks until the service answers: it may come up late, and the client itself gives up at the first answer that does
    /// not come in time. The caller sets the bound.
    ///
    /// # Errors
    /// The service refuses.
    pub(crate) async fn identify(&self) -> anyhow::Result<Found> {
        let mut pauses =
            ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).without_max_times().with_jitter().build();
        loop {
            let error = match self.look().await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            let refused = error.chain().any(|cause| {
                matches!(cause.downcast_ref(), Some(ImdsError::ErrorResponse(context))
                    if context.response().status().is_client_error())
            });
            let Some(pause) = pauses.next().filter(|_| !refused) else { return Err(error) };
            tracing::warn!(phase = "identify", error = %format!("{error:#}"), "the metadata service does not answer");
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks for identity and user data, side by side.
    async fn look(&self) -> anyhow::Result<Found> {
        let (instance, region, user_data) = tokio::try_join!(
            self.required("meta-data/instance-id"),
            self.required("meta-data/placement/region"),
            self.optional("user-data"),
        )?;
        Ok(Found { instance, region, user_data })
    }

    /// Whether the instance has to leave, or is about to.
    ///
    /// # Errors
    /// The service does not answer.
    pub(crate) async fn notice(&self) -> anyhow::Result<Option<Notice>> {
        let (state, spot, rebalance) = tokio::try_join!(
            self.optional("meta-data/autoscaling/target-lifecycle-state"),
            self.optional("meta-data/spot/instance-action"),
            self.optional("meta-data/events/recommendations/rebalance"),
        )?;
        // The shorter notice first.
        if let Some(spot) = spot {
            return Ok(Some(Notice::Spot(spot_left(&spot, SystemTime::now()))));
        }
        Ok(match state.as_deref().map(str::trim) {
            Some("Terminated") => Some(Notice::Terminate),
            _ => rebalance.map(|_| Notice::Rebalance),
        })
    }
}

/// How long EC2 leaves a spot instance that it takes back, from its notice `{"action": …, "time": …}`. A time that can't
/// be, by a clock that is off, or is not there, counts as the whole notice.
fn spot_left(notice: &str, now: SystemTime) -> Duration {
    let time = serde_json::from_str::<serde_json::Value>(notice).ok();
    let time = time.as_ref().and_then(|notice| notice["time"].as_str());
    let time = time.and_then(|time| DateTime::from_str(time, DateTimeFormat::DateTimeWithOffset).ok());
    let Some(time) = time.and_then(|time| SystemTime::try_from(time).ok()) else { return SPOT_NOTICE };
    match time.duration_since(now) {
        Ok(left) if left <= SPOT_NOTICE * 2 => left.min(SPOT_NOTICE),
        Err(past) if past.duration() <= SPOT_NOTICE => Duration::ZERO,
        _ => SPOT_NOTICE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spot_notice_says_how_long_is_left_unless_a_clock_is_off() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let at = |secs: i64| {
            let time = DateTime::from_secs(1_800_000_000 + secs).fmt(DateTimeFormat::DateTimeWithOffset).unwrap();
            format!(r#"{{"action": "terminate", "time": "{time}"}}"#)
        };
        for (notice, left) in [
            (at(120), 120),
            (at(77), 77),
            (at(0), 0),
            (at(-20), 0),
            (at(130), 120),
            (at(3600), 120),
            (at(-3600), 120),
            ("{}".to_owned(), 120),
            ("terminate".to_owned(), 120),
        ] {
            assert_eq!(spot_left(&notice, noon), Duration::from_secs(left), "{notice}");
        }
    }
}
