//! What a running job may use: its identity, its cancellation, its progress, its timeline, and its services.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::{
    Engine, Registry, Stop,
    emitter::Emitter,
    hand::{Grip, Hand},
    ledger::{self, Claim},
};
use crate::{
    db,
    ids::{GroupId, JobId, TenantId, WorkerId},
};

pub use super::lease_guard::LeaseGuard;

/// Followers see progress at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// A creating request starts only with at least this much lease left; the heartbeat brings more.
const LEASE_TO_START: Duration = Duration::from_secs(3);

pub struct JobContext {
    pub job: JobId,
    /// The fence: raised by every claim.
    pub run: i32,
    /// Failed attempts before this run, plus one.
    pub attempt: u16,
    pub max_attempts: u16,
    /// How often somebody asked to run the job once more; runs after a crash or a failed attempt are none of these.
    pub retries: i16,
    pub tenant: TenantId,
    pub group: Option<GroupId>,
    /// When it was meant to run.
    pub due_at: chrono::DateTime<chrono::Utc>,
    pub engine: Engine,
    worker: WorkerId,
    checkpoint: Option<Value>,
    grip: Grip,
    hand: Arc<Hand>,
    registry: Arc<Registry>,
    emitter: Emitter,
    told_at: Mutex<Option<Instant>>,
}

impl JobContext {
    pub(super) fn new(
        claim: &Claim,
        grip: Grip,
        engine: &Engine,
        hand: &Arc<Hand>,
        registry: &Arc<Registry>,
        emitter: &Emitter,
    ) -> Self {
        Self {
            job: claim.job,
            run: claim.run,
            attempt: claim.failed_attempts + 1,
            max_attempts: claim.max_attempts,
            retries: claim.retries,
            tenant: claim.tenant,
            group: claim.group,
            due_at: claim.due_at,
            engine: engine.clone(),
            worker: claim.worker,
            checkpoint: claim.checkpoint.clone(),
            grip,
            hand: Arc::clone(hand),
            registry: Arc::clone(registry),
            emitter: emitter.clone(),
            told_at: Mutex::new(None),
        }
    }

    pub fn db(&self) -> &PgPool {
        self.engine.db()
    }

    /// A service registered when the worker started, such as the connectors' registry.
    ///
    /// # Panics
    /// When the worker binary did not register it: a fault of wiring that every run would meet.
    pub fn service<T: Send + Sync + 'static>(&self) -> Arc<T> {
        self.registry
            .find_service::<T>()
            .unwrap_or_else(|| panic!("the worker did not register {}", std::any::type_name::<T>()))
    }

    /// Cancelled when the job is cancelled, its lease is lost or the worker's grace has ended. Dropping the run's
    /// future is what follows; a handler listens only if it has to clean up first.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.grip.stop
    }

    pub(super) fn stop_reason(&self) -> super::hand::StopReason {
        self.grip.reason()
    }

    /// How far it is, 0 to 1, and what it is doing. Lossy by design, never fails, cheap enough to call often.
    pub fn progress(&self, fraction: f64, phase: &str) {
        let mut told_at = self.told_at.lock().expect("nothing panics while it holds this lock");
        if fraction < 1.0 && told_at.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            return;
        }
        *told_at = Some(Instant::now());
        let data = json!({ "fraction": fraction.clamp(0.0, 1.0), "phase": phase });
        self.emitter.emit(self.job, "progress", data);
    }

    /// Sends an event to whoever follows the job, such as a streamed token. Lossy like [`Self::progress`]. Events that
    /// differ only in a `text` and come within a moment arrive as one, with the texts joined.
    pub fn emit(&self, event: &'static str, data: impl Serialize) {
        self.emitter.emit(self.job, event, json!(data));
    }

    /// Adds a line to the job's timeline. `what` is a stable name; `detail` is written as it is, so never pass a
    /// secret, a signed address or a post's text.
    pub async fn note(&self, what: &'static str, detail: Value) -> sqlx::Result<()> {
        db::answer(ledger::note(self.db(), self.job, what, &detail)).await
    }

    /// What an earlier run saved with [`Self::save_checkpoint`].
    pub fn checkpoint(&self) -> Option<&Value> {
        self.checkpoint.as_ref()
    }

    /// Keeps how far the work is, for the run after a hand-back or a crash.
    pub async fn save_checkpoint(&self, state: Value) -> Result<(), Stop> {
        if db::answer(ledger::save_checkpoint(self.db(), self.job, self.run, self.worker, &state)).await? {
            return Ok(());
        }
        self.hand.stop(self.job, self.run, super::hand::StopReason::LeaseLost);
        // The run is dropped at its next await; until then it may only do what is safe to do twice.
        Err(Stop::retry("lease_lost", "another worker has this job now"))
    }

    /// Results of the parents that succeeded, by id.
    pub async fn parent_results(&self) -> sqlx::Result<Vec<(JobId, Value)>> {
        let results = sqlx::query_as(
            "select p.id, p.result from job_edges e join jobs p on p.id = e.parent_id \
             where e.child_id = $1 and p.state = 'succeeded' and p.result is not null order by p.id",
        );
        db::answer(results.bind(self.job).fetch_all(self.db())).await
    }

    /// Lease this run certainly has left, by a clock that also runs while the machine sleeps.
    pub fn lease_left(&self) -> Duration {
        self.hand.lease_left()
    }

    /// Around a request that creates something elsewhere (P1): the kernel ends this process if it still runs when
    /// its lease is about to end, so that a stopped process cannot go on sending later. Heartbeats move that end;
    /// dropping the guard disarms it.
    pub fn arm_lease_guard(&self) -> Result<LeaseGuard, Stop> {
        if self.lease_left() < LEASE_TO_START {
            let text = "the lease is too short to start a request that must not be repeated";
            return Err(Stop::snooze(Duration::from_secs(1), "lease_too_short", text));
        }
        self.hand.arm().map_err(|error| Stop::retry("lease_guard_failed", format!("no kernel timer: {error}")))
    }
}
