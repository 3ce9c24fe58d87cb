//! What is cancelled stays so: its job run once more would only find that out.

use async_trait::async_trait;
use sqlx::PgConnection;

use super::{Phase, Publish, store};
use crate::jobs::{Job, RetryRule, ledger::JobRow};

/// Refuses the job of a cancelled publication.
pub struct CancelledStays;

#[async_trait]
impl RetryRule for CancelledStays {
    async fn refusal(&self, db: &mut PgConnection, job: &JobRow) -> sqlx::Result<Option<String>> {
        if job.kind != Publish::KIND || !job.state.is_final() {
            return Ok(None);
        }
        let Ok(Publish { publication }) = serde_json::from_value(job.args.clone()) else { return Ok(None) };
        let publication = store::reload(db, publication).await?;
        Ok(publication.filter(|publication| publication.phase == Phase::Cancelled).map(|publication| {
            format!(
                "Its publication {} was cancelled, and that is for good. Publish the post again: \
                 POST /api/v1/posts/{}/publish.",
                publication.id, publication.post
            )
        }))
    }
}
