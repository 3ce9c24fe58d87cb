//! Serial orders (P6): one after another, the head first, and nobody held by one that only waits.

use std::time::Duration;

use multivio::jobs::{NewJob, OnParent, State};

use super::{Act, Stage, Step};
use crate::harness::wait_until;

const SOON: Duration = Duration::from_secs(20);

fn told(stage: &Stage, what: &str) -> NewJob {
    let (begin, end) = (format!("{what} begins"), format!("{what} ends"));
    stage.steps([Step::Tell(begin), Step::SleepMs(60), Step::Tell(end)])
}

#[tokio::test]
async fn jobs_of_one_order_run_one_after_another_by_due_time_then_creation() {
    let stage = Stage::new().await;
    let now = chrono::Utc::now();
    let due = |seconds_ago: u64| now - Duration::from_secs(seconds_ago);
    // Created in another order than they are due.
    let jobs = [
        told(&stage, "c").run_at(due(10)).serial("lane"),
        told(&stage, "a").run_at(due(30)).serial("lane"),
        told(&stage, "d").run_at(due(10)).serial("lane"),
        told(&stage, "b").run_at(due(20)).serial("lane"),
        told(&stage, "x").run_at(due(5)).serial("another lane"),
    ];
    let ids = stage.enqueue_all(&jobs).await;
    let (_one, _two) = (stage.worker(8).await, stage.worker(8).await);
    stage.all_succeed(&ids, SOON).await;
    let mut words = stage.witness.words();
    words.retain(|word| !word.starts_with('x'));
    let in_turn = ["a", "b", "c", "d"].map(|name| [format!("{name} begins"), format!("{name} ends")]).concat();
    assert_eq!(words, in_turn);
}

#[tokio::test]
async fn two_leaders_at_once_never_run_two_of_one_order() {
    let stage = Stage::new().await;
    let jobs: Vec<NewJob> =
        (0..40).map(|n| stage.steps([Step::SleepMs(1)]).serial(format!("lane {}", n % 4))).collect();
    stage.enqueue_all(&jobs).await;
    let mut db = stage.db().await;
    let worker = super::stage::paper_worker(&mut db, Duration::from_secs(60)).await;
    for _ in 0..60 {
        let promote = || multivio::jobs::ledger::promote_serial(&stage.app.pool, 100);
        let (one, other) = tokio::join!(promote(), promote());
        // One of them may meet the index that guards the order; what it may not do is pass it.
        for outcome in [one, other] {
            if let Err(error) = outcome {
                assert!(error.as_database_error().is_some_and(|refusal| refusal.is_unique_violation()), "{error}");
            }
        }
        let doubled: i64 = sqlx::query_scalar(
            "select count(*) from (select serial_key from jobs where state in ('queued', 'running') \
             group by serial_key having count(*) > 1) d",
        )
        .fetch_one(&mut *db)
        .await
        .unwrap();
        assert_eq!(doubled, 0);
        settle_queued(&stage, worker).await;
    }
    assert_eq!(stage.count(State::Succeeded).await, 40);
}

async fn settle_queued(stage: &Stage, worker: multivio::ids::WorkerId) {
    use multivio::jobs::{Lane, Queue, ledger};
    let mut db = stage.db().await;
    let claims =
        ledger::claim_from_ledger(&mut *db, worker, Queue::Ops, Lane::Default, &["act"], false, 100).await.unwrap();
    let done: Vec<_> = claims.iter().map(|claim| (claim.job, claim.run, &serde_json::Value::Null)).collect();
    ledger::settle_succeeded(&mut db, &done).await.unwrap();
}

