//! Gives an account's tokens back to its platform, for whoever is leaving.

use sqlx::PgPool;

use super::{
    Accounts,
    accounts::{access_place, platform_of, refresh_place},
    job::Seen,
    store,
};
use crate::{ids::ConnectionId, telemetry::chain};

/// What came of offering tokens back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenBack {
    Done,
    /// The platform could not be asked, or did not take them.
    Later,
    /// We cannot read them, or cannot speak with the platform.
    Never,
}

impl Accounts {
    /// Offers them to the platform. Afterwards they are dead, and still kept here.
    pub async fn give_back(&self, db: &PgPool, id: ConnectionId) -> sqlx::Result<GivenBack> {
        let Some(row) = store::sealed(db, id).await? else { return Ok(GivenBack::Done) };
        let Some(connector) = self.connectors().get(platform_of(&row)?) else { return Ok(GivenBack::Never) };
        let kept = [(refresh_place(id), &row.refresh_token), (access_place(id), &row.access_token)];
        let mut given_back = GivenBack::Done;
        for (place, sealed) in kept {
            let Some(sealed) = sealed else { continue };
            let token = match self.keyring().decrypt(place, sealed) {
                Ok(token) => token,
                Err(error) => {
                    tracing::warn!(connection = %id, %error, "a token that cannot be read was not given back");
                    given_back = GivenBack::Never;
                    continue;
                }
            };
            if let Err(error) = connector.revoke(&token, &Seen::default()).await {
                tracing::warn!(connection = %id, error = chain(&error), "a token was not given back");
                return Ok(GivenBack::Later);
            }
        }
        Ok(given_back)
    }
}
