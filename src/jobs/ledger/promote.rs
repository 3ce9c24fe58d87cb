//! What the relay moves: due jobs to `queued`, queued jobs to the belt, waiting jobs whose parents are gone.
//!
//! Every function here is one bounded, idempotent statement; two leaders at once do no harm (E3).

use sqlx::{PgExecutor, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Runnable, list_of, stored_priority};
use crate::{
    ids::{JobId, TenantId},
    jobs::{
        belt::{List, Slot},
        job::{Lane, Queue},
    },
};

/// What one round of promotion did.
#[derive(Debug, Default)]
pub struct Due {
    pub runnable: Vec<Runnable>,
    /// Rows moved, including those of queues this version does not know.
    pub moved: usize,
}

/// Makes due jobs runnable, oldest first, at most `limit`. Jobs with a serial key go through [`promote_serial`].
/// `pushed`: the relay pushes what this returns; otherwise it leaves that to [`fill`].
pub async fn promote_due(db: impl PgExecutor<'_>, limit: i64, pushed: bool) -> sqlx::Result<Due> {
    let rows = sqlx::query(
        "with due as (select id from jobs where state = 'scheduled' and run_at <= now() and serial_key is null \
                      order by run_at limit $1 for update skip locked) \
         update jobs j set state = 'queued', queued_at = now(), seq = nextval('job_seq'), pushed = $2, \
                           parked = false, wake_key = null \
         from due where j.id = due.id returning j.id, j.queue, j.lane, j.priority, j.suspect",
    )
    .bind(limit)
    .bind(pushed)
    .fetch_all(db)
    .await?;
    due(&rows)
}

/// The same while a crowd is due: takes at most `per_tenant` of each tenant, so that one tenant's million does not
/// hold back another's one, and leaves the pushing to the fair turns of [`fill`].
pub async fn promote_due_by_turns(db: impl PgExecutor<'_>, per_tenant: i64) -> sqlx::Result<Due> {
    let rows = sqlx::query(
        "with recursive turns as ( \
            (select queue, lane, tenant_id from jobs where state = 'scheduled' \
             order by queue, lane, tenant_id limit 1) \
            union all \
            select n.queue, n.lane, n.tenant_id from turns t cross join lateral ( \
                select queue, lane, tenant_id from jobs \
                where state = 'scheduled' and (queue, lane, tenant_id) > (t.queue, t.lane, t.tenant_id) \
                order by queue, lane, tenant_id limit 1) n \
         ), picked as ( \
            select j.id from turns t cross join lateral ( \
                select id from jobs where state = 'scheduled' and queue = t.queue and lane = t.lane \
                and tenant_id = t.tenant_id and run_at <= now() and serial_key is null \
                order by run_at limit $1 for update skip locked) j \
         ) \
         update jobs j set state = 'queued', queued_at = now(), seq = nextval('job_seq'), parked = false, \
                           wake_key = null \
         from picked where j.id = picked.id returning j.id, j.queue, j.lane, j.priority, j.suspect",
    )
    .bind(per_tenant)
    .fetch_all(db)
    .await?;
    due(&rows)
}

/// Makes the head of each serial order runnable (P6): due, nothing of its key queued or running, and no unfinished
/// predecessor that holds it. A parked predecessor holds nobody; one that backs off holds a follower until the
/// follower's patience ends.
pub async fn promote_serial(db: impl PgExecutor<'_>, limit: i64) -> sqlx::Result<Due> {
    let rows = sqlx::query(
        "with heads as ( \
            select distinct on (j.serial_key) j.id from jobs j \
            where j.state = 'scheduled' and j.serial_key is not null and j.run_at <= now() \
            and not exists (select from jobs o where o.serial_key = j.serial_key and o.state in ('queued', 'running')) \
            and not exists (select from jobs o where o.serial_key = j.serial_key and o.finished_at is null \
                            and not o.parked and o.state in ('scheduled', 'waiting') \
                            and (o.due_at, o.id) < (j.due_at, j.id) \
                            and (j.serial_until is null or j.serial_until > now())) \
            order by j.serial_key, j.due_at, j.id limit $1 \
         ), picked as (select j.id from jobs j join heads on heads.id = j.id where j.state = 'scheduled' \
                       order by j.id for update of j skip locked) \
         update jobs j set state = 'queued', queued_at = now(), seq = nextval('job_seq'), pushed = true, \
                           parked = false, wake_key = null \
         from picked where j.id = picked.id returning j.id, j.queue, j.lane, j.priority, j.suspect",
    )
    .bind(limit)
    .fetch_all(db)
    .await?;
    due(&rows)
}

