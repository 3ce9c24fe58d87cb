//! Measures a tenant's posts. It only reads, so it may run as often as it likes.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use multivio::{
    ids::PostId,
    jobs::{Job, JobContext, Queue, Stop},
};

const PAGE: i64 = 500;

#[derive(Debug, Serialize, Deserialize)]
pub struct MeasurePosts {
    /// Longer posts are counted apart.
    pub long_from: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    posts: i64,
    long: i64,
    /// Up to where it has come.
    last: Option<PostId>,
}

impl Job for MeasurePosts {
    const KIND: &'static str = "measure_posts";
    const QUEUE: Queue = Queue::Ops;
    const MAX_ATTEMPTS: u16 = 5;
    const TIMEOUT: Duration = Duration::from_secs(300);
    type Output = Measured;

    async fn run(&self, cx: &JobContext) -> Result<Measured, Stop> {
        if self.long_from < 1 {
            return Err(Stop::failed("bad_threshold", "\"long_from\" has to be 1 or more"));
        }
        // What an earlier run had kept, before its worker was stopped.
        let kept = cx.checkpoint().cloned().and_then(|kept| serde_json::from_value(kept).ok());
        let mut measured: Measured = kept.unwrap_or_default();
        loop {
            let page: Vec<(PostId, i64)> = sqlx::query_as(
                "select id, char_length(universal_content)::bigint from posts \
                 where tenant_id = $1 and removed_at is null and ($2::uuid is null or id > $2) order by id limit $3",
            )
            .bind(cx.tenant)
            .bind(measured.last)
            .bind(PAGE)
            .fetch_all(cx.db())
            .await?;
            let Some((last, _)) = page.last() else { return Ok(measured) };
            measured.last = Some(*last);
            measured.posts += i64::try_from(page.len()).unwrap_or(0);
            measured.long += page.iter().map(|(_, length)| i64::from(*length >= self.long_from)).sum::<i64>();
            cx.save_checkpoint(json!(measured)).await?;
        }
    }
}
