//! Reading: one job, many jobs, a group, and how full the queues are. Fast with millions of rows: pages by key,
//! counts with a ceiling.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use crate::{
    ids::{GroupId, JobId, TenantId, WorkerId},
    jobs::job::{Queue, State, Why},
};

/// A job as the ledger has it.
#[derive(Debug, Clone)]
pub struct JobRow {
    pub id: JobId,
    pub tenant: TenantId,
    pub group: Option<GroupId>,
    pub worker: Option<WorkerId>,
    pub kind: String,
    pub queue: String,
    pub lane: String,
    pub priority: i16,
    pub state: State,
    pub run: i32,
    /// Failed attempts so far.
    pub attempt: i16,
    pub max_attempts: i16,
    pub crashes: i16,
    pub handbacks: i16,
    pub open_parents: i16,
    pub cancel_requested: bool,
    pub suspect: bool,
    pub parked: bool,
    pub created_at: DateTime<Utc>,
    pub run_at: DateTime<Utc>,
    pub due_at: DateTime<Utc>,
    pub queued_at: Option<DateTime<Utc>>,
    pub claimed_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub serial_key: Option<String>,
    pub why: Option<Why>,
    pub args: Value,
    pub result: Option<Value>,
}

macro_rules! job_columns {
    ($rest:expr) => {
        concat!(
            "select id, tenant_id, group_id, worker_id, kind, queue, lane, priority, state::text, run, attempt, \
                    max_attempts, crashes, handbacks, open_parents, cancel_requested, suspect, parked, created_at, \
                    run_at, due_at, queued_at, claimed_at, finished_at, serial_key, why, args, result from jobs ",
            $rest
        )
    };
}

impl sqlx::FromRow<'_, PgRow> for JobRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get(0)?,
            tenant: row.try_get(1)?,
            group: row.try_get(2)?,
            worker: row.try_get(3)?,
            kind: row.try_get(4)?,
            queue: row.try_get(5)?,
            lane: row.try_get(6)?,
            priority: row.try_get(7)?,
            state: row.try_get::<&str, _>(8)?.parse().map_err(|error: String| sqlx::Error::Decode(error.into()))?,
            run: row.try_get(9)?,
            attempt: row.try_get(10)?,
            max_attempts: row.try_get(11)?,
            crashes: row.try_get(12)?,
            handbacks: row.try_get(13)?,
            open_parents: row.try_get(14)?,
            cancel_requested: row.try_get(15)?,
            suspect: row.try_get(16)?,
            parked: row.try_get(17)?,
            created_at: row.try_get(18)?,
            run_at: row.try_get(19)?,
            due_at: row.try_get(20)?,
            queued_at: row.try_get(21)?,
            claimed_at: row.try_get(22)?,
            finished_at: row.try_get(23)?,
            serial_key: row.try_get(24)?,
            why: row.try_get::<Option<Json<Why>>, _>(25)?.map(|why| why.0),
            args: row.try_get(26)?,
            result: row.try_get(27)?,
        })
    }
}

/// `tenant`: `None` for operators.
pub async fn get(db: impl PgExecutor<'_>, tenant: Option<TenantId>, job: JobId) -> sqlx::Result<Option<JobRow>> {
    sqlx::query_as(job_columns!("where id = $1 and ($2::uuid is null or tenant_id = $2)"))
        .bind(job)
        .bind(tenant)
        .fetch_optional(db)
        .await
}

pub async fn get_many(db: impl PgExecutor<'_>, jobs: &[JobId]) -> sqlx::Result<Vec<JobRow>> {
    sqlx::query_as(job_columns!("where id = any($1) order by id"))
        .bind(jobs.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>())
        .fetch_all(db)
        .await
}

/// How the last run of each job that did not end in success ended.
pub async fn last_classes(db: impl PgExecutor<'_>, jobs: &[JobId]) -> sqlx::Result<Vec<(JobId, String)>> {
    sqlx::query_as(
        "select distinct on (job_id) job_id, class from job_attempts where job_id = any($1) order by job_id, run desc",
    )
    .bind(jobs.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>())
    .fetch_all(db)
    .await
}

/// Which jobs a list shows.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    pub tenant: Option<TenantId>,
    pub state: Option<State>,
    pub queue: Option<Queue>,
    pub kind: Option<String>,
    pub group: Option<GroupId>,
    /// Nothing of this workspace, unless it failed.
    pub except: Option<TenantId>,
}

/// One statement for each state, which is written out in it: a state that is only bound tells the planner nothing about
/// which of the partial indexes holds it.
macro_rules! listing {
    ($state:literal) => {
        job_columns!(concat!(
            "where ($1::uuid is null or tenant_id = $1) and ($2::uuid is null or id < $2) ",
            $state,
            " and ($3::text is null or queue = $3) and ($4::text is null or kind = $4) \
             and ($5::uuid is null or group_id = $5) and ($7::uuid is null or tenant_id <> $7 or state = 'failed') \
             order by id desc limit $6"
        ))
    };
}

/// Newest first, those created before `before`.
pub async fn list(
    db: impl PgExecutor<'_>,
    filter: &JobFilter,
    before: Option<JobId>,
    limit: i64,
) -> sqlx::Result<Vec<JobRow>> {
    let statement = match filter.state {
        None => listing!(""),
        Some(State::Waiting) => listing!("and state = 'waiting'"),
        Some(State::Scheduled) => listing!("and state = 'scheduled'"),
        Some(State::Queued) => listing!("and state = 'queued'"),
        Some(State::Running) => listing!("and state = 'running'"),
        Some(State::Succeeded) => listing!("and state = 'succeeded'"),
        Some(State::Failed) => listing!("and state = 'failed'"),
        Some(State::Cancelled) => listing!("and state = 'cancelled'"),
    };
    sqlx::query_as(statement)
        // Planned anew for each set of filters: one plan for all of them would read the table from its end.
        .persistent(false)
        .bind(filter.tenant)
        .bind(before)
        .bind(filter.queue.map(Queue::as_str))
        .bind(filter.kind.as_deref())
        .bind(filter.group)
        .bind(limit)
        .bind(filter.except)
        .fetch_all(db)
        .await
}

