//! The `exports` table, and the files behind its rows.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, PgExecutor, PgPool};

use crate::{
    ids::{ExportId, TenantId, UserId},
    media::storage::{Storage, StorageError},
};

const BATCH: i64 = 100;

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("the storage failed")]
    Storage(#[from] StorageError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

#[derive(Debug, Clone, FromRow)]
pub struct ExportRow {
    pub id: ExportId,
    pub tenant_id: TenantId,
    pub user_id: UserId,
    pub kind: String,
    pub storage_key: String,
    pub size_bytes: Option<i64>,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

pub async fn insert(tx: &mut PgConnection, tenant: TenantId, user: UserId, kind: &str) -> sqlx::Result<ExportId> {
    let id = ExportId::new();
    sqlx::query("insert into exports (id, tenant_id, user_id, kind, storage_key) values ($1, $2, $3, $4, $5)")
        .bind(id)
        .bind(tenant)
        .bind(user)
        .bind(kind)
        .bind(format!("exports/{}/{}", tenant.uuid().simple(), id.uuid().simple()))
        .execute(tx)
        .await?;
    Ok(id)
}

/// For its owner alone, and only while it lasts.
pub async fn of_owner(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    user: UserId,
    id: ExportId,
) -> sqlx::Result<Option<ExportRow>> {
    sqlx::query_as(
        "select id, tenant_id, user_id, kind, storage_key, size_bytes, created_at, expires_at from exports \
         where tenant_id = $1 and user_id = $2 and id = $3 and expires_at > now()",
    )
    .bind(tenant)
    .bind(user)
    .bind(id)
    .fetch_optional(db)
    .await
}

pub async fn get(db: impl PgExecutor<'_>, tenant: TenantId, id: ExportId) -> sqlx::Result<Option<ExportRow>> {
    sqlx::query_as(
        "select id, tenant_id, user_id, kind, storage_key, size_bytes, created_at, expires_at from exports \
         where tenant_id = $1 and id = $2",
    )
    .bind(tenant)
    .bind(id)
    .fetch_optional(db)
    .await
}

/// The workspaces that it is of: of a person's, those that would end with them.
pub async fn tenants(db: impl PgExecutor<'_>, id: ExportId) -> sqlx::Result<Vec<TenantId>> {
    sqlx::query_scalar("select t from app.export_tenants($1) t order by t").bind(id).fetch_all(db).await
}

/// `false`: it was erased while it was made.
pub async fn ready(db: impl PgExecutor<'_>, id: ExportId, size_bytes: u64) -> sqlx::Result<bool> {
    let done = sqlx::query("update exports set size_bytes = $2, ready_at = now() where id = $1")
        .bind(id)
        .bind(i64::try_from(size_bytes).unwrap_or(i64::MAX))
        .execute(db)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Which are to go.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    Workspace(TenantId),
    User(UserId),
    /// Those whose time is over.
    Past,
}

/// Removes files and then their rows; returns how many there were.
pub async fn remove(db: &PgPool, storage: &Storage, of: Of) -> Result<u64, ExportError> {
    let (tenant, user) = match of {
        Of::Workspace(tenant) => (Some(tenant), None),
        Of::User(user) => (None, Some(user)),
        Of::Past => (None, None),
    };
    let mut removed = 0;
    loop {
        let batch: Vec<(ExportId, String)> = sqlx::query_as(
            "select id, storage_key from exports where case when $1::uuid is not null then tenant_id = $1 \
               when $2::uuid is not null then user_id = $2 else expires_at < now() end order by id limit $3",
        )
        .bind(tenant)
        .bind(user)
        .bind(BATCH)
        .fetch_all(db)
        .await?;
        for (id, key) in &batch {
            storage.remove(key).await?;
            sqlx::query("delete from exports where id = $1").bind(id).execute(db).await?;
            removed += 1;
        }
        if batch.len() < usize::try_from(BATCH).unwrap_or(usize::MAX) {
            return Ok(removed);
        }
    }
}
