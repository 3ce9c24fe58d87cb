//! `/api/v1/me` and `/api/v1/workspaces`: who one is, where one may work, and who else may.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use poem::web::Data;
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
    types::ToJSON,
};
use serde_json::json;

use super::{
    Caller, Role, Scope,
    store::{self, Changed, MemberRow, WorkspaceRow},
};
use crate::{
    audit::{self, Action},
    http::{Also, App, Created, Gone, IdempotencyKey, Input, Page, Problem, Tag, Turn, page, signed_in_recently},
    ids::{ApiKeyId, TenantId, UserId},
};

#[derive(Clone)]
pub struct IdentityApi;

/// What somebody is in a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "Role", rename_all = "snake_case")]
enum RoleName {
    /// Everything, members and keys too.
    Owner,
    /// Writes and publishes, connects accounts.
    Editor,
    /// Looks.
    Viewer,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Owner => Self::Owner,
            RoleName::Editor => Self::Editor,
            RoleName::Viewer => Self::Viewer,
        }
    }
}

impl From<Role> for RoleName {
    fn from(role: Role) -> Self {
        match role {
            Role::Owner => Self::Owner,
            Role::Editor => Self::Editor,
            Role::Viewer => Self::Viewer,
        }
    }
}

/// Who is calling, and where they are.
#[derive(Debug, Object)]
#[oai(skip_serializing_if_is_none)]
struct Me {
    user_id: UserId,
    /// `firebase` or `local`.
    provider: String,
    /// Only when it is verified.
    email: Option<String>,
    name: Option<String>,
    /// The workspace of this call; `X-Workspace` names another.
    workspace_id: TenantId,
    role: RoleName,
    /// What this credential may do there.
    scopes: Vec<String>,
    /// The API key of this call, if it came with one.
    key_id: Option<ApiKeyId>,
}

/// A workspace, as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "Workspace")]
struct WorkspaceView {
    id: TenantId,
    name: String,
    /// Your role in it.
    role: RoleName,
    created_at: DateTime<Utc>,
}

/// A page of workspaces.
#[derive(Debug, Object)]
#[oai(skip_serializing_if_is_none)]
struct WorkspaceList {
    items: Vec<WorkspaceView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<String>,
}

#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct WorkspaceInput {
    #[oai(validator(min_length = 1, max_length = 100))]
    name: String,
}

/// A member of a workspace.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "Member", skip_serializing_if_is_none)]
struct MemberView {
    user_id: UserId,
    email: Option<String>,
    name: Option<String>,
    role: RoleName,
    created_at: DateTime<Utc>,
}

/// A page of members.
#[derive(Debug, Object)]
#[oai(skip_serializing_if_is_none)]
struct MemberList {
    items: Vec<MemberView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<String>,
}

/// Somebody who has signed in here before, by one of the two.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields, skip_serializing_if_is_none)]
struct MemberInput {
    user_id: Option<UserId>,
    /// Their verified address.
    #[oai(validator(max_length = 320))]
    email: Option<String>,
    role: RoleName,
}

#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct RoleInput {
    role: RoleName,
}

const WORKSPACES: &str = "workspaces";
const MEMBERS: &str = "members";

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Identity")]
impl IdentityApi {
    /// Ask who is calling
    #[oai(path = "/me", method = "get", operation_id = "getMe")]
    async fn me(&self, app: Data<&Arc<App>>, caller: Caller) -> Result<Json<Me>, Also<404>> {
        ensure(&app, &caller).await?;
        let user = store::user(&mut *app.db.of(&caller).await?, caller.user)
            .await?
            .ok_or_else(|| Problem::not_found("user"))?;
        Ok(Json(Me {
            user_id: user.id,
            provider: user.provider,
            email: user.email,
            name: user.name,
            workspace_id: caller.tenant,
            role: caller.role.into(),
            scopes: caller.scopes.words().into_iter().map(str::to_owned).collect(),
            key_id: caller.key,
        }))
    }

