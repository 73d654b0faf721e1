//! What `AWS_ENDPOINT_URL` points at: tells services apart, logs calls, and cuts the pipeline off where a test asks.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request as HttpRequest, State as Extract};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::{PIPELINE_KEY, Shared, account, auto_scaling, ec2, ec2_describe, image_builder, lock};

/// A payload is some megabytes.
const MOST_BYTES: usize = 256 << 20;

/// A resource that no emulator and no AWS can make: nobody provides it.
pub(super) const FAILING_RESOURCE: &str = "  Unmakeable:
    Type: Custom::Unmakeable
    Properties:
      ServiceToken: arn:aws:lambda:eu-central-1:000000000000:function:nobody
";

/// A call of the pipeline's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// As in the signature: `kms`.
    pub service: String,
    /// `CreateKey`; for S3 the method and path.
    pub operation: String,
    /// It changes something, or means to.
    pub mutating: bool,
    /// What was answered.
    pub status: u16,
}

/// On which side of a call's effect the pipeline is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The call is never carried out.
    Before,
    /// The call is carried out, its answer never arrives.
    After,
}

/// Calls of anyone's that are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As in the signature: `kms`.
    pub service: &'static str,
    /// `Sign`.
    pub operation: &'static str,
    /// How many.
    pub times: u32,
    /// The error's code: `ThrottlingException`.
    pub code: &'static str,
}

/// A call, read whole.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) service: String,
    pub(super) operation: String,
    /// As in the signature.
    pub(super) region: String,
    from_pipeline: bool,
}

impl Call {
    pub(super) async fn read(request: HttpRequest) -> Option<Self> {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, MOST_BYTES).await.ok()?;
        let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        // Credential=KEY/DATE/REGION/SERVICE/aws4_request
        let scope = authorization.and_then(|text| text.split("Credential=").nth(1)).unwrap_or_default();
        let mut scope = scope.split(['/', ',']);
        let from_pipeline = scope.next() == Some(PIPELINE_KEY);
        let region = scope.nth(1).unwrap_or_default().to_owned();
        let service = scope.next().unwrap_or_default().to_owned();
        let operation = operation(&service, &parts.method, &parts.uri, &parts.headers, &body);
        Some(Self {
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
            body,
            service,
            operation,
            region,
            from_pipeline,
        })
    }

    /// A field of a query-protocol call.
    pub(super) fn field(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(&self.body).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// `NAME.member.1`, `NAME.member.2`…
    pub(super) fn members(&self, name: &str) -> Vec<String> {
        (1..).map_while(|index| self.field(&format!("{name}.member.{index}"))).collect()
    }

    /// The same with a resource in its template that can't be made.
    fn spoiled(mut self) -> Self {
        let spoil = |(name, value): (Cow<'_, str>, Cow<'_, str>)| {
            let value = if name == "TemplateBody" {
                value.replacen("\nResources:\n", &format!("\nResources:\n{FAILING_RESOURCE}"), 1)
            } else {
                value.into_owned()
            };
            (name.into_owned(), value)
        };
        let fields: Vec<(String, String)> = url::form_urlencoded::parse(&self.body).map(spoil).collect();
        self.body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish().into();
        self
    }

    fn mutating(&self) -> bool {
        if self.service == "s3" {
            return matches!(self.method, Method::PUT | Method::POST | Method::DELETE);
        }
        let reads = ["Describe", "Get", "List", "Sign", "Simulate", "Verify"];
        !reads.iter().any(|prefix| self.operation.starts_with(prefix))
    }
}

