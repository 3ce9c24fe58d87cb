//! The `publications` table: every change of a phase is one guarded update that names the phase before and the fence.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::{FromRow, PgConnection, PgExecutor, types::Json};

use super::{
    LatePolicy, Phase,
    files::{self, File},
};
use crate::{
    connections::store::stored,
    identity::Reach,
    ids::{ConnectionId, GroupId, JobId, PostId, PublicationId, TenantId},
    platforms::{Draft, Explanation, Platform, RemotePost},
};

#[derive(Debug, Clone)]
pub struct Publication {
    pub id: PublicationId,
    pub tenant: TenantId,
    pub post: PostId,
    pub connection: ConnectionId,
    pub platform: Platform,
    pub group: Option<GroupId>,
    pub job: JobId,
    pub phase: Phase,
    pub fence: i32,
    pub due_at: DateTime<Utc>,
    pub wall_time: Option<NaiveDateTime>,
    pub time_zone: Option<String>,
    pub late_policy: LatePolicy,
    pub max_lateness: Duration,
    pub lateness_accepted: bool,
    pub variant_job: Option<JobId>,
    pub content: Option<Draft>,
    pub fingerprint: Option<String>,
    pub attempt: i16,
    pub restages: i16,
    /// The second chances of its job that it has taken note of.
    pub retries_seen: i16,
    pub remote: Option<RemotePost>,
    /// When it was removed from the platform on its owner's word.
    pub remote_deleted_at: Option<DateTime<Utc>>,
    pub problem: Option<Explanation>,
    pub sent_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    /// The server's time when this was read.
    pub now: DateTime<Utc>,
}

#[derive(FromRow)]
struct Row {
    id: PublicationId,
    tenant_id: TenantId,
    post_id: PostId,
    connection_id: ConnectionId,
    platform: String,
    group_id: Option<GroupId>,
    job_id: JobId,
    phase: String,
    fence: i32,
    due_at: DateTime<Utc>,
    wall_time: Option<NaiveDateTime>,
    time_zone: Option<String>,
    late_policy: String,
    max_lateness_s: i32,
    lateness_accepted: bool,
    variant_job_id: Option<JobId>,
    content: Option<Json<Draft>>,
    fingerprint: Option<String>,
    attempt: i16,
    restages: i16,
    retries_seen: i16,
    remote_id: Option<String>,
    remote_deleted_at: Option<DateTime<Utc>>,
    permalink: Option<String>,
    problem: Option<Json<Explanation>>,
    sent_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    now: DateTime<Utc>,
}

impl TryFrom<Row> for Publication {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let permalink = row.permalink.unwrap_or_default();
        Ok(Self {
            id: row.id,
            tenant: row.tenant_id,
            post: row.post_id,
            connection: row.connection_id,
            platform: stored(&row.platform)?,
            group: row.group_id,
            job: row.job_id,
            phase: stored(&row.phase)?,
            fence: row.fence,
            due_at: row.due_at,
            wall_time: row.wall_time,
            time_zone: row.time_zone,
            late_policy: stored(&row.late_policy)?,
            max_lateness: Duration::from_secs(row.max_lateness_s.unsigned_abs().into()),
            lateness_accepted: row.lateness_accepted,
            variant_job: row.variant_job_id,
            content: row.content.map(|Json(content)| content),
            fingerprint: row.fingerprint,
            attempt: row.attempt,
            restages: row.restages,
            retries_seen: row.retries_seen,
            remote_deleted_at: row.remote_deleted_at,
            remote: row.remote_id.map(|id| RemotePost { id, permalink }),
            problem: row.problem.map(|Json(problem)| problem),
            sent_at: row.sent_at,
            created_at: row.created_at,
            now: row.now,
        })
    }
}

/// Everything of a row, in one place: `sqlx` takes literal text only.
macro_rules! columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, tenant_id, post_id, connection_id, platform, group_id, job_id, phase, fence, due_at, wall_time, \
             time_zone, late_policy, max_lateness_s, lateness_accepted, variant_job_id, content, fingerprint, attempt, \
             restages, retries_seen, remote_id, remote_deleted_at, permalink, problem, sent_at, created_at, \
             now() as now ",
            $after
        )
    };
}

/// A publication about to be planned.
pub struct NewPublication {
    pub id: PublicationId,
    pub tenant: TenantId,
    pub post: PostId,
    pub connection: ConnectionId,
    pub platform: Platform,
    pub group: Option<GroupId>,
    pub job: JobId,
    /// `None`: now.
    pub due_at: Option<DateTime<Utc>>,
    pub wall_time: Option<NaiveDateTime>,
    pub time_zone: Option<String>,
    pub late_policy: LatePolicy,
    pub max_lateness: Duration,
    pub variant_job: Option<JobId>,
}