    /// Sign out everywhere
    ///
    /// Every sign-in with Firebase until now ends, here at once and in other processes within seconds: its tokens are
    /// refused, also those that Firebase issues for it later. Sign in again to go on. API keys stay; revoke those by
    /// themselves.
    #[oai(path = "/me/sign-out", method = "post", operation_id = "signOutEverywhere")]
    async fn sign_out(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Gone, Problem> {
        if caller.key.is_some() {
            return Err(super::Forbidden::Key { scope: Scope::Manage }.into());
        }
        let user = store::user(&mut *app.db.of(&caller).await?, caller.user).await?;
        if user.is_none_or(|user| user.provider == "local") {
            let text = "Local tokens cannot be taken back one by one: they end by themselves, or all at once with \
                        another JWT_SECRET_KEY.";
            return Err(Problem::conflict("local_token", text));
        }
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.of_person(&caller).claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        store::sign_out_everywhere(&mut tx, caller.user).await?;
        audit::record(&mut tx, &caller, Action::SignedOutEverywhere, caller.user, json!({})).await?;
        let answer = claim.keep(&mut tx, Gone::default()).await?;
        tx.commit().await?;
        app.auth.forget();
        Ok(answer)
    }

    /// List your workspaces
    ///
    /// Newest first.
    #[oai(path = "/workspaces", method = "get", operation_id = "listWorkspaces")]
    async fn workspaces(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        /// `next_cursor` of the page before
        cursor: Query<Option<String>>,
        /// Workspaces on a page, 1 to 100; 25 without it
        limit: Query<Option<u16>>,
    ) -> Result<Json<WorkspaceList>, Problem> {
        caller.require(Scope::Read)?;
        ensure(&app, &caller).await?;
        let limit = page::limit(limit.0)?;
        // A key is of one workspace and tells of no other.
        if caller.key.is_some() {
            let row = store::workspace(&mut *app.db.of(&caller).await?, caller.tenant, caller.user).await?;
            return Ok(Json(WorkspaceList {
                items: row.into_iter().map(WorkspaceView::from).collect(),
                next_cursor: None,
            }));
        }
        let before = page::decode(WORKSPACES, cursor.0.as_deref())?;
        let rows =
            store::workspaces(&mut *app.db.of(&caller).await?, caller.user, before, i64::from(limit) + 1).await?;
        let views = rows.into_iter().map(WorkspaceView::from).collect();
        let Page { items, next_cursor } = Page::of(views, limit, WORKSPACES, |workspace: &WorkspaceView| workspace.id);
        Ok(Json(WorkspaceList { items, next_cursor }))
    }

    /// Make a workspace
    ///
    /// You are its owner; name it in `X-Workspace` to work in it.
    #[oai(path = "/workspaces", method = "post", operation_id = "createWorkspace")]
    async fn create(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<WorkspaceInput>,
    ) -> Result<Created<WorkspaceView>, Also<404>> {
        // Everybody may, in whichever workspace they are; a key may not leave its own.
        if caller.key.is_some() {
            return Err(super::Forbidden::Key { scope: Scope::Manage }.into());
        }
        caller.require(Scope::Read)?;
        if body.0.name.trim().is_empty() {
            let remedy = "Send a name to know it by";
            return Err(Problem::invalid_field("name", "has nothing to be seen", remedy).into());
        }
        ensure(&app, &caller).await?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.of_person(&caller).claim(&mut tx, &caller, body.0.to_json()).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let id = store::create_workspace(&mut tx, &body.0.name).await?;
        let there = Caller { tenant: id, ..caller.clone() };
        // None: its maker has ended meanwhile.
        let row = store::workspace(&mut *tx, id, caller.user).await?.ok_or_else(unknown_workspace)?;
        audit::record(&mut tx, &there, Action::WorkspaceCreated, id, json!({"name": body.0.name})).await?;
        let location = format!("/api/v1/workspaces/{id}");
        let answer = claim.keep(&mut tx, Created::new(location, WorkspaceView::from(row))).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Get the workspace you are in
    #[oai(path = "/workspaces/:id", method = "get", operation_id = "getWorkspace")]
    async fn get(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<TenantId>,
    ) -> Result<Json<WorkspaceView>, Problem> {
        caller.require(Scope::Read)?;
        inside(&app, &caller, id.0).await?;
        let row = store::workspace(&mut *app.db.of(&caller).await?, id.0, caller.user).await?;
        Ok(Json(row.ok_or_else(unknown_workspace)?.into()))
    }

    /// List members
    #[oai(path = "/workspaces/:id/members", method = "get", operation_id = "listMembers")]
    async fn members(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<TenantId>,
        /// `next_cursor` of the page before
        cursor: Query<Option<String>>,
        /// Members on a page, 1 to 100; 25 without it
        limit: Query<Option<u16>>,
    ) -> Result<Json<MemberList>, Problem> {
        caller.require(Scope::Read)?;
        inside(&app, &caller, id.0).await?;
        let limit = page::limit(limit.0)?;
        let before = page::decode(MEMBERS, cursor.0.as_deref())?;
        let rows = store::members(&mut *app.db.of(&caller).await?, id.0, before, i64::from(limit) + 1).await?;
        let views = rows.into_iter().map(MemberView::from).collect();
        let Page { items, next_cursor } = Page::of(views, limit, MEMBERS, |member: &MemberView| member.user_id);
        Ok(Json(MemberList { items, next_cursor }))
    }

    /// Add a member
    ///
    /// Somebody who has signed in here before, by id or by verified e-mail address. Whoever signed in with Firebase must
    /// have done so a short time ago, for this outlives their session: it is a 403 `sign_in_again` otherwise.
    #[oai(path = "/workspaces/:id/members", method = "post", operation_id = "addMember")]
    async fn add(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<TenantId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<MemberInput>,
    ) -> Result<Created<MemberView>, Problem> {
        caller.require(Scope::Manage)?;
        signed_in_recently(&app, &caller)?;
        inside(&app, &caller, id.0).await?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, body.0.to_json()).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let (user, role) = (meant(&mut tx, &body.0).await?, Role::from(body.0.role));
        if !store::add_member(&mut tx, id.0, user, role).await? {
            let text = "They are a member already. Change their role with PATCH.";
            return Err(Problem::conflict("member_already", text));
        }
        audit::record(&mut tx, &caller, Action::MemberAdded, user, json!({"role": role})).await?;
        let row = store::member(&mut *tx, id.0, user).await?.ok_or_else(|| Problem::not_found("member"))?;
        let location = format!("/api/v1/workspaces/{}/members/{user}", id.0);
        let answer = claim.keep(&mut tx, Created::new(location, MemberView::from(row))).await?;
        tx.commit().await?;
        app.auth.forget();
        Ok(answer)
    }

    /// Change a member's role
    ///
    /// Whoever's own workspace it is, where they are who name none, stays its owner. It wants a sign-in of just now, as
    /// adding one does.
    #[oai(path = "/workspaces/:id/members/:user", method = "patch", operation_id = "changeMember")]
    async fn change(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<TenantId>,
        user: Path<UserId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<RoleInput>,
    ) -> Result<Json<MemberView>, Problem> {
        caller.require(Scope::Manage)?;
        signed_in_recently(&app, &caller)?;
        inside(&app, &caller, id.0).await?;
        let role = Role::from(body.0.role);
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, body.0.to_json()).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let before = changed(store::change_member(&mut tx, id.0, user.0, Some(role)).await?)?;
        let details = json!({"before": before, "role": role});
        audit::record(&mut tx, &caller, Action::MemberChanged, user.0, details).await?;
        let row = store::member(&mut *tx, id.0, user.0).await?.ok_or_else(|| Problem::not_found("member"))?;
        let answer = claim.keep(&mut tx, Json(row.into())).await?;
        tx.commit().await?;
        app.auth.forget();
        Ok(answer)
    }

