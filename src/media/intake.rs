//! Makes an upload of bytes that have arrived, whichever way they came: its row and its thumbnail's job.

use sqlx::PgConnection;

use super::{
    preset::PresetName,
    probe::Probe,
    store::{self, Content, MediaRow},
    transcode::Transcode,
    upload::Arrived,
};
use crate::{
    ids::TenantId,
    jobs::{Engine, EnqueueError, Priority, Ticket},
    plans::{self, Counted, Each, PlanError},
};

#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("its thumbnail's job could not be written")]
    Enqueue(#[from] EnqueueError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// An upload that is there once the caller has committed.
pub struct Taken {
    pub row: MediaRow,
    /// To ring after the commit.
    pub tickets: Vec<Ticket>,
    /// Whether it is made of the bytes that have just arrived; if not, those are nobody's and go.
    pub uses_arrived: bool,
}

pub async fn take(
    engine: &Engine,
    tx: &mut PgConnection,
    tenant: TenantId,
    arrived: &Arrived,
    probe: &Probe,
    name: &str,
) -> Result<Taken, IntakeError> {
    let content = Content { sha256: &arrived.sha256, size_bytes: arrived.size_bytes, mime: arrived.kind.mime() };
    let object = store::keep(tx, tenant, arrived.object, content).await?;
    let (id, _) = store::insert_media(tx, tenant, object.id, name, arrived.kind, probe).await?;
    let row = store::get(&mut *tx, tenant, id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let mut tickets = Vec::new();
    if probe.video.is_some() {
        let thumbnail = Transcode { media: id, preset: PresetName::Thumbnail }.new_job(tenant, &row);
        match engine.enqueue_in(tx, &[thumbnail.priority(Priority::Low)]).await {
            Ok(ringing) => tickets = ringing,
            // Of an equal upload, and therefore this one's as well.
            Err(EnqueueError::Duplicate { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // A film whose length its container does not tell may be of any.
    let is_film = arrived.kind.is_video_container() && probe.video.is_some();
    if let Some(bound) = plans::bound(tx, tenant, Each::UploadSeconds).await?
        && probe.video_duration_ms().map_or(is_film, |ms| ms > bound.most.unsigned_abs().saturating_mul(1000))
    {
        return Err(PlanError::from(bound).into());
    }
    plans::allow(tx, tenant, Counted::MediaBytes).await?;
    Ok(Taken { row, tickets, uses_arrived: object.id == arrived.object })
}
