//! The instance's metadata service, version 2, and the role's credentials from it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::aws::{Credentials, Error, Provided, Provider};

/// The variable that every AWS SDK reads.
pub const ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// The service is on the same host: a second is a thousand times its usual answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long a session is asked for; the longest there is.
///
/// Source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>
const SESSION_SECS: u64 = 21_600;

/// Credentials are asked for again when less than this is left. EC2 has new ones at least five minutes before the end.
///
/// Source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html>
const MARGIN: Duration = Duration::from_secs(300);

/// After a refusal the credentials in hand are used for so long before the next question.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The metadata service.
#[derive(Debug, Clone)]
pub struct Metadata {
    http: reqwest::Client,
    endpoint: String,
    session: Arc<Mutex<Option<String>>>,
}

impl Metadata {
    /// Makes no call.
    ///
    /// # Errors
    /// HTTP can't be set up.
    pub fn new() -> Result<Self, Error> {
        // Never by a proxy: the service answers the instance itself.
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER_LIMIT)
            .build()
            .map_err(|error| Error::set_up(&error))?;
        let endpoint = std::env::var(ENDPOINT).unwrap_or_else(|_| "http://169.254.169.254".to_owned());
        Ok(Self { http, endpoint: endpoint.trim_end_matches('/').to_owned(), session: Arc::default() })
    }

    /// What is at a path such as `meta-data/instance-id`; `None` where there is no such thing.
    ///
    /// # Errors
    /// The service does not answer, or refuses.
    pub async fn get(&self, path: &str) -> Result<Option<String>, Error> {
        let mut renewed = false;
        loop {
            let session = self.session(renewed).await?;
            let url = format!("{}/latest/{path}", self.endpoint);
            let sent = self.http.get(url).header("x-aws-ec2-metadata-token", session).send().await;
            let answer = sent.map_err(Error::unheard)?;
            match answer.status() {
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED if !renewed => renewed = true,
                status if status.is_success() => return answer.text().await.map(Some).map_err(Error::unheard),
                status => return Err(Error::status(status, &format!("the metadata service refuses {path}"))),
            }
        }
    }

    /// The same where it has to be there.
    ///
    /// # Errors
    /// It is not, or the service does not answer.
    pub async fn required(&self, path: &str) -> Result<String, Error> {
        let found = self.get(path).await?;
        found.ok_or_else(|| Error::status(StatusCode::NOT_FOUND, &format!("the metadata service has no {path}")))
    }

    async fn session(&self, renew: bool) -> Result<String, Error> {
        let mut kept = self.session.lock().await;
        if let Some(session) = kept.as_ref().filter(|_| !renew) {
            return Ok(session.clone());
        }
        let request = self.http.put(format!("{}/latest/api/token", self.endpoint));
        let request = request.header("x-aws-ec2-metadata-token-ttl-seconds", SESSION_SECS);
        let answer = request.send().await.map_err(Error::unheard)?;
        if !answer.status().is_success() {
            return Err(Error::status(answer.status(), "the metadata service gives no session"));
        }
        let session = answer.text().await.map_err(Error::unheard)?;
        *kept = Some(session.clone());
        Ok(session)
    }
}

/// The instance's role, by the metadata service.
#[derive(Debug)]
pub struct Role {
    metadata: Metadata,
    kept: Mutex<Option<(Credentials, SystemTime)>>,
}

/// Credentials as the service writes them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    access_key_id: String,
    secret_access_key: SecretString,
    token: SecretString,
    expiration: String,
}

impl Role {
    /// Makes no call.
    pub fn new(metadata: Metadata) -> Self {
        Self { metadata, kept: Mutex::default() }
    }

    async fn ask(&self) -> Result<Credentials, Error> {
        const PATH: &str = "meta-data/iam/security-credentials";
        let names = self.metadata.required(&format!("{PATH}/")).await?;
        let name = names.lines().next().unwrap_or_default().trim();
        let text = self.metadata.required(&format!("{PATH}/{name}")).await?;
        let unusable = |why: &str| Error::unusable(format!("the role's credentials can't be read: {why}"));
        // Its own words could hold a part of the secret.
        let document: Document = serde_json::from_str(&text).map_err(|_| unusable("not of their form"))?;
        let expires = humantime::parse_rfc3339(&document.expiration).map_err(|_| unusable("no time of their end"))?;
        Ok(Credentials {
            id: document.access_key_id,
            secret: document.secret_access_key,
            token: Some(document.token),
            expires: Some(expires),
        })
    }
}

impl Provider for Role {
    fn credentials(&self) -> Provided<'_> {
        Box::pin(async move {
            let mut kept = self.kept.lock().await;
            let now = SystemTime::now();
            if let Some((credentials, again)) = kept.as_ref()
                && now < *again
            {
                return Ok(credentials.clone());
            }
            let asked = self.ask().await;
            let left = |credentials: &Credentials| credentials.expires.and_then(|end| end.duration_since(now).ok());
            match (asked, kept.as_ref()) {
                (Ok(credentials), _) => {
                    let life = left(&credentials).unwrap_or_default();
                    let again = now + life.saturating_sub(MARGIN).max(ASK_AGAIN);
                    *kept = Some((credentials.clone(), again));
                    Ok(credentials)
                }
                // Those in hand are good to their end.
                (Err(error), Some((credentials, _))) if left(credentials).is_some() => {
                    tracing::warn!("the metadata service gives no credentials: {error}");
                    let credentials = credentials.clone();
                    *kept = Some((credentials.clone(), now + ASK_AGAIN));
                    Ok(credentials)
                }
                (Err(error), _) => Err(error),
            }
        })
    }
}
