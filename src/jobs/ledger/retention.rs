//! Forgetting: finished jobs leave by age, in bounded batches, oldest first.

use std::time::Duration;

use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::millis;

/// How long things are kept after their end.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    pub succeeded: Duration,
    pub failed: Duration,
    /// Answers to repeated requests, whatever became of the job (E20).
    pub idempotency_keys: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            succeeded: Duration::from_secs(7 * DAY),
            failed: Duration::from_secs(30 * DAY),
            idempotency_keys: Duration::from_secs(7 * DAY),
        }
    }
}

/// Where forgetting has come to in what it walks by id. What is kept for longer than the rest stands in front for ever:
/// reading on from there is what keeps each step short.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pruning {
    jobs: Uuid,
    groups: Uuid,
}

/// Forgets at most about `limit` rows of each table, each in a statement of its own; `false` when it has come to the
/// end and begins anew.
pub async fn prune(db: &mut PgConnection, at: &mut Pruning, retention: &Retention, limit: i64) -> sqlx::Result<bool> {
    let mut more = false;
    let next = prune_jobs(&mut *db, at.jobs, retention, limit).await?;
    at.jobs = next.unwrap_or_default();
    more |= next.is_some();
    let next = prune_groups(&mut *db, at.groups, retention, limit).await?;
    at.groups = next.unwrap_or_default();
    more |= next.is_some();

    let (keys, failed, limit_u) = (retention.idempotency_keys, retention.failed, limit.unsigned_abs());
    more |= prune_keys(&mut *db, keys, limit).await? >= limit_u;
    more |= prune_wakes(&mut *db, WAKES_KEPT, limit).await? >= limit_u;
    more |= prune_fires(&mut *db, failed, limit).await? >= limit_u;
    more |= prune_workers(&mut *db, WORKERS_KEPT, limit).await? >= limit_u;
    Ok(more)
}

/// The smallest id that can have been made since so many milliseconds ago: ids begin with their time. It bounds a walk
/// over the primary key, which nothing has to be kept up for.
macro_rules! id_of_age {
    ($millis:literal) => {
        concat!(
            "(lpad(to_hex((extract(epoch from now()) * 1000)::bigint - ",
            $millis,
            "), 12, '0') || '00000000000000000000')::uuid"
        )
    };
}

/// A parent of an unfinished job stays. What hangs on a job goes with it.
async fn prune_jobs(
    db: impl PgExecutor<'_>,
    after: Uuid,
    retention: &Retention,
    limit: i64,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar(concat!(
        "with page as materialized ( \
            select id, state, finished_at from jobs where id > $1 and id < ",
        id_of_age!("least($2, $3)"),
        " order by id limit $4 \
         ), old as ( \
            select p.id from page p where p.finished_at is not null \
            and p.finished_at < now() - case when p.state = 'succeeded' then $2 else $3 end * interval '1 millisecond' \
            and not exists (select from job_edges e join jobs c on c.id = e.child_id \
                            where e.parent_id = p.id and c.finished_at is null) \
         ), gone as (delete from jobs j using old where j.id = old.id), \
         edges as (delete from job_edges e using old where e.parent_id = old.id) \
         select id from page where (select count(*) from page) = $4 order by id desc limit 1"
    ))
    .bind(after)
    .bind(millis(retention.succeeded))
    .bind(millis(retention.failed))
    .bind(limit)
    .fetch_optional(db)
    .await
}

async fn prune_groups(
    db: impl PgExecutor<'_>,
    after: Uuid,
    retention: &Retention,
    limit: i64,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar(concat!(
        "with page as materialized (select id from job_groups where id > $1 and id < ",
        id_of_age!("$2"),
        " order by id limit $3), \
         gone as (delete from job_groups g using page p where g.id = p.id \
                  and not exists (select from jobs j where j.group_id = g.id)) \
         select id from page where (select count(*) from page) = $3 order by id desc limit 1"
    ))
    .bind(after)
    .bind(millis(retention.failed))
    .bind(limit)
    .fetch_optional(db)
    .await
}

/// How long an event that woke parked jobs is remembered: only a run under way asks for it.
const WAKES_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a worker that is gone is still shown.
const WORKERS_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

macro_rules! pruning {
    ($name:ident, $statement:expr) => {
        async fn $name(db: impl PgExecutor<'_>, kept: Duration, limit: i64) -> sqlx::Result<u64> {
            let gone = sqlx::query($statement).bind(millis(kept)).bind(limit).execute(db).await?;
            Ok(gone.rows_affected())
        }
    };
}

pruning!(
    prune_keys,
    "delete from idempotency_keys where ctid = any(array( \
        select ctid from idempotency_keys where created_at < now() - $1 * interval '1 millisecond' \
        order by created_at limit $2))"
);
pruning!(
    prune_wakes,
    "delete from job_wakes where ctid = any(array( \
        select ctid from job_wakes where at < now() - $1 * interval '1 millisecond' order by at limit $2))"
);
pruning!(
    prune_fires,
    "delete from schedule_fires where ctid = any(array( \
        select f.place from schedules s cross join lateral ( \
            select ctid as place from schedule_fires where schedule = s.name \
            and fire_at < now() - $1 * interval '1 millisecond' order by fire_at limit $2) f limit $2))"
);
pruning!(
    prune_workers,
    concat!(
        "delete from workers where ctid = any(array(select ctid from workers where id < ",
        id_of_age!("$1"),
        " and lease_expires_at < now() - $1 * interval '1 millisecond' order by id limit $2))"
    )
);
