//! The `posts` and `post_media` tables.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, PgExecutor, types::Json};

use super::{Attached, Post};
use crate::{
    ids::{MediaId, PostId, TenantId},
    media::store as media_store,
    platforms::Platform,
};

#[derive(FromRow)]
struct Row {
    id: PostId,
    tenant_id: TenantId,
    universal_content: String,
    variants: Json<BTreeMap<Platform, String>>,
    version: i32,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    media: Json<Vec<MediaRow>>,
}

#[derive(serde::Deserialize)]
struct MediaRow {
    media: uuid::Uuid,
    alt_text: Option<String>,
}

impl From<Row> for Post {
    fn from(row: Row) -> Self {
        let attached = |file: MediaRow| Attached { media: MediaId::from_uuid(file.media), alt_text: file.alt_text };
        Self {
            id: row.id,
            tenant: row.tenant_id,
            universal_content: row.universal_content,
            variants: row.variants.0,
            media: row.media.0.into_iter().map(attached).collect(),
            version: row.version,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Everything of a post with its files, in one place: `sqlx` takes literal text only.
macro_rules! select {
    ($condition:literal) => {
        concat!(
            "select p.id, p.tenant_id, p.universal_content, p.variants, p.version, p.created_at, p.updated_at, \
             coalesce((select jsonb_agg(jsonb_build_object('media', m.media_id, 'alt_text', m.alt_text) \
               order by m.position) from post_media m where m.post_id = p.id), '[]'::jsonb) as media \
             from posts p where p.tenant_id = $1 and ",
            $condition
        )
    };
}

pub async fn get(db: impl PgExecutor<'_>, tenant: TenantId, id: PostId) -> sqlx::Result<Option<Post>> {
    let row: Option<Row> =
        sqlx::query_as(select!("p.id = $2 and p.removed_at is null")).bind(tenant).bind(id).fetch_optional(db).await?;
    Ok(row.map(Post::from))
}

/// Newest first.
pub async fn list(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    before: Option<PostId>,
    limit: i64,
) -> sqlx::Result<Vec<Post>> {
    let rows: Vec<Row> =
        sqlx::query_as(select!("p.removed_at is null and ($2::uuid is null or p.id < $2) order by p.id desc limit $3"))
            .bind(tenant)
            .bind(before)
            .bind(limit)
            .fetch_all(db)
            .await?;
    Ok(rows.into_iter().map(Post::from).collect())
}

/// Returns when it was created, by the database's clock.
pub async fn insert(
    tx: &mut PgConnection,
    id: PostId,
    tenant: TenantId,
    universal_content: &str,
    variants: &BTreeMap<Platform, String>,
    media: &[Attached],
) -> sqlx::Result<DateTime<Utc>> {
    let created_at = sqlx::query_scalar(
        "insert into posts (id, tenant_id, universal_content, variants) values ($1, $2, $3, $4) returning created_at",
    )
    .bind(id)
    .bind(tenant)
    .bind(universal_content)
    .bind(Json(variants))
    .fetch_one(&mut *tx)
    .await?;
    attach(tx, id, tenant, media).await?;
    Ok(created_at)
}

/// Whoever changes, deletes or publishes a post goes one by one from here on, until the transaction ends. What the one
/// before did is seen by the statements after this one.
pub async fn lock(tx: &mut PgConnection, tenant: TenantId, id: PostId) -> sqlx::Result<()> {
    sqlx::query("select from posts where tenant_id = $1 and id = $2 for no key update")
        .bind(tenant)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

/// `None`: there is no such post, or it was deleted.
pub async fn version(db: impl PgExecutor<'_>, tenant: TenantId, id: PostId) -> sqlx::Result<Option<i32>> {
    sqlx::query_scalar("select version from posts where tenant_id = $1 and id = $2 and removed_at is null")
        .bind(tenant)
        .bind(id)
        .fetch_optional(db)
        .await
}

/// Replaces a post's content. Call with the post locked, and there.
pub async fn update(
    tx: &mut PgConnection,
    tenant: TenantId,
    id: PostId,
    universal_content: &str,
    variants: &BTreeMap<Platform, String>,
    media: &[Attached],
) -> sqlx::Result<()> {
    sqlx::query(
        "update posts set universal_content = $3, variants = $4, version = version + 1, updated_at = now() \
         where tenant_id = $1 and id = $2",
    )
    .bind(tenant)
    .bind(id)
    .bind(universal_content)
    .bind(Json(variants))
    .execute(&mut *tx)
    .await?;
    detach(tx, id).await?;
    attach(tx, id, tenant, media).await
}

/// Takes a post out of all lists. Call with the post locked, and there. `false`: it is about to go out, or somebody has
/// to look whether it did.
pub async fn remove(tx: &mut PgConnection, tenant: TenantId, id: PostId) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update posts set removed_at = now() where tenant_id = $1 and id = $2 and not exists ( \
           select from publications where post_id = $2 and phase in \
             ('planned', 'prepared', 'uploaded', 'sending', 'needs_reconnect'))",
    )
    .bind(tenant)
    .bind(id)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    detach(tx, id).await?;
    Ok(true)
}

/// What a post's claim on an upload is called.
const REFERENCE: &str = "post";

async fn detach(tx: &mut PgConnection, id: PostId) -> sqlx::Result<()> {
    sqlx::query("delete from post_media where post_id = $1").bind(id).execute(&mut *tx).await?;
    media_store::drop_references(tx, REFERENCE, id.uuid()).await?;
    Ok(())
}

/// The files in their order, each held so that nobody deletes it (M1).
async fn attach(tx: &mut PgConnection, id: PostId, tenant: TenantId, media: &[Attached]) -> sqlx::Result<()> {
    let ids: Vec<_> = media.iter().map(|file| file.media.uuid()).collect();
    let alt_texts: Vec<_> = media.iter().map(|file| file.alt_text.clone()).collect();
    sqlx::query(
        "insert into post_media (post_id, position, tenant_id, media_id, alt_text) \
         select $1, n - 1, $2, media_id, alt_text \
         from unnest($3::uuid[], $4::text[]) with ordinality as file (media_id, alt_text, n)",
    )
    .bind(id)
    .bind(tenant)
    .bind(ids)
    .bind(alt_texts)
    .execute(&mut *tx)
    .await?;
    for file in media {
        if !media_store::take_reference(tx, tenant, file.media, REFERENCE, id.uuid()).await? {
            return Err(sqlx::Error::RowNotFound);
        }
    }
    Ok(())
}
