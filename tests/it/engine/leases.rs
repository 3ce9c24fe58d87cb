//! Leases and leadership: who is stopped, blocked or slow loses nothing it should keep and keeps nothing it should
//! lose (E3, E4, E12, E13).

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use multivio::{
    cli::jobs::steer,
    db::Session,
    ids::JobId,
    jobs::{
        Lane, NewJob, Priority, Queue, State,
        belt::{List, Slot},
        ledger,
    },
};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Act, Stage, Step, stage::paper_worker};
use crate::harness::{eventually, full_size, wait_until};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

async fn leader(stage: &Stage) -> (Uuid, i64) {
    eventually(SOON, "somebody to lead", || async {
        sqlx::query_as("select holder, epoch from relay_leader where expires_at > now()")
            .fetch_optional(&stage.app.pool)
            .await
            .ok()?
    })
    .await
}

#[tokio::test]
async fn when_the_leader_is_stopped_another_leads_within_five_seconds() {
    let stage = Stage::new().await;
    let mut first = stage.worker(2).await;
    let (holder, epoch) = leader(&stage).await;
    let _second = stage.worker(2).await;
    first.program.pause();
    let stopped = Instant::now();
    let due = stage.enqueue(stage.steps([Step::Tell("ran".into())]).run_at(chrono::Utc::now())).await;
    wait_until(SOON, "another to lead", || async { leader(&stage).await.0 != holder }).await;
    // One more second is allowed to a busy machine.
    assert!(stopped.elapsed() < Duration::from_secs(6), "it took {:?}", stopped.elapsed());
    assert_eq!(leader(&stage).await.1, epoch + 1);
    stage.all_succeed(&[due], SOON).await;

    // The first goes on where it was stopped and finds itself a follower.
    first.program.resume();
    let later: Vec<NewJob> =
        (0..50).map(|_| stage.steps([Step::Tell("ran".into())]).run_at(chrono::Utc::now())).collect();
    let later = stage.enqueue_all(&later).await;
    stage.all_succeed(&later, SOON).await;
    assert_eq!(stage.witness.all().len(), 51);
    assert_eq!(leader(&stage).await.1, epoch + 1);
}

#[tokio::test]
async fn two_relays_that_both_believe_to_lead_double_nothing() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let later = chrono::Utc::now() + LONG;
    let jobs: Vec<NewJob> = (0..500).map(|_| stage.job(Act::default()).run_at(later)).collect();
    stage.enqueue_all(&jobs).await;
    sqlx::query("update jobs set run_at = now()").execute(&mut *db).await.unwrap();
    let mut moved = 0;
    while moved < 500 {
        let promote = || ledger::promote_due(&stage.app.pool, 40, true);
        let (one, other) = tokio::join!(promote(), promote());
        moved += one.unwrap().moved + other.unwrap().moved;
    }
    assert_eq!(moved, 500, "each was moved by one of them");
    // And what both see as lost is taken back once.
    let dead = paper_worker(&mut db, Duration::ZERO).await;
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    ledger::claim(&mut db, dead, Queue::Ops, &["act"], &ids, false).await.unwrap();
    let reap = || ledger::reap(&stage.app.pool, 1_000);
    let (one, other) = tokio::join!(reap(), reap());
    assert_eq!(one.unwrap().len() + other.unwrap().len(), 500);
    let charged: i64 = sqlx::query_scalar("select count(*) from job_attempts").fetch_one(&mut *db).await.unwrap();
    assert_eq!(charged, 500);
}

#[tokio::test]
async fn a_worker_stopped_past_its_lease_completes_nothing_that_another_has() {
    let stage = Stage::new().await;
    let mut stopped = stage.worker(2).await;
    let act = Act {
        first: Some(vec![
            Step::Tell("first".into()),
            Step::SleepMs(2_000),
            Step::Return(Value::from("from the stopped one")),
        ]),
        ..Act::of([Step::Tell("second".into()), Step::SleepMs(6_000), Step::Return(Value::from("from the living one"))])
    };
    let job = stage.enqueue(stage.job(act)).await;
    stage.witness.heard(job, "first", SOON).await;
    stopped.program.pause();
    let _living = stage.worker(2).await;
    stage.witness.heard(job, "second", LONG).await;
    stopped.program.resume();
    let row = stage.ended(job, SOON).await;
    assert_eq!((row.state, row.run), (State::Succeeded, 2));
    assert_eq!(row.result, Some(Value::from("from the living one")));
    // The one that was stopped goes on as another worker, and works.
    let former = stopped.id;
    wait_until(SOON, "the stopped one to register anew", || async {
        let alive: i64 = sqlx::query_scalar("select count(*) from workers where state = 'alive' and id <> $1")
            .bind(former)
            .fetch_one(&stage.app.pool)
            .await
            .unwrap();
        alive == 2
    })
    .await;
}

