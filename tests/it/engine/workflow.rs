//! Jobs that wait for jobs (E8), and groups.

use std::time::Duration;

use multivio::{
    ids::{JobId, WorkerId},
    jobs::{
        NewJob, OnParent, Queue, State, Why,
        ledger::{self, End, Settlement},
    },
};
use serde_json::{Value, json};

use super::{Act, Stage, Step, stage::paper_worker};
use crate::harness::wait_until;

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

/// Claims on paper, so that the test decides when each ends.
async fn claimed(stage: &Stage, worker: WorkerId, jobs: &[JobId]) -> Vec<(JobId, i32)> {
    let claims = ledger::claim(&mut *stage.db().await, worker, Queue::Ops, &["act"], jobs, false).await.unwrap();
    assert_eq!(claims.len(), jobs.len());
    claims.iter().map(|claim| (claim.job, claim.run)).collect()
}

fn success(pair: (JobId, i32)) -> (JobId, i32, &'static Value) {
    (pair.0, pair.1, &Value::Null)
}

#[tokio::test]
async fn a_child_runs_after_its_parents_and_sees_their_results() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let parents: Vec<_> = (0..3).map(|n| stage.steps([Step::SleepMs(100), Step::Return(json!(n))])).collect();
    let child = parents
        .iter()
        .fold(stage.steps([Step::ReturnParents]), |child, parent| child.after(parent.id, OnParent::Cancel));
    let mut all = parents.clone();
    all.push(child.clone());
    stage.enqueue_all(&all).await;
    assert_eq!(stage.state(child.id).await, State::Waiting);
    let row = stage.ended(child.id, SOON).await;
    assert_eq!(row.state, State::Succeeded, "{:?}", row.why);
    let mut results: Vec<i64> = serde_json::from_value(row.result.unwrap()).unwrap();
    results.sort_unstable();
    assert_eq!(results, [0, 1, 2]);
}

#[tokio::test]
async fn two_parents_that_finish_in_two_workers_at_once_free_their_child_once() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = paper_worker(&mut db, LONG).await;
    for round in 0..60 {
        let parents = [stage.job(Act::default()), stage.job(Act::default())];
        let child = stage.job(Act::default());
        let child = parents.iter().fold(child, |child, parent| child.after(parent.id, OnParent::Cancel));
        stage.enqueue_all(&[parents[0].clone(), parents[1].clone(), child.clone()]).await;
        let pairs = claimed(&stage, worker, &[parents[0].id, parents[1].id]).await;
        let (one, other) = ([success(pairs[0])], [success(pairs[1])]);
        let (mut db, mut another) = (stage.db().await, stage.db().await);
        let (one, other) =
            tokio::join!(ledger::settle_succeeded(&mut db, &one), ledger::settle_succeeded(&mut another, &other));
        let (one, other) = (one.unwrap(), other.unwrap());
        // One that met the child in the other's hand says so, and is asked again.
        let held_up = [one.held_up, other.held_up].concat();
        let again = ledger::release_children(&stage.app.pool, &held_up).await.unwrap();
        let freed = one.runnable.len() + other.runnable.len() + again.runnable.len();
        assert_eq!(freed, 1, "round {round}");
        let row = stage.row(child.id).await;
        assert_eq!((row.state, row.open_parents), (State::Queued, 0), "round {round}");
    }
}

#[tokio::test]
async fn a_session_that_holds_one_waiting_child_holds_up_no_other_end() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = paper_worker(&mut db, LONG).await;
    let (parent, other) = (stage.job(Act::default()), stage.job(Act::default()));
    let held = stage.job(Act::default()).after(parent.id, OnParent::Cancel);
    let free = stage.job(Act::default()).after(parent.id, OnParent::Cancel);
    stage.enqueue_all(&[parent.clone(), other.clone(), held.clone(), free.clone()]).await;
    let pairs = claimed(&stage, worker, &[parent.id, other.id]).await;
    let mut holder = stage.app.pool.begin().await.unwrap();
    sqlx::query("select from jobs where id = $1 for update").bind(held.id).execute(&mut *holder).await.unwrap();

    let batch = [success(pairs[0]), success(pairs[1])];
    let settling = ledger::settle_succeeded(&mut db, &batch);
    let freed = tokio::time::timeout(Duration::from_secs(2), settling).await.expect("it waits for no lock").unwrap();
    assert_eq!((freed.settled.len(), freed.runnable.len()), (2, 1));
    assert_eq!(freed.held_up, [parent.id]);
    assert_eq!((stage.state(free.id).await, stage.state(held.id).await), (State::Queued, State::Waiting));
    holder.rollback().await.unwrap();
    let freed = ledger::release_children(&mut *db, &freed.held_up).await.unwrap();
    assert_eq!((freed.runnable.len(), freed.held_up.len()), (1, 0));
    assert_eq!(stage.state(held.id).await, State::Queued);
}

