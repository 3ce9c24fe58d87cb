//! The engine's front: enqueue, follow, steer. Cheap to clone.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tracing::debug;

use super::{
    belt::{Belt, Event},
    enqueue::{BATCH, Batcher, Way},
    entry::{EnqueueError, Ticket, check, enter, list_of},
    hub::{Follower, Hub},
    job::{NewJob, Queue, State},
    ledger::{self, CancelOutcome, GroupStatus, Insert, JobFilter, JobRow, Runnable},
};
use crate::{
    audit::{self, Action},
    db::{Session, TenantDb},
    identity::Caller,
    ids::{GroupId, JobId, TenantId},
    telemetry::chain,
};

#[derive(Debug, Clone)]
pub struct Engine(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    db: PgPool,
    /// In the API: the way by which callers' jobs enter.
    callers: Option<TenantDb>,
    belt: Belt,
    hub: Arc<Hub>,
    batcher: Batcher,
}

/// Rows that one statement about many changes: well within the time that a statement has.
const ROWS_AT_ONCE: i64 = 1_000;
/// Looks at children whose rows are locked, before they are left to the relay's sweep.
const RELEASES: usize = 5;
const RELEASE_AGAIN: Duration = Duration::from_millis(20);

impl Engine {
    /// For workers and operators, whose sessions see every tenant; `session` is how its own are opened. Starts the
    /// tasks behind it; call inside a runtime.
    pub fn new(db: PgPool, session: Session, belt: Belt) -> Self {
        Self::start(&Way::All(Box::new(session)), db, None, belt)
    }

    /// For the API. Jobs enter by `callers` and by [`Self::enqueue_for`] alone; `db` is for what follows from a
    /// change, which is nobody's call: releasing children, looking at queues.
    pub fn for_callers(db: PgPool, callers: TenantDb, belt: Belt) -> Self {
        Self::start(&Way::Callers(callers.clone()), db, Some(callers), belt)
    }

    fn start(way: &Way, db: PgPool, callers: Option<TenantDb>, belt: Belt) -> Self {
        let hub = Arc::new(Hub::default());
        tokio::spawn(Arc::clone(&hub).listen(belt.clone()));
        let batcher = Batcher::start(way, belt.clone());
        Self(Arc::new(Parts { db, callers, belt, hub, batcher }))
    }

    pub fn db(&self) -> &PgPool {
        &self.0.db
    }

    pub fn belt(&self) -> &Belt {
        &self.0.belt
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.0.hub
    }

    /// Writes one job on its own, sharing a commit with whatever else is being enqueued at this moment, and rings.
    pub async fn enqueue(&self, job: NewJob) -> Result<JobId, EnqueueError> {
        if self.0.callers.is_some() {
            return Err(EnqueueError::Nobodys);
        }
        check(&job)?;
        if !job.parents.is_empty() {
            // Boxed, so that the usual job does not carry the room for it.
            return Box::pin(async { self.enqueue_alone(self.0.db.begin().await?, job).await }).await;
        }
        self.0.batcher.enqueue(job, None).await
    }

    /// The same for a call: whatever tenant the job names, it is the caller's, and so must be its group and parents.
    pub async fn enqueue_for(&self, caller: &Caller, mut job: NewJob) -> Result<JobId, EnqueueError> {
        let callers = self.0.callers.as_ref().ok_or(EnqueueError::Nobodys)?;
        job.tenant = caller.tenant;
        check(&job)?;
        if !job.parents.is_empty() {
            return Box::pin(async { self.enqueue_alone(callers.begin(caller).await?, job).await }).await;
        }
        self.0.batcher.enqueue(job, Some(caller.into())).await
    }

    async fn enqueue_alone(&self, mut tx: Transaction<'_, Postgres>, job: NewJob) -> Result<JobId, EnqueueError> {
        let tickets = self.enqueue_in(&mut tx, std::slice::from_ref(&job)).await?;
        tx.commit().await?;
        self.ring(&tickets).await;
        Ok(job.id)
    }

    /// Writes jobs within the caller's transaction, so that the business rows and the jobs commit together.
    pub async fn enqueue_in(&self, tx: &mut PgConnection, jobs: &[NewJob]) -> Result<Vec<Ticket>, EnqueueError> {
        jobs.iter().try_for_each(check)?;
        let pushed = self.0.batcher.pushed_directly(jobs).await;
        let jobs: Vec<(&NewJob, bool)> = jobs.iter().zip(pushed).collect();
        let mut tickets = Vec::with_capacity(jobs.len());
        // A child may come right after its parents: what waits for nobody goes in batches, in order.
        for together in jobs.chunk_by(|(a, _), (b, _)| a.parents.is_empty() && b.parents.is_empty()) {
            for batch in together.chunks(BATCH) {
                tickets.extend(enter(tx, batch).await?);
            }
        }
        Ok(tickets)
    }

