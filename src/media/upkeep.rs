//! Removes bytes that nobody has used for a day, after a second look (M1), what crashes left unfinished, and addresses of
//! imports that came to an end by themselves.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::{import_store, service::MediaService, store};
use crate::{
    jobs::{Job, JobContext, Lane, Queue, Stop},
    telemetry::chain,
};

/// Runs on a schedule, hourly say; safe to run at any time and twice at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaUpkeep {}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    pub objects: u64,
    /// Those the storage did not let go of; the next run tries again.
    pub left: u64,
}

impl Job for MediaUpkeep {
    const KIND: &'static str = "media_upkeep";
    const QUEUE: Queue = Queue::Ops;
    const LANE: Lane = Lane::Upkeep;
    const MAX_ATTEMPTS: u16 = 5;
    const TIMEOUT: Duration = Duration::from_secs(600);

    type Output = Removed;

    async fn run(&self, cx: &JobContext) -> Result<Removed, Stop> {
        import_store::forget_ended(cx.db()).await?;
        Ok(remove_unused(cx.db(), &cx.service::<MediaService>()).await?)
    }
}

/// One round, in batches, until nothing is due.
pub async fn remove_unused(db: &PgPool, service: &MediaService) -> sqlx::Result<Removed> {
    const BATCH: i64 = 100;
    let mut removed = Removed::default();
    loop {
        let mut tx = db.begin().await?;
        let due = store::due_for_removal(&mut tx, BATCH).await?;
        tx.commit().await?;
        let before = removed.objects;
        let mut left = 0;
        for object in &due {
            let mut tx = db.begin().await?;
            store::clear_dependants(&mut tx, object.id).await?;
            tx.commit().await?;
            if let Err(error) = service.storage().remove(&object.storage_key).await {
                tracing::warn!(object = %object.id, error = %chain(&error), "bytes could not be removed");
                left += 1;
                continue;
            }
            store::forget_object(db, object.id).await?;
            removed.objects += 1;
        }
        // What the storage keeps stays first in line: without progress the rest waits for the next run.
        if due.len() < usize::try_from(BATCH).unwrap_or(usize::MAX) || removed.objects == before {
            removed.left = left;
            return Ok(removed);
        }
    }
}
