//! Lines of the audit log are kept for a year.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::store;
use crate::jobs::{Job, JobContext, Lane, Queue, Stop};

const BATCH: i64 = 5000;

/// Meant to run every hour.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct AuditRetention {}

impl Job for AuditRetention {
    const KIND: &'static str = "audit_retention";
    const QUEUE: Queue = Queue::Ops;
    const LANE: Lane = Lane::Upkeep;
    const MAX_ATTEMPTS: u16 = 3;
    const TIMEOUT: Duration = Duration::from_secs(60);

    /// How many lines were let go.
    type Output = u64;

    /// One piece an hour is more than is ever written in one by a database of one machine.
    async fn run(&self, cx: &JobContext) -> Result<u64, Stop> {
        Ok(store::prune(cx.db(), BATCH).await?)
    }
}
