//! What operators do to jobs and queues, each with its line in the audit log. Callers of the API do the same by
//! `jobs::api`, within their workspace.

use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    api::retry_rules,
    audit::{self, Action},
    ids::JobId,
    jobs::{
        Engine, Priority, Queue,
        ledger::{self, CancelOutcome},
    },
};

/// Who it was, for whoever wonders later.
pub fn operator() -> String {
    format!("{} with multivio jobs", audit::operator())
}

pub async fn cancel(engine: &Engine, job: JobId) -> sqlx::Result<CancelOutcome> {
    let mut tx = engine.db().begin().await?;
    let outcome = ledger::cancel(&mut tx, None, job, &operator()).await?;
    if matches!(outcome, CancelOutcome::Cancelled | CancelOutcome::Requested) {
        note(&mut tx, job, Action::JobCancelled, json!({})).await?;
    }
    tx.commit().await?;
    engine.cancelled(job, outcome).await?;
    Ok(outcome)
}

/// What became of a wish to run a job once more.
#[derive(Debug, PartialEq, Eq)]
pub enum Retried {
    Yes,
    /// It is in no state for it.
    No,
    /// Its domain has something against it.
    Refused(String),
}

pub async fn retry(engine: &Engine, job: JobId) -> sqlx::Result<Retried> {
    let mut tx = engine.db().begin().await?;
    if let Some(row) = ledger::get(&mut *tx, None, job).await?
        && let Some(refusal) = retry_rules().refusal(&mut tx, &row).await?
    {
        return Ok(Retried::Refused(refusal));
    }
    let retried = ledger::request_retry(&mut *tx, None, job, &operator()).await?.is_some();
    if retried {
        note(&mut tx, job, Action::JobRetried, json!({})).await?;
    }
    tx.commit().await?;
    if retried {
        engine.moved(job).await;
    }
    Ok(if retried { Retried::Yes } else { Retried::No })
}

/// `false`: there is no such job, or it has ended.
pub async fn set_priority(engine: &Engine, job: JobId, priority: Priority) -> sqlx::Result<bool> {
    let mut tx = engine.db().begin().await?;
    let changed = ledger::set_priority(&mut *tx, None, job, priority, &operator()).await?.is_some();
    if changed {
        note(&mut tx, job, Action::JobPriorityChanged, json!({"priority": priority})).await?;
    }
    tx.commit().await?;
    if changed {
        engine.moved(job).await;
    }
    Ok(changed)
}

/// How many.
pub async fn retry_failed(engine: &Engine, queue: Queue, kind: Option<&str>, limit: u32) -> sqlx::Result<u64> {
    // Written down first: it is done in many transactions, and any of them may be the last.
    let details = json!({"queue": queue, "kind": kind, "limit": limit});
    let mut db = engine.db().acquire().await?;
    audit::record_by_operator(&mut db, None, Action::FailedJobsRetried, "jobs", details).await?;
    drop(db);
    engine.retry_failed(queue, kind, limit.into(), &operator()).await
}

pub async fn pause(engine: &Engine, queue: Queue) -> sqlx::Result<()> {
    let mut tx = engine.db().begin().await?;
    ledger::pause(&mut *tx, queue, &operator()).await?;
    audit::record_by_operator(&mut tx, None, Action::QueuePaused, queue, json!({})).await?;
    tx.commit().await
}

/// `false`: it was not paused.
pub async fn resume(engine: &Engine, queue: Queue) -> sqlx::Result<bool> {
    let mut tx = engine.db().begin().await?;
    let Some(at) = ledger::resume(&mut *tx, queue).await? else { return Ok(false) };
    audit::record_by_operator(&mut tx, None, Action::QueueResumed, queue, json!({})).await?;
    tx.commit().await?;
    engine.resumed(queue, at).await;
    Ok(true)
}

/// In the log of the job's own workspace: its owners see who meddled.
async fn note(tx: &mut PgConnection, job: JobId, action: Action, details: Value) -> sqlx::Result<()> {
    let tenant = ledger::get(&mut *tx, None, job).await?.map(|row| row.tenant);
    audit::record_by_operator(tx, tenant, action, job, details).await
}
