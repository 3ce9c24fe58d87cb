//! The tables of links to Patreon. Secrets go in and out as ciphertext only.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, PgExecutor};

use super::client::Identity;
use crate::ids::{PatreonLinkId, TenantId, UserId};

/// How long somebody may think about it at Patreon.
const FLOW_LIFETIME: Duration = Duration::from_secs(10 * 60);
/// Longer than the two calls that what they bring back leads to may take.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// Begins a linking; an earlier one of the same user ends. When it ends by itself.
pub async fn begin(
    tx: &mut PgConnection,
    state_hash: [u8; 32],
    tenant: TenantId,
    user: UserId,
    challenge: [u8; 32],
) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar(
        "insert into patreon_flows (state_hash, tenant_id, user_id, challenge, expires_at) \
         values ($1, $2, $3, $4, now() + make_interval(secs => $5)) \
         on conflict (tenant_id, user_id) do update set state_hash = excluded.state_hash, \
           challenge = excluded.challenge, expires_at = excluded.expires_at, taken_at = null returning expires_at",
    )
    .bind(state_hash.as_slice())
    .bind(tenant)
    .bind(user)
    .bind(challenge.as_slice())
    .bind(FLOW_LIFETIME.as_secs_f64())
    .fetch_one(tx)
    .await
}

/// What became of a state that came back.
pub enum Taken {
    /// Ours to work on, and nobody else's from now on. Holds the challenge.
    Now(Vec<u8>),
    /// Another request brings it in at this moment.
    UnderWay,
    /// There is none of this user in this workspace, or it is over; somebody else's stays untouched.
    Unknown,
}

/// Takes a linking, which works once. Whoever comes second waits for the first one's commit and sees it taken.
pub async fn take_flow(
    tx: &mut PgConnection,
    state_hash: [u8; 32],
    tenant: TenantId,
    user: UserId,
) -> sqlx::Result<Taken> {
    let row: Option<(Vec<u8>, bool)> = sqlx::query_as(
        "select challenge, taken_at is not null from patreon_flows \
         where state_hash = $1 and tenant_id = $2 and user_id = $3 and expires_at > now() for update",
    )
    .bind(state_hash.as_slice())
    .bind(tenant)
    .bind(user)
    .fetch_optional(&mut *tx)
    .await?;
    let challenge = match row {
        None => return Ok(Taken::Unknown),
        Some((_, true)) => return Ok(Taken::UnderWay),
        Some((challenge, false)) => challenge,
    };
    sqlx::query(
        "update patreon_flows set taken_at = now(), expires_at = now() + make_interval(secs => $2) \
         where state_hash = $1",
    )
    .bind(state_hash.as_slice())
    .bind(UNDER_WAY.as_secs_f64())
    .execute(tx)
    .await?;
    Ok(Taken::Now(challenge))
}

/// Ends a linking that was taken. `false`: it is gone, because its user began anew, or is no owner of the workspace
/// any more.
pub async fn end_flow(
    db: impl PgExecutor<'_>,
    state_hash: [u8; 32],
    tenant: TenantId,
    user: UserId,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "delete from patreon_flows \
         where state_hash = $1 and tenant_id = $2 and user_id = $3 and taken_at is not null",
    )
    .bind(state_hash.as_slice())
    .bind(tenant)
    .bind(user)
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Tokens as they are kept.
pub struct Sealed {
    pub access: Vec<u8>,
    pub refresh: Vec<u8>,
    pub expires_in: Duration,
}

/// In the place of the link that the workspace had. Whose account that was.
pub async fn put(
    tx: &mut PgConnection,
    id: PatreonLinkId,
    tenant: TenantId,
    linked_by: UserId,
    identity: &Identity,
    tokens: &Sealed,
) -> sqlx::Result<Option<String>> {
    let before = remove(&mut *tx, tenant).await?;
    sqlx::query(
        "insert into patreon_links (id, tenant_id, linked_by, patreon_user_id, access_token, refresh_token, \
           access_expires_at, patron_status, tiers) \
         values ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7), $8, $9)",
    )
    .bind(id)
    .bind(tenant)
    .bind(linked_by)
    .bind(&identity.user_id)
    .bind(&tokens.access)
    .bind(&tokens.refresh)
    .bind(tokens.expires_in.as_secs_f64())
    .bind(&identity.patron_status)
    .bind(list(&identity.tiers))
    .execute(tx)
    .await?;
    Ok(before)
}

/// Whose account was linked.
pub async fn remove(tx: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("delete from patreon_links where tenant_id = $1 returning patreon_user_id")
        .bind(tenant)
        .fetch_optional(tx)
        .await
}

/// A link without its secrets.
#[derive(Debug, Clone, FromRow)]
pub struct LinkRow {
    pub state: String,
    pub patreon_user_id: String,
    pub patron_status: Option<String>,
    pub tiers: Vec<String>,
    pub read_at: DateTime<Utc>,
    pub linked_by: UserId,
    pub created_at: DateTime<Utc>,
}

pub async fn get(db: impl PgExecutor<'_>, tenant: TenantId) -> sqlx::Result<Option<LinkRow>> {
    sqlx::query_as(
        "select state, patreon_user_id, patron_status, tiers, read_at, linked_by, created_at from patreon_links \
         where tenant_id = $1",
    )
    .bind(tenant)
    .fetch_optional(db)
    .await
}

