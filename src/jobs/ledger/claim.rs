//! Claiming: from `queued` to `running`, a batch at a time.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{is_held, millis, stored_priority};
use crate::{
    ids::{GroupId, JobId, TenantId, WorkerId},
    jobs::job::{Lane, Priority, Queue},
};

/// A job in a worker's hand.
#[derive(Debug)]
pub struct Claim {
    pub job: JobId,
    /// The fence. Whoever settles must name it.
    pub run: i32,
    pub worker: WorkerId,
    pub tenant: TenantId,
    pub group: Option<GroupId>,
    pub kind: String,
    /// Failed attempts so far.
    pub failed_attempts: u16,
    pub max_attempts: u16,
    pub timeout: Duration,
    pub args: Box<RawValue>,
    pub checkpoint: Option<serde_json::Value>,
    /// It must run with nothing beside it.
    pub suspect: bool,
    pub created_at: DateTime<Utc>,
    pub due_at: DateTime<Utc>,
    pub claimed_at: DateTime<Utc>,
    /// How often somebody asked to run it once more.
    pub retries: i16,
}

/// How long past its time limit a run may still be settling before it is taken from its worker.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(10);

macro_rules! claimed {
    () => {
        "state = 'running', run = j.run + 1, worker_id = $1, claimed_at = now(), why = null, \
         deadline_at = now() + (j.timeout_ms + $2) * interval '1 millisecond', pushed = false "
    };
}

macro_rules! returning {
    () => {
        " returning j.id, j.run, j.tenant_id, j.group_id, j.kind, j.attempt, j.max_attempts, j.timeout_ms, j.args, \
          j.checkpoint, j.suspect, j.created_at, j.due_at, j.claimed_at, j.retries"
    };
}

/// The rows are locked in order first, then written where they stand: by `ctid`, which saves finding each again.
macro_rules! claiming {
    ($($candidates:expr),+) => {
        concat!(
            "with picked as (",
            $($candidates,)+
            ") update jobs j set ",
            claimed!(),
            "from picked where j.ctid = picked.place",
            returning!()
        )
    };
}

/// Which of the ids `$3` are runnable now, of a kind in `$5`, in the queue `$6`.
macro_rules! runnable {
    () => {
        "id = any($3) and state = 'queued' and suspect = $4 and kind = any($5) \
         and not exists (select from queue_controls where queue = $6 and paused_at is not null)"
    };
}

/// Claims those of `ids` that are runnable now: queued, of a kind this worker knows (E15), in a queue that is not
/// paused (E14). The others stay as they are.
///
/// Not within a transaction. First all are written straight away, which costs a tenth less than locking them before;
/// only where somebody holds one of them for longer than the session waits, the free ones are picked out (E4).
pub async fn claim(
    db: &mut PgConnection,
    worker: WorkerId,
    queue: Queue,
    kinds: &[&str],
    ids: &[JobId],
    suspects: bool,
) -> sqlx::Result<Vec<Claim>> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    let claim = async |db: &mut PgConnection, statement: &'static str| {
        sqlx::query(statement)
            .bind(worker)
            .bind(millis(DEADLINE_GRACE))
            .bind(&ids)
            .bind(suspects)
            .bind(kinds)
            .bind(queue.as_str())
            .fetch_all(db)
            .await
    };
    let all = concat!("update jobs j set ", claimed!(), "where ", runnable!(), returning!());
    let free =
        claiming!("select ctid as place from jobs where ", runnable!(), " order by id for no key update skip locked");
    let rows = match claim(&mut *db, all).await {
        Err(error) if is_held(&error) => claim(db, free).await?,
        rows => rows?,
    };
    rows.iter().map(|row| decode(row, worker)).collect()
}

