//! What an App asks with a JWT: who it is, where it is installed, and for installation tokens.
//!
//! source: <https://docs.github.com/en/rest/apps/apps>; the words of refusals are from public reports.
//!
//! assumption: a JWT's second use is refused with 404, as in <https://github.com/github-aws-runners/terraform-aws-github-runner/issues/5025>.

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value, json};

use super::api::{Answered, Call, no, ok, refuse, stamp};
use super::bodies;
use super::state::{App, INSTALLATION_ID, State, TokenKind};

/// The one permission there is here.
pub(super) const PERMISSION: &str = "organization_self_hosted_runners";

const UNDECODABLE: &str = "A JSON web token could not be decoded";

/// GitHub accepts an `exp` no further ahead.
const FURTHEST_SECS: u64 = 600;

pub(super) fn handle(organization: &str, state: &mut State, call: &Call, method: &str, path: &[&str]) -> Answered {
    let app = authenticate(state, call)?;
    match (method, path) {
        ("GET", ["app"]) => Ok(ok(200, &bodies::app(&state.apps[app], &json!({ PERMISSION: "write" })))),
        ("GET", ["orgs", login, "installation"]) => installation(organization, state, app, *login == organization),
        ("GET", ["app", "installations", id]) => {
            installation(organization, state, app, id.parse() == Ok(INSTALLATION_ID))
        }
        ("POST", ["app", "installations", id, "access_tokens"]) => {
            // Byte-identical assertions have been answered so.
            if !state.seen_jwts.insert(call.bearer().unwrap_or_default().to_owned()) {
                return no(404, "Not Found");
            }
            access_token(state, app, id.parse() == Ok(INSTALLATION_ID), &call.json())
        }
        _ => no(404, "Not Found"),
    }
}

/// The App whose key signed the JWT, by its place.
fn authenticate(state: &State, call: &Call) -> Result<usize, Box<Response>> {
    let token = call.bearer().ok_or_else(|| Box::new(refuse(401, UNDECODABLE)))?;
    let claims = claims(token).ok_or_else(|| Box::new(refuse(401, UNDECODABLE)))?;
    let issuer = &claims["iss"];
    let number = issuer.as_u64().or_else(|| issuer.as_str()?.parse().ok());
    let by_issuer = |app: &App| *issuer == app.client_id || number == Some(app.id);
    let place = state.apps.iter().position(by_issuer).ok_or_else(|| Box::new(refuse(404, "Integration not found")))?;
    if !state.apps[place].keys.iter().any(|key| signed_by(token, &key.pkcs1)) {
        return no(401, UNDECODABLE);
    }
    in_time(&claims, state.now())?;
    Ok(place)
}

/// What the JWT says, whoever signed it.
fn claims(token: &str) -> Option<Value> {
    let payload = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

fn signed_by(token: &str, pkcs1: &[u8]) -> bool {
    let mut validation = Validation::new(Algorithm::RS256);
    // Times are checked by GitHub's own clock, with its own messages.
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    jsonwebtoken::decode::<Value>(token, &DecodingKey::from_rsa_der(pkcs1), &validation).is_ok()
}

fn in_time(claims: &Value, now: u64) -> Result<(), Box<Response>> {
    let (Some(issued), Some(expires)) = (claims["iat"].as_u64(), claims["exp"].as_u64()) else {
        return no(401, "Missing 'issued at' claim ('iat') in assertion");
    };
    let wrong = if expires <= now {
        "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion \
         expires"
    } else if expires > now + FURTHEST_SECS {
        "'Expiration time' claim ('exp') is too far in the future"
    } else if issued > now {
        "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
    } else {
        return Ok(());
    };
    no(401, wrong)
}

fn installation(organization: &str, state: &State, app: usize, here: bool) -> Answered {
    let app = &state.apps[app];
    if !here || !app.installed {
        return no(404, "Not Found");
    }
    let mut permissions: Map<String, Value> =
        state.granted_too.iter().map(|(name, access)| (name.clone(), access.clone().into())).collect();
    if state.granted {
        permissions.insert(PERMISSION.to_owned(), "write".into());
    }
    let suspended = state.suspended.then_some("2026-01-01T00:00:00Z");
    Ok(ok(200, &bodies::installation(organization, app, &permissions, suspended)))
}

fn access_token(state: &mut State, app: usize, here: bool, wanted: &Value) -> Answered {
    if !here || !state.apps[app].installed {
        return no(404, "Not Found");
    }
    if state.suspended {
        return no(403, "This installation has been suspended");
    }
    let asks = wanted.get("permissions").and_then(Value::as_object);
    // Whoever asks for nothing gets all there is; whoever asks for more than was granted gets none.
    let beyond = |asks: &Map<String, Value>| asks.iter().any(|(name, _)| name != PERMISSION || !state.granted);
    if asks.is_some_and(beyond) {
        return no(422, "The permissions requested are not granted to this installation.");
    }
    let runners = state.granted && asks.is_none_or(|asks| asks.get(PERMISSION).is_some_and(|level| level == "write"));
    let (token, expires) = state.mint(TokenKind::Installation { runners });
    let permissions = if runners { json!({ PERMISSION: "write" }) } else { json!({}) };
    Ok(ok(201, &json!({ "token": token, "expires_at": stamp(expires), "permissions": permissions })))
}
