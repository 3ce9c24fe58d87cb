//! The engine's front: enqueue, steer, wake. Cheap to clone.

use sqlx::{PgConnection, PgPool};

use super::NewJob;
use crate::ids::JobId;

#[derive(Debug, Clone)]
pub struct Engine {
    db: PgPool,
}

/// A job that is in the ledger but not yet on the belt; [`Engine::ring`] after the commit.
#[derive(Debug, Clone)]
pub struct Ticket {
    pub job: JobId,
}

#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// An unfinished job of the same kind, tenant and unique key exists.
    #[error("the same work is already under way as {existing}")]
    Duplicate { existing: JobId },
    #[error("the job cannot be stored: {0}")]
    Unstorable(String),
    #[error("the ledger could not be reached")]
    Ledger(#[from] sqlx::Error),
}

impl Engine {
    pub fn db(&self) -> &PgPool {
        &self.db
    }

    /// Writes one job on its own, sharing a commit with whatever else is being enqueued at this moment, and rings.
    pub async fn enqueue(&self, _job: NewJob) -> Result<JobId, EnqueueError> {
        unimplemented!()
    }

    /// Writes jobs within the caller's transaction, so that the business rows and the jobs commit together.
    pub async fn enqueue_in(&self, _tx: &mut PgConnection, _jobs: &[NewJob]) -> Result<Vec<Ticket>, EnqueueError> {
        unimplemented!()
    }

    /// Pushes committed jobs to the belt. Only saves time: what is not pushed, the relay finds.
    pub async fn ring(&self, _tickets: &[Ticket]) {}

    /// Wakes what is parked on `wake` (such as `connection:conn_...`). Returns how many.
    pub async fn wake(&self, _tx: &mut PgConnection, _wake: &str) -> sqlx::Result<u64> {
        unimplemented!()
    }
}
