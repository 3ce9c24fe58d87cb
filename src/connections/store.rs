//! The `connections` table. Secrets go in and out as ciphertext only.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, PgExecutor, types::Json};

use super::{Connection, ConnectionState};
use crate::{
    identity::Reach,
    ids::{ConnectionId, TenantId},
    platforms::{Explanation, Platform},
};

/// How long a disconnected account's tokens are kept to be given back, at most.
const OFFERED: Duration = Duration::from_secs(24 * 3600);

#[derive(FromRow)]
struct Row {
    id: ConnectionId,
    tenant_id: TenantId,
    platform: String,
    remote_account_id: String,
    username: String,
    display_name: String,
    state: String,
    problem: Option<Json<Explanation>>,
    access_expires_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for Connection {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.id,
            tenant: row.tenant_id,
            platform: stored(&row.platform)?,
            remote_account_id: row.remote_account_id,
            username: row.username,
            display_name: row.display_name,
            state: stored(&row.state)?,
            problem: row.problem.map(|Json(problem)| problem),
            access_expires_at: row.access_expires_at,
            created_at: row.created_at,
        })
    }
}

/// A name from the database as its type; one that a newer version stored is an error and not a guess.
pub fn stored<T: std::str::FromStr<Err = String>>(text: &str) -> sqlx::Result<T> {
    text.parse().map_err(|error: String| sqlx::Error::Decode(error.into()))
}

pub async fn get(db: impl PgExecutor<'_>, reach: Reach<'_>, id: ConnectionId) -> sqlx::Result<Option<Connection>> {
    sqlx::query_as::<_, Row>(
        "select id, tenant_id, platform, remote_account_id, username, display_name, state, problem, \
         access_expires_at, created_at from connections where tenant_id = $1 and id = $2 and state <> 'removed' \
         and ($3::uuid[] is null or id = any($3))",
    )
    .bind(reach.tenant)
    .bind(id)
    .bind(reach.connections)
    .fetch_optional(db)
    .await?
    .map(Connection::try_from)
    .transpose()
}

/// The name of an account, disconnected or not.
pub async fn username(db: impl PgExecutor<'_>, id: ConnectionId) -> sqlx::Result<String> {
    sqlx::query_scalar("select username from connections where id = $1").bind(id).fetch_one(db).await
}

/// Newest first, after the one the page before ended with.
pub async fn list(
    db: impl PgExecutor<'_>,
    reach: Reach<'_>,
    platform: Option<Platform>,
    before: Option<ConnectionId>,
    limit: i64,
) -> sqlx::Result<Vec<Connection>> {
    sqlx::query_as::<_, Row>(
        "select id, tenant_id, platform, remote_account_id, username, display_name, state, problem, \
         access_expires_at, created_at from connections \
         where tenant_id = $1 and state <> 'removed' and ($2::text is null or platform = $2) \
         and ($3::uuid is null or id < $3) and ($5::uuid[] is null or id = any($5)) order by id desc limit $4",
    )
    .bind(reach.tenant)
    .bind(platform.map(Platform::as_str))
    .bind(before)
    .bind(limit)
    .bind(reach.connections)
    .fetch_all(db)
    .await?
    .into_iter()
    .map(Connection::try_from)
    .collect()
}

/// The connections within reach on these platforms, oldest first.
pub async fn on_platforms(
    db: impl PgExecutor<'_>,
    reach: Reach<'_>,
    platforms: &[Platform],
) -> sqlx::Result<Vec<Connection>> {
    let names: Vec<_> = platforms.iter().map(|platform| platform.as_str().to_owned()).collect();
    sqlx::query_as::<_, Row>(
        "select id, tenant_id, platform, remote_account_id, username, display_name, state, problem, \
         access_expires_at, created_at from connections \
         where tenant_id = $1 and state <> 'removed' and platform = any($2) \
         and ($3::uuid[] is null or id = any($3)) order by id limit 100",
    )
    .bind(reach.tenant)
    .bind(names)
    .bind(reach.connections)
    .fetch_all(db)
    .await?
    .into_iter()
    .map(Connection::try_from)
    .collect()
}

