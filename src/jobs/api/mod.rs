//! The calls about jobs and groups: look, follow, and ([`steering`]) cancel, retry. Only ever the caller's own workspace.

mod events;
mod steering;
mod view;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::select_all;
use poem::{Request, web::Data};
use poem_openapi::{
    ApiResponse, OpenApi,
    param::{Header, Path, Query},
    payload::{EventStream, Json},
    types::ToJSON,
};
use sqlx::{PgConnection, Postgres, pool::PoolConnection};

use self::{
    events::{JobEvents, Resume},
    view::Context,
};
pub use self::{
    steering::SteeringApi,
    view::{
        Context as ViewContext, GroupView, JobError, JobLinks, JobList, JobPriority, JobState, JobView, QueueName,
        TimelineView, location, progress as progress_of,
    },
};
use super::{
    EnqueueError, State,
    ledger::{self, GroupStatus, JobFilter, JobRow},
};
use crate::{
    http::{App, Caller, Page, Pass, Problem, Scope, Tag, etag, page},
    ids::{GroupId, JobId},
};

/// Longest a status call may wait for news.
pub const LONGEST_WAIT_SECONDS: u16 = 30;
/// A waiting call looks at the ledger at least this often, should news not arrive.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct JobsApi;

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
