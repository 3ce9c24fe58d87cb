//! `/api/v1/ai`, through its handlers.

use std::sync::Arc;

use multivio::{
    ai::{Transformer, api::AiApi, models::ModelLists},
    db::TenantDb,
    http::{self, Caller, Scope},
    identity::Scopes,
    jobs::{Engine, belt::Belt},
};
use poem::{Endpoint, EndpointExt, Request, test::TestClient};
use poem_openapi::OpenApiService;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::fake::{CONTENT, Fake, plain};
use crate::harness::App;

async fn client(app: &App) -> TestClient<impl Endpoint> {
    let config = app.config();
    let belt = Belt::new(&config.redis, app.pool.clone()).unwrap();
    let db = TenantDb::new(&config.database, "test").unwrap();
    let engine = Engine::for_callers(app.pool.clone(), db.clone(), belt);
    let models = Arc::new(ModelLists::new(Arc::new(Transformer::new(&config.ai).unwrap())));
    let shared = Arc::new(http::App::new(config, db, engine, CancellationToken::new()).unwrap());
    let caller = Caller::new(app.tenant, app.user, Scopes::of([Scope::Workspace]));
    let service = OpenApiService::new(AiApi, "ai", "1");
    TestClient::new(service.data(models).data(shared).before(move |mut request: Request| {
        request.extensions_mut().insert(caller.clone());
        async move { Ok(request) }
    }))
}

async fn app_with_a_provider() -> App {
    let fake = Fake::start([plain("{}")]).await;
    let mut app = App::new().await;
    app.set("GROK_API_KEY", "a key for tests").set("GROK_BASE_URL", fake.url).set("GROK_MODEL", "grok-4.3");
    app
}

async fn body(response: poem::test::TestResponse) -> (u16, Value) {
    let status = response.0.status().as_u16();
    let text = response.0.into_body().into_string().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[tokio::test]
async fn a_transform_is_accepted_with_the_address_of_its_job() {
    let app = app_with_a_provider().await;
    let client = client(&app).await;
    let wish =
        json!({ "content": CONTENT, "transformation_type": "platform_optimize", "platforms": ["x", "linkedin"] });
    let send = || client.post("/api/v1/ai/transform").header("Idempotency-Key", "k1").body_json(&wish).send();
    let first = send().await;
    first.assert_status(poem::http::StatusCode::ACCEPTED);
    let location = first.0.header("location").unwrap().to_owned();
    let (_, answer) = body(first).await;
    assert_eq!((&answer["job"], &answer["events"]), (&json!(location), &json!(format!("{location}/events"))));
    let (_, repeated) = body(send().await).await;
    assert_eq!(repeated, answer, "the same key does not make a second job");
    let other = client.post("/api/v1/ai/transform").body_json(&wish).send().await;
    assert_ne!(body(other).await.1["job_id"], answer["job_id"]);
    let jobs: Vec<(String, String, Value)> =
        sqlx::query_as("select kind, queue, args from jobs order by id").fetch_all(&app.pool).await.unwrap();
    assert_eq!((jobs.len(), jobs[0].0.as_str(), jobs[0].1.as_str()), (2, "transform", "ai"));
    assert_eq!(jobs[0].2["platforms"], json!(["x", "linkedin"]));
}

#[tokio::test]
async fn what_is_wrong_is_named_with_its_remedy() {
    let app = app_with_a_provider().await;
    let client = client(&app).await;
    for (wish, field) in [
        (json!({ "content": CONTENT, "transformation_type": "platform_optimize" }), "platforms"),
        (json!({ "content": "  ", "transformation_type": "shorten" }), "content"),
        (json!({ "content": "a\u{7}", "transformation_type": "shorten" }), "content"),
        (json!({ "content": "a", "transformation_type": "shorten", "language": "klingon!" }), "language"),
        (
            json!({ "content": "a", "transformation_type": "shorten", "platforms": ["x"], "max_length": 5 }),
            "max_length",
        ),
        (json!({ "content": "a", "transformation_type": "sing" }), "transformation_type"),
        (json!({ "content": "a", "transformation_type": "shorten", "platforms": ["myspace"] }), "platforms[0]"),
        (json!({ "transformation_type": "shorten" }), "content"),
    ] {
        let (status, problem) = body(client.post("/api/v1/ai/transform").body_json(&wish).send().await).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!(field)), "{wish}: {problem}");
        assert!(!problem["errors"][0]["remedy"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn without_a_provider_nothing_is_queued_and_the_answer_says_what_is_missing() {
    let app = App::new().await;
    let client = client(&app).await;
    let wish = json!({ "content": CONTENT, "transformation_type": "shorten" });
    let (status, problem) = body(client.post("/api/v1/ai/transform").body_json(&wish).send().await).await;
    assert_eq!((status, &problem["code"]), (503, &json!("ai_off")));
    assert!(problem["detail"].as_str().unwrap().contains("GROK_API_KEY"));
    let (_, health) = body(client.get("/api/v1/ai/health").send().await).await;
    assert_eq!((&health["available"], &health["providers"][0]["state"]), (&json!(false), &json!("off")));
}

#[tokio::test]
async fn health_models_and_usage_are_told() {
    let app = app_with_a_provider().await;
    let client = client(&app).await;
    let (_, models) = body(client.get("/api/v1/ai/models").send().await).await;
    assert_eq!((&models["items"][0]["model"], &models["items"][0]["output_usd"]), (&json!("grok-4.3"), &json!(2.5)));
    let (_, health) = body(client.get("/api/v1/ai/health").send().await).await;
    assert_eq!(health["providers"][0]["state"], "unreachable", "it lists no models: {health}");
    sqlx::query(
        "insert into ai_usage (id, tenant_id, state, provider, model_asked, attempt, class, reserved_ticks, cost_ticks,
             prompt_tokens, completion_tokens, latency_ms, expires_at, settled_at)
         values (gen_random_uuid(), $1, 'settled', 'grok', 'grok-4.3', 1, 'answered', 9, 25000000000, 10, 5, 80, now(), now())",
    )
    .bind(app.tenant)
    .execute(&app.pool)
    .await
    .unwrap();
    let (_, health) = body(client.get("/api/v1/ai/health").send().await).await;
    assert_eq!((&health["providers"][0]["state"], &health["available"]), (&json!("healthy"), &json!(true)));
    let (_, usage) = body(client.get("/api/v1/ai/usage").send().await).await;
    assert_eq!((&usage["calls"], &usage["cost_usd"]), (&json!(1), &json!(2.5)));
    assert_eq!((&usage["models"][0]["model"], &usage["budget"]), (&json!("grok-4.3"), &Value::Null));
}