#[tokio::test]
async fn a_retried_child_waits_again_for_the_parents_that_have_not_ended() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = paper_worker(&mut db, LONG).await;
    let (bad, slow) = (stage.job(Act::default()), stage.job(Act::default()));
    let child = stage.job(Act::default()).after(bad.id, OnParent::Cancel).after(slow.id, OnParent::Cancel);
    stage.enqueue_all(&[bad.clone(), slow.clone(), child.clone()]).await;
    let pairs = claimed(&stage, worker, &[bad.id, slow.id]).await;
    let end = End::Failed { why: Why::new("no", "no"), class: "permanent" };
    ledger::settle(&mut *db, &[Settlement { job: bad.id, run: pairs[0].1, end }]).await.unwrap();
    assert_eq!(stage.state(child.id).await, State::Cancelled);

    assert!(stage.retry(child.id).await);
    let row = stage.row(child.id).await;
    assert_eq!((row.state, row.open_parents), (State::Waiting, 1));
    let freed = ledger::settle_succeeded(&mut db, &[success(pairs[1])]).await.unwrap();
    assert_eq!(freed.runnable.len(), 1, "and runs after them, whatever the one that failed has come to");
    // With none left to wait for it is on its way at once.
    stage.cancel(child.id).await;
    assert!(stage.retry(child.id).await);
    assert_eq!(stage.row(child.id).await.open_parents, 0);
    assert_ne!(stage.state(child.id).await, State::Waiting);
}

#[tokio::test]
async fn children_that_are_retried_in_bulk_wait_again_for_the_parents_that_have_not_ended() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = paper_worker(&mut db, LONG).await;
    let fail = async |pairs: &[(JobId, i32)]| {
        let end = |pair: &(JobId, i32)| {
            let end = End::Failed { why: Why::new("no", "no"), class: "permanent" };
            Settlement { job: pair.0, run: pair.1, end }
        };
        let ends: Vec<_> = pairs.iter().map(end).collect();
        ledger::settle(&stage.app.pool, &ends).await.unwrap();
    };
    // Whose first parent failed and was retried; whose only parent is retried with it; who waits for nobody.
    let (early, with) = (stage.job(Act::default()), stage.job(Act::default()));
    let after_early = stage.job(Act::default()).after(early.id, OnParent::Run);
    let after_with = stage.job(Act::default()).after(with.id, OnParent::Run);
    let free = stage.job(Act::default());
    let all = [&early, &with, &after_early, &after_with, &free];
    stage.enqueue_all(&all.map(Clone::clone)).await;
    fail(&claimed(&stage, worker, &[early.id, with.id, free.id]).await).await;
    fail(&claimed(&stage, worker, &[after_early.id, after_with.id]).await).await;
    for job in all {
        assert_eq!(stage.state(job.id).await, State::Failed);
    }
    assert!(stage.retry(early.id).await);

    assert_eq!(stage.engine.retry_failed(Queue::Ops, None, 100, "operator").await.unwrap(), 4);
    for child in [after_early.id, after_with.id] {
        let row = stage.row(child).await;
        assert_eq!((row.state, row.open_parents), (State::Waiting, 1));
    }
    assert_eq!((stage.row(with.id).await.open_parents, stage.state(with.id).await), (0, State::Scheduled));
    assert_eq!(stage.state(free.id).await, State::Scheduled);
    // And they run after them.
    ledger::promote_due(&mut *db, 10, true).await.unwrap();
    let pairs = claimed(&stage, worker, &[early.id, with.id]).await;
    let freed = ledger::settle_succeeded(&mut db, &[success(pairs[0]), success(pairs[1])]).await.unwrap();
    assert_eq!(freed.runnable.len(), 2);
    for child in [after_early.id, after_with.id] {
        assert_eq!((stage.row(child).await.open_parents, stage.state(child).await), (0, State::Queued));
    }
}

