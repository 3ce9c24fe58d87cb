//! Fair turns between tenants (E18).

use std::time::{Duration, Instant};

use multivio::{
    ids::TenantId,
    jobs::{NewJob, Queue, noop::Noop},
};

use super::{Act, Stage, Step};
use crate::harness::full_size;

const SOON: Duration = Duration::from_secs(60);

fn crowd_of(tenant: TenantId, count: usize) -> Vec<NewJob> {
    let one = |_| NewJob::of(&Noop { payload: "x".repeat(100) }, tenant);
    (0..count).map(one).collect()
}

/// A's crowd enters in bulk, as one user's import does; B comes after it.
async fn b_behind_the_crowd_of_a(stage: &Stage, crowd: &[NewJob]) -> Duration {
    for jobs in crowd.chunks(5_000) {
        stage.enqueue_all(jobs).await;
    }
    stage.engine.resume(Queue::Ops).await.unwrap();
    let asked = Instant::now();
    let b = stage.enqueue(stage.job_of(TenantId::new(), Act::of([Step::Tell("b".into())]))).await;
    stage.witness.heard(b, "b", SOON).await.at - asked
}

#[tokio::test]
async fn one_job_behind_another_tenants_crowd_starts_within_a_second() {
    let stage = Stage::new().await;
    let crowd = crowd_of(TenantId::new(), if full_size() { 100_000 } else { 10_000 });
    let _worker = stage.worker(8).await;
    stage.engine.pause(Queue::Ops, "until the crowd stands").await.unwrap();
    let waited = b_behind_the_crowd_of_a(&stage, &crowd).await;
    let left: i64 = sqlx::query_scalar("select count(*) from jobs where kind = 'noop' and state = 'queued'")
        .fetch_one(&stage.app.pool)
        .await
        .unwrap();
    // Resuming takes a moment of its own; half is allowed to a busy machine.
    assert!(waited < Duration::from_millis(1_500), "it waited {waited:?}");
    assert!(left > 0, "the crowd was gone before: this shows nothing");
}

#[tokio::test]
async fn one_job_behind_a_crowd_of_slow_ones_waits_for_few_of_them() {
    let stage = Stage::new().await;
    let slow = || stage.job_of(stage.app.tenant, Act::of([Step::SleepMs(100)]));
    let crowd: Vec<NewJob> = (0..2_000).map(|_| slow()).collect();
    let _worker = stage.worker(8).await;
    let waited = b_behind_the_crowd_of_a(&stage, &crowd).await;
    assert!(waited < Duration::from_millis(1_500), "it waited {waited:?}");
}

#[tokio::test]
async fn tenants_with_crowds_of_their_own_take_turns() {
    let stage = Stage::new().await;
    stage.engine.pause(Queue::Ops, "until the crowds stand").await.unwrap();
    let tenants: Vec<TenantId> = (0..4).map(|_| TenantId::new()).collect();
    for tenant in &tenants {
        let jobs: Vec<_> = (0..500).map(|_| stage.job_of(*tenant, Act::of([Step::SleepMs(5)]))).collect();
        stage.enqueue_all(&jobs).await;
    }
    let _worker = stage.worker(8).await;
    stage.engine.resume(Queue::Ops).await.unwrap();
    crate::harness::wait_until(SOON, "half of all to be done", || async {
        stage.count(multivio::jobs::State::Succeeded).await >= 1_000
    })
    .await;
    let done: Vec<(TenantId, i64)> = sqlx::query_as(
        "select tenant_id, count(*) from jobs where state = 'succeeded' and kind = 'act' group by tenant_id",
    )
    .fetch_all(&stage.app.pool)
    .await
    .unwrap();
    for tenant in &tenants {
        let count = done.iter().find(|(id, _)| id == tenant).map_or(0, |(_, count)| *count);
        assert!(count > 125, "one of four had {count} of its jobs done, when half of all were: {done:?}");
    }
}
