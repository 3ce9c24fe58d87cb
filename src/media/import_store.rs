//! The `media_imports` table: addresses to fetch files from, encrypted, as long as they are needed.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{FromRow, PgConnection, PgExecutor};
use url::Url;

use crate::{
    crypto::{CryptoError, Keyring, Place},
    ids::{ImportId, MediaId, TenantId},
    rotation::SealedColumn,
};

/// How long a finished one is kept: longer than its job can be tried again.
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

/// Writes one down, and forgets the tenant's old ones.
pub async fn insert(
    tx: &mut PgConnection,
    keyring: &Keyring,
    tenant: TenantId,
    url: &Url,
    name: Option<&str>,
) -> sqlx::Result<ImportId> {
    let id = ImportId::new();
    sqlx::query("delete from media_imports where tenant_id = $1 and created_at < now() - make_interval(secs => $2)")
        .bind(tenant)
        .bind(KEPT.as_secs_f64())
        .execute(&mut *tx)
        .await?;
    sqlx::query("insert into media_imports (id, tenant_id, sealed, name) values ($1, $2, $3, $4)")
        .bind(id)
        .bind(tenant)
        .bind(keyring.encrypt(place(id), &SecretString::from(url.as_str())))
        .bind(name)
        .execute(tx)
        .await?;
    Ok(id)
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
