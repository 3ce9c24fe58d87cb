//! Forgetting: finished jobs leave by age, in bounded batches, oldest first.

use std::time::Duration;

use sqlx::PgExecutor;
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

/// Deletes at most about `limit` finished jobs with everything that hangs on them, walking the ids, which are in
/// order of creation, from `after`. Returns where to go on, `None` at the end. A parent of an unfinished job stays.
pub async fn prune(
    db: impl PgExecutor<'_>,
    after: Uuid,
    retention: &Retention,
    limit: i64,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar(
        "with page as ( \
            select id, state, finished_at from jobs where id > $1 \
            and created_at < now() - least($2, $3) * interval '1 millisecond' order by id limit $4 \
         ), old as ( \
            select p.id from page p where p.finished_at is not null \
            and p.finished_at < now() - case when p.state = 'succeeded' then $2 else $3 end * interval '1 millisecond' \
            and not exists (select from job_edges e join jobs c on c.id = e.child_id \
                            where e.parent_id = p.id and c.finished_at is null) \
         ), gone as (delete from jobs j using old where j.id = old.id), \
         edges as (delete from job_edges e using old where e.parent_id = old.id), \
         keys as (delete from idempotency_keys where created_at < now() - $5 * interval '1 millisecond'), \
         wakes as (delete from job_wakes where at < now() - interval '1 day'), \
         fires as (delete from schedule_fires where fire_at < now() - $3 * interval '1 millisecond'), \
         groups as (delete from job_groups g where g.created_at < now() - $3 * interval '1 millisecond' \
                    and not exists (select from jobs j where j.group_id = g.id)), \
         dead as (delete from workers w where w.lease_expires_at < now() - interval '7 days') \
         select id from (select id, count(*) over () as n from page) p where n = $4 order by id desc limit 1",
    )
    .bind(after)
    .bind(millis(retention.succeeded))
    .bind(millis(retention.failed))
    .bind(limit)
    .bind(millis(retention.idempotency_keys))
    .fetch_optional(db)
    .await
}
