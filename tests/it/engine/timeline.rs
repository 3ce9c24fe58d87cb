//! A job's timeline: everything that happened, though its row remembers only the last of each.

use std::time::Duration;

use multivio::{
    cli::jobs::steer,
    ids::JobId,
    jobs::{
        Priority, Queue, Why,
        ledger::{self, Again, CancelOutcome, End, Entry, Settlement},
    },
};
use serde_json::json;

use super::{Act, Stage, stage::paper_worker};

const LONG: Duration = Duration::from_secs(60);

async fn timeline(stage: &Stage, job: JobId) -> Vec<Entry> {
    stage.engine.timeline(&stage.row(job).await).await.unwrap()
}

fn names(timeline: &[Entry]) -> Vec<&str> {
    timeline.iter().map(|line| line.what.as_str()).collect()
}

#[tokio::test]
async fn every_time_that_a_job_was_queued_outlives_its_retries_and_crashes() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let worker = paper_worker(&mut db, LONG).await;
    let run = ledger::claim(&mut db, worker, Queue::Ops, &["act"], &[job], false).await.unwrap()[0].run;
    let end = End::Again {
        at: Again::After(Duration::ZERO),
        charged: true,
        class: "retry",
        why: Why::new("busy", "busy"),
        wake: None,
    };
    ledger::settle(&mut *db, &[Settlement { job, run, end }]).await.unwrap();
    ledger::promote_due(&mut *db, 10, true).await.unwrap();
    ledger::claim(&mut db, worker, Queue::Ops, &["act"], &[job], false).await.unwrap();
    sqlx::query("update workers set lease_expires_at = now() - interval '1 second'").execute(&mut *db).await.unwrap();
    assert_eq!(ledger::reap(&mut *db, 10).await.unwrap().len(), 1);
    let lines = timeline(&stage, job).await;
    assert_eq!(
        names(&lines),
        ["created", "queued", "started", "retry", "queued", "started", "crash", "queued"],
        "{lines:?}"
    );
}

#[tokio::test]
async fn what_people_ask_of_a_job_stands_in_its_timeline_with_who_asked() {
    let stage = Stage::new().await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let tenant = Some(stage.app.tenant);
    let changed = ledger::set_priority(&stage.app.pool, tenant, job, Priority::High, "somebody").await.unwrap();
    assert!(changed.is_some());
    // To be what it is already is no change.
    assert!(stage.set_priority(job, Priority::High).await);
    assert_eq!(stage.cancel(job).await, CancelOutcome::Cancelled);
    assert!(stage.retry(job).await);
    let lines = timeline(&stage, job).await;
    assert_eq!(
        names(&lines),
        ["created", "queued", "priority_changed", "cancel_requested", "cancelled", "retry_requested"],
        "{lines:?}"
    );
    assert_eq!(lines[2].detail, json!({ "from": "normal", "to": "high", "by": "somebody" }));
    let operator = json!(steer::operator());
    assert_eq!((&lines[3].detail["by"], &lines[5].detail["by"]), (&operator, &operator));
    assert_eq!(lines[4].detail["code"], "cancelled");
}

#[tokio::test]
async fn a_bulk_retry_leaves_what_each_job_had_come_to() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let worker = paper_worker(&mut db, LONG).await;
    let run = ledger::claim(&mut db, worker, Queue::Ops, &["act"], &[job], false).await.unwrap()[0].run;
    let end = End::Failed { why: Why::new("refused", "refused"), class: "permanent" };
    ledger::settle(&mut *db, &[Settlement { job, run, end }]).await.unwrap();
    let before = timeline(&stage, job).await;
    assert_eq!(stage.engine.retry_failed(Queue::Ops, None, 10, "somebody").await.unwrap(), 1);
    let lines = timeline(&stage, job).await;
    let mut expected = names(&before);
    expected.push("retry_requested");
    assert_eq!(names(&lines), expected, "{lines:?}");
    assert!(expected.contains(&"failed") && expected.contains(&"queued"), "{expected:?}");
    assert_eq!(lines.last().unwrap().detail, json!({ "by": "somebody" }));
}

#[tokio::test]
async fn the_end_of_a_job_that_was_cancelled_while_it_ran_is_told_once() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let worker = paper_worker(&mut db, LONG).await;
    let run = ledger::claim(&mut db, worker, Queue::Ops, &["act"], &[job], false).await.unwrap()[0].run;
    assert_eq!(stage.cancel(job).await, CancelOutcome::Requested);
    let end = End::Cancelled { why: Why::new("cancelled", "cancelled on request") };
    ledger::settle(&mut *db, &[Settlement { job, run, end }]).await.unwrap();
    let lines = timeline(&stage, job).await;
    assert_eq!(names(&lines), ["created", "queued", "started", "cancel_requested", "cancelled"], "{lines:?}");
    assert_eq!(lines[4].detail["run"], run);
}
