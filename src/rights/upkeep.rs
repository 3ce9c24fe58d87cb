//! Removes exports whose week is over, and askings for accounts that nobody brings an answer to any more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::exports::{self, ExportError, Of};
use crate::{
    connections::consent,
    jobs::{Job, JobContext, Lane, Queue, Stop},
    media::MediaService,
    telemetry::chain,
};

/// Meant to run every hour; safe to run at any time and twice at once.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct RightsUpkeep {}

impl Job for RightsUpkeep {
    const KIND: &'static str = "rights_upkeep";
    const QUEUE: Queue = Queue::Ops;
    const LANE: Lane = Lane::Upkeep;
    const MAX_ATTEMPTS: u16 = 3;
    const TIMEOUT: Duration = Duration::from_secs(600);

    /// How many exports went.
    type Output = u64;

    async fn run(&self, cx: &JobContext) -> Result<u64, Stop> {
        consent::forget_old(cx.db()).await?;
        let removed = exports::remove(cx.db(), cx.service::<MediaService>().storage(), Of::Past).await;
        removed.map_err(|error| match error {
            ExportError::Database(error) => error.into(),
            ExportError::Storage(error) => Stop::retry("storage_failed", chain(&error)),
        })
    }
}
