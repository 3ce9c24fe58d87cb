//! The files of a publication and how far each is on its way to the platform.

use std::time::Duration;

use sqlx::{FromRow, PgConnection, PgExecutor};

use super::Publication;
use crate::{
    connections::store::stored,
    ids::{MediaId, PublicationId},
    media::store as media_store,
    platforms::MediaKind,
};

/// One file of a publication.
#[derive(Debug, Clone)]
pub struct File {
    pub position: i16,
    pub media: MediaId,
    pub kind: MediaKind,
    pub preset: Option<String>,
    pub alt_text: Option<String>,
    pub state: Option<Vec<u8>>,
    pub remote_id: Option<String>,
    /// Whether the platform has forgotten it, by the server's clock; soon counts as yes.
    pub expired: bool,
}

#[derive(FromRow)]
struct Row {
    position: i16,
    media_id: MediaId,
    kind: String,
    preset: Option<String>,
    alt_text: Option<String>,
    upload_state: Option<Vec<u8>>,
    remote_id: Option<String>,
    expired: bool,
}

/// What a publication's claim on an upload is called.
const REFERENCE: &str = "publication";

/// The files as they are frozen, in place of what a run before had frozen.
/// `false`: one of them was deleted meanwhile.
pub async fn replace(tx: &mut PgConnection, publication: &Publication, files: &[File]) -> sqlx::Result<bool> {
    sqlx::query("delete from publication_media where publication_id = $1")
        .bind(publication.id)
        .execute(&mut *tx)
        .await?;
    for file in files {
        sqlx::query(
            "insert into publication_media (publication_id, position, tenant_id, media_id, kind, preset, alt_text) \
             values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(publication.id)
        .bind(file.position)
        .bind(publication.tenant)
        .bind(file.media)
        .bind(file.kind.as_str())
        .bind(&file.preset)
        .bind(&file.alt_text)
        .execute(&mut *tx)
        .await?;
        // Held until the publication is settled: the post may be edited meanwhile.
        if !media_store::take_reference(tx, publication.tenant, file.media, REFERENCE, publication.id.uuid()).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lets go of the files of a publication that is settled.
pub async fn release(tx: &mut PgConnection, publication: PublicationId) -> sqlx::Result<()> {
    media_store::drop_references(tx, REFERENCE, publication.uuid()).await?;
    Ok(())
}

pub async fn of(db: impl PgExecutor<'_>, publication: PublicationId) -> sqlx::Result<Vec<File>> {
    let rows: Vec<Row> = sqlx::query_as(
        "select position, media_id, kind, preset, alt_text, upload_state, remote_id, \
         coalesce(expires_at < now() + interval '5 minutes', false) as expired \
         from publication_media where publication_id = $1 order by position",
    )
    .bind(publication)
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(File {
                position: row.position,
                media: row.media_id,
                kind: stored(&row.kind)?,
                preset: row.preset,
                alt_text: row.alt_text,
                state: row.upload_state,
                remote_id: row.remote_id,
                expired: row.expired,
            })
        })
        .collect()
}

/// How far an upload is.
pub struct Progress<'a> {
    pub state: &'a [u8],
    /// What was brought so far is kept by the platform for so long, counted from the first state.
    pub lifetime: Option<Duration>,
    /// The platform has all of it and works on it.
    pub processing: bool,
}

/// Keeps how far an upload is, and says how long the platform has been processing it. `None`: the publication was
/// taken up by somebody else.
pub async fn keep_state(
    db: impl PgExecutor<'_>,
    publication: &Publication,
    position: i16,
    progress: &Progress<'_>,
) -> sqlx::Result<Option<Duration>> {
    let seconds: Option<f64> = sqlx::query_scalar(
        "update publication_media m set upload_state = $4, upload_started_at = coalesce(m.upload_started_at, now()), \
           expires_at = coalesce(m.upload_started_at, now()) + make_interval(secs => $5), \
           processing_since = case when $6 then coalesce(m.processing_since, now()) end \
         from publications p where m.publication_id = $1 and m.position = $3 and p.id = $1 and p.fence = $2 \
         returning coalesce(extract(epoch from now() - m.processing_since), 0)::float8",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .bind(position)
    .bind(progress.state)
    .bind(progress.lifetime.map(|lifetime| lifetime.as_secs_f64()))
    .bind(progress.processing)
    .fetch_optional(db)
    .await?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
}

pub async fn keep_staged(
    db: impl PgExecutor<'_>,
    publication: &Publication,
    position: i16,
    remote_id: &str,
    lifetime: Option<Duration>,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update publication_media m set upload_state = null, processing_since = null, remote_id = $4, \
           expires_at = coalesce(m.upload_started_at, now()) + make_interval(secs => $5) \
         from publications p where m.publication_id = $1 and m.position = $3 and p.id = $1 and p.fence = $2",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .bind(position)
    .bind(remote_id)
    .bind(lifetime.map(|lifetime| lifetime.as_secs_f64()))
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn forget(db: impl PgExecutor<'_>, publication: PublicationId, position: i16) -> sqlx::Result<()> {
    sqlx::query(
        "update publication_media set upload_state = null, upload_started_at = null, processing_since = null, \
         remote_id = null, expires_at = null where publication_id = $1 and position = $2",
    )
    .bind(publication)
    .bind(position)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn forget_all(db: impl PgExecutor<'_>, publication: PublicationId) -> sqlx::Result<()> {
    sqlx::query(
        "update publication_media set upload_state = null, upload_started_at = null, processing_since = null, \
         remote_id = null, expires_at = null where publication_id = $1",
    )
    .bind(publication)
    .execute(db)
    .await?;
    Ok(())
}
