//! The tables of plans, and what counts against them.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection, PgExecutor};

use super::{Counted, Each};
use crate::{connections::store::stored, ids::TenantId, jobs::job::stored_names};

stored_names! {
    /// By whose word a workspace has a plan.
    Source {
        Default = "default",
        Operator = "operator",
        Patreon = "patreon",
    }
}

/// The plan of a workspace, as it is now.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: String,
    pub source: Source,
    /// When it ends by itself.
    pub until: Option<DateTime<Utc>>,
    pub limits: Limits,
    /// When the next month begins.
    pub renews_at: DateTime<Utc>,
}

/// `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromRow, Serialize)]
pub struct Limits {
    pub connections: Option<i64>,
    pub posts_per_month: Option<i64>,
    pub media_bytes: Option<i64>,
    pub upload_bytes: Option<i64>,
    pub upload_seconds: Option<i64>,
    pub ai_ticks_per_month: Option<i64>,
}

impl Plan {
    pub const fn most(&self, limit: Counted) -> Option<i64> {
        match limit {
            Counted::Connections => self.limits.connections,
            Counted::Posts => self.limits.posts_per_month,
            Counted::MediaBytes => self.limits.media_bytes,
            Counted::AiTicks => self.limits.ai_ticks_per_month,
        }
    }

    pub const fn each(&self, limit: Each) -> Option<i64> {
        match limit {
            Each::UploadBytes => self.limits.upload_bytes,
            Each::UploadSeconds => self.limits.upload_seconds,
        }
    }
}

#[derive(FromRow)]
struct Row {
    name: String,
    source: String,
    until: Option<DateTime<Utc>>,
    renews_at: DateTime<Utc>,
    #[sqlx(flatten)]
    limits: Limits,
}

/// The operator's word before a membership's, and that before the default; what has ended counts no more.
pub async fn of(db: impl PgExecutor<'_>, tenant: TenantId) -> sqlx::Result<Plan> {
    let row: Row = sqlx::query_as(
        "select p.name, coalesce(w.source, 'default') as source, w.until, p.connections, p.posts_per_month, \
           p.media_bytes, p.upload_bytes, p.upload_seconds, p.ai_ticks_per_month, \
           date_trunc('month', now(), 'UTC') + interval '1 month' as renews_at \
         from plans p left join workspace_plans w \
           on w.plan = p.name and w.tenant_id = $1 and coalesce(w.until > now(), true) \
         where w.tenant_id is not null or p.is_default order by w.source = 'operator' desc nulls last limit 1",
    )
    .bind(tenant)
    .fetch_one(db)
    .await?;
    let Row { name, source, until, renews_at, limits } = row;
    Ok(Plan { name, source: stored(&source)?, until, limits, renews_at })
}

/// Whoever counts the same in the same workspace waits until this transaction has ended.
pub async fn take_turns(tx: &mut PgConnection, tenant: TenantId, limit: Counted) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('plan ' || $1 || $2::uuid::text, 0))")
        .bind(limit.as_str())
        .bind(tenant)
        .execute(tx)
        .await?;
    Ok(())
}

/// How much is used up; in ticks where it is money.
pub async fn used(db: impl PgExecutor<'_>, tenant: TenantId, limit: Counted) -> sqlx::Result<i64> {
    let statement = match limit {
        Counted::Connections => "select count(*) from connections where tenant_id = $1 and state <> 'removed'",
        // Ids begin with the time at which they were made, by a clock that is never a day wrong: the index finds the
        // month by them.
        Counted::Posts => {
            "select count(*) from publications where tenant_id = $1 and phase <> 'cancelled' \
               and created_at >= date_trunc('month', now(), 'UTC') \
               and id >= rpad(lpad(to_hex((1000 * extract(epoch from \
                 date_trunc('month', now(), 'UTC') - interval '1 day'))::bigint), 12, '0'), 32, '0')::uuid"
        }
        Counted::MediaBytes => {
            "select coalesce(sum(o.size_bytes), 0)::bigint from media_objects o \
             where o.tenant_id = $1 and o.state = 'kept' \
               and exists (select from media m where m.object_id = o.id and m.deleted_at is null)"
        }
        Counted::AiTicks => {
            "select coalesce(sum(coalesce(cost_ticks, reserved_ticks)), 0)::bigint from ai_usage \
             where tenant_id = $1 and reserved_at >= date_trunc('month', now(), 'UTC')"
        }
    };
    sqlx::query_scalar(statement).bind(tenant).fetch_one(db).await
}

