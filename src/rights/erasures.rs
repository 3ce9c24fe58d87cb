//! The `erasures` table: what is to be erased, and what the rest of the product asks about it.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::{FromRow, PgConnection, PgExecutor};
use uuid::Uuid;

use crate::ids::{ErasureId, TenantId, UserId};

/// Who or what is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Workspace(TenantId),
    User(UserId),
}

impl Subject {
    const fn columns(self) -> (&'static str, Uuid) {
        match self {
            Self::Workspace(tenant) => ("workspace", tenant.uuid()),
            Self::User(user) => ("user", user.uuid()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Erasure {
    pub subject: Subject,
    pub requested_at: DateTime<Utc>,
    /// The server's time.
    pub now: DateTime<Utc>,
}

/// Writes one down; what was erased before and begun anew is erased again.
pub async fn insert(
    tx: &mut PgConnection,
    subject: Subject,
    identity_hash: Option<[u8; 32]>,
) -> sqlx::Result<ErasureId> {
    let (kind, id) = subject.columns();
    sqlx::query_scalar(
        "insert into erasures (id, kind, subject, identity_hash) values ($1, $2, $3, $4) \
         on conflict (kind, subject) do update set requested_at = now(), finished_at = null, not_revoked = 0, \
           identity_hash = excluded.identity_hash returning id",
    )
    .bind(ErasureId::new())
    .bind(kind)
    .bind(id)
    .bind(identity_hash.map(|hash| hash.to_vec()))
    .fetch_one(tx)
    .await
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

pub async fn note_not_revoked(db: impl PgExecutor<'_>, id: ErasureId) -> sqlx::Result<()> {
    sqlx::query("update erasures set not_revoked = not_revoked + 1 where id = $1").bind(id).execute(db).await?;
    Ok(())
}

/// What a provider calls a user, as it is kept after their end.
pub fn identity_hash(provider: &str, subject: &str) -> [u8; 32] {
    Sha256::new().chain_update(provider).chain_update([0]).chain_update(subject).finalize().into()
}

/// Whether a token of this identity was issued before its user was erased. `issued_at`: seconds of the epoch.
pub async fn outlives(db: impl PgExecutor<'_>, hash: [u8; 32], issued_at: u64) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select from erasures where identity_hash = $1 and extract(epoch from requested_at) >= $2)",
    )
    .bind(hash.as_slice())
    .bind(i64::try_from(issued_at).unwrap_or(i64::MAX))
    .fetch_one(db)
    .await
}

/// An erasure, for those who believe a token without asking the database for its user.
#[derive(Debug, Clone, Copy, FromRow)]
pub struct Gone {
    pub subject: Uuid,
    /// Seconds of the epoch, rounded up.
    pub requested_at: i64,
    pub is_finished: bool,
}

/// All of them: an operator may make a token that is good for as long as they like.
pub async fn all(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Gone>> {
    sqlx::query_as(
        "select subject, ceil(extract(epoch from requested_at))::bigint as requested_at, \
           finished_at is not null as is_finished from erasures",
    )
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

/// Where a user is. Their rows stay as they are until the transaction ends.
pub async fn memberships(tx: &mut PgConnection, user: UserId) -> sqlx::Result<Vec<Membership>> {
    sqlx::query(
        "select from workspaces w where w.id in (select tenant_id from workspace_members where user_id = $1) \
         order by w.id for update",
    )
    .bind(user)
    .execute(&mut *tx)
    .await?;
    sqlx::query_as(
        "select m.tenant_id, w.name, m.role = 'owner' as is_owner, \
           exists (select from workspace_members o where o.tenant_id = m.tenant_id and o.user_id <> $1) as has_others, \
           exists (select from workspace_members o where o.tenant_id = m.tenant_id and o.user_id <> $1 \
             and o.role = 'owner') as has_other_owner \
         from workspace_members m join workspaces w on w.id = m.tenant_id where m.user_id = $1 order by m.tenant_id",
    )
    .bind(user)
    .fetch_all(tx)
    .await
}

/// Whether the workspace is the one that somebody is in when they name none.
pub async fn is_personal(db: impl PgExecutor<'_>, tenant: TenantId) -> sqlx::Result<bool> {
    sqlx::query_scalar("select exists (select from users where personal_workspace_id = $1)")
        .bind(tenant)
        .fetch_one(db)
        .await
}

/// From this commit on no credential opens the workspace, and nothing of it goes out any more that has not left.
pub async fn close(tx: &mut PgConnection, tenant: TenantId) -> sqlx::Result<()> {
    for statement in [
        "delete from api_keys where tenant_id = $1",
        "delete from workspace_members where tenant_id = $1",
        "delete from account_consents where tenant_id = $1",
        "update publications set phase = 'cancelled', updated_at = now() \
         where tenant_id = $1 and phase in ('planned', 'prepared', 'uploaded', 'needs_reconnect')",
    ] {
        sqlx::query(statement).bind(tenant).execute(&mut *tx).await?;
    }
    Ok(())
}

/// The person themselves: name, address and everything that goes with them.
pub async fn forget_user(tx: &mut PgConnection, user: UserId) -> sqlx::Result<()> {
    sqlx::query("delete from users where id = $1").bind(user).execute(tx).await?;
    Ok(())
}

/// What a provider calls a user: the provider, and its name for them.
pub async fn identity(db: impl PgExecutor<'_>, user: UserId) -> sqlx::Result<Option<(String, String)>> {
    sqlx::query_as("select provider, subject from users where id = $1").bind(user).fetch_optional(db).await
}
