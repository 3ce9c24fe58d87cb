//! The whole way: the ledger, the shipped worker, a provider, the ledger.

use std::time::Duration;

use multivio::{
    ai::{AiUpkeep, Transform, TransformOutput, TransformRequest},
    cli::jobs::steer,
    ids::{JobId, TenantId},
    jobs::{Engine, NewJob, Queue, State, belt::Belt},
};
use serde_json::{Value, json};

use super::fake::{Fake, Say, delta, finish, refuse, request, streamed, variant};
use crate::harness::{App, eventually, wait_until};

const GOOD: &str = "Shop opens Monday, with cake.";
const SOON: Duration = Duration::from_secs(30);

fn good() -> Say {
    streamed(&variant("x", GOOD))
}

/// An app whose Grok is `grok`, with an engine of the test's own.
async fn app_with(grok: &Fake) -> (App, Engine) {
    let mut app = App::new().await;
    app.set("GROK_API_KEY", "a key for tests").set("GROK_BASE_URL", grok.url.clone()).set("GROK_MODEL", "fake-1");
    app.set("AI_REQUEST_TIMEOUT", "5").set("AI_MAX_RETRIES", "0");
    let belt = Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    let engine = Engine::new(app.pool.clone(), app.session(), belt);
    (app, engine)
}

async fn enqueue(engine: &Engine, tenant: TenantId, request: TransformRequest) -> JobId {
    engine.enqueue(NewJob::of(&Transform(request), tenant)).await.unwrap()
}

async fn result(engine: &Engine, job: JobId) -> (State, Value) {
    let row = engine.wait(None, job, SOON).await.unwrap().unwrap();
    assert!(row.state.is_final(), "{:?}", row.state);
    (row.state, row.result.unwrap_or_default())
}

#[tokio::test]
async fn a_transform_goes_through_the_worker_and_is_given_again_at_no_cost() {
    let grok = Fake::start([good()]).await;
    let (app, engine) = app_with(&grok).await;
    let _worker = app.worker(Queue::Ai).await;
    let job = enqueue(&engine, app.tenant, request()).await;
    let (state, output) = result(&engine, job).await;
    assert_eq!(state, State::Succeeded);
    let first: TransformOutput = serde_json::from_value(output).unwrap();
    assert_eq!((first.variants[0].text.as_str(), first.provider.as_str(), first.cached), (GOOD, "grok", false));
    assert_eq!((first.prompt.as_str(), first.tries.len()), ("shorten@1", 1));
    let events = eventually(SOON, "the events of the job", || async {
        let events = engine.events(job, "0").await.ok()?;
        let tokens: String =
            events.iter().filter(|e| e.name == "token").filter_map(|e| e.data["text"].as_str()).collect();
        (tokens == GOOD).then_some(events)
    })
    .await;
    assert!(events.iter().any(|event| event.name == "progress"));

    let (_, again) = result(&engine, enqueue(&engine, app.tenant, request()).await).await;
    assert_eq!((&again["cached"], again["cost_usd"].as_f64(), grok.calls()), (&json!(true), Some(0.0), 1));
    let (_, foreign) = result(&engine, enqueue(&engine, TenantId::new(), request()).await).await;
    assert_eq!((&foreign["cached"], grok.calls()), (&json!(false), 2), "another workspace pays for its own");
    let fresh = TransformRequest { cache: false, ..request() };
    let (_, fresh) = result(&engine, enqueue(&engine, app.tenant, fresh).await).await;
    assert_eq!((&fresh["cached"], grok.calls()), (&json!(false), 3));
    let open: i64 = sqlx::query_scalar("select count(*) from ai_usage where state <> 'settled'")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(open, 0, "every call was settled");
}

