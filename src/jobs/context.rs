//! What a running job may use: its identity, its cancellation, its progress, its timeline, and its services.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::ids::{GroupId, JobId, TenantId};

pub struct JobContext {
    pub job: JobId,
    /// The fence: raised by every claim.
    pub run: i32,
    /// Failed attempts before this run, plus one.
    pub attempt: u16,
    pub max_attempts: u16,
    pub tenant: TenantId,
    pub group: Option<GroupId>,
    pub engine: Engine,
}

impl JobContext {
    pub fn db(&self) -> &PgPool {
        self.engine.db()
    }

    /// A service registered when the worker started, such as the connectors' registry.
    ///
    /// # Panics
    /// When the worker binary did not register it: a fault of wiring that every run would meet.
    pub fn service<T: Send + Sync + 'static>(&self) -> Arc<T> {
        unimplemented!()
    }

    /// Cancelled when the job is cancelled, its time is up, its lease is lost or the worker's grace has ended.
    /// Dropping the run's future is what follows; a handler listens only if it has to clean up first.
    pub fn cancelled(&self) -> &CancellationToken {
        unimplemented!()
    }

    /// How far it is, 0 to 1, and what it is doing. Lossy by design, never fails, cheap enough to call often.
    pub fn progress(&self, _fraction: f64, _phase: &str) {}

    /// Sends an event to whoever follows the job, such as a streamed token. Lossy like [`Self::progress`].
    pub fn emit(&self, _event: &'static str, _data: impl Serialize) {}

    /// Adds a line to the job's timeline. `what` is a stable name; `detail` is written as it is, so never pass a
    /// secret, a signed address or a post's text.
    pub async fn note(&self, _what: &'static str, _detail: Value) -> sqlx::Result<()> {
        unimplemented!()
    }

    /// What an earlier run saved with [`Self::save_checkpoint`].
    pub fn checkpoint(&self) -> Option<&Value> {
        unimplemented!()
    }

    /// Keeps how far the work is, for the run after a hand-back or a crash.
    pub async fn save_checkpoint(&self, _state: Value) -> Result<(), super::Stop> {
        unimplemented!()
    }

    /// Results of the parents that succeeded, by id.
    pub async fn parent_results(&self) -> sqlx::Result<Vec<(JobId, Value)>> {
        unimplemented!()
    }

    /// Seconds of lease this run certainly has left, by a clock that also runs while the machine sleeps.
    pub fn lease_left(&self) -> std::time::Duration {
        unimplemented!()
    }

    /// Around a request that creates something elsewhere (P1): the kernel ends this process if it still runs
    /// when its lease is about to end, so that a stopped process cannot go on sending later. Drop disarms.
    pub fn arm_lease_guard(&self) -> Result<LeaseGuard, super::Stop> {
        unimplemented!()
    }
}

/// See [`JobContext::arm_lease_guard`].
pub struct LeaseGuard;