/// Frees waiting jobs none of whose parents is unfinished: what a crash between two statements left behind (E8).
pub async fn sweep_waiting(db: impl PgExecutor<'_>, limit: i64) -> sqlx::Result<Due> {
    let rows = sqlx::query(
        "with orphans as ( \
            select w.id, exists (select from job_edges e left join jobs p on p.id = e.parent_id \
                                 where e.child_id = w.id and e.on_parent = 'cancel' \
                                 and coalesce(p.state <> 'succeeded', e.open)) as doomed \
            from jobs w where w.state = 'waiting' \
            and not exists (select from job_edges e join jobs p on p.id = e.parent_id \
                            where e.child_id = w.id and p.finished_at is null) \
            order by w.id limit $1 for update of w skip locked \
         ) \
         update jobs j set open_parents = 0, \
             state = case when o.doomed then 'cancelled' else 'scheduled' end::job_state, \
             finished_at = case when o.doomed then now() end, \
             why = case when o.doomed then jsonb_build_object('code', 'parent_ended', \
                   'message', 'a job it depends on did not succeed') end \
         from orphans o where j.id = o.id returning j.id, j.queue, j.lane, j.priority, j.suspect",
    )
    .bind(limit)
    .fetch_all(db)
    .await?;
    due(&rows)
}

/// Wakes what parked while its event was on its way: the event's transaction and the parking did not see each
/// other (E17). Only events of the last minute can be such.
pub async fn sweep_wakes(db: impl PgExecutor<'_>) -> sqlx::Result<u64> {
    let woken = sqlx::query(
        "update jobs j set run_at = now(), parked = false, wake_key = null from job_wakes w \
         where w.at > now() - interval '1 minute' and j.wake_key = w.wake_key and j.state = 'scheduled' \
           and j.claimed_at <= w.at + interval '1 second'",
    )
    .execute(db)
    .await?;
    Ok(woken.rows_affected())
}

/// Suspects of a lane, or those `among` some, that a worker with these kinds could run now; oldest first.
pub async fn runnable_suspects(
    db: impl PgExecutor<'_>,
    queue: Queue,
    lane: Lane,
    kinds: &[&str],
    among: Option<&[JobId]>,
    limit: usize,
) -> sqlx::Result<Vec<JobId>> {
    sqlx::query_scalar(
        "select id from jobs where state = 'queued' and suspect and queue = $1 and lane = $2 and kind = any($3) \
         and ($4::uuid[] is null or id = any($4)) \
         and not exists (select from queue_controls where queue = $1 and paused_at is not null) order by seq limit $5",
    )
    .bind(queue.as_str())
    .bind(lane.as_str())
    .bind(kinds)
    .bind(among.map(|jobs| jobs.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>()))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(db)
    .await
}

/// A list and a tenant with queued jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Waiting {
    pub list: List,
    pub tenant: TenantId,
}

/// Every (list, tenant) that has queued jobs in queues that are not paused; one index probe each, however long
/// they are.
pub async fn waiting(db: impl PgExecutor<'_>, limit: i64) -> sqlx::Result<Vec<Waiting>> {
    let rows = sqlx::query(
        "with recursive turns as ( \
            (select queue, lane, priority, tenant_id from jobs where state = 'queued' and not suspect \
             order by queue, lane, priority, tenant_id limit 1) \
            union all \
            select n.queue, n.lane, n.priority, n.tenant_id from turns t cross join lateral ( \
                select queue, lane, priority, tenant_id from jobs where state = 'queued' and not suspect \
                and (queue, lane, priority, tenant_id) > (t.queue, t.lane, t.priority, t.tenant_id) \
                order by queue, lane, priority, tenant_id limit 1) n \
         ) \
         select queue, lane, priority, tenant_id from turns \
         where not exists (select from queue_controls c where c.queue = turns.queue and c.paused_at is not null) \
         limit $1",
    )
    .bind(limit)
    .fetch_all(db)
    .await?;
    let mut waiting = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(list) = list_of(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, false) {
            waiting.push(Waiting { list, tenant: row.try_get(3)? });
        }
    }
    Ok(waiting)
}

