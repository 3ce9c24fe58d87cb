//! What stands on the belt, and what should: the ledger's side of the bounded window (E5, E6, E18).
//!
//! Every look costs by what is shown, never by how many wait behind it.

use sqlx::{PgExecutor, Row};
use uuid::Uuid;

use super::{list_of, stored_priority};
use crate::{
    ids::{JobId, TenantId},
    jobs::{
        belt::{List, Slot},
        job::{Lane, Queue},
    },
};

/// Suspects of a lane, or those `among` some, that a worker with these kinds could run now; oldest first.
pub async fn runnable_suspects(
    db: impl PgExecutor<'_>,
    queue: Queue,
    lane: Lane,
    kinds: &[&str],
    among: Option<&[JobId]>,
    limit: usize,
) -> sqlx::Result<Vec<JobId>> {
    sqlx::query_scalar(
        "select id from jobs where state = 'queued' and suspect and queue = $1 and lane = $2 and kind = any($3) \
         and ($4::uuid[] is null or id = any($4)) \
         and not exists (select from queue_controls where queue = $1 and paused_at is not null) order by seq limit $5",
    )
    .bind(queue.as_str())
    .bind(lane.as_str())
    .bind(kinds)
    .bind(among.map(|jobs| jobs.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>()))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(db)
    .await
}

/// A list and a tenant with queued jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Waiting {
    pub list: List,
    pub tenant: TenantId,
}

/// The tenants that have queued jobs in queues that are not paused, at most `limit` of each list, beginning with the
/// tenant that `after` names for it; one index probe each, however many jobs they have. Ordered by the sequence as well,
/// for the index of what is queued alone has it: the one of all jobs of a tenant would be walked to its end.
pub async fn waiting(db: impl PgExecutor<'_>, after: &[(List, TenantId)], limit: i64) -> sqlx::Result<Vec<Waiting>> {
    let priorities: Vec<(List, i16)> = List::all()
        .filter_map(|list| match list.slot {
            Slot::Priority(priority) => Some((list, stored_priority(priority))),
            Slot::Suspects => None,
        })
        .collect();
    let start = |list: List| after.iter().find(|(of, _)| *of == list).map_or(Uuid::nil(), |(_, tenant)| tenant.uuid());
    let rows = sqlx::query(
        "with recursive turns as ( \
            select l.queue, l.lane, l.priority, n.tenant_id, 1 as place \
            from unnest($1::text[], $2::text[], $3::smallint[], $4::uuid[]) as l (queue, lane, priority, first) \
            cross join lateral ( \
                select tenant_id from jobs where state = 'queued' and not suspect and queue = l.queue \
                and lane = l.lane and priority = l.priority and tenant_id >= l.first order by tenant_id, seq limit 1) n \
            where not exists (select from queue_controls c where c.queue = l.queue and c.paused_at is not null) \
            union all \
            select t.queue, t.lane, t.priority, n.tenant_id, t.place + 1 from turns t cross join lateral ( \
                select tenant_id from jobs where state = 'queued' and not suspect and queue = t.queue \
                and lane = t.lane and priority = t.priority and tenant_id > t.tenant_id order by tenant_id, seq limit 1) n \
            where t.place < $5 \
         ) \
         select queue, lane, priority, tenant_id from turns order by queue, lane, priority, tenant_id",
    )
    .bind(priorities.iter().map(|(list, _)| list.queue.as_str()).collect::<Vec<_>>())
    .bind(priorities.iter().map(|(list, _)| list.lane.as_str()).collect::<Vec<_>>())
    .bind(priorities.iter().map(|(_, priority)| *priority).collect::<Vec<_>>())
    .bind(priorities.iter().map(|(list, _)| start(*list)).collect::<Vec<_>>())
    .bind(limit)
    .fetch_all(db)
    .await?;
    let mut waiting = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(list) = list_of(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, false) {
            waiting.push(Waiting { list, tenant: row.try_get(3)? });
        }
    }
    Ok(waiting)
}

/// One tenant's next turn on a list.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    pub tenant: TenantId,
    /// Everything up to here has been pushed.
    pub after_seq: i64,
    pub limit: i64,
}

/// The next queued rows of each turn in order, as (tenant, id, seq). Rows whose maker pushes them are left out.
pub async fn fill(db: impl PgExecutor<'_>, list: List, turns: &[Turn]) -> sqlx::Result<Vec<(TenantId, JobId, i64)>> {
    let Slot::Priority(priority) = list.slot else { return Ok(Vec::new()) };
    sqlx::query_as(
        "select t.tenant_id, j.id, j.seq \
         from unnest($1::uuid[], $2::bigint[], $3::bigint[]) with ordinality \
              as t (tenant_id, after_seq, turn, place) \
         cross join lateral (select id, seq from jobs where state = 'queued' and not suspect and queue = $4 \
                             and lane = $5 and priority = $6 and tenant_id = t.tenant_id and seq > t.after_seq \
                             and not pushed order by seq limit t.turn) j \
         order by t.place, j.seq",
    )
    .bind(turns.iter().map(|turn| turn.tenant.uuid()).collect::<Vec<Uuid>>())
    .bind(turns.iter().map(|turn| turn.after_seq).collect::<Vec<_>>())
    .bind(turns.iter().map(|turn| turn.limit).collect::<Vec<_>>())
    .bind(list.queue.as_str())
    .bind(list.lane.as_str())
    .bind(stored_priority(priority))
    .fetch_all(db)
    .await
}

/// Queued rows of a list that should be on the belt: passed by the relay's `cursors`, or pushed by whoever made them;
/// `limit` of each at most. The audit compares these with what the belt really holds (E5, E6).
pub async fn expected_on_belt(
    db: impl PgExecutor<'_>,
    list: List,
    cursors: &[(TenantId, i64)],
    limit: i64,
) -> sqlx::Result<Vec<JobId>> {
    match list.slot {
        Slot::Suspects => {
            sqlx::query_scalar(
                "select id from jobs where state = 'queued' and suspect and queue = $1 and lane = $2 \
                 order by seq limit $3",
            )
            .bind(list.queue.as_str())
            .bind(list.lane.as_str())
            .bind(limit)
            .fetch_all(db)
            .await
        }
        Slot::Priority(priority) => {
            sqlx::query_scalar(
                "(select j.id from unnest($4::uuid[], $5::bigint[]) as t (tenant_id, upto) \
                  cross join lateral (select id from jobs where state = 'queued' and not suspect \
                      and queue = $1 and lane = $2 and priority = $3 and tenant_id = t.tenant_id and seq <= t.upto \
                      order by seq limit $6) j limit $6) \
                 union \
                 (select id from jobs where state = 'queued' and pushed and not suspect \
                  and queue = $1 and lane = $2 and priority = $3 order by queue, lane, priority limit $6)",
            )
            .bind(list.queue.as_str())
            .bind(list.lane.as_str())
            .bind(stored_priority(priority))
            .bind(cursors.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<Uuid>>())
            .bind(cursors.iter().map(|(_, seq)| *seq).collect::<Vec<_>>())
            .bind(limit)
            .fetch_all(db)
            .await
        }
    }
}

/// Lists that have suspects queued.
pub async fn suspect_lists(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<List>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("select distinct queue, lane from jobs where state = 'queued' and suspect")
            .fetch_all(db)
            .await?;
    Ok(rows.iter().filter_map(|(queue, lane)| list_of(queue, lane, 0, true)).collect())
}
