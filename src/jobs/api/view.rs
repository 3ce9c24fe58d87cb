//! How a job looks from outside: what it is, how it is, and in one sentence why it is not done yet.

mod names;
mod why;

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use poem_openapi::Object;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

pub use self::names::{JobPriority, JobState, QueueName};
use self::why::{error, has_error, reason};
use crate::{
    ids::{GroupId, JobId},
    jobs::{
        Priority, State,
        ledger::{self, Entry, GroupStatus, JobRow},
    },
};

/// A piece of background work.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "Job", skip_serializing_if_is_none)]
pub struct JobView {
    pub id: JobId,
    /// What it does, such as `publish`.
    pub kind: String,
    pub queue: String,
    pub priority: JobPriority,
    pub state: JobState,
    /// Why it is not done yet, in one sentence.
    pub reason: Option<String>,
    /// Attempts used, the present one counted.
    pub attempt: u16,
    pub max_attempts: u16,
    /// Times that a stopping worker handed it back unfinished; no attempt is used.
    pub handbacks: u16,
    pub created_at: DateTime<Utc>,
    /// When it may run, or ran last.
    pub run_at: DateTime<Utc>,
    /// When its present or last run began.
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    /// From when it was due until its present or last run began, or until now.
    pub waited_ms: u64,
    /// How long its present or last run has taken.
    pub ran_ms: Option<u64>,
    pub progress: Option<JobProgress>,
    /// What a success left; its form belongs to the kind.
    pub result: Option<Value>,
    /// Why it failed, or what made it try again.
    pub error: Option<JobError>,
    pub group: Option<GroupId>,
    pub links: JobLinks,
}

#[derive(Debug, Clone, PartialEq, Object)]
#[oai(skip_serializing_if_is_none)]
pub struct JobProgress {
    /// 0 to 1.
    pub fraction: Option<f64>,
    pub phase: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Object)]
