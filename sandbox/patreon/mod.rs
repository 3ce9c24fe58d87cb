//! Twin of Patreon (external services facts, 5.3): the consent page, tokens, what an account may read about itself and
//! a creator about the campaign, and webhooks that are signed.

mod authorize;
pub mod control;
mod oauth;
mod resources;
mod webhooks;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::webhooks::Hook;
use crate::{
    exchange::{Answer, Call, Operation},
    faults::Twist,
    gate::Twin,
};

#[derive(Clone, Default)]
pub struct Patreon(Arc<Mutex<World>>);

#[derive(Default)]
pub struct World {
    settings: Settings,
    /// By id.
    patrons: BTreeMap<String, Patron>,
    codes: HashMap<String, Grant>,
    access_tokens: HashMap<String, Grant>,
    refresh_tokens: HashMap<String, Grant>,
    hook: Hook,
    last_id: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub client_id: String,
    pub client_secret: String,
    /// Matched letter by letter.
    pub redirect_uris: BTreeSet<String>,
    pub code_lifetime_s: u64,
    pub access_token_lifetime_s: u64,
    /// Where events go; nowhere without it.
    pub webhook_uri: Option<String>,
    pub webhook_secret: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            client_id: String::from("sandbox-client"),
            client_secret: String::from("patreon-sandbox-secret"),
            redirect_uris: BTreeSet::from([String::from("http://127.0.0.1:5173/patreon")]),
            code_lifetime_s: 60,
            access_token_lifetime_s: 2_592_000,
            webhook_uri: None,
            webhook_secret: String::from("patreon-sandbox-webhook-secret"),
        }
    }
}

/// An account, and its membership in the one campaign that there is.
#[derive(Clone, Serialize)]
pub struct Patron {
    pub id: String,
    pub full_name: String,
    pub member_id: String,
    /// `None`: it never paid.
    pub patron_status: Option<String>,
    /// Ids of the tiers that it is entitled to.
    pub tiers: BTreeSet<String>,
}

/// What a code or token allows.
#[derive(Clone)]
struct Grant {
    patron: String,
    scopes: Vec<String>,
    redirect_uri: String,
    expires_ms: u64,
}

pub const CAMPAIGN: &str = "7700";
/// Id, title, cents.
pub const TIERS: [(&str, &str, u64); 3] =
    [("7001", "Supporter", 300), ("7002", "Patron", 900), ("7003", "Benefactor", 2500)];

const REFRESH: Operation = Operation::new("oauth.refresh", "POST", "/api/oauth2/token");

const OPERATIONS: [Operation; 5] = [
    Operation::new("oauth.authorize", "GET", "/oauth2/authorize"),
    Operation::new("oauth.token", "POST", "/api/oauth2/token"),
    REFRESH,
    Operation::new("identity", "GET", "/api/oauth2/v2/identity"),
    Operation::new("campaign.members", "GET", "/api/oauth2/v2/campaigns/:id/members"),
];

impl Patreon {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn reset(&self) {
        *self.world() = World::default();
    }
}

impl World {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        900_000 + self.last_id
    }
}

fn refusal(status: u16, code: &str, detail: &str) -> Answer {
    let id = hex::encode(rand::random::<[u8; 16]>());
    let error = json!({"code_name": code, "status": status.to_string(), "title": code, "detail": detail, "id": id});
    Answer::json(status, json!({"errors": [error]}))
}

const ERRORS: [(&str, u16, &str); 4] = [
    ("unauthorized", 401, "Unauthorized"),
    ("forbidden", 403, "Forbidden"),
    ("internal", 500, "InternalServerError"),
    ("unavailable", 503, "ServiceUnavailable"),
];

impl Twin for Patreon {
    fn service(&self) -> &'static str {
        "patreon"
    }

    fn prefix(&self) -> &'static str {
        "/patreon"
    }

    fn operations(&self) -> &'static [Operation] {
        &OPERATIONS
    }

    fn refine(&self, operation: &'static Operation, call: &Call) -> &'static Operation {
        let refreshes = || call.form().iter().any(|(name, value)| name == "grant_type" && value == "refresh_token");
        if operation.name == "oauth.token" && refreshes() { &REFRESH } else { operation }
    }

    fn account(&self, call: &Call) -> Option<String> {
        let world = self.world();
        call.bearer().and_then(|token| world.access_tokens.get(token)).map(|grant| grant.patron.clone())
    }

    fn find_account(&self, id_or_name: &str) -> Option<String> {
        let world = self.world();
        let found = world.patrons.values().find(|patron| patron.id == id_or_name || patron.full_name == id_or_name);
        found.map(|patron| patron.id.clone())
    }

    fn serve(&self, operation: Option<&'static Operation>, call: &Call, _twist: Option<&Twist>) -> Answer {
        let Some(operation) = operation else { return refusal(404, "NotFound", "There is nothing here.") };
        let mut world = self.world();
        if operation.name == "oauth.authorize" {
            return authorize::page(&mut world, call);
        }
        if call.header("user-agent").is_none_or(str::is_empty) {
            return refusal(403, "Forbidden", "Requests need a User-Agent.");
        }
        let answer = match operation.name {
            "oauth.token" => oauth::exchange_code(&mut world, call),
            "oauth.refresh" => oauth::refresh(&mut world, call),
            "identity" => resources::identity(&world, call),
            _ => {
                let campaign = operation.captures(&call.path).and_then(|ids| ids.first().copied());
                resources::members(&world, call, campaign.unwrap_or_default())
            }
        };
        answer.unwrap_or_else(|refusal| refusal)
    }

    fn loggable(&self, _operation: &'static str, _call: &Call) -> Option<String> {
        None
    }

    fn errors(&self) -> Vec<&'static str> {
        ERRORS.iter().map(|(name, ..)| *name).chain(["invalid_grant"]).collect()
    }

    fn error(&self, name: &str) -> Option<Answer> {
        if name == "invalid_grant" {
            return Some(oauth::refused("invalid_grant"));
        }
        ERRORS.iter().find(|(known, ..)| *known == name).map(|(_, status, code)| refusal(*status, code, "As ordered."))
    }

    fn rate_limited(&self, _operation: &'static str, reset_in_s: u64) -> Answer {
        let error = json!({"code_name": "RequestThrottled", "status": "429", "title": "Too many requests",
            "detail": "Slow down.", "id": "0", "retry_after_seconds": reset_in_s});
        Answer::json(429, json!({"errors": [error]}))
    }

    fn twists(&self) -> &'static [&'static str] {
        &[]
    }

    fn twist_operation(&self) -> &'static str {
        "identity"
    }

    fn check_twist(&self, name: &str, _value: &Value) -> Result<(), String> {
        Err(format!("patreon has no effect `{name}`"))
    }
}