#[tokio::test]
async fn a_process_stopped_with_a_creating_request_in_its_hand_dies_when_its_lease_ends() {
    let stage = Stage::new().await;
    let mut stopped = stage.worker(2).await;
    let first = vec![Step::Tell("sends".into()), Step::GuardedMs(3_000), Step::Tell("sent".into())];
    let job = stage.enqueue(stage.job(Act { first: Some(first), ..Act::of([Step::Tell("looked".into())]) })).await;
    stage.witness.heard(job, "sends", SOON).await;
    stopped.program.pause();
    let _living = stage.worker(2).await;
    stage.witness.heard(job, "looked", LONG).await;
    stopped.program.resume();
    let (id, pid) = stage.successor(&mut stopped).await;
    assert!(id != stopped.id && pid != stopped.pid, "the process itself was another by then");
    assert_eq!(stage.witness.count(job, "sent"), 0);
}

#[tokio::test]
async fn a_session_stopped_inside_a_transaction_holds_up_only_the_row_it_holds() {
    let stage = Stage::new().await;
    let jobs: Vec<NewJob> = (0..10).map(|_| stage.steps([Step::Tell("ran".into()), Step::SleepMs(800)])).collect();
    let ids = stage.enqueue_all(&jobs).await;
    let _worker = stage.worker(16).await;
    stage.witness.heard(ids[9], "ran", SOON).await;
    // As the product connects, so with its limits: begins, locks, and says nothing more.
    let mut stuck = stage.app.db.pool().acquire().await.unwrap().detach();
    sqlx::query("begin").execute(&mut stuck).await.unwrap();
    sqlx::query("select from jobs where id = $1 for update").bind(ids[4]).execute(&mut stuck).await.unwrap();
    let held = Instant::now();
    let others: Vec<_> = ids.iter().copied().filter(|id| *id != ids[4]).collect();
    stage.all_succeed(&others, Duration::from_secs(4)).await;
    assert_eq!(stage.state(ids[4]).await, State::Running);
    // Cancelling another is done at once, cancelling this one waits for no longer than a lock may; reaping and
    // fetching go on.
    let other = stage.enqueue(stage.job(Act::default()).run_at(chrono::Utc::now() + LONG)).await;
    let cancelling = stage.cancel(other);
    let outcome = timeout(Duration::from_secs(1), cancelling).await.expect("it waits for nothing");
    assert_eq!(outcome, ledger::CancelOutcome::Cancelled);
    let of_held = async {
        let outcome = steer::cancel(&stage.engine, ids[4]).await;
        assert!(held.elapsed() < Duration::from_secs(8), "cancelling was held for {:?}", held.elapsed());
        outcome
    };
    let goes_on = async {
        assert!(ledger::reap(&stage.app.pool, 10).await.unwrap().is_empty());
        let another = stage.enqueue(stage.job(Act::default())).await;
        stage.all_succeed(&[another], Duration::from_secs(2)).await;
    };
    let (_cancelled_or_too_late, ()) = tokio::join!(of_held, goes_on);
    let end = stage.ended(ids[4], SOON).await.state;
    assert!(matches!(end, State::Succeeded | State::Cancelled), "{end}");
    assert!(held.elapsed() < Duration::from_secs(9), "it was held for {:?}", held.elapsed());
    assert!(stuck.ping().await.is_err(), "the server has ended the session that sat in its transaction");
    assert_eq!(stage.witness.all().len(), 10);
}

