//! Schedules: every fire is a row of its own, so that it happens once (E19).
//!
//! Over a change of clocks croner's rules hold, which are those of Vixie cron: a job of a fixed time that falls into
//! the hour that is skipped runs at the first moment after it; one that falls into the hour that comes twice runs
//! once. A wildcard schedule follows the real time. Of the fires missed while nobody led, `latest` runs the last one
//! and `skip` none that is older than a minute.

use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds};
use sqlx::{PgConnection, types::Json};
use tracing::{debug, warn};

use crate::{
    ids::{JobId, TenantId},
    jobs::{
        Engine, EnqueueError,
        job::{NewJob, Priority},
        ledger::{self, ScheduleRow},
    },
};

const SKIP_AFTER: chrono::TimeDelta = chrono::TimeDelta::minutes(1);
/// More missed fires than this are not walked through one by one.
const WALK: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    #[error("\"{cron}\" is no cron expression such as \"*/5 * * * *\"")]
    Cron { cron: String, source: croner::errors::CronError },
    #[error("\"{0}\" is no time zone such as \"Europe/Berlin\"")]
    Timezone(String),
    #[error("the schedule could not be stored")]
    Ledger(#[from] sqlx::Error),
}

/// What happens to fires that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    Latest,
    Skip,
}

/// When a schedule fires.
#[derive(Debug, Clone)]
pub struct Timetable {
    pub name: String,
    /// Five fields, or six with seconds first.
    pub cron: String,
    /// An IANA name.
    pub timezone: String,
    pub catch_up: CatchUp,
    /// A fire that meets an unfinished job of the same schedule is left out.
    pub exclusive: bool,
}

/// A job that runs by the clock.
#[derive(Debug, Clone)]
pub struct Schedule {
    pub timetable: Timetable,
    pub job: NewJob,
}

impl Schedule {
    /// Adds it to the ledger, or changes what is there under its name.
    pub async fn save(&self, db: &mut PgConnection) -> Result<(), ScheduleError> {
        let Timetable { name, cron, timezone, catch_up, exclusive } = self.timetable.clone();
        let now: DateTime<Utc> = sqlx::query_scalar("select now()").fetch_one(&mut *db).await?;
        let next_at = next(&cron, &timezone, now)?;
        let job = &self.job;
        let row = ScheduleRow {
            name,
            cron,
            timezone,
            kind: job.kind.to_string(),
            queue: job.queue.to_string(),
            lane: job.lane.to_string(),
            args: Json(job.args.clone()),
            max_attempts: i16::try_from(job.max_attempts).unwrap_or(i16::MAX),
            timeout_ms: i32::try_from(job.timeout.as_millis()).unwrap_or(i32::MAX),
            catch_up: match catch_up {
                CatchUp::Latest => "latest".into(),
                CatchUp::Skip => "skip".into(),
            },
            next_at,
            exclusive,
            paused: false,
        };
        Ok(ledger::upsert_schedule(db, &row).await?)
    }
}

/// Fires whatever is due. One that cannot be read is skipped with a warning; the others go on.
pub(super) async fn fire_due(db: &mut PgConnection, engine: &Engine) -> sqlx::Result<()> {
    let (due, now) = ledger::due_schedules(&mut *db).await?;
    for row in due {
        let (fire_at, next_at) = match plan(&row, now) {
            Ok(plan) => plan,
            Err(error) => {
                warn!(schedule = row.name, %error, "cannot fire");
                continue;
            }
        };
        let job = job_of(&row);
        if job.is_none() {
            // Left as it is, due, for a leader that knows it.
            warn!(schedule = row.name, "its queue or lane is of another release");
            continue;
        }
        let job = job.filter(|_| fire_at.is_some());
        let mut tx = super::begin(db).await?;
        let fired = ledger::fire(&mut tx, &row, fire_at.unwrap_or(row.next_at), next_at, job.as_ref()).await?;
        let tickets = match &job {
            Some(job) if fired => match engine.enqueue_in(&mut tx, std::slice::from_ref(job)).await {
                Ok(tickets) => tickets,
                Err(EnqueueError::Duplicate { existing }) => {
                    debug!(schedule = row.name, %existing, "left out: the last one is unfinished");
                    Vec::new()
                }
                Err(error) => {
                    warn!(schedule = row.name, error = %crate::telemetry::chain(&error), "its job was not written");
                    continue;
                }
            },
            _ => Vec::new(),
        };
        tx.commit().await?;
        engine.ring(&tickets).await;
        if !tickets.is_empty() {
            debug!(schedule = row.name, ?fire_at, "fired");
        }
    }
    Ok(())
}

