//! Who am I? IMDSv2 tells the instance's id, its region and its user data; later, whether it has to leave.

use std::time::Duration;

use anyhow::Context as _;
use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use kiln_fleet::boot::BootConfig;
use kiln_fleet::model::InstanceId;

/// The metadata service is on the same host; a second is a thousand times its usual answer.
const CONNECT_BOUND: Duration = Duration::from_secs(1);

/// It throttles bursts; four tries with the client's own backoff ride that out.
const MOST_ATTEMPTS: u32 = 4;

/// The instance's metadata service.
#[derive(Debug, Clone)]
pub(crate) struct Metadata(imds::Client);

/// What the instance is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) instance: InstanceId,
    pub(crate) region: String,
    pub(crate) config: BootConfig,
}

impl Metadata {
    pub(crate) fn connect() -> Self {
        let client = imds::Client::builder()
            .connect_timeout(CONNECT_BOUND)
            .read_timeout(CONNECT_BOUND)
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

    /// Identity and BootConfig, side by side.
    ///
    /// # Errors
    /// The service does not answer, or the user data is no BootConfig.
    pub(crate) async fn identify(&self) -> anyhow::Result<Identity> {
        let (instance, region, user_data) = tokio::try_join!(
            self.required("meta-data/instance-id"),
            self.required("meta-data/placement/region"),
            self.optional("user-data"),
        )?;
        let user_data =
            user_data.context("the instance has no user data: its launch template must hold a BootConfig")?;
        Ok(Identity { instance: instance.trim().parse()?, region, config: BootConfig::from_json(&user_data)? })
    }

    /// Why the instance has to leave, if it has to.
    ///
    /// # Errors
    /// The service does not answer.
    pub(crate) async fn leaving(&self) -> anyhow::Result<Option<&'static str>> {
        let (state, spot) = tokio::try_join!(
            self.optional("meta-data/autoscaling/target-lifecycle-state"),
            self.optional("meta-data/spot/instance-action"),
        )?;
        if spot.is_some() {
            return Ok(Some("spot interruption"));
        }
        Ok(state.filter(|state| state.trim() == "Terminated").map(|_| "Auto Scaling terminates it"))
    }
}
