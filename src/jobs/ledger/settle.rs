//! Settling: what a run came to, many at a time, guarded by (id, run); and what that means for the jobs that
//! depended on it, in the same statement (E8).

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Runnable, is_held, list_of, millis};
use crate::{
    ids::{JobId, WorkerId},
    jobs::job::{State, Why},
};

/// The end of one run.
#[derive(Debug, Clone)]
pub struct Settlement {
    pub job: JobId,
    pub run: i32,
    pub end: End,
}

/// What becomes of the job.
#[derive(Debug, Clone)]
pub enum End {
    Succeeded {
        result: Value,
    },
    Failed {
        why: Why,
        class: &'static str,
    },
    Cancelled {
        why: Why,
    },
    /// Runs again at a time. `charged`: an attempt is used. `wake`: an event may bring that forward.
    Again {
        at: Again,
        charged: bool,
        class: &'static str,
        why: Why,
        wake: Option<String>,
    },
    /// Back to the queue at once, nothing used: its worker stops.
    HandedBack {
        why: Why,
    },
}

#[derive(Debug, Clone, Copy)]
pub enum Again {
    After(Duration),
    At(DateTime<Utc>),
}

/// A settlement that was written.
#[derive(Debug)]
pub struct Settled {
    pub job: JobId,
    pub state: State,
}

/// What a batch of settlements brought.
#[derive(Debug, Default)]
pub struct Freed {
    pub settled: Vec<Settled>,
    /// Children that are runnable now; the caller pushes them.
    pub runnable: Vec<Runnable>,
    /// Children that were cancelled and have children of their own; release those next.
    pub cancelled_parents: Vec<JobId>,
    /// Ended jobs some of whose children were locked; release them again. The relay's sweep finds them too.
    pub held_up: Vec<JobId>,
}

/// The tail of every statement that ends jobs: `moved (id, state, has_children)` is what ended.
///
/// A child whose row another session holds is left as it is, its edge open, so that whoever holds it does not hold up
/// the batch; its parent is in the answer as one whose children are held. That a job waits is said by what only such a
/// job has: the state itself would offer the planner the index of all that wait.
macro_rules! releasing {
    ($($head:expr),+) => {
        concat!(
            $($head,)+
            ", edges as ( \
                select e.parent_id, e.child_id, m.state <> 'succeeded' and e.on_parent = 'cancel' as doomed \
                from moved m join job_edges e on e.parent_id = m.id \
                where e.open and m.has_children and m.state in ('succeeded', 'failed', 'cancelled') \
            ), children as ( \
                select c.id from (select distinct child_id from edges) e join jobs c on c.id = e.child_id \
                where c.open_parents > 0 and c.finished_at is null order by c.id for update of c skip locked \
            ), closed as ( \
                update job_edges e set open = false from edges d join children c on c.id = d.child_id \
                where e.parent_id = d.parent_id and e.child_id = d.child_id and e.open returning e.child_id, d.doomed \
            ), lowered as ( \
                select child_id, count(*)::smallint as ended, bool_or(doomed) as doomed \
                from closed group by child_id \
            ), freed as ( \
                update jobs c set \
                    open_parents = greatest(c.open_parents - k.ended, 0), \
                    state = case when k.doomed then 'cancelled' when c.open_parents > k.ended then 'waiting' \
                                 when c.serial_key is not null or c.run_at > now() then 'scheduled' \
                                 else 'queued' end::job_state, \
                    finished_at = case when k.doomed then now() end, \
                    queued_at = case when not k.doomed and c.open_parents <= k.ended then now() end, \
                    seq = nextval('job_seq'), \
                    pushed = not k.doomed and c.open_parents <= k.ended and c.serial_key is null and c.run_at <= now(), \
                    why = case when k.doomed then jsonb_build_object('code', 'parent_ended', \
                          'message', 'a job it depends on did not succeed') end \
                from lowered k where c.id = k.child_id \
                returning c.id, c.state, c.queue, c.lane, c.priority, c.has_children \
            ) \
            select id, state::text, false as child, has_children, null as queue, null as lane, \
                   null::smallint as priority from moved \
            union all \
            select id, state::text, true, has_children, queue, lane, priority from freed \
            where state in ('queued', 'cancelled') \
            union all \
            select distinct e.parent_id, null, true, true, null, null, null::smallint \
            from edges e join jobs c on c.id = e.child_id \
            where c.open_parents > 0 and c.finished_at is null and not exists (select from children k where k.id = c.id)"
        )
    };
}

macro_rules! succeeded {
    () => {
        "state = 'succeeded', finished_at = now(), worker_id = null, suspect = false, checkpoint = null, \
         wake_key = null, parked = false"
    };
}