#[tokio::test]
async fn a_group_larger_than_its_page_has_ended_only_when_all_have() {
    let stage = Stage::new().await;
    let mut tx = stage.app.pool.begin().await.unwrap();
    let group = stage.engine.new_group(&mut tx, stage.app.tenant, "many").await.unwrap();
    tx.commit().await.unwrap();
    let jobs: Vec<NewJob> = (0..1_002).map(|_| stage.job(Act::default()).group(group)).collect();
    let ids = stage.enqueue_all(&jobs).await;
    sqlx::query("update jobs set state = 'succeeded', finished_at = now() where group_id = $1 and id <> $2")
        .bind(group)
        .bind(ids.iter().max().unwrap())
        .execute(&stage.app.pool)
        .await
        .unwrap();
    let status = stage.engine.group(stage.app.tenant, group).await.unwrap().unwrap();
    assert_eq!((status.state(), status.ended(), status.total()), (State::Queued, 1_001, 1_002));
    assert_eq!(status.jobs.len(), 1_000);
}

#[tokio::test]
async fn parents_that_finish_in_one_batch_lower_their_child_by_their_number() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = paper_worker(&mut db, LONG).await;
    let parents: Vec<NewJob> = (0..5).map(|_| stage.job(Act::default())).collect();
    let child = stage.job(Act::default());
    let child = parents.iter().fold(child, |child, parent| child.after(parent.id, OnParent::Run));
    stage.enqueue_all(&parents).await;
    stage.enqueue(child.clone()).await;
    let ids: Vec<JobId> = parents.iter().map(|parent| parent.id).collect();
    let pairs = claimed(&stage, worker, &ids).await;
    ledger::settle_succeeded(&mut db, &[success(pairs[0]), success(pairs[1])]).await.unwrap();
    assert_eq!(stage.row(child.id).await.open_parents, 3);
    // The rest in one batch of mixed ends; the same end told twice counts once.
    let failed = |pair: (JobId, i32)| {
        let end = End::Failed { why: Why::new("no", "no"), class: "permanent" };
        Settlement { job: pair.0, run: pair.1, end }
    };
    ledger::settle(&mut *db, &[failed(pairs[2])]).await.unwrap();
    ledger::settle(&mut *db, &[failed(pairs[2])]).await.unwrap();
    assert_eq!(stage.row(child.id).await.open_parents, 2);
    let freed = ledger::settle_succeeded(&mut db, &[success(pairs[3]), success(pairs[4])]).await.unwrap();
    assert_eq!(freed.runnable.len(), 1);
    assert_eq!(stage.state(child.id).await, State::Queued);
}

#[tokio::test]
async fn a_child_added_while_its_parent_finishes_is_never_left_waiting() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = paper_worker(&mut db, LONG).await;
    for round in 0..60 {
        let parent = stage.enqueue(stage.job(Act::default())).await;
        let pairs = claimed(&stage, worker, &[parent]).await;
        let child = stage.job(Act::default()).after(parent, OnParent::Cancel);
        let mut settling = stage.db().await;
        let end = async {
            // What the completion does with a row that somebody else holds: it tries again.
            while ledger::settle_succeeded(&mut settling, &[success(pairs[0])]).await.unwrap().settled.is_empty() {}
        };
        let (added, ()) = tokio::join!(stage.engine.enqueue(child.clone()), end);
        added.unwrap();
        // Where the two statements did not see each other, the relay's next sweep sees both.
        ledger::sweep_waiting(&mut *db, None, 10).await.unwrap();
        let row = stage.row(child.id).await;
        assert!(matches!(row.state, State::Queued | State::Scheduled), "round {round}: {}", row.state);
        assert_eq!(row.open_parents, 0, "round {round}");
    }
}

#[tokio::test]
async fn an_edge_says_what_a_parent_that_failed_was_cancelled_or_is_gone_means() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = paper_worker(&mut db, LONG).await;
    let fail = async |parent: JobId| {
        let pair = claimed(&stage, worker, &[parent]).await[0];
        let end = End::Failed { why: Why::new("no", "no"), class: "permanent" };
        ledger::settle(&stage.app.pool, &[Settlement { job: pair.0, run: pair.1, end }]).await.unwrap();
    };
    let before = async |on_parent| {
        let parent = stage.enqueue(stage.job(Act::default())).await;
        let child = stage.enqueue(stage.job(Act::default()).after(parent, on_parent)).await;
        (parent, child)
    };
    // The child first, then the parent's end.
    let (parent, child) = before(OnParent::Cancel).await;
    fail(parent).await;
    assert_eq!(stage.row(child).await.why.unwrap().code, "parent_ended");
    let (parent, child) = before(OnParent::Run).await;
    fail(parent).await;
    assert_eq!(stage.state(child).await, State::Queued);
    let (parent, child) = before(OnParent::Cancel).await;
    stage.cancel(parent).await;
    assert_eq!(stage.state(child).await, State::Cancelled);
    let (parent, child) = before(OnParent::Run).await;
    stage.cancel(parent).await;
    assert_eq!(stage.state(child).await, State::Queued);

    // The parent's end first, then the child: the same.
    let failed = stage.enqueue(stage.job(Act::default())).await;
    fail(failed).await;
    let gone = JobId::new();
    for parent in [failed, gone] {
        let cancelled = stage.enqueue(stage.job(Act::default()).after(parent, OnParent::Cancel)).await;
        assert_eq!(stage.state(cancelled).await, State::Cancelled, "after {parent}");
        let runs = stage.enqueue(stage.job(Act::default()).after(parent, OnParent::Run)).await;
        assert_eq!(stage.state(runs).await, State::Queued, "after {parent}");
    }
    // One that counts on several is not saved by those that succeed.
    let good = stage.enqueue(stage.job(Act::default())).await;
    let child = stage.job(Act::default()).after(good, OnParent::Run).after(failed, OnParent::Cancel);
    assert_eq!(stage.state(stage.enqueue(child).await).await, State::Cancelled);
}

