//! Other publications: of the same post, which a new one would repeat, and of the same account, whose remote posts
//! are not this one's.
//!
//! An account is the platform's, not a row: it may have been disconnected and connected again, or be connected by
//! two tenants, and the platform shows one list of posts. Across tenants only what the platform has proved counts
//! (`connections.proven_at`): who types in somebody else's id neither learns of their posts nor takes any away.

use sqlx::{PgConnection, PgExecutor};

use super::{Phase, Publication};
use crate::{
    connections::store::stored,
    identity::Reach,
    ids::{ConnectionId, PostId, PublicationId},
};

/// A publication of the same post on the same account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rival {
    pub id: PublicationId,
    pub phase: Phase,
}

/// The publication of this post on this account that is out, or may be, or is on its way; one that is not out yet
/// comes first. Call with the post locked.
pub async fn of_post(
    tx: &mut PgConnection,
    post: PostId,
    connection: ConnectionId,
    but: Option<PublicationId>,
) -> sqlx::Result<Option<Rival>> {
    let found: Option<(PublicationId, String)> = sqlx::query_as(
        "select p.id, p.phase from publications p join connections c on c.id = p.connection_id \
         join connections mine on mine.platform = c.platform and mine.remote_account_id = c.remote_account_id \
         where p.post_id = $1 and mine.id = $2 and p.id is distinct from $3 \
         and p.phase not in ('failed', 'cancelled') and p.remote_deleted_at is null \
         order by p.phase = 'sent', p.id limit 1",
    )
    .bind(post)
    .bind(connection)
    .bind(but)
    .fetch_optional(tx)
    .await?;
    found.map(|(id, phase)| Ok(Rival { id, phase: stored(&phase)? })).transpose()
}

/// Whether what a post says may still go out where a call may do nothing: also what failed there does, with the post as
/// it is then, when somebody has it tried again. Call with the post locked.
pub async fn beyond_reach(tx: &mut PgConnection, reach: Reach<'_>, post: PostId) -> sqlx::Result<bool> {
    let Some(connections) = reach.connections else { return Ok(false) };
    sqlx::query_scalar(
        "select exists (select from publications where tenant_id = $1 and post_id = $2 \
         and connection_id <> all($3) and phase not in ('sent', 'cancelled'))",
    )
    .bind(reach.tenant)
    .bind(post)
    .bind(connections)
    .fetch_one(tx)
    .await
}

/// Whether a remote post on this account belongs to another publication of the same workspace. What a person says of
/// their own post is held against their own posts alone: the answer must not tell what another workspace has.
pub async fn is_taken_here(db: impl PgExecutor<'_>, publication: &Publication, remote_id: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select from publications p join connections c on c.id = p.connection_id \
         join connections mine on mine.platform = c.platform and mine.remote_account_id = c.remote_account_id \
           and mine.tenant_id = c.tenant_id \
         where mine.id = $1 and p.id <> $2 and p.phase = 'sent' and p.remote_id = $3)",
    )
    .bind(publication.connection)
    .bind(publication.id)
    .bind(remote_id)
    .fetch_one(db)
    .await
}

/// The newest of the remote posts on this account that belong to other publications.
pub async fn newest_taken(db: impl PgExecutor<'_>, publication: &Publication) -> sqlx::Result<Option<String>> {
    Ok(taken(db, publication, 1).await?.pop())
}

/// Remote posts on this account that belong to other publications, the newest that a look may meet.
pub async fn taken_by_others(db: impl PgExecutor<'_>, publication: &Publication) -> sqlx::Result<Vec<String>> {
    taken(db, publication, 1000).await
}

async fn taken(db: impl PgExecutor<'_>, publication: &Publication, limit: i64) -> sqlx::Result<Vec<String>> {
    // A function of the migrations: it looks across tenants where the platform itself said whose the account is, on
    // both sides. An account's id that was typed in says nothing about anybody else's posts.
    sqlx::query_scalar("select app.taken_posts($1, $2, $3)")
        .bind(publication.connection)
        .bind(publication.id)
        .bind(limit)
        .fetch_all(db)
        .await
}