/// A link with its secrets, still encrypted.
#[derive(FromRow)]
pub struct SealedLink {
    pub id: PatreonLinkId,
    pub access_token: Vec<u8>,
    pub refresh_token: Vec<u8>,
    pub generation: i32,
    pub state: String,
    /// By the server's clock.
    pub expires_in_s: f64,
}

pub async fn sealed(db: impl PgExecutor<'_>, id: PatreonLinkId) -> sqlx::Result<Option<SealedLink>> {
    sqlx::query_as(
        "select id, access_token, refresh_token, generation, state, \
           extract(epoch from access_expires_at - now())::float8 as expires_in_s from patreon_links where id = $1",
    )
    .bind(id)
    .fetch_optional(db)
    .await
}

/// Keeps a new pair in place of the one it was traded for, also when another run was refused with that one meanwhile.
/// `false`: that one is not the kept one any more.
pub async fn save_pair(
    db: impl PgExecutor<'_>,
    id: PatreonLinkId,
    generation: i32,
    tokens: &Sealed,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update patreon_links set access_token = $3, refresh_token = $4, \
           access_expires_at = now() + make_interval(secs => $5), generation = generation + 1, state = 'active' \
         where id = $1 and generation = $2",
    )
    .bind(id)
    .bind(generation)
    .bind(&tokens.access)
    .bind(&tokens.refresh)
    .bind(tokens.expires_in.as_secs_f64())
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Says that its owner has to link it again, unless the tokens that were refused are not the kept ones any more.
pub async fn broken(db: impl PgExecutor<'_>, id: PatreonLinkId, generation: i32) -> sqlx::Result<bool> {
    let done = sqlx::query("update patreon_links set state = 'broken' where id = $1 and generation = $2")
        .bind(id)
        .bind(generation)
        .execute(db)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes down what was read. `None`: the link is gone. It stays locked until the transaction ends.
pub async fn note_read(
    tx: &mut PgConnection,
    id: PatreonLinkId,
    identity: &Identity,
) -> sqlx::Result<Option<TenantId>> {
    sqlx::query_scalar(
        "update patreon_links set patron_status = $2, tiers = $3, read_at = now() \
         where id = $1 and patreon_user_id = $4 returning tenant_id",
    )
    .bind(id)
    .bind(&identity.patron_status)
    .bind(list(&identity.tiers))
    .bind(&identity.user_id)
    .fetch_optional(tx)
    .await
}

/// The best plan that these tiers are worth, and when a lease of it that begins now ends.
pub async fn worth(
    tx: &mut PgConnection,
    tiers: &BTreeSet<String>,
    grace: Duration,
) -> sqlx::Result<Option<(String, DateTime<Utc>)>> {
    sqlx::query_as(
        "select p.name, now() + make_interval(secs => $2) from patreon_tiers t join plans p on p.name = t.plan \
         where t.tier_id = any($1) order by p.rank desc, p.name limit 1",
    )
    .bind(list(tiers))
    .bind(grace.as_secs_f64())
    .fetch_optional(tx)
    .await
}

#[derive(FromRow)]
pub struct Found {
    pub id: PatreonLinkId,
    pub tenant_id: TenantId,
}

pub async fn of_account(tx: &mut PgConnection, patreon_user_id: &str) -> sqlx::Result<Option<Found>> {
    sqlx::query_as("select id, tenant_id from app.patreon_link($1)").bind(patreon_user_id).fetch_optional(tx).await
}

/// Those that were neither read nor looked for so long, the longest first: one that cannot be read waits for its turn
/// like the others.
pub async fn stale(db: impl PgExecutor<'_>, after: Duration, limit: i64) -> sqlx::Result<Vec<Found>> {
    sqlx::query_as(
        "select id, tenant_id from patreon_links where state = 'active' \
           and looked_at < now() - make_interval(secs => $1) and read_at < now() - make_interval(secs => $1) \
         order by looked_at limit $2",
    )
    .bind(after.as_secs_f64())
    .bind(limit)
    .fetch_all(db)
    .await
}

/// Says that a look at them has begun.
pub async fn looked(db: impl PgExecutor<'_>, id: PatreonLinkId) -> sqlx::Result<()> {
    sqlx::query("update patreon_links set looked_at = now() where id = $1").bind(id).execute(db).await.map(drop)
}

/// Forgets linkings that came to nothing, and what programs before these kept of hints. How many.
pub async fn prune(db: impl PgExecutor<'_>, limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "with flows as (delete from patreon_flows where state_hash in ( \
             select state_hash from patreon_flows where expires_at < now() order by expires_at limit $1) returning 1), \
           hints as (delete from patreon_hints where body_hash in ( \
             select body_hash from patreon_hints where received_at < now() - interval '30 days' \
             order by received_at limit $1) returning 1) \
         select (select count(*) from flows) + (select count(*) from hints)",
    )
    .bind(limit)
    .fetch_one(db)
    .await
}

fn list(tiers: &BTreeSet<String>) -> Vec<&str> {
    tiers.iter().map(String::as_str).collect()
}