    /// The same for one job of the product's own that a call begins: it is no workspace's, so that none can see, steer
    /// or erase it. The relay pushes it. Empty: the same work is under way.
    pub async fn enqueue_own_in(&self, tx: &mut PgConnection, job: &NewJob) -> Result<Vec<Ticket>, EnqueueError> {
        check(job)?;
        let row = Insert { job, pushed: false, open_parents: 0 };
        let entered = ledger::insert_for(tx, &[row], &[Some(TenantId::SYSTEM)]).await?;
        let ticket = |(id, state)| Ticket { job: id, list: list_of(job), state, pushed: false };
        Ok(entered.into_iter().map(ticket).collect())
    }

    /// Pushes committed jobs to the belt. Only saves time: what is not pushed, the relay finds.
    pub async fn ring(&self, tickets: &[Ticket]) {
        let ours = tickets.iter().filter(|ticket| ticket.state == State::Queued && ticket.pushed);
        let runnable: Vec<_> = ours.map(|ticket| Runnable { job: ticket.job, list: ticket.list }).collect();
        if !runnable.is_empty() {
            match self.0.belt.push(&runnable).await {
                Ok(longest) => self.0.batcher.learn(&runnable, longest),
                Err(error) => debug!(error = %chain(&error), "left to the relay"),
            }
        }
        let relays = |ticket: &Ticket| match ticket.state {
            State::Queued => !ticket.pushed,
            state => state == State::Scheduled,
        };
        if tickets.iter().any(relays) {
            self.ring_relay().await;
        }
    }

    /// Names a piece of work whose jobs share one status.
    pub async fn new_group(&self, tx: &mut PgConnection, tenant: TenantId, name: &str) -> sqlx::Result<GroupId> {
        let id = GroupId::new();
        sqlx::query("insert into job_groups (id, tenant_id, name) values ($1, $2, $3)")
            .bind(id)
            .bind(tenant)
            .bind(name)
            .execute(tx)
            .await?;
        Ok(id)
    }

    /// Wakes what is parked on `wake` (such as `connection:conn_...`), in the caller's transaction. Returns how many.
    pub async fn wake(&self, tx: &mut PgConnection, wake: &str) -> sqlx::Result<u64> {
        ledger::wake(tx, wake).await
    }

    /// `tenant`: `None` for operators.
    pub async fn job(&self, tenant: Option<TenantId>, job: JobId) -> sqlx::Result<Option<JobRow>> {
        ledger::get(&self.0.db, tenant, job).await
    }

    pub async fn jobs(&self, filter: &JobFilter, before: Option<JobId>, limit: i64) -> sqlx::Result<Vec<JobRow>> {
        ledger::list(&self.0.db, filter, before, limit).await
    }

    pub async fn group(&self, tenant: TenantId, group: GroupId) -> sqlx::Result<Option<GroupStatus>> {
        ledger::group(&mut *self.0.db.acquire().await?, tenant, group).await
    }

    pub async fn timeline(&self, job: &JobRow) -> sqlx::Result<Vec<ledger::Entry>> {
        ledger::timeline(&mut *self.0.db.acquire().await?, job).await
    }

    /// News of a job from now on. Take it before looking, so that nothing falls between.
    pub fn follow(&self, job: JobId) -> Follower {
        self.0.hub.follow(job)
    }

    /// The job once it has ended, or as it is after `longest`. Works without Redis, a little later.
    pub async fn wait(&self, tenant: Option<TenantId>, job: JobId, longest: Duration) -> sqlx::Result<Option<JobRow>> {
        const LOOK_ANYWAY: Duration = Duration::from_secs(1);
        let deadline = tokio::time::Instant::now() + longest;
        let follower = self.follow(job);
        loop {
            let news = follower.news();
            let mut news = std::pin::pin!(news);
            news.as_mut().enable();
            let row = self.job(tenant, job).await?;
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() || row.as_ref().is_none_or(|row| row.state.is_final()) {
                return Ok(row);
            }
            let _either = tokio::time::timeout(left.min(LOOK_ANYWAY), news).await;
        }
    }

    /// A job's events after `after` (`"0"`: from the start), at most [`super::belt::EVENTS_AT_ONCE`].
    pub async fn events(&self, job: JobId, after: &str) -> Result<Vec<Event>, super::belt::BeltError> {
        self.0.belt.events(job, after).await
    }

