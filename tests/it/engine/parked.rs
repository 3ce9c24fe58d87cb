//! Jobs that wait for an event or a time, without holding anybody up (E17), and work that survives a hand-back (E16).

use std::time::{Duration, Instant};

use multivio::jobs::{Queue, State, Why, ledger};
use serde_json::json;

use super::{Act, Stage, Step};

const SOON: Duration = Duration::from_secs(20);

fn parks(wake: &str, deadline_ms: u64) -> Act {
    let park = Step::Park { wake: wake.into(), deadline_ms };
    Act { first: Some(vec![park]), ..Act::of([Step::Tell("woken".into())]) }
}

#[tokio::test]
async fn a_parked_job_runs_when_its_event_comes_and_no_other() {
    let stage = Stage::new().await;
    let _worker = stage.worker(2).await;
    let ours = stage.enqueue(stage.job(parks("connection:1", 600_000))).await;
    let others = stage.enqueue(stage.job(parks("connection:2", 600_000))).await;
    for job in [ours, others] {
        let row = stage.once(job, SOON, "it to be parked", |row| row.parked).await;
        assert_eq!((row.state, row.attempt, row.why.unwrap().code.as_str()), (State::Scheduled, 0, "script"));
    }
    // The event comes with the rows that made it, or not at all.
    let mut tx = stage.app.pool.begin().await.unwrap();
    assert_eq!(stage.engine.wake(&mut tx, "connection:1").await.unwrap(), 1);
    tx.rollback().await.unwrap();
    assert!(stage.row(ours).await.parked);
    let mut tx = stage.app.pool.begin().await.unwrap();
    stage.engine.wake(&mut tx, "connection:1").await.unwrap();
    tx.commit().await.unwrap();
    stage.all_succeed(&[ours], SOON).await;
    assert!(stage.row(others).await.parked);
    assert_eq!(stage.attempts(ours).await[0].0, "parked");
}

#[tokio::test]
async fn a_parked_job_runs_at_its_deadline_when_nothing_wakes_it() {
    let stage = Stage::new().await;
    let _worker = stage.worker(2).await;
    let job = stage.enqueue(stage.job(parks("never", 1_000))).await;
    stage.all_succeed(&[job], SOON).await;
    let row = stage.row(job).await;
    assert_eq!((row.run, row.attempt, row.parked), (2, 0, false));
}

#[tokio::test]
async fn an_event_that_comes_while_a_job_is_about_to_park_wakes_it_all_the_same() {
    let stage = Stage::new().await;
    let _worker = stage.worker(2).await;
    let park = Step::Park { wake: "budget:x".into(), deadline_ms: 600_000 };
    let looks = vec![Step::Tell("looked".into()), Step::SleepMs(700), park];
    let job = stage.job(Act { first: Some(looks), ..Act::default() });
    let job = stage.enqueue(job).await;
    stage.witness.heard(job, "looked", SOON).await;
    // It has looked and found nothing; now the event comes; then it parks.
    stage.engine.wake(&mut *stage.db().await, "budget:x").await.unwrap();
    stage.all_succeed(&[job], SOON).await;
}

#[tokio::test]
async fn one_event_wakes_a_job_that_parks_again_only_once() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = super::stage::paper_worker(&mut db, Duration::from_secs(60)).await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let park = async || {
        ledger::promote_due(&stage.app.pool, 10, false).await.unwrap();
        let claims = ledger::claim(&mut *stage.db().await, worker, Queue::Ops, &["act"], &[job], false).await.unwrap();
        let (at, why) = (ledger::Again::After(SOON), Why::new("budget", "there is none"));
        let end = ledger::End::Again { at, charged: false, class: "parked", why, wake: Some("budget:y".into()) };
        ledger::settle(&stage.app.pool, &[ledger::Settlement { job, run: claims[0].run, end }]).await.unwrap();
        ledger::sweep_wakes(&stage.app.pool).await.unwrap();
    };
    park().await;
    assert!(stage.row(job).await.parked);
    for _ in 0..2 {
        stage.engine.wake(&mut db, "budget:y").await.unwrap();
        assert!(!stage.row(job).await.parked);
        // It finds nothing all the same, within a moment of the event.
        park().await;
        assert!(stage.row(job).await.parked, "it had been woken by that event already");
    }
}

