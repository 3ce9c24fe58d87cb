//! A copy of one's data, and its end: of a person (`/api/v1/me`) and of a workspace.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use poem::{Body, web::Data};
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Path, Query},
    payload::{Binary, Json},
};
use serde_json::json;

use super::{
    begin::{Copying, Ending, NotEnded},
    erasures,
    exports::{self, ExportRow},
};
use crate::{
    audit::{self, Action},
    http::{Accepted, Also, App, Caller, IdempotencyKey, Problem, Scope, Tag, Turn, signed_in_recently},
    identity::{self, Forbidden},
    ids::{ExportId, JobId, TenantId},
    jobs::EnqueueError,
    media::MediaService,
};

#[derive(Clone)]
pub struct RightsApi;

/// What is erased now. Whoever asked cannot look at it: their credentials open nothing any more. Administrators can.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
struct ErasureAccepted {
    /// The workspaces that end.
    workspaces: Vec<TenantId>,
    jobs: Vec<JobId>,
}

/// Where to follow it, and where the file will be.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
struct ExportAccepted {
    export_id: ExportId,
    job_id: JobId,
}

/// A copy of somebody's data.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "Export", skip_serializing_if_is_none)]
struct ExportView {
    id: ExportId,
    /// `user` or `workspace`.
    kind: String,
    /// Absent until it can be downloaded.
    size_bytes: Option<i64>,
    created_at: DateTime<Utc>,
    /// Until then.
    expires_at: DateTime<Utc>,
}

