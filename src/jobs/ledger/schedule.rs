//! Cron schedules: each fire is a row of its own, so that it happens once whoever else tries (E19).

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};

use crate::jobs::job::NewJob;

/// A schedule as it is stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ScheduleRow {
    pub name: String,
    pub cron: String,
    pub timezone: String,
    pub kind: String,
    pub queue: String,
    pub lane: String,
    pub args: Json<Box<RawValue>>,
    pub max_attempts: i16,
    pub timeout_ms: i32,
    pub catch_up: String,
    pub next_at: DateTime<Utc>,
    pub exclusive: bool,
    pub paused: bool,
}

/// Adds a schedule or changes one; a changed rhythm starts from now.
pub async fn upsert(db: impl PgExecutor<'_>, row: &ScheduleRow) -> sqlx::Result<()> {
    sqlx::query(
        "insert into schedules (name, cron, timezone, kind, queue, lane, args, max_attempts, timeout_ms, catch_up, \
                                next_at, exclusive, paused) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
         on conflict (name) do update set cron = excluded.cron, timezone = excluded.timezone, kind = excluded.kind, \
             queue = excluded.queue, lane = excluded.lane, args = excluded.args, \
             max_attempts = excluded.max_attempts, timeout_ms = excluded.timeout_ms, catch_up = excluded.catch_up, exclusive = excluded.exclusive, \
             next_at = case when (schedules.cron, schedules.timezone) = (excluded.cron, excluded.timezone) \
                            then schedules.next_at else excluded.next_at end",
    )
    .bind(&row.name)
    .bind(&row.cron)
    .bind(&row.timezone)
    .bind(&row.kind)
    .bind(&row.queue)
    .bind(&row.lane)
    .bind(&row.args)
    .bind(row.max_attempts)
    .bind(row.timeout_ms)
    .bind(&row.catch_up)
    .bind(row.next_at)
    .bind(row.exclusive)
    .bind(row.paused)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn list(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<ScheduleRow>> {
    sqlx::query_as(
        "select name, cron, timezone, kind, queue, lane, args, max_attempts, timeout_ms, catch_up, next_at, exclusive, \
                paused \
         from schedules order by name",
    )
    .fetch_all(db)
    .await
}

/// Schedules whose time has come, and the server's time.
pub async fn due(db: &mut PgConnection) -> sqlx::Result<(Vec<ScheduleRow>, DateTime<Utc>)> {
    let rows = sqlx::query_as(
        "select name, cron, timezone, kind, queue, lane, args, max_attempts, timeout_ms, catch_up, next_at, exclusive, \
                paused \
         from schedules where next_at <= now() and not paused",
    )
    .fetch_all(&mut *db)
    .await?;
    let now = sqlx::query_scalar("select now()").fetch_one(db).await?;
    Ok((rows, now))
}

/// Fires: writes the job for `fire_at` unless that fire exists, and moves the schedule on to `next_at`. Both in the
/// caller's transaction. `false`: another process had done it.
pub async fn fire(
    tx: &mut PgConnection,
    schedule: &ScheduleRow,
    fire_at: DateTime<Utc>,
    next_at: DateTime<Utc>,
    job: Option<&NewJob>,
) -> sqlx::Result<bool> {
    let moved = sqlx::query("update schedules set next_at = $3 where name = $1 and next_at = $2")
        .bind(&schedule.name)
        .bind(schedule.next_at)
        .bind(next_at)
        .execute(&mut *tx)
        .await?;
    if moved.rows_affected() == 0 {
        return Ok(false);
    }
    let Some(job) = job else { return Ok(true) };
    let fresh = sqlx::query(
        "insert into schedule_fires (schedule, fire_at, job_id) values ($1, $2, $3) on conflict do nothing",
    )
    .bind(&schedule.name)
    .bind(fire_at)
    .bind(job.id)
    .execute(&mut *tx)
    .await?;
    Ok(fresh.rows_affected() == 1)
}
