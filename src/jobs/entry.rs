//! How a job enters the ledger: what is refused, and what it means that a unique key is taken.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::{
    belt::{List, Slot},
    job::{NewJob, State},
    ledger::{self, Insert},
};
use crate::ids::{JobId, TenantId};

/// A job in the ledger that is not yet on the belt; [`super::Engine::ring`] after the commit.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    pub job: JobId,
    pub(super) list: List,
    pub(super) state: State,
    /// Whoever commits it pushes it; otherwise the relay does.
    pub(super) pushed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// An unfinished job of the same kind, tenant and unique key exists.
    #[error("the same work is already under way as {existing}")]
    Duplicate { existing: JobId },
    #[error("the job cannot be stored: {0}")]
    Unstorable(String),
    #[error("the ledger could not be reached")]
    Ledger(#[from] sqlx::Error),
    #[error("this process is stopping")]
    Stopping,
    /// A mistake in the program: in the API a job enters for a caller, elsewhere for none.
    #[error("it is not said for whom the job is")]
    Nobodys,
}

/// Arguments longer than this belong into a table or a file.
const MAX_ARGS_BYTES: usize = 256 * 1024;

/// What is refused before the ledger is asked.
pub(super) fn check(job: &NewJob) -> Result<(), EnqueueError> {
    let length = job.args.get().len();
    if length > MAX_ARGS_BYTES {
        let text = format!("its arguments have {length} bytes, at most {MAX_ARGS_BYTES} fit");
        return Err(EnqueueError::Unstorable(text));
    }
    Ok(())
}

/// Jobs that wait for nobody, in one statement; or one that waits for others.
pub(super) async fn enter(tx: &mut PgConnection, batch: &[(&NewJob, bool)]) -> Result<Vec<Ticket>, EnqueueError> {
    let entered: HashMap<JobId, State> = match batch {
        [(job, _)] if !job.parents.is_empty() => {
            ledger::insert_with_parents(tx, job).await.map_err(unstorable)?.into_iter().collect()
        }
        _ => {
            let mut rows: Vec<Insert<'_>> =
                batch.iter().map(|(job, pushed)| Insert { job, pushed: *pushed, open_parents: 0 }).collect();
            rows.sort_by(|a, b| unique_order(a.job).cmp(&unique_order(b.job)));
            ledger::insert(tx, &rows).await.map_err(unstorable)?.into_iter().collect()
        }
    };
    let mut tickets = Vec::with_capacity(batch.len());
    for (job, pushed) in batch {
        let state = match entered.get(&job.id) {
            Some(state) => *state,
            None => enter_again(tx, &Insert { job, pushed: *pushed, open_parents: 0 }).await?,
        };
        let pushed = *pushed && job.parents.is_empty();
        tickets.push(Ticket { job: job.id, list: list_of(job), state, pushed });
    }
    Ok(tickets)
}

/// The same order in every process: two batches with the same unique keys never wait for each other in a circle (E9).
pub(super) fn unique_order(job: &NewJob) -> (TenantId, &str, Option<&str>) {
    (job.tenant, &job.kind, job.unique_key.as_deref())
}

pub(super) fn list_of(job: &NewJob) -> List {
    List { queue: job.queue, lane: job.lane, slot: Slot::Priority(job.priority) }
}

/// The unfinished job that has taken `job`'s unique key. `None`: it has ended meanwhile, and the key is free again.
async fn existing(db: &mut PgConnection, job: &NewJob) -> sqlx::Result<Option<JobId>> {
    sqlx::query_scalar(
        "select id from jobs where tenant_id = $1 and kind = $2 and unique_key = $3 and finished_at is null",
    )
    .bind(job.tenant)
    .bind(&*job.kind)
    .bind(job.unique_key.as_deref())
    .fetch_optional(db)
    .await
}

/// Writes one job that met a taken unique key: tells whose it is, or enters after it.
pub(super) async fn enter_again(db: &mut PgConnection, row: &Insert<'_>) -> Result<State, EnqueueError> {
    /// Each time the key was taken and free again within a moment: more often means that something is wrong.
    const TIMES: usize = 3;
    for _ in 0..TIMES {
        if let Some(existing) = existing(db, row.job).await? {
            return Err(EnqueueError::Duplicate { existing });
        }
        let entered = match row.job.parents.is_empty() {
            true => ledger::insert(db, std::slice::from_ref(row)).await.map_err(unstorable)?.pop(),
            false => ledger::insert_with_parents(db, row.job).await.map_err(unstorable)?,
        };
        if let Some((_, state)) = entered {
            return Ok(state);
        }
    }
    Err(EnqueueError::Ledger(sqlx::Error::RowNotFound))
}

/// A row that Postgres refuses for what is in it (42501: what is another tenant's) is the caller's fault and no other
/// row's.
pub(super) fn unstorable(error: sqlx::Error) -> EnqueueError {
    let of_the_row = |code: &str| code.starts_with("22") || code.starts_with("54") || code == "42501";
    match error.as_database_error() {
        Some(refusal) if refusal.code().is_some_and(|code| of_the_row(&code)) => {
            EnqueueError::Unstorable(refusal.message().to_owned())
        }
        _ => EnqueueError::Ledger(error),
    }
}
