//! What may be done to jobs: cancel, retry, another priority.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::{ApiResponse, Object, OpenApi, param::Path, payload::Json, types::ToJSON};
use serde_json::json;

use super::{
    find,
    view::{Context, JobPriority, JobView, QueueName},
};
use crate::{
    audit::{self, Action},
    http::{
        App, Caller, IdempotencyKey, Input, Problem, Scope, Tag, Turn,
        answer::{Answer, Kept},
    },
    identity::Forbidden,
    ids::JobId,
    jobs::{
        Priority, Queue, RetryRules, State,
        ledger::{self, CancelOutcome},
    },
};

/// Most failed jobs that one call retries.
const MOST_RETRIED: u32 = 10_000;

const COMMITTED: &str = "What the job does elsewhere may have happened already and cannot be called back. Its outcome \
    is found out first; then the job ends by itself.";
const UNSETTLED: &str = "Whether the job did its work is not known yet, and doing it again could do it twice. Its \
    outcome is being found out; retry it when that is settled and it was not done.";

#[derive(Clone)]
pub struct SteeringApi;

/// What may be changed of a job.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct JobChange {
    priority: JobPriority,
}

/// Which failed jobs are to run once more.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct RetryFailed {
    queue: QueueName,
    /// Only those of this kind
    kind: Option<String>,
    /// At most so many, 1 to 10,000; 10,000 without it
    limit: Option<u32>,
}

#[derive(Debug, Object)]
struct Retried {
    /// How many run once more.
    retried: u64,
}

/// What came of a wish to cancel.
#[derive(ApiResponse)]
enum Cancelled {
    /// It is cancelled
    #[oai(status = 200)]
    Done(Json<JobView>),
    /// It runs; it is being stopped, within about a second
    #[oai(status = 202)]
    Asked(Json<JobView>),
}

impl Answer for Cancelled {
    fn kept(&self) -> Kept {
        let (status, view) = match self {
            Self::Done(view) => (200, view),
            Self::Asked(view) => (202, view),
        };
        Kept { status, ..view.kept() }
    }

