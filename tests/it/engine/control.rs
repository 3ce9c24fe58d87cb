//! What people ask of jobs and queues: cancel, retry, pause, resume; and what pausing may never do (E14).

use std::time::{Duration, Instant};

use multivio::{
    ids::TenantId,
    jobs::{Lane, Priority, Queue, State, ledger, ledger::CancelOutcome},
};

use super::{Act, ActWebhooks, Stage, Step};
use crate::harness::wait_until;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_job_that_waits_is_cancelled_at_once_and_never_runs() {
    let stage = Stage::new().await;
    let later = stage.enqueue(stage.steps([Step::Tell("ran".into())]).run_at(chrono::Utc::now() + SOON)).await;
    let queued = stage.enqueue(stage.steps([Step::Tell("ran".into())])).await;
    for job in [later, queued] {
        assert_eq!(stage.cancel(job).await, CancelOutcome::Cancelled);
        assert_eq!(stage.state(job).await, State::Cancelled);
    }
    let _worker = stage.worker(1).await;
    stage.all_succeed(&[stage.enqueue(stage.job(Act::default())).await], SOON).await;
    assert!(stage.witness.all().is_empty());
}

#[tokio::test]
async fn a_running_job_stops_within_a_second_of_being_cancelled() {
    let stage = Stage::new().await;
    let _worker = stage.worker(2).await;
    let steps = [Step::Tell("started".into()), Step::SleepMs(30_000), Step::Tell("finished".into())];
    let job = stage.enqueue(stage.steps(steps)).await;
    stage.witness.heard(job, "started", SOON).await;

    let asked = Instant::now();
    assert_eq!(stage.cancel(job).await, CancelOutcome::Requested);
    let row = stage.ended(job, SOON).await;
    // Half of it is allowed to a busy machine.
    assert!(asked.elapsed() < Duration::from_millis(1_500), "it took {:?}", asked.elapsed());
    assert_eq!((row.state, row.why.unwrap().code.as_str()), (State::Cancelled, "cancelled"));
    assert_eq!(stage.witness.count(job, "finished"), 0);
    assert_eq!(stage.cancel(job).await, CancelOutcome::TooLate(State::Cancelled));
}

#[tokio::test]
async fn a_cancelled_job_that_wants_to_try_again_does_not() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = super::stage::paper_worker(&mut db, Duration::from_secs(60)).await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let claims = ledger::claim(&mut db, worker, Queue::Ops, &["act"], &[job], false).await.unwrap();
    stage.cancel(job).await;
    let why = multivio::jobs::Why::new("later", "later");
    let at = ledger::Again::After(Duration::ZERO);
    let end = ledger::End::Again { at, charged: true, class: "retry", why, wake: None };
    let settlement = ledger::Settlement { job, run: claims[0].run, end };
    ledger::settle(&mut *db, &[settlement]).await.unwrap();
    assert_eq!(stage.state(job).await, State::Cancelled);
}

#[tokio::test]
async fn nobody_cancels_or_retries_what_is_another_tenants() {
    let stage = Stage::new().await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let stranger = Some(TenantId::new());
    let mut db = stage.db().await;
    assert_eq!(ledger::cancel(&mut db, stranger, job, "somebody").await.unwrap(), CancelOutcome::NotFound);
    assert!(stage.engine.job(stranger, job).await.unwrap().is_none());
    stage.cancel(job).await;
    assert!(ledger::request_retry(&mut *db, stranger, job, "somebody").await.unwrap().is_none());
    assert_eq!(stage.state(job).await, State::Cancelled);
}

