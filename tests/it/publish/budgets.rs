//! Limits and outages: who waits, until when, and that nobody is forgotten.

use chrono::{DateTime, Utc};
use multivio::{
    ids::PublicationId,
    platforms::{Budget, Explanation, Platform, RateWindow, Scope, Turn},
    publishing::{
        Publication, budget,
        circuit::{self, Admission},
        store,
    },
};
use serde_json::json;
use sqlx::PgPool;

use super::Stage;
use crate::harness::App;

const FIVE_A_MINUTE: Budget = Budget {
    name: "test",
    scope: Scope::Connection,
    limit: 5,
    window: std::time::Duration::from_secs(60),
    observed: true,
};

/// Publications that nobody works on.
async fn publications(stage: &Stage, count: usize) -> Vec<Publication> {
    let mut publications = Vec::new();
    for n in 0..count {
        let id: PublicationId = stage.publish(&format!("budgeted {n}")).await.parse().unwrap();
        publications.push(store::reload(&stage.app.pool, id).await.unwrap().unwrap());
    }
    publications
}

const MANY_A_DAY: Budget = Budget {
    name: "many",
    scope: Scope::App,
    limit: 10_000,
    window: std::time::Duration::from_secs(24 * 60 * 60),
    observed: false,
};

#[tokio::test]
async fn while_there_is_room_a_slot_that_another_got_a_moment_ago_delays_nobody() {
    let stage = Stage::new().await;
    let publications = publications(&stage, 2).await;
    // Both begin at the same time; the first waits for the other, as for its lock.
    let mut first = stage.app.pool.begin().await.unwrap();
    sqlx::query("select now()").execute(&mut *first).await.unwrap();
    let mut other = stage.app.pool.begin().await.unwrap();
    budget::claim(&mut other, &publications[1], &[MANY_A_DAY], 1).await.unwrap();
    other.commit().await.unwrap();
    let slot = budget::claim(&mut first, &publications[0], &[MANY_A_DAY], 1).await.unwrap();
    let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *first).await.unwrap();
    assert!(slot <= now, "it has to wait {}", slot - now);
}

async fn claim(db: &PgPool, publication: &Publication) -> DateTime<Utc> {
    let mut tx = db.begin().await.unwrap();
    let slot = budget::claim(&mut tx, publication, &[FIVE_A_MINUTE], 1).await.unwrap();
    tx.commit().await.unwrap();
    slot
}

#[tokio::test]
async fn e17_beyond_the_limit_each_gets_a_slot_of_its_own_at_the_pace_of_the_limit() {
    let stage = Stage::new().await;
    let db = &stage.app.pool;
    let publications = publications(&stage, 8).await;
    let now = Utc::now();
    let mut slots = Vec::new();
    for publication in &publications {
        slots.push(claim(db, publication).await);
    }
    let waits: Vec<_> = slots.iter().map(|slot| (*slot - now).num_seconds()).collect();
    assert!(waits[..5].iter().all(|wait| *wait <= 5), "{waits:?}");
    assert!(waits[5] >= 55, "{waits:?}");
    // 5 a minute is one every 12 seconds: no stampede when the window ends.
    assert!(waits[6] - waits[5] >= 11 && waits[7] - waits[6] >= 11, "{waits:?}");
    // Asking again is no second slot.
    assert_eq!(claim(db, &publications[6]).await, slots[6]);
}

#[tokio::test]
async fn e17_a_slot_that_nobody_used_frees_itself() {
    let stage = Stage::new().await;
    let db = &stage.app.pool;
    let publications = publications(&stage, 6).await;
    for publication in &publications[..5] {
        claim(db, publication).await;
    }
    // Their worker died: the slots' time passes unused.
    sqlx::query("update budget_grants set expires_at = now() - interval '1 second'").execute(db).await.unwrap();
    let slot = claim(db, &publications[5]).await;
    assert!(slot <= Utc::now() + chrono::Duration::seconds(5));
}

