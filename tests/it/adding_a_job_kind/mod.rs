//! The whole example of docs/adding-a-job-kind.md, compiled and run, so that the page stays true. [`measure`] is known to
//! the tests' own worker.

mod measure;

use std::{sync::Arc, time::Duration};

use multivio::{
    db::TenantDb,
    http::{App as State, Caller, Problem, Scope},
    identity::Scopes,
    ids::JobId,
    jobs::{Engine, NewJob, belt::Belt},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::measure::MeasurePosts;
use crate::harness::App;

const PAGE: &str = include_str!("../../../docs/adding-a-job-kind.md");
const HERE: [&str; 2] = [include_str!("mod.rs"), include_str!("measure.rs")];

#[tokio::test]
async fn long_posts_are_counted_once_though_the_worker_dies() {
    let app = App::new().await;
    let api = app.api().await;
    for text in ["short", "a rather long one"] {
        api.post("/api/v1/posts", json!({ "universal_content": text })).await;
    }
    let belt = Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    let engine = Engine::new(app.pool.clone(), app.session(), belt);
    let job = engine.enqueue(NewJob::of(&MeasurePosts { long_from: 10 }, app.tenant)).await.unwrap();
    let mut worker = app.scripted_worker().await;
    worker.crash();
    let row = engine.wait(None, job, Duration::from_secs(30)).await.unwrap().unwrap();
    let result = row.result.unwrap();
    assert_eq!((result["posts"].as_i64(), result["long"].as_i64()), (Some(2), Some(1)));
}

async fn with_rows_of_its_own(app: &State, caller: Caller) -> Result<(), Problem> {
    let job = NewJob::of(&MeasurePosts { long_from: 280 }, caller.tenant).unique("measure");
    let mut tx = app.db.begin(&caller).await?;
    // ... the rows that belong to it ...
    let tickets = app.engine.enqueue_in(&mut tx, &[job]).await?;
    tx.commit().await?;
    app.engine.ring(&tickets).await;
    Ok(())
}

async fn on_its_own(app: &State, caller: Caller) -> Result<JobId, Problem> {
    let job = NewJob::of(&MeasurePosts { long_from: 280 }, caller.tenant);
    let id = app.engine.enqueue_for(&caller, job).await?;
    Ok(id)
}

#[tokio::test]
async fn a_call_asks_for_the_job_of_the_guide_with_its_rows_and_on_its_own() {
    let app = App::new().await;
    let (config, callers) = (app.config(), TenantDb::new(&app.config().database, "test").unwrap());
    let belt = Belt::new(&config.redis, app.pool.clone()).unwrap();
    let engine = Engine::for_callers(app.pool.clone(), callers.clone(), belt);
    let state = Arc::new(State::new(config, callers, engine, CancellationToken::new()).unwrap());
    let caller = Caller::new(app.tenant, app.user, Scopes::of([Scope::Publish]));
    with_rows_of_its_own(&state, caller.clone()).await.unwrap();
    let alone = on_its_own(&state, caller).await.unwrap();
    let kinds: Vec<String> = sqlx::query_scalar("select kind from jobs where tenant_id = $1")
        .bind(app.tenant)
        .fetch_all(&app.pool)
        .await
        .unwrap();
    assert_eq!(kinds, ["measure_posts", "measure_posts"]);
    assert!(state.engine.job(Some(app.tenant), alone).await.unwrap().is_some());
}

/// Without its indentation, which is another within a function, and with the names that this crate has for things.
fn plain(code: &str) -> String {
    let code = code.replace("crate::", "multivio::").replace("app.worker(Queue::Ops)", "app.scripted_worker()");
    code.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_guide_to_a_new_kind_of_job_says_what_is_compiled_and_run_here() {
    let here = HERE.map(plain).join("\n");
    let blocks = PAGE.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next());
    // Without the lines that go into the product's own files.
    let whole: Vec<_> = blocks.filter(|block| !block.contains("mod measure") && !block.contains("Registry")).collect();
    assert_eq!(whole.len(), 4, "the job, both ways to ask for it, and its test");
    for block in whole {
        assert!(here.contains(plain(block).trim()), "tests/it/adding_a_job_kind/ says it in another way:\n{block}");
    }
}