#[tokio::test]
async fn a_failed_job_is_retried_with_all_its_attempts() {
    let stage = Stage::new().await;
    let _worker = stage.worker(2).await;
    let act = Act { first: Some(vec![Step::Fail("refused".into())]), ..Act::of([Step::Tell("again".into())]) };
    let job = stage.enqueue(stage.job(act)).await;
    let failed = stage.ended(job, SOON).await;
    assert_eq!((failed.state, failed.attempt), (State::Failed, 1));
    assert!(stage.retry(job).await);
    let row = stage.once(job, SOON, "it to succeed", |row| row.state == State::Succeeded).await;
    assert_eq!((row.attempt, row.run), (0, 2));
    assert!(!stage.retry(job).await, "a job that succeeded is not run again");
}

#[tokio::test]
async fn many_failed_jobs_are_retried_at_once_and_those_of_other_kinds_are_not() {
    let stage = Stage::new().await;
    let _worker = stage.worker(8).await;
    let act = || Act { first: Some(vec![Step::Fail("refused".into())]), ..Act::default() };
    let jobs: Vec<_> = (0..50).map(|_| stage.job(act())).collect();
    let ids = stage.enqueue_all(&jobs).await;
    let other = multivio::jobs::NewJob::of(&ActWebhooks(stage.witnessed(act())), stage.app.tenant);
    let other = stage.enqueue(other).await;
    wait_until(SOON, "all to fail", || async { stage.count(State::Failed).await == 51 }).await;
    assert_eq!(stage.engine.retry_failed(Queue::Ops, Some("act"), 30, "operator").await.unwrap(), 30);
    assert_eq!(stage.engine.retry_failed(Queue::Ops, Some("act"), 30, "operator").await.unwrap(), 20);
    for id in ids {
        stage.once(id, SOON, "it to succeed", |row| row.state == State::Succeeded).await;
    }
    assert_eq!(stage.state(other).await, State::Failed);
}

#[tokio::test]
async fn of_failed_jobs_with_one_unique_key_a_bulk_retry_runs_one() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let failing = || stage.job(Act { first: Some(vec![Step::Fail("no".into())]), ..Act::of([Step::SleepMs(300)]) });
    let mut with_key = Vec::new();
    for _ in 0..3 {
        let job = stage.enqueue(failing().unique("same")).await;
        stage.ended(job, SOON).await;
        with_key.push(job);
    }
    let without = stage.enqueue(failing()).await;
    stage.ended(without, SOON).await;
    assert_eq!(stage.engine.retry_failed(Queue::Ops, None, 100, "operator").await.unwrap(), 2);
    stage.once(without, SOON, "it to succeed", |row| row.state == State::Succeeded).await;
    wait_until(SOON, "one of the three to succeed", || async { stage.count(State::Succeeded).await == 2 }).await;
    assert_eq!(stage.count(State::Failed).await, 2);
}

#[tokio::test]
async fn a_bulk_retry_goes_in_steps_and_retries_none_twice() {
    let stage = Stage::new().await;
    let jobs: Vec<_> = (0..1_205).map(|_| stage.job(Act::default())).collect();
    stage.enqueue_all(&jobs).await;
    sqlx::query("update jobs set state = 'failed', finished_at = now()").execute(&stage.app.pool).await.unwrap();
    assert_eq!(stage.engine.retry_failed(Queue::Ops, None, 5_000, "operator").await.unwrap(), 1_205);
    assert_eq!(stage.engine.retry_failed(Queue::Ops, None, 5_000, "operator").await.unwrap(), 0);
}

#[tokio::test]
async fn a_job_whose_priority_is_raised_goes_before_those_that_were_before_it() {
    let stage = Stage::new().await;
    let jobs: Vec<_> = (0..40).map(|n| stage.steps([Step::Tell(n.to_string()), Step::SleepMs(20)])).collect();
    let ids = stage.enqueue_all(&jobs).await;
    let stranger = Some(TenantId::new());
    let mut db = stage.db().await;
    let strangers = ledger::set_priority(&mut *db, stranger, ids[39], Priority::High, "somebody").await;
    assert!(strangers.unwrap().is_none());
    assert!(stage.set_priority(ids[39], Priority::High).await);
    let _worker = stage.worker(1).await;
    stage.all_succeed(&ids, SOON).await;
    let place = stage.witness.words().iter().position(|word| word == "39").unwrap();
    assert!(place < 20, "it was number {place} of 40");
    assert!(!stage.set_priority(ids[39], Priority::Low).await, "it has ended");
}