/// Claims without the belt: what a worker does while Redis is away (E7).
///
/// One index probe for each tenant that waits and one row for each job taken, however many more there are. Priorities
/// go in order, but each is first now and then, so that none starves; within one the tenants share what there is room
/// for, beginning with another one each time (E18).
pub async fn claim_from_ledger(
    db: impl PgExecutor<'_>,
    worker: WorkerId,
    queue: Queue,
    lane: Lane,
    kinds: &[&str],
    suspects: bool,
    limit: usize,
) -> sqlx::Result<Vec<Claim>> {
    let start = Uuid::new_v4();
    let query = if suspects {
        sqlx::query(claiming!(
            "select ctid as place from jobs where state = 'queued' and suspect and queue = $4 and lane = $6 \
             and kind = any($5) and not exists (select from queue_controls where queue = $4 and paused_at is not null) \
             order by seq limit $3 for no key update skip locked"
        ))
    } else {
        sqlx::query(claiming!(
            "with recursive arcs as ( \
                select p.priority, p.place, a.part, a.low, a.high \
                from unnest($7::smallint[]) with ordinality as p (priority, place) \
                cross join (values (1, $8::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid), \
                                   (2, '00000000-0000-0000-0000-000000000000'::uuid, $8::uuid)) as a (part, low, high) \
                where not exists (select from queue_controls where queue = $4 and paused_at is not null) \
             ), turns as ( \
                select a.priority, a.place, a.part, a.high, n.tenant_id, 1 as depth from arcs a cross join lateral ( \
                    select tenant_id from jobs where state = 'queued' and not suspect and queue = $4 and lane = $6 \
                    and priority = a.priority and tenant_id >= a.low and tenant_id < a.high \
                    order by tenant_id, seq limit 1) n \
                union all \
                select t.priority, t.place, t.part, t.high, n.tenant_id, t.depth + 1 from turns t cross join lateral ( \
                    select tenant_id from jobs where state = 'queued' and not suspect and queue = $4 and lane = $6 \
                    and priority = t.priority and tenant_id > t.tenant_id and tenant_id < t.high \
                    order by tenant_id, seq limit 1) n \
                where t.depth < $3 \
             ), shared as ( \
                select priority, tenant_id, ($3 + count(*) over (partition by priority) - 1) \
                                            / count(*) over (partition by priority) as share \
                from turns order by place, part, depth \
             ) \
             select j.place from shared s cross join lateral ( \
                select ctid as place from jobs where state = 'queued' and not suspect and queue = $4 and lane = $6 \
                and priority = s.priority and tenant_id = s.tenant_id and kind = any($5) \
                order by seq limit s.share for no key update skip locked) j limit $3"
        ))
    };
    let mut query = query
        .bind(worker)
        .bind(millis(DEADLINE_GRACE))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(queue.as_str())
        .bind(kinds)
        .bind(lane.as_str());
    if !suspects {
        query = query.bind(order_of_priorities(start.as_bytes()[15]).map(stored_priority)).bind(start);
    }
    let rows = query.fetch_all(db).await?;
    rows.iter().map(|row| decode(row, worker)).collect()
}

/// As the fetching from the belt has it: each of the lower ones is first once in eight times.
fn order_of_priorities(chance: u8) -> [Priority; 3] {
    match chance % 8 {
        3 => [Priority::Normal, Priority::High, Priority::Low],
        7 => [Priority::Low, Priority::High, Priority::Normal],
        _ => [Priority::High, Priority::Normal, Priority::Low],
    }
}

fn decode(row: &PgRow, worker: WorkerId) -> sqlx::Result<Claim> {
    Ok(Claim {
        job: row.try_get(0)?,
        run: row.try_get(1)?,
        worker,
        tenant: row.try_get(2)?,
        group: row.try_get(3)?,
        kind: row.try_get(4)?,
        failed_attempts: u16::try_from(row.try_get::<i16, _>(5)?).unwrap_or(0),
        max_attempts: u16::try_from(row.try_get::<i16, _>(6)?).unwrap_or(1),
        timeout: Duration::from_millis(u64::try_from(row.try_get::<i32, _>(7)?).unwrap_or(0)),
        args: row.try_get::<Json<Box<RawValue>>, _>(8)?.0,
        checkpoint: row.try_get(9)?,
        suspect: row.try_get(10)?,
        created_at: row.try_get(11)?,
        due_at: row.try_get(12)?,
        claimed_at: row.try_get(13)?,
        retries: row.try_get(14)?,
    })
}