/// A group's one status.
#[derive(Debug, Clone)]
pub struct GroupStatus {
    pub id: GroupId,
    pub name: String,
    pub created_at: DateTime<Utc>,
    /// How many of its jobs are in each state that any is in.
    pub counts: Vec<(State, u64)>,
    /// The first [`GROUP_PAGE`] of them; the list of jobs pages through all.
    pub jobs: Vec<JobRow>,
}

/// Jobs shown with their group.
pub const GROUP_PAGE: i64 = 1_000;

impl GroupStatus {
    /// The state a person would say the whole is in: what is unfinished counts first, then what went wrong.
    pub fn state(&self) -> State {
        [State::Running, State::Queued, State::Scheduled, State::Waiting, State::Failed, State::Cancelled]
            .into_iter()
            .find(|state| self.counts.iter().any(|(of, _)| of == state))
            .unwrap_or(State::Succeeded)
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    /// Jobs that have ended, however.
    pub fn ended(&self) -> u64 {
        self.counts.iter().filter(|(state, _)| state.is_final()).map(|(_, count)| count).sum()
    }
}

pub async fn group(db: &mut PgConnection, tenant: TenantId, group: GroupId) -> sqlx::Result<Option<GroupStatus>> {
    let found: Option<(String, DateTime<Utc>)> =
        sqlx::query_as("select name, created_at from job_groups where id = $1 and tenant_id = $2")
            .bind(group)
            .bind(tenant)
            .fetch_optional(&mut *db)
            .await?;
    let Some((name, created_at)) = found else { return Ok(None) };
    let counted: Vec<(String, i64)> =
        sqlx::query_as("select state::text, count(*) from jobs where group_id = $1 group by state")
            .bind(group)
            .fetch_all(&mut *db)
            .await?;
    let mut counts = Vec::with_capacity(counted.len());
    for (state, count) in counted {
        let state = state.parse().map_err(|error: String| sqlx::Error::Decode(error.into()))?;
        counts.push((state, count.unsigned_abs()));
    }
    let jobs = sqlx::query_as(job_columns!("where group_id = $1 order by id limit $2"))
        .bind(group)
        .bind(GROUP_PAGE)
        .fetch_all(db)
        .await?;
    Ok(Some(GroupStatus { id: group, name, created_at, counts, jobs }))
}

/// How full one lane of a queue is. Counts stop at [`DEPTH_CEILING`].
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Depth {
    pub queue: String,
    pub lane: String,
    pub queued: i64,
    pub running: i64,
    pub scheduled: i64,
    /// Age of the oldest job that could run.
    pub oldest_queued_ms: Option<i64>,
    /// Unfinished jobs that stopping workers have handed back three times or more (E16).
    pub handed_back: i64,
}

/// Counting more would cost more than it tells.
pub const DEPTH_CEILING: i64 = 100_000;
/// Tenants of one priority whose oldest queued job is looked at.
const HEADS: i64 = 1_000;

pub async fn depth(db: impl PgExecutor<'_>, queue: Queue, lane: crate::jobs::Lane) -> sqlx::Result<Depth> {
    sqlx::query_as(
        // Within a tenant's turn the first in order of `seq` has waited the longest.
        "with recursive heads as ( \
            select p.priority, n.tenant_id, n.queued_at, 1 as place from unnest(array[0, 1, 2]::smallint[]) as p (priority) \
            cross join lateral ( \
                select tenant_id, queued_at from jobs where state = 'queued' and not suspect and queue = $1 \
                and lane = $2 and priority = p.priority order by tenant_id, seq limit 1) n \
            union all \
            select h.priority, n.tenant_id, n.queued_at, h.place + 1 from heads h cross join lateral ( \
                select tenant_id, queued_at from jobs where state = 'queued' and not suspect and queue = $1 \
                and lane = $2 and priority = h.priority and tenant_id > h.tenant_id \
                order by tenant_id, seq limit 1) n \
            where h.place < $4 \
         ) \
         select $1 as queue, $2 as lane, \
            (select count(*) from (select from jobs where state = 'queued' and not suspect and queue = $1 and lane = $2 \
                                   limit $3) q) as queued, \
            (select count(*) from (select from jobs where state = 'running' and queue = $1 and lane = $2 \
                                   limit $3) q) as running, \
            (select count(*) from (select from jobs where state = 'scheduled' and serial_key is null \
                                   and queue = $1 and lane = $2 limit $3) q) \
            + (select count(*) from (select from jobs where state = 'scheduled' and serial_key is not null \
                                     and queue = $1 and lane = $2 limit $3) q) as scheduled, \
            (select count(*) from (select from jobs where handbacks >= 3 and finished_at is null and queue = $1 \
                                   and lane = $2 limit $3) q) as handed_back, \
            (select (extract(epoch from now() - min(queued_at)) * 1000)::bigint from heads) as oldest_queued_ms",
    )
    .bind(queue.as_str())
    .bind(lane.as_str())
    .bind(DEPTH_CEILING)
    .bind(HEADS)
    .fetch_one(db)
    .await
}

/// Workers of a queue whose lease is good.
pub async fn live_workers(db: impl PgExecutor<'_>, queue: Queue) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from workers where queue = $1 and state in ('alive', 'stopping') and lease_expires_at > now()",
    )
    .bind(queue.as_str())
    .fetch_one(db)
    .await
}
