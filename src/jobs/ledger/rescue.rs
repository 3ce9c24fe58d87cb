//! Leases: heartbeats of the living, and what becomes of the jobs of the dead.

use std::time::Duration;

use sqlx::{PgExecutor, Row, postgres::PgRow};
use uuid::Uuid;

use super::millis;
use crate::ids::{JobId, WorkerId};

/// How a process died, and how strongly that speaks against a job which ran alone in it (E10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It ended by itself: a signal of its own, an exit code, or more memory than there is.
    OwnDoing,
    /// Nobody is left who could say.
    Vanished,
    /// SIGKILL with memory to spare: an operator or an orchestrator. One job may meet a few of those by chance.
    KilledFromOutside,
}

impl Death {
    const fn blame(self) -> i16 {
        match self {
            Self::OwnDoing => 4,
            Self::Vanished => 2,
            Self::KilledFromOutside => 1,
        }
    }
}

/// Ends a job: three crashes of its own doing while it ran alone.
const ENOUGH_BLAME: i16 = 3 * Death::OwnDoing.blame();

/// Who a worker process is.
#[derive(Debug, Clone)]
pub struct WorkerRow {
    pub id: WorkerId,
    /// Shared with the supervising parent, which reports the death of this process by it.
    pub process: Uuid,
    pub queue: String,
    pub host: String,
    pub pid: u32,
}

/// Safe to repeat: the answer to the first may have been lost.
pub async fn register(db: impl PgExecutor<'_>, worker: &WorkerRow, lease: Duration) -> sqlx::Result<()> {
    sqlx::query(
        "insert into workers (id, process_id, queue, host, pid, version, lease_expires_at) \
         values ($1, $2, $3, $4, $5, $6, now() + $7 * interval '1 millisecond') \
         on conflict (id) do update set lease_expires_at = excluded.lease_expires_at",
    )
    .bind(worker.id)
    .bind(worker.process)
    .bind(&worker.queue)
    .bind(&worker.host)
    .bind(i32::try_from(worker.pid).unwrap_or(0))
    .bind(env!("CARGO_PKG_VERSION"))
    .bind(millis(lease))
    .execute(db)
    .await?;
    Ok(())
}

/// What a heartbeat came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Heartbeat {
    Renewed,
    /// The relay took this worker's jobs away: what it still runs, it runs without a lease.
    Lost,
}

pub async fn heartbeat(
    db: impl PgExecutor<'_>,
    worker: WorkerId,
    lease: Duration,
    in_hand: usize,
    ran: u64,
    stopping: bool,
) -> sqlx::Result<Heartbeat> {
    let renewed = sqlx::query(
        "update workers set lease_expires_at = now() + $2 * interval '1 millisecond', in_hand = $3, \
                            ran = $5, state = case when $4 then 'stopping' else 'alive' end \
         where id = $1 and state in ('alive', 'stopping')",
    )
    .bind(worker)
    .bind(millis(lease))
    .bind(i32::try_from(in_hand).unwrap_or(i32::MAX))
    .bind(stopping)
    .bind(i64::try_from(ran).unwrap_or(i64::MAX))
    .execute(db)
    .await?;
    Ok(if renewed.rows_affected() == 1 { Heartbeat::Renewed } else { Heartbeat::Lost })
}

/// Hands back rows that say they run in this worker though it does not hold them: the answer to their claim was
/// lost (E1). `claimed_before` is longer than any claim may still be on its way.
pub async fn hand_back_strays(
    db: impl PgExecutor<'_>,
    worker: WorkerId,
    in_hand: &[(JobId, i32)],
    claimed_before: Duration,
) -> sqlx::Result<u64> {
    let strays = sqlx::query(
        "with strays as ( \
            select j.id, j.run, j.queued_at, j.claimed_at from jobs j \
            where j.state = 'running' and j.worker_id = $1 and j.claimed_at < now() - $4 * interval '1 millisecond' \
            and not exists (select from unnest($2::uuid[], $3::integer[]) as h (id, run) \
                            where h.id = j.id and h.run = j.run) \
            order by j.id for update skip locked \
         ), noted as ( \
            insert into job_notes (job_id, at, what, detail) \
            select s.id, n.at, n.what, n.detail from strays s cross join lateral ( \
                values (s.queued_at, 'queued', 'null'::jsonb), \
                       (s.claimed_at, 'started', jsonb_build_object('run', s.run)), \
                       (now(), 'claim_lost', jsonb_build_object('run', s.run))) as n (at, what, detail) \
            where n.at is not null \
         ) \
         update jobs j set state = case when cancel_requested then 'cancelled' else 'queued' end::job_state, \
                finished_at = case when cancel_requested then now() end, \
                worker_id = null, queued_at = case when cancel_requested then j.queued_at else now() end, \
                seq = nextval('job_seq'), pushed = false, \
                why = jsonb_build_object('code', 'claim_lost', 'message', 'the answer to its claim was lost') \
         from strays where j.id = strays.id",
    )
    .bind(worker)
    .bind(in_hand.iter().map(|(id, _)| id.uuid()).collect::<Vec<Uuid>>())
    .bind(in_hand.iter().map(|(_, run)| *run).collect::<Vec<_>>())
    .bind(millis(claimed_before))
    .execute(db)
    .await?;
    Ok(strays.rows_affected())
}