pub async fn insert(db: impl PgExecutor<'_>, new: &NewPublication) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar(
        "insert into publications (id, tenant_id, post_id, connection_id, platform, group_id, job_id, due_at, \
           wall_time, time_zone, late_policy, max_lateness_s, variant_job_id) \
         values ($1, $2, $3, $4, $5, $6, $7, coalesce($8, now()), $9, $10, $11, $12, $13) returning due_at",
    )
    .bind(new.id)
    .bind(new.tenant)
    .bind(new.post)
    .bind(new.connection)
    .bind(new.platform.as_str())
    .bind(new.group)
    .bind(new.job)
    .bind(new.due_at)
    .bind(new.wall_time)
    .bind(&new.time_zone)
    .bind(new.late_policy.as_str())
    .bind(i32::try_from(new.max_lateness.as_secs()).unwrap_or(i32::MAX))
    .bind(new.variant_job)
    .fetch_one(db)
    .await
}

/// Takes the publication up for a run of a job: whoever had it before can change nothing any more. `None`: it is not
/// there, or the run has lost its job and must not take it from the one that has it. `retries` are the second chances
/// that the publish job was given.
pub async fn take(
    db: impl PgExecutor<'_>,
    id: PublicationId,
    job: JobId,
    run: i32,
    retries: Option<i16>,
) -> sqlx::Result<Option<Publication>> {
    // One that has failed takes note when it opens again: until then the second chance is not used up.
    sqlx::query_as::<_, Row>(columns!(
        "update publications set fence = fence + 1, \
           retries_seen = case when phase = 'failed' then retries_seen else coalesce($4, retries_seen) end \
         where id = $1 and exists (select from jobs where jobs.id = $2 and run = $3 and state = 'running') returning",
        ""
    ))
    .bind(id)
    .bind(job)
    .bind(run)
    .bind(retries)
    .fetch_optional(db)
    .await?
    .map(Publication::try_from)
    .transpose()
}

pub async fn reload(db: impl PgExecutor<'_>, id: PublicationId) -> sqlx::Result<Option<Publication>> {
    sqlx::query_as::<_, Row>(columns!("select", "from publications where id = $1"))
        .bind(id)
        .fetch_optional(db)
        .await?
        .map(Publication::try_from)
        .transpose()
}

pub async fn get(db: impl PgExecutor<'_>, reach: Reach<'_>, id: PublicationId) -> sqlx::Result<Option<Publication>> {
    sqlx::query_as::<_, Row>(columns!(
        "select",
        "from publications where tenant_id = $1 and id = $2 and ($3::uuid[] is null or connection_id = any($3))"
    ))
    .bind(reach.tenant)
    .bind(id)
    .bind(reach.connections)
    .fetch_optional(db)
    .await?
    .map(Publication::try_from)
    .transpose()
}

/// Of a post, newest first.
pub async fn of_post(
    db: impl PgExecutor<'_>,
    reach: Reach<'_>,
    post: PostId,
    before: Option<PublicationId>,
    limit: i64,
) -> sqlx::Result<Vec<Publication>> {
    sqlx::query_as::<_, Row>(columns!(
        "select",
        "from publications where tenant_id = $1 and post_id = $2 and ($3::uuid is null or id < $3) \
         and ($5::uuid[] is null or connection_id = any($5)) order by id desc limit $4"
    ))
    .bind(reach.tenant)
    .bind(post)
    .bind(before)
    .bind(limit)
    .bind(reach.connections)
    .fetch_all(db)
    .await?
    .into_iter()
    .map(Publication::try_from)
    .collect()
}

/// What came of freezing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frozen {
    Done,
    Overtaken,
    /// A file was deleted meanwhile; nothing may be kept of the transaction.
    MediaGone,
}

