//! The tables of users, workspaces and members. What is asked before it is known who is calling, and the little that
//! looks beyond a workspace, are functions of the schema `app`.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, PgExecutor};

use super::{Role, firebase::Person};
use crate::{
    connections::store::stored,
    ids::{TenantId, UserId},
    rights::erasures,
};

/// What a user may do in one workspace, as it is now.
#[derive(Debug, Clone)]
pub struct Access {
    pub tenant: TenantId,
    pub role: Role,
    pub is_admin: bool,
    pub is_disabled: bool,
    /// Seconds of the epoch, rounded up.
    pub tokens_valid_after: Option<u64>,
}

/// Without a wish it is the user's own workspace. `None`: no such workspace, or not theirs.
pub async fn access(
    db: impl PgExecutor<'_>,
    user: UserId,
    workspace: Option<TenantId>,
) -> sqlx::Result<Option<Access>> {
    let row: Option<(TenantId, String, bool, bool, Option<i64>)> =
        sqlx::query_as("select tenant_id, role, is_admin, is_disabled, tokens_valid_after from app.access($1, $2)")
            .bind(user)
            .bind(workspace)
            .fetch_optional(db)
            .await?;
    row.map(|(tenant, role, is_admin, is_disabled, after)| {
        let tokens_valid_after = after.and_then(|after| u64::try_from(after).ok());
        Ok(Access { tenant, role: stored(&role)?, is_admin, is_disabled, tokens_valid_after })
    })
    .transpose()
}

/// Whether somebody may come in, for those who believe a token without asking the database for its user.
#[derive(Debug, Clone, Copy, FromRow)]
pub struct UserStanding {
    pub id: UserId,
    pub is_disabled: bool,
    pub changed_at: DateTime<Utc>,
}

/// Whoever was disabled or enabled since the last change known, and a while before; without one everybody ever.
pub async fn standing_since(db: impl PgExecutor<'_>, known: Option<DateTime<Utc>>) -> sqlx::Result<Vec<UserStanding>> {
    sqlx::query_as("select id, is_disabled, changed_at from app.standing($1)").bind(known).fetch_all(db).await
}

/// The user behind a Firebase account, made with a workspace of their own at first sight. `None`: they were erased, and
/// this sign-in is of before.
pub async fn firebase_user(db: impl PgExecutor<'_>, person: &Person) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar("select app.firebase_user($1, $2, $3, $4, $5, $6, $7)")
        .bind(&person.uid)
        .bind(&person.email)
        .bind(&person.name)
        .bind(UserId::new())
        .bind(TenantId::new())
        .bind(erasures::identity_hash("firebase", &person.uid).to_vec())
        .bind(i64::try_from(person.signed_in_at).unwrap_or(i64::MAX))
        .fetch_one(db)
        .await
}

/// The rows behind a local token: its user, and its workspace, which is theirs when it was nobody's. Not of what is
/// being erased.
pub async fn ensure_local(db: impl PgExecutor<'_>, tenant: TenantId, user: UserId) -> sqlx::Result<()> {
    sqlx::query("select app.ensure_local($1, $2)").bind(tenant).bind(user).execute(db).await.map(drop)
}

#[derive(Debug, Clone, FromRow)]
pub struct UserRow {
    pub id: UserId,
    pub provider: String,
    pub email: Option<String>,
    pub name: Option<String>,
    pub role: String,
}

