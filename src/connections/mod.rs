//! A user's authorised accounts: kept with their tokens encrypted, refreshed by one hand at a time.
//!
//! Tokens leave this folder only inside an [`crate::platforms::Account`], for the length of a call to the platform.
//! Nothing here may put one into a log, an error or an answer.

pub mod accounts;
pub mod api;
mod arrival;
mod connect;
pub mod consent;
pub mod consent_api;
pub mod flight;
mod give_back;
pub mod job;
mod proof;
pub mod store;

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use accounts::{Accounts, TokenTrouble};
pub use give_back::{GiveBackTokens, GivenBack};
pub use job::RefreshToken;

use crate::{
    ids::{ConnectionId, TenantId},
    jobs::job::stored_names,
    platforms::{Explanation, Platform},
};

stored_names! {
    ConnectionState {
        Active = "active",
        /// Its owner has to authorise it again; what waits for it is parked.
        NeedsReconnect = "needs_reconnect",
        /// Disconnected by its owner: kept for the publications that speak of it, with its tokens until they are given
        /// back.
        Removed = "removed",
    }
}

/// A connection without its secrets.
#[derive(Debug, Clone)]
pub struct Connection {
    pub id: ConnectionId,
    pub tenant: TenantId,
    pub platform: Platform,
    pub remote_account_id: String,
    pub username: String,
    pub display_name: String,
    pub state: ConnectionState,
    pub problem: Option<Explanation>,
    pub access_expires_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

/// What jobs that wait for a connection are parked on.
pub fn wake_key(connection: ConnectionId) -> String {
    format!("connection:{connection}")
}
