//! The ports on the real SDK, whose HTTP a test answers itself: what AWS's own stand-ins can't be brought to do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod errors;
mod lists;
mod lock;
mod reasons;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_sdk_sts::config::Credentials;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;

pub(crate) const KILN_TOML: &str = r#"
organization = "acme"
region = "eu-central-1"
[app]
client_id = "Iv23liEXAMPLE0000000"
[runner]
version = "2.338.0"
[runner.sha256]
x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32"
[fleet.linux]
labels = ["linux-x64"]
instance_types = ["m6i.large"]
min = 1
max = 4
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001"] }
"#;

/// A call, as far as a test needs to know it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `ListStacks`; for S3 the method and path.
    pub(crate) operation: String,
    /// The fields of a form or of a JSON object, as texts.
    pub(crate) fields: BTreeMap<String, String>,
    /// `if-match`…
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) etag: Option<String>,
    /// `last-modified`.
    pub(crate) written: Option<&'static str>,
    /// The call is carried out, its answer is lost.
    pub(crate) lost: bool,
}

impl Answer {
    pub(crate) fn of(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into(), etag: None, written: None, lost: false }
    }
}

/// The body of an answer in the query protocol.
pub(crate) fn query(operation: &str, result: &str) -> String {
    format!("<{operation}Response><{operation}Result>{result}</{operation}Result></{operation}Response>")
}

type Respond = dyn Fn(&Asked) -> Answer + Send + Sync;

#[derive(Clone)]
struct Wire(Arc<Respond>, Arc<Mutex<Vec<Asked>>>);

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

fn read(request: &HttpRequest) -> Asked {
    let body = String::from_utf8_lossy(request.body().bytes().unwrap_or_default()).into_owned();
    let headers: BTreeMap<String, String> =
        request.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let operation = match headers.get("x-amz-target").and_then(|target| target.rsplit('.').next()) {
        Some(operation) => {
            let values: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
            let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            fields.extend(values.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value))));
            operation.to_owned()
        }
        None => {
            fields.extend(url::form_urlencoded::parse(body.as_bytes()).into_owned());
            let path = url::Url::parse(request.uri()).map(|url| url.path().to_owned()).unwrap_or_default();
            fields.get("Action").cloned().unwrap_or_else(|| format!("{} {path}", request.method()))
        }
    };
    Asked { operation, fields, headers, body }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let asked = read(&request);
        let answer = self.0(&asked);
        self.1.lock().unwrap().push(asked);
        if answer.lost {
            return HttpConnectorFuture::ready(Err(ConnectorError::io("the connection broke".into())));
        }
        let mut response = HttpResponse::new(StatusCode::try_from(answer.status).unwrap(), SdkBody::from(answer.body));
        if let Some(etag) = answer.etag {
            response.headers_mut().insert("etag", etag);
        }
        if let Some(written) = answer.written {
            response.headers_mut().insert("last-modified", written);
        }
        HttpConnectorFuture::ready(Ok(response))
    }
}

/// The ports, and the calls they made.
pub(crate) async fn wire(
    respond: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> (kiln_aws::Aws, Arc<Mutex<Vec<Asked>>>) {
    let asked = Arc::default();
    let wire = Wire(Arc::new(respond), Arc::clone(&asked));
    let client = http_client_fn(move |_, _| SharedHttpConnector::new(wire.clone()));
    let config = aws_config::SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(aws_config::Region::new("eu-central-1"))
        .endpoint_url("http://wire.invalid")
        .credentials_provider(aws_sdk_sts::config::SharedCredentialsProvider::new(Credentials::new(
            "AKIAPIPELINE00000000",
            "pipeline",
            None,
            None,
            "test",
        )))
        .retry_config(
            RetryConfig::standard().with_max_attempts(3).with_initial_backoff(std::time::Duration::from_millis(1)),
        )
        .sleep_impl(aws_smithy_async::rt::sleep::SharedAsyncSleep::new(aws_smithy_async::rt::sleep::TokioSleep::new()))
        .http_client(client)
        .build();
    (kiln_aws::Aws::new(&"eu-central-1".parse().unwrap(), &config), asked)
}