    fn replay(kept: Kept) -> Option<Self> {
        let is_asked = kept.status == 202;
        let view = Json::replay(kept)?;
        Some(if is_asked { Self::Asked(view) } else { Self::Done(view) })
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Jobs")]
impl SteeringApi {
    /// Cancel a job
    ///
    /// One that runs is stopped within about a second. Cancelling a cancelled job changes nothing.
    #[oai(path = "/jobs/:id/cancel", method = "post", operation_id = "cancelJob")]
    async fn cancel(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<JobId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Cancelled, Problem> {
        caller.require(Scope::Publish)?;
        unlimited(&caller)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let outcome = ledger::cancel(&mut tx, Some(caller.tenant), id.0, &caller.who()).await?;
        if matches!(outcome, CancelOutcome::Cancelled | CancelOutcome::Requested) {
            audit::record(&mut tx, &caller, Action::JobCancelled, id.0, json!({})).await?;
        }
        match outcome {
            CancelOutcome::NotFound => return Err(Problem::not_found("job")),
            CancelOutcome::TooLate(State::Cancelled) | CancelOutcome::Cancelled | CancelOutcome::Requested => {}
            CancelOutcome::TooLate(state) => {
                return Err(Problem::too_late(format!("The job has already {state}; nothing is left to cancel.")));
            }
            CancelOutcome::Committed => return Err(Problem::too_late(COMMITTED)),
        }
        let row = ledger::get(&mut *tx, Some(caller.tenant), id.0).await?;
        let row = row.ok_or_else(|| Problem::not_found("job"))?;
        let view = Json(JobView::new(&row, &Context::default()));
        let asked = outcome == CancelOutcome::Requested;
        let answer = claim.keep(&mut tx, if asked { Cancelled::Asked(view) } else { Cancelled::Done(view) }).await?;
        tx.commit().await?;
        app.engine.cancelled(id.0, outcome).await?;
        Ok(answer)
    }

    /// Change a job's priority
    ///
    /// Of a job that has not ended. One that is queued goes to the end of those that have its new priority.
    #[oai(path = "/jobs/:id", method = "patch", operation_id = "changeJob")]
    async fn change(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<JobId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        change: Input<JobChange>,
    ) -> Result<Json<JobView>, Problem> {
        caller.require(Scope::Publish)?;
        unlimited(&caller)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, change.0.to_json()).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let changed =
            ledger::set_priority(&mut *tx, Some(caller.tenant), id.0, change.0.priority.into(), &caller.who()).await?;
        let row = find(&mut tx, &caller, id.0).await?;
        if changed.is_none() {
            return Err(Problem::too_late(format!("The job has already {}; nothing of it is left to run.", row.state)));
        }
        let details = json!({"priority": Priority::from(change.0.priority)});
        audit::record(&mut tx, &caller, Action::JobPriorityChanged, id.0, details).await?;
        let context = Context::of(&mut tx, std::slice::from_ref(&row)).await?;
        let answer = claim.keep(&mut tx, Json(JobView::new(&row, &context))).await?;
        tx.commit().await?;
        app.engine.moved(id.0).await;
        Ok(answer)
    }

    /// Retry failed jobs
    ///
    /// Of a queue, in every workspace, oldest first: each runs once more, with all its attempts. For operators.
    #[oai(path = "/admin/jobs/retry", method = "post", operation_id = "retryFailedJobs")]
    async fn retry_failed(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        wish: Input<RetryFailed>,
    ) -> Result<Json<Retried>, Problem> {
        caller.require(Scope::Admin)?;
        let by = caller.who();
        let Input(wish) = wish;
        let limit = wish.limit.unwrap_or(MOST_RETRIED);
        if !(1..=MOST_RETRIED).contains(&limit) {
            return Err(Problem::invalid_field(
                "limit",
                "is out of range",
                format!("Send a number from 1 to {MOST_RETRIED}, and call again while as many were retried"),
            ));
        }
        // The key is held while it is done, in many transactions, any of which may be the last: then no answer is
        // kept, and a repeat goes on with what is left.
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, wish.to_json()).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        // Longer than any answer may take.
        sqlx::query("set local idle_in_transaction_session_timeout = '60s'").execute(&mut *tx).await?;
        // Written down first, whatever becomes of it.
        let details = json!({"queue": Queue::from(wish.queue), "kind": wish.kind, "limit": limit});
        audit::record(&mut *app.db.of(&caller).await?, &caller, Action::FailedJobsRetried, "jobs", details).await?;
        let retried = app.engine.retry_failed(wish.queue.into(), wish.kind.as_deref(), limit.into(), &by).await?;
        let answer = claim.keep(&mut tx, Json(Retried { retried })).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Retry a job
    ///
    /// Runs a failed or cancelled job once more, with all its attempts. That of a cancelled publication does not run
    /// again: publish the post again instead.
    #[oai(path = "/jobs/:id/retry", method = "post", operation_id = "retryJob")]
    async fn retry(
        &self,
        app: Data<&Arc<App>>,
        rules: Data<&Arc<RetryRules>>,
        caller: Caller,
        id: Path<JobId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Json<JobView>, Problem> {
        caller.require(Scope::Publish)?;
        unlimited(&caller)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim::<Json<JobView>>(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let row = find(&mut tx, &caller, id.0).await?;
        if let Some(refusal) = rules.refusal(&mut tx, &row).await? {
            return Err(Problem::conflict("not_retryable", refusal));
        }
        let by = caller.who();
        let retried = ledger::request_retry(&mut *tx, Some(caller.tenant), id.0, &by).await.map_err(retry_refused)?;
        let row = ledger::get(&mut *tx, Some(caller.tenant), id.0).await?;
        let row = row.ok_or_else(|| Problem::not_found("job"))?;
        if retried.is_none() && row.state.is_final() && ledger::is_committed(&mut *tx, id.0).await? {
            return Err(Problem::conflict("unsettled", UNSETTLED));
        }
        if retried.is_none() {
            return Err(Problem::conflict(
                "not_retryable",
                format!("The job is {}; only a failed or cancelled one can be retried.", row.state),
            ));
        }
        audit::record(&mut tx, &caller, Action::JobRetried, id.0, json!({})).await?;
        let answer = claim.keep(&mut tx, Json(JobView::new(&row, &Context::default()))).await?;
        tx.commit().await?;
        app.engine.ring_relay().await;
        Ok(answer)
    }
}

/// Of which connection a job is only its kind knows: a key that is limited to some steers none by its id.
fn unlimited(caller: &Caller) -> Result<(), Problem> {
    if caller.connections.is_some() { Err(Forbidden::Limited.into()) } else { Ok(()) }
}

/// Another job does the same work by now.
fn retry_refused(error: sqlx::Error) -> Problem {
    match error.as_database_error().and_then(|error| error.constraint()) {
        Some("jobs_unique_key") => {
            Problem::conflict("duplicate", "Another job that does the same work is under way. Follow that one.")
        }
        _ => error.into(),
    }
}
