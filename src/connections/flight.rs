//! The right to trade a connection's refresh token: one holder at a time, across all processes (P8).
//!
//! A row with an expiry, not a lock: its holder may die, and then another takes over. The row also remembers whether
//! a request with this very token may have reached the platform, because an answer that was lost spends the token.

use std::time::Duration;

use sqlx::PgExecutor;
use uuid::Uuid;

use crate::ids::{ConnectionId, TenantId};

/// Longer than the request may take, with room to keep its answer.
pub const LIFETIME: Duration = Duration::from_secs(35);

/// Who holds the flight now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// We do; `sent` requests with this token may have left before.
    Ours {
        fence: Uuid,
        sent: i16,
    },
    Theirs,
}

/// Takes the flight when nobody holds it. A flight of an older pair is over whatever its expiry says.
pub async fn take(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    connection: ConnectionId,
    generation: i32,
) -> sqlx::Result<Taken> {
    let fence = Uuid::new_v4();
    let sent: Option<i16> = sqlx::query_scalar(
        "insert into token_flights as held (connection_id, tenant_id, fence, generation, expires_at) \
         values ($1, $2, $3, $4, now() + make_interval(secs => $5)) \
         on conflict (connection_id) do update set fence = excluded.fence, generation = excluded.generation, \
           sent = case when held.generation = excluded.generation then held.sent else 0 end, \
           expires_at = excluded.expires_at \
         where held.expires_at <= now() or held.generation < excluded.generation \
         returning sent",
    )
    .bind(connection)
    .bind(tenant)
    .bind(fence)
    .bind(generation)
    .bind(LIFETIME.as_secs_f64())
    .fetch_optional(db)
    .await?;
    Ok(sent.map_or(Taken::Theirs, |sent| Taken::Ours { fence, sent }))
}

/// Committed before the request leaves. `false`: the flight is not ours any more, and nothing may leave.
pub async fn departs(db: impl PgExecutor<'_>, connection: ConnectionId, fence: Uuid) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update token_flights set sent = sent + 1, expires_at = now() + make_interval(secs => $3) \
         where connection_id = $1 and fence = $2 and expires_at > now()",
    )
    .bind(connection)
    .bind(fence)
    .bind(LIFETIME.as_secs_f64())
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets the next one try. What was sent is remembered until the pair changes.
pub async fn lands(db: impl PgExecutor<'_>, connection: ConnectionId, fence: Uuid) -> sqlx::Result<()> {
    sqlx::query("update token_flights set expires_at = now() where connection_id = $1 and fence = $2")
        .bind(connection)
        .bind(fence)
        .execute(db)
        .await?;
    Ok(())
}
