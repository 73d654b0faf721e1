//! Calls to AWS: EC2's query protocol, the JSON of KMS and Secrets Manager, objects of S3. EC2's SDK alone has six hundred
//! operations, and takes longer to compile than the rest of a program that needs four of them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::Value;
use url::Url;
use url::form_urlencoded::Serializer;

use crate::sign::{Signable, sign};

/// A connection that is not made by then never is.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// EC2 may take seconds to launch; what takes longer than this is in doubt.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// EC2's API, as every SDK names its version.
const EC2_VERSION: &str = "2016-11-15";

/// The same of STS.
const STS_VERSION: &str = "2011-06-15";

/// A role's or a user's credentials.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The access key's id.
    pub id: String,
    /// The access key.
    pub secret: SecretString,
    /// The session's token.
    pub token: Option<SecretString>,
    /// When they end.
    pub expires: Option<SystemTime>,
}

/// Credentials, once they are there.
pub type Provided<'a> = Pin<Box<dyn Future<Output = Result<Credentials, Error>> + Send + 'a>>;

/// Who has credentials.
pub trait Provider: std::fmt::Debug + Send + Sync {
    /// Gives them.
    fn credentials(&self) -> Provided<'_>;
}

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of failure it was.
    pub kind: ErrorKind,
    /// The service's own words, or what kept them from coming. Never holds a secret.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorKind {
    /// No answer, or half of one: what was asked may have happened.
    Unheard,
    /// The service answered with this status and, where it gave one, this code.
    Refused(u16, String),
    /// Something here is not usable: nothing was asked.
    Unusable,
}

impl Error {
    pub(crate) fn unheard(error: reqwest::Error) -> Self {
        let mut message = String::new();
        let mut cause: Option<&dyn std::error::Error> = Some(&error.without_url());
        while let Some(error) = cause {
            let separator = if message.is_empty() { "" } else { ": " };
            message = format!("{message}{separator}{error}");
            cause = error.source();
        }
        Self { kind: ErrorKind::Unheard, message }
    }

    /// What was found can not be used.
    pub fn unusable(message: String) -> Self {
        Self { kind: ErrorKind::Unusable, message }
    }

    pub(crate) fn set_up(error: &reqwest::Error) -> Self {
        Self::unusable(format!("HTTPS can't be set up: {error}"))
    }

    pub(crate) fn status(status: StatusCode, message: &str) -> Self {
        let kind = ErrorKind::Refused(status.as_u16(), String::new());
        Self { kind, message: format!("{message}: {status}") }
    }

    /// A refusal in a service's own words: XML of EC2 and S3, JSON of the others.
    fn refused(status: StatusCode, text: &str) -> Self {
        let between = |tag: &str| {
            let (_, rest) = text.split_once(&format!("<{tag}>"))?;
            Some(unescaped(rest.split_once('<')?.0))
        };
        let json: Value = serde_json::from_str(text).unwrap_or_default();
        let of = |name: &str| Some(json.get(name)?.as_str()?.to_owned());
        // `com.amazonaws.kms#NotFoundException` and `NotFoundException` are the same.
        let kind = of("__type").map(|kind| kind.rsplit('#').next().unwrap_or_default().to_owned());
        let code = between("Code").or(kind).unwrap_or_default();
        let words = between("Message").or_else(|| of("message")).or_else(|| of("Message"));
        let message = match (code.as_str(), words) {
            ("", None) => format!("{status}, without a word"),
            (code, words) => format!("{code}: {}", words.unwrap_or_else(|| "no message".to_owned())),
        };
        Self { kind: ErrorKind::Refused(status.as_u16(), code), message }
    }

    /// The service's code, such as `AccessDenied`; nothing where it gave none.
    pub fn code(&self) -> &str {
        match &self.kind {
            ErrorKind::Refused(_, code) => code,
            _ => "",
        }
    }

    /// The answer's status, if there was one.
    pub fn http_status(&self) -> Option<u16> {
        match self.kind {
            ErrorKind::Refused(status, _) => Some(status),
            _ => None,
        }
    }

    /// Does the service ask for fewer calls?
    pub fn is_throttling(&self) -> bool {
        const CODES: [&str; 5] =
            ["RequestLimitExceeded", "Throttling", "ThrottlingException", "SlowDown", "RequestThrottled"];
        CODES.contains(&self.code()) || self.http_status() == Some(429)
    }