    /// Remove a member
    ///
    /// For owners; everybody may remove themselves, but from their own workspace, where they are who name none. Keys
    /// they made end with it.
    #[oai(path = "/workspaces/:id/members/:user", method = "delete", operation_id = "removeMember")]
    async fn remove(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<TenantId>,
        user: Path<UserId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Gone, Problem> {
        let is_leaving = caller.user == user.0 && caller.key.is_none();
        caller.require(if is_leaving { Scope::Read } else { Scope::Manage })?;
        inside(&app, &caller, id.0).await?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let before = changed(store::change_member(&mut tx, id.0, user.0, None).await?)?;
        audit::record(&mut tx, &caller, Action::MemberRemoved, user.0, json!({"before": before})).await?;
        let answer = claim.keep(&mut tx, Gone::default()).await?;
        tx.commit().await?;
        app.auth.forget();
        Ok(answer)
    }
}

/// A local token may come before its rows: here they are needed.
pub async fn ensure(app: &App, caller: &Caller) -> Result<(), Problem> {
    if caller.key.is_none() {
        let mut db = app.db.of(caller).await?;
        if store::workspace(&mut *db, caller.tenant, caller.user).await?.is_none() {
            store::ensure_local(&mut *db, caller.tenant, caller.user).await?;
        }
    }
    Ok(())
}

/// Only ever the workspace that the call is in: one rule for all that a call may touch.
pub async fn inside(app: &App, caller: &Caller, id: TenantId) -> Result<(), Problem> {
    if id != caller.tenant {
        return Err(unknown_workspace());
    }
    ensure(app, caller).await
}

fn unknown_workspace() -> Problem {
    Problem::new(
        poem::http::StatusCode::NOT_FOUND,
        "not_found",
        "Not found",
        "There is no such workspace, or it is not the one this call is in: name it in X-Workspace as well.",
    )
}

async fn meant(tx: &mut sqlx::PgConnection, input: &MemberInput) -> Result<UserId, Problem> {
    const ASK: &str = "Ask them to sign in once, then add them";
    match (input.user_id, &input.email) {
        (Some(id), None) => {
            let is_known = store::is_known(tx, id).await?;
            is_known.then_some(id).ok_or_else(|| Problem::invalid_field("user_id", "is nobody who is known here", ASK))
        }
        (None, Some(email)) => {
            let user = store::user_by_email(tx, email).await?;
            user.ok_or_else(|| Problem::invalid_field("email", "is nobody's verified address here", ASK))
        }
        _ => Err(Problem::invalid_field("user_id", "or email is needed, one of the two", "Send either of them")),
    }
}

fn changed(outcome: Changed) -> Result<Role, Problem> {
    match outcome {
        Changed::Done { before } => Ok(before),
        Changed::NoMember => Err(Problem::not_found("member")),
        Changed::LastOwner => {
            let text = "They are the last owner. Make somebody else an owner first.";
            Err(Problem::conflict("last_owner", text))
        }
        Changed::Personal => {
            let text = "It is where they are when they name no workspace: they stay its owner, and it ends with them \
                        (DELETE /api/v1/me). To hand a workspace over, work in one that you made \
                        (POST /api/v1/workspaces).";
            Err(Problem::conflict("personal_workspace", text))
        }
    }
}

/// What a newer version stored is shown as the least.
fn role_name(text: &str) -> RoleName {
    text.parse::<Role>().map_or(RoleName::Viewer, RoleName::from)
}

impl From<WorkspaceRow> for WorkspaceView {
    fn from(row: WorkspaceRow) -> Self {
        Self { id: row.id, name: row.name, role: role_name(&row.role), created_at: row.created_at }
    }
}

impl From<MemberRow> for MemberView {
    fn from(row: MemberRow) -> Self {
        let MemberRow { user_id, email, name, role, created_at } = row;
        Self { user_id, email, name, role: role_name(&role), created_at }
    }
}
