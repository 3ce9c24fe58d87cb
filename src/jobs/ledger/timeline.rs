//! Everything that happened to a job, as one list in order of time.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{PgConnection, PgExecutor};

use super::JobRow;
use crate::ids::JobId;

/// One line of a timeline.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    pub at: DateTime<Utc>,
    /// A stable name: `created`, `due`, `queued`, `started`, an attempt's class, a note's name, the final state.
    pub what: String,
    pub detail: Value,
}

/// Adds a line. By allow-list: callers write only what is safe to show (P11).
pub async fn note(db: impl PgExecutor<'_>, job: JobId, what: &str, detail: &Value) -> sqlx::Result<()> {
    sqlx::query("insert into job_notes (job_id, what, detail) values ($1, $2, $3)")
        .bind(job)
        .bind(what)
        .bind(detail)
        .execute(db)
        .await?;
    Ok(())
}

pub async fn timeline(db: &mut PgConnection, job: &JobRow) -> sqlx::Result<Vec<Entry>> {
    type Attempt = (i32, Option<DateTime<Utc>>, DateTime<Utc>, String, String, String);
    let attempts: Vec<Attempt> = sqlx::query_as(
        "select run, started_at, ended_at, class, code, message from job_attempts where job_id = $1 order by run",
    )
    .bind(job.id)
    .fetch_all(&mut *db)
    .await?;
    let notes: Vec<(DateTime<Utc>, String, Value)> =
        sqlx::query_as("select at, what, detail from job_notes where job_id = $1 order by id")
            .bind(job.id)
            .fetch_all(&mut *db)
            .await?;

    // What a row forgets when it changes was noted before: where both still have it, it is told once.
    let mut entries = vec![entry(job.created_at, "created", json!({ "queue": job.queue, "kind": job.kind }))];
    if job.due_at > job.created_at {
        entries.push(entry(job.due_at, "due", Value::Null));
    }
    for (run, started_at, ended_at, class, code, message) in attempts {
        entries.extend(started_at.map(|at| entry(at, "started", json!({ "run": run }))));
        entries.push(entry(ended_at, &class, json!({ "run": run, "code": code, "message": message })));
    }
    entries.extend(notes.into_iter().map(|(at, what, detail)| entry(at, &what, detail)));
    // After what sent it back at the same instant, such as a crash.
    entries.extend(job.queued_at.map(|at| entry(at, "queued", Value::Null)));
    let run_is_listed = entries.iter().any(|line| line.what == "started" && line.detail["run"] == job.run);
    if let Some(at) = job.claimed_at.filter(|_| !run_is_listed) {
        entries.push(entry(at, "started", json!({ "run": job.run })));
    }
    entries.extend(job.finished_at.map(|at| entry(at, job.state.as_str(), json!(job.why))));
    let mut told = HashSet::new();
    entries.retain(|line| told.insert((line.at, line.what.clone())));
    entries.sort_by_key(|line| line.at);
    Ok(entries)
}

fn entry(at: DateTime<Utc>, what: &str, detail: Value) -> Entry {
    Entry { at, what: what.to_owned(), detail }
}