/// The id of an account that is connected already, locked until the transaction ends.
pub async fn find_account(
    tx: &mut PgConnection,
    tenant: TenantId,
    platform: Platform,
    remote_account_id: &str,
) -> sqlx::Result<Option<ConnectionId>> {
    sqlx::query_scalar(
        "select id from connections where tenant_id = $1 and platform = $2 and remote_account_id = $3 \
         and state <> 'removed' for update",
    )
    .bind(tenant)
    .bind(platform.as_str())
    .bind(remote_account_id)
    .fetch_optional(tx)
    .await
}

/// Tokens as they are kept.
pub struct Sealed {
    pub access: Vec<u8>,
    pub refresh: Option<Vec<u8>>,
    pub expires: Expires,
}

#[derive(Debug, Clone, Copy)]
pub enum Expires {
    Never,
    At(DateTime<Utc>),
    /// From now on the server's clock.
    In(Duration),
}

impl Expires {
    fn columns(self) -> (Option<DateTime<Utc>>, Option<f64>) {
        match self {
            Self::Never => (None, None),
            Self::At(at) => (Some(at), None),
            Self::In(duration) => (None, Some(duration.as_secs_f64())),
        }
    }
}

/// What a change of tokens leads to.
#[derive(Debug, Clone, Copy, FromRow)]
pub struct Renewed {
    pub generation: i32,
    pub access_expires_at: Option<DateTime<Utc>>,
}

/// Adds an account, or gives the one that is connected already new tokens and an active state.
pub async fn put(
    tx: &mut PgConnection,
    id: ConnectionId,
    tenant: TenantId,
    platform: Platform,
    remote_account_id: &str,
    names: (&str, &str),
    tokens: &Sealed,
) -> sqlx::Result<Renewed> {
    let (at, seconds) = tokens.expires.columns();
    // The tokens are named as they were sent and not as `excluded`: the API may write them, and not read them.
    sqlx::query_as(
        "insert into connections (id, tenant_id, platform, remote_account_id, username, display_name, \
           access_token, refresh_token, access_expires_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, now() + make_interval(secs => $10))) \
         on conflict (id) do update set username = excluded.username, display_name = excluded.display_name, \
           access_token = $7, refresh_token = $8, proven_at = null, \
           access_expires_at = excluded.access_expires_at, generation = connections.generation + 1, \
           state = 'active', problem = null, refreshed_at = now(), updated_at = now() \
         returning generation, access_expires_at",
    )
    .bind(id)
    .bind(tenant)
    .bind(platform.as_str())
    .bind(remote_account_id)
    .bind(names.0)
    .bind(names.1)
    .bind(&tokens.access)
    .bind(&tokens.refresh)
    .bind(at)
    .bind(seconds)
    .fetch_one(tx)
    .await
}

/// The other connections of the same account that have tokens, whoever has them.
pub async fn others_of_account(
    db: impl PgExecutor<'_>,
    than: &SealedConnection,
) -> sqlx::Result<Vec<SealedConnection>> {
    sqlx::query_as(
        "select id, tenant_id, platform, remote_account_id, username, state, problem, access_token, refresh_token, \
         generation, extract(epoch from access_expires_at - now())::float8 as expires_in_s \
         from connections where platform = $1 and remote_account_id = $2 and id <> $3 and state <> 'removed'",
    )
    .bind(&than.platform)
    .bind(&than.remote_account_id)
    .bind(than.id)
    .fetch_all(db)
    .await
}

/// The generation of the pair that the workspace of the call can trade; `None`: there is nothing to trade.
pub async fn refreshable(db: impl PgExecutor<'_>, id: ConnectionId) -> sqlx::Result<Option<i32>> {
    sqlx::query_scalar("select app.refreshable($1)").bind(id).fetch_one(db).await
}