#[tokio::test]
async fn a_cancelled_parent_takes_a_whole_chain_with_it() {
    let stage = Stage::new().await;
    let first = stage.enqueue(stage.job(Act::default())).await;
    let mut chain = vec![first];
    for _ in 0..4 {
        let next = stage.job(Act::default()).after(*chain.last().unwrap(), OnParent::Cancel);
        chain.push(stage.enqueue(next).await);
    }
    stage.cancel(first).await;
    for job in chain {
        assert_eq!(stage.state(job).await, State::Cancelled);
    }
}

#[tokio::test]
async fn a_child_that_a_crash_between_two_statements_left_waiting_is_found() {
    let stage = Stage::new().await;
    let _worker = stage.worker(2).await;
    let parents = [stage.job(Act::default()), stage.job(Act::default())];
    let children = [OnParent::Run, OnParent::Cancel]
        .map(|on_parent| stage.job(Act::default()).run_at(chrono::Utc::now()).after(parents[0].id, on_parent));
    // The parent was cancelled, and whoever did it died before it could release the children.
    let mut tx = stage.app.pool.begin().await.unwrap();
    stage.engine.enqueue_in(&mut tx, &[parents[0].clone(), children[0].clone(), children[1].clone()]).await.unwrap();
    ledger::cancel(&mut tx, None, parents[0].id, "operator").await.unwrap();
    tx.commit().await.unwrap();
    let row = stage.ended(children[0].id, SOON).await;
    assert_eq!(row.state, State::Succeeded);
    let row = stage.ended(children[1].id, SOON).await;
    assert_eq!((row.state, row.why.unwrap().code.as_str()), (State::Cancelled, "parent_ended"));
}

#[tokio::test]
async fn a_child_with_a_time_or_a_serial_order_keeps_it_when_its_parents_are_done() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let parent = stage.enqueue(stage.steps([Step::SleepMs(200)])).await;
    let later = chrono::Utc::now() + Duration::from_secs(60);
    let timed = stage.enqueue(stage.job(Act::default()).run_at(later).after(parent, OnParent::Cancel)).await;
    let serial = |what: &str| stage.steps([Step::Tell(what.into()), Step::SleepMs(100)]).serial("lane");
    let first = stage.enqueue(serial("first").after(parent, OnParent::Cancel)).await;
    let second = stage.enqueue(serial("second").after(parent, OnParent::Cancel)).await;
    stage.all_succeed(&[parent, first, second], SOON).await;
    assert_eq!(stage.witness.words(), ["first", "second"]);
    assert_eq!(stage.state(timed).await, State::Scheduled);
}

#[tokio::test]
async fn a_group_has_one_state_for_all_its_jobs() {
    let stage = Stage::new().await;
    let mut tx = stage.app.pool.begin().await.unwrap();
    let group = stage.engine.new_group(&mut tx, stage.app.tenant, "a release").await.unwrap();
    let good = stage.steps([Step::SleepMs(300)]).group(group);
    let bad = stage.steps([Step::Fail("refused".into())]).group(group);
    let tickets = stage.engine.enqueue_in(&mut tx, &[good, bad]).await.unwrap();
    tx.commit().await.unwrap();
    stage.engine.ring(&tickets).await;
    let state = async || stage.engine.group(stage.app.tenant, group).await.unwrap().unwrap().state();
    assert_eq!(state().await, State::Queued);
    let _worker = stage.worker(2).await;
    wait_until(SOON, "the group to fail, once all of it has ended", || async { state().await == State::Failed }).await;
    let status = stage.engine.group(stage.app.tenant, group).await.unwrap().unwrap();
    assert!(status.jobs.len() == 2 && status.jobs.iter().all(|job| job.state.is_final()));
}
