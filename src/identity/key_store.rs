//! The `api_keys` table. Keys go in as hashes only, and never come out.

use std::{num::NonZeroU32, sync::Arc};

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, PgExecutor};

use super::{ApiKey, Caller, Role, Scope, Scopes};
use crate::ids::{ApiKeyId, ConnectionId, TenantId, UserId};

/// A key as it is found when somebody presents it.
#[derive(FromRow)]
pub struct KeptKey {
    pub id: ApiKeyId,
    tenant_id: TenantId,
    created_by: UserId,
    secret_hash: Vec<u8>,
    scopes: Vec<String>,
    connections: Option<Vec<ConnectionId>>,
    rate_limit: Option<i32>,
    pub expires_at: Option<DateTime<Utc>>,
    is_alive: bool,
    is_admin: bool,
    /// The maker's, now; `None`: no member any more.
    role: Option<String>,
    pub is_use_to_be_noted: bool,
}

impl KeptKey {
    pub fn hash(&self) -> [u8; 32] {
        // The table's own check says that it has 32 bytes; anything else matches nothing.
        self.secret_hash.as_slice().try_into().unwrap_or([0; 32])
    }

    /// `None` when it opens nothing any more.
    pub fn caller(self) -> Option<Caller> {
        let role: Role = self.role.filter(|_| self.is_alive)?.parse().ok()?;
        let scopes = Scopes::parse(self.scopes.iter().map(String::as_str)).within(role.scopes());
        let scopes = if self.is_admin { scopes } else { scopes.without(Scope::Admin) };
        Some(Caller {
            role,
            key: Some(self.id),
            key_limit: self.rate_limit.and_then(|limit| NonZeroU32::new(limit.unsigned_abs())),
            connections: self.connections.map(Arc::from),
            ..Caller::new(self.tenant_id, self.created_by, scopes)
        })
    }
}

/// One statement, whether or not there is such a key.
pub async fn find(db: impl PgExecutor<'_>, prefix: &str) -> sqlx::Result<Option<KeptKey>> {
    sqlx::query_as(
        "select id, tenant_id, created_by, secret_hash, scopes, connections, rate_limit, expires_at, is_alive, is_admin, role, \
           is_use_to_be_noted from app.find_key($1)",
    )
    .bind(prefix)
    .fetch_optional(db)
    .await
}

/// To the minute.
pub async fn note_use(db: impl PgExecutor<'_>, id: ApiKeyId) -> sqlx::Result<()> {
    sqlx::query("select app.note_key_use($1)").bind(id).execute(db).await.map(drop)
}

/// A key without its secret.
#[derive(Debug, Clone, FromRow)]
pub struct KeyRow {
    pub id: ApiKeyId,
    pub created_by: UserId,
    pub name: String,
    pub prefix: String,
    pub scopes: Vec<String>,
    pub connections: Option<Vec<ConnectionId>>,
    pub rate_limit: Option<i32>,
    pub expires_at: Option<DateTime<Utc>>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

macro_rules! select {
    ($after:literal) => {
        concat!(
            "select id, created_by, name, prefix, scopes, connections, rate_limit, expires_at, last_used_at, revoked_at, \
             created_at from api_keys ",
            $after
        )
    };
}

/// What a new key is to be.
pub struct NewKey {
    pub name: String,
    pub scopes: Scopes,
    pub connections: Option<Vec<ConnectionId>>,
    /// Requests per window.
    pub rate_limit: Option<i32>,
    pub expires_at: Option<DateTime<Utc>>,
}

pub async fn insert(
    tx: &mut PgConnection,
    tenant: TenantId,
    created_by: UserId,
    key: &ApiKey,
    new: &NewKey,
) -> sqlx::Result<ApiKeyId> {
    let id = ApiKeyId::new();
    let scopes: Vec<String> = new.scopes.words().into_iter().map(str::to_owned).collect();
    sqlx::query(
        "insert into api_keys \
           (id, tenant_id, created_by, name, prefix, secret_hash, scopes, connections, expires_at, rate_limit) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(id)
    .bind(tenant)
    .bind(created_by)
    .bind(&new.name)
    .bind(&key.prefix)
    .bind(key.hash.as_slice())
    .bind(scopes)
    .bind(&new.connections)
    .bind(new.expires_at)
    .bind(new.rate_limit)
    .execute(tx)
    .await?;
    Ok(id)
}

pub async fn get(db: impl PgExecutor<'_>, tenant: TenantId, id: ApiKeyId) -> sqlx::Result<Option<KeyRow>> {
    sqlx::query_as(select!("where tenant_id = $1 and id = $2")).bind(tenant).bind(id).fetch_optional(db).await
}

/// Newest first, revoked ones too.
pub async fn list(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    before: Option<ApiKeyId>,
    limit: i64,
) -> sqlx::Result<Vec<KeyRow>> {
    sqlx::query_as(select!("where tenant_id = $1 and ($2::uuid is null or id < $2) order by id desc limit $3"))
        .bind(tenant)
        .bind(before)
        .bind(limit)
        .fetch_all(db)
        .await
}

/// `None`: there is no such key that is not revoked.
pub async fn limit(
    tx: &mut PgConnection,
    tenant: TenantId,
    id: ApiKeyId,
    rate_limit: Option<i32>,
) -> sqlx::Result<Option<KeyRow>> {
    sqlx::query_as(
        "update api_keys set rate_limit = $3 where tenant_id = $1 and id = $2 and revoked_at is null \
         returning id, created_by, name, prefix, scopes, connections, rate_limit, expires_at, last_used_at, \
           revoked_at, created_at",
    )
    .bind(tenant)
    .bind(id)
    .bind(rate_limit)
    .fetch_optional(tx)
    .await
}

/// `None`: there is no such key. `Some(false)`: it was revoked before.
pub async fn revoke(tx: &mut PgConnection, tenant: TenantId, id: ApiKeyId) -> sqlx::Result<Option<bool>> {
    sqlx::query_scalar(
        "with now_revoked as (update api_keys set revoked_at = now() \
           where tenant_id = $1 and id = $2 and revoked_at is null returning id) \
         select exists (select from now_revoked) from api_keys where tenant_id = $1 and id = $2",
    )
    .bind(tenant)
    .bind(id)
    .fetch_optional(tx)
    .await
}
