//! The `media_imports` table: addresses to fetch files from, encrypted, as long as they are needed.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{FromRow, PgConnection, PgExecutor, PgPool};
use url::Url;

use crate::{
    crypto::{CryptoError, Keyring, Place},
    ids::{ImportId, JobId, MediaId, TenantId},
    rotation::SealedColumn,
};

/// How long one is kept, so that a job that is repeated finds what it has made.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is encrypted here.
pub const SEALED: SealedColumn = SealedColumn {
    table: "media_imports",
    column: "sealed",
    row: "id",
    position: "0::smallint",
    place: |row, _| place(ImportId::from_uuid(row)),
};

const fn place(id: ImportId) -> Place {
    Place::new("media_imports", "sealed", id.uuid())
}

#[derive(FromRow)]
pub struct ImportRow {
    sealed: Option<Vec<u8>>,
    pub name: Option<String>,
    pub media_id: Option<MediaId>,
}

impl ImportRow {
    /// Where to fetch it from; `None`: that is over.
    pub fn url(&self, keyring: &Keyring, id: ImportId) -> Result<Option<Url>, CryptoError> {
        let Some(sealed) = &self.sealed else { return Ok(None) };
        let text = keyring.decrypt(place(id), sealed)?;
        Url::parse(text.expose_secret()).map(Some).map_err(|_error| CryptoError::Malformed)
    }
}

/// Writes one down, in the transaction that enqueues its job.
pub async fn insert(
    tx: &mut PgConnection,
    keyring: &Keyring,
    tenant: TenantId,
    (id, job): (ImportId, JobId),
    url: &Url,
    name: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query("insert into media_imports (id, tenant_id, job_id, sealed, name) values ($1, $2, $3, $4, $5)")
        .bind(id)
        .bind(tenant)
        .bind(job)
        .bind(keyring.encrypt(place(id), &SecretString::from(url.as_str())))
        .bind(name)
        .execute(tx)
        .await?;
    Ok(())
}

pub async fn get(db: impl PgExecutor<'_>, tenant: TenantId, id: ImportId) -> sqlx::Result<Option<ImportRow>> {
    sqlx::query_as("select sealed, name, media_id from media_imports where tenant_id = $1 and id = $2")
        .bind(tenant)
        .bind(id)
        .fetch_optional(db)
        .await
}

/// Whether this run is the one that ends it; until its transaction ends others wait. `false`: it is over, or gone.
pub async fn lock(tx: &mut PgConnection, tenant: TenantId, id: ImportId) -> sqlx::Result<bool> {
    let open: Option<bool> =
        sqlx::query_scalar("select finished_at is null from media_imports where tenant_id = $1 and id = $2 for update")
            .bind(tenant)
            .bind(id)
            .fetch_optional(tx)
            .await?;
    Ok(open == Some(true))
}

/// It has come, or never will: the address goes.
pub async fn finish(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    id: ImportId,
    media: Option<MediaId>,
) -> sqlx::Result<()> {
    sqlx::query(
        "update media_imports set sealed = null, media_id = $3, finished_at = now() \
         where tenant_id = $1 and id = $2 and finished_at is null",
    )
    .bind(tenant)
    .bind(id)
    .bind(media)
    .execute(db)
    .await?;
    Ok(())
}

/// For upkeep: the addresses of those whose job has ended without a word of theirs (cancelled, out of time, killed), and
/// what is so old that nobody asks for it. Returns how many addresses went.
pub async fn forget_ended(db: &PgPool) -> sqlx::Result<u64> {
    let closed = sqlx::query(
        "update media_imports i set sealed = null, finished_at = now() where finished_at is null \
           and not exists (select from jobs j where j.id = i.job_id and j.finished_at is null)",
    )
    .execute(db)
    .await?;
    sqlx::query(
        "delete from media_imports where created_at < now() - make_interval(secs => $1) and finished_at < now()",
    )
    .bind(KEPT.as_secs_f64())
    .execute(db)
    .await?;
    Ok(closed.rows_affected())
}