pub struct JobError {
    /// How the last run ended: `retry`, `failed`, `crashed` and so on.
    pub class: String,
    /// Stable, for programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Where to go from here.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(skip_serializing_if_is_none)]
pub struct JobLinks {
    #[oai(rename = "self")]
    pub itself: String,
    pub events: String,
    pub timeline: String,
    pub group: Option<String>,
}

impl JobLinks {
    pub fn new(job: JobId, group: Option<GroupId>) -> Self {
        Self {
            itself: location(job),
            events: format!("/api/v1/jobs/{job}/events"),
            timeline: format!("/api/v1/jobs/{job}/timeline"),
            group: group.map(|group| format!("/api/v1/groups/{group}")),
        }
    }
}

/// What a 202 carries in `Location`.
pub fn location(job: JobId) -> String {
    format!("/api/v1/jobs/{job}")
}

/// What a view needs beyond the row, looked up once for a whole page.
#[derive(Debug, Default)]
pub struct Context {
    paused: HashSet<String>,
    /// How the last run that did not succeed ended.
    classes: HashMap<JobId, String>,
}

impl Context {
    pub async fn of(db: &mut PgConnection, rows: &[JobRow]) -> sqlx::Result<Self> {
        let mut context = Self::default();
        if rows.iter().any(|row| row.state == State::Queued) {
            let paused = ledger::paused(&mut *db).await?;
            context.paused = paused.into_iter().map(|paused| paused.queue).collect();
        }
        let troubled: Vec<_> = rows.iter().filter(|row| has_error(row)).map(|row| row.id).collect();
        if !troubled.is_empty() {
            context.classes = ledger::last_classes(db, &troubled).await?.into_iter().collect();
        }
        Ok(context)
    }
}

impl JobView {
    pub fn new(row: &JobRow, context: &Context) -> Self {
        // For display alone: the two clocks may be a little apart, and a duration is never negative.
        let now = Utc::now();
        let run_ended = row.finished_at.or((row.state != State::Running).then_some(row.run_at));
        let is_under_way = matches!(row.state, State::Running | State::Succeeded);
        Self {
            id: row.id,
            kind: row.kind.clone(),
            queue: row.queue.clone(),
            priority: ledger::priority_of(row.priority).unwrap_or(Priority::Normal).into(),
            state: row.state.into(),
            reason: reason(row, context),
            attempt: count(row.attempt) + u16::from(is_under_way),
            max_attempts: count(row.max_attempts),
            handbacks: count(row.handbacks),
            created_at: row.created_at,
            run_at: row.run_at,
            started_at: row.claimed_at,
            finished_at: row.finished_at,
            waited_ms: millis(row.claimed_at.or(row.finished_at).unwrap_or(now) - row.due_at.max(row.created_at)),
            ran_ms: row.claimed_at.map(|claimed| match row.state {
                State::Running => millis(now - claimed),
                _ => run_ended.map_or(0, |ended| millis(ended - claimed)),
            }),
            progress: None,
            result: row.result.clone(),
            error: error(row, context),
            group: row.group,
            links: JobLinks::new(row.id, row.group),
        }
    }
}

fn count(stored: i16) -> u16 {
    u16::try_from(stored).unwrap_or(0)
}

fn millis(duration: TimeDelta) -> u64 {
    u64::try_from(duration.num_milliseconds()).unwrap_or(0)
}

/// What a running job told last, if it has the usual form.
pub fn progress(told: Value) -> Option<JobProgress> {
    let fraction = told["fraction"].as_f64();
    let phase = told["phase"].as_str().map(str::to_owned);
    (fraction.is_some() || phase.is_some()).then_some(JobProgress { fraction, phase })
}

/// Changes with everything about a job that a client would want to be told of; not with time alone.
pub fn etag(row: &JobRow) -> String {
    let told = format!(
        "{:?}",
        (
            row.state,
            row.run,
            row.attempt,
            row.crashes,
            row.open_parents,
            row.cancel_requested,
            row.parked,
            row.run_at,
            row.finished_at,
            &row.why,
            row.priority
        )
    );
    format!("\"{}\"", hex::encode(&Sha256::digest(told)[..8]))
}

/// A page of jobs.
#[derive(Debug, Clone, Object)]
#[oai(skip_serializing_if_is_none)]
pub struct JobList {
    pub items: Vec<JobView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    pub next_cursor: Option<String>,
}

/// Everything that happened to a job, in order of time.
#[derive(Debug, Clone, Object)]
#[oai(rename = "Timeline", skip_serializing_if_is_none)]
pub struct TimelineView {
    pub job: JobId,
    pub state: JobState,
    /// Why it is not done yet, in one sentence.
    pub reason: Option<String>,
    pub items: Vec<TimelineEntry>,
}

#[derive(Debug, Clone, Object)]
#[oai(skip_serializing_if_is_none)]
pub struct TimelineEntry {
    pub at: DateTime<Utc>,
    /// A stable name, such as `queued` or `started`.
    pub what: String,
    pub detail: Option<Value>,
}

impl TimelineView {
    pub fn new(job: &JobView, entries: Vec<Entry>) -> Self {
        let items = entries.into_iter().map(|entry| TimelineEntry {
            at: entry.at,
            what: entry.what,
            detail: Some(entry.detail).filter(|detail| !detail.is_null()),
        });
        Self { job: job.id, state: job.state, reason: job.reason.clone(), items: items.collect() }
    }
}

/// Jobs that are one piece of work to whoever asked for it.
#[derive(Debug, Clone, Object)]
#[oai(rename = "Group")]
pub struct GroupView {
    pub id: GroupId,
    pub name: String,
    /// Of the whole: what is unfinished counts first, then what went wrong.
    pub state: JobState,
    pub created_at: DateTime<Utc>,
    /// Jobs that have ended, however.
    pub ended: u64,
    /// Jobs that it has.
    pub total: u64,
    /// The first 1,000 of them.
    pub jobs: Vec<JobView>,
}

impl GroupView {
    pub fn new(group: &GroupStatus, context: &Context) -> Self {
        Self {
            id: group.id,
            name: group.name.clone(),
            state: group.state().into(),
            created_at: group.created_at,
            ended: group.ended(),
            total: group.total(),
            jobs: group.jobs.iter().map(|job| JobView::new(job, context)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::TenantId, jobs::Why};

    fn row(state: State) -> JobRow {
        let now = Utc::now();
        JobRow {
            id: JobId::new(),
            tenant: TenantId::new(),
            group: None,
            worker: None,
            kind: "publish".into(),
            queue: "publish".into(),
            lane: "default".into(),
            priority: 1,
            state,
            run: 0,
            attempt: 0,
            max_attempts: 8,
            crashes: 0,
            handbacks: 0,
            open_parents: 0,
            cancel_requested: false,
            suspect: false,
            parked: false,
            created_at: now,
            run_at: now,
            due_at: now,
            queued_at: None,
            claimed_at: None,
            finished_at: None,
            serial_key: None,
            why: None,
            args: Value::Null,
            result: None,
        }
    }

    fn view(row: &JobRow) -> JobView {
        JobView::new(row, &Context::default())
    }

    #[test]
    fn whatever_is_not_done_says_why_in_one_sentence() {
        for state in State::ALL {
            let reason = view(&row(*state)).reason;
            assert_eq!(reason.is_some(), !state.is_final() && *state != State::Running, "{state}");
            assert!(reason.is_none_or(|reason| reason.ends_with('.') && reason.matches(". ").count() == 0));
        }
        let parked = JobRow {
            parked: true,
            why: Some(Why::new("reconnect", "the account must be connected again.")),
            ..row(State::Scheduled)
        };
        let reason = view(&parked).reason.unwrap();
        assert!(reason.starts_with("It is on hold: the account must be connected again; at the latest"), "{reason}");
        let paused = Context { paused: HashSet::from(["publish".into()]), ..Context::default() };
        assert_eq!(JobView::new(&row(State::Queued), &paused).reason.unwrap(), "The queue \"publish\" is paused.");
    }

    #[test]
    fn attempts_count_the_present_one() {
        assert_eq!(view(&row(State::Queued)).attempt, 0);
        assert_eq!(view(&row(State::Running)).attempt, 1);
        assert_eq!(view(&JobRow { attempt: 2, ..row(State::Scheduled) }).attempt, 2);
        assert_eq!(view(&JobRow { attempt: 8, ..row(State::Failed) }).attempt, 8);
    }

    #[test]
    fn a_snooze_is_no_error_and_a_failed_attempt_is_one() {
        let why = Some(Why::new("rate_limited", "the platform asks to wait"));
        let snoozed = JobRow { why: why.clone(), ..row(State::Scheduled) };
        assert_eq!(view(&snoozed).error, None);
        let retried = JobRow { why, attempt: 1, ..row(State::Scheduled) };
        assert_eq!(view(&retried).error.unwrap().code, "rate_limited");
    }

    #[test]
    fn the_etag_changes_with_the_job_and_not_with_time() {
        let one = row(State::Running);
        assert_eq!(etag(&one), etag(&one.clone()));
        assert_ne!(etag(&one), etag(&JobRow { run: 1, ..one.clone() }));
        assert_ne!(etag(&one), etag(&JobRow { cancel_requested: true, ..one.clone() }));
    }
}