#[tokio::test]
async fn what_can_never_succeed_fails_at_once_in_words_for_people() {
    let grok = Fake::start([refuse(422, r#"{"code":"c","error":"field x is wrong"}"#)]).await;
    let (app, engine) = app_with(&grok).await;
    let _worker = app.worker(Queue::Ai).await;
    let job = enqueue(&engine, app.tenant, request()).await;
    assert_eq!(result(&engine, job).await.0, State::Failed);
    let why: Value =
        sqlx::query_scalar("select why from jobs where id = $1").bind(job).fetch_one(&app.pool).await.unwrap();
    assert_eq!(why["code"], "ai_request_refused");
    assert!(why["message"].as_str().unwrap().contains("field x is wrong"));
    let notes: i64 = sqlx::query_scalar("select count(*) from job_notes where job_id = $1 and what = 'ai_tries'")
        .bind(job)
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!((grok.calls(), notes), (1, 1));
}

#[tokio::test]
async fn a_worker_that_dies_in_a_call_leaves_its_reservation_and_another_run_pays_anew() {
    let half = Say::Hang(vec![delta(&variant("x", GOOD)[..25])]);
    let grok = Fake::start([half, good()]).await;
    let (app, engine) = app_with(&grok).await;
    let mut worker = app.worker(Queue::Ai).await;
    let job = enqueue(&engine, app.tenant, request()).await;
    wait_until(SOON, "the call", || async { grok.calls() == 1 }).await;
    worker.vanish().await;
    let states = "select state from ai_usage order by reserved_at";
    let left: Vec<String> = sqlx::query_scalar(states).fetch_all(&app.pool).await.unwrap();
    assert_eq!(left, ["reserved"], "the reservation outlives the process");
    let _another = app.worker(Queue::Ai).await;
    let (state, _) = result(&engine, job).await;
    assert_eq!((state, grok.calls()), (State::Succeeded, 2));
    let now: Vec<String> = sqlx::query_scalar(states).fetch_all(&app.pool).await.unwrap();
    assert_eq!(now, ["reserved", "settled"]);
    assert_eq!(whole_text(&engine, job, GOOD).await, ["run_again"], "what the dead run had shown is withdrawn");
}

/// Waits until this is what the events of a job add up to; the reasons for which text was withdrawn.
async fn whole_text(engine: &Engine, job: JobId, text: &str) -> Vec<String> {
    eventually(SOON, "the last event", || async {
        let (mut shown, mut voids) = (String::new(), Vec::new());
        for event in engine.events(job, "0").await.ok()? {
            match event.name.as_str() {
                "token" => shown.push_str(event.data["text"].as_str()?),
                "void" => {
                    shown.clear();
                    voids.push(event.data["why"].as_str()?.to_owned());
                }
                _ => {}
            }
        }
        (shown == text).then_some(voids)
    })
    .await
}

#[tokio::test]
async fn text_of_a_run_that_was_handed_back_is_withdrawn_by_the_next() {
    let half = Say::Hang(vec![delta(&variant("x", "Nonsense that goes nowhere")[..25])]);
    let grok = Fake::start([half, good()]).await;
    let (mut app, engine) = app_with(&grok).await;
    app.set("AI_REQUEST_TIMEOUT", "60").set("WORKER_GRACE_SECONDS", "0");
    let mut worker = app.worker(Queue::Ai).await;
    let job = enqueue(&engine, app.tenant, request()).await;
    wait_until(SOON, "a first piece of text", || async {
        engine.events(job, "0").await.is_ok_and(|events| events.iter().any(|event| event.name == "token"))
    })
    .await;
    assert!(worker.program.stop(SOON).await.success());
    let _another = app.worker(Queue::Ai).await;
    assert_eq!(result(&engine, job).await.0, State::Succeeded);
    assert_eq!(whole_text(&engine, job, GOOD).await, ["run_again"]);
}

#[tokio::test]
async fn an_answer_kept_by_a_run_that_died_is_shown_anew() {
    let grok = Fake::start([good()]).await;
    let (app, engine) = app_with(&grok).await;
    let worker = app.worker(Queue::Ai).await;
    let done = enqueue(&engine, app.tenant, request()).await;
    assert_eq!(result(&engine, done).await.0, State::Succeeded);
    drop(worker);
    let job = enqueue(&engine, app.tenant, TransformRequest { cache: false, ..request() }).await;
    let kept = "update jobs set run = 1, checkpoint = (select result from jobs where id = $2) where id = $1";
    sqlx::query(kept).bind(job).bind(done).execute(&app.pool).await.unwrap();
    let _another = app.worker(Queue::Ai).await;
    assert_eq!((result(&engine, job).await.0, grok.calls()), (State::Succeeded, 1), "nobody is asked twice");
    assert_eq!(whole_text(&engine, job, GOOD).await, ["run_again"]);
}

#[tokio::test]
async fn a_cancelled_transform_ends_its_call_and_is_settled() {
    let grok = Fake::start([Say::Hang(vec![delta(&variant("x", GOOD)[..25])])]).await;
    let (app, engine) = app_with(&grok).await;
    let _worker = app.worker(Queue::Ai).await;
    let job = enqueue(&engine, app.tenant, request()).await;
    wait_until(SOON, "the call", || async { grok.calls() == 1 }).await;
    steer::cancel(&engine, job).await.unwrap();
    assert_eq!(result(&engine, job).await.0, State::Cancelled);
    wait_until(SOON, "the settlement", || async {
        let class: Option<String> =
            sqlx::query_scalar("select class from ai_usage").fetch_one(&app.pool).await.unwrap_or_default();
        class.as_deref() == Some("cancelled")
    })
    .await;
}

#[tokio::test]
async fn text_that_is_withdrawn_is_voided_in_the_jobs_events() {
    let broken = Say::Stream(vec![delta(&variant("x", "Nonsense that goes nowhere")[..25])]);
    let grok = Fake::start([broken, good()]).await;
    let (mut app, engine) = app_with(&grok).await;
    app.set("AI_MAX_RETRIES", "1");
    let _worker = app.worker(Queue::Ai).await;
    let job = enqueue(&engine, app.tenant, request()).await;
    assert_eq!(result(&engine, job).await.0, State::Succeeded);
    assert_eq!(whole_text(&engine, job, GOOD).await.len(), 1);
}

#[tokio::test]
async fn upkeep_writes_off_what_dead_processes_left() {
    let grok = Fake::start([Say::Stream(vec![finish("stop")])]).await;
    let (app, engine) = app_with(&grok).await;
    sqlx::query(
        "insert into ai_usage (id, tenant_id, provider, model_asked, attempt, reserved_ticks, expires_at)
         values (gen_random_uuid(), $1, 'grok', 'fake-1', 1, 5, now() - interval '1 second')",
    )
    .bind(app.tenant)
    .execute(&app.pool)
    .await
    .unwrap();
    let _worker = app.worker(Queue::Ops).await;
    let job = engine.enqueue(NewJob::of(&AiUpkeep::default(), TenantId::SYSTEM)).await.unwrap();
    let (state, done) = result(&engine, job).await;
    assert_eq!((state, &done["reservations_written_off"]), (State::Succeeded, &json!(1)), "{done}");
}
