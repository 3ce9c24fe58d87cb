//! What each tier of the campaign is worth.

use sqlx::{PgConnection, PgExecutor};

pub async fn list(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<(String, String)>> {
    sqlx::query_as("select tier_id, plan from patreon_tiers order by tier_id").fetch_all(db).await
}

/// `false`: there is no such plan. It counts from each member's next look on.
pub async fn set(tx: &mut PgConnection, tier: &str, plan: &str) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "insert into patreon_tiers (tier_id, plan) select $1, name from plans where name = $2 \
         on conflict (tier_id) do update set plan = excluded.plan",
    )
    .bind(tier)
    .bind(plan)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// `false`: it was worth nothing.
pub async fn unset(tx: &mut PgConnection, tier: &str) -> sqlx::Result<bool> {
    let done = sqlx::query("delete from patreon_tiers where tier_id = $1").bind(tier).execute(tx).await?;
    Ok(done.rows_affected() == 1)
}
