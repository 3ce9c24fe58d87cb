//! A person looked and says whether a post that could not be confirmed exists.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{
    Phase, Publication, files,
    intents::{self, Outcome},
    rivals,
};
use crate::{
    jobs::ledger,
    platforms::{Explanation, RemotePost, Turn},
};

/// What came of the word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    Done,
    /// The publication is not in doubt; nothing was changed.
    NotInDoubt(Phase),
    /// A request may still be on its way until then.
    TooEarly(DateTime<Utc>),
    /// The post belongs to another publication.
    Taken,
}

/// Takes the publication from whoever looks for its post. `post`: `None` says that there is none, which nobody can
/// know before everything that was on its way must have arrived (P2). Only `Done` may be committed.
pub async fn settle(
    tx: &mut PgConnection,
    publication: &Publication,
    post: Option<&RemotePost>,
) -> sqlx::Result<Settled> {
    let phase: String = sqlx::query_scalar("select phase from publications where id = $1 for update")
        .bind(publication.id)
        .fetch_one(&mut *tx)
        .await?;
    let phase: Phase = crate::connections::store::stored(&phase)?;
    if phase != Phase::Unconfirmed {
        return Ok(Settled::NotInDoubt(phase));
    }
    let outcome = match post {
        Some(post) => {
            if rivals::is_taken_here(&mut *tx, publication, &post.id).await? {
                return Ok(Settled::Taken);
            }
            exists(tx, publication, post).await?;
            Outcome::Adopted
        }
        None => {
            let certain_after: Option<DateTime<Utc>> = sqlx::query_scalar(
                "select max(certain_after) from publication_intents where publication_id = $1 having max(certain_after) > now()",
            )
            .bind(publication.id)
            .fetch_optional(&mut *tx)
            .await?;
            if let Some(at) = certain_after {
                return Ok(Settled::TooEarly(at));
            }
            absent(tx, publication).await?;
            Outcome::Absent
        }
    };
    intents::close_all(tx, publication.id, outcome).await?;
    ledger::uncommit(tx, publication.job).await?;
    files::release(tx, publication.id).await?;
    Ok(Settled::Done)
}

async fn exists(tx: &mut PgConnection, publication: &Publication, post: &RemotePost) -> sqlx::Result<()> {
    sqlx::query(
        "update publications set phase = 'sent', fence = fence + 1, remote_id = $2, permalink = $3, problem = null, \
           sent_at = coalesce((select max(intended_at) from publication_intents where publication_id = $1), now()), \
           updated_at = now() where id = $1",
    )
    .bind(publication.id)
    .bind(&post.id)
    .bind(&post.permalink)
    .execute(tx)
    .await?;
    Ok(())
}

async fn absent(tx: &mut PgConnection, publication: &Publication) -> sqlx::Result<()> {
    let problem = Explanation::new(
        "settled_absent",
        Turn::User,
        "You said that the post is not there. Publish it again if you still want it.",
    );
    sqlx::query(
        "update publications set phase = 'failed', fence = fence + 1, problem = $2, updated_at = now() where id = $1",
    )
    .bind(publication.id)
    .bind(sqlx::types::Json(problem))
    .execute(tx)
    .await?;
    Ok(())
}
