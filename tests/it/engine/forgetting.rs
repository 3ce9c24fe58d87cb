//! Retention: what is forgotten, what is not, and that a repeated request gets its answer even then (E20).

use std::time::Duration;

use multivio::{
    ids::JobId,
    jobs::{
        OnParent, State,
        ledger::{self, Retention},
    },
};
use uuid::Uuid;

use super::{Act, Stage};

async fn age(stage: &Stage, jobs: &[JobId], days: i32) {
    sqlx::query(
        "update jobs set created_at = now() - $2 * interval '1 day', \
                finished_at = case when finished_at is not null then now() - $2 * interval '1 day' end \
         where id = any($1)",
    )
    .bind(jobs.iter().map(|job| job.uuid()).collect::<Vec<Uuid>>())
    .bind(days)
    .execute(&stage.app.pool)
    .await
    .unwrap();
}

async fn end(stage: &Stage, job: JobId, state: State) {
    sqlx::query("update jobs set state = $2::job_state, finished_at = now(), open_parents = 0 where id = $1")
        .bind(job)
        .bind(state.as_str())
        .execute(&stage.app.pool)
        .await
        .unwrap();
}

async fn prune_all(stage: &Stage, limit: i64) -> usize {
    let (mut after, mut pages) = (Uuid::nil(), 0);
    loop {
        pages += 1;
        match ledger::prune(&mut *stage.db().await, after, &Retention::default(), limit).await.unwrap() {
            Some(last) => after = last,
            None => return pages,
        }
    }
}

async fn exists(stage: &Stage, job: JobId) -> bool {
    stage.engine.job(None, job).await.unwrap().is_some()
}

#[tokio::test]
async fn finished_jobs_go_by_age_in_bounded_pieces_and_unfinished_ones_stay() {
    let stage = Stage::new().await;
    let mut jobs = Vec::new();
    for _ in 0..25 {
        jobs.push(stage.enqueue(stage.job(Act::default())).await);
    }
    for (n, job) in jobs.iter().enumerate() {
        match n % 5 {
            0 | 1 => end(&stage, *job, State::Succeeded).await,
            2 | 3 => end(&stage, *job, State::Failed).await,
            _ => {}
        }
    }
    age(&stage, &jobs, 10).await;
    let pages = prune_all(&stage, 4).await;
    assert!(pages >= 6, "{pages} pages of four");
    for (n, job) in jobs.iter().enumerate() {
        // After ten days: successes are forgotten, failures kept for a month, what waits is kept for ever.
        assert_eq!(exists(&stage, *job).await, n % 5 > 1, "job {n}");
    }
    age(&stage, &jobs, 31).await;
    prune_all(&stage, 4).await;
    for (n, job) in jobs.iter().enumerate() {
        assert_eq!(exists(&stage, *job).await, n % 5 == 4, "job {n}");
    }
}

#[tokio::test]
async fn a_parent_stays_as_long_as_a_child_waits_for_something() {
    let stage = Stage::new().await;
    let [one, other] = [stage.enqueue(stage.job(Act::default())).await, stage.enqueue(stage.job(Act::default())).await];
    let child = stage.job(Act::default()).after(one, OnParent::Cancel).after(other, OnParent::Cancel);
    let child = stage.enqueue(child).await;
    end(&stage, one, State::Succeeded).await;
    age(&stage, &[one], 40).await;
    prune_all(&stage, 100).await;
    assert!(exists(&stage, one).await);
    stage.engine.cancel(None, child).await.unwrap();
    prune_all(&stage, 100).await;
    assert!(!exists(&stage, one).await);
}

#[tokio::test]
async fn an_idempotency_key_outlives_the_job_it_points_to() {
    let stage = Stage::new().await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    end(&stage, job, State::Succeeded).await;
    let keep = async |key: &str, days: i32| {
        sqlx::query(
            "insert into idempotency_keys (tenant_id, route, key, request_hash, status, response, job_id, created_at) \
             values ($1, 'POST /api/v1/publish', $2, $3, 202, '{}', $4, now() - $5 * interval '1 day')",
        )
        .bind(stage.app.tenant)
        .bind(key)
        .bind(vec![0_u8; 32])
        .bind(job)
        .bind(days)
        .execute(&stage.app.pool)
        .await
        .unwrap();
    };
    keep("fresh", 6).await;
    keep("old", 8).await;
    age(&stage, &[job], 40).await;
    prune_all(&stage, 100).await;
    assert!(!exists(&stage, job).await);
    let left: Vec<String> =
        sqlx::query_scalar("select key from idempotency_keys").fetch_all(&stage.app.pool).await.unwrap();
    assert_eq!(left, ["fresh"]);
}

#[tokio::test]
async fn the_relay_forgets_by_itself_and_what_hangs_on_a_job_goes_with_it() {
    let stage = Stage::new().await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    ledger::note(&stage.app.pool, job, "noted", &serde_json::json!({})).await.unwrap();
    end(&stage, job, State::Succeeded).await;
    age(&stage, &[job], 40).await;
    let _worker = stage.worker(1).await;
    crate::harness::wait_until(Duration::from_secs(90), "the relay to forget", || async { !exists(&stage, job).await })
        .await;
    let notes: i64 = sqlx::query_scalar("select count(*) from job_notes").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!(notes, 0);
}
