//! The last net under P3: a publication whose jobs have all ended without settling it gets a new one that does.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::{job::enqueue_stop, reconcile};
use crate::{
    ids::{JobId, PublicationId, TenantId},
    jobs::{Engine, Job, JobContext, Lane, Queue, Stop},
};

/// Meant to run every minute; safe to run at any time and twice at once.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct PublishingUpkeep {}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Publications that nobody was settling any more.
    pub taken_up: u64,
}

/// In one round; the next one takes the rest.
const BATCH: i64 = 500;

impl Job for PublishingUpkeep {
    const KIND: &'static str = "publishing_upkeep";
    const QUEUE: Queue = Queue::Publish;
    const LANE: Lane = Lane::Upkeep;
    const MAX_ATTEMPTS: u16 = 3;
    const TIMEOUT: Duration = Duration::from_secs(60);

    type Output = Done;

    async fn run(&self, cx: &JobContext) -> Result<Done, Stop> {
        let left = left_alone(cx.db()).await?;
        for (publication, tenant, publish) in &left {
            take_up(&cx.engine, *publication, *tenant, *publish).await?;
        }
        Ok(Done { taken_up: left.len().try_into().unwrap_or(u64::MAX) })
    }
}

type LeftAlone = (PublicationId, TenantId, JobId);

/// Not settled, and no unfinished job will: the publish job is over, or gone, and so is the one that settles. What was
/// left to a person (`unconfirmed` without an open intent) is not among them.
async fn left_alone(db: &PgPool) -> sqlx::Result<Vec<LeftAlone>> {
    sqlx::query_as(
        "select p.id, p.tenant_id, p.job_id from publications p \
         where (p.phase in ('planned', 'prepared', 'uploaded', 'sending', 'needs_reconnect') \
             or p.phase = 'unconfirmed' and exists (select from publication_intents i \
                where i.publication_id = p.id and i.outcome = 'open')) \
           and not exists (select from jobs j where j.id = p.job_id and j.finished_at is null) \
           and not exists (select from jobs r where r.tenant_id = p.tenant_id and r.kind = $1 \
                and r.unique_key = p.id::text and r.finished_at is null) \
         order by p.id limit $2",
    )
    .bind(reconcile::Reconcile::KIND)
    .bind(BATCH)
    .fetch_all(db)
    .await
}

async fn take_up(engine: &Engine, publication: PublicationId, tenant: TenantId, publish: JobId) -> Result<(), Stop> {
    let mut tx = engine.db().begin().await?;
    let tickets = reconcile::enqueue(&mut tx, engine, tenant, publication, publish).await.map_err(enqueue_stop)?;
    tx.commit().await?;
    engine.ring(&tickets).await;
    tracing::warn!(%publication, "a publication was left unsettled; its outcome is found out now");
    Ok(())
}
