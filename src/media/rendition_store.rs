//! Everything the media domain says to Postgres about renditions: who makes one, and what became of it.
//!
//! A rendition is made once. Whoever wants to make it claims its row for a minute at a time; the claim is fenced by
//! the job's run, so a worker that lost its lease cannot finish what another one makes anew.

use serde_json::Value;
use sqlx::{PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{plan::Action, preset::PresetName, probe::Probe, proof::Proof, store::Object};
use crate::ids::{JobId, RenditionId, TenantId};

/// A rendition, whatever has become of it so far.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct RenditionRow {
    pub id: RenditionId,
    pub source_id: Uuid,
    pub preset: String,
    pub preset_version: i32,
    pub state: String,
    pub action: Option<String>,
    pub probe: Option<Json<Probe>>,
    pub proof: Option<Json<Proof>>,
    pub notes: Value,
    pub refusal: Option<String>,
    pub object_id: Option<Uuid>,
    pub storage_key: Option<String>,
    pub size_bytes: Option<i64>,
    pub mime: Option<String>,
}

macro_rules! rendition_columns {
    ($rest:literal) => {
        concat!(
            "select r.id, r.source_id, r.preset, r.preset_version, r.state, r.action, r.probe, r.proof, r.notes, r.refusal, \
             r.object_id, o.storage_key, o.size_bytes, o.mime \
             from renditions r left join media_objects o on o.id = r.object_id ",
            $rest
        )
    };
}

/// What was made, or is wanted, of any of these sources.
pub async fn of_sources(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    sources: &[Uuid],
) -> sqlx::Result<Vec<RenditionRow>> {
    sqlx::query_as(rendition_columns!(
        "where r.source_id = any($1) and r.tenant_id = $2 order by r.source_id, r.preset, r.preset_version"
    ))
    .bind(sources)
    .bind(tenant)
    .fetch_all(db)
    .await
}

pub async fn find(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    source: Uuid,
    preset: PresetName,
) -> sqlx::Result<Option<RenditionRow>> {
    sqlx::query_as(rendition_columns!(
        "where r.source_id = $1 and r.tenant_id = $2 and r.preset = $3 and r.preset_version = $4"
    ))
    .bind(source)
    .bind(tenant)
    .bind(preset.as_str())
    .bind(version(preset))
    .fetch_optional(db)
    .await
}

/// Who makes a rendition: the fence of a job's run.
#[derive(Debug, Clone, Copy)]
pub struct Maker {
    pub job: JobId,
    pub run: i32,
}

/// How long a claim holds without being renewed.
pub const CLAIM_SECONDS: f64 = 60.0;

/// Claims the making of a rendition. `None`: it is made, refused, or another is at it.
pub async fn claim(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    source: Uuid,
    preset: PresetName,
    maker: Maker,
) -> sqlx::Result<Option<RenditionId>> {
    sqlx::query_scalar(
        "insert into renditions as r \
             (id, tenant_id, source_id, preset, preset_version, maker_job, maker_run, maker_until) \
         values ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8)) \
         on conflict on constraint renditions_identity_key do update \
         set maker_job = excluded.maker_job, maker_run = excluded.maker_run, maker_until = excluded.maker_until \
         where r.state = 'wanted' and (r.maker_until is null or r.maker_until < now() \
             or (r.maker_job = excluded.maker_job and r.maker_run <= excluded.maker_run)) \
         returning r.id",
    )
    .bind(RenditionId::new())
    .bind(tenant)
    .bind(source)
    .bind(preset.as_str())
    .bind(version(preset))
    .bind(maker.job)
    .bind(maker.run)
    .bind(CLAIM_SECONDS)
    .fetch_optional(db)
    .await
}

/// `false`: the claim is lost, and so is the work.
pub async fn renew(db: impl PgExecutor<'_>, rendition: RenditionId, maker: Maker) -> sqlx::Result<bool> {
    let renewed = sqlx::query(
        "update renditions set maker_until = now() + make_interval(secs => $4) \
         where id = $1 and maker_job = $2 and maker_run = $3 and state = 'wanted'",
    )
    .bind(rendition)
    .bind(maker.job)
    .bind(maker.run)
    .bind(CLAIM_SECONDS)
    .execute(db)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Lets others go on at once.
pub async fn release(db: impl PgExecutor<'_>, rendition: RenditionId, maker: Maker) -> sqlx::Result<()> {
    sqlx::query(
        "update renditions set maker_until = null \
         where id = $1 and maker_job = $2 and maker_run = $3 and state = 'wanted'",
    )
    .bind(rendition)
    .bind(maker.job)
    .bind(maker.run)
    .execute(db)
    .await?;
    Ok(())
}

/// What was made and proved.
#[derive(Debug, Clone, Copy)]
pub struct Made<'a> {
    pub object: &'a Object,
    pub action: Action,
    pub probe: &'a Probe,
    pub proof: &'a Proof,
    pub notes: &'a [String],
}

/// `false`: the claim is lost; what was made is not this rendition.
pub async fn finish(tx: &mut PgConnection, rendition: RenditionId, maker: Maker, made: Made<'_>) -> sqlx::Result<bool> {
    let finished = sqlx::query(
        "update renditions set state = 'ready', object_id = $4, action = $5, probe = $6, proof = $7, notes = $8, \
             finished_at = now(), maker_until = null \
         where id = $1 and maker_job = $2 and maker_run = $3 and state = 'wanted'",
    )
    .bind(rendition)
    .bind(maker.job)
    .bind(maker.run)
    .bind(made.object.id)
    .bind(action_name(made.action))
    .bind(Json(made.probe))
    .bind(Json(made.proof))
    .bind(Json(made.notes))
    .execute(tx)
    .await?;
    Ok(finished.rows_affected() == 1)
}

/// Records that it cannot be made, so that nobody tries in vain again.
pub async fn refuse(db: impl PgExecutor<'_>, rendition: RenditionId, maker: Maker, why: &str) -> sqlx::Result<()> {
    sqlx::query(
        "update renditions set state = 'refused', refusal = $4, finished_at = now(), maker_until = null \
         where id = $1 and maker_job = $2 and maker_run = $3 and state = 'wanted'",
    )
    .bind(rendition)
    .bind(maker.job)
    .bind(maker.run)
    .bind(why)
    .execute(db)
    .await?;
    Ok(())
}

const fn action_name(action: Action) -> &'static str {
    match action {
        Action::LeaveAlone => "leave_alone",
        Action::Remux => "remux",
        Action::Transcode => "transcode",
        Action::Refuse => "refuse",
    }
}

fn version(preset: PresetName) -> i32 {
    i32::try_from(preset.preset().version).unwrap_or(i32::MAX)
}
