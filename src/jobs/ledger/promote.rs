//! What the relay moves: due jobs to `queued`, waiting jobs whose parents are gone, jobs that parked too late.
//!
//! Every function here is one bounded, idempotent statement; two leaders at once do no harm (E3). What cannot be found
//! by one short look is found by walking: a cursor comes back and goes in again, `None` begins anew.

use sqlx::{PgExecutor, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Runnable, list_of};

/// What one round of promotion did.
#[derive(Debug, Default)]
pub struct Due {
    pub runnable: Vec<Runnable>,
    /// Rows moved, including those of queues this version does not know.
    pub moved: usize,
}

/// Makes due jobs runnable, oldest first, at most `limit`. Jobs with a serial key go through [`promote_serial`].
/// `pushed`: the relay pushes what this returns; otherwise it leaves that to [`super::fill`].
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

/// A lane of a queue and a tenant, where a walk over all of them has come to.
pub type Group = (String, String, Uuid);

/// The same while a crowd is due: `limit` rows are shared out between the tenants that have something due, so that one
/// tenant's million does not hold back another's one; the pushing is left to the fair turns of [`super::fill`]. Looks
/// at `groups` lanes and tenants after `after`; returns where to go on.
pub async fn promote_due_by_turns(
    db: impl PgExecutor<'_>,
    after: Option<&Group>,
    groups: i64,
    limit: i64,
) -> sqlx::Result<(Due, Option<Group>)> {
    let rows = sqlx::query(
        "with recursive turns as ( \
            (select queue, lane, tenant_id, run_at, 1 as place from jobs where state = 'scheduled' \
             and serial_key is null and (queue, lane, tenant_id) > ($1, $2, $3) \
             order by queue, lane, tenant_id, run_at limit 1) \
            union all \
            select n.queue, n.lane, n.tenant_id, n.run_at, t.place + 1 from turns t cross join lateral ( \
                select queue, lane, tenant_id, run_at from jobs where state = 'scheduled' and serial_key is null \
                and (queue, lane, tenant_id) > (t.queue, t.lane, t.tenant_id) \
                order by queue, lane, tenant_id, run_at limit 1) n \
            where t.place < $4 \
         ), shared as ( \
            select queue, lane, tenant_id, ($5 + count(*) over () - 1) / count(*) over () as share \
            from turns where run_at <= now() \
         ), picked as ( \
            select j.place from shared s cross join lateral ( \
                select ctid as place from jobs where state = 'scheduled' and serial_key is null and queue = s.queue \
                and lane = s.lane and tenant_id = s.tenant_id and run_at <= now() \
                order by run_at limit s.share for no key update skip locked) j limit $5 \
         ), moved as ( \
            update jobs j set state = 'queued', queued_at = now(), seq = nextval('job_seq'), parked = false, \
                              wake_key = null \
            from picked where j.ctid = picked.place returning j.id, j.queue, j.lane, j.priority, j.suspect \
         ) \
         select id, queue, lane, priority, suspect, null::uuid as tenant_id from moved \
         union all select null, queue, lane, null, null, tenant_id from turns where place = $4",
    )
    .bind(after.map_or("", |(queue, ..)| queue))
    .bind(after.map_or("", |(_, lane, _)| lane))
    .bind(after.map_or(Uuid::nil(), |(.., tenant)| *tenant))
    .bind(groups)
    .bind(limit)
    .fetch_all(db)
    .await?;
    let last = rows.iter().find(|row| matches!(row.try_get::<Option<Uuid>, _>(5), Ok(Some(_))));
    let next = match last {
        Some(row) => Some((row.try_get(1)?, row.try_get(2)?, row.try_get(5)?)),
        None => None,
    };
    Ok((due(&rows)?, next))
}

/// Of the due rows `candidates` (id, serial_key, due_at, serial_until), makes the head of each serial order runnable
/// (P6): nothing of its key queued or running, and no unfinished predecessor that holds it. A parked predecessor holds
/// nobody; one that backs off holds a follower until the follower's patience ends. What `$more` selects, if anything,
/// comes back beside what moved: there is more to look at. The heads are an array for the reason of [`sweep_waiting`]'s.
macro_rules! promoting_heads {
    ($candidates:literal, $more:literal) => {
        concat!(
            "with recursive ",
            $candidates,
            ", heads as ( \
                select distinct on (c.serial_key) c.id from candidates c \
                where not exists (select from jobs o where o.serial_key = c.serial_key \
                                  and o.state in ('queued', 'running')) \
                and (c.serial_until <= now() \
                     or not exists (select from jobs o where o.serial_key = c.serial_key \
                                    and o.state in ('waiting', 'scheduled') and not o.parked \
                                    and (o.due_at, o.id) < (c.due_at, c.id))) \
                order by c.serial_key, c.due_at, c.id \
             ), picked as ( \
                select j.ctid as place from jobs j where j.id = any(array(select id from heads)) \
                and j.state = 'scheduled' order by j.id for no key update of j skip locked \
             ), moved as ( \
                update jobs j set state = 'queued', queued_at = now(), seq = nextval('job_seq'), pushed = true, \
                                  parked = false, wake_key = null \
                from picked where j.ctid = picked.place returning j.id, j.queue, j.lane, j.priority, j.suspect \
             ) \
             select id, queue, lane, priority, suspect, null as more from moved \
             union all select null, null, null, null, null, ",
            $more
        )
    };
}

