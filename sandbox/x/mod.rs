//! The twin of X: OAuth 2, posts, the user's timeline and media upload, after the X API facts (sections A1-A9).
//!
//! Every refusal names its section. It shares no type and no constant with the product's connector: what both
//! got wrong would otherwise look right.

mod access;
mod authorize;
mod compose;
pub mod control;
mod gif;
mod image;
mod links;
mod media;
mod mp4;
mod named;
mod oauth;
mod rates;
mod refusals;
mod render;
mod schema;
mod settings;
pub mod store;
mod text;
mod timeline;
mod tweets;
mod users;

/// Small whole files for tests.
#[cfg(test)]
pub mod test_files {
    pub use super::{image::tests::tiny_png, mp4::tests::tiny_mp4};
}

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
pub use settings::Settings;
use store::World;

use crate::{
    exchange::{Answer, Call, Operation},
    faults::Twist,
    gate::Twin,
};

#[derive(Default)]
pub struct X(Mutex<World>);

const REFRESH: Operation = Operation::new("oauth2.refresh", "POST", "/2/oauth2/token");

const OPERATIONS: [Operation; 16] = [
    Operation::new("oauth2.authorize", "GET", "/i/oauth2/authorize"),
    Operation::new("oauth2.token", "POST", "/2/oauth2/token"),
    REFRESH,
    Operation::new("oauth2.revoke", "POST", "/2/oauth2/revoke"),
    Operation::new("users.me", "GET", "/2/users/me"),
    Operation::new("users.tweets", "GET", "/2/users/:id/tweets"),
    Operation::new("tweets.create", "POST", "/2/tweets"),
    Operation::new("tweets.lookup", "GET", "/2/tweets"),
    Operation::new("tweets.get", "GET", "/2/tweets/:id"),
    Operation::new("tweets.delete", "DELETE", "/2/tweets/:id"),
    Operation::new("media.upload", "POST", "/2/media/upload"),
    Operation::new("media.status", "GET", "/2/media/upload"),
    Operation::new("media.initialize", "POST", "/2/media/upload/initialize"),
    Operation::new("media.append", "POST", "/2/media/upload/:id/append"),
    Operation::new("media.finalize", "POST", "/2/media/upload/:id/finalize"),
    Operation::new("media.metadata", "POST", "/2/media/metadata"),
];

impl X {
    /// The twin's whole state. Held for lookups and changes only, never while bytes are read or decoded.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Twin for X {
    fn service(&self) -> &'static str {
        "x"
    }

    fn prefix(&self) -> &'static str {
        "/x"
    }

    fn operations(&self) -> &'static [Operation] {
        &OPERATIONS
    }

    fn refine(&self, operation: &'static Operation, call: &Call) -> &'static Operation {
        let refreshes = || call.form().iter().any(|(name, value)| name == "grant_type" && value == "refresh_token");
        if operation.name == "oauth2.token" && refreshes() { &REFRESH } else { operation }
    }

    fn account(&self, call: &Call) -> Option<String> {
        let world = self.world();
        if let Some(token) = call.bearer() {
            return world.access_tokens.get(token).and_then(|grant| grant.account.clone());
        }
        if !call.path.starts_with("/2/oauth2/") {
            return None;
        }
        let form = call.form();
        let value = |wanted: &str| form.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let refresh = value("refresh_token").or(value("token")).and_then(|token| world.refresh_tokens.get(token));
        let code = value("code").and_then(|code| world.codes.get(code));
        refresh.and_then(|grant| grant.account.clone()).or_else(|| code.map(|code| code.account.clone()))
    }

    fn find_account(&self, id_or_name: &str) -> Option<String> {
        let world = self.world();
        let account = world.account_named(id_or_name);
        account.map(|account| account.id.clone())
    }

    fn serve(&self, operation: Option<&'static Operation>, call: &Call, twist: Option<&Twist>) -> Answer {
        let Some(operation) = operation else {
            return refusals::no_such_route(&call.path);
        };
        let captured = operation.captures(&call.path).and_then(|ids| ids.first().copied()).unwrap_or_default();
        let result = match operation.name {
            "oauth2.authorize" => return authorize::page(self, call),
            "oauth2.token" => return oauth::exchange_code(self, call),
            "oauth2.refresh" => return oauth::refresh(self, call),
            "oauth2.revoke" => return oauth::revoke(self, call),
            name => self.admit(name, call).and_then(|caller| match name {
                "users.me" => users::me(self, call, &caller),
                "users.tweets" => timeline::of_user(self, call, captured),
                "tweets.create" => tweets::create(self, call, &caller),
                "tweets.lookup" => timeline::lookup(self, call, &caller),
                "tweets.get" => timeline::get(self, call, &caller, captured),
                "tweets.delete" => tweets::delete(self, &caller, captured),
                "media.upload" => media::one_shot(self, call, &caller),
                "media.status" => media::status(self, call, &caller),
                "media.initialize" => media::initialize(self, call, &caller),
                "media.append" => media::append(self, call, &caller, captured),
                "media.finalize" => media::finalize(self, &caller, captured, twist),
                "media.metadata" => media::metadata(self, call, &caller),
                _ => Err(refusals::no_such_route(&call.path)),
            }),
        };
        let answer = result.unwrap_or_else(|refusal| refusal);
        self.with_rate_headers(operation.name, call, answer)
    }

    fn loggable(&self, operation: &'static str, call: &Call) -> Option<String> {
        let is_json = call.content_type() == "application/json";
        let carries_media = operation == "media.append";
        (is_json && !operation.starts_with("oauth2.") && !carries_media)
            .then(|| String::from_utf8_lossy(&call.body).into_owned())
    }

    fn errors(&self) -> Vec<&'static str> {
        named::NAMED.iter().map(|(name, _)| *name).collect()
    }

    fn error(&self, name: &str) -> Option<Answer> {
        named::NAMED.iter().find(|(known, _)| *known == name).map(|(_, answer)| answer())
    }

    fn rate_limited(&self, operation: &'static str, reset_in_s: u64) -> Answer {
        rates::refused(operation, reset_in_s)
    }

    fn twists(&self) -> &'static [&'static str] {
        &media::TWISTS
    }

    fn twist_operation(&self) -> &'static str {
        "media.finalize"
    }

    fn check_twist(&self, name: &str, value: &Value) -> Result<(), String> {
        media::check_twist(name, value)
    }

    fn common_headers(&self) -> Vec<(String, String)> {
        let transaction = hex::encode(rand::random::<[u8; 8]>());
        // A1: answers carry the version for information; A6: clients log the transaction id.
        vec![(String::from("api-version"), String::from("2.167")), (String::from("x-transaction-id"), transaction)]
    }
}