/// Which of the runs in this worker's hand the ledger does not know as its own: taken away past their deadline, or
/// claimed by a commit that a crash of Postgres undid. Only what runs names a worker; saying so would offer the planner
/// the index of running jobs, through which each pair meets all that this worker runs.
pub async fn lost_runs(
    db: impl PgExecutor<'_>,
    worker: WorkerId,
    in_hand: &[(JobId, i32)],
) -> sqlx::Result<Vec<(JobId, i32)>> {
    sqlx::query_as(
        "select h.id, h.run from unnest($2::uuid[], $3::integer[]) as h (id, run) \
         where not exists (select from jobs j where j.id = h.id and j.run = h.run and j.worker_id = $1)",
    )
    .bind(worker)
    .bind(in_hand.iter().map(|(id, _)| id.uuid()).collect::<Vec<Uuid>>())
    .bind(in_hand.iter().map(|(_, run)| *run).collect::<Vec<_>>())
    .fetch_all(db)
    .await
}

/// Jobs in this worker's hand whose cancelling was asked for.
pub async fn cancel_requests(db: impl PgExecutor<'_>, worker: WorkerId) -> sqlx::Result<Vec<(JobId, i32)>> {
    sqlx::query_as("select id, run from jobs where state = 'running' and worker_id = $1 and cancel_requested")
        .bind(worker)
        .fetch_all(db)
        .await
}

/// The supervising parent's word on how a worker process died. Its lease ends at once.
pub async fn report_death(db: impl PgExecutor<'_>, process: Uuid, death: Death, cause: &str) -> sqlx::Result<()> {
    sqlx::query(
        "update workers set state = 'crashed', cause = $2, blame = $3, lease_expires_at = now() \
         where process_id = $1 and state in ('alive', 'stopping')",
    )
    .bind(process)
    .bind(cause)
    .bind(death.blame())
    .execute(db)
    .await?;
    Ok(())
}

/// What a worker says that was silent for longer than its lease and finds its jobs taken: it was no crash (E12). What
/// its silence was charged with is taken back: a job is a suspect only if an earlier crash made it one, and then, since
/// it ran alone, one crash and its blame fewer are counted. One that ended by that count runs again, unless others have
/// gone by its end: its children, or a job that has taken its unique key since.
pub async fn acquit(db: impl PgExecutor<'_>, worker: WorkerId) -> sqlx::Result<u64> {
    let acquitted = sqlx::query(
        "with charged as ( \
            select j.id, j.run, j.queued_at, \
                   exists (select from job_attempts b where b.job_id = j.id and b.class = 'crash' \
                       and b.run = (select max(run) from job_attempts where job_id = j.id and run < j.run)) as counted \
            from job_attempts a join jobs j on j.id = a.job_id and j.run = a.run \
            where a.worker_id = $1 and a.class = 'crash' \
            and (j.state = 'queued' and j.suspect \
                 or j.state = 'failed' and j.why ->> 'code' = 'crashed_alone' and not j.has_children \
                    and (j.unique_key is null or not exists ( \
                        select from jobs o where o.tenant_id = j.tenant_id and o.kind = j.kind \
                        and o.unique_key = j.unique_key and o.finished_at is null))) \
            order by j.id for update of j skip locked \
         ), logged as ( \
            update job_attempts a set class = 'lease_lost', \
                   message = 'its worker was silent for longer than its lease' \
            from charged c where a.job_id = c.id and a.run = c.run \
         ), noted as ( \
            insert into job_notes (job_id, at, what, detail) \
            select id, queued_at, 'queued', 'null' from charged where queued_at is not null \
         ) \
         update jobs j set state = 'queued', finished_at = null, suspect = c.counted, \
                crashes = greatest(j.crashes - (case when c.counted then 1 else 0 end), 0)::smallint, \
                blame = greatest(j.blame - (case when c.counted then coalesce( \
                    (select w.blame from workers w where w.id = $1), $2) else 0 end), 0)::smallint, \
                why = jsonb_build_object('code', 'lease_lost', \
                                         'message', 'its worker was silent for longer than its lease'), \
                queued_at = now(), pushed = false, seq = nextval('job_seq') \
         from charged c where j.id = c.id",
    )
    .bind(worker)
    .bind(Death::Vanished.blame())
    .execute(db)
    .await?;
    Ok(acquitted.rows_affected())
}