/// Writes successes, the common end, by the cheapest statement: straight away, or, where somebody holds one of the rows
/// for longer than the session waits, those that are free (E4). Not within a transaction.
///
/// A run is under way while its row names a worker. Saying `state = 'running'` instead would offer the planner the
/// index of running jobs, and while it believes that few run it compares each of them with each of the batch.
pub async fn settle_succeeded(db: &mut PgConnection, batch: &[(JobId, i32, &Value)]) -> sqlx::Result<Freed> {
    // Rows are locked in this order.
    let mut batch = batch.to_vec();
    batch.sort_unstable_by_key(|(id, ..)| *id);
    let ids: Vec<Uuid> = batch.iter().map(|(id, ..)| id.uuid()).collect();
    let runs: Vec<i32> = batch.iter().map(|(_, run, _)| *run).collect();
    let results: Vec<String> = batch.iter().map(|(.., result)| result.to_string()).collect();
    let settle = async |db: &mut PgConnection, statement: &'static str| {
        sqlx::query(statement).bind(&ids).bind(&runs).bind(&results).fetch_all(db).await
    };
    let all = releasing!(
        "with moved as ( \
            update jobs j set ",
        succeeded!(),
        ", result = s.result::jsonb \
            from unnest($1::uuid[], $2::integer[], $3::text[]) as s (id, run, result) \
            where j.id = s.id and j.run = s.run and j.worker_id is not null returning j.id, j.state, j.has_children \
        )"
    );
    let free = releasing!(
        "with ended as ( \
            select j.ctid as place, s.result \
            from unnest($1::uuid[], $2::integer[], $3::text[]) as s (id, run, result) \
            join jobs j on j.id = s.id and j.run = s.run \
            where j.worker_id is not null order by j.id for no key update of j skip locked \
        ), moved as ( \
            update jobs j set ",
        succeeded!(),
        ", result = ended.result::jsonb \
            from ended where j.ctid = ended.place returning j.id, j.state, j.has_children \
        )"
    );
    let rows = match settle(&mut *db, all).await {
        Err(error) if is_held(&error) => settle(db, free).await?,
        rows => rows?,
    };
    freed(&rows)
}

/// Writes settlements of every sort. A suspect that only comes back later has not shown its innocence (E10). An event
/// that came during the run brings its parking forward once: after that it has been seen. One that meets no row (the
/// lease was lost, or the row is locked) is missing from the answer. A cancelled job is not run again. When it had been
/// queued is noted where it will be queued again.
pub async fn settle(db: impl PgExecutor<'_>, batch: &[Settlement]) -> sqlx::Result<Freed> {
    let columns: Vec<Columns<'_>> = batch.iter().map(columns).collect();
    macro_rules! column {
        ($field:ident) => {
            columns.iter().map(|row| row.$field.clone()).collect::<Vec<_>>()
        };
    }
    let rows = sqlx::query(releasing!(
        "with ended as ( \
            select j.ctid as place, j.id, j.run, j.worker_id, j.claimed_at, j.queued_at, s.state, s.result, s.charged, \
                   s.after_ms, s.until, s.why, s.wake, s.class, w.seq as event, coalesce(w.at >= j.claimed_at - interval '1 second' \
                                  and w.seq is distinct from j.wake_seen, false) as woken \
            from unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::boolean[], $6::bigint[], \
                        $7::timestamptz[], $8::text[], $9::text[], $10::text[]) \
                 as s (id, run, state, result, charged, after_ms, until, why, wake, class) \
            join jobs j on j.id = s.id and j.run = s.run \
            left join job_wakes w on w.wake_key = s.wake \
            where j.worker_id is not null order by j.id for no key update of j skip locked \
        ), logged as ( \
            insert into job_attempts (job_id, run, worker_id, started_at, class, code, message) \
            select id, run, worker_id, claimed_at, class, why::jsonb ->> 'code', why::jsonb ->> 'message' \
            from ended where class is not null on conflict do nothing \
        ), noted as ( \
            insert into job_notes (job_id, at, what, detail) \
            select id, queued_at, 'queued', 'null' from ended \
            where queued_at is not null and state in ('scheduled', 'queued') \
        ), moved as ( \
            update jobs j set \
                state = case when j.cancel_requested and s.state in ('scheduled', 'queued') then 'cancelled' \
                             else s.state end::job_state, \
                finished_at = case when s.state in ('succeeded', 'failed', 'cancelled') \
                                     or j.cancel_requested then now() end, \
                attempt = j.attempt + case when s.charged then 1 else 0 end, \
                handbacks = j.handbacks + case when s.state = 'queued' then 1 else 0 end, \
                run_at = case when s.woken then now() when s.state = 'scheduled' \
                              then coalesce(s.until, now() + s.after_ms * interval '1 millisecond') \
                              else j.run_at end, \
                queued_at = case when s.state = 'queued' then now() else j.queued_at end, \
                seq = case when s.state = 'queued' then nextval('job_seq') else j.seq end, \
                parked = s.wake is not null and not s.woken, wake_key = case when not s.woken then s.wake end, \
                wake_seen = case when s.woken then s.event else j.wake_seen end, \
                result = s.result::jsonb, why = s.why::jsonb, worker_id = null, \
                suspect = j.suspect and s.state in ('scheduled', 'queued') and not s.charged \
            from ended s where j.ctid = s.place returning j.id, j.state, j.has_children \
        )"
    ))
    .bind(batch.iter().map(|row| row.job.uuid()).collect::<Vec<Uuid>>())
    .bind(batch.iter().map(|row| row.run).collect::<Vec<_>>())
    .bind(column!(state))
    .bind(column!(result))
    .bind(column!(charged))
    .bind(column!(after_ms))
    .bind(column!(until))
    .bind(column!(why))
    .bind(column!(wake))
    .bind(column!(class))
    .fetch_all(db)
    .await?;
    freed(&rows)
}

