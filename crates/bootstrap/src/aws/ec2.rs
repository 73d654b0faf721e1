//! What an instance asks of EC2: one call about itself, signed here. EC2's SDK has 600 operations more, and
//! takes longer to compile than the rest of this binary.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use backon::{ExponentialBuilder, Retryable as _};
use kiln_config::model::InstanceId;
use url::form_urlencoded::Serializer;

/// The API's version, as every SDK names it.
const VERSION: &str = "2016-11-15";

const FORM: &str = "application/x-www-form-urlencoded";

/// EC2 answers such calls within a second or two; ten are for its bad minutes.
const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// With pauses of one to four seconds between them these stay within half a minute, as the SDK's own for the other services.
const MOST_RETRIES: usize = 3;

/// EC2, for one instance.
#[derive(Debug, Clone)]
pub(crate) struct Ec2 {
    pub(super) endpoint: String,
    pub(super) region: String,
    pub(super) instance: InstanceId,
    pub(super) credentials: SharedCredentialsProvider,
}

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Unsuccessful {
    what: String,
    retryable: bool,
}

/// EC2's endpoint in a region.
pub(super) fn endpoint(region: &str) -> String {
    let china = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("https://ec2.{region}.amazonaws.com{china}/")
}

impl Ec2 {
    /// Tags the instance.
    ///
    /// # Errors
    /// EC2 refuses, or does not answer.
    pub(crate) async fn tag(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let instance = self.instance.as_str();
        self.call("CreateTags", &[("ResourceId.1", instance), ("Tag.1.Key", key), ("Tag.1.Value", value)]).await
    }

    async fn call(&self, action: &str, fields: &[(&str, &str)]) -> anyhow::Result<()> {
        let form = Serializer::new(String::new())
            .extend_pairs([("Action", action), ("Version", VERSION)])
            .extend_pairs(fields)
            .finish();
        // Once or twice in an instance's life.
        let http = reqwest::Client::builder().timeout(ANSWER_BOUND).build().context("set up HTTPS")?;
        let pauses = ExponentialBuilder::default().with_max_times(MOST_RETRIES).with_jitter();
        let done = (|| self.send(&http, &form)).retry(pauses).when(|error| error.retryable).await;
        done.with_context(|| format!("ec2:{action} of {}", self.instance))
    }

    async fn send(&self, http: &reqwest::Client, form: &str) -> Result<(), Unsuccessful> {
        let signed =
            self.sign(form).await.map_err(|error| Unsuccessful { what: format!("{error:#}"), retryable: false })?;
        let mut request = http.post(&self.endpoint).header("content-type", FORM).body(form.to_owned());
        for (name, value) in &signed {
            request = request.header(name, value);
        }
        let unheard = |error: reqwest::Error| Unsuccessful {
            what: format!("{:#}", anyhow::Error::new(error.without_url())),
            retryable: true,
        };
        let response = request.send().await.map_err(unheard)?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let text = response.text().await.map_err(unheard)?;
        Err(refusal(status.as_u16(), &text))
    }

    /// The headers that make the form a request of the instance's role.
    async fn sign(&self, form: &str) -> anyhow::Result<Vec<(String, String)>> {
        let identity = self.credentials.provide_credentials().await.context("ask for the role's credentials")?.into();
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("ec2")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?
            .into();
        let headers = std::iter::once(("content-type", FORM));
        let request = SignableRequest::new("POST", &self.endpoint, headers, SignableBody::Bytes(form.as_bytes()))?;
        let (instructions, _) = sign(request, &parameters)?.into_parts();
        Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// The service's own words.
fn refusal(status: u16, text: &str) -> Unsuccessful {
    let between = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once('<')?.0)
    };
    let code = between("Code").unwrap_or("no code");
    let what = format!("{code}: {}", between("Message").unwrap_or("no message"));
    // It asks for patience.
    let passes = ["RequestLimitExceeded", "Throttling", "Unavailable", "InternalError"];
    Unsuccessful { what: format!("{status} {what}"), retryable: status >= 500 || passes.contains(&code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_services_words_and_tried_again_where_it_passes() {
        let answer = |code: &str| {
            format!("<Response><Errors><Error><Code>{code}</Code><Message>why</Message></Error></Errors></Response>")
        };
        for (status, text, what, retryable) in [
            (403, answer("UnauthorizedOperation"), "403 UnauthorizedOperation: why", false),
            (400, answer("InvalidInstanceID.NotFound"), "400 InvalidInstanceID.NotFound: why", false),
            (503, answer("RequestLimitExceeded"), "503 RequestLimitExceeded: why", true),
            (502, "<html>Bad Gateway".to_owned(), "502 no code: no message", true),
        ] {
            let told = refusal(status, &text);
            assert_eq!((told.to_string().as_str(), told.retryable), (what, retryable));
        }
    }

    #[test]
    fn each_partition_has_its_domain() {
        assert_eq!(endpoint("eu-central-1"), "https://ec2.eu-central-1.amazonaws.com/");
        assert_eq!(endpoint("cn-north-1"), "https://ec2.cn-north-1.amazonaws.com.cn/");
    }
}
