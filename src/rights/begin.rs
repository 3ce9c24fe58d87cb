//! How an end and a copy begin, whoever asks for them: the person through the API, or the operator for them.
//!
//! All of it is in the transaction of whoever asks, whose session is the person's.

use sqlx::PgConnection;

use super::{Erase, Export, erasures, exports};
use crate::{
    ids::{ErasureId, ExportId, JobId, TenantId, UserId},
    jobs::{Engine, EnqueueError, Ticket},
};

/// What a request for an end has begun.
#[derive(Debug, Default)]
pub struct Ending {
    /// The workspaces that end.
    pub workspaces: Vec<TenantId>,
    /// Those that others go on with.
    pub left: Vec<TenantId>,
    pub jobs: Vec<JobId>,
    /// For [`Engine::ring`], after the commit.
    pub tickets: Vec<Ticket>,
}

#[derive(Debug, thiserror::Error)]
pub enum NotEnded {
    #[error(
        "the workspace {name:?} ({tenant}) would have no owner any more, and others are in it: make somebody else an \
         owner, or delete it first"
    )]
    LastOwner { name: String, tenant: TenantId },
    #[error("the job that erases it could not be written")]
    Enqueue(#[from] EnqueueError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl Ending {
    /// The end of a person, and of every workspace that is nobody else's. [`erasures::forget_user`] comes last, when
    /// everything else that belongs to the request is written.
    pub async fn of_user(engine: &Engine, tx: &mut PgConnection, user: UserId) -> Result<Self, NotEnded> {
        let memberships = erasures::memberships(&mut *tx).await?;
        if let Some(needed) = memberships.iter().find(|one| one.is_owner && one.has_others && !one.has_other_owner) {
            return Err(NotEnded::LastOwner { name: needed.name.clone(), tenant: needed.tenant_id });
        }
        let hash = erasures::identity(&mut *tx, user).await?;
        let hash = hash.map(|(provider, subject)| erasures::identity_hash(&provider, &subject));
        let (left, ending): (Vec<_>, Vec<_>) = memberships.iter().partition(|one| one.has_others);
        let mut begun = Self { left: left.iter().map(|one| one.tenant_id).collect(), ..Self::default() };
        for one in ending {
            begun.workspace(engine, tx, one.tenant_id).await?;
        }
        let erasure = erasures::end_user(&mut *tx, hash).await?;
        begun.job(engine, tx, erasure).await?;
        Ok(begun)
    }

    pub async fn of_workspace(engine: &Engine, tx: &mut PgConnection, tenant: TenantId) -> Result<Self, NotEnded> {
        let mut begun = Self::default();
        begun.workspace(engine, tx, tenant).await?;
        Ok(begun)
    }

    async fn workspace(&mut self, engine: &Engine, tx: &mut PgConnection, tenant: TenantId) -> Result<(), NotEnded> {
        let erasure = erasures::end_workspace(&mut *tx, tenant).await?;
        self.workspaces.push(tenant);
        self.job(engine, tx, erasure).await
    }

    async fn job(&mut self, engine: &Engine, tx: &mut PgConnection, erasure: ErasureId) -> Result<(), NotEnded> {
        let tickets = engine.enqueue_own_in(tx, &Erase::new_job(erasure)).await?;
        self.jobs.extend(tickets.iter().map(|ticket| ticket.job));
        self.tickets.extend(tickets);
        Ok(())
    }
}

/// A copy that a job writes.
#[derive(Debug)]
pub struct Copying {
    pub export: ExportId,
    pub job: JobId,
    pub tickets: Vec<Ticket>,
}

impl Copying {
    /// `kind`: `user` or `workspace`.
    ///
    /// # Errors
    /// Also [`EnqueueError::Duplicate`]: the one that was asked for before is still being written.
    pub async fn begin(
        engine: &Engine,
        tx: &mut PgConnection,
        (tenant, user): (TenantId, UserId),
        kind: &str,
    ) -> Result<Self, EnqueueError> {
        let export = exports::insert(&mut *tx, tenant, user, kind).await?;
        let job = Export::new_job(export, tenant, user, kind);
        let tickets = engine.enqueue_in(tx, std::slice::from_ref(&job)).await?;
        Ok(Self { export, job: job.id, tickets })
    }
}
