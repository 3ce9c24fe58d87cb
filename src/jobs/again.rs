//! What the engine cannot know of a job that has ended: whether running it once more means anything to its domain.

use async_trait::async_trait;
use sqlx::PgConnection;

use super::ledger::JobRow;

/// A domain's word on it.
#[async_trait]
pub trait RetryRule: Send + Sync {
    /// Why this job cannot run once more, and what to do instead, in sentences for people. `None`: it can, or it is
    /// none of the domain's.
    async fn refusal(&self, db: &mut PgConnection, job: &JobRow) -> sqlx::Result<Option<String>>;
}

/// The rules of all domains.
pub struct RetryRules(pub Vec<Box<dyn RetryRule>>);

impl RetryRules {
    /// The first refusal that there is.
    pub async fn refusal(&self, db: &mut PgConnection, job: &JobRow) -> sqlx::Result<Option<String>> {
        for rule in &self.0 {
            if let Some(refusal) = rule.refusal(db, job).await? {
                return Ok(Some(refusal));
            }
        }
        Ok(None)
    }
}
