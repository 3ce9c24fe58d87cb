//! An account whose owner the platform has named is kept with its tokens; the pair that it had before goes back.

use secrecy::SecretString;
use sqlx::PgConnection;

use super::{
    Accounts, GiveBackTokens,
    store::{self, Expires, Sealed},
    wake_key,
};
use crate::{
    ids::{ConnectionId, TenantId},
    jobs::{Engine, EnqueueError, Ticket},
    plans::{self, Counted, PlanError},
    platforms::Platform,
};

/// Why an account was not connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("the jobs that look after its tokens could not be written")]
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

/// An account that is connected once the transaction is committed.
pub struct Connected {
    pub id: ConnectionId,
    /// To be rung after the commit.
    pub tickets: Vec<Ticket>,
}

impl Accounts {
    /// Adds an account, or connects again the one that is there; wakes what waited for it, and lets a job give the pair
    /// back that it had before.
    pub async fn connect(
        &self,
        engine: &Engine,
        tx: &mut PgConnection,
        tenant: TenantId,
        new: &NewAccount<'_>,
    ) -> Result<Connected, ConnectError> {
        // Locked until the end of the transaction: nobody trades the pair that is read below.
        let known = store::find_account(tx, tenant, new.platform, new.remote_account_id).await?;
        let id = known.unwrap_or_else(ConnectionId::new);
        let mut tickets = Vec::new();
        if known.is_some() {
            tickets = self.lay_aside(engine, tx, tenant, id, new).await?;
        }
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
        Ok(Connected { id, tickets })
    }

    /// Keeps the pair that is about to be replaced in a row of its own, as that of an account that is disconnected, for
    /// the job that gives it back: whatever looks after such rows (rotation, erasure, the end after a day) looks after
    /// this one. A pair of the same consent as the new one stays: giving it back would end the new one too.
    ///
    /// Read in a session of this process and not of the call, which may not read tokens.
    async fn lay_aside(
        &self,
        engine: &Engine,
        tx: &mut PgConnection,
        tenant: TenantId,
        id: ConnectionId,
        new: &NewAccount<'_>,
    ) -> Result<Vec<Ticket>, ConnectError> {
        let takes_back = self.connectors().get(new.platform).is_some_and(|connector| connector.revokes_one_alone());
        let Some(old) = store::sealed(engine.db(), id).await?.filter(|_| takes_back) else { return Ok(Vec::new()) };
        let (access, refresh) = match self.tokens_of(&old) {
            Ok((Some(access), refresh)) => (access, refresh),
            Ok((None, _)) => return Ok(Vec::new()),
            Err(error) => {
                tracing::warn!(connection = %id, %error, "tokens that cannot be read are replaced and not given back");
                return Ok(Vec::new());
            }
        };
        let kept = [Some(&new.access_token), new.refresh_token.as_ref()];
        if super::give_back::share(&[Some(&access), refresh.as_ref()], &kept) {
            return Ok(Vec::new());
        }
        let aside = ConnectionId::new();
        let Sealed { access, refresh, .. } = self.seal(aside, &access, refresh.as_ref(), Expires::Never);
        store::lay_aside(tx, aside, &old, &access, refresh.as_deref()).await?;
        Ok(engine.enqueue_in(tx, &[GiveBackTokens::of_replaced(aside, tenant)]).await?)
    }
}
