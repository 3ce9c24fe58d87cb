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
    /// Whose file was given out; with it come the two below.
    pub file_run: Option<i32>,
    pub size_bytes: Option<i64>,
    pub row_count: Option<i64>,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

impl ExportRow {
    /// What was given out; `None`: it is still being written.
    pub fn written(&self) -> Option<Written> {
        let (run, rows, size_bytes) = (self.file_run?, self.row_count?, self.size_bytes?);
        Some(Written {
            storage_key: file_of(&self.storage_key, run),
            rows: rows.unsigned_abs(),
            size_bytes: size_bytes.unsigned_abs(),
        })
    }
}

/// A whole copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub storage_key: String,
    pub rows: u64,
    pub size_bytes: u64,
}

/// Where a run of the job puts its file.
pub fn file_of(storage_key: &str, run: i32) -> String {
    format!("{storage_key}-{run}")
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
        "select id, tenant_id, user_id, kind, storage_key, file_run, size_bytes, row_count, created_at, expires_at \
         from exports where tenant_id = $1 and user_id = $2 and id = $3 and expires_at > now()",
    )
    .bind(tenant)
    .bind(user)
    .bind(id)
    .fetch_optional(db)
    .await
}

/// For a run that is about to write its file. One that is ready is left as it is; `None`: it is not wanted any more.
pub async fn begin(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    id: ExportId,
    run: i32,
) -> sqlx::Result<Option<ExportRow>> {
    sqlx::query_as(
        "update exports set runs = case when ready_at is null then greatest(runs, $3) else runs end \
         where tenant_id = $1 and id = $2 and expires_at > now() \
         returning id, tenant_id, user_id, kind, storage_key, file_run, size_bytes, row_count, created_at, expires_at",
    )
    .bind(tenant)
    .bind(id)
    .bind(run)
    .fetch_optional(db)
    .await
}

/// The workspaces that it is of: of a person's, those that would end with them.
pub async fn tenants(db: impl PgExecutor<'_>, id: ExportId) -> sqlx::Result<Vec<TenantId>> {
    sqlx::query_scalar("select t from app.export_tenants($1) t order by t").bind(id).fetch_all(db).await
}

/// Gives a run's file out, if it is the first to be whole: what was given out stays as it is. `false`: another run's
/// was, or the export was erased meanwhile.
pub async fn ready(db: impl PgExecutor<'_>, id: ExportId, run: i32, rows: u64, size_bytes: u64) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update exports set file_run = $2, row_count = $3, size_bytes = $4, ready_at = now() \
         where id = $1 and ready_at is null",
    )
    .bind(id)
    .bind(run)
    .bind(i64::try_from(rows).unwrap_or(i64::MAX))
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
        let batch: Vec<(ExportId, String, i32)> = sqlx::query_as(
            "select id, storage_key, runs from exports where case when $1::uuid is not null then tenant_id = $1 \
               when $2::uuid is not null then user_id = $2 else expires_at < now() end order by id limit $3",
        )
        .bind(tenant)
        .bind(user)
        .bind(BATCH)
        .fetch_all(db)
        .await?;
        let mut is_done = batch.len() < usize::try_from(BATCH).unwrap_or(usize::MAX);
        for (id, key, runs) in &batch {
            for run in 1..=*runs {
                storage.remove(&file_of(key, run)).await?;
            }
            // Not when a run has begun another file meanwhile.
            let gone = sqlx::query("delete from exports where id = $1 and runs = $2").bind(id).bind(runs);
            match gone.execute(db).await?.rows_affected() {
                0 => is_done = false,
                gone => removed += gone,
            }
        }
        if is_done {
            return Ok(removed);
        }
    }
}
