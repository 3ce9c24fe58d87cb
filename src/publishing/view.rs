//! How publications look from outside.

use chrono::{DateTime, Utc};
use poem_openapi::{Enum, Object};

use super::{Phase, Publication, plan::Planned};
use crate::{
    connections::api::ExplanationView,
    ids::{ConnectionId, GroupId, JobId, PostId, PublicationId},
    posts::input::PlatformName,
};

/// Where a publication is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "PublicationPhase", rename_all = "snake_case")]
pub enum PhaseName {
    /// Its content may still change.
    Planned,
    /// Its content is frozen.
    Prepared,
    /// The platform has its media.
    Uploaded,
    /// It is being created, or we look whether it was.
    Sending,
    /// It is out.
    Sent,
    /// It is not out, and will not be without somebody's doing.
    Failed,
    /// It is not out, and waits for its account's owner.
    NeedsReconnect,
    /// Whether it is out could not be found out.
    Unconfirmed,
    Cancelled,
}

impl From<Phase> for PhaseName {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Planned => Self::Planned,
            Phase::Prepared => Self::Prepared,
            Phase::Uploaded => Self::Uploaded,
            Phase::Sending => Self::Sending,
            Phase::Sent => Self::Sent,
            Phase::Failed => Self::Failed,
            Phase::NeedsReconnect => Self::NeedsReconnect,
            Phase::Unconfirmed => Self::Unconfirmed,
            Phase::Cancelled => Self::Cancelled,
        }
    }
}

/// What becomes of a post that could not go out in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum LatePolicyName {
    /// It goes out all the same.
    Publish,
    /// It does not go out any more.
    Skip,
    /// Its user is asked.
    Ask,
}

impl From<LatePolicyName> for super::LatePolicy {
    fn from(name: LatePolicyName) -> Self {
        match name {
            LatePolicyName::Publish => Self::Publish,
            LatePolicyName::Skip => Self::Skip,
            LatePolicyName::Ask => Self::Ask,
        }
    }
}

/// One post on one account.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "Publication", skip_serializing_if_is_none)]
pub struct PublicationView {
    pub id: PublicationId,
    pub post_id: PostId,
    pub connection_id: ConnectionId,
    pub platform: PlatformName,
    pub phase: PhaseName,
    /// Why it waits, or why it ended as it did, and whose turn it is.
    pub problem: Option<ExplanationView>,
    /// When it is, or was, to go out.
    pub due_at: DateTime<Utc>,
    /// The same as its user said it, when it was scheduled.
    pub wall_time: Option<String>,
    pub time_zone: Option<String>,
    /// The platform's own id of the post.
    pub remote_id: Option<String>,
    pub permalink: Option<String>,
    /// Where to look whether it is out, when we cannot tell.
    pub look_at: Option<String>,
    pub sent_at: Option<DateTime<Utc>>,
    /// When it was removed from the platform again, at your wish.
    pub remote_deleted_at: Option<DateTime<Utc>>,
    pub job_id: JobId,
    pub group_id: Option<GroupId>,
    pub created_at: DateTime<Utc>,
}

impl PublicationView {
    pub fn new(publication: Publication, look_at: Option<String>) -> Self {
        let (remote_id, permalink) = publication.remote.map(|remote| (remote.id, remote.permalink)).unzip();
        Self {
            id: publication.id,
            post_id: publication.post,
            connection_id: publication.connection,
            platform: publication.platform.into(),
            phase: publication.phase.into(),
            problem: publication.problem.map(ExplanationView::from),
            due_at: publication.due_at,
            wall_time: publication.wall_time.map(|time| time.format("%Y-%m-%dT%H:%M:%S").to_string()),
            time_zone: publication.time_zone,
            remote_id,
            permalink,
            look_at: look_at.filter(|_| publication.phase.is_in_doubt()),
            sent_at: publication.sent_at,
            remote_deleted_at: publication.remote_deleted_at,
            job_id: publication.job,
            group_id: publication.group,
            created_at: publication.created_at,
        }
    }
}

/// A publication that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
pub struct PlannedPublicationView {
    pub id: PublicationId,
    pub connection_id: ConnectionId,
    pub platform: PlatformName,
    /// The job that publishes it; its `result` holds the permalink.
    pub job_id: JobId,
}

/// A job of the group.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
pub struct PlannedJobView {
    pub id: JobId,
    pub kind: String,
}

/// What was put on its way; follow the group or each job.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "PublishAccepted")]
pub struct AcceptedView {
    pub group_id: GroupId,
    pub post_id: PostId,
    pub publications: Vec<PlannedPublicationView>,
    /// In the order in which they run.
    pub jobs: Vec<PlannedJobView>,
}

impl AcceptedView {
    pub fn new(post: PostId, planned: &Planned) -> Self {
        let publications = planned.publications.iter().map(|publication| PlannedPublicationView {
            id: publication.id,
            connection_id: publication.connection.id,
            platform: publication.connection.platform.into(),
            job_id: publication.job,
        });
        let jobs = planned.jobs.iter().map(|job| PlannedJobView { id: job.id, kind: job.kind.clone() });
        Self { group_id: planned.group, post_id: post, publications: publications.collect(), jobs: jobs.collect() }
    }
}
