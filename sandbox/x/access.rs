//! Who may do what: bearer tokens, scopes per route, suspended accounts, rate windows.

use super::{
    X, refusals,
    store::{Account, World},
};
use crate::{
    clock,
    exchange::{Answer, Call},
};

/// The account and app behind an admitted call.
pub struct Caller {
    pub account: Option<Account>,
}

impl Caller {
    /// The user, where only a user may call.
    pub fn user(&self) -> Result<&Account, Answer> {
        self.account.as_ref().ok_or_else(refusals::unsupported_authentication)
    }
}

/// A1: the scopes of each route, and whether an app-only token will do.
fn requirements(operation: &str) -> (&'static [&'static str], bool) {
    match operation {
        "tweets.create" | "tweets.delete" => (&["tweet.read", "tweet.write", "users.read"], false),
        "users.me" => (&["tweet.read", "users.read"], false),
        "media.upload" | "media.status" | "media.initialize" | "media.append" | "media.finalize" | "media.metadata" => {
            (&["media.write"], false)
        }
        _ => (&["tweet.read", "users.read"], true),
    }
}

impl X {
    pub(super) fn admit(&self, operation: &str, call: &Call) -> Result<Caller, Answer> {
        let (scopes, app_only_will_do) = requirements(operation);
        let token = call.bearer().ok_or_else(refusals::unauthorized)?; // A6: 401
        let mut world = self.world();
        let grant = world.access_tokens.get(token).cloned().ok_or_else(refusals::unauthorized)?; // A6: 401
        if grant.expires_ms <= clock::now_ms() {
            return Err(refusals::unauthorized()); // A1: two hours; A6: 401
        }
        let account = match &grant.account {
            Some(id) => Some(world.accounts.get(id).cloned().ok_or_else(refusals::unauthorized)?),
            None if app_only_will_do => None,
            None => return Err(refusals::unsupported_authentication()), // A1: app-only tokens cannot post
        };
        if let Some(account) = &account {
            if let Some(missing) = scopes.iter().find(|scope| !grant.scopes.iter().any(|granted| granted == *scope)) {
                return Err(refusals::missing_scope(missing)); // A6: 403 missing scope
            }
            if account.suspended {
                return Err(refusals::user_suspended()); // A6: 403 user-suspended
            }
            if account.locked {
                return Err(refusals::account_locked()); // A6: 403 code 326
            }
        }
        let user = account.as_ref().map_or("-", |account| account.id.as_str());
        let World { windows, settings, .. } = &mut *world;
        windows.count(settings, operation, user, &grant.client_id)?; // A7: 429
        Ok(Caller { account })
    }

    /// A7: what is left of the caller's window, on every answer.
    pub(super) fn with_rate_headers(&self, operation: &str, call: &Call, answer: Answer) -> Answer {
        let mut world = self.world();
        let grant = call.bearer().and_then(|token| world.access_tokens.get(token));
        let Some(user) = grant.map(|grant| grant.account.clone().unwrap_or_else(|| String::from("-"))) else {
            return answer;
        };
        let World { windows, settings, .. } = &mut *world;
        windows.headers(settings, operation, &user, answer)
    }
}
