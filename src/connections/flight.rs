//! The right to trade a connection's refresh token: one holder at a time, across all processes (P8).
//!
//! A row with an expiry, not a lock: its holder may die, and then another takes over.

use std::time::Duration;

use sqlx::PgExecutor;
use uuid::Uuid;

use crate::ids::{ConnectionId, TenantId};

/// Longer than the request may take, with room to keep its answer.
pub const LIFETIME: Duration = Duration::from_secs(35);

/// Who holds the flight now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Ours(Uuid),
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
    let taken = sqlx::query(
        "insert into token_flights as held (connection_id, tenant_id, fence, generation, expires_at) \
         values ($1, $2, $3, $4, now() + make_interval(secs => $5)) \
         on conflict (connection_id) do update set fence = excluded.fence, generation = excluded.generation, \
           expires_at = excluded.expires_at \
         where held.expires_at <= now() or held.generation < excluded.generation",
    )
    .bind(connection)
    .bind(tenant)
    .bind(fence)
    .bind(generation)
    .bind(LIFETIME.as_secs_f64())
    .execute(db)
    .await?;
    Ok(if taken.rows_affected() == 1 { Taken::Ours(fence) } else { Taken::Theirs })
}

/// Committed before the request leaves. `false`: the flight is not ours any more, and nothing may leave.
pub async fn departs(db: impl PgExecutor<'_>, connection: ConnectionId, fence: Uuid) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update token_flights set expires_at = now() + make_interval(secs => $3) \
         where connection_id = $1 and fence = $2 and expires_at > now()",
    )
    .bind(connection)
    .bind(fence)
    .bind(LIFETIME.as_secs_f64())
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets the next one try.
pub async fn lands(db: impl PgExecutor<'_>, connection: ConnectionId, fence: Uuid) -> sqlx::Result<()> {
    sqlx::query("update token_flights set expires_at = now() where connection_id = $1 and fence = $2")
        .bind(connection)
        .bind(fence)
        .execute(db)
        .await?;
    Ok(())
}