#[tokio::test]
async fn rows_that_are_held_hold_up_no_other_however_many_batches_have_met_one() {
    let stage = Stage::new().await;
    // More than a worker has writers, each to end in a batch of its own.
    let after = |ms: u64| stage.steps([Step::Tell("ran".into()), Step::SleepMs(ms)]);
    let held: Vec<NewJob> = [1_500, 1_900, 2_300].map(after).into();
    let others: Vec<NewJob> = (0..5).map(|_| after(3_000)).collect();
    let held = stage.enqueue_all(&held).await;
    let others = stage.enqueue_all(&others).await;
    let _worker = stage.worker(16).await;
    for job in held.iter().chain(&others) {
        stage.witness.heard(*job, "ran", SOON).await;
    }
    let mut stuck = stage.app.db.pool().begin().await.unwrap();
    let ids: Vec<Uuid> = held.iter().map(|job| job.uuid()).collect();
    sqlx::query("select from jobs where id = any($1) for update").bind(ids).execute(&mut *stuck).await.unwrap();
    // The server ends a session that sits in its transaction after five seconds: well before.
    stage.all_succeed(&others, Duration::from_secs(4)).await;
    for job in &held {
        assert_eq!(stage.state(*job).await, State::Running);
    }
    stuck.rollback().await.unwrap();
    stage.all_succeed(&held, SOON).await;
}

#[tokio::test]
async fn a_queued_row_that_is_held_holds_up_no_other_of_a_workers_claim() {
    let stage = Stage::new().await;
    let ids =
        stage.enqueue_all(&[stage.job(Act::default()), stage.job(Act::default()), stage.job(Act::default())]).await;
    let mut stuck = stage.app.db.pool().begin().await.unwrap();
    sqlx::query("select from jobs where id = $1 for update").bind(ids[1]).execute(&mut *stuck).await.unwrap();
    let _worker = stage.worker(16).await;
    // The server ends a session that sits in its transaction after five seconds: well before.
    stage.all_succeed(&[ids[0], ids[2]], Duration::from_secs(3)).await;
    assert_eq!(stage.state(ids[1]).await, State::Queued);
    stuck.rollback().await.unwrap();
    stage.all_succeed(&[ids[1]], SOON).await;
}

