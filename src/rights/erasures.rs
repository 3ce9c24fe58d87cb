//! The `erasures` table: what is to be erased, and what the rest of the product asks about it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, FromRow, PgExecutor};
use uuid::Uuid;

use super::tables::{ERASED, PEOPLE};
use crate::ids::{ErasureId, TenantId, UserId};

/// For how long after its end something may still be written into what was erased: longer than any request or run lasts.
const WATCHED: Duration = Duration::from_secs(2 * 24 * 3600);

/// Who or what is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Workspace(TenantId),
    User(UserId),
}

#[derive(Debug, Clone, Copy)]
pub struct Erasure {
    pub subject: Subject,
    pub requested_at: DateTime<Utc>,
    /// The server's time.
    pub now: DateTime<Utc>,
}

#[derive(FromRow)]
struct Row {
    kind: String,
    subject: Uuid,
    requested_at: DateTime<Utc>,
    now: DateTime<Utc>,
}

/// `None`: it is done, or there is none.
pub async fn open(db: impl PgExecutor<'_>, id: ErasureId) -> sqlx::Result<Option<Erasure>> {
    let row: Option<Row> = sqlx::query_as(
        "select kind, subject, requested_at, now() as now from erasures where id = $1 and finished_at is null",
    )
    .bind(id)
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Erasure {
        subject: match row.kind.as_str() {
            "user" => Subject::User(UserId::from_uuid(row.subject)),
            _ => Subject::Workspace(TenantId::from_uuid(row.subject)),
        },
        requested_at: row.requested_at,
        now: row.now,
    }))
}

pub async fn finish(db: impl PgExecutor<'_>, id: ErasureId) -> sqlx::Result<()> {
    sqlx::query("update erasures set finished_at = now() where id = $1").bind(id).execute(db).await?;
    Ok(())
}

/// Those that have not come to their end.
pub async fn all_open(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<ErasureId>> {
    sqlx::query_scalar("select id from erasures where finished_at is null order by id").fetch_all(db).await
}

/// Opens again those of workspaces in which something has been written since: by an upload that was under way for longer
/// than the erasure, say. Not where somebody has begun anew. How many there were.
pub async fn reopen_unclean(db: impl PgExecutor<'_>) -> sqlx::Result<u64> {
    let of_workers = ERASED.iter().filter(|table| !PEOPLE.contains(table));
    let left: Vec<_> =
        of_workers.map(|table| format!("exists (select from {table} t where t.tenant_id = e.subject)")).collect();
    let statement = format!(
        "update erasures e set finished_at = null where e.kind = 'workspace' \
           and e.finished_at > now() - make_interval(secs => $1) and not app.has_workspace(e.subject) and ({})",
        left.join(" or ")
    );
    let done = sqlx::query(AssertSqlSafe(statement)).bind(WATCHED.as_secs_f64()).execute(db).await?;
    Ok(done.rows_affected())
}

/// The workspace itself and who was in it, which are closed to workers. Last; returns how many rows there were.
pub async fn erase_workspace(db: impl PgExecutor<'_>, id: ErasureId) -> sqlx::Result<u64> {
    let gone: i64 = sqlx::query_scalar("select app.erase_workspace($1)").bind(id).fetch_one(db).await?;
    Ok(gone.unsigned_abs())
}

pub async fn note_not_revoked(db: impl PgExecutor<'_>, id: ErasureId) -> sqlx::Result<()> {
    sqlx::query("update erasures set not_revoked = not_revoked + 1 where id = $1").bind(id).execute(db).await?;
    Ok(())
}

/// What a provider calls a user, as it is kept after their end.
pub fn identity_hash(provider: &str, subject: &str) -> [u8; 32] {
    Sha256::new().chain_update(provider).chain_update([0]).chain_update(subject).finalize().into()
}

/// An erasure, for those who believe a token without asking the database for its user.
#[derive(Debug, Clone, Copy, FromRow)]
pub struct Gone {
    pub subject: Uuid,
    /// Seconds of the epoch, rounded up.
    pub requested_at: i64,
    pub is_finished: bool,
    pub changed_at: DateTime<Utc>,
}

/// Those that are new or have changed since the last one known; without one all of them, however old: an operator may make
/// a token that is good for as long as they like.
pub async fn since(db: impl PgExecutor<'_>, known: Option<DateTime<Utc>>) -> sqlx::Result<Vec<Gone>> {
    sqlx::query_as("select subject, requested_at, is_finished, changed_at from app.erased($1)")
        .bind(known)
        .fetch_all(db)
        .await
}

/// A workspace and what its end would mean for others.
#[derive(Debug, Clone, FromRow)]
pub struct Membership {
    pub tenant_id: TenantId,
    pub name: String,
    pub is_owner: bool,
    pub has_others: bool,
    pub has_other_owner: bool,
}

/// Where the user of the call is. The workspaces stay as they are until the transaction ends.
pub async fn memberships(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Membership>> {
    sqlx::query_as("select tenant_id, name, is_owner, has_others, has_other_owner from app.own_memberships()")
        .fetch_all(db)
        .await
}

/// Whether the workspace of the call is the one that somebody is in when they name none.
pub async fn is_personal(db: impl PgExecutor<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar("select app.is_personal()").fetch_one(db).await
}

/// Writes the end of a workspace down, and closes it: from this commit on no credential opens it, and nothing of it
/// goes out any more that has not left. What was erased before and begun anew is erased again.
pub async fn end_workspace(db: impl PgExecutor<'_>, tenant: TenantId) -> sqlx::Result<ErasureId> {
    sqlx::query_scalar("select app.end_workspace($1, $2)").bind(ErasureId::new()).bind(tenant).fetch_one(db).await
}

/// Writes the end of the user of the call down.
pub async fn end_user(db: impl PgExecutor<'_>, identity_hash: Option<[u8; 32]>) -> sqlx::Result<ErasureId> {
    sqlx::query_scalar("select app.end_user($1, $2)")
        .bind(ErasureId::new())
        .bind(identity_hash.map(|hash| hash.to_vec()))
        .fetch_one(db)
        .await
}

/// The person themselves, whose end was written down: name, address and everything that goes with them.
pub async fn forget_user(db: impl PgExecutor<'_>) -> sqlx::Result<()> {
    sqlx::query("select app.forget_user()").execute(db).await.map(drop)
}

/// What a provider calls a user: the provider, and its name for them.
pub async fn identity(db: impl PgExecutor<'_>, user: UserId) -> sqlx::Result<Option<(String, String)>> {
    sqlx::query_as("select provider, subject from users where id = $1").bind(user).fetch_optional(db).await
}
