//! Who did what to which thing, and from where. Append-only: the table itself refuses everything else.
//!
//! A line is written in the transaction of what it tells, so that neither exists without the other. Details hold
//! names and counts; never a secret, never what a user wrote.

pub mod api;
mod operator;
pub mod retention;
mod store;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;

pub use operator::operator;
pub use retention::AuditRetention;

use crate::{identity::Caller, ids::TenantId, jobs::job::stored_names};

stored_names! {
    /// What was done. Stored: never rename, only add.
    Action {
        ConnectionAdded = "connection.added",
        ConsentAsked = "connection.consent_asked",
        ConsentDenied = "connection.consent_denied",
        ConnectionRefreshed = "connection.refresh_asked",
        ConnectionRemoved = "connection.removed",
        KeyCreated = "api_key.created",
        KeyChanged = "api_key.changed",
        KeyRevoked = "api_key.revoked",
        WorkspaceCreated = "workspace.created",
        MemberAdded = "member.added",
        MemberChanged = "member.changed",
        MemberRemoved = "member.removed",
        SignedOutEverywhere = "user.signed_out_everywhere",
        UserChanged = "user.changed",
        UserExported = "user.exported",
        UserErased = "user.erased",
        WorkspaceExported = "workspace.exported",
        WorkspaceErased = "workspace.erased",
        PlanDefined = "plan.defined",
        PlanGiven = "plan.given",
        PlanTakenBack = "plan.taken_back",
        PatreonLinked = "patreon.linked",
        PatreonUnlinked = "patreon.unlinked",
        Published = "post.published",
        PostChanged = "post.changed",
        PostDeleted = "post.deleted",
        PublicationCancelled = "publication.cancelled",
        PublicationSentLate = "publication.sent_late",
        PublicationSettled = "publication.settled",
        RemotePostRemoved = "publication.remote_post_removed",
        JobCancelled = "job.cancelled",
        JobRetried = "job.retried",
        JobPriorityChanged = "job.priority_changed",
        FailedJobsRetried = "jobs.failed_retried",
        QueuePaused = "queue.paused",
        QueueResumed = "queue.resumed",
        KeysRotated = "encryption_keys.rotated",
    }
}

/// A line by whoever is calling.
pub async fn record(
    tx: &mut PgConnection,
    caller: &Caller,
    action: Action,
    target: impl fmt::Display,
    details: Value,
) -> sqlx::Result<()> {
    let line = store::NewLine {
        tenant: Some(caller.tenant),
        actor: if caller.key.is_some() { "key" } else { "user" },
        user: Some(caller.user),
        key: caller.key,
        action,
        target: target.to_string(),
        details,
        address: caller.address,
        request_id: crate::http::request_id::current(),
    };
    store::insert(tx, &line).await
}

/// A line by whoever runs the installation, for somebody: in their workspace, where it is among the lines about them.
/// Their details, an object, get who it was and where.
pub async fn record_by_operator_for(
    tx: &mut PgConnection,
    person: &Caller,
    action: Action,
    target: impl fmt::Display,
    details: Value,
) -> sqlx::Result<()> {
    let line = store::NewLine {
        tenant: Some(person.tenant),
        actor: "operator",
        user: Some(person.user),
        key: None,
        action,
        target: target.to_string(),
        details: by_operator(details),
        address: None,
        request_id: None,
    };
    store::insert(tx, &line).await
}

/// A line by whoever runs the installation, at its command line. Its details, an object, get who it was and where.
pub async fn record_by_operator(
    tx: &mut PgConnection,
    tenant: Option<TenantId>,
    action: Action,
    target: impl fmt::Display,
    details: Value,
) -> sqlx::Result<()> {
    let line = store::NewLine {
        tenant,
        actor: "operator",
        user: None,
        key: None,
        action,
        target: target.to_string(),
        details: by_operator(details),
        address: None,
        request_id: None,
    };
    store::insert(tx, &line).await
}

/// A line by whoever runs the installation in each of these workspaces, with its own details.
pub async fn record_by_operator_in_each(
    tx: &mut PgConnection,
    workspaces: &[(TenantId, Value)],
    action: Action,
    target: &str,
) -> sqlx::Result<()> {
    store::insert_by_operator(tx, workspaces, action, target).await
}

fn by_operator(mut details: Value) -> Value {
    details["by"] = operator().into();
    details
}
