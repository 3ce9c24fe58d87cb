//! Intents: written before every creating request, with all that is needed to find out later what it did.

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection, PgExecutor, PgPool, types::Json};

use super::{Phase, Publication};
use crate::{
    connections::store::stored,
    ids::PublicationId,
    jobs::{job::stored_names, ledger},
    platforms::Explanation,
};

stored_names! {
    /// What a creating request turned out to have done.
    Outcome {
        Open = "open",
        Created = "created",
        /// Its answer was lost; the post was found.
        Adopted = "adopted",
        /// The platform said no: nothing exists.
        Refused = "refused",
        /// It never left.
        NotSent = "not_sent",
        /// Its answer was lost; the post is certainly not there.
        Absent = "absent",
        /// The platform says the post exists, but it could not be found.
        Unknown = "unknown",
    }
}

#[derive(Debug, Clone)]
pub struct Intent {
    pub attempt: i16,
    /// Of the content that was meant: after an edit and a second chance, another one's.
    pub fingerprint: String,
    pub baseline: String,
    pub native_handle: Option<String>,
    pub intended_at: DateTime<Utc>,
    pub certain_after: DateTime<Utc>,
    /// Looks that read the whole list.
    pub looks: i16,
    pub outcome: Outcome,
    pub code: Option<String>,
}

#[derive(FromRow)]
struct Row {
    attempt: i16,
    fingerprint: String,
    baseline: String,
    native_handle: Option<String>,
    intended_at: DateTime<Utc>,
    certain_after: DateTime<Utc>,
    looks: i16,
    outcome: String,
    code: Option<String>,
}

impl TryFrom<Row> for Intent {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            attempt: row.attempt,
            fingerprint: row.fingerprint,
            baseline: row.baseline,
            native_handle: row.native_handle,
            intended_at: row.intended_at,
            certain_after: row.certain_after,
            looks: row.looks,
            outcome: stored(&row.outcome)?,
            code: row.code,
        })
    }
}

/// What an intent is recorded with.
pub struct NewIntent<'a> {
    pub baseline: &'a str,
    pub native_handle: Option<&'a str>,
    pub intended_at: DateTime<Utc>,
    pub certain_after: Duration,
}

/// `uploaded` to `sending`, together with its intent. `None`: the publication is not ours, or was cancelled.
pub async fn open(tx: &mut PgConnection, publication: &Publication, new: &NewIntent<'_>) -> sqlx::Result<Option<i16>> {
    let attempt: Option<i16> = sqlx::query_scalar(
        "update publications set phase = 'sending', attempt = attempt + 1, problem = null, updated_at = now() \
         where id = $1 and fence = $2 and phase = 'uploaded' returning attempt",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(attempt) = attempt else { return Ok(None) };
    sqlx::query(
        "insert into publication_intents (publication_id, attempt, tenant_id, fingerprint, baseline, native_handle, \
           intended_at, certain_after) values ($1, $2, $3, $4, $5, $6, $7, $7 + make_interval(secs => $8))",
    )
    .bind(publication.id)
    .bind(attempt)
    .bind(publication.tenant)
    .bind(&publication.fingerprint)
    .bind(new.baseline)
    .bind(new.native_handle)
    .bind(new.intended_at)
    .bind(new.certain_after.as_secs_f64())
    .execute(tx)
    .await?;
    Ok(Some(attempt))
}

/// All of a publication, in the order in which they were meant.
pub async fn of(db: impl PgExecutor<'_>, publication: PublicationId) -> sqlx::Result<Vec<Intent>> {
    let rows: Vec<Row> = sqlx::query_as(
        "select attempt, fingerprint, baseline, native_handle, intended_at, certain_after, looks, outcome, code \
         from publication_intents where publication_id = $1 order by attempt",
    )
    .bind(publication)
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Intent::try_from).collect()
}

/// What an open intent turned out to have done, and what that makes of its publication.
pub struct Verdict<'a> {
    pub attempt: i16,
    pub outcome: Outcome,
    pub code: Option<&'a str>,
    pub to: Phase,
    pub problem: Option<&'a Explanation>,
}

/// Says what an open intent did and moves the publication on, together; the job behind it can be cancelled, or run
/// once more, again. `false`: the publication was taken up by somebody else.
pub async fn settle(db: &PgPool, publication: &Publication, verdict: &Verdict<'_>) -> sqlx::Result<bool> {
    let Verdict { attempt, outcome, code, to, problem } = *verdict;
    assert!(publication.phase.may_become(to), "{} never becomes {to}", publication.phase);
    let mut tx = db.begin().await?;
    let done = sqlx::query(
        "with moved as (update publications set phase = $6, problem = coalesce($8, problem), updated_at = now() \
           where id = $1 and fence = $2 and phase = $7 returning id) \
         update publication_intents i set outcome = $4, code = $5, settled_at = now() from moved \
         where i.publication_id = moved.id and i.attempt = $3 and i.outcome = 'open'",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .bind(attempt)
    .bind(outcome.as_str())
    .bind(code)
    .bind(to.as_str())
    .bind(publication.phase.as_str())
    .bind(problem.map(Json))
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() != 1 {
        return Ok(false);
    }
    ledger::uncommit(&mut tx, publication.job).await?;
    tx.commit().await?;
    Ok(true)
}

/// The bookkeeping of an intent whose publication has moved on already.
pub async fn close(
    db: impl PgExecutor<'_>,
    publication: PublicationId,
    attempt: i16,
    outcome: Outcome,
) -> sqlx::Result<()> {
    sqlx::query(
        "update publication_intents set outcome = $3, settled_at = now() \
         where publication_id = $1 and attempt = $2 and outcome = 'open'",
    )
    .bind(publication)
    .bind(attempt)
    .bind(outcome.as_str())
    .execute(db)
    .await?;
    Ok(())
}

/// Whatever of a settled publication is still open.
pub async fn close_all(tx: &mut PgConnection, publication: PublicationId, outcome: Outcome) -> sqlx::Result<()> {
    sqlx::query(
        "update publication_intents set outcome = $2, settled_at = now() where publication_id = $1 and outcome = 'open'",
    )
    .bind(publication)
    .bind(outcome.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// The platform says that the post exists: absence is no longer believed.
pub async fn doubt(db: impl PgExecutor<'_>, publication: &Publication, attempt: i16, code: &str) -> sqlx::Result<()> {
    sqlx::query(
        "update publication_intents i set code = $4 from publications p \
         where p.id = $1 and p.fence = $2 and i.publication_id = $1 and i.attempt = $3",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .bind(attempt)
    .bind(code)
    .execute(db)
    .await?;
    Ok(())
}

/// One more look that read the whole list.
pub async fn looked(db: impl PgExecutor<'_>, publication: &Publication, attempt: i16) -> sqlx::Result<()> {
    sqlx::query(
        "update publication_intents i set looks = i.looks + 1, last_look_at = now() from publications p \
         where p.id = $1 and p.fence = $2 and i.publication_id = $1 and i.attempt = $3",
    )
    .bind(publication.id)
    .bind(publication.fence)
    .bind(attempt)
    .execute(db)
    .await?;
    Ok(())
}
