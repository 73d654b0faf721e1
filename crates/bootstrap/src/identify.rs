//! Who am I? IMDSv2 tells the instance's id, its region and its user data; later, whether it has to leave.

use std::time::Duration;

use anyhow::Context as _;
use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use kiln_config::boot::BootConfig;
use kiln_config::model::InstanceId;

use crate::guard;
use crate::life::Notice;

/// The metadata service is on the same host; a second is a thousand times its usual answer.
const CONNECT_BOUND: Duration = Duration::from_secs(1);

/// It throttles bursts; four tries with the client's own backoff ride that out.
const MOST_ATTEMPTS: u32 = 4;

/// Between two tries; grows.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The instance's metadata service.
#[derive(Debug, Clone)]
pub(crate) struct Metadata(imds::Client);

/// Does the metadata service answer at all?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    Yes,
    /// It is switched off.
    No,
    /// It can't be told.
    Unknown,
}

/// What the metadata service tells, as it tells it.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    instance: String,
    pub(crate) region: String,
    user_data: Option<String>,
}

/// What the instance is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) instance: InstanceId,
    pub(crate) config: BootConfig,
}

/// Sees whether the metadata service answers. Its client can't: that holds a session for hours, and tries for seconds.
#[derive(Debug)]
pub(crate) struct Probe(reqwest::Client);

impl Probe {
    /// # Errors
    /// HTTP can't be set up.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().no_proxy().timeout(CONNECT_BOUND).build();
        Ok(Self(client.context("set up HTTP")?))
    }

    /// Asks for a session, as everyone has to who wants anything of the service.
    pub(crate) async fn answers(&self) -> Answers {
        let request = self.0.put(format!("{}/latest/api/token", guard::endpoint()));
        match request.header("x-aws-ec2-metadata-token-ttl-seconds", "60").send().await {
            Ok(answer) if answer.status().is_success() => Answers::Yes,
            // What EC2 answers in the place of a service that is off.
            Ok(answer) if answer.status() == reqwest::StatusCode::FORBIDDEN => Answers::No,
            Err(error) if error.is_connect() && !error.is_timeout() => Answers::No,
            Ok(_) | Err(_) => Answers::Unknown,
        }
    }
}

impl Found {
    /// Reads it.
    ///
    /// # Errors
    /// The user data is no BootConfig.
    pub(crate) fn configure(&self) -> anyhow::Result<Identity> {
        let user_data = self
            .user_data
            .as_deref()
            .context("the instance has no user data: its launch template must hold a BootConfig")?;
        Ok(Identity { instance: self.instance.trim().parse()?, config: BootConfig::from_json(user_data)? })
    }
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
        Ok(match state.as_deref().map(str::trim) {
            // The shorter notice first.
            _ if spot.is_some() => Some(Notice::Spot),
            Some("Terminated") => Some(Notice::Terminate),
            _ => rebalance.map(|_| Notice::Rebalance),
        })
    }
}