/// One tenant's next turn on a list.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    pub tenant: TenantId,
    /// Everything up to here has been pushed.
    pub after_seq: i64,
    pub limit: i64,
}

/// The next queued rows of each turn in order, as (tenant, id, seq). Rows whose maker pushes them are left out.
pub async fn fill(db: impl PgExecutor<'_>, list: List, turns: &[Turn]) -> sqlx::Result<Vec<(TenantId, JobId, i64)>> {
    let Slot::Priority(priority) = list.slot else { return Ok(Vec::new()) };
    sqlx::query_as(
        "select t.tenant_id, j.id, j.seq \
         from unnest($1::uuid[], $2::bigint[], $3::bigint[]) with ordinality \
              as t (tenant_id, after_seq, turn, place) \
         cross join lateral (select id, seq from jobs where state = 'queued' and not suspect and queue = $4 \
                             and lane = $5 and priority = $6 and tenant_id = t.tenant_id and seq > t.after_seq \
                             and not pushed order by seq limit t.turn) j \
         order by t.place, j.seq",
    )
    .bind(turns.iter().map(|turn| turn.tenant.uuid()).collect::<Vec<Uuid>>())
    .bind(turns.iter().map(|turn| turn.after_seq).collect::<Vec<_>>())
    .bind(turns.iter().map(|turn| turn.limit).collect::<Vec<_>>())
    .bind(list.queue.as_str())
    .bind(list.lane.as_str())
    .bind(stored_priority(priority))
    .fetch_all(db)
    .await
}

/// Queued rows of a list that should be on the belt: pushed by whoever made them, or passed by the relay's
/// `cursors`; oldest first. The audit compares these with what the belt really holds (E5, E6). Looks at the first
/// `limit` rows of each tenant, so that a million waiting rows cost no more: one behind them comes to the front.
pub async fn expected_on_belt(
    db: impl PgExecutor<'_>,
    list: List,
    cursors: &[(TenantId, i64)],
    limit: i64,
) -> sqlx::Result<Vec<JobId>> {
    match list.slot {
        Slot::Suspects => {
            sqlx::query_scalar(
                "select id from jobs where state = 'queued' and suspect and queue = $1 and lane = $2 \
                 order by seq limit $3",
            )
            .bind(list.queue.as_str())
            .bind(list.lane.as_str())
            .bind(limit)
            .fetch_all(db)
            .await
        }
        Slot::Priority(priority) => {
            sqlx::query_scalar(
                "select j.id from unnest($4::uuid[], $5::bigint[]) as t (tenant_id, upto) \
                 cross join lateral (select id, pushed, seq from jobs where state = 'queued' and not suspect \
                     and queue = $1 and lane = $2 and priority = $3 and tenant_id = t.tenant_id \
                     order by seq limit $6) j \
                 where j.pushed or j.seq <= t.upto limit $6",
            )
            .bind(list.queue.as_str())
            .bind(list.lane.as_str())
            .bind(stored_priority(priority))
            .bind(cursors.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<Uuid>>())
            .bind(cursors.iter().map(|(_, seq)| *seq).collect::<Vec<_>>())
            .bind(limit)
            .fetch_all(db)
            .await
        }
    }
}

/// Lists that have suspects queued.
pub async fn suspect_lists(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<List>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("select distinct queue, lane from jobs where state = 'queued' and suspect")
            .fetch_all(db)
            .await?;
    Ok(rows.iter().filter_map(|(queue, lane)| list_of(queue, lane, 0, true)).collect())
}

fn due(rows: &[PgRow]) -> sqlx::Result<Due> {
    let mut due = Due { moved: rows.len(), runnable: Vec::with_capacity(rows.len()) };
    for row in rows {
        if let Some(list) = list_of(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?) {
            due.runnable.push(Runnable { job: row.try_get(0)?, list });
        }
    }
    Ok(due)
}