#[tokio::test]
async fn a_predecessor_that_is_parked_frees_its_order_and_takes_its_place_again_when_it_wakes() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let park = Step::Park { wake: "connection:c".into(), deadline_ms: 600_000 };
    let parked = Act { first: Some(vec![park]), ..Act::of([Step::Tell("parked".into())]) };
    let parked = stage.enqueue(stage.job(parked).serial("lane")).await;
    stage.once(parked, SOON, "it to be parked", |row| row.parked).await;
    let next = stage.enqueue(told(&stage, "next").serial("lane")).await;
    stage.all_succeed(&[next], SOON).await;
    assert_eq!(stage.state(parked).await, State::Scheduled);
    stage.engine.wake(&mut *stage.db().await, "connection:c").await.unwrap();
    stage.all_succeed(&[parked], SOON).await;
}

#[tokio::test]
async fn one_that_backs_off_holds_its_followers_until_their_own_patience_ends() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let backing_off = Act { first: Some(vec![Step::SnoozeMs(60_000)]), ..Act::default() };
    let first = stage.enqueue(stage.job(backing_off).serial("lane")).await;
    stage.once(first, SOON, "it to back off", |row| row.run == 1 && row.state == State::Scheduled).await;
    let patient = stage.enqueue(told(&stage, "patient").serial("lane")).await;
    let hasty = told(&stage, "hasty").serial("lane").serial_patience(Duration::from_secs(1));
    let hasty = stage.enqueue(hasty).await;
    let row = stage.ended(hasty, SOON).await;
    let held = row.claimed_at.unwrap() - row.due_at;
    assert!(held >= chrono::TimeDelta::seconds(1), "it was held only {held}");
    assert!(held < chrono::TimeDelta::seconds(5), "it was held {held}");
    assert_eq!((stage.state(first).await, stage.state(patient).await), (State::Scheduled, State::Scheduled));
    // Nothing is lost: as soon as the first is out of the way, the patient one goes.
    stage.cancel(first).await;
    stage.all_succeed(&[patient], SOON).await;
}

#[tokio::test]
async fn each_end_of_a_job_frees_its_order() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let ends = [
        stage.steps([Step::Fail("refused".into())]),
        stage.steps([Step::Panic("oh".into())]),
        stage.steps([Step::Tell("cancel me".into()), Step::SleepMs(60_000)]),
        stage.steps([Step::Return(serde_json::json!(1))]),
    ];
    let mut ids = Vec::new();
    for mut job in ends {
        job.max_attempts = 1;
        ids.push(stage.enqueue(job.serial("lane")).await);
    }
    let last = stage.enqueue(told(&stage, "last").serial("lane")).await;
    stage.witness.heard(ids[2], "cancel me", SOON).await;
    stage.cancel(ids[2]).await;
    stage.all_succeed(&[last], SOON).await;
    wait_until(SOON, "all to have ended", || async { stage.count(State::Scheduled).await == 0 }).await;
    let words = stage.witness.words();
    assert_eq!(words, ["cancel me", "last begins", "last ends"]);
}

/// A child that is due before its parent would hold the parent it waits for, over one order or over two.
#[tokio::test]
async fn a_job_stands_behind_what_it_waits_for_so_that_nothing_waits_in_a_circle() {
    let stage = Stage::new().await;
    let soon = chrono::Utc::now() + Duration::from_millis(500);
    let last = |serial: &str| told(&stage, serial).run_at(soon).serial(serial);
    let parents = stage.enqueue_all(&[last("lane"), last("one"), last("other")]).await;
    let first =
        |parent: usize, serial: &str| told(&stage, serial).after(parents[parent], OnParent::Cancel).serial(serial);
    let between = stage.enqueue(stage.steps([]).after(parents[0], OnParent::Cancel)).await;
    let mut jobs = stage.enqueue_all(&[first(0, "lane"), first(1, "other"), first(2, "one")]).await;
    jobs.push(stage.enqueue(told(&stage, "lane").after(between, OnParent::Cancel).serial("lane")).await);
    let _worker = stage.worker(4).await;
    jobs.extend(&parents);
    stage.all_succeed(&jobs, SOON).await;
}
