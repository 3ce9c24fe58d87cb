//! What publishing needs of media: facts before, renditions at the time, bytes on the way.

use async_trait::async_trait;

use crate::{
    ids::{MediaId, TenantId},
    jobs::NewJob,
    platforms::{MediaBytes, MediaFacts},
};

#[derive(Debug, thiserror::Error)]
pub enum MediaTrouble {
    #[error("the file is not there any more")]
    Gone,
    #[error("the file is not ready yet")]
    NotReady,
    #[error("the file cannot be used: {0}")]
    Unusable(String),
    #[error("the file could not be read")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// A file open for an upload.
pub struct OpenMedia {
    pub facts: MediaFacts,
    pub bytes: Box<dyn MediaBytes>,
}

/// Who stands between what is to be sent and the job that makes it.
pub enum Making {
    /// It is there.
    Made,
    /// A job that has to be enqueued, whose end says whether it was made.
    Job(Box<NewJob>),
}

#[async_trait]
pub trait MediaSource: Send + Sync {
    /// What is known of an upload of this tenant.
    async fn facts(&self, tenant: TenantId, media: MediaId) -> Result<MediaFacts, MediaTrouble>;

    /// Why no preset can make the upload fit, if none can.
    async fn refusal(&self, tenant: TenantId, media: MediaId, preset: &str) -> Result<Option<String>, MediaTrouble>;

    /// What has to happen before [`MediaSource::open`] finds the rendition.
    async fn make(&self, tenant: TenantId, media: MediaId, preset: &str) -> Result<Making, MediaTrouble>;

    /// The rendition, or without a preset the upload itself.
    async fn open(&self, tenant: TenantId, media: MediaId, preset: Option<&str>) -> Result<OpenMedia, MediaTrouble>;
}