#[tokio::test]
async fn a_snooze_uses_no_attempt_and_keeps_its_time() {
    let stage = Stage::new().await;
    let _worker = stage.worker(2).await;
    let mut job = stage.job(Act { first: Some(vec![Step::SnoozeMs(800)]), ..Act::default() });
    job.max_attempts = 1;
    let job = stage.enqueue(job).await;
    let row = stage.ended(job, SOON).await;
    assert_eq!((row.state, row.run, row.attempt), (State::Succeeded, 2, 0));
    assert!(row.claimed_at.unwrap() - row.created_at >= chrono::TimeDelta::milliseconds(800));
}

#[tokio::test]
async fn a_stopping_worker_lets_short_jobs_finish_and_hands_long_ones_back_at_no_cost() {
    let stage = Stage::new().await;
    let mut env = stage.app.env().to_vec();
    env.push(("WORKER_GRACE_SECONDS".into(), "2".into()));
    let mut first = stage.worker_in(&env).await;
    let short = stage.enqueue(stage.steps([Step::Tell("begins".into()), Step::SleepMs(900)])).await;
    let long = [Step::Tell("begins".into()), Step::Checkpoint(json!({ "done": 7 })), Step::SleepMs(60_000)];
    let rest = [Step::Checkpoint(json!({ "done": 9 })), Step::Tell("done".into())];
    let mut long = stage.job(Act { first: Some(long.to_vec()), ..Act::of(rest) });
    long.max_attempts = 1;
    let long = stage.enqueue(long).await;
    stage.witness.heard(long, "kept:nothing", SOON).await;
    stage.witness.heard(short, "begins", SOON).await;

    let asked = Instant::now();
    let status = first.program.stop(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(6), "it took {:?} to stop", asked.elapsed());
    assert_eq!(stage.state(short).await, State::Succeeded);
    let back = stage.row(long).await;
    assert_eq!((back.state, back.attempt, back.handbacks, back.crashes), (State::Queued, 0, 1, 0));
    assert!(!back.suspect);
    let said: String = sqlx::query_scalar("select state from workers where id = $1")
        .bind(first.id)
        .fetch_one(&stage.app.pool)
        .await
        .unwrap();
    assert_eq!(said, "stopped");

    // The next worker goes on where the first one was, without waiting for a lease.
    let handed_back = Instant::now();
    let _second = stage.worker(2).await;
    stage.all_succeed(&[long], SOON).await;
    assert_eq!(stage.witness.count(long, "kept:{\"done\":7}"), 1);
    assert!(handed_back.elapsed() < Duration::from_secs(8), "it took {:?}", handed_back.elapsed());
    assert_eq!(stage.attempts(long).await[0].0, "handed_back");
}

#[tokio::test]
async fn a_run_that_has_lost_its_job_cannot_move_the_checkpoint() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = super::stage::paper_worker(&mut db, Duration::from_secs(60)).await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let claim =
        async || ledger::claim(&mut *stage.db().await, worker, Queue::Ops, &["act"], &[job], false).await.unwrap();
    let first = claim().await[0].run;
    let end = ledger::End::HandedBack { why: Why::new("x", "x") };
    ledger::settle(&mut *db, &[ledger::Settlement { job, run: first, end }]).await.unwrap();
    let second = claim().await[0].run;
    assert!(!ledger::save_checkpoint(&mut *db, job, first, worker, &json!("old")).await.unwrap());
    assert!(ledger::save_checkpoint(&mut *db, job, second, worker, &json!("new")).await.unwrap());
}