#[derive(ApiResponse)]
enum FileAnswer {
    /// JSON lines: `{"table": "...", "row": {...}}`.
    #[oai(status = 200)]
    Whole(Binary<Body>, #[oai(header = "Content-Length")] u64, #[oai(header = "Content-Disposition")] String),
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Identity")]
impl RightsApi {
    /// Delete yourself
    ///
    /// With every workspace that is nobody else's: accounts are given back to their platforms, posts that have not
    /// gone out never will, files and rows are erased. It cannot be undone, and your credentials open nothing from now
    /// on. What was published stays where it is. The audit log keeps that it was done. Whoever signed in with Firebase
    /// must have done so a short time ago: it is a 403 `sign_in_again` otherwise.
    #[oai(path = "/me", method = "delete", operation_id = "deleteMe")]
    async fn delete_me(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        /// Needed: your own user id, to say that you mean it
        confirm: Query<Option<String>>,
    ) -> Result<Accepted<ErasureAccepted>, Problem> {
        in_person(&caller)?;
        caller.require(Scope::Manage)?;
        confirmed(confirm.0.as_deref(), &caller.user.to_string(), "the id of the user that calls (GET /api/v1/me)")?;
        signed_in_recently(&app, &caller)?;
        identity::api::ensure(&app, &caller).await?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.of_person(&caller).claim(&mut tx, &caller, Some(json!({"confirm": confirm.0}))).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let begun = Ending::of_user(&app.engine, &mut tx, caller.user).await?;
        let details = json!({"workspaces": begun.workspaces, "left": begun.left});
        audit::record(&mut tx, &caller, Action::UserErased, caller.user, details).await?;
        let answer = claim.keep(&mut tx, accepted(&begun)).await?;
        // Last: memberships and keys go with it.
        erasures::forget_user(&mut *tx).await?;
        tx.commit().await?;
        app.auth.forget();
        app.engine.ring(&begun.tickets).await;
        Ok(answer)
    }

    /// Delete a workspace
    ///
    /// For owners, with all that is in it, as when its last member deletes themselves. The call has to be in the
    /// workspace; the one that you are in when you name none ends only with yourself. Whoever signed in with Firebase
    /// must have done so a short time ago: it is a 403 `sign_in_again` otherwise.
    #[oai(path = "/workspaces/:id", method = "delete", operation_id = "deleteWorkspace")]
    async fn delete_workspace(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<TenantId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        /// Needed: the workspace's name, to say that you mean it
        confirm: Query<Option<String>>,
    ) -> Result<Accepted<ErasureAccepted>, Problem> {
        in_person(&caller)?;
        caller.require(Scope::Manage)?;
        identity::api::inside(&app, &caller, id.0).await?;
        signed_in_recently(&app, &caller)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, Some(json!({"confirm": confirm.0}))).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let row = identity::store::workspace(&mut *tx, id.0, caller.user).await?;
        let row = row.ok_or_else(|| Problem::not_found("workspace"))?;
        confirmed(confirm.0.as_deref(), &row.name, "the name of the workspace (GET /api/v1/workspaces)")?;
        if erasures::is_personal(&mut *tx).await? {
            let text = "It is where somebody is who names no workspace, and ends with them (DELETE /api/v1/me).";
            return Err(Problem::conflict("personal_workspace", text));
        }
        let begun = Ending::of_workspace(&app.engine, &mut tx, id.0).await?;
        audit::record(&mut tx, &caller, Action::WorkspaceErased, id.0, json!({})).await?;
        let answer = claim.keep(&mut tx, accepted(&begun)).await?;
        tx.commit().await?;
        app.auth.forget();
        app.engine.ring(&begun.tickets).await;
        Ok(answer)
    }

    /// Export your data
    ///
    /// What is yours, and all of every workspace that is nobody else's, as a file of JSON lines. A job writes it.
    #[oai(path = "/me/export", method = "post", operation_id = "exportMe")]
    async fn export_me(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Accepted<ExportAccepted>, Problem> {
        in_person(&caller)?;
        caller.require(Scope::Read)?;
        identity::api::ensure(&app, &caller).await?;
        export(&app, &caller, key, "user", Action::UserExported).await
    }

    /// Export a workspace
    ///
    /// For owners. All that is in it, as a file of JSON lines. A job writes it.
    #[oai(path = "/workspaces/:id/export", method = "post", operation_id = "exportWorkspace")]
    async fn export_workspace(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<TenantId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Accepted<ExportAccepted>, Problem> {
        in_person(&caller)?;
        caller.require(Scope::Manage)?;
        identity::api::inside(&app, &caller, id.0).await?;
        export(&app, &caller, key, "workspace", Action::WorkspaceExported).await
    }

    /// Get an export
    ///
    /// For whoever asked for it, in the same workspace.
    #[oai(path = "/exports/:id", method = "get", operation_id = "getExport")]
    async fn get(&self, app: Data<&Arc<App>>, caller: Caller, id: Path<ExportId>) -> Result<Json<ExportView>, Problem> {
        Ok(Json(find(&app, &caller, id.0).await?.into()))
    }

    /// Download an export
    #[oai(path = "/exports/:id/content", method = "get", operation_id = "getExportContent")]
    async fn content(
        &self,
        app: Data<&Arc<App>>,
        media: Data<&Arc<MediaService>>,
        caller: Caller,
        id: Path<ExportId>,
    ) -> Result<FileAnswer, Also<409>> {
        let row = find(&app, &caller, id.0).await?;
        let Some(written) = row.written() else {
            return Err(Problem::conflict("not_ready", "It is still being written. Follow its job.").into());
        };
        let opened =
            media.storage().open(&written.storage_key, None).await.map_err(|error| Problem::internal(&error))?;
        let name =
            format!("attachment; filename=\"multivio-{}-{}.jsonl\"", row.kind, row.created_at.format("%Y-%m-%d"));
        Ok(FileAnswer::Whole(Binary(Body::from_bytes_stream(opened.bytes)), opened.size_bytes, name))
    }
}

fn accepted(begun: &Ending) -> Accepted<ErasureAccepted> {
    let first = begun.jobs.first().map(|job| format!("/api/v1/jobs/{job}")).unwrap_or_default();
    Accepted::new(first, ErasureAccepted { workspaces: begun.workspaces.clone(), jobs: begun.jobs.clone() })
}

impl From<NotEnded> for Problem {
    fn from(error: NotEnded) -> Self {
        match error {
            NotEnded::LastOwner { name, tenant } => {
                let text = format!(
                    "You are the last owner of the workspace {name:?} ({tenant}), and others are in it. Make somebody \
                     else an owner, or delete it first."
                );
                Self::conflict("last_owner", text)
            }
            NotEnded::Enqueue(error) => error.into(),
            NotEnded::Database(error) => error.into(),
        }
    }
}

async fn export(
    app: &App,
    caller: &Caller,
    key: IdempotencyKey,
    kind: &'static str,
    action: Action,
) -> Result<Accepted<ExportAccepted>, Problem> {
    let mut tx = app.db.begin(caller).await?;
    let claim = match key.of_person(caller).claim(&mut tx, caller, None).await? {
        Turn::Replay(answer) => return Ok(answer),
        Turn::New(claim) => claim,
    };
    let begun = Copying::begin(&app.engine, &mut tx, (caller.tenant, caller.user), kind).await;
    let begun = begun.map_err(|error| match error {
        EnqueueError::Duplicate { existing } => {
            let text = format!("The one that you asked for before is still being written, by {existing}.");
            Problem::conflict("export_under_way", text)
        }
        error => error.into(),
    })?;
    let Copying { export: export_id, job: job_id, tickets } = begun;
    audit::record(&mut tx, caller, action, export_id, json!({})).await?;
    let answer = Accepted::new(format!("/api/v1/jobs/{job_id}"), ExportAccepted { export_id, job_id });
    let answer = claim.keep(&mut tx, answer).await?;
    tx.commit().await?;
    app.engine.ring(&tickets).await;
    Ok(answer)
}

async fn find(app: &App, caller: &Caller, id: ExportId) -> Result<ExportRow, Problem> {
    in_person(caller)?;
    caller.require(Scope::Read)?;
    let row = exports::of_owner(&mut *app.db.of(caller).await?, caller.tenant, caller.user, id).await?;
    let row = row.ok_or_else(|| Problem::not_found("export"))?;
    // Whoever is no owner any more has no right to all that is in it.
    if row.kind == "workspace" {
        caller.require(Scope::Manage)?;
    }
    Ok(row)
}

/// A key stands for a program: it has no data of its own, and ends nobody's.
fn in_person(caller: &Caller) -> Result<(), Problem> {
    if caller.key.is_some() { Err(Forbidden::Key { scope: Scope::Manage }.into()) } else { Ok(()) }
}

/// Whoever ends something names it.
fn confirmed(said: Option<&str>, meant: &str, what: &str) -> Result<(), Problem> {
    let message = match said {
        Some(said) if said == meant => return Ok(()),
        Some(_) => "is not what ends here",
        None => "is missing",
    };
    Err(Problem::invalid_field("confirm", message, format!("Send {what}, as a part of the address: ?confirm=...")))
}

impl From<ExportRow> for ExportView {
    fn from(row: ExportRow) -> Self {
        let ExportRow { id, kind, size_bytes, created_at, expires_at, .. } = row;
        Self { id, kind, size_bytes, created_at, expires_at }
    }
}
