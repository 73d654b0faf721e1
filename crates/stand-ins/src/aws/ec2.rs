//! What an instance asks of EC2 about itself, which the emulator has not.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::gateway::Call;
use super::imds::State;

/// EC2 carries a change of a running instance out a moment after it has accepted it.
const PENDING: Duration = Duration::from_millis(300);

/// Is it about an instance? The emulator knows images and snapshots, and none of the instances here.
pub(super) fn is_ours(call: &Call) -> bool {
    match call.operation.as_str() {
        "ModifyInstanceMetadataOptions" => true,
        "CreateTags" => call.field("ResourceId.1").is_some_and(|id| id.starts_with("i-")),
        _ => false,
    }
}

/// Answers a call that [`is_ours`]; `find` knows the instances.
pub(super) fn handle(call: &Call, find: impl Fn(&str) -> Option<Arc<State>>) -> Response {
    let answered = match call.operation.as_str() {
        "ModifyInstanceMetadataOptions" => modify(call, find),
        _ => tag(call, find),
    };
    answer(call, answered)
}

/// The elements of an answer, or an error's code and message.
pub(super) type Answered = Result<String, (&'static str, String)>;

/// An answer in EC2's own protocol.
pub(super) fn answer(call: &Call, answered: Answered) -> Response {
    let (status, body) = match answered {
        Ok(body) => {
            let name = format!("{}Response", call.operation);
            let namespace = "http://ec2.amazonaws.com/doc/2016-11-15/";
            (StatusCode::OK, format!("<{name} xmlns=\"{namespace}\"><requestId>0</requestId>{body}</{name}>"))
        }
        Err((code, message)) => (
            StatusCode::BAD_REQUEST,
            format!(
                "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
                 <RequestID>0</RequestID></Response>"
            ),
        ),
    };
    (status, [(header::CONTENT_TYPE, "text/xml")], body).into_response()
}

fn found(id: &str, find: impl Fn(&str) -> Option<Arc<State>>) -> Result<Arc<State>, (&'static str, String)> {
    find(id).ok_or_else(|| ("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist")))
}

/// The value of a field, where it is one of these.
fn one_of(call: &Call, name: &str, values: &[&str]) -> Result<Option<String>, (&'static str, String)> {
    match call.field(name) {
        Some(value) if !values.contains(&value.as_str()) => {
            Err(("InvalidParameterValue", format!("Value ({value}) for parameter {name} is invalid.")))
        }
        value => Ok(value),
    }
}

fn modify(call: &Call, find: impl Fn(&str) -> Option<Arc<State>>) -> Answered {
    let missing = || ("MissingParameter", "The request must contain the parameter InstanceId".to_owned());
    let id = call.field("InstanceId").ok_or_else(missing)?;
    let state = found(&id, find)?;
    let endpoint = one_of(call, "HttpEndpoint", &["enabled", "disabled"])?;
    let tokens = one_of(call, "HttpTokens", &["optional", "required"])?;
    let hops = call.field("HttpPutResponseHopLimit");
    if hops.as_ref().is_some_and(|hops| !hops.parse().is_ok_and(|hops: u32| (1..=64).contains(&hops))) {
        return Err(("InvalidParameterValue", "HttpPutResponseHopLimit is 1 to 64".to_owned()));
    }
    if endpoint.is_none() && tokens.is_none() && hops.is_none() {
        return Err(("InvalidParameterCombination", "No modification is asked for".to_owned()));
    }
    if let Some(endpoint) = &endpoint {
        let on = endpoint == "enabled";
        tokio::spawn(async move {
            tokio::time::sleep(PENDING).await;
            state.switch(on);
        });
    }
    let endpoint = endpoint.unwrap_or_else(|| "enabled".to_owned());
    Ok(format!(
        "<instanceId>{id}</instanceId><instanceMetadataOptions><state>pending</state>\
         <httpEndpoint>{endpoint}</httpEndpoint></instanceMetadataOptions>"
    ))
}

fn tag(call: &Call, find: impl Fn(&str) -> Option<Arc<State>>) -> Answered {
    for id in (1..).map_while(|index| call.field(&format!("ResourceId.{index}"))) {
        let state = found(&id, &find)?;
        for index in 1.. {
            let Some(key) = call.field(&format!("Tag.{index}.Key")) else { break };
            if key.is_empty() || key.len() > 128 || key.starts_with("aws:") {
                return Err(("InvalidParameterValue", format!("Tag key '{key}' is not allowed")));
            }
            state.tag(key, call.field(&format!("Tag.{index}.Value")).unwrap_or_default());
        }
    }
    Ok("<return>true</return>".to_owned())
}