/// The last word of a worker that has nothing in hand any more.
pub async fn say_stopped(db: impl PgExecutor<'_>, worker: WorkerId) -> sqlx::Result<()> {
    sqlx::query("update workers set state = 'stopped', in_hand = 0, lease_expires_at = now() where id = $1 and state in ('alive', 'stopping')")
        .bind(worker)
        .execute(db)
        .await?;
    Ok(())
}

/// A job taken from a worker that is gone, or from a run past its deadline.
#[derive(Debug)]
pub struct Rescued {
    pub job: JobId,
    pub worker: Option<WorkerId>,
    /// It has ended instead: cancelled meanwhile, or it killed its process once too often.
    pub ended: bool,
    pub has_children: bool,
}

/// Takes jobs back, at most `limit` (E10, E11, E12).
///
/// The jobs of a process that died become suspects and run alone; only a crash while alone is counted, and with
/// enough blame the job ends with the cause. A run past its deadline in a living worker is a failed attempt.
pub async fn reap(db: impl PgExecutor<'_>, limit: i64) -> sqlx::Result<Vec<Rescued>> {
    // Those that run are found first, by their own small index: under row level security the planner does not know how
    // few they are, and would go through all jobs in the order of their ids.
    let rows = sqlx::query(
        "with lost as ( \
            select j.id, coalesce(w.lease_expires_at < now(), true) as died, \
                   coalesce(w.state = 'stopped', false) as stopped, j.worker_id, j.claimed_at, \
                   j.queued_at, \
                   coalesce(w.blame, $3) as blame, \
                   coalesce(w.cause, case when coalesce(w.lease_expires_at < now(), true) then 'process vanished' \
                                          else 'the run went on past its deadline' end) as cause \
            from jobs j left join workers w on w.id = j.worker_id \
            where j.id = any(array(select r.id from jobs r where r.state = 'running')) \
            and j.state = 'running' and (w.id is null or w.lease_expires_at < now() or j.deadline_at < now()) \
            order by j.id limit $1 for update of j skip locked \
         ), judged as ( \
            select l.*, l.died and not l.stopped as crashed, \
                   j.crashes + (case when l.died and not l.stopped and j.suspect then 1 else 0 end)::smallint as crashes_now, \
                   j.blame + (case when l.died and not l.stopped and j.suspect then l.blame else 0 end)::smallint as blame_now, \
                   j.attempt + (case when l.died then 0 else 1 end)::smallint as attempt_now \
            from lost l join jobs j on j.id = l.id \
         ), logged as ( \
            insert into job_attempts (job_id, run, worker_id, started_at, class, code, message) \
            select j.id, j.run, d.worker_id, d.claimed_at, \
                   case when d.crashed then 'crash' when d.died then 'handed_back' else 'timeout' end, \
                   case when d.crashed then 'worker_died' when d.died then 'worker_stopped' else 'deadline' end, d.cause \
            from judged d join jobs j on j.id = d.id on conflict do nothing \
         ), noted as ( \
            insert into job_notes (job_id, at, what, detail) \
            select id, queued_at, 'queued', 'null' from lost where queued_at is not null \
         ), gone as ( \
            update workers w set state = 'lost' from lost l \
            where w.id = l.worker_id and l.died and w.state in ('alive', 'stopping') \
         ) \
         update jobs j set \
            crashes = d.crashes_now, blame = d.blame_now, attempt = d.attempt_now, \
            suspect = d.crashed, \
            state = case when j.cancel_requested then 'cancelled' \
                         when d.blame_now >= $2 or d.attempt_now >= j.max_attempts and not d.died then 'failed' \
                         else 'queued' end::job_state, \
            finished_at = case when j.cancel_requested or d.blame_now >= $2 \
                                 or d.attempt_now >= j.max_attempts and not d.died then now() end, \
            why = case when d.blame_now >= $2 then jsonb_build_object('code', 'crashed_alone', 'message', \
                           'it ended its process ' || d.crashes_now || ' times while nothing else ran: ' || d.cause) \
                       else jsonb_build_object('code', case when d.died then 'worker_died' else 'deadline' end, \
                                               'message', d.cause) end, \
            worker_id = null, seq = nextval('job_seq'), pushed = false, \
            queued_at = case when j.cancel_requested or d.blame_now >= $2 \
                               or d.attempt_now >= j.max_attempts and not d.died then j.queued_at else now() end \
         from judged d where j.id = d.id returning j.id, d.worker_id, j.finished_at is not null, j.has_children",
    )
    .bind(limit)
    .bind(ENOUGH_BLAME)
    .bind(Death::Vanished.blame())
    .fetch_all(db)
    .await?;
    rows.iter().map(rescued).collect()
}

fn rescued(row: &PgRow) -> sqlx::Result<Rescued> {
    Ok(Rescued { job: row.try_get(0)?, worker: row.try_get(1)?, ended: row.try_get(2)?, has_children: row.try_get(3)? })
}
