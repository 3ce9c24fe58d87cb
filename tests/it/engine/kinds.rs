//! Versions beside each other (E15): what a worker does not know it leaves to one that does.

use std::time::Duration;

use multivio::jobs::State;
use serde_json::{json, value::to_raw_value};

use super::{Act, Stage, Step};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_kind_that_this_version_does_not_know_stays_queued_and_holds_nobody_up() {
    let stage = Stage::new().await;
    let mut unknown = stage.job(Act::default());
    unknown.kind = "from_the_next_release".into();
    let mut jobs = vec![unknown.clone()];
    jobs.extend((0..20).map(|_| stage.job(Act::default())));
    let ids = stage.enqueue_all(&jobs).await;
    let _worker = stage.worker(2).await;
    stage.all_succeed(&ids[1..], SOON).await;
    let row = stage.row(unknown.id).await;
    assert_eq!((row.state, row.run, row.attempt), (State::Queued, 0, 0));

    // A worker of that release comes, though the id was popped by the old one.
    sqlx::query("update jobs set kind = 'act' where id = $1").bind(unknown.id).execute(&stage.app.pool).await.unwrap();
    stage.all_succeed(&[unknown.id], SOON).await;
}

#[tokio::test]
async fn arguments_that_this_version_cannot_read_cost_no_attempt_and_spoil_no_batch() {
    let stage = Stage::new().await;
    let mut unreadable = stage.job(Act::default());
    (unreadable.args, unreadable.max_attempts) = (to_raw_value(&json!({ "steps": "of another form" })).unwrap(), 1);
    let mut jobs: Vec<_> = (0..20).map(|_| stage.job(Act::default())).collect();
    jobs.insert(10, unreadable.clone());
    let mut ids = stage.enqueue_all(&jobs).await;
    let _worker = stage.worker(32).await;
    ids.remove(10);
    stage.all_succeed(&ids, SOON).await;
    let row = stage.once(unreadable.id, SOON, "it to be put off", |row| row.state == State::Scheduled).await;
    assert_eq!((row.attempt, row.why.unwrap().code.as_str()), (0, "undecodable"));

    let readable = json!(stage.witnessed(Act::of([Step::Tell("read".into())])));
    sqlx::query("update jobs set args = $2, run_at = now() where id = $1")
        .bind(unreadable.id)
        .bind(readable)
        .execute(&stage.app.pool)
        .await
        .unwrap();
    stage.all_succeed(&[unreadable.id], SOON).await;
}
