//! Into the ledger: with the caller's rows or not at all, many in one commit, each answered for itself.

use std::{collections::HashSet, time::Duration};

use multivio::{
    ids::{JobId, TenantId},
    jobs::{EnqueueError, NewJob, Priority, Queue, State, ledger, noop::Noop},
};
use serde_json::{json, value::to_raw_value};

use super::{Act, Stage, Step};

const SOON: Duration = Duration::from_secs(20);

fn noop(tenant: TenantId) -> NewJob {
    NewJob::of(&Noop { payload: String::new() }, tenant)
}

#[tokio::test]
async fn a_job_exists_if_and_only_if_the_callers_rows_do() {
    let stage = Stage::new().await;
    let (lost, kept) = (stage.steps([Step::Tell("ran".into())]), stage.steps([Step::Tell("ran".into())]));

    let mut tx = stage.app.pool.begin().await.unwrap();
    let group = stage.engine.new_group(&mut tx, stage.app.tenant, "rolled back").await.unwrap();
    let tickets = stage.engine.enqueue_in(&mut tx, std::slice::from_ref(&lost)).await.unwrap();
    tx.rollback().await.unwrap();
    // A caller that rings all the same does no harm: an id only says "look".
    stage.engine.ring(&tickets).await;
    assert!(stage.engine.group(stage.app.tenant, group).await.unwrap().is_none());

    stage.enqueue_all(std::slice::from_ref(&kept)).await;
    let _worker = stage.worker(2).await;
    stage.all_succeed(&[kept.id], SOON).await;
    assert!(stage.engine.job(None, lost.id).await.unwrap().is_none());
    assert_eq!(stage.witness.all().len(), 1);
}

#[tokio::test]
async fn jobs_enqueued_at_the_same_moment_share_commits() {
    let stage = Stage::new().await;
    let calls = (0..500).map(|_| stage.engine.enqueue(noop(stage.app.tenant)));
    for outcome in futures::future::join_all(calls).await {
        outcome.unwrap();
    }
    let (jobs, commits): (i64, i64) = sqlx::query_as("select count(*), count(distinct xmin::text) from jobs")
        .fetch_one(&stage.app.pool)
        .await
        .unwrap();
    assert_eq!(jobs, 500);
    assert!(commits <= 50, "{commits} commits for 500 jobs");
}