/// Settles the children of jobs that ended outside a settlement, or whose children were cancelled with them.
pub async fn release_children(db: impl PgExecutor<'_>, ended: &[JobId]) -> sqlx::Result<Freed> {
    let rows = sqlx::query(releasing!(
        "with moved as (select id, state, has_children from jobs \
                        where id = any($1) and state in ('succeeded', 'failed', 'cancelled'))"
    ))
    .bind(ended.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>())
    .fetch_all(db)
    .await?;
    freed(&rows)
}

/// Keeps how far a run came, while it still holds its job. `false`: the lease is lost.
pub async fn save_checkpoint(
    db: impl PgExecutor<'_>,
    job: JobId,
    run: i32,
    worker: WorkerId,
    state: &Value,
) -> sqlx::Result<bool> {
    let saved = sqlx::query(
        "update jobs set checkpoint = $4 where id = $1 and run = $2 and worker_id = $3 and state = 'running'",
    )
    .bind(job)
    .bind(run)
    .bind(worker)
    .bind(state)
    .execute(db)
    .await?;
    Ok(saved.rows_affected() == 1)
}

struct Columns<'a> {
    state: &'static str,
    result: Option<String>,
    charged: bool,
    after_ms: Option<i64>,
    until: Option<DateTime<Utc>>,
    why: Option<String>,
    wake: Option<&'a str>,
    /// Set when the run goes into the list of attempts.
    class: Option<&'static str>,
}

fn columns(settlement: &Settlement) -> Columns<'_> {
    let empty = Columns {
        state: "",
        result: None,
        charged: false,
        after_ms: None,
        until: None,
        why: None,
        wake: None,
        class: None,
    };
    let text = |why: &Why| Some(serde_json::json!(why).to_string());
    match &settlement.end {
        End::Succeeded { result } => Columns { state: "succeeded", result: Some(result.to_string()), ..empty },
        End::Failed { why, class } => {
            Columns { state: "failed", charged: true, why: text(why), class: Some(class), ..empty }
        }
        End::Cancelled { why } => Columns { state: "cancelled", why: text(why), class: Some("cancelled"), ..empty },
        End::HandedBack { why } => Columns { state: "queued", why: text(why), class: Some("handed_back"), ..empty },
        End::Again { at, charged, class, why, wake } => {
            let (after_ms, until) = match at {
                Again::After(delay) => (Some(millis(*delay)), None),
                Again::At(time) => (None, Some(*time)),
            };
            let (wake, class) = (wake.as_deref(), Some(*class));
            Columns { state: "scheduled", charged: *charged, after_ms, until, why: text(why), wake, class, ..empty }
        }
    }
}

fn freed(rows: &[PgRow]) -> sqlx::Result<Freed> {
    let mut freed = Freed::default();
    for row in rows {
        let job: JobId = row.try_get(0)?;
        let Some(state) = row.try_get::<Option<&str>, _>(1)? else {
            freed.held_up.push(job);
            continue;
        };
        let state: State = state.parse().map_err(|error: String| sqlx::Error::Decode(error.into()))?;
        if !row.try_get::<bool, _>(2)? {
            freed.settled.push(Settled { job, state });
        } else if state == State::Cancelled {
            if row.try_get::<bool, _>(3)? {
                freed.cancelled_parents.push(job);
            }
        } else if let Some(list) = list_of(row.try_get(4)?, row.try_get(5)?, row.try_get(6)?, false) {
            freed.runnable.push(Runnable { job, list });
        }
    }
    Ok(freed)
}
