//! New jobs: one statement for one or for a thousand of them.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{super::job::NewJob, millis, stored_priority};
use crate::{
    ids::{JobId, TenantId},
    jobs::{OnParent, State},
};

/// A job and how it enters.
#[derive(Debug, Clone)]
pub struct Insert<'a> {
    pub job: &'a NewJob,
    /// The caller pushes it to the belt itself, after the commit.
    pub pushed: bool,
    /// Unfinished parents; more than none makes it wait.
    pub open_parents: i16,
}

/// Writes the jobs and returns each one's state; a job whose unique key is taken is missing from the answer.
/// `insert` must be sorted by [`NewJob::unique_key`], so that two batches never wait for each other in a circle.
pub async fn insert(db: &mut PgConnection, insert: &[Insert<'_>]) -> sqlx::Result<Vec<(JobId, State)>> {
    let tenants: Vec<_> = insert.iter().map(|row| Some(row.job.tenant)).collect();
    let is_unique = insert.iter().any(|row| row.job.unique_key.is_some());
    write(db, if is_unique { INSERT_UNIQUE } else { INSERT }, insert, &tenants).await
}

/// The same for many callers at once, by the owner function of the migrations: `tenants` says whose each row is, which
/// its verified caller says and not the job. Rows are refused whose group is another tenant's.
pub async fn insert_for(
    db: &mut PgConnection,
    insert: &[Insert<'_>],
    tenants: &[Option<TenantId>],
) -> sqlx::Result<Vec<(JobId, State)>> {
    write(db, ENQUEUE, insert, tenants).await
}

/// What `app.enqueue` does as well, which stands in the migrations: two statements around the same rows (`app.entering`),
/// because a plan is kept for one role. A test compares what the two write.
macro_rules! inserting {
    ($on_conflict:literal) => {
        concat!(
            "insert into jobs (id, tenant_id, group_id, queue, lane, kind, priority, args, max_attempts, timeout_ms, \
                               run_at, due_at, serial_until, state, queued_at, pushed, unique_key, serial_key, \
                               open_parents) \
             select id, tenant_id, group_id, queue, lane, kind, priority, args, max_attempts, timeout_ms, run_at, \
                    due_at, serial_until, state, queued_at, pushed, unique_key, serial_key, open_parents \
             from app.entering($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) ",
            $on_conflict,
            " returning id, state::text"
        )
    };
}

/// Jobs without a unique key meet no other: watching for one writes each row by a detour.
const INSERT: &str = inserting!("");
const INSERT_UNIQUE: &str = inserting!(
    "on conflict (tenant_id, kind, unique_key) where unique_key is not null and finished_at is null do nothing"
);

const ENQUEUE: &str = "select id, state from app.enqueue($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
     $15, $16)";

async fn write(
    db: &mut PgConnection,
    statement: &'static str,
    insert: &[Insert<'_>],
    tenants: &[Option<TenantId>],
) -> sqlx::Result<Vec<(JobId, State)>> {
    macro_rules! column {
        ($type:ty, $value:expr) => {
            insert.iter().map($value).collect::<Vec<$type>>()
        };
    }
    let rows: Vec<(Uuid, String)> = sqlx::query_as(statement)
        .bind(column!(Uuid, |row| row.job.id.uuid()))
        .bind(tenants.iter().map(|tenant| tenant.map(|tenant| tenant.uuid())).collect::<Vec<_>>())
        .bind(column!(Option<Uuid>, |row| row.job.group.map(|group| group.uuid())))
        .bind(column!(&str, |row| row.job.queue.as_str()))
        .bind(column!(&str, |row| row.job.lane.as_str()))
        .bind(column!(&str, |row| &*row.job.kind))
        .bind(column!(i16, |row| stored_priority(row.job.priority)))
        .bind(column!(&str, |row| row.job.args.get()))
        .bind(column!(i16, |row| i16::try_from(row.job.max_attempts).unwrap_or(i16::MAX)))
        .bind(column!(i32, |row| i32::try_from(row.job.timeout.as_millis()).unwrap_or(i32::MAX)))
        .bind(column!(Option<DateTime<Utc>>, |row| row.job.run_at))
        .bind(column!(bool, |row| row.pushed))
        .bind(column!(Option<&str>, |row| row.job.unique_key.as_deref()))
        .bind(column!(Option<&str>, |row| row.job.serial_key.as_deref()))
        .bind(column!(i16, |row| row.open_parents))
        .bind(column!(Option<i64>, |row| row.job.serial_patience.map(millis)))
        .fetch_all(db)
        .await?;
    rows.into_iter()
        .map(|(id, state)| {
            let state = state.parse().map_err(|error: String| sqlx::Error::Decode(error.into()))?;
            Ok((JobId::from_uuid(id), state))
        })
        .collect()
}

/// Writes one job that waits for others. The parents are locked first, so that none of them can finish between
/// being counted and being depended on (E8). A parent that already ended badly, or is gone, means for the child
/// what its edge says.
///
/// A child stands behind its parents in every serial order (P6): who waits for a parent and who waits for a
/// predecessor both wait for something that is due earlier, so that nothing ever waits in a circle.
pub async fn insert_with_parents(tx: &mut PgConnection, job: &NewJob) -> sqlx::Result<Option<(JobId, State)>> {
    let mut parents: Vec<(JobId, OnParent)> = job.parents.clone();
    parents.sort_unstable_by_key(|(parent, _)| *parent);
    parents.dedup_by_key(|(parent, _)| *parent);
    let ids: Vec<Uuid> = parents.iter().map(|(parent, _)| parent.uuid()).collect();
    let found: Vec<(Uuid, String)> =
        sqlx::query_as("select id, state::text from jobs where id = any($1) order by id for update")
            .bind(&ids)
            .fetch_all(&mut *tx)
            .await?;
    let state_of = |parent: JobId| {
        found.iter().find(|(id, _)| *id == parent.uuid()).and_then(|(_, state)| state.parse::<State>().ok())
    };
    let is_open = |parent: JobId| state_of(parent).is_some_and(|state| !state.is_final());
    let doomed = parents.iter().any(|(parent, on_parent)| {
        *on_parent == OnParent::Cancel && !is_open(*parent) && state_of(*parent) != Some(State::Succeeded)
    });
    let open = parents.iter().filter(|(parent, _)| is_open(*parent)).count();
    let row = Insert { job, pushed: false, open_parents: i16::try_from(open).unwrap_or(i16::MAX) };
    let Some(entered) = insert(&mut *tx, &[row]).await?.into_iter().next() else { return Ok(None) };
    sqlx::query(
        "with edges as (insert into job_edges (parent_id, child_id, on_parent, open) \
                        select parent_id, $2, on_parent, open \
                        from unnest($1::uuid[], $3::text[], $4::boolean[]) as e (parent_id, on_parent, open)), \
              behind as (select p.due_at + interval '1 microsecond' as due_at from jobs p, jobs c \
                         where p.id = any($1) and c.id = $2 and (p.due_at, p.id) >= (c.due_at, c.id) \
                         order by p.due_at desc limit 1), \
              lined_up as (update jobs c set due_at = b.due_at, serial_until = serial_until + (b.due_at - c.due_at) \
                           from behind b where c.id = $2) \
         update jobs set has_children = true where id = any($1) and not has_children",
    )
    .bind(&ids)
    .bind(job.id)
    .bind(parents.iter().map(|(_, on_parent)| on_parent.as_str()).collect::<Vec<_>>())
    .bind(parents.iter().map(|(parent, _)| is_open(*parent)).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await?;
    if !doomed {
        return Ok(Some(entered));
    }
    sqlx::query(
        "update jobs set state = 'cancelled', finished_at = now(), open_parents = 0, \
                         why = jsonb_build_object('code', 'parent_ended', \
                                                  'message', 'a job it depends on had not succeeded') \
         where id = $1 and state in ('waiting', 'scheduled', 'queued')",
    )
    .bind(job.id)
    .execute(&mut *tx)
    .await?;
    Ok(Some((job.id, State::Cancelled)))
}
