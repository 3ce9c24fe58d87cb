//! Money before work (A2): what a call may cost is reserved before it and settled after it.
//!
//! A process that dies between the two leaves its reservation, which counts as spent until it expires and is written
//! off as lost: the provider has most likely billed it. Budgets are guarded where they are kept, so that two
//! processes cannot both spend the last cent.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{
    provider::ProviderName,
    usage::{Usage, usd},
};
use crate::{
    ids::{JobId, TenantId},
    plans::{self, Counted, PlanError},
};

/// A call about to be made.
#[derive(Debug, Clone)]
pub struct Reservation {
    pub provider: ProviderName,
    pub model: String,
    pub attempt: u16,
    /// The most it can cost.
    pub ticks: i64,
}

/// What came of a call.
#[derive(Debug, Clone)]
pub struct Settlement {
    pub model_answered: Option<String>,
    /// `answered`, or the class of the failure.
    pub class: &'static str,
    pub status: Option<u16>,
    pub request_id: Option<String>,
    pub usage: Usage,
    pub cost_ticks: i64,
    pub first_token: Option<Duration>,
    pub latency: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    #[error("{0}")]
    Spent(BudgetSpent),
    #[error("the usage could not be written down")]
    Database(#[from] sqlx::Error),
}

impl From<PlanError> for BillingError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Database(error) => Self::Database(error),
            PlanError::Refused(refused) => Self::Spent(BudgetSpent {
                subject: format!("plan:{}", refused.plan),
                limit_ticks: refused.most,
                renews_at: refused.renews_at,
            }),
        }
    }
}

/// Which budget would be overrun, and when it starts anew.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetSpent {
    pub subject: String,
    pub limit_ticks: i64,
    pub renews_at: DateTime<Utc>,
}

impl std::fmt::Display for BudgetSpent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whose = match self.subject.split_once(':') {
            Some(("tenant", _)) => "this workspace".to_owned(),
            Some(("plan", name)) => format!("this workspace's plan \"{name}\""),
            Some(("provider", name)) => format!("the provider {name}"),
            _ => "the whole installation".to_owned(),
        };
        let (limit, day) = (usd(self.limit_ticks), self.renews_at.format("%Y-%m-%d"));
        write!(f, "the budget for language models of {whose} (${limit:.2}) is used up; it starts anew on {day}")
    }
}

/// Where calls are written down: the database in programs, a list in tests.
#[async_trait]
pub trait Billing: Send + Sync {
    async fn reserve(&self, reservation: &Reservation) -> Result<Uuid, BillingError>;
    async fn settle(&self, id: Uuid, settlement: &Settlement) -> Result<(), BillingError>;
}

/// Writes down the calls of one job.
#[derive(Debug, Clone)]
pub struct PgBilling {
    pub db: PgPool,
    pub tenant: TenantId,
    pub job: Option<JobId>,
    /// After this a reservation without a settlement is written off.
    pub expires_after: Duration,
}

#[async_trait]
impl Billing for PgBilling {
    async fn reserve(&self, reservation: &Reservation) -> Result<Uuid, BillingError> {
        let mut tx = self.db.begin().await?;
        let id = Uuid::now_v7();
        take_from_budgets(&mut tx, self.tenant, reservation).await?;
        sqlx::query(
            "insert into ai_usage (id, tenant_id, job_id, provider, model_asked, attempt, reserved_ticks, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, now() + $8 * interval '1 second')",
        )
        .bind(id)
        .bind(self.tenant)
        .bind(self.job)
        .bind(reservation.provider.as_str())
        .bind(&reservation.model)
        .bind(i16::try_from(reservation.attempt).unwrap_or(i16::MAX))
        .bind(reservation.ticks)
        .bind(self.expires_after.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        plans::allow(&mut tx, self.tenant, Counted::AiTicks).await?;
        tx.commit().await?;
        Ok(id)
    }

    async fn settle(&self, id: Uuid, settlement: &Settlement) -> Result<(), BillingError> {
        Ok(settle(&mut *self.db.acquire().await?, id, settlement).await?)
    }
}

/// Budgets are locked in one order everywhere, so that nobody waits in a circle.
async fn take_from_budgets(
    tx: &mut PgConnection,
    tenant: TenantId,
    reservation: &Reservation,
) -> Result<(), BillingError> {
    let spent = sqlx::query_as::<_, (String, i64, DateTime<Utc>)>(
        "with budgets as (
             select subject, limit_ticks, period, date_trunc(period, now(), 'UTC') as period_start,
                    case when period_start < date_trunc(period, now(), 'UTC') then 0 else used_ticks end as used_ticks
             from ai_budgets
             where subject in ('global', 'provider:' || $1, 'tenant:' || $2::uuid::text)
             order by subject
             for update
         ), over as (
             select subject, limit_ticks, period_start + ('1 ' || period)::interval as renews_at
             from budgets where used_ticks + $3 > limit_ticks
         ), taken as (
             update ai_budgets b set used_ticks = n.used_ticks + $3, period_start = greatest(b.period_start, n.period_start)
             from budgets n
             where b.subject = n.subject and not exists (select from over)
         )
         select subject, limit_ticks, renews_at from over order by renews_at desc, subject limit 1",
    )
    .bind(reservation.provider.as_str())
    .bind(tenant)
    .bind(reservation.ticks)
    .fetch_optional(tx)
    .await?;
    match spent {
        None => Ok(()),
        Some((subject, limit_ticks, renews_at)) => {
            Err(BillingError::Spent(BudgetSpent { subject, limit_ticks, renews_at }))
        }
    }
}

