//! Retention: what is forgotten, what is not, and that a repeated request gets its answer even then (E20).

use std::time::{Duration, SystemTime};

use multivio::{
    ids::JobId,
    jobs::{
        NewJob, OnParent, State,
        ledger::{self, Pruning, Retention},
    },
};
use uuid::{NoContext, Timestamp, Uuid};

use super::{Act, Stage};

/// A job that was made so many days ago, as its id tells too.
fn made(stage: &Stage, days: u64) -> NewJob {
    let at = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
    let since = at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let at = Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos());
    NewJob { id: JobId::from_uuid(Uuid::new_v7(at)), ..stage.job(Act::default()) }
}

async fn end(stage: &Stage, job: JobId, state: State, days: i32) {
    sqlx::query(
        "update jobs set state = $2::job_state, finished_at = now() - $3 * interval '1 day', open_parents = 0 \
         where id = $1",
    )
    .bind(job)
    .bind(state.as_str())
    .bind(days)
    .execute(&stage.app.pool)
    .await
    .unwrap();
}

async fn prune_all(stage: &Stage, limit: i64) -> usize {
    let (mut at, mut steps) = (Pruning::default(), 1);
    while ledger::prune(&mut *stage.db().await, &mut at, &Retention::default(), limit).await.unwrap() {
        steps += 1;
    }
    steps
}

async fn exists(stage: &Stage, job: JobId) -> bool {
    stage.engine.job(None, job).await.unwrap().is_some()
}

#[tokio::test]
async fn finished_jobs_go_by_age_in_bounded_pieces_and_unfinished_ones_stay() {
    let stage = Stage::new().await;
    // After ten days: successes are forgotten, failures kept for a month, what waits is kept for ever.
    for (days, first_kept) in [(10, 2), (31, 4)] {
        let mut jobs = Vec::new();
        for n in 0..25 {
            let job = stage.enqueue(made(&stage, days)).await;
            let days = i32::try_from(days).unwrap();
            match n % 5 {
                0 | 1 => end(&stage, job, State::Succeeded, days).await,
                2 | 3 => end(&stage, job, State::Failed, days).await,
                _ => {}
            }
            jobs.push(job);
        }
        let steps = prune_all(&stage, 4).await;
        assert!(steps >= 6, "{steps} steps of four");
        for (n, job) in jobs.iter().enumerate() {
            assert_eq!(exists(&stage, *job).await, n % 5 >= first_kept, "job {n} after {days} days");
        }
    }
}

#[tokio::test]
async fn each_thing_that_is_kept_for_a_time_goes_and_what_is_younger_stays() {
    let stage = Stage::new().await;
    let count = async |table: &str| -> i64 {
        let count = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
        sqlx::query_scalar(count).fetch_one(&stage.app.pool).await.unwrap()
    };
    let old = |days| made(&stage, days).id.uuid();
    let add = async |statement: &'static str, id: Uuid, days: i32| {
        sqlx::query(statement).bind(id).bind(days).execute(&stage.app.pool).await.unwrap();
    };
    for days in [1, 40] {
        let id = old(days);
        let days = i32::try_from(days).unwrap();
        add(
            "insert into job_groups (id, tenant_id, name, created_at) values ($1, $1, 'g', now() - $2 * interval '1 day')",
            id,
            days,
        )
        .await;
        add("insert into job_wakes (wake_key, at) values ($1::text, now() - $2 * interval '12 hours')", id, days).await;
        add(
            "insert into workers (id, process_id, queue, host, pid, version, lease_expires_at) \
             values ($1, $1, 'ops', 'h', 1, '0', now() - $2 * interval '1 day')",
            id,
            days,
        )
        .await;
        add(
            "with s as (insert into schedules (name, cron, timezone, kind, queue, lane, args, max_attempts, timeout_ms, \
                            catch_up, next_at) values ('s', '', '', '', '', '', '{}', 1, 1, 'skip', 'infinity') \
                        on conflict do nothing) \
             insert into schedule_fires (schedule, fire_at, job_id) values ('s', now() - $2 * interval '1 day', $1)",
            id,
            days,
        )
        .await;
    }
    prune_all(&stage, 100).await;
    for table in ["job_groups", "job_wakes", "workers", "schedule_fires"] {
        assert_eq!(count(table).await, 1, "{table}");
    }
}

#[tokio::test]
async fn a_parent_stays_as_long_as_a_child_waits_for_something() {
    let stage = Stage::new().await;
    let [one, other] = [stage.enqueue(made(&stage, 40)).await, stage.enqueue(made(&stage, 40)).await];
    let child = stage.job(Act::default()).after(one, OnParent::Cancel).after(other, OnParent::Cancel);
    let child = stage.enqueue(child).await;
    end(&stage, one, State::Succeeded, 40).await;
    prune_all(&stage, 100).await;
    assert!(exists(&stage, one).await);
    stage.cancel(child).await;
    prune_all(&stage, 100).await;
    assert!(!exists(&stage, one).await);
}

#[tokio::test]
async fn an_idempotency_key_outlives_the_job_it_points_to() {
    let stage = Stage::new().await;
    let job = stage.enqueue(made(&stage, 40)).await;
    end(&stage, job, State::Succeeded, 40).await;
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
    prune_all(&stage, 100).await;
    assert!(!exists(&stage, job).await);
    let left: Vec<String> =
        sqlx::query_scalar("select key from idempotency_keys").fetch_all(&stage.app.pool).await.unwrap();
    assert_eq!(left, ["fresh"]);
}

#[tokio::test]
async fn the_relay_forgets_by_itself_and_what_hangs_on_a_job_goes_with_it() {
    let stage = Stage::new().await;
    let job = stage.enqueue(made(&stage, 40)).await;
    ledger::note(&stage.app.pool, job, "noted", &serde_json::json!({})).await.unwrap();
    end(&stage, job, State::Succeeded, 40).await;
    let _worker = stage.worker(1).await;
    crate::harness::wait_until(Duration::from_secs(90), "the relay to forget", || async { !exists(&stage, job).await })
        .await;
    let notes: i64 = sqlx::query_scalar("select count(*) from job_notes").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!(notes, 0);
}
