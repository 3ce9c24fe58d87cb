//! Claiming: from `queued` to `running`, a batch at a time.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{PgExecutor, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::millis;
use crate::{
    ids::{GroupId, JobId, TenantId, WorkerId},
    jobs::job::{Lane, Queue},
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

/// The rows are locked in order first, then written where they stand: by `ctid`, which saves finding each again.
macro_rules! claiming {
    ($candidates:literal) => {
        concat!(
            "with picked as (",
            $candidates,
            " for no key update skip locked) \
             update jobs j set state = 'running', run = j.run + 1, worker_id = $1, claimed_at = now(), why = null, \
                    deadline_at = now() + (j.timeout_ms + $2) * interval '1 millisecond', pushed = false \
             from picked where j.ctid = picked.place \
             returning j.id, j.run, j.tenant_id, j.group_id, j.kind, j.attempt, j.max_attempts, j.timeout_ms, \
                       j.args, j.checkpoint, j.suspect, j.created_at, j.due_at, j.claimed_at, j.retries"
        )
    };
}

/// Claims those of `ids` that are runnable now: queued, of a kind this worker knows (E15), in a queue that is not
/// paused (E14). The others stay as they are.
pub async fn claim(
    db: impl PgExecutor<'_>,
    worker: WorkerId,
    queue: Queue,
    kinds: &[&str],
    ids: &[JobId],
    suspects: bool,
) -> sqlx::Result<Vec<Claim>> {
    let rows = sqlx::query(claiming!(
        "select ctid as place from jobs where id = any($3) and state = 'queued' and suspect = $4 and kind = any($5) \
         and not exists (select from queue_controls where queue = $6 and paused_at is not null) order by id"
    ))
    .bind(worker)
    .bind(millis(DEADLINE_GRACE))
    .bind(ids.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>())
    .bind(suspects)
    .bind(kinds)
    .bind(queue.as_str())
    .fetch_all(db)
    .await?;
    rows.iter().map(|row| decode(row, worker)).collect()
}

/// Claims without the belt, oldest first within each priority: what a worker does while Redis is away (E7).
pub async fn claim_from_ledger(
    db: impl PgExecutor<'_>,
    worker: WorkerId,
    queue: Queue,
    lane: Lane,
    kinds: &[&str],
    suspects: bool,
    limit: usize,
) -> sqlx::Result<Vec<Claim>> {
    let rows = sqlx::query(claiming!(
        "select ctid as place from jobs where state = 'queued' and suspect = $4 and queue = $6 and lane = $7 \
         and kind = any($5) and not exists (select from queue_controls where queue = $6 and paused_at is not null) \
         order by priority, seq limit $3"
    ))
    .bind(worker)
    .bind(millis(DEADLINE_GRACE))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .bind(suspects)
    .bind(kinds)
    .bind(queue.as_str())
    .bind(lane.as_str())
    .fetch_all(db)
    .await?;
    rows.iter().map(|row| decode(row, worker)).collect()
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
