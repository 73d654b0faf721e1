//! Signature Version 4 of requests without a query, the only ones that are made here.
//!
//! Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html>. A test compares each signature with
//! that of AWS's own crate.

use std::fmt::Write as _;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use secrecy::ExposeSecret as _;
use url::Url;

use crate::aws::Credentials;

/// What is signed.
pub(crate) struct Signable<'a> {
    pub(crate) method: &'a str,
    pub(crate) url: &'a Url,
    /// In lower case, with trimmed values; each is signed.
    pub(crate) headers: &'a [(&'a str, String)],
    pub(crate) body: &'a [u8],
    pub(crate) service: &'a str,
    pub(crate) region: &'a str,
}

/// The headers that make it a request of whoever has these credentials.
pub(crate) fn sign(request: &Signable<'_>, credentials: &Credentials, now: SystemTime) -> Vec<(&'static str, String)> {
    let time = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
    let date = &time[..8];
    let body = hex(digest(&SHA256, request.body).as_ref());
    let mut added = vec![("x-amz-date", time.clone()), ("x-amz-content-sha256", body.clone())];
    if let Some(token) = &credentials.token {
        added.push(("x-amz-security-token", token.expose_secret().to_owned()));
    }
    let mut headers: Vec<(&str, &str)> = vec![("host", "")];
    headers.extend(request.headers.iter().map(|(name, value)| (*name, value.as_str())));
    headers.extend(added.iter().map(|(name, value)| (*name, value.as_str())));
    let host = host(request.url);
    headers[0].1 = &host;
    headers.sort_unstable();
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let path = if request.url.path().is_empty() { "/" } else { request.url.path() };
    let canonical = format!("{}\n{path}\n\n{lines}\n{names}\n{body}", request.method);
    let scope = format!("{date}/{}/{}/aws4_request", request.region, request.service);
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(digest(&SHA256, canonical.as_bytes()).as_ref()));
    let secret = format!("AWS4{}", credentials.secret.expose_secret());
    let mut key = Key::new(HMAC_SHA256, secret.as_bytes());
    for part in [date, request.region, request.service, "aws4_request"] {
        key = Key::new(HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
    }
    let signature = hex(hmac::sign(&key, text.as_bytes()).as_ref());
    added.push((
        "authorization",
        format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", credentials.id),
    ));
    added
}

/// The host as HTTP sends it: with a port where that is not the scheme's own.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use aws_credential_types::Credentials as Theirs;
    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    };
    use aws_sigv4::sign::v4::SigningParams;

    use super::*;

    fn theirs(request: &Signable<'_>, token: Option<&str>, now: SystemTime) -> String {
        let identity = Theirs::new("AKIDEXAMPLE", "secret", token.map(str::to_owned), None, "test").into();
        let mut settings = SigningSettings::default();
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        let params = SigningParams::builder()
            .identity(&identity)
            .region(request.region)
            .name(request.service)
            .time(now)
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let headers = request.headers.iter().map(|(name, value)| (*name, value.as_str()));
        let signable =
            SignableRequest::new(request.method, request.url.as_str(), headers, SignableBody::Bytes(request.body));
        let (instructions, _) = aws_sigv4::http_request::sign(signable.unwrap(), &params).unwrap().into_parts();
        instructions.headers().find(|(name, _)| *name == "authorization").unwrap().1.to_owned()
    }

    #[test]
    fn signatures_are_those_of_awss_own_crate() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_007);
        let form = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
        let guarded = vec![("if-match", "\"a b\"".to_owned()), ("content-type", "text/plain".to_owned())];
        for (method, url, headers, body, service) in [
            ("POST", "https://ec2.eu-central-1.amazonaws.com/", form, "Action=CreateTags", "ec2"),
            ("GET", "https://b.s3.eu-central-1.amazonaws.com/runners/AROA%3Ai-0a/config", Vec::new(), "", "s3"),
            ("PUT", "http://127.0.0.1:8080/b/control/status.json", guarded, "{}", "s3"),
        ] {
            let url = Url::parse(url).unwrap();
            let (body, region) = (body.as_bytes(), "eu-central-1");
            let request = Signable { method, url: &url, headers: &headers, body, service, region };
            for token in [None, Some("session")] {
                let credentials = Credentials {
                    id: "AKIDEXAMPLE".to_owned(),
                    secret: "secret".into(),
                    token: token.map(Into::into),
                    expires: None,
                };
                let ours = sign(&request, &credentials, now).pop().unwrap();
                assert_eq!(ours, ("authorization", theirs(&request, token, now)), "{method} {url}");
            }
        }
    }
}
