//! What an instance asks of EC2 about itself, which the emulator has not.

use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::gateway::Call;
use super::imds::State;

/// Is it about an instance? The emulator knows images and snapshots, and none of the instances here.
pub(super) fn is_ours(call: &Call) -> bool {
    match call.operation.as_str() {
        "CreateTags" => call.field("ResourceId.1").is_some_and(|id| id.starts_with("i-")),
        _ => false,
    }
}

/// Answers a call that [`is_ours`]; `find` knows the instances.
pub(super) fn handle(call: &Call, find: impl Fn(&str) -> Option<Arc<State>>) -> Response {
    answer(call, tag(call, find))
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
