//! The API's way to the database: every connection is somebody's.
//!
//! Its sessions have a role that row level security binds ([`super::SessionRole::Api`]). Taking a connection says whose
//! call it serves, in the look that tells whether the connection is alive; giving it back says that it is nobody's
//! again, in the look at that place. Neither costs a round trip of its own. Whoever forgets to say who is calling gets
//! no row.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use sqlx::{PgConnection, PgPool, Postgres, Transaction, pool::PoolConnection};
use tokio::sync::OnceCell;

use super::{SIGN_OF_LIFE, Session, pooler, within};
use crate::{
    config::DatabaseConfig,
    identity::Caller,
    ids::{TenantId, UserId},
};

/// Whose rows a connection sees: a verified [`Caller`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenancy {
    tenant: TenantId,
    /// `None`: rows about people are not seen at all.
    user: Option<UserId>,
}

impl Tenancy {
    /// For services that workers use too, which are told the tenant and not who is calling: the workspace's things,
    /// and nothing about people.
    pub(crate) const fn of_things(tenant: TenantId) -> Self {
        Self { tenant, user: None }
    }

    pub const fn tenant(self) -> TenantId {
        self.tenant
    }
}

impl From<&Caller> for Tenancy {
    fn from(caller: &Caller) -> Self {
        Self { tenant: caller.tenant, user: Some(caller.user) }
    }
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct TenantDb {
    pool: PgPool,
    session: Arc<Session>,
    /// That sessions are not shared: until then nobody gets one.
    proof: Arc<OnceCell<()>>,
    acquire_timeout: Duration,
}

impl TenantDb {
    /// Connects lazily: a program starts in any order with its servers and is healthy once they are.
    pub fn new(config: &DatabaseConfig, application: &str) -> sqlx::Result<Self> {
        let session = Session::api(config, application)?;
        let pool = session
            .pool_options(config.acquire_timeout, config.max_connections)
            .after_release(|connection, _| Box::pin(async move { belong_to(connection, None).await.map(|()| true) }))
            .connect_lazy_with(session.options());
        Ok(Self { pool, session: Arc::new(session), proof: Arc::default(), acquire_timeout: config.acquire_timeout })
    }

    /// A connection that sees the rows of this call's workspace and user.
    pub async fn of(&self, whose: impl Into<Tenancy>) -> sqlx::Result<PoolConnection<Postgres>> {
        self.take(Some(whose.into())).await
    }

    /// The same in a transaction.
    pub async fn begin(&self, whose: impl Into<Tenancy>) -> sqlx::Result<Transaction<'static, Postgres>> {
        let connection = self.of(whose).await?;
        Transaction::begin(connection, None).await
    }

    /// For what comes before anybody is known, and for what serves many at once: sees no row, and may call the
    /// functions of the schema `app`.
    pub async fn nobody(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        self.take(None).await
    }

    /// Finds out, once, whether a connection is a session of its own; an error until it is known.
    pub async fn prove(&self) -> sqlx::Result<()> {
        let proof = self.proof.get_or_try_init(|| pooler::prove(&self.session));
        let proof = tokio::time::timeout(self.acquire_timeout, proof).await;
        proof.map_err(|_elapsed| sqlx::Error::PoolTimedOut)?.copied()
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// One that shows no sign of life is closed, and the next is tried.
    async fn take(&self, whose: Option<Tenancy>) -> sqlx::Result<PoolConnection<Postgres>> {
        self.prove().await?;
        let until = Instant::now() + self.acquire_timeout;
        loop {
            let mut connection = self.pool.acquire().await?;
            match belong_to(&mut connection, whose).await {
                Ok(()) => return Ok(connection),
                Err(error) => {
                    // Without a farewell, which would wait for the network too.
                    drop(connection.detach());
                    if Instant::now() >= until {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// For the whole session: it serves one call at a time, and no statement of a call runs outside of it.
async fn belong_to(connection: &mut PgConnection, whose: Option<Tenancy>) -> sqlx::Result<()> {
    let tenant = whose.map(|whose| whose.tenant.uuid().to_string()).unwrap_or_default();
    let user = whose.and_then(|whose| whose.user);
    let claims = user.map(|user| json!({ "sub": user.uuid(), "role": "authenticated" }).to_string());
    let claims = claims.unwrap_or_default();
    let said =
        sqlx::query("select set_config('multivio.tenant', $1, false), set_config('request.jwt.claims', $2, false)")
            .bind(tenant)
            .bind(claims)
            .execute(connection);
    within(SIGN_OF_LIFE, said).await.map(drop)
}