    /// May the same call work a moment later?
    pub fn is_passing(&self) -> bool {
        let passes = ["Unavailable", "InternalError", "InternalFailure", "KMSInternalException"];
        matches!(self.kind, ErrorKind::Unheard)
            || self.is_throttling()
            || passes.contains(&self.code())
            || self.http_status().is_some_and(|status| status >= 500)
    }
}

/// XML's five entities, which AWS's messages have.
fn unescaped(text: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#39;", "'"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (entity, character)| text.replace(entity, character))
}

/// What S3 answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The object's version, in quotes.
    pub etag: String,
    /// What is in it; nothing after a write.
    pub bytes: Vec<u8>,
}

/// AWS in one region. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Aws {
    http: reqwest::Client,
    region: String,
    /// All services, in a test.
    endpoint: Option<String>,
    credentials: Arc<dyn Provider>,
}

impl Aws {
    /// Makes no call.
    ///
    /// # Errors
    /// HTTPS can't be set up.
    pub fn new(region: &str, credentials: Arc<dyn Provider>) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Error::set_up(&error))?;
        let endpoint = std::env::var("AWS_ENDPOINT_URL").ok().map(|url| url.trim_end_matches('/').to_owned());
        Ok(Self { http, region: region.to_owned(), endpoint, credentials })
    }

    /// The same, where all services are at one address.
    #[must_use]
    pub fn at(mut self, endpoint: Option<String>) -> Self {
        self.endpoint = endpoint;
        self
    }

    fn address(&self, host: &str) -> String {
        let china = if self.region.starts_with("cn-") { ".cn" } else { "" };
        let service = || format!("https://{host}.{}.amazonaws.com{china}", self.region);
        self.endpoint.clone().unwrap_or_else(service)
    }

    /// Asks EC2.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn ec2(&self, action: &str, fields: &[(String, String)]) -> Result<String, Error> {
        self.query("ec2", EC2_VERSION, action, fields).await
    }

    /// The unique id of whoever has these credentials, IAM's `aws:userid`: `ROLEID:INSTANCEID` on an instance. Nobody can be
    /// refused the answer.
    ///
    /// Source: <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html>
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn user_id(&self) -> Result<String, Error> {
        let text = self.query("sts", STS_VERSION, "GetCallerIdentity", &[]).await?;
        let id = text.split_once("<UserId>").and_then(|(_, rest)| Some(rest.split_once('<')?.0.trim().to_owned()));
        id.ok_or_else(|| Error::unusable("STS answered without a user's id".to_owned()))
    }

    async fn query(
        &self,
        service: &str,
        version: &str,
        action: &str,
        fields: &[(String, String)],
    ) -> Result<String, Error> {
        let form = Serializer::new(String::new())
            .extend_pairs([("Action", action), ("Version", version)])
            .extend_pairs(fields)
            .finish();
        let headers = [("content-type", "application/x-www-form-urlencoded".to_owned())];
        let url = format!("{}/", self.address(service));
        let (_, bytes) = self.send(service, Method::POST, &url, &headers, form.into_bytes()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Asks a service whose protocol is JSON: `kms`, `TrentService.Sign`.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn json(&self, service: &str, target: &str, body: &Value) -> Result<Value, Error> {
        let headers = [("content-type", "application/x-amz-json-1.1".to_owned()), ("x-amz-target", target.to_owned())];
        let url = format!("{}/", self.address(service));
        let (_, bytes) = self.send(service, Method::POST, &url, &headers, body.to_string().into_bytes()).await?;
        serde_json::from_slice(&bytes).map_err(|_| Error::unusable(format!("{service} answered with no JSON")))
    }

    /// Reads an object; `None` where it is the version that the reader has.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn get_object(&self, bucket: &str, key: &str, known: Option<&str>) -> Result<Option<Object>, Error> {
        let headers: Vec<_> = known.map(|etag| ("if-none-match", etag.to_owned())).into_iter().collect();
        let (etag, bytes) = match self.object(Method::GET, bucket, key, &headers, Vec::new()).await {
            Ok(answer) => answer,
            Err(error) if error.http_status() == Some(304) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Object { etag, bytes }))
    }

    /// Writes an object. `condition` is a header such as `if-match` and its value.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn put_object(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Option<(&'static str, String)>,
    ) -> Result<Object, Error> {
        let mut headers = vec![("content-type", "application/octet-stream".to_owned())];
        headers.extend(condition);
        let (etag, _) = self.object(Method::PUT, bucket, key, &headers, bytes).await?;
        Ok(Object { etag, bytes: Vec::new() })
    }

    /// Deletes an object; one that is not there is deleted already.
    ///
    /// # Errors
    /// As [`ErrorKind`] lists them.
    pub async fn delete_object(&self, bucket: &str, key: &str) -> Result<(), Error> {
        match self.object(Method::DELETE, bucket, key, &[], Vec::new()).await {
            Err(error) if error.http_status() != Some(404) => Err(error),
            _ => Ok(()),
        }
    }

    async fn object(
        &self,
        method: Method,
        bucket: &str,
        key: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<(String, Vec<u8>), Error> {
        // By the bucket's own host name, but for a stand-in, which has none.
        let base = match &self.endpoint {
            Some(endpoint) => format!("{endpoint}/{bucket}"),
            None => self.address(&format!("{bucket}.s3")),
        };
        self.send("s3", method, &format!("{base}/{}", encoded(key)), headers, body).await
    }

    async fn send(
        &self,
        service: &str,
        method: Method,
        url: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<(String, Vec<u8>), Error> {
        let credentials = self.credentials.credentials().await?;
        let url = Url::parse(url).map_err(|error| Error::unusable(format!("{url} is no address: {error}")))?;
        let signable =
            Signable { method: method.as_str(), url: &url, headers, body: &body, service, region: &self.region };
        let signature = sign(&signable, &credentials, SystemTime::now());
        let mut request = self.http.request(method.clone(), url);
        for (name, value) in headers.iter().map(|(name, value)| (*name, value)) {
            request = request.header(name, value);
        }
        for (name, value) in &signature {
            request = request.header(*name, value);
        }
        let answer = request.body(body).send().await.map_err(Error::unheard)?;
        let status = answer.status();
        let etag = answer.headers().get("etag").and_then(|etag| etag.to_str().ok()).unwrap_or_default().to_owned();
        let bytes = answer.bytes().await.map_err(Error::unheard)?;
        if status.is_success() {
            return Ok((etag, bytes.into()));
        }
        Err(Error::refused(status, &String::from_utf8_lossy(&bytes)))
    }
}

/// A key in a path: all but unreserved characters and slashes as `%XX`, which is also how it is signed.
///
/// Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html> (UriEncode).
fn encoded(key: &str) -> String {
    use std::fmt::Write as _;
    key.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_in_the_services_own_words() {
        let xml = |code: &str| {
            format!(
                "<Response><Errors><Error><Code>{code}</Code><Message>&lt;why&gt;</Message></Error></Errors></Response>"
            )
        };
        for (status, text, message, passing) in [
            (403, xml("UnauthorizedOperation"), "UnauthorizedOperation: <why>", false),
            (503, xml("RequestLimitExceeded"), "RequestLimitExceeded: <why>", true),
            (502, "<html>Bad Gateway".to_owned(), "502 Bad Gateway, without a word", true),
            (
                400,
                r#"{"__type":"a.b#NotFoundException","message":"no key"}"#.to_owned(),
                "NotFoundException: no key",
                false,
            ),
            (400, r#"{"__type":"ThrottlingException"}"#.to_owned(), "ThrottlingException: no message", true),
        ] {
            let error = Error::refused(StatusCode::from_u16(status).unwrap(), &text);
            assert_eq!((error.message.as_str(), error.is_passing()), (message, passing));
        }
    }

    #[test]
    fn a_key_is_encoded_once_and_each_partition_has_its_domain() {
        assert_eq!(encoded("runners/AROA:i-0a/config"), "runners/AROA%3Ai-0a/config");
        assert_eq!(encoded("a b+ü~"), "a%20b%2B%C3%BC~");
        let url = Url::parse("https://h/runners/AROA%3Ai-0a/config").unwrap();
        assert_eq!(url.path(), "/runners/AROA%3Ai-0a/config", "as it is signed");
        #[derive(Debug)]
        struct Nobody;
        impl Provider for Nobody {
            fn credentials(&self) -> Provided<'_> {
                Box::pin(async { Err(Error::unusable("none".to_owned())) })
            }
        }
        let of = |region: &str| Aws::new(region, Arc::new(Nobody)).unwrap().at(None);
        assert_eq!(of("eu-central-1").address("b.s3"), "https://b.s3.eu-central-1.amazonaws.com");
        assert_eq!(of("cn-north-1").address("ec2"), "https://ec2.cn-north-1.amazonaws.com.cn");
    }
}
