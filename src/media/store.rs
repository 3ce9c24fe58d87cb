//! Everything the media domain says to Postgres about uploads and the bytes behind them. Renditions are in
//! [`super::rendition_store`].

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{probe::Probe, sniff::Kind};
use crate::ids::{MediaId, TenantId};

/// Stored bytes.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Object {
    pub id: Uuid,
    pub storage_key: String,
    pub size_bytes: i64,
    pub mime: String,
}

/// An upload with the bytes behind it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct MediaRow {
    pub id: MediaId,
    pub object_id: Uuid,
    pub name: String,
    pub kind: String,
    pub probe: Json<Probe>,
    pub created_at: DateTime<Utc>,
    pub storage_key: String,
    pub size_bytes: i64,
    pub mime: String,
    pub sha256: Vec<u8>,
}

macro_rules! media_columns {
    ($rest:literal) => {
        concat!(
            "select m.id, m.object_id, m.name, m.kind, m.probe, m.created_at, o.storage_key, o.size_bytes, o.mime, \
             o.sha256 from media m join media_objects o on o.id = m.object_id ",
            $rest
        )
    };
}

/// What is known of bytes once they are all there.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    pub sha256: &'a [u8; 32],
    pub size_bytes: u64,
    pub mime: &'a str,
}

/// Says that bytes are about to arrive, before the first does.
pub async fn insert_arriving(db: impl PgExecutor<'_>, tenant: TenantId, id: Uuid, key: &str) -> sqlx::Result<()> {
    sqlx::query("insert into media_objects (id, tenant_id, storage_key) values ($1, $2, $3)")
        .bind(id)
        .bind(tenant)
        .bind(key)
        .execute(db)
        .await?;
    Ok(())
}

/// Keeps arrived bytes, or finds that the tenant has the same content already: then the older object is used, also
/// when it was about to be removed, and the new one is left to be removed.
pub async fn keep(
    tx: &mut PgConnection,
    tenant: TenantId,
    arrived: Uuid,
    content: Content<'_>,
) -> sqlx::Result<Object> {
    // Two equal uploads at the same moment take turns; the name is bound to the tenant and the content.
    let mut name = tenant.uuid().as_bytes().to_vec();
    name.extend(content.sha256);
    sqlx::query("select pg_advisory_xact_lock(hashtextextended(encode($1, 'hex'), 0))")
        .bind(name)
        .execute(&mut *tx)
        .await?;
    let existing: Option<Object> = sqlx::query_as(
        "update media_objects set state = 'kept', condemned_at = null \
         where tenant_id = $1 and sha256 = $2 and state in ('kept', 'condemned') \
         returning id, storage_key, size_bytes, mime",
    )
    .bind(tenant)
    .bind(content.sha256.as_slice())
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(existing) = existing {
        start_removing(tx, arrived).await?;
        return Ok(existing);
    }
    sqlx::query_as(
        "update media_objects set state = 'kept', sha256 = $2, size_bytes = $3, mime = $4 \
         where id = $1 and state = 'arriving' returning id, storage_key, size_bytes, mime",
    )
    .bind(arrived)
    .bind(content.sha256.as_slice())
    .bind(i64::try_from(content.size_bytes).unwrap_or(i64::MAX))
    .bind(content.mime)
    .fetch_one(tx)
    .await
}

/// Marks bytes that came to nothing; upkeep removes what the caller does not. `false`: they are in use after all.
pub async fn start_removing(db: impl PgExecutor<'_>, object: Uuid) -> sqlx::Result<bool> {
    let marked = sqlx::query(
        "update media_objects set state = 'removing', condemned_at = now() \
         where id = $1 and state in ('arriving', 'removing')",
    )
    .bind(object)
    .execute(db)
    .await?;
    Ok(marked.rows_affected() == 1)
}

/// Forgets an object whose bytes are gone.
pub async fn forget_object(db: impl PgExecutor<'_>, object: Uuid) -> sqlx::Result<()> {
    sqlx::query("delete from media_objects where id = $1 and state = 'removing'").bind(object).execute(db).await?;
    Ok(())
}

pub async fn insert_media(
    tx: &mut PgConnection,
    tenant: TenantId,
    object: Uuid,
    name: &str,
    kind: Kind,
    probe: &Probe,
) -> sqlx::Result<(MediaId, DateTime<Utc>)> {
    let id = MediaId::new();
    let created_at = sqlx::query_scalar(
        "insert into media (id, tenant_id, object_id, name, kind, probe) values ($1, $2, $3, $4, $5, $6) \
         returning created_at",
    )
    .bind(id)
    .bind(tenant)
    .bind(object)
    .bind(name)
    .bind(kind.extension())
    .bind(Json(probe))
    .fetch_one(tx)
    .await?;
    Ok((id, created_at))
}

pub async fn get(db: impl PgExecutor<'_>, tenant: TenantId, media: MediaId) -> sqlx::Result<Option<MediaRow>> {
    sqlx::query_as(media_columns!("where m.id = $1 and m.tenant_id = $2 and m.deleted_at is null"))
        .bind(media)
        .bind(tenant)
        .fetch_optional(db)
        .await
}

/// An upload; when it was deleted, another one of the same content, since what is made of it is shared.
pub async fn get_or_equal(db: impl PgExecutor<'_>, tenant: TenantId, media: MediaId) -> sqlx::Result<Option<MediaRow>> {
    sqlx::query_as(media_columns!(
        "where m.object_id = (select object_id from media where id = $1 and tenant_id = $2) \
           and m.tenant_id = $2 and m.deleted_at is null order by (m.id = $1) desc, m.id limit 1"
    ))
    .bind(media)
    .bind(tenant)
    .fetch_optional(db)
    .await
}

