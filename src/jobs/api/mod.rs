//! The calls about jobs and groups: look, follow, cancel, retry. Only ever the caller's own workspace.

mod events;
mod view;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::select_all;
use poem::{Request, web::Data};
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Header, Path, Query},
    payload::{EventStream, Json},
    types::ToJSON,
};
use serde_json::json;
use sqlx::{PgConnection, Postgres, pool::PoolConnection};

pub use self::view::{
    Context as ViewContext, GroupView, JobError, JobLinks, JobList, JobPriority, JobState, JobView, QueueName,
    TimelineView, location, progress as progress_of,
};
use self::{
    events::{JobEvents, Resume},
    view::Context,
};
use super::{
    EnqueueError, RetryRules, State,
    ledger::{self, CancelOutcome, GroupStatus, JobFilter, JobRow},
};
use crate::{
    audit::{self, Action},
    http::{
        App, Caller, IdempotencyKey, Input, Page, Pass, Problem, Scope, Tag, Turn,
        answer::{Answer, Kept},
        etag, page,
    },
    identity::Forbidden,
    ids::{GroupId, JobId},
};

/// Longest a status call may wait for news.
pub const LONGEST_WAIT_SECONDS: u16 = 30;
/// A waiting call looks at the ledger at least this often, should news not arrive.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

/// Most failed jobs that one call retries.
const MOST_RETRIED: u32 = 10_000;

#[derive(Clone)]
pub struct JobsApi;

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

