//! An account whose owner the platform has named is kept with its tokens.

use secrecy::SecretString;
use sqlx::PgConnection;

use super::{
    Accounts,
    store::{self, Expires},
    wake_key,
};
use crate::{
    ids::{ConnectionId, TenantId},
    jobs::{Engine, EnqueueError},
    plans::{self, Counted, PlanError},
    platforms::Platform,
};

/// Why an account was not connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("what keeps its tokens fresh could not be written")]
    Enqueue(#[from] EnqueueError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// An account that its platform has named, with tokens for it.
pub struct NewAccount<'a> {
    pub platform: Platform,
    pub remote_account_id: &'a str,
    pub username: &'a str,
    pub display_name: &'a str,
    pub access_token: SecretString,
    pub refresh_token: Option<SecretString>,
    pub expires: Expires,
}

impl Accounts {
    /// Adds an account, or connects again the one that is there; wakes what waited for it. The pair that it had before is
    /// forgotten and not given back: who can tell whether the new one would end with it.
    pub async fn connect(
        &self,
        engine: &Engine,
        tx: &mut PgConnection,
        tenant: TenantId,
        new: &NewAccount<'_>,
    ) -> Result<ConnectionId, ConnectError> {
        let known = store::find_account(tx, tenant, new.platform, new.remote_account_id).await?;
        let id = known.unwrap_or_else(ConnectionId::new);
        let sealed = self.seal(id, &new.access_token, new.refresh_token.as_ref(), new.expires);
        let names = (new.username, new.display_name);
        let renewed = store::put(tx, id, tenant, new.platform, new.remote_account_id, names, &sealed).await?;
        if new.refresh_token.is_some() {
            self.schedule_refresh(engine, tx, tenant, id, renewed).await?;
        }
        if known.is_some() {
            engine.wake(tx, &wake_key(id)).await?;
        } else {
            // Connecting again one that is there is always possible.
            plans::allow(tx, tenant, Counted::Connections).await?;
        }
        Ok(id)
    }
}
