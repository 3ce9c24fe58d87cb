//! The `audit_log` table.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, PgExecutor, types::Json};

use super::Action;
use crate::ids::{ApiKeyId, AuditId, TenantId, UserId};

pub struct NewLine {
    pub tenant: Option<TenantId>,
    pub actor: &'static str,
    pub user: Option<UserId>,
    pub key: Option<ApiKeyId>,
    pub action: Action,
    pub target: String,
    pub details: Value,
    pub address: Option<IpAddr>,
    pub request_id: Option<String>,
}

pub async fn insert(tx: &mut PgConnection, line: &NewLine) -> sqlx::Result<()> {
    sqlx::query(
        "insert into audit_log (id, tenant_id, actor, user_id, key_id, action, target, details, address, request_id) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9::inet, $10)",
    )
    .bind(AuditId::new())
    .bind(line.tenant)
    .bind(line.actor)
    .bind(line.user)
    .bind(line.key)
    .bind(line.action.as_str())
    .bind(&line.target)
    .bind(Json(&line.details))
    .bind(line.address.map(|address| address.to_string()))
    .bind(&line.request_id)
    .execute(tx)
    .await?;
    Ok(())
}

/// One for each workspace, in one statement.
pub async fn insert_by_operator(
    tx: &mut PgConnection,
    workspaces: &[(TenantId, Value)],
    action: Action,
    target: &str,
) -> sqlx::Result<()> {
    let (tenants, details): (Vec<_>, Vec<_>) =
        workspaces.iter().map(|(tenant, details)| (tenant.uuid(), Json(details))).unzip();
    let ids: Vec<_> = workspaces.iter().map(|_| AuditId::new().uuid()).collect();
    sqlx::query(
        "insert into audit_log (id, tenant_id, actor, action, target, details) \
         select l.id, l.tenant_id, 'operator', $1, $2, l.details \
         from unnest($3::uuid[], $4::uuid[], $5::jsonb[]) as l (id, tenant_id, details)",
    )
    .bind(action.as_str())
    .bind(target)
    .bind(ids)
    .bind(tenants)
    .bind(details)
    .execute(tx)
    .await?;
    Ok(())
}

#[derive(FromRow)]
pub struct LineRow {
    pub id: AuditId,
    pub at: DateTime<Utc>,
    pub actor: String,
    pub user_id: Option<UserId>,
    pub key_id: Option<ApiKeyId>,
    pub action: String,
    pub target: Option<String>,
    pub details: Value,
    pub address: Option<String>,
    pub request_id: Option<String>,
}

/// The lines of `$of`.
macro_rules! lines {
    ($of:literal) => {
        concat!(
            "select id, at, actor, user_id, key_id, action, target, details, host(address) as address, request_id from ",
            $of
        )
    };
}

/// Newest first.
pub async fn list(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    action: Option<&str>,
    before: Option<AuditId>,
    limit: i64,
) -> sqlx::Result<Vec<LineRow>> {
    sqlx::query_as(lines!(
        "audit_log where tenant_id = $1 and ($2::text is null or action = $2) \
         and ($3::uuid is null or id < $3) order by id desc limit $4"
    ))
    .bind(tenant)
    .bind(action)
    .bind(before)
    .bind(limit)
    .fetch_all(db)
    .await
}

/// Those that belong to no workspace, newest first. The database shows them to a call by this function alone.
pub async fn of_installation(
    db: impl PgExecutor<'_>,
    action: Option<&str>,
    before: Option<AuditId>,
    limit: i64,
) -> sqlx::Result<Vec<LineRow>> {
    sqlx::query_as(lines!("app.installation_audit($1, $2, $3)"))
        .bind(action)
        .bind(before)
        .bind(limit)
        .fetch_all(db)
        .await
}

/// Forgets up to `limit` lines that are old enough for the table to let them go; returns how many.
pub async fn prune(db: impl PgExecutor<'_>, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "delete from audit_log where id in ( \
           select id from audit_log where at < now() - interval '365 days' order by at limit $1)",
    )
    .bind(limit)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