/// A status that knows whether the client has it already.
#[derive(ApiResponse)]
enum Status<T: ToJSON + Send> {
    /// As it is now
    #[oai(status = 200)]
    Now(
        Json<T>,
        /// Send it as `If-None-Match` to be told only of changes.
        #[oai(header = "ETag")]
        String,
    ),
    /// Still as the client knows it
    #[oai(status = 304)]
    Unchanged(#[oai(header = "ETag")] String),
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

/// A stream of events, or word that there will be none.
#[derive(ApiResponse)]
enum Events {
    /// Events as they happen: `state` (the job, as `GET` shows it), `progress`, and what the kind of job sends, such as streamed tokens
    #[oai(status = 200)]
    Stream(EventStream<JobEvents>),
    /// The client has seen the last event; do not connect again
    #[oai(status = 204)]
    Over,
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Jobs")]
impl JobsApi {
    /// List jobs
    ///
    /// Newest first.
    #[oai(path = "/jobs", method = "get", operation_id = "listJobs")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter of the call")]
    async fn list(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        /// Only those in this state
        state: Query<Option<JobState>>,
        /// Only those of this queue
        queue: Query<Option<QueueName>>,
        /// Only those of this kind
        kind: Query<Option<String>>,
        /// Only those of this group
        group: Query<Option<GroupId>>,
        /// `next_cursor` of the page before
        cursor: Query<Option<String>>,
        /// Jobs on a page, 1 to 100; 25 without it
        limit: Query<Option<u16>>,
    ) -> Result<Json<JobList>, Problem> {
        caller.require(Scope::Read)?;
        let limit = page::limit(limit.0)?;
        let before = page::decode(LIST, cursor.0.as_deref())?;
        let filter = JobFilter {
            tenant: Some(caller.tenant),
            state: state.0.map(State::from),
            queue: queue.0.map(Into::into),
            kind: kind.0,
            group: group.0,
            ..JobFilter::default()
        };
        let mut db = app.db.of(&caller).await?;
        let rows = ledger::list(&mut *db, &filter, before, i64::from(limit) + 1).await?;
        let context = Context::of(&mut db, &rows).await?;
        let views = rows.iter().map(|row| JobView::new(row, &context)).collect();
        let Page { items, next_cursor } = Page::of(views, limit, LIST, |job: &JobView| job.id);
        Ok(Json(JobList { items, next_cursor }))
    }

    /// Get a job
    ///
    /// With `wait`, answers when the job has ended, or after so many seconds as it is then. With `If-None-Match` as
    /// well, answers at the first change.
    #[oai(path = "/jobs/:id", method = "get", operation_id = "getJob")]
    async fn get(
        &self,
        request: &Request,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<JobId>,
        /// Seconds to wait for news, 0 to 30
        wait: Query<Option<u16>>,
        /// The `ETag` of the status the client has
        #[oai(name = "If-None-Match")]
        known: Header<Option<String>>,
    ) -> Result<Status<JobView>, Problem> {
        caller.require(Scope::Read)?;
        let until = Instant::now() + wait_of(wait.0)?;
        let mut pass = Pass::of(request, &caller)?;
        let follower = app.engine.follow(id.0);
        loop {
            pass.check(&app.auth, Scope::Read).await?;
            let mut news = std::pin::pin!(follower.news());
            news.as_mut().enable();
            let mut db = app.db.of(&caller).await?;
            let row = find(&mut db, &caller, id.0).await?;
            let tag = view::etag(&row);
            let has_news = match &known.0 {
                Some(known) => !etag::knows(known, &tag),
                None => row.state.is_final(),
            };
            if has_news || row.state.is_final() || Instant::now() >= until || app.stop.is_cancelled() {
                return Ok(match known.0 {
                    Some(known) if etag::knows(&known, &tag) => Status::Unchanged(tag),
                    _ => Status::Now(Json(view_of(&app, db, &row).await?), tag),
                });
            }
            drop(db);
            pause(until, &app, news).await;
        }
    }

    /// Follow a job's events
    ///
    /// Server-sent events. With `Last-Event-ID`, what came after it is given again first.
    #[oai(path = "/jobs/:id/events", method = "get", operation_id = "followJob")]
    async fn events(
        &self,
        request: &Request,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<JobId>,
        /// The last event the client has seen
        #[oai(name = "Last-Event-ID")]
        last: Header<Option<String>>,
    ) -> Result<Events, Problem> {
        caller.require(Scope::Read)?;
        let resume = events::resume_point(last.0.as_deref())?;
        let row = find(&mut *app.db.of(&caller).await?, &caller, id.0).await?;
        let after = match resume {
            Resume::Ended { run, .. } if row.state.is_final() && row.run == run => return Ok(Events::Over),
            Resume::Ended { after, .. } | Resume::After(after) => after,
        };
        let pass = Pass::of(request, &caller)?;
        Ok(Events::Stream(events::stream(Arc::clone(&app), caller, pass, id.0, after)?))
    }

    /// Get a job's timeline
    ///
    /// Everything that happened to it, in order.
    #[oai(path = "/jobs/:id/timeline", method = "get", operation_id = "getJobTimeline")]
    async fn timeline(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<JobId>,
    ) -> Result<Json<TimelineView>, Problem> {
        caller.require(Scope::Read)?;
        let mut db = app.db.of(&caller).await?;
        let row = find(&mut db, &caller, id.0).await?;
        let entries = ledger::timeline(&mut db, &row).await?;
        Ok(Json(TimelineView::new(&view_of(&app, db, &row).await?, entries)))
    }

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
        let details = json!({"priority": super::Priority::from(change.0.priority)});
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
        let details = json!({"queue": super::Queue::from(wish.queue), "kind": wish.kind, "limit": limit});
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

    /// Get a group
    ///
    /// Jobs that are one piece of work, with one status, which counts all of them; of a large group only the first 1,000
    /// are shown, and `GET /jobs?group=` pages through the rest. With `wait`, answers when all have ended, or after so many
    /// seconds as it is then.
    #[oai(path = "/groups/:id", method = "get", operation_id = "getGroup")]
    async fn group(
        &self,
        request: &Request,
        app: Data<&Arc<App>>,
        caller: Caller,
        id: Path<GroupId>,
        /// Seconds to wait for the end, 0 to 30
        wait: Query<Option<u16>>,
    ) -> Result<Json<GroupView>, Problem> {
        caller.require(Scope::Read)?;
        let until = Instant::now() + wait_of(wait.0)?;
        let find = || async {
            let group = ledger::group(&mut *app.db.of(&caller).await?, caller.tenant, id.0).await?;
            group.ok_or_else(|| Problem::not_found("group"))
        };
        let mut pass = Pass::of(request, &caller)?;
        let mut group = find().await?;
        while !ended(&group) && Instant::now() < until && !app.stop.is_cancelled() {
            let open = group.jobs.iter().filter(|job| !job.state.is_final());
            let followers: Vec<_> = open.map(|job| app.engine.follow(job.id)).collect();
            let mut news: Vec<_> = followers.iter().map(|follower| Box::pin(follower.news())).collect();
            for news in &mut news {
                news.as_mut().enable();
            }
            // Again, now that nothing can fall between.
            group = find().await?;
            if ended(&group) {
                break;
            }
            // What is unfinished may all be beyond the jobs that are shown.
            match news.is_empty() {
                true => pause(until, &app, std::future::pending::<()>()).await,
                false => pause(until, &app, select_all(news)).await,
            }
            pass.check(&app.auth, Scope::Read).await?;
            group = find().await?;
        }
        let context = Context::of(&mut *app.db.of(&caller).await?, &group.jobs).await?;
        Ok(Json(GroupView::new(&group, &context)))
    }
}

const LIST: &str = "jobs";

/// Of which connection a job is only its kind knows: a key that is limited to some steers none by its id.
fn unlimited(caller: &Caller) -> Result<(), Problem> {
    if caller.connections.is_some() { Err(Forbidden::Limited.into()) } else { Ok(()) }
}
const COMMITTED: &str = "What the job does elsewhere may have happened already and cannot be called back. Its outcome \
    is found out first; then the job ends by itself.";
const UNSETTLED: &str = "Whether the job did its work is not known yet, and doing it again could do it twice. Its \
    outcome is being found out; retry it when that is settled and it was not done.";

fn wait_of(wait: Option<u16>) -> Result<Duration, Problem> {
    match wait.unwrap_or(0) {
        seconds @ 0..=LONGEST_WAIT_SECONDS => Ok(Duration::from_secs(seconds.into())),
        _ => Err(Problem::bad_parameter(
            "wait",
            "is too long",
            format!("Send a number of seconds from 0 to {LONGEST_WAIT_SECONDS}"),
        )),
    }
}

/// Until there is news, the time is over, the process stops, or it is time to look anyway.
async fn pause(until: Instant, app: &App, news: impl Future) {
    let longest = until.saturating_duration_since(Instant::now()).min(LOOK_ANYWAY);
    tokio::select! {
        _ = tokio::time::timeout(longest, news) => {}
        () = app.stop.cancelled() => {}
    }
}

async fn find(db: &mut PgConnection, caller: &Caller, id: JobId) -> Result<JobRow, Problem> {
    ledger::get(db, Some(caller.tenant), id).await?.ok_or_else(|| Problem::not_found("job"))
}

/// A job with all that takes a second look: progress, paused queues, the class of its last error.
async fn view_of(app: &App, mut db: PoolConnection<Postgres>, row: &JobRow) -> Result<JobView, Problem> {
    let context = Context::of(&mut db, std::slice::from_ref(row)).await?;
    // Redis may keep us waiting.
    drop(db);
    let mut view = JobView::new(row, &context);
    if row.state == State::Running {
        view.progress = app.engine.progress(row.id).await.and_then(view::progress);
    }
    Ok(view)
}

fn ended(group: &GroupStatus) -> bool {
    group.ended() == group.total()
}

/// For handlers that enqueue: whoever sent the request is told what to do about it.
impl From<EnqueueError> for Problem {
    fn from(error: EnqueueError) -> Self {
        match error {
            EnqueueError::Duplicate { existing } => Self::conflict(
                "duplicate",
                format!("The same work is under way already. Follow it at {}.", location(existing)),
            ),
            EnqueueError::Unstorable(what) => Self::invalid_field(
                "body",
                format!("cannot be stored: {what}"),
                "Shorten it, and remove unusual characters",
            ),
            EnqueueError::Ledger(error) => error.into(),
            EnqueueError::Stopping => Self::unavailable(),
            EnqueueError::Nobodys => Self::internal(&error),
        }
    }
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
