//! On whose behalf a connector calls, and who watches what it does.

use std::time::Duration;

use secrecy::SecretString;

use super::RateWindow;
use crate::ids::ConnectionId;

/// A connection with its tokens in the clear, for the length of a call.
#[derive(Debug, Clone)]
pub struct Account {
    pub connection: ConnectionId,
    /// The platform's id of the account.
    pub remote_id: String,
    pub username: String,
    pub access_token: SecretString,
    /// Raised with every new pair of tokens: tells whether a refused token is still the one that is kept.
    pub generation: i32,
}

/// One call's circumstances.
pub struct Call<'a> {
    pub account: &'a Account,
    pub witness: &'a dyn Witness,
}

/// Told of every exchange with a platform: for the timeline, and for the budgets that its headers speak of.
pub trait Witness: Send + Sync {
    fn saw(&self, exchange: Exchange);
}

/// One request and what came of it, with nothing in it that a timeline may not show: no address, no token, no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The request by name: "create", "append".
    pub what: &'static str,
    /// `None`: no answer came.
    pub status: Option<u16>,
    pub duration_ms: u64,
    /// The platform's own name for the exchange, for its support.
    pub trace_id: Option<String>,
    pub window: Option<RateWindow>,
}

/// New tokens, just received.
#[derive(Debug, Clone)]
pub struct TokenPair {
    pub access_token: SecretString,
    /// `None`: the platform keeps the old one valid.
    pub refresh_token: Option<SecretString>,
    pub expires_in: Duration,
}

/// For callers that have nobody to tell.
#[cfg(test)]
pub struct Unwatched;

#[cfg(test)]
impl Witness for Unwatched {
    fn saw(&self, _exchange: Exchange) {}
}
