//! From a wish to publish to publications and jobs, all in one transaction.

use std::{collections::BTreeMap, time::Duration};

use sqlx::PgConnection;

use super::{
    LatePolicy, Publish, Publisher,
    job::enqueue_stop,
    media::{Making, MediaTrouble},
    schedule::Schedule,
    store::{self, NewPublication},
};
use crate::{
    ai::{
        job::Transform,
        transform::{TransformRequest, TransformationType},
    },
    connections::Connection,
    ids::{GroupId, JobId, PublicationId, TenantId},
    jobs::{Engine, EnqueueError, NewJob, OnParent, Stop, Ticket},
    platforms::Platform,
    posts::Post,
};

/// What was asked for, checked.
pub struct Wish {
    pub post: Post,
    pub connections: Vec<Connection>,
    /// `None`: now.
    pub schedule: Option<Schedule>,
    pub late_policy: LatePolicy,
    pub max_lateness: Duration,
    /// The text is rewritten for each platform before it goes out.
    pub optimize: Option<Optimize>,
}

pub struct Optimize {
    pub tone: Option<String>,
}

/// What came of it.
pub struct Planned {
    pub group: GroupId,
    pub publications: Vec<PlannedPublication>,
    /// Every job of the group, in the order in which they run.
    pub jobs: Vec<PlannedJob>,
    pub tickets: Vec<Ticket>,
}

pub struct PlannedPublication {
    pub id: PublicationId,
    pub connection: Connection,
    pub job: JobId,
}

pub struct PlannedJob {
    pub id: JobId,
    pub kind: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("a file of the post")]
    Media(#[from] MediaTrouble),
    #[error("the jobs could not be written")]
    Enqueue(#[from] EnqueueError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl From<PlanError> for Stop {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Media(trouble) => Self::retry("media", trouble.to_string()),
            PlanError::Enqueue(error) => enqueue_stop(error),
            PlanError::Database(error) => error.into(),
        }
    }
}

/// Writes publications and jobs: transforms and transcodes first, each publication after those it needs. They start
/// at once, however far away the due time is.
pub async fn plan(
    tx: &mut PgConnection,
    engine: &Engine,
    publisher: &Publisher,
    tenant: TenantId,
    wish: &Wish,
) -> Result<Planned, PlanError> {
    let group = engine.new_group(tx, tenant, "publish").await?;
    let mut planned = Planned { group, publications: Vec::new(), jobs: Vec::new(), tickets: Vec::new() };
    let variant_job = transform(tx, engine, tenant, wish, &mut planned).await?;
    let mut making: BTreeMap<(uuid::Uuid, &'static str), Option<JobId>> = BTreeMap::new();
    for connection in &wish.connections {
        let parents = renditions(tx, engine, publisher, tenant, wish, connection, &mut making, &mut planned).await?;
        publication(tx, engine, tenant, wish, connection, variant_job, &parents, &mut planned).await?;
    }
    Ok(planned)
}

async fn transform(
    tx: &mut PgConnection,
    engine: &Engine,
    tenant: TenantId,
    wish: &Wish,
    planned: &mut Planned,
) -> Result<Option<JobId>, PlanError> {
    let Some(optimize) = &wish.optimize else { return Ok(None) };
    let job = NewJob::of(&Transform(transform_request(wish, optimize)), tenant).group(planned.group);
    enqueue(tx, engine, job, planned).await.map(Some)
}

/// What a language model is asked for.
pub fn transform_request(wish: &Wish, optimize: &Optimize) -> TransformRequest {
    let mut request = TransformRequest::new(TransformationType::PlatformOptimize, wish.post.universal_content.clone());
    let mut platforms: Vec<Platform> = wish.connections.iter().map(|connection| connection.platform).collect();
    platforms.sort_unstable();
    platforms.dedup();
    request.platforms = platforms;
    request.tone.clone_from(&optimize.tone);
    request
}

/// The jobs that make what this connection's platform takes; one for each rendition, however many need it.
#[expect(clippy::too_many_arguments, reason = "the state of one plan, passed along once")]
async fn renditions(
    tx: &mut PgConnection,
    engine: &Engine,
    publisher: &Publisher,
    tenant: TenantId,
    wish: &Wish,
    connection: &Connection,
    making: &mut BTreeMap<(uuid::Uuid, &'static str), Option<JobId>>,
    planned: &mut Planned,
) -> Result<Vec<JobId>, PlanError> {
    let Some(connector) = publisher.accounts.connectors().get(connection.platform) else { return Ok(Vec::new()) };
    let mut parents = Vec::new();
    for file in &wish.post.media {
        let facts = publisher.media.facts(tenant, file.media).await?;
        let Some(preset) = connector.preset_for(facts.kind) else { continue };
        let known = making.get(&(file.media.uuid(), preset)).copied();
        let job = match known {
            Some(job) => job,
            None => {
                let job = match publisher.media.make(tenant, file.media, preset).await? {
                    Making::Made => None,
                    Making::Job(job) => Some(enqueue(tx, engine, job.group(planned.group), planned).await?),
                };
                making.insert((file.media.uuid(), preset), job);
                job
            }
        };
        parents.extend(job);
    }
    Ok(parents)
}

#[expect(clippy::too_many_arguments, reason = "the state of one plan, passed along once")]
async fn publication(
    tx: &mut PgConnection,
    engine: &Engine,
    tenant: TenantId,
    wish: &Wish,
    connection: &Connection,
    variant_job: Option<JobId>,
    parents: &[JobId],
    planned: &mut Planned,
) -> Result<(), PlanError> {
    let id = PublicationId::new();
    let [mut publish, reconcile] = Publish { publication: id }.jobs(tenant, connection.id, wish.max_lateness);
    publish = publish.group(planned.group);
    // A parent that failed does not silence the post: the run looks for itself what is there, and says so.
    for parent in variant_job.iter().chain(parents) {
        publish = publish.after(*parent, OnParent::Run);
    }
    let new = NewPublication {
        id,
        tenant,
        post: wish.post.id,
        connection: connection.id,
        platform: connection.platform,
        group: Some(planned.group),
        job: publish.id,
        due_at: wish.schedule.as_ref().map(|schedule| schedule.at),
        wall_time: wish.schedule.as_ref().map(|schedule| schedule.wall_time),
        time_zone: wish.schedule.as_ref().map(|schedule| schedule.time_zone.clone()),
        late_policy: wish.late_policy,
        max_lateness: wish.max_lateness,
        variant_job,
    };
    store::insert(&mut *tx, &new).await?;
    if let Some(schedule) = &wish.schedule {
        publish = publish.run_at(schedule.at);
    }
    let job = publish.id;
    enqueue(tx, engine, publish, planned).await?;
    planned.tickets.extend(engine.enqueue_in(tx, &[reconcile]).await?);
    planned.publications.push(PlannedPublication { id, connection: connection.clone(), job });
    Ok(())
}

/// The job, or the one that does the same work already.
async fn enqueue(
    tx: &mut PgConnection,
    engine: &Engine,
    job: NewJob,
    planned: &mut Planned,
) -> Result<JobId, PlanError> {
    let (id, kind) = (job.id, job.kind.to_string());
    let id = match engine.enqueue_in(tx, &[job]).await {
        Ok(tickets) => {
            planned.tickets.extend(tickets);
            id
        }
        Err(EnqueueError::Duplicate { existing }) => existing,
        Err(error) => return Err(error.into()),
    };
    planned.jobs.push(PlannedJob { id, kind });
    Ok(id)
}