/// Newest first, from before `before`.
pub async fn list(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    before: Option<MediaId>,
    limit: i64,
) -> sqlx::Result<Vec<MediaRow>> {
    sqlx::query_as(media_columns!(
        "where m.tenant_id = $1 and m.deleted_at is null and ($2::uuid is null or m.id < $2) \
         order by m.id desc limit $3"
    ))
    .bind(tenant)
    .bind(before)
    .bind(limit)
    .fetch_all(db)
    .await
}

/// What came of asking for an upload's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    Done,
    NotFound,
    /// Something, such as a post, still uses it.
    InUse,
}

/// Deletes an upload that nobody uses; its bytes stay for a day, and for as long as others share them.
pub async fn delete(tx: &mut PgConnection, tenant: TenantId, media: MediaId) -> sqlx::Result<Deleted> {
    // Locked first: whoever takes a reference locks the same row, so one of the two sees the other (M1).
    let object: Option<Uuid> = sqlx::query_scalar(
        "select object_id from media where id = $1 and tenant_id = $2 and deleted_at is null for update",
    )
    .bind(media)
    .bind(tenant)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(object) = object else { return Ok(Deleted::NotFound) };
    let used: bool = sqlx::query_scalar("select exists (select from media_references where media_id = $1)")
        .bind(media)
        .fetch_one(&mut *tx)
        .await?;
    if used {
        return Ok(Deleted::InUse);
    }
    sqlx::query("update media set deleted_at = now() where id = $1").bind(media).execute(&mut *tx).await?;
    condemn_if_unused(tx, object).await?;
    Ok(Deleted::Done)
}

/// Says that something uses an upload, in that something's own transaction. `false`: there is no such upload.
pub async fn take_reference(
    tx: &mut PgConnection,
    tenant: TenantId,
    media: MediaId,
    holder_kind: &str,
    holder: Uuid,
) -> sqlx::Result<bool> {
    let found: Option<Uuid> =
        sqlx::query_scalar("select id from media where id = $1 and tenant_id = $2 and deleted_at is null for share")
            .bind(media)
            .bind(tenant)
            .fetch_optional(&mut *tx)
            .await?;
    if found.is_none() {
        return Ok(false);
    }
    sqlx::query(
        "insert into media_references (media_id, holder_kind, holder_id) values ($1, $2, $3) on conflict do nothing",
    )
    .bind(media)
    .bind(holder_kind)
    .bind(holder)
    .execute(tx)
    .await?;
    Ok(true)
}

/// Lets go of everything that something used.
pub async fn drop_references(tx: &mut PgConnection, holder_kind: &str, holder: Uuid) -> sqlx::Result<u64> {
    let dropped = sqlx::query("delete from media_references where holder_kind = $1 and holder_id = $2")
        .bind(holder_kind)
        .bind(holder)
        .execute(tx)
        .await?;
    Ok(dropped.rows_affected())
}

/// Starts the day after which bytes go, unless an upload or another source's rendition uses them.
pub async fn condemn_if_unused(tx: &mut PgConnection, object: Uuid) -> sqlx::Result<()> {
    // Locked before it is looked at: an equal upload that is being kept right now holds the same row.
    sqlx::query("select from media_objects where id = $1 for update").bind(object).execute(&mut *tx).await?;
    sqlx::query(
        "update media_objects o set state = 'condemned', condemned_at = now() \
         where o.id = $1 and o.state = 'kept' \
           and not exists (select from media m where m.object_id = o.id and m.deleted_at is null) \
           and not exists (select from renditions r where r.object_id = o.id and r.source_id <> o.id)",
    )
    .bind(object)
    .execute(tx)
    .await?;
    Ok(())
}

/// Bytes that are to be removed from the store.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Removing {
    pub id: Uuid,
    pub storage_key: String,
}

/// The second look: what was condemned a day ago and is still used by nobody, and what has been arriving for a day,
/// is removed from now on. Then everything that is being removed, oldest first.
pub async fn due_for_removal(tx: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Removing>> {
    sqlx::query(
        "update media_objects set state = 'removing', condemned_at = now() where id in ( \
             select o.id from media_objects o \
             where o.state in ('condemned', 'arriving') \
               and coalesce(o.condemned_at, o.created_at) < now() - interval '24 hours' \
               and not exists (select from media m where m.object_id = o.id and m.deleted_at is null) \
               and not exists (select from renditions r where r.object_id = o.id and r.source_id <> o.id) \
             order by o.id limit $1 for update skip locked)",
    )
    .bind(limit)
    .execute(&mut *tx)
    .await?;
    sqlx::query_as(
        "select id, storage_key from media_objects where state = 'removing' order by coalesce(condemned_at, created_at) \
         limit $1",
    )
    .bind(limit)
    .fetch_all(tx)
    .await
}

/// Takes away what hangs on bytes that are being removed: deleted uploads, and renditions, whose own bytes begin
/// their day.
pub async fn clear_dependants(tx: &mut PgConnection, object: Uuid) -> sqlx::Result<()> {
    let made: Vec<Option<Uuid>> = sqlx::query_scalar("delete from renditions where source_id = $1 returning object_id")
        .bind(object)
        .fetch_all(&mut *tx)
        .await?;
    for made in made.into_iter().flatten().filter(|made| *made != object) {
        condemn_if_unused(tx, made).await?;
    }
    sqlx::query("delete from media where object_id = $1 and deleted_at is not null").bind(object).execute(tx).await?;
    Ok(())
}
