//! Memberships on Patreon that give plans: a user links their Patreon account, and the tiers that it is entitled to
//! are worth what `patreon_tiers` says.
//!
//! A plan that a membership gives is a lease: each look that finds the entitlement renews it for the time of grace.
//! Nothing ever has to be taken back for a membership that lapsed, was charged back, or cannot be looked at any more.

pub mod api;
mod arrival;
mod client;
mod job;
mod link;
mod membership;
mod store;
pub mod tiers;
mod upkeep;
pub mod webhook;

use secrecy::SecretString;

use crate::{
    config::PatreonConfig,
    crypto::{Keyring, Place},
    ids::PatreonLinkId,
    rotation::SealedColumn,
};

pub use client::{PatreonError, Tokens};
pub use job::ReadMembership;
pub use upkeep::PatreonUpkeep;
pub use webhook::WebhookEndpoint;

/// A service of the API and of the ops workers.
pub struct Patreon {
    client: client::Client,
    keyring: Keyring,
    config: PatreonConfig,
}

impl Patreon {
    pub fn new(config: &PatreonConfig, http: reqwest::Client, keyring: Keyring) -> Self {
        Self { client: client::Client::new(config, http), keyring, config: config.clone() }
    }

    fn seal(&self, id: PatreonLinkId, tokens: &Tokens) -> store::Sealed {
        let seal = |column, token: &SecretString| self.keyring.encrypt(place(column, id), token);
        store::Sealed {
            access: seal(ACCESS, &tokens.access),
            refresh: seal(REFRESH, &tokens.refresh),
            expires_in: tokens.expires_in,
        }
    }
}

const ACCESS: &str = "access_token";
const REFRESH: &str = "refresh_token";

fn place(column: &'static str, id: PatreonLinkId) -> Place {
    Place::new("patreon_links", column, id.uuid())
}

/// What is encrypted here.
pub const SEALED: [SealedColumn; 2] = [
    SealedColumn {
        table: "patreon_links",
        column: ACCESS,
        row: "id",
        position: "0::smallint",
        place: |row, _| place(ACCESS, PatreonLinkId::from_uuid(row)),
    },
    SealedColumn {
        table: "patreon_links",
        column: REFRESH,
        row: "id",
        position: "0::smallint",
        place: |row, _| place(REFRESH, PatreonLinkId::from_uuid(row)),
    },
];
