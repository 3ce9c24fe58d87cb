//! Twin of what Firebase Authentication shows to those who check ID tokens (external services facts, section 2): the
//! signing keys as a JWK set with their `Cache-Control`. Tokens, good and forged, are signed by the control API.

pub mod control;
mod keys;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::keys::SigningKey;
use crate::{
    exchange::{Answer, Call, Operation},
    faults::Twist,
    gate::Twin,
};

#[derive(Default)]
pub struct Firebase {
    desk: Mutex<Desk>,
}

/// Keys are made when they are first asked for: most tests ask for none.
#[derive(Default)]
pub struct Desk {
    settings: Settings,
    /// Published, the newest last: that one signs.
    published: Vec<SigningKey>,
    /// Not published any more.
    withdrawn: Vec<SigningKey>,
    /// Somebody else's, never published.
    stranger: Option<SigningKey>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub project: String,
    /// 2.1: how long clients are told to keep the keys.
    pub max_age_s: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { project: String::from("sandbox-project"), max_age_s: 21_600 }
    }
}

const OPERATIONS: [Operation; 1] =
    [Operation::new("keys.list", "GET", "/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com")];

impl Firebase {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn reset(&self) {
        *self.desk() = Desk::default();
    }
}

impl Desk {
    fn signer(&mut self) -> &SigningKey {
        if self.published.is_empty() {
            self.published.push(SigningKey::generate());
        }
        &self.published[self.published.len() - 1]
    }
}

fn refusal(status: u16, reason: &str) -> Answer {
    Answer::json(status, json!({"error": {"code": status, "message": reason, "status": reason}}))
}

impl Twin for Firebase {
    fn service(&self) -> &'static str {
        "firebase"
    }

    fn prefix(&self) -> &'static str {
        "/firebase"
    }

    fn operations(&self) -> &'static [Operation] {
        &OPERATIONS
    }

    fn account(&self, _call: &Call) -> Option<String> {
        None
    }

    fn find_account(&self, _id_or_name: &str) -> Option<String> {
        None
    }

    fn serve(&self, operation: Option<&'static Operation>, _call: &Call, _twist: Option<&Twist>) -> Answer {
        if operation.is_none() {
            return refusal(404, "NOT_FOUND");
        }
        let mut desk = self.desk();
        desk.signer();
        let keys: Vec<Value> = desk.published.iter().map(SigningKey::jwk).collect();
        let cache = format!("public, max-age={}, must-revalidate, no-transform", desk.settings.max_age_s);
        Answer::ok(json!({"keys": keys})).with_header("cache-control", cache)
    }

    fn loggable(&self, _operation: &'static str, _call: &Call) -> Option<String> {
        None
    }

    fn errors(&self) -> Vec<&'static str> {
        vec!["internal", "unavailable"]
    }

    fn error(&self, name: &str) -> Option<Answer> {
        match name {
            "internal" => Some(refusal(500, "INTERNAL")),
            "unavailable" => Some(refusal(503, "UNAVAILABLE")),
            _ => None,
        }
    }

    fn rate_limited(&self, _operation: &'static str, _reset_in_s: u64) -> Answer {
        refusal(429, "RESOURCE_EXHAUSTED")
    }

    fn twists(&self) -> &'static [&'static str] {
        &[]
    }

    fn twist_operation(&self) -> &'static str {
        "keys.list"
    }

    fn check_twist(&self, name: &str, _value: &Value) -> Result<(), String> {
        Err(format!("firebase has no effect `{name}`"))
    }
}
