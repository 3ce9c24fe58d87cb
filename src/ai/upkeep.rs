//! What has to be done now and then: write off the reservations of dead processes, forget what is out of date, and
//! find out that a configured model is gone before a user does.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Transformer, billing, cache, models};
use crate::jobs::{Job, JobContext, Lane, Queue, Stop};

/// Meant to run every few minutes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct AiUpkeep {}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub reservations_written_off: u64,
    pub answers_forgotten: u64,
    pub calls_forgotten: u64,
    /// Configured models that their provider does not list.
    pub models_missing: Vec<String>,
}

impl Job for AiUpkeep {
    const KIND: &'static str = "ai_upkeep";
    const QUEUE: Queue = Queue::Ops;
    const LANE: Lane = Lane::Upkeep;
    const MAX_ATTEMPTS: u16 = 3;
    const TIMEOUT: Duration = Duration::from_secs(60);

    type Output = Done;

    async fn run(&self, cx: &JobContext) -> Result<Done, Stop> {
        let db = cx.db();
        let done = Done {
            reservations_written_off: billing::write_off_expired(db).await?,
            answers_forgotten: cache::prune(db).await?,
            calls_forgotten: billing::prune(db).await?,
            models_missing: missing(&cx.service::<Transformer>()).await,
        };
        if done.reservations_written_off > 0 {
            tracing::warn!(count = done.reservations_written_off, "calls to language models were never settled");
        }
        Ok(done)
    }
}

async fn missing(transformer: &Transformer) -> Vec<String> {
    let looks = models::look(transformer).await;
    let gone = looks.iter().filter(|look| look.has_model() == Some(false));
    gone.map(|look| {
        let (provider, model) = (look.provider, &look.model);
        tracing::error!(%provider, model, "the configured model is not in its provider's list: choose another");
        format!("{provider}:{model}")
    })
    .collect()
}