/// Which fire runs now, if any, and when the next one is due.
fn plan(row: &ScheduleRow, now: DateTime<Utc>) -> Result<(Option<DateTime<Utc>>, DateTime<Utc>), ScheduleError> {
    let mut latest = row.next_at;
    for _ in 0..WALK {
        let following = next(&row.cron, &row.timezone, latest)?;
        if following > now {
            break;
        }
        latest = following;
    }
    let is_missed = now - latest > SKIP_AFTER && row.catch_up == "skip";
    Ok(((!is_missed).then_some(latest), next(&row.cron, &row.timezone, now)?))
}

/// The first fire after `after`.
pub fn next(cron: &str, timezone: &str, after: DateTime<Utc>) -> Result<DateTime<Utc>, ScheduleError> {
    let fault = |source| ScheduleError::Cron { cron: cron.to_owned(), source };
    let zone: Tz = timezone.parse().map_err(|_| ScheduleError::Timezone(timezone.to_owned()))?;
    let pattern = CronParser::builder().seconds(Seconds::Optional).build().parse(cron).map_err(fault)?;
    let next = pattern.find_next_occurrence(&after.with_timezone(&zone), false).map_err(fault)?;
    Ok(next.with_timezone(&Utc))
}

/// Of a schedule whose jobs never overlap.
pub fn unique_key(schedule: &str) -> String {
    format!("schedule:{schedule}")
}

fn job_of(row: &ScheduleRow) -> Option<NewJob> {
    Some(NewJob {
        id: JobId::new(),
        tenant: TenantId::SYSTEM,
        kind: row.kind.clone().into(),
        queue: row.queue.parse().ok()?,
        lane: row.lane.parse().ok()?,
        priority: Priority::Normal,
        args: row.args.0.clone(),
        max_attempts: u16::try_from(row.max_attempts).ok()?,
        timeout: Duration::from_millis(u64::try_from(row.timeout_ms).ok()?),
        run_at: None,
        group: None,
        unique_key: row.exclusive.then(|| unique_key(&row.name)),
        serial_key: None,
        serial_patience: None,
        parents: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn row(catch_up: &str, cron: &str, timezone: &str, next_at: &str) -> ScheduleRow {
        ScheduleRow {
            name: "s".into(),
            cron: cron.into(),
            timezone: timezone.into(),
            kind: "k".into(),
            queue: "ops".into(),
            lane: "upkeep".into(),
            args: Json(serde_json::value::RawValue::NULL.to_owned()),
            max_attempts: 1,
            timeout_ms: 1000,
            catch_up: catch_up.into(),
            next_at: at(next_at),
            exclusive: false,
            paused: false,
        }
    }

    #[test]
    fn a_time_in_the_skipped_hour_runs_once_right_after_it() {
        // Berlin, 29 March 2026: 02:00 becomes 03:00.
        let first = next("30 2 * * *", "Europe/Berlin", at("2026-03-28T12:00:00Z")).unwrap();
        assert_eq!(first, at("2026-03-29T01:00:00Z"));
        assert_eq!(next("30 2 * * *", "Europe/Berlin", first).unwrap(), at("2026-03-30T00:30:00Z"));
    }

    #[test]
    fn a_time_in_the_repeated_hour_runs_once() {
        // Berlin, 25 October 2026: 03:00 becomes 02:00.
        let first = next("30 2 * * *", "Europe/Berlin", at("2026-10-24T12:00:00Z")).unwrap();
        assert_eq!(first, at("2026-10-25T00:30:00Z"));
        assert_eq!(next("30 2 * * *", "Europe/Berlin", first).unwrap(), at("2026-10-26T01:30:00Z"));
    }

    #[test]
    fn of_missed_fires_latest_runs_one_and_skip_none() {
        let now = at("2026-06-01T10:02:30Z");
        let missed = "2026-06-01T09:00:00Z";
        let (fire, next_at) = plan(&row("latest", "*/5 * * * *", "UTC", missed), now).unwrap();
        assert_eq!((fire, next_at), (Some(at("2026-06-01T10:00:00Z")), at("2026-06-01T10:05:00Z")));
        let (fire, _) = plan(&row("skip", "*/5 * * * *", "UTC", missed), now).unwrap();
        assert_eq!(fire, None);
    }

    #[test]
    fn a_bad_expression_or_zone_says_which() {
        assert!(next("every day", "UTC", Utc::now()).unwrap_err().to_string().contains("every day"));
        assert!(next("* * * * *", "Berlin", Utc::now()).unwrap_err().to_string().contains("\"Berlin\""));
    }
}