/// As while a migration changes it: what was taken from the belt in vain goes back there.
#[tokio::test]
async fn jobs_that_meet_a_locked_table_run_as_soon_as_it_is_free() {
    let stage = Stage::new().await;
    let worker = stage.worker(16).await;
    let says = async |what: &str| {
        eventually(SOON, what, || async { worker.program.log().contains(what).then_some(()) }).await;
    };
    // What was pushed before would be gone.
    says("the belt is built anew").await;
    let job = stage.job(Act::default());
    let mut tx = stage.app.pool.begin().await.unwrap();
    stage.engine.enqueue_in(&mut tx, std::slice::from_ref(&job)).await.unwrap();
    sqlx::query("lock table jobs in share row exclusive mode").execute(&mut *tx).await.unwrap();
    // Popped and tried while it cannot be seen to be there.
    let list = List { queue: Queue::Ops, lane: Lane::Default, slot: Slot::Priority(Priority::Normal) };
    stage.engine.belt().push(&[ledger::Runnable { job: job.id, list }]).await.unwrap();
    says("claiming waits for the ledger").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    tx.commit().await.unwrap();
    stage.all_succeed(&[job.id], Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_row_that_is_held_holds_up_neither_its_batch_of_claims_nor_of_successes() {
    let stage = Stage::new().await;
    let session = Session::engine(&stage.app.config().database, "impatient").unwrap();
    let mut db = ledger::impatient(session).connect().await.unwrap();
    let worker = paper_worker(&mut db, LONG).await;
    let ids =
        stage.enqueue_all(&[stage.job(Act::default()), stage.job(Act::default()), stage.job(Act::default())]).await;
    let hold = async |job: JobId| {
        let mut holder = stage.app.pool.begin().await.unwrap();
        sqlx::query("select from jobs where id = $1 for update").bind(job).execute(&mut *holder).await.unwrap();
        holder
    };
    let soon = Duration::from_secs(1);

    let holder = hold(ids[1]).await;
    let claims = async |db: &mut PgConnection| ledger::claim(db, worker, Queue::Ops, &["act"], &ids, false).await;
    let free = timeout(soon, claims(&mut db)).await.expect("it does not wait for the held one").unwrap();
    assert_eq!(free.iter().map(|claim| claim.job).collect::<HashSet<_>>(), HashSet::from([ids[0], ids[2]]));
    holder.rollback().await.unwrap();
    let rest = claims(&mut db).await.unwrap();
    assert_eq!(rest.iter().map(|claim| claim.job).collect::<Vec<_>>(), [ids[1]]);

    let batch: Vec<_> = free.iter().chain(&rest).map(|claim| (claim.job, claim.run, &Value::Null)).collect();
    let holder = hold(ids[1]).await;
    let freed = timeout(soon, ledger::settle_succeeded(&mut db, &batch)).await.expect("nor here").unwrap();
    assert_eq!(freed.settled.len(), 2);
    holder.rollback().await.unwrap();
    let freed = ledger::settle_succeeded(&mut db, &batch).await.unwrap();
    assert_eq!(freed.settled.iter().map(|settled| settled.job).collect::<Vec<_>>(), [ids[1]]);
}

#[tokio::test]
async fn a_blocked_runtime_and_busy_cores_lose_no_lease() {
    let stage = Stage::new().await;
    let worker = stage.worker(64).await;
    // Somebody who would take the jobs of a worker that is silent: the worker's own relay is as blocked as the rest.
    let _api = stage.app.api().await;
    // In full ten minutes: four jobs on two threads.
    let for_ms = if full_size() { 300_000 } else { 14_000 };
    // Each of the runtime's threads, at most four, is blocked at once for longer than a lease, and both cores are busy
    // beside it. Claimed together they may run one after the other, and each has the time for it.
    let mut blocking = stage.steps([Step::Tell("blocks".into()), Step::BlockThreadMs(for_ms)]);
    blocking.timeout = Duration::from_millis(for_ms * 4 + 60_000);
    let jobs: Vec<NewJob> = (0..4).map(|_| NewJob { id: JobId::new(), ..blocking.clone() }).collect();
    let ids = stage.enqueue_all(&jobs).await;
    stage.witness.heard(ids[0], "blocks", SOON).await;
    let over = CancellationToken::new();
    let _until_the_end = over.clone().drop_guard();
    for over in [over.clone(), over] {
        std::thread::spawn(move || while !over.is_cancelled() {});
    }
    for id in &ids {
        let row = stage.ended(*id, Duration::from_millis(for_ms * 4 + 60_000)).await;
        assert_eq!((row.state, row.run), (State::Succeeded, 1), "{:?}", row.why);
    }
    let state: String = sqlx::query_scalar("select state from workers where id = $1")
        .bind(worker.id)
        .fetch_one(&stage.app.pool)
        .await
        .unwrap();
    assert_eq!(state, "alive");
}

#[tokio::test]
async fn a_run_that_blocks_its_thread_stops_no_other_nor_another_lane() {
    let stage = Stage::new().await;
    let _worker = stage.worker(8).await;
    let blocking = stage.enqueue(stage.steps([Step::Tell("blocks".into()), Step::BlockThreadMs(4_000)])).await;
    stage.witness.heard(blocking, "blocks", SOON).await;
    let beside: Vec<NewJob> = (0..6)
        .map(|_| stage.steps([Step::Tell("ran".into()), Step::SleepMs(20)]))
        .chain([NewJob::of(&super::ActTokens(stage.witnessed(Act::of([]))), stage.app.tenant)])
        .collect();
    let beside = stage.enqueue_all(&beside).await;
    stage.all_succeed(&beside, Duration::from_secs(3)).await;
    assert_eq!(stage.state(blocking).await, State::Running);
}

#[tokio::test]
async fn what_a_silent_worker_was_charged_with_is_taken_back_even_an_end() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let parent = stage.job(Act::default());
    let child = stage.job(Act::default()).after(parent.id, multivio::jobs::OnParent::Cancel);
    stage.enqueue_all(&[parent.clone(), child]).await;
    let ids = [job, parent.id];
    // Each claims it, says nothing more, and is taken for dead.
    let mut silent = Vec::new();
    while stage.state(job).await != State::Failed {
        let worker = paper_worker(&mut db, Duration::ZERO).await;
        let suspects = !silent.is_empty();
        ledger::claim(&mut db, worker, Queue::Ops, &["act"], &ids, suspects).await.unwrap();
        ledger::reap(&mut *db, 10).await.unwrap();
        silent.push(worker);
        assert!(silent.len() < 20, "enough of them end a job");
    }
    let crashes = stage.row(job).await.crashes;
    assert_eq!(usize::try_from(crashes).unwrap(), silent.len() - 1, "once among others, then alone");

    // An older silence is not what its state is from.
    assert_eq!(ledger::acquit(&mut *db, silent[0]).await.unwrap(), 0);
    let last = silent.pop().unwrap();
    assert_eq!(ledger::acquit(&mut *db, last).await.unwrap(), 1);
    let row = stage.row(job).await;
    assert_eq!((row.state, row.suspect, row.crashes), (State::Queued, true, crashes - 1));
    assert!(row.finished_at.is_none());
    let blamed: (i16, i16) =
        sqlx::query_as("select b.blame, p.blame from jobs b, jobs p where b.id = $1 and p.id = $2")
            .bind(job)
            .bind(parent.id)
            .fetch_one(&mut *db)
            .await
            .unwrap();
    assert!(blamed.0 < blamed.1, "the blame went with it: {blamed:?}");
    assert_eq!(stage.attempts(job).await.last().unwrap().0, "lease_lost");
    assert_eq!(stage.state(parent.id).await, State::Failed, "its child has gone by its end");
    assert_eq!(ledger::acquit(&mut *db, last).await.unwrap(), 0, "once");

    // One that was silent once, among others, is no suspect at all.
    let other = stage.enqueue(stage.job(Act::default())).await;
    let worker = paper_worker(&mut db, Duration::ZERO).await;
    ledger::claim(&mut db, worker, Queue::Ops, &["act"], &[other], false).await.unwrap();
    ledger::reap(&mut *db, 10).await.unwrap();
    assert!(stage.row(other).await.suspect);
    assert_eq!(ledger::acquit(&mut *db, worker).await.unwrap(), 1);
    let row = stage.row(other).await;
    assert_eq!((row.state, row.suspect, row.crashes), (State::Queued, false, 0));
}

#[tokio::test]
async fn a_run_that_the_ledger_has_taken_away_is_ended_in_a_worker_that_lives() {
    let stage = Stage::new().await;
    let mut worker = stage.worker(2).await;
    // Longer than a new leader waits before it takes anything.
    let first = vec![Step::Tell("first".into()), Step::SleepMs(12_000), Step::Tell("first goes on".into())];
    let act = Act { first: Some(first), ..Act::of([Step::Tell("second".into())]) };
    let began = Instant::now();
    let job = stage.enqueue(stage.job(act)).await;
    stage.witness.heard(job, "first", SOON).await;
    // The relay, as it sees a run past its deadline.
    sqlx::query("update jobs set deadline_at = now() where id = $1").bind(job).execute(&stage.app.pool).await.unwrap();
    stage.all_succeed(&[job], SOON).await;
    let row = stage.row(job).await;
    assert_eq!((row.run, row.attempt), (2, 1));
    tokio::time::sleep(Duration::from_secs(14).saturating_sub(began.elapsed())).await;
    assert_eq!(stage.witness.count(job, "first goes on"), 0);
    assert!(!worker.program.has_ended());
}

#[tokio::test]
async fn a_run_past_its_deadline_is_taken_from_a_worker_that_lives() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = paper_worker(&mut db, LONG).await;
    let mut jobs = [stage.job(Act::default()), stage.job(Act::default())];
    (jobs[0].max_attempts, jobs[1].max_attempts) = (2, 1);
    let ids = stage.enqueue_all(&jobs).await;
    let claims = ledger::claim(&mut db, worker, Queue::Ops, &["act"], &ids, false).await.unwrap();
    assert!(ledger::reap(&mut *db, 10).await.unwrap().is_empty(), "its time is not over");
    sqlx::query("update jobs set deadline_at = now() - interval '1 second'").execute(&mut *db).await.unwrap();
    assert_eq!(ledger::reap(&mut *db, 10).await.unwrap().len(), 2);
    let (again, over) = (stage.row(ids[0]).await, stage.row(ids[1]).await);
    assert_eq!((again.state, again.attempt, again.suspect), (State::Queued, 1, false));
    assert_eq!((over.state, over.attempt), (State::Failed, 1));
    assert_eq!(stage.attempts(ids[1]).await[0].0, "timeout");
    // What the worker says of it later counts for nothing.
    let late = [(ids[0], claims[0].run, &Value::Null)];
    assert!(ledger::settle_succeeded(&mut db, &late).await.unwrap().settled.is_empty());
}
