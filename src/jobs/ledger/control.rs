//! What people ask of jobs and queues: cancel, retry, pause, resume, wake. What is asked of a job leaves a line in its
//! timeline, written by the same statement; `by` says there who asked.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};

use super::stored_priority;
use crate::{
    ids::{JobId, TenantId},
    jobs::job::{Priority, Queue, State},
};

/// What a request to cancel met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    Cancelled,
    /// It runs; its worker stops it within a second or says why not.
    Requested,
    /// It had ended already.
    TooLate(State),
    /// What it does elsewhere may have happened: it goes on until the outcome is known.
    Committed,
    NotFound,
}

/// Cancels a job that has not started, or asks for the end of one that runs. `tenant`: `None` for operators.
pub async fn cancel(
    db: &mut PgConnection,
    tenant: Option<TenantId>,
    job: JobId,
    by: &str,
) -> sqlx::Result<CancelOutcome> {
    let changed: Option<String> = sqlx::query_scalar(
        "with asked as ( \
            update jobs set cancel_requested = true, \
                state = case when state = 'running' then 'running' else 'cancelled' end::job_state, \
                finished_at = case when state <> 'running' then now() end, open_parents = 0, \
                why = case when state = 'running' then why \
                           else jsonb_build_object('code', 'cancelled', 'message', 'cancelled on request') end \
            where id = $1 and ($2::uuid is null or tenant_id = $2) \
              and state in ('waiting', 'scheduled', 'queued', 'running') and not committed returning id, state \
         ), noted as ( \
            insert into job_notes (job_id, what, detail) \
            select id, 'cancel_requested', jsonb_build_object('by', $3::text) from asked \
         ) \
         select state::text from asked",
    )
    .bind(job)
    .bind(tenant)
    .bind(by)
    .fetch_optional(&mut *db)
    .await?;
    match changed.as_deref() {
        Some("running") => return Ok(CancelOutcome::Requested),
        Some(_) => return Ok(CancelOutcome::Cancelled),
        None => {}
    }
    let state: Option<String> =
        sqlx::query_scalar("select state::text from jobs where id = $1 and ($2::uuid is null or tenant_id = $2)")
            .bind(job)
            .bind(tenant)
            .fetch_optional(db)
            .await?;
    match state.map(|state| state.parse::<State>()) {
        None => Ok(CancelOutcome::NotFound),
        Some(Ok(state)) if state.is_final() => Ok(CancelOutcome::TooLate(state)),
        Some(Ok(_)) => Ok(CancelOutcome::Committed),
        Some(Err(error)) => Err(sqlx::Error::Decode(error.into())),
    }
}

/// From here on the job is not cancelled any more: what it is about to do elsewhere cannot be called back. `false`:
/// the run has lost its job, or a cancellation came first, and nothing may be done. Call in the transaction that
/// puts on record what is about to be done.
pub async fn commit(tx: &mut PgConnection, job: JobId, run: i32) -> sqlx::Result<bool> {
    let committed = sqlx::query(
        "update jobs set committed = true \
         where id = $1 and run = $2 and state = 'running' and not cancel_requested",
    )
    .bind(job)
    .bind(run)
    .execute(tx)
    .await?;
    Ok(committed.rows_affected() == 1)
}

/// For jobs that nobody may cancel at all. Call in the transaction that enqueues them.
pub async fn commit_unstarted(tx: &mut PgConnection, job: JobId) -> sqlx::Result<()> {
    sqlx::query("update jobs set committed = true where id = $1").bind(job).execute(tx).await?;
    Ok(())
}

/// Whether what the job did elsewhere is not settled yet.
pub async fn is_committed(db: impl PgExecutor<'_>, job: JobId) -> sqlx::Result<bool> {
    let committed: Option<bool> =
        sqlx::query_scalar("select committed from jobs where id = $1").bind(job).fetch_optional(db).await?;
    Ok(committed == Some(true))
}

/// The outcome is known: the job may be cancelled, or run once more, as any other.
pub async fn uncommit(tx: &mut PgConnection, job: JobId) -> sqlx::Result<()> {
    sqlx::query("update jobs set committed = false where id = $1 and committed").bind(job).execute(tx).await?;
    Ok(())
}

/// What a job that is `retried` had come to `before` that: its row forgets it.
macro_rules! noting_retries {
    ($by:literal) => {
        concat!(
            "noted as ( \
                insert into job_notes (job_id, at, what, detail) \
                select b.id, n.at, n.what, n.detail from before b join retried r on r.id = b.id cross join lateral ( \
                    values (b.queued_at, 'queued', 'null'::jsonb), \
                           (b.finished_at, b.state::text, coalesce(b.why, 'null')), \
                           (now(), 'retry_requested', jsonb_build_object('by', ",
            $by,
            "::text))) as n (at, what, detail) \
                where n.at is not null \
            )"
        )
    };
}