/// Oneself, or a member of the workspace of the call.
pub async fn user(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<Option<UserRow>> {
    sqlx::query_as("select id, provider, email, name, role from users where id = $1").bind(id).fetch_optional(db).await
}

/// Whether somebody has signed in here before, in whatever workspace they are.
pub async fn is_known(db: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<bool> {
    sqlx::query_scalar("select app.user_known($1)").bind(id).fetch_one(db).await
}

/// Whoever has verified this address; nobody when it is not certain who is meant.
pub async fn user_by_email(db: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar("select app.user_by_email($1)").bind(email).fetch_one(db).await
}

/// As [`user_by_email`], and also somebody who is let in no more: for the operator alone.
pub async fn anybody_by_email(db: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar("select app.anybody_by_email($1)").bind(email).fetch_one(db).await
}

/// Tokens of sign-ins before now are refused from now on, also those that are issued later.
pub async fn sign_out_everywhere(tx: &mut PgConnection, user: UserId) -> sqlx::Result<()> {
    sqlx::query("update users set tokens_valid_after = now() where id = $1").bind(user).execute(tx).await?;
    Ok(())
}

#[derive(Debug, Clone, FromRow)]
pub struct WorkspaceRow {
    pub id: TenantId,
    pub name: String,
    /// Of the user it was read for.
    pub role: String,
    pub created_at: DateTime<Utc>,
}

/// Those of a user, newest first.
pub async fn workspaces(
    db: impl PgExecutor<'_>,
    user: UserId,
    before: Option<TenantId>,
    limit: i64,
) -> sqlx::Result<Vec<WorkspaceRow>> {
    sqlx::query_as(
        "select w.id, w.name, m.role, w.created_at from workspace_members m join workspaces w on w.id = m.tenant_id \
         where m.user_id = $1 and ($2::uuid is null or w.id < $2) order by w.id desc limit $3",
    )
    .bind(user)
    .bind(before)
    .bind(limit)
    .fetch_all(db)
    .await
}

pub async fn workspace(db: impl PgExecutor<'_>, id: TenantId, user: UserId) -> sqlx::Result<Option<WorkspaceRow>> {
    sqlx::query_as(
        "select w.id, w.name, m.role, w.created_at from workspace_members m join workspaces w on w.id = m.tenant_id \
         where m.user_id = $2 and w.id = $1",
    )
    .bind(id)
    .bind(user)
    .fetch_optional(db)
    .await
}

/// A new workspace, whose first owner is the user of the call.
pub async fn create_workspace(tx: &mut PgConnection, name: &str) -> sqlx::Result<TenantId> {
    let id = TenantId::new();
    sqlx::query("select app.create_workspace($1, $2)").bind(id).bind(name).execute(tx).await?;
    Ok(id)
}

#[derive(Debug, Clone, FromRow)]
pub struct MemberRow {
    pub user_id: UserId,
    pub email: Option<String>,
    pub name: Option<String>,
    pub role: String,
    pub created_at: DateTime<Utc>,
}

/// Newest users first.
pub async fn members(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    before: Option<UserId>,
    limit: i64,
) -> sqlx::Result<Vec<MemberRow>> {
    sqlx::query_as(
        "select m.user_id, u.email, u.name, m.role, m.created_at from workspace_members m \
         join users u on u.id = m.user_id \
         where m.tenant_id = $1 and ($2::uuid is null or m.user_id < $2) order by m.user_id desc limit $3",
    )
    .bind(tenant)
    .bind(before)
    .bind(limit)
    .fetch_all(db)
    .await
}

pub async fn member(db: impl PgExecutor<'_>, tenant: TenantId, user: UserId) -> sqlx::Result<Option<MemberRow>> {
    sqlx::query_as(
        "select m.user_id, u.email, u.name, m.role, m.created_at from workspace_members m \
         join users u on u.id = m.user_id where m.tenant_id = $1 and m.user_id = $2",
    )
    .bind(tenant)
    .bind(user)
    .fetch_optional(db)
    .await
}

/// `false`: they are a member already.
pub async fn add_member(tx: &mut PgConnection, tenant: TenantId, user: UserId, role: Role) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "insert into workspace_members (tenant_id, user_id, role) values ($1, $2, $3) on conflict do nothing",
    )
    .bind(tenant)
    .bind(user)
    .bind(role.as_str())
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What came of a wish to change or end a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    Done {
        before: Role,
    },
    NoMember,
    /// Somebody has to be able to manage the workspace.
    LastOwner,
    /// It is where they are who name no workspace: they stay its owner.
    Personal,
}

/// With another role, or with none: removed.
pub async fn change_member(
    tx: &mut PgConnection,
    tenant: TenantId,
    user: UserId,
    role: Option<Role>,
) -> sqlx::Result<Changed> {
    // One change of members at a time: two owners must not leave at once, each counting on the other.
    sqlx::query("select from workspaces where id = $1 for update").bind(tenant).execute(&mut *tx).await?;
    let row: Option<(String, bool, bool)> = sqlx::query_as(
        "select m.role, exists (select from workspace_members o where o.tenant_id = $1 and o.user_id <> $2 \
           and o.role = 'owner'), u.personal_workspace_id = $1 \
         from workspace_members m join users u on u.id = m.user_id where m.tenant_id = $1 and m.user_id = $2",
    )
    .bind(tenant)
    .bind(user)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((before, has_other_owner, is_personal)) = row else { return Ok(Changed::NoMember) };
    let before: Role = stored(&before)?;
    if before == Role::Owner && role != Some(Role::Owner) && is_personal {
        return Ok(Changed::Personal);
    }
    if before == Role::Owner && role != Some(Role::Owner) && !has_other_owner {
        return Ok(Changed::LastOwner);
    }
    let statement = match role {
        Some(_) => "update workspace_members set role = $3 where tenant_id = $1 and user_id = $2",
        None => "delete from workspace_members where tenant_id = $1 and user_id = $2 and $3::text is null",
    };
    sqlx::query(statement).bind(tenant).bind(user).bind(role.map(Role::as_str)).execute(tx).await?;
    Ok(Changed::Done { before })
}
