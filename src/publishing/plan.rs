//! From a wish to publish to publications and jobs, all in one transaction.

use std::{collections::BTreeMap, time::Duration};

use sqlx::PgConnection;

use super::{
    LatePolicy, Phase, Publish, Publisher,
    job::enqueue_stop,
    media::{Making, MediaTrouble},
    reconcile,
    rivals::{self, Rival},
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
    posts::{self, Post},
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
    /// What has to be made of the post's files first: one for each file and preset, with the platforms that need it.
    pub renditions: Vec<Rendition>,
    /// What is out already goes out a second time.
    pub republish: bool,
}

pub struct Rendition {
    pub job: NewJob,
    pub platforms: Vec<Platform>,
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
    #[error("the jobs could not be written")]
    Enqueue(#[from] EnqueueError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    #[error("the publication {} of the same post on {platform} is {}", .rival.id, .rival.phase)]
    Rival { platform: Platform, rival: Rival },
    #[error("the post was deleted while it was looked at")]
    PostGone,
    #[error("the post was changed while it was looked at")]
    PostChanged,
}

impl From<PlanError> for Stop {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Enqueue(error) => enqueue_stop(error),
            PlanError::Database(error) => error.into(),
            error @ PlanError::Rival { .. } => Self::failed("unsettled", error.to_string()),
            error @ PlanError::PostGone => Self::failed("post_removed", error.to_string()),
            error @ PlanError::PostChanged => Self::failed("changed_meanwhile", error.to_string()),
        }
    }
}

/// Writes publications and jobs: transforms and transcodes first, each publication after those it needs. They start
/// at once, however far away the due time is. Uses nothing but the caller's connection: a pool that many such
/// transactions wait on would stand still.
pub async fn plan(tx: &mut PgConnection, engine: &Engine, tenant: TenantId, wish: &Wish) -> Result<Planned, PlanError> {
    alone(tx, wish).await?;
    let group = engine.new_group(tx, tenant, "publish").await?;
    let mut planned = Planned { group, publications: Vec::new(), jobs: Vec::new(), tickets: Vec::new() };
    let variant_job = transform(tx, engine, tenant, wish, &mut planned).await?;
    let mut made = Vec::with_capacity(wish.renditions.len());
    for rendition in &wish.renditions {
        let job = rendition.job.clone().group(planned.group);
        made.push((enqueue(tx, engine, job, &mut planned).await?, &rendition.platforms));
    }
    for connection in &wish.connections {
        let needed = made.iter().filter(|(_, platforms)| platforms.contains(&connection.platform)).map(|(job, _)| *job);
        let parents: Vec<JobId> = variant_job.into_iter().chain(needed).collect();
        publication(tx, engine, tenant, wish, connection, variant_job, &parents, &mut planned).await?;
    }
    Ok(planned)
}

/// A post is on its way to an account once, and out there once unless a second time is asked for; and it is the one that
/// was looked at, not what somebody else has made of it since.
async fn alone(tx: &mut PgConnection, wish: &Wish) -> Result<(), PlanError> {
    posts::store::lock(tx, wish.post.tenant, wish.post.id).await?;
    match posts::store::version(&mut *tx, wish.post.tenant, wish.post.id).await? {
        None => return Err(PlanError::PostGone),
        Some(version) if version != wish.post.version => return Err(PlanError::PostChanged),
        Some(_) => {}
    }
    for connection in &wish.connections {
        let rival = rivals::of_post(tx, wish.post.id, connection.id, None).await?;
        if let Some(rival) = rival.filter(|rival| !(wish.republish && rival.phase == Phase::Sent)) {
            return Err(PlanError::Rival { platform: connection.platform, rival });
        }
    }
    Ok(())
}

/// What has to be made for these platforms before the post can go out there. Looks outside of any transaction.
pub async fn renditions(
    publisher: &Publisher,
    tenant: TenantId,
    post: &Post,
    platforms: &[Platform],
) -> Result<Vec<Rendition>, MediaTrouble> {
    let mut renditions = Vec::new();
    for file in &post.media {
        let facts = publisher.media.facts(tenant, file.media).await?;
        let mut needed: BTreeMap<&'static str, Vec<Platform>> = BTreeMap::new();
        for platform in platforms {
            let connector = publisher.accounts.connectors().get(*platform);
            if let Some(preset) = connector.and_then(|connector| connector.preset_for(facts.kind)) {
                needed.entry(preset).or_default().push(*platform);
            }
        }
        for (preset, platforms) in needed {
            if let Making::Job(job) = publisher.media.make(tenant, file.media, preset).await? {
                renditions.push(Rendition { job: *job, platforms });
            }
        }
    }
    Ok(renditions)
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
    let mut publish = Publish { publication: id }.job(tenant, connection.id, wish.max_lateness).group(planned.group);
    // A parent that failed does not silence the post: the run looks for itself what is there, and says so.
    for parent in parents {
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
    planned.tickets.extend(reconcile::enqueue(tx, engine, tenant, id, job).await?);
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