#[tokio::test]
async fn one_of_many_with_the_same_unique_key_enters_and_the_others_learn_which() {
    let stage = Stage::new().await;
    let same = || stage.engine.enqueue(noop(stage.app.tenant).unique("the one"));
    let (mut entered, mut pointed_at) = (Vec::new(), HashSet::new());
    for outcome in futures::future::join_all((0..50).map(|_| same())).await {
        match outcome {
            Ok(job) => entered.push(job),
            Err(EnqueueError::Duplicate { existing }) => assert!(pointed_at.insert(existing) || pointed_at.len() == 1),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(entered.len(), 1);
    assert_eq!(pointed_at, HashSet::from([entered[0]]));

    // Another tenant's key is another key, and an ended job gives its key back.
    stage.engine.enqueue(noop(TenantId::new()).unique("the one")).await.unwrap();
    stage.cancel(entered[0]).await;
    assert_ne!(same().await.unwrap(), entered[0]);
}

#[tokio::test]
async fn the_same_unique_key_twice_in_one_batch_is_one_job_and_no_error() {
    let stage = Stage::new().await;
    let jobs = [noop(stage.app.tenant).unique("twice"), noop(stage.app.tenant).unique("twice")];
    let rows: Vec<_> = jobs.iter().map(|job| ledger::Insert { job, pushed: false, open_parents: 0 }).collect();
    let entered = ledger::insert(&mut *stage.db().await, &rows).await.unwrap();
    assert_eq!(entered, [(jobs[0].id, State::Queued)]);
}

#[tokio::test]
async fn two_processes_that_enqueue_the_same_keys_in_other_orders_never_deadlock() {
    let stage = Stage::new().await;
    let other = {
        let belt = multivio::jobs::belt::Belt::new(&stage.app.config().redis, stage.app.pool.clone()).unwrap();
        multivio::jobs::Engine::new(stage.app.pool.clone(), stage.app.session(), belt)
    };
    for _ in 0..5 {
        let job = |key: i32| noop(stage.app.tenant).unique(key.to_string());
        let upward = futures::future::join_all((0..200).map(|key| stage.engine.enqueue(job(key))));
        let downward = futures::future::join_all((0..200).rev().map(|key| other.enqueue(job(key))));
        let (upward, downward) = tokio::join!(upward, downward);
        for outcome in upward.into_iter().chain(downward) {
            assert!(matches!(outcome, Ok(_) | Err(EnqueueError::Duplicate { .. })), "{outcome:?}");
        }
        assert_eq!(stage.count(State::Queued).await, 200);
        sqlx::query("delete from jobs").execute(&stage.app.pool).await.unwrap();
    }
}

#[tokio::test]
async fn a_job_that_cannot_be_stored_is_refused_alone_and_its_batch_enters() {
    let stage = Stage::new().await;
    let mut bad = noop(stage.app.tenant);
    bad.args = to_raw_value(&json!({ "payload": "a\0b" })).unwrap();
    let (bad_key, bad_id) = (noop(stage.app.tenant).unique("k\0"), bad.id);
    let mut jobs: Vec<NewJob> = (0..60).map(|_| noop(stage.app.tenant)).collect();
    let offenders = [bad_id, bad_key.id];
    jobs.insert(20, bad);
    jobs.insert(40, bad_key);
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    let outcomes = futures::future::join_all(jobs.into_iter().map(|job| stage.engine.enqueue(job))).await;
    for (id, outcome) in ids.into_iter().zip(outcomes) {
        match outcome {
            Ok(entered) => assert!(entered == id && !offenders.contains(&id)),
            Err(EnqueueError::Unstorable(why)) => assert!(offenders.contains(&id), "{id} was refused: {why}"),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(stage.count(State::Queued).await, 60);
}

#[tokio::test]
async fn arguments_too_long_are_refused_before_they_are_sent() {
    let stage = Stage::new().await;
    let mut job = noop(stage.app.tenant);
    job.args = to_raw_value(&"x".repeat(300 * 1024)).unwrap();
    let refused = stage.engine.enqueue(job).await.unwrap_err();
    assert!(matches!(&refused, EnqueueError::Unstorable(why) if why.contains("bytes")), "{refused}");
}

#[tokio::test]
async fn a_caller_that_goes_away_has_its_job_all_the_same() {
    let stage = Stage::new().await;
    let job = noop(stage.app.tenant);
    let id = job.id;
    let engine = stage.engine.clone();
    let call = tokio::spawn(async move { engine.enqueue(job).await });
    tokio::task::yield_now().await;
    call.abort();
    // Whether it came so far is a race; what may not be is a job that is written and never runs.
    let entered = call.await.is_ok() || stage.engine.job(None, id).await.unwrap().is_some();
    let _worker = stage.worker(1).await;
    if entered {
        stage.all_succeed(&[id], SOON).await;
    }
    stage.all_succeed(&[stage.enqueue(noop(stage.app.tenant)).await], SOON).await;
}

#[tokio::test]
async fn higher_priority_goes_first_and_lower_is_never_starved() {
    let stage = Stage::new().await;
    stage.engine.pause(Queue::Ops, "test").await.unwrap();
    let low = stage.enqueue(stage.steps([Step::Tell("low".into())]).priority(Priority::Low)).await;
    let job = |what: &str, priority| stage.steps([Step::Tell(what.into()), Step::SleepMs(20)]).priority(priority);
    let many: Vec<NewJob> = (0..300).map(|_| job("high", Priority::High)).collect();
    stage.enqueue_all(&many).await;
    let normal = stage.enqueue(stage.steps([Step::Tell("normal".into())])).await;
    let _worker = stage.worker(1).await;
    stage.engine.resume(Queue::Ops).await.unwrap();

    stage.witness.heard(low, "low", SOON).await;
    stage.witness.heard(normal, "normal", SOON).await;
    let words = stage.witness.words();
    assert!(words.iter().filter(|word| *word == "high").count() < 150, "low waited for nearly all of the high ones");
    assert_eq!(words[0], "high");
}

#[tokio::test]
async fn a_job_for_later_waits_for_its_time_by_the_servers_clock() {
    let stage = Stage::new().await;
    let now: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select now()").fetch_one(&stage.app.pool).await.unwrap();
    let due_at = now + Duration::from_millis(1_500);
    let job = stage.enqueue(stage.job(Act::default()).run_at(due_at)).await;
    let _worker = stage.worker(1).await;
    let row = stage.ended(job, SOON).await;
    let late = row.claimed_at.unwrap() - due_at;
    assert!(late >= chrono::TimeDelta::zero(), "it started {late} before it was due");
    assert!(late < chrono::TimeDelta::seconds(2), "it started {late} after it was due");
}