/// The platform itself has said whose account it is.
pub async fn prove(tx: &mut PgConnection, tenant: TenantId, id: ConnectionId) -> sqlx::Result<()> {
    sqlx::query("update connections set proven_at = now() where tenant_id = $1 and id = $2")
        .bind(tenant)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

/// A connection with its secrets, still encrypted.
#[derive(FromRow)]
pub struct SealedConnection {
    pub id: ConnectionId,
    pub tenant_id: TenantId,
    pub platform: String,
    pub remote_account_id: String,
    pub username: String,
    pub state: String,
    pub problem: Option<Json<Explanation>>,
    pub access_token: Option<Vec<u8>>,
    pub refresh_token: Option<Vec<u8>>,
    pub generation: i32,
    /// By the server's clock; `None` never expires.
    pub expires_in_s: Option<f64>,
}

pub async fn sealed(db: impl PgExecutor<'_>, id: ConnectionId) -> sqlx::Result<Option<SealedConnection>> {
    sqlx::query_as(
        "select id, tenant_id, platform, remote_account_id, username, state, problem, access_token, refresh_token, \
         generation, extract(epoch from access_expires_at - now())::float8 as expires_in_s \
         from connections where id = $1",
    )
    .bind(id)
    .fetch_optional(db)
    .await
}

/// Keeps a new pair in place of the one it was traded for. `None`: that one is not the kept one any more, because
/// its owner connected the account again meanwhile.
pub async fn save_pair(
    db: impl PgExecutor<'_>,
    id: ConnectionId,
    generation: i32,
    tokens: &Sealed,
) -> sqlx::Result<Option<Renewed>> {
    let (at, seconds) = tokens.expires.columns();
    sqlx::query_as(
        "update connections set access_token = $3, refresh_token = coalesce($4, refresh_token), \
           access_expires_at = coalesce($5, now() + make_interval(secs => $6)), generation = generation + 1, \
           state = 'active', problem = null, refreshed_at = now(), updated_at = now() \
         where id = $1 and generation = $2 and state <> 'removed' returning generation, access_expires_at",
    )
    .bind(id)
    .bind(generation)
    .bind(&tokens.access)
    .bind(&tokens.refresh)
    .bind(at)
    .bind(seconds)
    .fetch_optional(db)
    .await
}

/// Says that the owner has to act, unless the tokens that were refused are not the kept ones any more.
pub async fn needs_reconnect(
    db: impl PgExecutor<'_>,
    id: ConnectionId,
    generation: i32,
    problem: &Explanation,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update connections set state = 'needs_reconnect', problem = $3, updated_at = now() \
         where id = $1 and generation = $2 and state <> 'removed'",
    )
    .bind(id)
    .bind(generation)
    .bind(Json(problem))
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Disconnects: nothing uses the tokens any more. They stay until they were given back ([`super::GiveBackTokens`]).
pub async fn remove(tx: &mut PgConnection, tenant: TenantId, id: ConnectionId) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update connections set state = 'removed', problem = null, generation = generation + 1, updated_at = now() \
         where tenant_id = $1 and id = $2 and state <> 'removed'",
    )
    .bind(tenant)
    .bind(id)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Nobody has this pair any more, whatever the account was before. `false`: another one is kept by now.
pub async fn forget_tokens(db: impl PgExecutor<'_>, id: ConnectionId, generation: i32) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update connections set state = 'removed', access_token = null, refresh_token = null, problem = null, \
           generation = generation + 1, updated_at = now() where id = $1 and generation = $2",
    )
    .bind(id)
    .bind(generation)
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// For upkeep: the tokens of accounts that were disconnected so long ago that their platform is asked no more.
pub async fn forget_left_tokens(db: impl PgExecutor<'_>) -> sqlx::Result<u64> {
    let gone = sqlx::query(
        "update connections set access_token = null, refresh_token = null where state = 'removed' \
           and access_token is not null and updated_at < now() - make_interval(secs => $1)",
    )
    .bind(OFFERED.as_secs_f64())
    .execute(db)
    .await?;
    Ok(gone.rows_affected())
}

impl ConnectionState {
    /// # Errors
    /// When a newer version stored a state that this one does not know.
    pub fn of(row: &SealedConnection) -> sqlx::Result<Self> {
        stored(&row.state)
    }
}
