//! Canaries: every half minute one job goes the whole way through each queue, so that health cannot lie.
//!
//! Each leaves the time of its arrival in `queue_canaries`; a queue whose canary is older than a minute is not
//! working, whatever its processes say of themselves.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor};

use super::{
    Engine, EnqueueError, Job, JobContext, Lane, NewJob, Queue, Stop,
    relay::{CatchUp, Schedule, ScheduleError, Timetable, unique_key},
};
use crate::ids::TenantId;

/// A queue whose canary was seen longer ago than this is not working.
pub const FRESH_FOR: Duration = Duration::from_secs(60);
const EVERY_HALF_MINUTE: &str = "*/30 * * * * *";

/// Goes through the queue it is sent to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Canary {
    pub queue: Queue,
}

impl Job for Canary {
    const KIND: &'static str = "canary";
    const QUEUE: Queue = Queue::Ops;
    const MAX_ATTEMPTS: u16 = 3;
    const TIMEOUT: Duration = Duration::from_secs(10);
    type Output = ();

    async fn run(&self, cx: &JobContext) -> Result<(), Stop> {
        sqlx::query(
            "insert into queue_canaries (queue, seen_at) values ($1, now()) \
             on conflict (queue) do update set seen_at = excluded.seen_at",
        )
        .bind(self.queue.as_str())
        .execute(cx.db())
        .await?;
        Ok(())
    }
}

/// Adds the canaries' schedules; whoever begins to lead the relay does it.
pub async fn schedule_all(db: &mut PgConnection) -> Result<(), ScheduleError> {
    for &queue in Queue::ALL {
        let timetable = Timetable {
            name: name(queue),
            cron: EVERY_HALF_MINUTE.into(),
            timezone: "UTC".into(),
            catch_up: CatchUp::Skip,
            // One on its way is enough: a queue without workers must not fill up with canaries.
            exclusive: true,
        };
        Schedule { timetable, job: for_queue(queue) }.save(db).await?;
    }
    Ok(())
}

/// One through each queue at once, so that nobody waits for the next half minute to learn that it works.
pub async fn send_all(engine: &Engine) -> Result<(), EnqueueError> {
    for &queue in Queue::ALL {
        match engine.enqueue(for_queue(queue).unique(unique_key(&name(queue)))).await {
            Ok(_) | Err(EnqueueError::Duplicate { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn name(queue: Queue) -> String {
    format!("canary-{queue}")
}

fn for_queue(queue: Queue) -> NewJob {
    NewJob { queue, lane: Lane::Default, ..NewJob::of(&Canary { queue }, TenantId::SYSTEM) }
}

/// When a queue's canary was last seen, and whether the queue is paused, which excuses it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Seen {
    pub queue: String,
    pub seen_at: Option<DateTime<Utc>>,
    pub is_fresh: bool,
    pub is_paused: bool,
}

/// Every queue that was ever meant to have canaries.
pub async fn seen(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Seen>> {
    sqlx::query_as(
        "select q.queue, c.seen_at, coalesce(c.seen_at > now() - $2 * interval '1 second', false) as is_fresh, \
                p.paused_at is not null as is_paused \
         from unnest($1::text[]) with ordinality as q (queue, place) \
         left join queue_canaries c on c.queue = q.queue left join queue_controls p on p.queue = q.queue \
         order by q.place",
    )
    .bind(Queue::ALL.iter().map(|queue| queue.as_str()).collect::<Vec<_>>())
    .bind(FRESH_FOR.as_secs_f64())
    .fetch_all(db)
    .await
}