/// Settles once: whoever comes later finds nothing reserved and changes nothing. Also settles what was written off
/// in the meantime, since the true bill is better than a guess.
async fn settle(db: &mut PgConnection, id: Uuid, settlement: &Settlement) -> sqlx::Result<()> {
    let ms = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    let tokens = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    sqlx::query(
        "with before as (
             select id, coalesce(cost_ticks, reserved_ticks) as counted_ticks, tenant_id, provider, reserved_at
             from ai_usage where id = $1 and state in ('reserved', 'lost') for update
         ), settled as (
             update ai_usage u
             set state = 'settled', settled_at = now(), model_answered = $2, class = $3, http_status = $4,
                 request_id = $5, cost_ticks = $6, prompt_tokens = $7, cached_tokens = $8, completion_tokens = $9,
                 reasoning_tokens = $10, estimated = $11, first_token_ms = $12, latency_ms = $13
             from before where u.id = before.id
         ), budgets as (
             select b.subject, $6 - before.counted_ticks as change
             from before join ai_budgets b
                 on b.subject in ('global', 'provider:' || before.provider, 'tenant:' || before.tenant_id::text)
                 and b.period_start <= before.reserved_at
             order by b.subject for update of b
         )
         update ai_budgets b set used_ticks = greatest(0, b.used_ticks + n.change)
         from budgets n where b.subject = n.subject",
    )
    .bind(id)
    .bind(&settlement.model_answered)
    .bind(settlement.class)
    .bind(settlement.status.map(|status| i16::try_from(status).unwrap_or(i16::MAX)))
    .bind(&settlement.request_id)
    .bind(settlement.cost_ticks)
    .bind(tokens(settlement.usage.prompt_tokens))
    .bind(tokens(settlement.usage.cached_tokens))
    .bind(tokens(settlement.usage.completion_tokens))
    .bind(tokens(settlement.usage.reasoning_tokens))
    .bind(settlement.usage.estimated)
    .bind(settlement.first_token.map(ms))
    .bind(ms(settlement.latency))
    .execute(db)
    .await?;
    Ok(())
}

/// Writes off reservations whose process has died. They keep counting at what was reserved. Returns how many.
pub async fn write_off_expired(db: &PgPool) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "update ai_usage set state = 'lost', cost_ticks = reserved_ticks, settled_at = now(), estimated = true
         where id in (
             select id from ai_usage where state = 'reserved' and expires_at < now()
             order by id limit 1000 for update skip locked
         )",
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Forgets calls older than thirteen months. Returns how many.
pub async fn prune(db: &PgPool) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "delete from ai_usage where id in (
             select id from ai_usage
             where settled_at is not null and settled_at < now() - interval '13 months' limit 1000
         )",
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_budget_says_whose_it_is_and_when_it_starts_anew() {
        let spent = |subject: &str| {
            let renews_at = "2026-12-01T00:00:00Z".parse().unwrap();
            BudgetSpent { subject: subject.to_owned(), limit_ticks: 50_000_000_000, renews_at }.to_string()
        };
        assert_eq!(
            spent("tenant:0198"),
            "the budget for language models of this workspace ($5.00) is used up; it starts anew on 2026-12-01"
        );
        assert!(spent("plan:free").contains("of this workspace's plan \"free\" ($5.00)"));
        assert!(spent("provider:grok").contains("the provider grok"));
        assert!(spent("global").contains("whole installation"));
    }
}
