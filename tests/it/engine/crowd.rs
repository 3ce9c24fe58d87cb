//! A crowd that is due at one moment: bounded batches, a bounded window, bounded memory, a steady flow, and nobody else
//! waits, in another lane or another queue.

use std::time::{Duration, Instant};

use multivio::jobs::{
    Lane, NewJob, Priority, Queue, State,
    belt::{List, Slot},
    noop::Noop,
};

use super::{Act, ActTokens, Stage, Step};
use crate::harness::full_size;

/// The most that a window holds, and what one batch and its direct pushes may add.
const WINDOW: usize = 10_000 + 2_000;

#[tokio::test]
async fn a_crowd_due_at_one_moment_passes_through_a_bounded_window_and_delays_no_other_lane_or_queue() {
    let stage = Stage::new().await;
    let count: i64 = if full_size() { 1_000_000 } else { 20_000 };
    let within = Duration::from_secs(if full_size() { 1_200 } else { 120 });
    let worker = stage.worker(64).await;
    let _elsewhere = stage.app.worker(Queue::Ai).await;
    stage.all_succeed(&[stage.enqueue(stage.job(Act::default())).await], Duration::from_secs(20)).await;
    let memory_before = resident_bytes(worker.pid);
    sqlx::query("set statement_timeout = 0").execute(&mut *stage.db().await).await.unwrap();
    insert_due(&stage, count).await;

    let list = List { queue: Queue::Ops, lane: Lane::Default, slot: Slot::Priority(Priority::Normal) };
    let (started, mut longest, mut most_memory) = (Instant::now(), 0, 0);
    let (mut slowest, mut slowest_elsewhere, mut longest_pause) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let watching = async {
        let mut flowed_at = Instant::now();
        loop {
            let waiting = stage.engine.belt().len(list).await.unwrap();
            longest = longest.max(waiting);
            if waiting > 0 || !is_any(&stage, "state = 'scheduled'").await {
                flowed_at = Instant::now();
            }
            longest_pause = longest_pause.max(flowed_at.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let asking = async {
        while is_any(&stage, "state in ('scheduled', 'queued', 'running')").await {
            assert!(started.elapsed() < within, "{:?} of {count} are done", stage.count(State::Succeeded).await);
            most_memory = most_memory.max(resident_bytes(worker.pid));
            let asked = Instant::now();
            let refresh = ActTokens(stage.witnessed(Act::of([Step::Tell("refreshed".into())])));
            let refresh = stage.enqueue(NewJob::of(&refresh, stage.app.tenant)).await;
            let heard = stage.witness.heard(refresh, "refreshed", Duration::from_secs(20)).await;
            slowest = slowest.max(heard.at - asked);
            let asked = Instant::now();
            let other = NewJob::of(&Noop { payload: String::new() }, stage.app.tenant);
            let other = stage.enqueue(NewJob { queue: Queue::Ai, ..other }).await;
            stage.ended(other, Duration::from_secs(20)).await;
            slowest_elsewhere = slowest_elsewhere.max(asked.elapsed());
        }
    };
    tokio::select! {
        () = watching => unreachable!("it watches for as long as the other asks"),
        () = asking => {}
    }
    let done: i64 = sqlx::query_scalar(
        "select count(*) from jobs where kind = 'noop' and queue = 'ops' and state = 'succeeded' and run = 1",
    )
    .fetch_one(&stage.app.pool)
    .await
    .unwrap();
    assert_eq!(done, count, "each ran, and each once");
    assert!(longest <= WINDOW, "the belt grew to {longest}");
    assert!(slowest < Duration::from_secs(2), "a job in another lane waited {slowest:?}");
    assert!(slowest_elsewhere < Duration::from_secs(2), "a job of another queue took {slowest_elsewhere:?}");
    assert!(longest_pause < Duration::from_secs(3), "the belt stood empty for {longest_pause:?} while work was due");
    let grown = most_memory.saturating_sub(memory_before);
    assert!(grown < 150 << 20, "the process that leads grew by {} MiB", grown >> 20);
}

/// Whether a job of the crowd is in such a state.
async fn is_any(stage: &Stage, state: &str) -> bool {
    let text = format!("select exists (select from jobs where kind = 'noop' and queue = 'ops' and {state})");
    sqlx::query_scalar(sqlx::AssertSqlSafe(text)).fetch_one(&stage.app.pool).await.unwrap()
}

/// Straight into the ledger: it is the leaving that is tried here.
async fn insert_due(stage: &Stage, count: i64) {
    let mut tx = stage.app.pool.begin().await.unwrap();
    sqlx::query("set local statement_timeout = 0").execute(&mut *tx).await.unwrap();
    sqlx::query(
        "insert into jobs (id, tenant_id, queue, lane, kind, priority, args, max_attempts, timeout_ms, run_at, due_at, \
                           state) \
         select gen_random_uuid(), $1, 'ops', 'default', 'noop', 1, '{}', 8, 60000, now(), now(), 'scheduled' \
         from generate_series(1, $2)",
    )
    .bind(stage.app.tenant)
    .bind(count)
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

fn resident_bytes(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("the worker runs");
    let pages: usize =
        status.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * 4096
}
