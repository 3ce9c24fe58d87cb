//! The quota governor: how often posts may be created, shared by all workers.
//!
//! A grant is a slot in a platform's limit, now or to come. A publication without a slot now waits for its own,
//! holds no worker and spends no attempt; slots to come are spread at the pace the limit allows, so that a reset is
//! no stampede. A slot that is not used in its time frees itself: a crash leaks nothing (E17).

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};

use super::Publication;
use crate::platforms::{Budget, RateWindow, Scope};

/// How long a slot waits for its publication.
const GRACE: Duration = Duration::from_secs(120);

/// The instant from which the publication may be sent: now or past, or a slot to come. Call in a transaction of its
/// own; `attempt` is the one about to be made.
pub async fn claim(
    tx: &mut PgConnection,
    publication: &Publication,
    budgets: &[Budget],
    attempt: i16,
) -> sqlx::Result<DateTime<Utc>> {
    let mut slot_at = publication.now;
    for budget in budgets {
        let name = name(budget, publication);
        slot_at = slot_at.max(slot(tx, &name, budget, publication, attempt).await?);
    }
    Ok(slot_at)
}

async fn slot(
    tx: &mut PgConnection,
    name: &str,
    budget: &Budget,
    publication: &Publication,
    attempt: i16,
) -> sqlx::Result<DateTime<Utc>> {
    // One at a time for each budget, until the transaction ends; other budgets do not wait.
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('budget ' || $1, 0))")
        .bind(name)
        .execute(&mut *tx)
        .await?;
    let held: Option<DateTime<Utc>> = sqlx::query_scalar(
        "select slot_at from budget_grants where budget = $1 and publication_id = $2 and attempt = $3 \
         and (used_at is not null or expires_at > now())",
    )
    .bind(name)
    .bind(publication.id)
    .bind(attempt)
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(slot_at) = held {
        return Ok(slot_at);
    }
    forget_old(tx, name, budget).await?;
    let slot_at = free_slot(tx, name, budget).await?;
    sqlx::query(
        "insert into budget_grants (budget, publication_id, tenant_id, attempt, slot_at, expires_at) \
         values ($1, $2, $3, $4, $5, greatest($5, now()) + make_interval(secs => $6)) \
         on conflict (budget, publication_id, attempt) do update set slot_at = excluded.slot_at, \
           expires_at = excluded.expires_at",
    )
    .bind(name)
    .bind(publication.id)
    .bind(publication.tenant)
    .bind(attempt)
    .bind(slot_at)
    .bind(GRACE.as_secs_f64())
    .execute(tx)
    .await?;
    Ok(slot_at)
}

/// Grants that no window can see any more. A few at a time keep up with what is added.
async fn forget_old(tx: &mut PgConnection, name: &str, budget: &Budget) -> sqlx::Result<()> {
    sqlx::query(
        "delete from budget_grants where ctid = any(array(select ctid from budget_grants \
           where budget = $1 and slot_at < now() - 2 * make_interval(secs => $2) and expires_at < now() \
           order by slot_at limit 20))",
    )
    .bind(name)
    .bind(budget.window.as_secs_f64())
    .execute(tx)
    .await?;
    Ok(())
}

/// The earliest instant at which one more leaves no stretch of the window with more than the limit. Only while that
/// is to come do slots keep the pace of the limit between them. Time is the statement's, which begins with the lock
/// in hand: by the transaction's own, a slot given a moment ago to another would count as one to come.
async fn free_slot(tx: &mut PgConnection, name: &str, budget: &Budget) -> sqlx::Result<DateTime<Utc>> {
    let pace = budget.window / budget.limit.max(1);
    sqlx::query_scalar(
        "with live as (select slot_at from budget_grants where budget = $1 and (used_at is not null or expires_at > now())), \
         full_until as (select slot_at + make_interval(secs => $2) as at from live order by slot_at desc \
           offset $3 - 1 limit 1), \
         said as (select reset_at as at from budget_windows where budget = $1 and remaining <= 0), \
         free as (select greatest(statement_timestamp(), (select at from full_until), (select at from said)) as at), \
         last as (select max(slot_at) + make_interval(secs => $4) as at from live \
           where slot_at > statement_timestamp()) \
         select case when free.at > statement_timestamp() then greatest(free.at, last.at) else free.at end \
         from free, last",
    )
    .bind(name)
    .bind(budget.window.as_secs_f64())
    .bind(i64::from(budget.limit))
    .bind(pace.as_secs_f64())
    .fetch_one(tx)
    .await
}

/// The slot's request is about to leave.
pub async fn spend(tx: &mut PgConnection, publication: &Publication, attempt: i16) -> sqlx::Result<()> {
    sqlx::query(
        "update budget_grants set used_at = now(), slot_at = least(slot_at, now()) \
         where publication_id = $1 and attempt = $2 and used_at is null",
    )
    .bind(publication.id)
    .bind(attempt)
    .execute(tx)
    .await?;
    Ok(())
}

/// Keeps what the platform itself said. Older news of the same window never replaces newer.
pub async fn observe(
    db: impl PgExecutor<'_>,
    publication: &Publication,
    budgets: &[Budget],
    window: RateWindow,
) -> sqlx::Result<()> {
    let Some(budget) = budgets.iter().find(|budget| budget.observed) else { return Ok(()) };
    sqlx::query(
        "insert into budget_windows as w (budget, limit_count, remaining, reset_at) values ($1, $2, $3, $4) \
         on conflict (budget) do update set limit_count = excluded.limit_count, reset_at = excluded.reset_at, \
           observed_at = now(), remaining = case when w.reset_at = excluded.reset_at \
             then least(w.remaining, excluded.remaining) else excluded.remaining end \
         where excluded.reset_at >= w.reset_at",
    )
    .bind(name(budget, publication))
    .bind(i32::try_from(window.limit).unwrap_or(i32::MAX))
    .bind(i32::try_from(window.remaining).unwrap_or(i32::MAX))
    .bind(window.reset_at)
    .execute(db)
    .await?;
    Ok(())
}

fn name(budget: &Budget, publication: &Publication) -> String {
    let platform = publication.platform;
    match budget.scope {
        Scope::Connection => format!("{platform}:{}:{}", budget.name, publication.connection),
        Scope::App => format!("{platform}:{}", budget.name),
    }
}