/// `planned` to `prepared`: from here on the content is what it is (P5).
pub async fn freeze(
    tx: &mut PgConnection,
    publication: &Publication,
    content: &Draft,
    fingerprint: &str,
    media: &[File],
) -> sqlx::Result<Frozen> {
    let done = sqlx::query(
        "update publications set phase = 'prepared', content = $3, fingerprint = $4, problem = null, \
           updated_at = now() where id = $1 and fence = $2 and phase = 'planned'",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .bind(Json(content))
    .bind(fingerprint)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() != 1 {
        return Ok(Frozen::Overtaken);
    }
    Ok(if files::replace(tx, publication, media).await? { Frozen::Done } else { Frozen::MediaGone })
}

/// Counts one more job that makes media, asked for by a run itself; `false` when there were so many already.
pub async fn count_making(tx: &mut PgConnection, publication: &Publication, most: i16) -> sqlx::Result<bool> {
    let done = sqlx::query("update publications set makings = makings + 1 where id = $1 and makings < $2")
        .bind(publication.id)
        .bind(most)
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// From the phase it was read in to `to`, with nothing but the reason changed.
///
/// # Panics
/// When there is no such way: a fault of the code, not of the world.
pub async fn advance(
    db: impl PgExecutor<'_>,
    publication: &Publication,
    to: Phase,
    problem: Option<&Explanation>,
) -> sqlx::Result<bool> {
    let from = publication.phase;
    assert!(from.may_become(to), "{from} never becomes {to}");
    assert!(to != Phase::Sent, "what is sent has a remote id");
    let done = sqlx::query(
        "update publications set phase = $4, problem = $5, updated_at = now() \
         where id = $1 and fence = $2 and phase = $3",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .bind(from.as_str())
    .bind(to.as_str())
    .bind(problem.map(Json))
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Why it waits, for whoever asks.
pub async fn explain(db: impl PgExecutor<'_>, publication: &Publication, problem: &Explanation) -> sqlx::Result<()> {
    sqlx::query("update publications set problem = $3, updated_at = now() where id = $1 and fence = $2")
        .bind(publication.id)
        .bind(publication.fence)
        .bind(Json(problem))
        .execute(db)
        .await?;
    Ok(())
}

/// What became of a remote id that was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Kept,
    /// Another publication holds this remote post.
    Taken,
    /// The publication has moved on.
    Overtaken,
}

/// It exists: committed by itself, before anything else is done about it (P10). What the answer of the latest attempt
/// itself said is kept whoever has the publication by now; what was found by looking, only by the one who has it.
pub async fn sent(
    db: impl PgExecutor<'_>,
    publication: &Publication,
    remote: &RemotePost,
    answered: bool,
) -> sqlx::Result<Kept> {
    let sent = sqlx::query(
        "update publications set phase = 'sent', remote_id = $3, permalink = $4, problem = null, sent_at = now(), \
           updated_at = now() \
         where id = $1 and phase in ('sending', 'unconfirmed') and (fence = $2 or ($5 and attempt = $6))",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .bind(&remote.id)
    .bind(&remote.permalink)
    .bind(answered)
    .bind(publication.attempt)
    .execute(db)
    .await;
    match sent {
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("publications_remote_post_key") => {
            Ok(Kept::Taken)
        }
        sent => Ok(if sent?.rows_affected() == 1 { Kept::Kept } else { Kept::Overtaken }),
    }
}

/// A second chance for what failed: from the start, with the post as it is now.
pub async fn reopen(db: impl PgExecutor<'_>, publication: &Publication, retries: i16) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update publications set phase = 'planned', content = null, fingerprint = null, problem = null, restages = 0, \
           makings = 0, retries_seen = $3, updated_at = now() \
         where id = $1 and fence = $2 and phase = 'failed' and retries_seen < $3",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .bind(retries)
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The platform has forgotten the media: once more from `prepared`.
pub async fn restage(tx: &mut PgConnection, publication: &Publication) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update publications set phase = 'prepared', restages = restages + 1, updated_at = now() \
         where id = $1 and fence = $2 and phase = 'uploaded'",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 1 {
        files::forget_all(tx, publication.id).await?;
    }
    Ok(done.rows_affected() == 1)
}

/// What a user's cancel came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    Cancelled,
    /// A creating request may have left: the outcome is found out first (P4).
    TooLate(Phase),
}

/// Cancels what has certainly not left. `None`: there is no such publication.
pub async fn cancel(tx: &mut PgConnection, tenant: TenantId, id: PublicationId) -> sqlx::Result<Option<Cancel>> {
    // Locked before it is judged: the intent is either committed, or finds the phase changed.
    let phase: Option<String> =
        sqlx::query_scalar("select phase from publications where tenant_id = $1 and id = $2 for update")
            .bind(tenant)
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
    let Some(phase) = phase else { return Ok(None) };
    let phase: Phase = stored(&phase)?;
    if phase == Phase::Cancelled {
        return Ok(Some(Cancel::Cancelled));
    }
    if !phase.may_become(Phase::Cancelled) || phase.is_in_doubt() {
        return Ok(Some(Cancel::TooLate(phase)));
    }
    sqlx::query("update publications set phase = 'cancelled', updated_at = now() where id = $1")
        .bind(id)
        .execute(tx)
        .await?;
    Ok(Some(Cancel::Cancelled))
}

/// An account is disconnected: what has certainly not left will not. What is in doubt stays so.
pub async fn cancel_of_connection(tx: &mut PgConnection, connection: ConnectionId) -> sqlx::Result<()> {
    let problem = Explanation::new(
        "connection_removed",
        crate::platforms::Turn::User,
        "The account was disconnected before the post went out.",
    );
    sqlx::query(
        "update publications set phase = 'cancelled', problem = $2, updated_at = now() \
         where connection_id = $1 and phase in ('planned', 'prepared', 'uploaded', 'needs_reconnect')",
    )
    .bind(connection)
    .bind(Json(problem))
    .execute(tx)
    .await?;
    Ok(())
}

/// The user says: send it although it is late.
pub async fn accept_lateness(tx: &mut PgConnection, tenant: TenantId, id: PublicationId) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update publications set lateness_accepted = true, updated_at = now() \
         where tenant_id = $1 and id = $2 and phase in ('planned', 'prepared', 'uploaded')",
    )
    .bind(tenant)
    .bind(id)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}
