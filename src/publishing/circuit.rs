//! Outage mode: a platform in trouble holds its publications and lets them go one by one.
//!
//! Shared by all workers through one row a platform. While it is open nothing is sent; then one publication tries
//! for all, and when it passes the held ones follow spread out, each a little after the one before.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgExecutor, types::Json};

use crate::platforms::{Explanation, Platform};

/// So many failures in a row, each within the window of the one before, are an outage and not bad luck.
const FAILURES: i32 = 5;
const WINDOW: Duration = Duration::from_secs(120);
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How long the one that tries may take before another may.
const TRYING: Duration = Duration::from_secs(60);
/// Between two publications that were held.
const SPREAD: Duration = Duration::from_millis(500);
/// What is held comes back within this, however many there are.
const LONGEST_SPREAD: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    Go,
    /// Held; come back then.
    Hold {
        until: DateTime<Utc>,
        problem: Option<Explanation>,
    },
}

/// Whether a publication may be sent now. Called right before sending, by everyone.
pub async fn admit(db: &sqlx::PgPool, platform: Platform) -> sqlx::Result<Admission> {
    // The ordinary case: a read that finds nothing open.
    let open: Option<bool> =
        sqlx::query_scalar("select open_until is not null from platform_circuits where platform = $1")
            .bind(platform.as_str())
            .fetch_optional(db)
            .await?;
    if open != Some(true) || try_for_all(db, platform).await? {
        return Ok(Admission::Go);
    }
    let held: Option<Held> = sqlx::query_as(
        "update platform_circuits set held = held + 1 where platform = $1 and open_until is not null \
         returning greatest(open_until, trying_until, now()) \
           + least(make_interval(secs => held * $2), make_interval(secs => $3)), problem",
    )
    .bind(platform.as_str())
    .bind(SPREAD.as_secs_f64())
    .bind(LONGEST_SPREAD.as_secs_f64())
    .fetch_optional(db)
    .await?;
    Ok(match held {
        Some((Some(until), problem)) => Admission::Hold { until, problem: problem.map(|Json(problem)| problem) },
        // It closed between the two looks.
        Some((None, _)) | None => Admission::Go,
    })
}

/// Until when, and why.
type Held = (Option<DateTime<Utc>>, Option<Json<Explanation>>);

async fn try_for_all(db: impl PgExecutor<'_>, platform: Platform) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update platform_circuits set trying_until = now() + make_interval(secs => $2) \
         where platform = $1 and open_until <= now() and (trying_until is null or trying_until <= now())",
    )
    .bind(platform.as_str())
    .bind(TRYING.as_secs_f64())
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The platform answered as it should: whatever was held may go.
pub async fn passed(db: impl PgExecutor<'_>, platform: Platform) -> sqlx::Result<()> {
    sqlx::query(
        "update platform_circuits set failures = 0, open_until = null, opened_at = null, openings = 0, \
           trying_until = null, held = 0, problem = null \
         where platform = $1 and (failures > 0 or open_until is not null)",
    )
    .bind(platform.as_str())
    .execute(db)
    .await?;
    Ok(())
}

#[derive(FromRow)]
struct Counted {
    failures: i32,
    openings: i16,
    was_open: bool,
}

/// The platform was in trouble. Opens after several in a row, and again when the one that tried failed too.
pub async fn failed(db: &sqlx::PgPool, platform: Platform, problem: &Explanation) -> sqlx::Result<bool> {
    let counted: Counted = sqlx::query_as(
        "insert into platform_circuits as c (platform, failures, last_failure_at) values ($1, 1, now()) \
         on conflict (platform) do update set last_failure_at = now(), failures = \
           case when c.last_failure_at > now() - make_interval(secs => $2) then c.failures + 1 else 1 end \
         returning failures, openings, open_until is not null as was_open",
    )
    .bind(platform.as_str())
    .bind(WINDOW.as_secs_f64())
    .fetch_one(db)
    .await?;
    if counted.failures < FAILURES && !counted.was_open {
        return Ok(false);
    }
    open(db, platform, pause(counted.openings), problem).await
}

/// Holds the platform for a reason that is not an outage: its bill, the app's standing.
pub async fn hold(db: &sqlx::PgPool, platform: Platform, pause: Duration, problem: &Explanation) -> sqlx::Result<bool> {
    sqlx::query("insert into platform_circuits (platform) values ($1) on conflict (platform) do nothing")
        .bind(platform.as_str())
        .execute(db)
        .await?;
    open(db, platform, pause, problem).await
}

async fn open(db: &sqlx::PgPool, platform: Platform, pause: Duration, problem: &Explanation) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update platform_circuits set open_until = now() + make_interval(secs => $2), \
           opened_at = coalesce(opened_at, now()), openings = openings + 1, trying_until = null, held = 0, \
           problem = $3 \
         where platform = $1 and (open_until is null or open_until <= now())",
    )
    .bind(platform.as_str())
    .bind(pause.as_secs_f64())
    .bind(Json(problem))
    .execute(db)
    .await?;
    if done.rows_affected() == 1 {
        tracing::warn!(%platform, code = problem.code, pause_s = pause.as_secs(), "a platform's publications are held");
    }
    Ok(done.rows_affected() == 1)
}

fn pause(openings: i16) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << openings.clamp(0, 10)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_opening_waits_longer_up_to_a_limit() {
        let pauses: Vec<_> = (0..8).map(|openings| pause(openings).as_secs()).collect();
        assert_eq!(pauses, [15, 30, 60, 120, 240, 480, 600, 600]);
    }
}