#[tokio::test]
async fn the_age_of_a_queue_is_that_of_its_oldest_job_whosever_it_is() {
    let stage = Stage::new().await;
    // Among more jobs of one tenant than anybody would look at, and after them in every order but that of time.
    let (first, last) = (TenantId::SYSTEM, stage.app.tenant);
    let mut jobs: Vec<_> = (0..1_500).map(|_| stage.job_of(first, Act::default())).collect();
    jobs.push(stage.job_of(last, Act::default()).priority(Priority::Low));
    stage.enqueue_all(&jobs).await;
    let age = "update jobs set queued_at = queued_at - interval '1 hour' where tenant_id = $1";
    sqlx::query(age).bind(last).execute(&stage.app.pool).await.unwrap();
    let depth = ledger::depth(&stage.app.pool, Queue::Ops, Lane::Default).await.unwrap();
    assert!(depth.oldest_queued_ms.unwrap() >= 3_600_000, "{depth:?}");
}

#[tokio::test]
async fn a_paused_queue_starts_nothing_and_loses_nothing() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let busy = stage.enqueue(stage.steps([Step::Tell("busy".into()), Step::SleepMs(500)])).await;
    stage.witness.heard(busy, "busy", SOON).await;
    stage.engine.pause(Queue::Ops, "somebody").await.unwrap();
    let jobs: Vec<_> = (0..20).map(|_| stage.steps([Step::Tell("ran".into())])).collect();
    let ids = stage.enqueue_all(&jobs).await;
    // What runs goes on; what came meanwhile does not start, also after its id was popped (E14).
    stage.all_succeed(&[busy], SOON).await;
    wait_until(SOON, "the ids to be popped", || async { belt_length(&stage).await == 0 }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(stage.witness.words(), ["busy"]);
    assert_eq!(stage.count(State::Queued).await, 20);

    let resumed = Instant::now();
    assert!(stage.engine.resume(Queue::Ops).await.unwrap());
    stage.all_succeed(&ids, SOON).await;
    assert!(resumed.elapsed() < Duration::from_secs(3), "it took {:?} to go on", resumed.elapsed());
    assert!(!stage.engine.resume(Queue::Ops).await.unwrap());
}

async fn belt_length(stage: &Stage) -> usize {
    use multivio::jobs::{
        Lane, Priority,
        belt::{List, Slot},
    };
    let list = List { queue: Queue::Ops, lane: Lane::Default, slot: Slot::Priority(Priority::Normal) };
    stage.engine.belt().len(list).await.expect("Redis answers")
}

#[tokio::test]
async fn a_hanging_webhook_never_delays_a_token_refresh() {
    use super::ActTokens;
    use multivio::jobs::NewJob;
    let stage = Stage::new().await;
    let _worker = stage.worker(2).await;
    let slow = || ActWebhooks(stage.witnessed(Act::of([Step::Tell("hangs".into()), Step::SleepMs(20_000)])));
    let hanging: Vec<_> = (0..10).map(|_| NewJob::of(&slow(), stage.app.tenant)).collect();
    stage.enqueue_all(&hanging).await;
    let hang = || async { stage.witness.words().iter().filter(|what| *what == "hangs").count() == 2 };
    wait_until(SOON, "two webhooks to hang", hang).await;
    let refresh = ActTokens(stage.witnessed(Act::of([Step::Tell("refreshed".into())])));
    let asked = Instant::now();
    let refresh = stage.enqueue(NewJob::of(&refresh, stage.app.tenant)).await;
    let heard = stage.witness.heard(refresh, "refreshed", SOON).await;
    assert!(heard.at - asked < Duration::from_secs(1), "it waited {:?}", heard.at - asked);
}
