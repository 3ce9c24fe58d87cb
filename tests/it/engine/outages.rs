//! Redis away, emptied, stopped or old (E5, E6, E7); Postgres away (E12). Each test ill-treats servers of its own.

use std::time::{Duration, Instant};

use multivio::{
    ids::JobId,
    jobs::{NewJob, Queue, State},
};

use super::{Act, Stage, Step};
use crate::harness::{Servers, wait_until};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

fn told(stage: &Stage, count: usize) -> Vec<NewJob> {
    (0..count).map(|_| stage.steps([Step::Tell("ran".into()), Step::SleepMs(30)])).collect()
}

async fn each_ran_once(stage: &Stage, jobs: &[JobId]) {
    stage.all_succeed(jobs, LONG).await;
    for job in jobs {
        assert_eq!(stage.witness.count(*job, "ran"), 1, "{job}");
    }
}

#[tokio::test]
async fn without_redis_jobs_run_from_the_ledger_and_due_ones_start_within_ten_seconds() {
    let servers = Servers::private().await;
    let stage = Stage::on(&servers).await;
    let _worker = stage.worker(2).await;
    // One slot is taken all along: others may not wait for its end.
    let long = stage.enqueue(stage.steps([Step::Tell("long".into()), Step::SleepMs(40_000)])).await;
    stage.witness.heard(long, "long", SOON).await;
    servers.control().await.redis.kill().await.unwrap();

    let due_at = chrono::Utc::now() + Duration::from_secs(1);
    let due = stage.enqueue(stage.steps([Step::Tell("ran".into())]).run_at(due_at)).await;
    let now = stage.enqueue_all(&told(&stage, 20)).await;
    let row = stage.ended(due, LONG).await;
    let late = row.claimed_at.unwrap() - due_at;
    assert!(late < chrono::TimeDelta::seconds(10), "it started {late} after it was due");
    each_ran_once(&stage, &now).await;
    // Whoever waits for a job hears of it without Redis too.
    let other = stage.enqueue(stage.job(Act::default())).await;
    let row = stage.engine.wait(None, other, Duration::from_secs(10)).await.unwrap().unwrap();
    assert_eq!(row.state, State::Succeeded);

    servers.control().await.redis.run().await.unwrap();
    let after = stage.enqueue_all(&told(&stage, 20)).await;
    each_ran_once(&stage, &after).await;
    assert_eq!(stage.state(long).await, State::Running);
    // Quick again: the belt is in use.
    wait_until(SOON, "the belt to be in use again", || async {
        let asked = Instant::now();
        let quick = stage.enqueue(stage.steps([Step::Tell("quick".into())])).await;
        stage.witness.heard(quick, "quick", SOON).await.at - asked < Duration::from_millis(250)
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_hangs_holds_nothing_up_for_long() {
    let servers = Servers::private().await;
    let stage = Stage::on(&servers).await;
    let _worker = stage.worker(4).await;
    stage.all_succeed(&[stage.enqueue(stage.job(Act::default())).await], SOON).await;
    servers.control().await.redis.pause().unwrap();
    let asked = Instant::now();
    let due = stage.steps([Step::Tell("ran".into())]).run_at(chrono::Utc::now() + Duration::from_secs(1));
    let jobs = [stage.enqueue(due).await, stage.enqueue(stage.steps([Step::Tell("ran".into())])).await];
    assert!(asked.elapsed() < Duration::from_secs(5), "enqueueing took {:?}", asked.elapsed());
    each_ran_once(&stage, &jobs).await;
    assert!(asked.elapsed() < Duration::from_secs(11), "it took {:?}", asked.elapsed());
    servers.control().await.redis.resume().unwrap();
    let after = stage.enqueue_all(&told(&stage, 10)).await;
    each_ran_once(&stage, &after).await;
}

#[tokio::test]
async fn an_emptied_redis_that_gets_new_ids_at_once_loses_no_old_ones() {
    let servers = Servers::private().await;
    let stage = Stage::on(&servers).await;
    let _worker = stage.worker(2).await;
    let before = stage.enqueue_all(&told(&stage, 150)).await;
    servers.control().await.redis.flush().await.unwrap();
    let after = stage.enqueue_all(&told(&stage, 30)).await;
    each_ran_once(&stage, &after).await;
    each_ran_once(&stage, &before).await;

    // And once more by a restart that keeps nothing.
    let before = stage.enqueue_all(&told(&stage, 150)).await;
    servers.control().await.redis.restart_empty().await.unwrap();
    let after = stage.enqueue_all(&told(&stage, 30)).await;
    each_ran_once(&stage, &after).await;
    each_ran_once(&stage, &before).await;
}

#[tokio::test]
async fn a_redis_that_comes_back_as_an_old_copy_neither_loses_nor_doubles() {
    let servers = Servers::private().await;
    let stage = Stage::on(&servers).await;
    let _worker = stage.worker(2).await;
    let old = stage.enqueue_all(&told(&stage, 60)).await;
    let copy = servers.control().await.redis.dump().await.unwrap();
    each_ran_once(&stage, &old).await;
    let new = stage.enqueue_all(&told(&stage, 60)).await;
    // The copy has the ids of jobs that are done, and none of those that wait; its epoch is the right one.
    servers.control().await.redis.restart_from(&copy).await.unwrap();
    each_ran_once(&stage, &new).await;
    each_ran_once(&stage, &old).await;
}

#[tokio::test]
async fn two_installations_on_one_redis_never_take_each_others_ids() {
    let (one, other) = (Stage::new().await, Stage::new().await);
    assert_ne!(one.engine.belt().prefix().await.unwrap(), other.engine.belt().prefix().await.unwrap());
    let theirs = other.enqueue_all(&told(&other, 20)).await;
    let _worker = one.worker(4).await;
    let ours = one.enqueue_all(&told(&one, 20)).await;
    each_ran_once(&one, &ours).await;
    assert_eq!(other.count(State::Queued).await, 20);
    let _worker = other.worker(4).await;
    each_ran_once(&other, &theirs).await;
}

#[tokio::test]
async fn workers_and_api_outlive_postgres_and_nobody_is_reaped_falsely() {
    let servers = Servers::private().await;
    let stage = Stage::on(&servers).await;
    let worker = stage.worker(4).await;
    let mut api = stage.app.api().await;
    let running = stage.steps([Step::Tell("ran".into()), Step::SleepMs(16_000)]);
    let running = stage.enqueue(running).await;
    stage.witness.heard(running, "ran", SOON).await;
    let short = stage.enqueue(stage.steps([Step::Tell("ran".into()), Step::SleepMs(1_500)])).await;
    stage.witness.heard(short, "ran", SOON).await;

    // Claims commit asynchronously: the next commit that waits for the disk takes them with it.
    stage.enqueue(stage.job(Act::default()).run_at(chrono::Utc::now() + LONG * 60)).await;
    // Longer than a lease: when it is back, every lease is past.
    servers.control().await.postgres.kill().await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    servers.control().await.postgres.run().await.unwrap();

    let back = Instant::now();
    each_ran_once(&stage, &[short, running]).await;
    for job in [short, running] {
        let row = stage.row(job).await;
        assert_eq!((row.run, row.attempt, row.crashes), (1, 0, 0), "its lease was past, but it was at work");
    }
    let after = stage.enqueue_all(&told(&stage, 10)).await;
    each_ran_once(&stage, &after).await;
    assert!(back.elapsed() < Duration::from_secs(25), "it took {:?}", back.elapsed());
    assert_eq!(stage.pid_of(worker.id).await, worker.pid);
    assert!(!api.program.has_ended());
    let (status, _) = api.get("/health/ready").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_short_absence_of_postgres_costs_waiting_and_nothing_else() {
    let servers = Servers::private().await;
    let stage = Stage::on(&servers).await;
    let _worker = stage.worker(4).await;
    let jobs = stage.enqueue_all(&told(&stage, 100)).await;
    servers.control().await.postgres.restart().await.unwrap();
    stage.all_succeed(&jobs, LONG).await;
    let now = stage.enqueue_all(&told(&stage, 10)).await;
    each_ran_once(&stage, &now).await;
    // A claim or a completion commits asynchronously or was under way: it may run again, it may not get lost.
    let worst = jobs.iter().map(|job| stage.witness.count(*job, "ran")).max().unwrap();
    assert!(worst <= 2);
    stage.engine.pause(Queue::Ops, "the end").await.unwrap();
}