#[tokio::test]
async fn what_the_platform_itself_says_counts_more_than_our_own_sums() {
    let stage = Stage::new().await;
    let db = &stage.app.pool;
    let publications = publications(&stage, 1).await;
    let reset_at = Utc::now() + chrono::Duration::seconds(300);
    let window = RateWindow { limit: 5, remaining: 0, reset_at };
    budget::observe(db, &publications[0], &[FIVE_A_MINUTE], window).await.unwrap();
    let slot = claim(db, &publications[0]).await;
    assert!((slot - reset_at).num_milliseconds().abs() < 5, "{slot} instead of {reset_at}");
}

#[tokio::test]
async fn a_platform_that_says_too_often_is_left_alone_and_costs_no_attempt() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!({ "rate_limited": { "reset_in_s": 2 } })).await;
    let _worker = stage.worker().await;
    let id = stage.publish("after the limit").await;
    stage.until(&id, "sent").await;
    stage.until_outcomes(&id, &["refused", "created"]).await;
    let attempts: i64 = sqlx::query_scalar("select count(*) from job_attempts where class = 'retry'")
        .fetch_one(&stage.app.pool)
        .await
        .unwrap();
    assert_eq!(attempts, 0);
}

#[tokio::test]
async fn an_outage_holds_everyone_and_lets_one_try_before_the_rest_follow_spread_out() {
    let app = App::new().await;
    let db = &app.pool;
    let problem = Explanation::new("platform_unavailable", Turn::Platform, "X has trouble.");
    for _ in 0..4 {
        assert!(!circuit::failed(db, Platform::X, &problem).await.unwrap());
    }
    assert_eq!(circuit::admit(db, Platform::X).await.unwrap(), Admission::Go, "four failures are bad luck");
    assert!(circuit::failed(db, Platform::X, &problem).await.unwrap());
    let Admission::Hold { until: first, .. } = circuit::admit(db, Platform::X).await.unwrap() else { panic!("open") };
    let Admission::Hold { until: second, .. } = circuit::admit(db, Platform::X).await.unwrap() else { panic!("open") };
    assert!(first > Utc::now() && second > first);
    assert_eq!(circuit::admit(db, Platform::Threads).await.unwrap(), Admission::Go, "others are not held");
    // Its time is over: one tries for all.
    sqlx::query("update platform_circuits set open_until = now() - interval '1 second'").execute(db).await.unwrap();
    assert_eq!(circuit::admit(db, Platform::X).await.unwrap(), Admission::Go);
    assert!(matches!(circuit::admit(db, Platform::X).await.unwrap(), Admission::Hold { .. }));
    circuit::passed(db, Platform::X).await.unwrap();
    for _ in 0..3 {
        assert_eq!(circuit::admit(db, Platform::X).await.unwrap(), Admission::Go);
    }
}

#[tokio::test]
async fn the_one_that_tried_and_failed_makes_the_next_pause_longer() {
    let app = App::new().await;
    let db = &app.pool;
    let problem = Explanation::new("platform_unavailable", Turn::Platform, "X has trouble.");
    let mut pauses = Vec::new();
    for _ in 0..3 {
        while !circuit::failed(db, Platform::X, &problem).await.unwrap() {}
        let pause: f64 =
            sqlx::query_scalar("select extract(epoch from open_until - now())::float8 from platform_circuits")
                .fetch_one(db)
                .await
                .unwrap();
        pauses.push(pause);
        sqlx::query("update platform_circuits set open_until = now() - interval '1 second'").execute(db).await.unwrap();
    }
    assert!(pauses[1] > pauses[0] * 1.5 && pauses[2] > pauses[1] * 1.5, "{pauses:?}");
}

#[tokio::test]
async fn an_unpaid_bill_holds_the_platform_and_tells_the_operator() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!({ "refuse": "credits_depleted" })).await;
    let _worker = stage.worker().await;
    let first = stage.publish("unpaid").await;
    crate::harness::eventually(super::SOON, "the reason", || async {
        (stage.publication(&first).await["problem"]["turn"] == "operator").then_some(())
    })
    .await;
    let held: Admission = circuit::admit(&stage.app.pool, Platform::X).await.unwrap();
    assert!(matches!(held, Admission::Hold { problem: Some(problem), .. } if problem.code == "credit_gone"));
    assert_eq!(stage.publication(&first).await["phase"], "uploaded");
}
