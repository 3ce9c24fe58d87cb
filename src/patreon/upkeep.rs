//! Looks at every linked membership now and then, hint or none, and forgets what is out of date.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{job::ReadMembership, store};
use crate::jobs::{EnqueueError, Job, JobContext, Lane, Queue, Stop};

/// Much shorter than any time of grace.
const STALE: Duration = Duration::from_secs(12 * 3600);
/// Looks begun at once: Patreon takes 100 requests in two seconds.
const BATCH: i64 = 100;

/// Meant to run every few minutes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct PatreonUpkeep {}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    pub looks_begun: usize,
    pub forgotten: i64,
}

impl Job for PatreonUpkeep {
    const KIND: &'static str = "patreon_upkeep";
    const QUEUE: Queue = Queue::Ops;
    const LANE: Lane = Lane::Upkeep;
    const MAX_ATTEMPTS: u16 = 3;

    type Output = Done;

    async fn run(&self, cx: &JobContext) -> Result<Done, Stop> {
        let mut looks_begun = 0;
        for link in store::stale(cx.db(), STALE, BATCH).await? {
            match cx.engine.enqueue(ReadMembership { link: link.id }.new_job(link.tenant_id)).await {
                Ok(_) => looks_begun += 1,
                Err(EnqueueError::Duplicate { .. }) => {}
                Err(EnqueueError::Ledger(error)) => return Err(error.into()),
                Err(error) => return Err(Stop::retry("not_enqueued", error.to_string())),
            }
            store::looked(cx.db(), link.id).await?;
        }
        Ok(Done { looks_begun, forgotten: store::prune(cx.db(), 1000).await? })
    }
}
