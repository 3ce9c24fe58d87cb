//! Fair turns between tenants (E18).

use std::time::{Duration, Instant};

use multivio::{
    ids::TenantId,
    jobs::{Lane, NewJob, Priority, Queue, ledger, noop::Noop},
};

use super::{Act, Stage, Step};
use crate::harness::full_size;

const SOON: Duration = Duration::from_secs(60);
/// What the rule promises ...
const A_SECOND: Duration = Duration::from_secs(1);
/// ... and what a busy machine with two cores may add to it.
const SLACK: Duration = Duration::from_millis(250);

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
    assert!(waited < A_SECOND + SLACK, "it waited {waited:?}");
    assert!(left > 0, "the crowd was gone before: this shows nothing");
}

#[tokio::test]
async fn one_job_behind_a_crowd_of_slow_ones_waits_for_few_of_them() {
    let stage = Stage::new().await;
    let slow = || stage.job_of(stage.app.tenant, Act::of([Step::SleepMs(100)]));
    let crowd: Vec<NewJob> = (0..2_000).map(|_| slow()).collect();
    let _worker = stage.worker(8).await;
    let waited = b_behind_the_crowd_of_a(&stage, &crowd).await;
    assert!(waited < A_SECOND + SLACK, "it waited {waited:?}");
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

#[tokio::test]
async fn without_the_belt_tenants_share_and_no_priority_starves() {
    let stage = Stage::new().await;
    stage.enqueue_all(&crowd_of(TenantId::new(), 300)).await;
    let others = [TenantId::SYSTEM, TenantId::new()];
    let jobs = others.map(|tenant| crowd_of(tenant, 1).remove(0));
    stage.enqueue_all(&jobs).await;
    let mut db = stage.db().await;
    let worker = super::stage::paper_worker(&mut db, SOON).await;
    let mut claim = async |limit| {
        let lane = Lane::Default;
        ledger::claim_from_ledger(&mut *db, worker, Queue::Ops, lane, &["noop"], false, limit).await.unwrap()
    };
    let first = claim(12).await;
    for tenant in others {
        assert!(first.iter().any(|claim| claim.tenant == tenant), "{tenant} has its turn beside the crowd");
    }
    assert_eq!(first.len(), 6, "a third of the room each, and what two did not need is taken the next time");

    let low: Vec<_> = crowd_of(TenantId::new(), 3).into_iter().map(|job| job.priority(Priority::Low)).collect();
    stage.enqueue_all(&low).await;
    let mut claimed = Vec::new();
    for _ in 0..200 {
        claimed.extend(claim(1).await);
    }
    assert!(claimed.iter().any(|claim| claim.job == low[0].id), "low was not first in two hundred times");
    assert!(claimed.iter().filter(|claim| low.iter().any(|job| job.id == claim.job)).count() <= 3);
}
