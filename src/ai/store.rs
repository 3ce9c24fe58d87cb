//! What calls to language models have used, read back.

use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

use crate::ids::TenantId;

/// One provider and model's calls in a month.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct ModelUsage {
    pub provider: String,
    pub model: String,
    pub calls: i64,
    pub answered: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub cost_ticks: i64,
    /// Reserved and not yet settled.
    pub reserved_ticks: i64,
}

/// A tenant's calls since the start of the month (UTC).
pub async fn month(db: impl PgExecutor<'_>, tenant: TenantId) -> sqlx::Result<Vec<ModelUsage>> {
    sqlx::query_as(
        "select provider, coalesce(model_answered, model_asked) as model,
                count(*) as calls,
                count(*) filter (where class = 'answered') as answered,
                coalesce(sum(prompt_tokens), 0)::bigint as prompt_tokens,
                coalesce(sum(completion_tokens), 0)::bigint as completion_tokens,
                coalesce(sum(cost_ticks), 0)::bigint as cost_ticks,
                coalesce(sum(reserved_ticks) filter (where state = 'reserved'), 0)::bigint as reserved_ticks
         from ai_usage
         where tenant_id = $1 and reserved_at >= date_trunc('month', now(), 'UTC')
         group by 1, 2 order by cost_ticks desc, 1, 2",
    )
    .bind(tenant)
    .fetch_all(db)
    .await
}

/// A tenant's own budget, if it has one.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Budget {
    pub period: String,
    pub limit_ticks: i64,
    pub used_ticks: i64,
    pub renews_at: DateTime<Utc>,
}

pub async fn budget(db: impl PgExecutor<'_>, tenant: TenantId) -> sqlx::Result<Option<Budget>> {
    sqlx::query_as(
        "select period, limit_ticks,
                case when period_start < date_trunc(period, now(), 'UTC') then 0 else used_ticks end as used_ticks,
                date_trunc(period, now(), 'UTC') + ('1 ' || period)::interval as renews_at
         from ai_budgets where subject = 'tenant:' || $1::uuid::text",
    )
    .bind(tenant)
    .fetch_optional(db)
    .await
}

/// How a provider has answered of late, over all tenants.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Traffic {
    pub provider: String,
    pub calls: i64,
    pub answered: i64,
    pub last_answer_at: Option<DateTime<Utc>>,
    /// The class of its newest failure.
    pub last_failure: Option<String>,
    pub last_failure_at: Option<DateTime<Utc>>,
    /// The median time of the answers.
    pub latency_ms: Option<f64>,
}

/// The last quarter of an hour. A call that was dropped, or refused for itself, says nothing about its provider.
pub async fn recent_traffic(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Traffic>> {
    sqlx::query_as(
        "select provider,
                count(*) as calls,
                count(*) filter (where class = 'answered') as answered,
                max(settled_at) filter (where class = 'answered') as last_answer_at,
                (array_agg(class order by settled_at desc) filter (where class <> 'answered'))[1] as last_failure,
                max(settled_at) filter (where class <> 'answered') as last_failure_at,
                percentile_cont(0.5) within group (order by latency_ms)
                    filter (where class = 'answered') as latency_ms
         from ai_usage
         where settled_at > now() - interval '15 minutes' and state = 'settled'
           and class not in ('cancelled', 'caller', 'policy', 'too_long')
         group by provider",
    )
    .fetch_all(db)
    .await
}