/// Runs a failed or cancelled job once more, with all its attempts. `None`: there is no such job, it is in another
/// state, what it did elsewhere is not settled, or the same work is under way as another job.
pub async fn request_retry(
    db: impl PgExecutor<'_>,
    tenant: Option<TenantId>,
    job: JobId,
    by: &str,
) -> sqlx::Result<Option<JobId>> {
    // Parents that are still under way are locked while they are counted, so that none ends between (E8); what the
    // others came to has been settled, or was what this retry overrules.
    sqlx::query_scalar(concat!(
        "with open as materialized ( \
            select p.id from job_edges e join jobs p on p.id = e.parent_id \
            where e.child_id = $1 and p.finished_at is null order by p.id for update of p \
         ), before as materialized ( \
            select id, queued_at, finished_at, state, why from jobs where id = $1 \
         ), retried as ( \
            update jobs set state = case when exists (select from open) then 'waiting' else 'scheduled' end::job_state, \
                open_parents = (select count(*) from open), run_at = now(), finished_at = null, attempt = 0, \
                crashes = 0, blame = 0, suspect = false, cancel_requested = false, parked = false, wake_key = null, \
                why = null, result = null, retries = retries + 1 \
            where id = $1 and ($2::uuid is null or tenant_id = $2) and state in ('failed', 'cancelled') \
            and not committed \
            and (unique_key is null or not exists ( \
                select from jobs o where o.tenant_id = jobs.tenant_id and o.kind = jobs.kind \
                and o.unique_key = jobs.unique_key and o.finished_at is null)) returning id \
         ), edges as ( \
            update job_edges e set open = exists (select from open where open.id = e.parent_id) \
            from retried r where e.child_id = r.id \
         ), ",
        noting_retries!("$3"),
        " select id from retried",
    ))
    .bind(job)
    .bind(tenant)
    .bind(by)
    .fetch_optional(db)
    .await
}

/// Gives a job that has not ended another priority. One that is queued comes to the end of its new list; one that runs
/// has it should it run again. `None`: there is no such job, or it has ended.
pub async fn set_priority(
    db: impl PgExecutor<'_>,
    tenant: Option<TenantId>,
    job: JobId,
    priority: Priority,
    by: &str,
) -> sqlx::Result<Option<JobId>> {
    sqlx::query_scalar(
        "with before as materialized ( \
            select id, priority from jobs where id = $1 for no key update \
         ), changed as ( \
            update jobs set priority = $3, \
                seq = case when state = 'queued' and priority <> $3 then nextval('job_seq') else seq end, \
                pushed = pushed and priority = $3 \
            where id = (select id from before) and ($2::uuid is null or tenant_id = $2) and finished_at is null \
            returning id \
         ), noted as ( \
            insert into job_notes (job_id, what, detail) \
            select b.id, 'priority_changed', jsonb_build_object('from', n.names[b.priority + 1], 'to', n.names[$3 + 1], \
                                                                'by', $4::text) \
            from before b join changed c on c.id = b.id, (select array['high', 'normal', 'low'] as names) n \
            where b.priority <> $3 \
         ) \
         select id from changed",
    )
    .bind(job)
    .bind(tenant)
    .bind(stored_priority(priority))
    .bind(by)
    .fetch_optional(db)
    .await
}

