//! `/api/v1/audit`: what was done in a workspace, for its owners, and to the installation, for administrators.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Query, payload::Json};
use serde_json::Value;

use super::{
    Action,
    store::{self, LineRow},
};
use crate::{
    http::{App, Caller, Page, Problem, Scope, Tag, page},
    ids::{ApiKeyId, AuditId, TenantId, UserId},
};

#[derive(Clone)]
pub struct AuditApi;

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "AuditLine", skip_serializing_if_is_none)]
struct LineView {
    id: AuditId,
    at: DateTime<Utc>,
    /// `user`, `key` (an API key of that user) or `operator` (whoever runs the installation).
    actor: String,
    user_id: Option<UserId>,
    key_id: Option<ApiKeyId>,
    /// Stable, such as `connection.added`.
    action: String,
    /// What it was done to.
    target: Option<String>,
    details: Value,
    /// Where the call came from.
    address: Option<String>,
    request_id: Option<String>,
}

/// A page of the audit log.
#[derive(Debug, Object)]
#[oai(skip_serializing_if_is_none)]
struct AuditList {
    items: Vec<LineView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<String>,
}

const LIST: &str = "audit";

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Identity")]
impl AuditApi {
    /// Read the audit log
    ///
    /// Newest first, kept for a year. For owners of the workspace; administrators may name another one, or ask for
    /// what was done to the installation. No API key reads it.
    #[oai(path = "/audit", method = "get", operation_id = "listAudit")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter of the call")]
    async fn list(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        /// Only this action, such as `member.added`
        action: Query<Option<String>>,
        /// For administrators: of this workspace
        workspace: Query<Option<TenantId>>,
        /// For administrators: `true` for the lines that belong to no workspace, such as `queue.paused`
        installation: Query<Option<bool>>,
        /// `next_cursor` of the page before
        cursor: Query<Option<String>>,
        /// Lines on a page, 1 to 100; 25 without it
        limit: Query<Option<u16>>,
    ) -> Result<Json<AuditList>, Problem> {
        if caller.key.is_some() {
            caller.require(Scope::Manage)?;
        }
        let of_installation = installation.0 == Some(true);
        if of_installation && workspace.0.is_some() {
            let remedy = "Send one of workspace and installation";
            return Err(Problem::bad_parameter("installation", "is asked for together with a workspace", remedy));
        }
        // An administrator who names another workspace looks into it as one who is in it.
        let reader = match workspace.0 {
            None if of_installation => {
                caller.require(Scope::Admin)?;
                caller
            }
            Some(other) if other != caller.tenant => {
                caller.require(Scope::Admin)?;
                Caller { tenant: other, ..caller }
            }
            _ => {
                caller.require(Scope::Manage)?;
                caller
            }
        };
        let limit = page::limit(limit.0)?;
        let before = page::decode(LIST, cursor.0.as_deref())?;
        let action = action.0.as_deref().map(known_action).transpose()?;
        let mut db = app.db.of(&reader).await?;
        let action = action.map(Action::as_str);
        let most = i64::from(limit) + 1;
        let rows = match of_installation {
            true => store::of_installation(&mut *db, action, before, most).await?,
            false => store::list(&mut *db, reader.tenant, action, before, most).await?,
        };
        let views = rows.into_iter().map(LineView::from).collect();
        let Page { items, next_cursor } = Page::of(views, limit, LIST, |line: &LineView| line.id);
        Ok(Json(AuditList { items, next_cursor }))
    }
}

fn known_action(text: &str) -> Result<Action, Problem> {
    text.parse().map_err(|_error: String| {
        let known: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
        Problem::bad_parameter("action", "is no action", format!("Send one of {}", known.join(", ")))
    })
}

impl From<LineRow> for LineView {
    fn from(row: LineRow) -> Self {
        let LineRow { id, at, actor, user_id, key_id, action, target, details, address, request_id } = row;
        Self { id, at, actor, user_id, key_id, action, target, details, address, request_id }
    }
}
