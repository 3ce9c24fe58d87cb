//! The same write sent twice happens once.

use std::{sync::Arc, time::Duration};

use multivio::{
    db::TenantDb,
    http::{
        Accepted, App as State, Caller, IdempotencyKey, Input, Problem, Turn, gate::Paths, idempotency,
        limits::RateLimiter, parameters::Parameters, router, server,
    },
    ids::{GroupId, TenantId},
    jobs::{Engine, belt::Belt},
};
use poem::web::Data;
use poem_openapi::{Object, OpenApi, OpenApiService};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{App, eventually};

struct Writes;

#[derive(Object)]
struct Wish {
    name: String,
    #[oai(default)]
    slow: bool,
}

#[derive(Object)]
struct Made {
    group: GroupId,
}

#[OpenApi(prefix_path = "/api/v1")]
impl Writes {
    /// Makes a group, as any write makes its rows.
    #[oai(path = "/groups", method = "post")]
    async fn make(
        &self,
        app: Data<&Arc<State>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        wish: Input<Wish>,
    ) -> Result<Accepted<Made>, Problem> {
        let mut tx = app.db.begin(&caller).await?;
        let request = json!({ "name": wish.0.name, "slow": wish.0.slow });
        let claim = match key.claim::<Accepted<Made>>(&mut tx, &caller, Some(request)).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let group = app.engine.new_group(&mut tx, caller.tenant, &wish.0.name).await?;
        if wish.0.slow {
            sqlx::query("select pg_sleep(0.5)").execute(&mut *tx).await?;
        }
        if wish.0.name == "refused" {
            return Err(Problem::conflict("refused", "as asked"));
        }
        let answer = claim.keep(&mut tx, Accepted::new(format!("/api/v1/groups/{group}"), Made { group })).await?;
        tx.commit().await?;
        Ok(answer)
    }
}

struct Served {
    url: String,
    client: Client,
    stop: CancellationToken,
}

impl Served {
    async fn new(app: &App) -> Self {
        let (config, stop, db) = (app.config(), CancellationToken::new(), app.pool.clone());
        let belt = Belt::new(&config.redis, db.clone()).unwrap();
        let limiter = Arc::new(RateLimiter::new(&config.api, None));
        let callers = TenantDb::new(&config.database, "test").unwrap();
        let engine = Engine::for_callers(db, callers.clone(), belt);
        let state = State::new(config, callers, engine, stop.clone()).unwrap();
        let calls = OpenApiService::new(Writes, "test", "1");
        let metrics = router::metrics_of(calls.spec().as_bytes());
        let parameters = Arc::new(Parameters::new(calls.spec().as_bytes()));
        let calls = poem::Route::new().nest("/", calls);
        let routes = router::guarded(calls, Arc::new(state), limiter, Arc::new(metrics), parameters, Paths::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v1/groups", listener.local_addr().unwrap());
        tokio::spawn(server::serve(listener, routes, stop.clone()));
        Self { url, client: crate::http::client(), stop }
    }

    async fn send(&self, token: &str, key: &str, body: Value) -> Response {
        let request = self.client.post(&self.url).bearer_auth(token).header("Idempotency-Key", key).json(&body);
        request.send().await.unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn groups(app: &App) -> i64 {
    sqlx::query_scalar("select count(*) from job_groups").fetch_one(&app.pool).await.unwrap()
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_again() {
    let app = App::new().await;
    let served = Served::new(&app).await;
    let token = app.token();
    let first = served.send(&token, "k1", json!({ "name": "a", "slow": false })).await;
    assert_eq!(first.status(), 202);
    assert!(!first.headers().contains_key("idempotent-replayed"));
    let location = first.headers()["location"].clone();
    let body: Value = first.json().await.unwrap();
    assert_eq!(location, format!("/api/v1/groups/{}", body["group"].as_str().unwrap()));

    // The same request, written differently.
    let again = served.send(&token, "k1", json!({ "name": "a" })).await;
    assert_eq!((again.status().as_u16(), &again.headers()["location"]), (202, &location));
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(again.json::<Value>().await.unwrap(), body);
    assert_eq!(groups(&app).await, 1);

    let other = served.send(&token, "k1", json!({ "name": "b" })).await;
    assert_eq!(other.status(), 422);
    assert_eq!(other.json::<Value>().await.unwrap()["code"], "idempotency_key_reused");
    assert_eq!(groups(&app).await, 1);
}

#[tokio::test]
async fn a_key_is_its_tenants_own() {
    let app = App::new().await;
    let served = Served::new(&app).await;
    let other = app.token_for(TenantId::new(), &[multivio::http::Scope::Workspace]);
    assert_eq!(served.send(&app.token(), "k1", json!({ "name": "a" })).await.status(), 202);
    let theirs = served.send(&other, "k1", json!({ "name": "b" })).await;
    assert_eq!(theirs.status(), 202);
    assert!(!theirs.headers().contains_key("idempotent-replayed"));
    assert_eq!(groups(&app).await, 2);
}

#[tokio::test]
async fn of_a_crowd_with_one_key_one_does_the_work_and_nobody_waits_behind_it() {
    let app = App::new().await;
    let served = Served::new(&app).await;
    let token = app.token();
    let body = json!({ "name": "slow", "slow": true });
    let crowd = futures::future::join_all((0..8).map(|_| served.send(&token, "k1", body.clone()))).await;
    let done = crowd.iter().filter(|answer| answer.status() == 202).count();
    let refused: Vec<_> = crowd.iter().filter(|answer| answer.status() == 409).collect();
    assert!(done >= 1 && done + refused.len() == 8, "{crowd:?}");
    assert!(refused.iter().all(|answer| answer.headers().contains_key("retry-after")));
    assert_eq!(groups(&app).await, 1);
    let late = served.send(&token, "k1", body).await;
    assert_eq!((late.status().as_u16(), &late.headers()["idempotent-replayed"]), (202, &"true".parse().unwrap()));
}

#[tokio::test]
async fn work_that_did_not_happen_leaves_its_key_free() {
    let app = App::new().await;
    let served = Served::new(&app).await;
    let token = app.token();
    assert_eq!(served.send(&token, "k1", json!({ "name": "refused" })).await.status(), 409);
    assert_eq!(groups(&app).await, 0);
    // What was begun is rolled back while its answer is on the way: for a moment the key may still be in use.
    eventually(Duration::from_secs(5), "the key to be free", || async {
        let answer = served.send(&token, "k1", json!({ "name": "a" })).await;
        assert!(answer.status() == 202 || answer.headers().contains_key("retry-after"), "{answer:?}");
        (answer.status() == 202).then_some(())
    })
    .await;
}

#[tokio::test]
async fn keys_are_forgotten_after_a_week_and_not_before() {
    let app = App::new().await;
    let served = Served::new(&app).await;
    for key in ["old", "young"] {
        assert_eq!(served.send(&app.token(), key, json!({ "name": key })).await.status(), 202);
    }
    let age = |days: i32, key: &'static str| {
        sqlx::query("update idempotency_keys set created_at = now() - make_interval(days => $1) where key = $2")
            .bind(days)
            .bind(key)
            .execute(&app.pool)
    };
    age(8, "old").await.unwrap();
    age(6, "young").await.unwrap();
    assert_eq!(idempotency::prune(&app.pool, 100).await.unwrap(), 1);
    assert_eq!(idempotency::prune(&app.pool, 100).await.unwrap(), 0);
    let kept: Vec<String> = sqlx::query_scalar("select key from idempotency_keys").fetch_all(&app.pool).await.unwrap();
    assert_eq!(kept, ["young"]);
}
