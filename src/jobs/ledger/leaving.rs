//! What is left to do of a tenant that is going. It costs what is open, never what the tenant ever did: a workspace may
//! have a million jobs behind it, and its end is asked for again every two seconds until nothing of it runs.
//!
//! No index of open jobs leads with the tenant, and one more would be paid for at every move of every job. So the lists
//! that have something in them are walked by their first columns, and of each the tenant's part is one range of an index
//! that the engine keeps anyway. Ranges over whole rows, and equality in a form that no index answers, because the
//! planner would otherwise take the index of all that the tenant ever did: row level security hides from it how few
//! rows are in a state.

use sqlx::PgExecutor;
use uuid::Uuid;

use crate::ids::TenantId;

/// A walk: for each `$columns` that a job with `$is` has, one row named `$name`.
macro_rules! walk {
    ($name:literal, $columns:literal, $behind:literal, $is:literal) => {
        concat!(
            $name,
            " as ((select ",
            $columns,
            " from jobs where ",
            $is,
            " order by ",
            $columns,
            " limit 1) union all select n.* from ",
            $name,
            " l cross join lateral (select ",
            $columns,
            " from jobs where ",
            $is,
            " and (",
            $columns,
            ") > (",
            $behind,
            ") order by ",
            $columns,
            " limit 1) n) "
        )
    };
}

/// Up to `$limit` jobs of the tenant `$1` in each of the lists that the walk `$lists` has found.
macro_rules! part {
    ($lists:literal, $columns:literal, $of:literal, $is:literal, $which:literal, $limit:literal) => {
        concat!(
            "(select o.id from ",
            $lists,
            " l cross join lateral (select id from jobs where ",
            $is,
            " and (",
            $columns,
            ", tenant_id) >= (",
            $of,
            ", $1) and (",
            $columns,
            ", tenant_id) <= (",
            $of,
            ", $1) ",
            $which,
            " order by ",
            $columns,
            ", tenant_id limit ",
            $limit,
            ") o)"
        )
    };
}

/// `open (id)`: of the tenant `$1` what is queued, scheduled or running and `$which` holds for, up to `$limit` of each
/// list. Suspects and what runs are few in the whole ledger, so all of them are looked at.
macro_rules! open_jobs {
    ($which:literal, $limit:literal) => {
        concat!(
            "with recursive ",
            walk!("lines", "queue, lane, priority", "l.queue, l.lane, l.priority", "state = 'queued' and not suspect"),
            ", ",
            walk!("plain", "queue, lane", "l.queue, l.lane", "state = 'scheduled' and serial_key is null"),
            ", ",
            walk!("serial", "queue, lane", "l.queue, l.lane", "state = 'scheduled' and serial_key is not null"),
            ", ",
            walk!("hands", "worker_id", "l.worker_id", "state = 'running'"),
            ", open as (",
            part!(
                "lines",
                "queue, lane, priority",
                "l.queue, l.lane, l.priority",
                "state = 'queued' and not suspect",
                $which,
                $limit
            ),
            " union all ",
            part!(
                "plain",
                "queue, lane",
                "l.queue, l.lane",
                "state = 'scheduled' and serial_key is null",
                $which,
                $limit
            ),
            " union all ",
            part!(
                "serial",
                "queue, lane",
                "l.queue, l.lane",
                "state = 'scheduled' and serial_key is not null",
                $which,
                $limit
            ),
            " union all select o.id from hands l cross join lateral ( \
                select id from jobs where state = 'running' and worker_id = l.worker_id \
                and (tenant_id = $1) is true ",
            $which,
            ") o \
             union all (select id from jobs where state = 'queued' and suspect and (tenant_id = $1) is true ",
            $which,
            " order by queue, lane, seq limit ",
            $limit,
            ")) "
        )
    };
}

/// Cancels up to `limit` queued and scheduled jobs of a tenant that is going, and asks for the end of those that run;
/// returns how many. What waits for others: [`cancel_waiting_of_tenant`].
pub async fn cancel_of_tenant(db: impl PgExecutor<'_>, tenant: TenantId, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(concat!(
        open_jobs!("and not committed and not cancel_requested", "$2"),
        ", picked as ( \
            select ctid as place from jobs where id = any(array(select id from open limit $2)) \
            and finished_at is null and not committed and not cancel_requested \
            order by id for no key update skip locked \
         ) \
         update jobs j set cancel_requested = true, \
                state = case when state = 'running' then 'running' else 'cancelled' end::job_state, \
                finished_at = case when state <> 'running' then now() end, open_parents = 0, \
                why = case when state = 'running' then why \
                           else jsonb_build_object('code', 'cancelled', 'message', 'its workspace was deleted') end \
         from picked where j.ctid = picked.place"
    ))
    .bind(tenant)
    .bind(limit)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Cancels what waits for others, among the `limit` waiting jobs after `after`, whoever's they are; returns where to go
/// on, `None` at the end. What they wait for is of the same tenant, and going too.
pub async fn cancel_waiting_of_tenant(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    after: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar(
        "with page as materialized ( \
            select id, tenant_id from jobs where state = 'waiting' and id > $2 order by id limit $3 \
         ), picked as ( \
            select ctid as place from jobs where id = any(array(select id from page where tenant_id = $1)) \
            and open_parents > 0 and finished_at is null and not committed order by id for no key update skip locked \
         ), cancelled as ( \
            update jobs j set cancel_requested = true, state = 'cancelled', finished_at = now(), open_parents = 0, \
                why = jsonb_build_object('code', 'cancelled', 'message', 'its workspace was deleted') \
            from picked where j.ctid = picked.place \
         ) \
         select (select id from page order by id desc limit 1) where (select count(*) from page) = $3",
    )
    .bind(tenant)
    .bind(after.unwrap_or(Uuid::nil()))
    .bind(limit)
    .fetch_optional(db)
    .await
}

/// Whether anything of a tenant runs, or has done something elsewhere whose outcome is still found out. What waits for
/// others has done nothing yet.
pub async fn is_at_work_for(db: impl PgExecutor<'_>, tenant: TenantId) -> sqlx::Result<bool> {
    sqlx::query_scalar(concat!(
        open_jobs!("and (committed or state = 'running')", "1"),
        "select exists (select from open)"
    ))
    .bind(tenant)
    .fetch_one(db)
    .await
}