/// Retries jobs of a queue that failed before `before`, oldest first, at most `limit` a call; with `kind`, only those.
/// Each waits again for its parents that are under way, also for those that are retried with it. Jobs whose unique key
/// was taken meanwhile are left as they are; of several that failed under one key the newest is retried. Returns how many
/// in each workspace.
pub async fn retry_failed(
    db: impl PgExecutor<'_>,
    queue: Queue,
    kind: Option<&str>,
    before: DateTime<Utc>,
    limit: i64,
    by: &str,
) -> sqlx::Result<Vec<(TenantId, i64)>> {
    // As in `request_retry`, and in its order: parents are locked before the jobs themselves, so that two such requests
    // never wait for each other. Edges and parents are looked up one by one, for the reason of `sweep_waiting`'s.
    sqlx::query_as(concat!(
        "with wanted as materialized ( \
            select f.id from jobs f where f.state = 'failed' and f.queue = $1 and f.finished_at < $4 \
            and ($2::text is null or f.kind = $2) \
            and not f.committed and (f.unique_key is null or not exists ( \
                select from jobs o where o.tenant_id = f.tenant_id and o.kind = f.kind \
                and o.unique_key = f.unique_key and o.finished_at is null)) \
            order by f.finished_at limit $3 \
         ), open as materialized ( \
            select p.id from jobs p where p.finished_at is null and p.id = any(array( \
                select e.parent_id from job_edges e where e.child_id = any(array(select id from wanted)))) \
            order by p.id for update of p \
         ), picked as materialized ( \
            select f.id, f.tenant_id, f.kind, f.unique_key, f.queued_at, f.finished_at, f.state, f.why from jobs f \
            where f.id = any(array(select id from wanted)) and f.finished_at < $4 and not f.committed \
            and (select count(*) from open) >= 0 for update of f skip locked \
         ), one_per_key as materialized ( \
            select distinct on (tenant_id, kind, coalesce(unique_key, id::text)) id from picked \
            order by tenant_id, kind, coalesce(unique_key, id::text), id desc \
         ), edges as materialized ( \
            select e.parent_id, e.child_id, e.parent_id in (select id from open union all select id from one_per_key) \
                as open \
            from job_edges e where e.child_id = any(array(select id from one_per_key)) \
         ), awaited as materialized ( \
            select child_id, count(*)::smallint as parents from edges where open group by child_id \
         ), reopened as ( \
            update job_edges e set open = k.open from edges k \
            where e.parent_id = k.parent_id and e.child_id = k.child_id and e.open <> k.open \
         ), parents as ( \
            select k.id, coalesce(a.parents, 0) as open from one_per_key k left join awaited a on a.child_id = k.id \
         ), before as (select id, queued_at, finished_at, state, why from picked \
         ), retried as ( \
            update jobs j set state = case when p.open > 0 then 'waiting' else 'scheduled' end::job_state, \
                open_parents = p.open, run_at = now(), finished_at = null, attempt = 0, crashes = 0, blame = 0, \
                suspect = false, cancel_requested = false, parked = false, wake_key = null, why = null, \
                result = null, retries = j.retries + 1 \
            from parents p where j.id = p.id and j.id = any(array(select id from one_per_key)) returning j.id, j.tenant_id \
         ), ",
        noting_retries!("$5"),
        " select tenant_id, count(*) from retried group by tenant_id",
    ))
    .bind(queue.as_str())
    .bind(kind)
    .bind(limit)
    .bind(before)
    .bind(by)
    .fetch_all(db)
    .await
}

/// Nothing of a paused queue starts; what runs goes on.
pub async fn pause(db: impl PgExecutor<'_>, queue: Queue, by: &str) -> sqlx::Result<()> {
    sqlx::query(
        "insert into queue_controls (queue, paused_at, paused_by) values ($1, now(), $2) \
         on conflict (queue) do update set paused_at = coalesce(queue_controls.paused_at, now()), \
                                           paused_by = coalesce(queue_controls.paused_by, excluded.paused_by)",
    )
    .bind(queue.as_str())
    .bind(by)
    .execute(db)
    .await?;
    Ok(())
}

/// Lets a queue go on, from the time that is returned. `None`: it had not been paused.
pub async fn resume(db: impl PgExecutor<'_>, queue: Queue) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar(
        "update queue_controls set paused_at = null, paused_by = null where queue = $1 and paused_at is not null \
         returning now()",
    )
    .bind(queue.as_str())
    .fetch_optional(db)
    .await
}

/// Leaves rows of a queue to the relay's pushing that their makers had pushed before `before`: ids that were popped
/// during a pause were not claimed. Returns how many, at most `limit`.
pub async fn leave_to_relay(
    db: impl PgExecutor<'_>,
    queue: Queue,
    before: DateTime<Utc>,
    limit: i64,
) -> sqlx::Result<u64> {
    let left = sqlx::query(
        "with popped as (select ctid as place from jobs where queue = $1 and state = 'queued' and pushed \
                         and not suspect and queued_at < $2 order by queue, lane, priority limit $3 \
                         for no key update skip locked) \
         update jobs j set pushed = false from popped p where j.ctid = p.place",
    )
    .bind(queue.as_str())
    .bind(before)
    .bind(limit)
    .execute(db)
    .await?;
    Ok(left.rows_affected())
}

/// A paused queue.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Paused {
    pub queue: String,
    pub paused_at: DateTime<Utc>,
    pub paused_by: Option<String>,
}

pub async fn paused(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Paused>> {
    sqlx::query_as("select queue, paused_at, paused_by from queue_controls where paused_at is not null order by queue")
        .fetch_all(db)
        .await
}

/// Brings forward what is parked on `wake` (E17), and remembers the event for a run that is about to park and has
/// looked before it came.
pub async fn wake(db: impl PgExecutor<'_>, wake: &str) -> sqlx::Result<u64> {
    // A function of the migrations: events are no tenant's, and in a call only what is its tenant's is woken.
    let woken: i64 = sqlx::query_scalar("select app.wake($1)").bind(wake).fetch_one(db).await?;
    Ok(woken.unsigned_abs())
}