fn operation(service: &str, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> String {
    if service == "s3" {
        return format!("{method} {}", uri.path());
    }
    if service == "imagebuilder" {
        return uri.path().trim_matches('/').to_owned();
    }
    if let Some(target) = headers.get("x-amz-target").and_then(|value| value.to_str().ok()) {
        return target.rsplit('.').next().unwrap_or_default().to_owned();
    }
    let action = url::form_urlencoded::parse(body).find(|(key, _)| key == "Action");
    action.map(|(_, value)| value.into_owned()).unwrap_or_else(|| uri.path().to_owned())
}

pub(super) async fn handle(Extract(shared): Extract<Arc<Shared>>, request: HttpRequest) -> Response {
    let Some(call) = Call::read(request).await else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    lock(&shared.bodies).push((format!("{}:{}", call.service, call.operation), call.body.clone()));
    let cut = if call.from_pipeline && call.mutating() { trip(&shared) } else { None };
    if let Some((When::Before, tell)) = cut {
        let _ = tell.send(());
        // The client is killed meanwhile; its connection's end drops this.
        return std::future::pending().await;
    }
    let spoiled = call.operation == "CreateChangeSet" && std::mem::take(&mut *lock(&shared.spoil_change_set));
    let call = if spoiled { call.spoiled() } else { call };
    let refused = refused(&shared, &call).map(|code| refusal(&call, code));
    let response = match (refused, call.service.as_str()) {
        (Some(refusal), _) => refusal,
        (None, "imagebuilder") => image_builder::handle(&shared, &call).await,
        (None, "ec2") if ec2::is_ours(&call) => ec2::handle(&call, |id| lock(&shared.groups).metadata_of(id)),
        (None, "autoscaling") => auto_scaling::handle(&shared, &call).await,
        (None, "kms") => {
            let refused = lock(&shared.aliases).look(&call);
            match refused {
                Some(refused) => refused,
                None => forward(&shared, &call).await,
            }
        }
        (None, "servicequotas") => account::quota(&shared, &call),
        (None, "ec2") if call.operation == "DescribeInstanceTypes" => account::instance_types(&call),
        (None, "ec2") if call.operation == "DescribeInstanceTypeOfferings" => account::offerings(&call),
        (None, "ec2") => ec2_describe::handle(&shared, &call).await,
        (None, "logs") => match image_builder::log_events(&shared, &call) {
            Some(answer) => answer,
            None => forward(&shared, &call).await,
        },
        (None, "ssm") => match public_parameter(&shared, &call) {
            Some(answer) => answer,
            None => forward(&shared, &call).await,
        },
        (None, _) => forward(&shared, &call).await,
    };
    if call.from_pipeline {
        let status = response.status().as_u16();
        let request = Request {
            service: call.service.clone(),
            operation: call.operation.clone(),
            mutating: call.mutating(),
            status,
        };
        lock(&shared.requests).push(request);
    }
    if let Some((When::After, tell)) = cut {
        let _ = tell.send(());
        return std::future::pending().await;
    }
    response
}

fn refused(shared: &Shared, call: &Call) -> Option<&'static str> {
    if call.from_pipeline
        && let Some(outage) = lock(&shared.outage).as_mut()
    {
        outage.remaining = outage.remaining.saturating_sub(1);
        if outage.remaining == 0 {
            return Some(outage.code);
        }
    }
    told_to_refuse(&shared.refusals, call)
}

/// The error that a test wants this call to meet.
pub(super) fn told_to_refuse(refusals: &Mutex<Vec<Refusal>>, call: &Call) -> Option<&'static str> {
    let mut refusals = lock(refusals);
    let matches = |refusal: &&mut Refusal| {
        refusal.times > 0 && refusal.service == call.service && refusal.operation == call.operation
    };
    let refusal = refusals.iter_mut().find(matches)?;
    refusal.times -= 1;
    Some(refusal.code)
}

/// In the form of the call's protocol.
pub(super) fn refusal(call: &Call, code: &str) -> Response {
    if call.headers.contains_key("x-amz-target") {
        let body = serde_json::json!({ "__type": code, "message": "told to refuse" }).to_string();
        return (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], body).into_response();
    }
    if call.service == "s3" {
        let body = format!("<Error><Code>{code}</Code><Message>told to refuse</Message></Error>");
        return (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/xml")], body).into_response();
    }
    // EC2's own protocol differs from the others' of its kind.
    if call.service == "ec2" {
        let error = format!("<Error><Code>{code}</Code><Message>told to refuse</Message></Error>");
        let body = format!("<Response><Errors>{error}</Errors><RequestID>0</RequestID></Response>");
        return (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "text/xml")], body).into_response();
    }
    let body = format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>told to refuse</Message></Error>\
         <RequestId>0</RequestId></ErrorResponse>"
    );
    (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "text/xml")], body).into_response()
}

/// AWS's own parameters, which the emulator lets nobody make.
fn public_parameter(shared: &Shared, call: &Call) -> Option<Response> {
    if call.operation != "GetParameter" {
        return None;
    }
    let body: serde_json::Value = serde_json::from_slice(&call.body).ok()?;
    let name = body["Name"].as_str()?;
    let value = lock(&shared.image_builder).bases.get(name)?.clone();
    let parameter =
        serde_json::json!({ "Name": name, "Value": value, "Type": "String", "DataType": "text", "Version": 1 });
    let answer = serde_json::json!({ "Parameter": parameter }).to_string();
    Some(([(header::CONTENT_TYPE, "application/x-amz-json-1.1")], answer).into_response())
}

fn trip(shared: &Shared) -> Option<(When, tokio::sync::oneshot::Sender<()>)> {
    let mut guard = lock(&shared.kill_point);
    let wire = guard.as_mut()?;
    wire.remaining -= 1;
    if wire.remaining > 0 {
        return None;
    }
    let mut wire = guard.take()?;
    Some((wire.when, wire.tell.take()?))
}

/// Unchanged to the emulator, the Host header too: it is part of what was signed.
pub(super) async fn forward(shared: &Shared, call: &Call) -> Response {
    let path = call.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers = call.headers.clone();
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::EXPECT);
    let request = shared.backend.client.request(call.method.clone(), format!("{}{path}", shared.backend.url));
    let response = match request.headers(headers).body(call.body.clone()).send().await {
        Ok(response) => response,
        Err(error) => return (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    };
    let status = response.status();
    let mut headers = response.headers().clone();
    headers.remove(header::TRANSFER_ENCODING);
    // A HEAD's length is of a body that does not come.
    if call.method != Method::HEAD {
        headers.remove(header::CONTENT_LENGTH);
    }
    let body = response.bytes().await.unwrap_or_default();
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}