/// A plan as the operator has it.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Defined {
    pub name: String,
    pub is_default: bool,
    pub rank: i32,
    #[sqlx(flatten)]
    #[serde(flatten)]
    pub limits: Limits,
    /// Workspaces that were given it.
    pub workspaces: i64,
}

pub async fn list(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Defined>> {
    sqlx::query_as(
        "select name, is_default, rank, connections, posts_per_month, media_bytes, upload_bytes, upload_seconds, \
           ai_ticks_per_month, (select count(*) from workspace_plans w where w.plan = p.name \
             and coalesce(w.until > now(), true)) as workspaces \
         from plans p order by rank, name",
    )
    .fetch_all(db)
    .await
}

/// Makes a plan, or gives the one that there is these limits: they hold at once for whoever has it.
/// Without a rank it keeps the one it has; a new plan's is 0.
pub async fn define(tx: &mut PgConnection, name: &str, rank: Option<i32>, limits: Limits) -> sqlx::Result<()> {
    sqlx::query(
        "insert into plans (name, rank, connections, posts_per_month, media_bytes, upload_bytes, upload_seconds, \
           ai_ticks_per_month) values ($1, coalesce($2, 0), $3, $4, $5, $6, $7, $8) \
         on conflict (name) do update set rank = coalesce($2, plans.rank), connections = excluded.connections, \
           posts_per_month = excluded.posts_per_month, media_bytes = excluded.media_bytes, \
           upload_bytes = excluded.upload_bytes, upload_seconds = excluded.upload_seconds, \
           ai_ticks_per_month = excluded.ai_ticks_per_month",
    )
    .bind(name)
    .bind(rank)
    .bind(limits.connections)
    .bind(limits.posts_per_month)
    .bind(limits.media_bytes)
    .bind(limits.upload_bytes)
    .bind(limits.upload_seconds)
    .bind(limits.ai_ticks_per_month)
    .execute(tx)
    .await?;
    Ok(())
}

/// `false`: there is no such plan.
pub async fn make_default(tx: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    // One after the other: there is no moment at which two rows are the default.
    let known = sqlx::query("select from plans where name = $1 for update").bind(name).execute(&mut *tx).await?;
    if known.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("update plans set is_default = false where is_default and name <> $1")
        .bind(name)
        .execute(&mut *tx)
        .await?;
    sqlx::query("update plans set is_default = true where name = $1").bind(name).execute(tx).await?;
    Ok(true)
}

/// What came of giving a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    Done,
    NoPlan,
    NoWorkspace,
}

/// In the place of what the same source gave before.
pub async fn give(
    tx: &mut PgConnection,
    tenant: TenantId,
    source: Source,
    plan: &str,
    until: Option<DateTime<Utc>>,
) -> sqlx::Result<Given> {
    let known: (bool, bool) =
        sqlx::query_as("select exists (select from plans where name = $1), app.has_workspace($2)")
            .bind(plan)
            .bind(tenant)
            .fetch_one(&mut *tx)
            .await?;
    match known {
        (false, _) => return Ok(Given::NoPlan),
        (_, false) => return Ok(Given::NoWorkspace),
        (true, true) => {}
    }
    sqlx::query(
        "insert into workspace_plans (tenant_id, source, plan, until) values ($1, $2, $3, $4) \
         on conflict (tenant_id, source) do update set plan = excluded.plan, until = excluded.until, given_at = now()",
    )
    .bind(tenant)
    .bind(source.as_str())
    .bind(plan)
    .bind(until)
    .execute(tx)
    .await?;
    Ok(Given::Done)
}

/// `false`: that source had given none.
pub async fn take_back(tx: &mut PgConnection, tenant: TenantId, source: Source) -> sqlx::Result<bool> {
    let done = sqlx::query("delete from workspace_plans where tenant_id = $1 and source = $2")
        .bind(tenant)
        .bind(source.as_str())
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}
