//! Leadership of the relay: a row with an epoch and an expiry by the server's clock (E3), because a session lock
//! of a stopped process would be held for hours.

use std::time::Duration;

use sqlx::PgExecutor;
use uuid::Uuid;

use super::millis;

/// This process leads until `lead` is called again or the time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    /// Raised whenever the leader changes.
    pub epoch: i64,
    /// What Redis must say too; else the belt is rebuilt (E6).
    pub belt_epoch: Uuid,
    /// How long nobody led when this call began; zero for a renewal.
    pub vacant: Duration,
}

/// Takes or renews the leadership. `None`: another process leads.
pub async fn lead(db: impl PgExecutor<'_>, me: Uuid, lasts: Duration) -> sqlx::Result<Option<Leadership>> {
    let row: Option<(i64, Uuid, i64)> = sqlx::query_as(
        "with before as ( \
            select least(greatest(extract(epoch from now() - expires_at), 0), 1e9) as vacant from relay_leader \
         ) \
         update relay_leader set epoch = epoch + case when holder = $1 and expires_at > now() then 0 else 1 end, \
                holder = $1, expires_at = now() + $2 * interval '1 millisecond' \
         from before where holder = $1 or expires_at <= now() \
         returning epoch, belt_epoch, (before.vacant * 1000)::bigint",
    )
    .bind(me)
    .bind(millis(lasts))
    .fetch_optional(db)
    .await?;
    Ok(row.map(|(epoch, belt_epoch, vacant_ms)| Leadership {
        epoch,
        belt_epoch,
        vacant: Duration::from_millis(vacant_ms.unsigned_abs()),
    }))
}

/// Gives the leadership up, so that the next leader need not wait for its end.
pub async fn step_down(db: impl PgExecutor<'_>, me: Uuid) -> sqlx::Result<()> {
    sqlx::query("update relay_leader set expires_at = now() where holder = $1").bind(me).execute(db).await?;
    Ok(())
}

/// Names the belt that was just rebuilt. `false`: no longer the leader.
pub async fn set_belt_epoch(db: impl PgExecutor<'_>, me: Uuid, belt_epoch: Uuid) -> sqlx::Result<bool> {
    let set = sqlx::query("update relay_leader set belt_epoch = $2 where holder = $1 and expires_at > now()")
        .bind(me)
        .bind(belt_epoch)
        .execute(db)
        .await?;
    Ok(set.rows_affected() == 1)
}
