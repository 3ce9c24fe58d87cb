//! Sees to it that every erasure comes to its end and stays at it, whatever becomes of its job; removes exports whose week
//! is over, askings for accounts that nobody brings an answer to any more, and tokens that no platform took back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Erase, erasures,
    exports::{self, ExportError, Of},
};
use crate::{
    connections::{self, consent},
    jobs::{EnqueueError, Job, JobContext, Lane, Queue, Stop},
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
        let reopened = erasures::reopen_unclean(cx.db()).await?;
        if reopened > 0 {
            tracing::info!(erasures = reopened, "something was written into what had been erased: it is erased again");
        }
        for erasure in erasures::all_open(cx.db()).await? {
            match cx.engine.enqueue(Erase::new_job(erasure)).await {
                // Its job is there, as it should be.
                Ok(_) | Err(EnqueueError::Duplicate { .. }) => {}
                Err(EnqueueError::Ledger(error)) => return Err(error.into()),
                Err(error) => return Err(Stop::retry("not_enqueued", error.to_string())),
            }
        }
        consent::forget_old(cx.db()).await?;
        connections::store::forget_left_tokens(cx.db()).await?;
        let removed = exports::remove(cx.db(), cx.service::<MediaService>().storage(), Of::Past).await;
        removed.map_err(|error| match error {
            ExportError::Database(error) => error.into(),
            ExportError::Storage(error) => Stop::retry("storage_failed", chain(&error)),
        })
    }
}
