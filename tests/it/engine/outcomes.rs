//! What a run came to, many at a time: one bad row is nobody else's trouble (E9).

use std::time::Duration;

use multivio::{
    ids::JobId,
    jobs::{State, Why, ledger},
};
use serde_json::json;

use super::{Act, Stage, Step};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_result_that_cannot_be_stored_fails_alone_and_its_neighbours_are_written() {
    let stage = Stage::new().await;
    let good = |n: usize| stage.steps([Step::SleepMs(200), Step::Return(json!(n))]);
    let mut jobs: Vec<_> = (0..40).map(good).collect();
    let nul = stage.steps([Step::SleepMs(200), Step::ReturnText("a␀b".into())]);
    let long = stage.steps([Step::SleepMs(200), Step::ReturnBytes(300 * 1024)]);
    let (nul_id, long_id) = (nul.id, long.id);
    jobs.insert(13, nul);
    jobs.insert(29, long);
    stage.enqueue_all(&jobs).await;
    let _worker = stage.worker(64).await;
    for job in &jobs {
        let row = stage.ended(job.id, SOON).await;
        let code = row.why.map(|why| why.code).unwrap_or_default();
        let expected = match job.id {
            id if id == nul_id => (State::Failed, "result_unstorable"),
            id if id == long_id => (State::Failed, "result_too_large"),
            _ => (State::Succeeded, ""),
        };
        assert_eq!((row.state, code.as_str()), expected, "{}", job.id);
        assert_eq!(row.run, 1, "a result that cannot be stored is not made again");
    }
}

#[tokio::test]
async fn words_from_outside_that_postgres_refuses_are_stored_cleaned() {
    let stage = Stage::new().await;
    let _worker = stage.worker(8).await;
    let mut jobs = vec![
        stage.steps([Step::Panic(format!("bad ␀ \u{1b}[31m bytes {}", "x".repeat(50_000)))]),
        stage.steps([Step::Fail("code␀with a nul".into())]),
        stage.steps([Step::Park { wake: "wake␀up".into(), deadline_ms: 100 }]),
        stage.job(Act { first: Some(vec![Step::RetryAfterSeconds(u64::MAX)]), ..Act::default() }),
    ];
    for job in &mut jobs {
        job.max_attempts = 2;
    }
    jobs[0].max_attempts = 1;
    let ids = stage.enqueue_all(&jobs).await;
    let why = stage.ended(ids[0], SOON).await.why.unwrap();
    assert!(why.message.starts_with("bad ") && why.message.len() < 5_000, "{}", why.message.len());
    assert_eq!(stage.ended(ids[1], SOON).await.state, State::Failed);
    stage.once(ids[2], SOON, "it to be parked", |row| row.state == State::Scheduled).await;
    let patient = stage.once(ids[3], SOON, "it to wait for long", |row| row.state == State::Scheduled).await;
    assert!(patient.run_at > chrono::Utc::now() + Duration::from_secs(24 * 60 * 60));
    // And the worker still completes what comes.
    stage.all_succeed(&[stage.enqueue(stage.job(Act::default())).await], SOON).await;
}

#[tokio::test]
async fn attempts_are_kept_with_their_class_and_end_at_the_maximum() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let mut flaky = stage.steps([Step::Retry]);
    flaky.max_attempts = 3;
    let mut slow = stage.steps([Step::SleepMs(60_000)]);
    (slow.max_attempts, slow.timeout) = (2, Duration::from_millis(150));
    let mut broken = stage.steps([Step::Panic("it broke".into())]);
    broken.max_attempts = 2;
    let ids = stage.enqueue_all(&[flaky, slow, broken]).await;
    for (id, class, runs) in [(ids[0], "retry", 3), (ids[1], "timeout", 2), (ids[2], "panic", 2)] {
        let row = stage.ended(id, SOON).await;
        assert_eq!((row.state, row.run, i32::from(row.attempt)), (State::Failed, runs, runs));
        let classes: Vec<String> = stage.attempts(id).await.into_iter().map(|(class, ..)| class).collect();
        assert_eq!(classes, vec![class; usize::try_from(runs).unwrap()]);
    }
    let row = stage.row(ids[2]).await;
    assert!(row.why.as_ref().unwrap().message.contains("it broke"));
    let lines: Vec<String> = stage.engine.timeline(&row).await.unwrap().into_iter().map(|line| line.what).collect();
    let told = ["created", "queued", "started", "panic", "queued", "started", "panic", "failed"];
    assert_eq!(lines, told, "in order of time");
}

#[tokio::test]
async fn a_completion_names_its_run_and_an_old_one_changes_nothing() {
    use multivio::jobs::Queue;
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let worker = super::stage::paper_worker(&mut db, Duration::from_secs(60)).await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let claim = async |job: JobId| {
        ledger::claim(&mut *stage.db().await, worker, Queue::Ops, &["act"], &[job], false).await.unwrap()[0].run
    };
    let first = claim(job).await;
    // It snoozes; the answer is lost; it is promoted; the same worker claims it again.
    let why = Why::new("soon", "soon");
    let end = ledger::End::Again {
        at: ledger::Again::After(Duration::ZERO),
        charged: false,
        class: "snooze",
        why,
        wake: None,
    };
    let snooze = ledger::Settlement { job, run: first, end };
    ledger::settle(&mut *db, std::slice::from_ref(&snooze)).await.unwrap();
    ledger::promote_due(&mut *db, 10, true).await.unwrap();
    let second = claim(job).await;
    assert!(second > first);
    // Told again, it may not snooze the run that is under way, nor end it.
    assert!(ledger::settle(&mut *db, &[snooze]).await.unwrap().settled.is_empty());
    let late = [(job, first, &json!("late"))];
    assert!(ledger::settle_succeeded(&mut db, &late).await.unwrap().settled.is_empty());
    let row = stage.row(job).await;
    assert_eq!((row.state, row.run, row.result), (State::Running, second, None));
}
