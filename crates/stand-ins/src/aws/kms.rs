//! KMS that is slow to let a role use what an alias was just pointed at.
//!
//! source: <https://docs.aws.amazon.com/kms/latest/developerguide/alias-authorization.html>: tag and alias changes take up to
//! five minutes to affect authorization, and may be visible in operations before that. What is modelled is a role that may
//! sign by `kms:ResourceAliases` alone: it may use a key that had an alias of Kiln's so long ago.

use std::time::{Duration, Instant};

use axum::response::Response;
use serde_json::Value;

use super::gateway::{self, Call};

/// What became of aliases, in order.
#[derive(Debug, Default)]
pub(super) struct SlowAliases {
    delay: Duration,
    moves: Vec<(String, String, Instant)>,
}

impl SlowAliases {
    pub(super) fn delay(&mut self, delay: Duration) {
        self.delay = delay;
    }

    /// Notes a move of an alias, and refuses a signature that KMS does not see the right to yet.
    pub(super) fn look(&mut self, call: &Call) -> Option<Response> {
        let body: Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        match call.operation.as_str() {
            "CreateAlias" | "UpdateAlias" => {
                self.moves.push((text("AliasName"), text("TargetKeyId"), Instant::now()));
                None
            }
            "Sign" => {
                let key = text("KeyId");
                // By its id a key is signed with by whoever made it, whom its tags let do so.
                let target =
                    self.moves.iter().rev().find(|(alias, _, _)| *alias == key).map(|(_, target, _)| target)?;
                let seen = self.moves.iter().any(|(_, moved, at)| moved == target && at.elapsed() >= self.delay);
                (!seen).then(|| gateway::refusal(call, "AccessDeniedException"))
            }
            _ => None,
        }
    }
}