/// Promotes heads of serial orders among the `limit` rows that fell due last. `true`: more than these are due, and
/// [`promote_serial_orders`] finds the heads among them.
pub async fn promote_serial(db: impl PgExecutor<'_>, limit: i64) -> sqlx::Result<(Due, bool)> {
    let rows = sqlx::query(promoting_heads!(
        "candidates as (select id, serial_key, due_at, serial_until from jobs where state = 'scheduled' \
                        and serial_key is not null and run_at <= now() order by run_at desc limit $1)",
        "'' from (select count(*) as count from candidates) c where count = $1"
    ))
    .bind(limit)
    .fetch_all(db)
    .await?;
    let (due, more) = heads(&rows)?;
    Ok((due, more.is_some()))
}

/// Promotes the heads of the `limit` serial orders after `after`, however many rows stand behind each: of an order
/// only its first in line and those that are due the longest are looked at. Returns where to go on.
pub async fn promote_serial_orders(
    db: impl PgExecutor<'_>,
    after: Option<&str>,
    limit: i64,
) -> sqlx::Result<(Due, Option<String>)> {
    let rows = sqlx::query(promoting_heads!(
        "orders as ( \
            (select serial_key, 1 as place from jobs where state = 'scheduled' and serial_key is not null \
             and serial_key > $2 order by serial_key limit 1) \
            union all \
            select n.serial_key, o.place + 1 from orders o cross join lateral ( \
                select serial_key from jobs where state = 'scheduled' and serial_key is not null \
                and serial_key > o.serial_key order by serial_key limit 1) n \
            where o.place < $1 \
         ), candidates as ( \
            select c.id, c.serial_key, c.due_at, c.serial_until from orders o cross join lateral ( \
                (select id, serial_key, due_at, serial_until, state, run_at from jobs where serial_key = o.serial_key \
                 and state in ('waiting', 'scheduled') and not parked order by due_at, id limit 1) \
                union all \
                (select id, serial_key, due_at, serial_until, state, run_at from jobs where serial_key = o.serial_key \
                 and state = 'scheduled' and run_at <= now() order by run_at limit 20)) c \
            where c.state = 'scheduled' and c.run_at <= now() \
         )",
        "serial_key from orders where place = $1"
    ))
    .bind(limit)
    .bind(after.unwrap_or(""))
    .fetch_all(db)
    .await?;
    heads(&rows)
}

/// Frees waiting jobs none of whose parents is unfinished: what a crash between two statements, or a lock, left behind
/// (E8). Looks at the `limit` waiting jobs after `after`; returns where to go on.
///
/// The page is an array, and parents are looked up, because a join leaves it to the planner which of the two to walk. Row
/// level security hides the statistics of a state from it (it believes that a third of the ledger waits), and its plan
/// may be of an hour when the ledger was small.
pub async fn sweep_waiting(
    db: impl PgExecutor<'_>,
    after: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<(usize, Option<Uuid>)> {
    let (moved, next): (i64, Option<Uuid>) = sqlx::query_as(
        "with page as materialized ( \
            select id from jobs where state = 'waiting' and id > $1 order by id limit $2 \
         ), orphans as ( \
            select w.id, w.ctid as place, exists (select from job_edges e where e.child_id = w.id \
                and e.on_parent = 'cancel' and e.open \
                and (select p.state from jobs p where p.id = e.parent_id) is distinct from 'succeeded') as doomed \
            from jobs w where w.id = any(array(select id from page)) and w.open_parents > 0 and w.finished_at is null \
            and not exists (select from job_edges e where e.child_id = w.id \
                and (select p.finished_at is null from jobs p where p.id = e.parent_id)) \
            order by w.id for no key update of w skip locked \
         ), moved as ( \
            update jobs j set open_parents = 0, \
                state = case when o.doomed then 'cancelled' else 'scheduled' end::job_state, \
                finished_at = case when o.doomed then now() end, \
                why = case when o.doomed then jsonb_build_object('code', 'parent_ended', \
                      'message', 'a job it depends on did not succeed') end \
            from orphans o where j.ctid = o.place returning 1 \
         ) \
         select (select count(*) from moved), \
                (select id from page order by id desc limit 1) \
                where (select count(*) from page) = $2 \
         union all select (select count(*) from moved), null where (select count(*) from page) <> $2",
    )
    .bind(after.unwrap_or(Uuid::nil()))
    .bind(limit)
    .fetch_one(db)
    .await?;
    Ok((usize::try_from(moved).unwrap_or(usize::MAX), next))
}

/// Wakes what parked while its event was on its way: the event's transaction and the parking did not see each
/// other (E17). Only events of the last minute can be such, and each only once for a job.
pub async fn sweep_wakes(db: impl PgExecutor<'_>) -> sqlx::Result<u64> {
    let woken = sqlx::query(
        "update jobs j set run_at = now(), parked = false, wake_key = null, wake_seen = w.seq from job_wakes w \
         where w.at > now() - interval '1 minute' and j.wake_key = w.wake_key and j.state = 'scheduled' \
           and j.claimed_at <= w.at + interval '1 second' and j.wake_seen is distinct from w.seq",
    )
    .execute(db)
    .await?;
    Ok(woken.rows_affected())
}

/// The rows that moved; those without an id only say where to go on.
fn due(rows: &[PgRow]) -> sqlx::Result<Due> {
    let mut due = Due::default();
    for row in rows {
        let Some(job) = row.try_get(0)? else { continue };
        due.moved += 1;
        if let Some(list) = list_of(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?) {
            due.runnable.push(Runnable { job, list });
        }
    }
    Ok(due)
}

fn heads(rows: &[PgRow]) -> sqlx::Result<(Due, Option<String>)> {
    let more = rows.iter().find_map(|row| row.try_get(5).transpose()).transpose()?;
    Ok((due(rows)?, more))
}