    /// The latest `{fraction, phase}` a running job told; `None` without Redis.
    pub async fn progress(&self, job: JobId) -> Option<Value> {
        self.0.belt.latest_event(job, "progress").await.ok().flatten().map(|event| event.data)
    }

    /// What follows from [`ledger::cancel`], once it is committed. Without it the relay does so, later.
    pub async fn cancelled(&self, job: JobId, outcome: CancelOutcome) -> sqlx::Result<()> {
        if outcome == CancelOutcome::Cancelled {
            self.release(vec![job]).await?;
            self.tell(&[job]).await;
        }
        Ok(())
    }

    /// Runs failed jobs of a queue once more, oldest first, at most `limit` and in steps: each is on its way when the
    /// next one begins. `by`: who asked, for their timelines and for the audit log of each workspace that has such jobs,
    /// which is written with each step.
    pub async fn retry_failed(&self, queue: Queue, kind: Option<&str>, limit: u64, by: &str) -> sqlx::Result<u64> {
        // One that fails again meanwhile is not of these.
        let before = sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.0.db).await?;
        let mut retried = 0;
        while retried < limit {
            let step = ROWS_AT_ONCE.min(i64::try_from(limit - retried).unwrap_or(i64::MAX));
            let mut tx = self.0.db.begin().await?;
            let done = ledger::retry_failed(&mut *tx, queue, kind, before, step, by).await?;
            if done.is_empty() {
                break;
            }
            let told = |jobs: i64| json!({"queue": queue, "kind": kind, "retried": jobs, "by": by});
            let lines: Vec<_> = done.iter().map(|&(tenant, jobs)| (tenant, told(jobs))).collect();
            audit::record_by_operator_in_each(&mut tx, &lines, Action::FailedJobsRetried, "jobs").await?;
            tx.commit().await?;
            retried += done.iter().map(|(_, jobs)| jobs.unsigned_abs()).sum::<u64>();
            self.ring_relay().await;
        }
        Ok(retried)
    }

    /// What follows from [`ledger::set_priority`] and [`ledger::request_retry`], once it is committed.
    pub async fn moved(&self, job: JobId) {
        self.ring_relay().await;
        self.tell(&[job]).await;
    }

    pub async fn pause(&self, queue: Queue, by: &str) -> sqlx::Result<()> {
        ledger::pause(&self.0.db, queue, by).await
    }

    pub async fn resume(&self, queue: Queue) -> sqlx::Result<bool> {
        let resumed = ledger::resume(&self.0.db, queue).await?;
        if let Some(at) = resumed {
            self.resumed(queue, at).await;
        }
        Ok(resumed.is_some())
    }

    /// What follows from [`ledger::resume`], once it is committed.
    pub async fn resumed(&self, queue: Queue, at: DateTime<Utc>) {
        self.ring_relay().await;
        // Only brings forward what the audit would find: the queue goes on, whatever becomes of this.
        loop {
            match ledger::leave_to_relay(&self.0.db, queue, at, ROWS_AT_ONCE).await {
                Ok(left) if left < ROWS_AT_ONCE.unsigned_abs() => break,
                Ok(_) => {}
                Err(error) => {
                    debug!(error = %chain(&error), "left to the audit");
                    break;
                }
            }
        }
        self.ring_relay().await;
    }

    /// Settles the children of jobs that ended, and theirs, until nothing is left to do.
    pub(super) async fn release(&self, mut ended: Vec<JobId>) -> sqlx::Result<()> {
        let mut looks = 0;
        while !ended.is_empty() {
            let freed = ledger::release_children(&self.0.db, &ended).await?;
            if !freed.runnable.is_empty()
                && let Err(error) = self.0.belt.push(&freed.runnable).await
            {
                debug!(error = %chain(&error), "left to the relay");
            }
            ended = freed.cancelled_parents;
            looks += 1;
            if !freed.held_up.is_empty() && looks < RELEASES {
                tokio::time::sleep(RELEASE_AGAIN).await;
                ended.extend(freed.held_up);
            }
        }
        Ok(())
    }

    pub(super) async fn ring_relay(&self) {
        self.0.hub.ring();
        if let Err(error) = self.0.belt.ring_relay().await {
            debug!(error = %chain(&error), "the relay comes by itself");
        }
    }

    async fn tell(&self, jobs: &[JobId]) {
        if let Err(error) = self.0.belt.tell_news(jobs).await {
            debug!(error = %chain(&error), "followers will look by themselves");
        }
    }
}
