//! What every call shares, over real sockets: problems, the gate, limits.

use std::{sync::Arc, time::Duration};

use multivio::{
    config::ApiConfig,
    db::TenantDb,
    http::{
        Caller, Input, Problem,
        gate::Paths,
        limits::{RateLimiter, Shared, Subject, Verdict},
        page,
        parameters::Parameters,
        router, server,
    },
    ids::{JobId, UserId},
    jobs::{Engine, belt::Belt},
};
use poem_openapi::{
    Object, OpenApi, OpenApiService,
    param::{Path, Query},
    payload::Json,
};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{App, Servers};

/// Calls that show one thing each.
struct Calls;

#[derive(Object)]
struct Note {
    #[oai(validator(min_length = 1, max_length = 10))]
    text: String,
    job: Option<JobId>,
}

#[OpenApi(prefix_path = "/api/v1")]
impl Calls {
    #[oai(path = "/echo", method = "post")]
    async fn echo(&self, _caller: Caller, note: Input<Note>) -> Result<Json<usize>, Problem> {
        Ok(Json(note.0.text.len()))
    }

    #[oai(path = "/things/:id", method = "get")]
    async fn thing(&self, _caller: Caller, id: Path<JobId>) -> Result<Json<String>, Problem> {
        let _id = id.0;
        Err(Problem::not_found("thing"))
    }

    #[oai(path = "/list", method = "get")]
    async fn list(
        &self,
        _caller: Caller,
        limit: Query<Option<u16>>,
        cursor: Query<Option<String>>,
    ) -> Result<Json<u16>, Problem> {
        page::decode::<u32>("list", cursor.0.as_deref())?;
        Ok(Json(page::limit(limit.0)?))
    }

    #[oai(path = "/panic", method = "get")]
    async fn panic(&self, _caller: Caller) -> Result<Json<u8>, Problem> {
        panic!("the inside story");
    }

    #[oai(path = "/database", method = "get")]
    async fn database(
        &self,
        caller: Caller,
        app: poem::web::Data<&Arc<multivio::http::App>>,
    ) -> Result<Json<i32>, Problem> {
        Ok(Json(sqlx::query_scalar("select 1").fetch_one(&mut *app.db.of(&caller).await?).await?))
    }
}

/// These calls behind all that is shared.
pub struct Served {
    pub url: String,
    pub token: String,
    client: reqwest::Client,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Served {
    pub async fn new(app: &App) -> Self {
        let config = app.config();
        let stop = CancellationToken::new();
        let own_db = multivio::db::pool(&config.database, "test").unwrap();
        let db = TenantDb::new(&config.database, "test").unwrap();
        let belt = Belt::new(&config.redis, own_db.clone()).unwrap();
        let limiter = Arc::new(RateLimiter::new(&config.api, Some(Shared::new(belt.clone()))));
        let engine = Engine::for_callers(own_db, db.clone(), belt);
        let state = multivio::http::App::new(config, db, engine, stop.clone()).unwrap();
        let calls = OpenApiService::new(Calls, "test", "1");
        let metrics = router::metrics_of(calls.spec().as_bytes());
        let parameters = Arc::new(Parameters::new(calls.spec().as_bytes()));
        let calls = poem::Route::new().nest("/", calls);
        let routes = router::guarded(calls, Arc::new(state), limiter, Arc::new(metrics), parameters, Paths::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let ended = tokio::spawn(server::serve(listener, routes, stop.clone()));
        Self { url, token: app.token(), client: client(), stop, ended }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    pub fn echo(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request(Method::POST, "/api/v1/echo").header("content-type", "application/json").body(body)
    }
}

pub fn client() -> reqwest::Client {
    // An error means that somebody else has chosen one already.
    let _chosen = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        self.ended.abort();
    }
}

/// The problem in an answer, after checking that it is a whole one.
async fn problem(request: RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json", "status {status}");
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    assert_eq!(body["type"], format!("urn:multivio:problem:{}", body["code"].as_str().unwrap()));
    assert!(!body["title"].as_str().unwrap().is_empty() && !body["detail"].as_str().unwrap().is_empty());
    body
}

#[tokio::test]
async fn every_way_to_ask_wrongly_gets_a_problem_that_names_the_field() {
    let served = Served::new(&App::new().await).await;
    let get = |path: &str| served.request(Method::GET, path);
    let typed = |kind| served.request(Method::POST, "/api/v1/echo").header("content-type", kind).body("{}");
    let cases = [
        (get("/api/v1/nothing"), 404, "no_such_path", None),
        (get("/nothing"), 404, "no_such_path", None),
        (served.request(Method::DELETE, "/api/v1/echo"), 405, "method_not_allowed", None),
        (get("/api/v1/things/job_1"), 400, "bad_parameter", Some("id")),
        (get("/api/v1/things/post_01988f6e5d3a7c41b2f09e6d8a417c35"), 400, "bad_parameter", Some("id")),
        (get("/api/v1/things/job_01988f6e5d3a7c41b2f09e6d8a417c35"), 404, "not_found", None),
        (get("/api/v1/list?limit=many"), 400, "bad_parameter", Some("limit")),
        (get("/api/v1/list?limit=0"), 400, "bad_parameter", Some("limit")),
        (get("/api/v1/list?limit=-1"), 400, "bad_parameter", Some("limit")),
        (get("/api/v1/list?cursor=x"), 400, "bad_parameter", Some("cursor")),
        (served.echo("{"), 400, "malformed_json", None),
        (served.echo("{\"text\": \"\\ud800\"}"), 400, "malformed_json", None),
        (served.echo(vec![b'"', 0xff, b'"']), 400, "malformed_json", None),
        (served.echo("[".repeat(100_000)), 400, "malformed_json", None),
        (served.echo(""), 422, "invalid", Some("body")),
        (served.echo("{}"), 422, "invalid", Some("text")),
        (served.echo("{\"text\": [1]}"), 422, "invalid", Some("text")),
        (served.echo("{\"text\": \"\"}"), 422, "invalid", Some("text")),
        (served.echo("{\"text\": \"12345678901\"}"), 422, "invalid", Some("text")),
        (served.echo("{\"text\": \"a\\u0000\"}"), 422, "invalid", Some("text")),
        (served.echo("{\"text\": \"a\", \"job\": \"usr_1\"}"), 422, "invalid", Some("job")),
        (served.request(Method::POST, "/api/v1/echo").body("{}"), 415, "unsupported_media_type", Some("Content-Type")),
        (typed("text/plain"), 415, "unsupported_media_type", Some("Content-Type")),
        (typed("application/xml"), 415, "unsupported_media_type", Some("Content-Type")),
        (served.echo("x".repeat((1 << 20) + 1)), 413, "payload_too_large", None),
    ];
    for (number, (request, status, code, field)) in cases.into_iter().enumerate() {
        let body = problem(request).await;
        assert_eq!((&body["status"], &body["code"]), (&status.into(), &code.into()), "case {number}: {body}");
        assert_eq!(body.get("field").and_then(Value::as_str), field, "case {number}: {body}");
        if let Some(field) = field {
            let named = body["errors"][0].clone();
            assert_eq!(named["field"], field);
            assert!(!named["remedy"].as_str().unwrap().is_empty(), "case {number} has no remedy: {body}");
        }
    }
    let not_allowed = served.request(Method::DELETE, "/api/v1/echo").send().await.unwrap();
    assert_eq!(not_allowed.headers()["allow"], "POST");
    let not_allowed = served.request(Method::POST, "/api/v1/list").send().await.unwrap();
    assert_eq!(not_allowed.headers()["allow"], "GET, HEAD");
    let echoed = served.echo("{\"text\": \"hello\"}").send().await.unwrap();
    assert_eq!((echoed.status().as_u16(), echoed.text().await.unwrap().as_str()), (200, "5"));
}

#[tokio::test]
async fn a_panic_ends_one_request_and_tells_nothing() {
    let served = Served::new(&App::new().await).await;
    let body = problem(served.request(Method::GET, "/api/v1/panic").header("x-request-id", "mine-1")).await;
    assert_eq!((&body["status"], &body["request_id"]), (&500.into(), &"mine-1".into()));
    assert!(!body.to_string().contains("inside story"));
    assert_eq!(served.echo("{\"text\": \"on\"}").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn nobody_gets_in_without_a_token_and_all_refusals_look_alike() {
    let app = App::new().await;
    let served = Served::new(&app).await;
    let elsewhere = {
        let config = multivio::config::JwtConfig {
            secret: "a secret of another installation, long".into(),
            access_token_lifetime: Duration::from_secs(60),
        };
        let caller = Caller::new(app.tenant, app.user, Default::default());
        secrecy::ExposeSecret::expose_secret(
            &multivio::identity::LocalTokens::new(&config).unwrap().issue(&caller, None),
        )
        .to_owned()
    };
    let payload = served.token.split('.').nth(1).unwrap();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{payload}.");
    let mut cut = served.token.clone();
    cut.truncate(cut.len() - 3);
    let mut bodies = Vec::new();
    for credential in [None, Some(elsewhere), Some(unsigned), Some(cut), Some(String::new()), Some("x".repeat(6000))] {
        for path in ["/api/v1/list", "/api/v1/panic", "/api/v1/nothing"] {
            let mut request = served.client.get(format!("{}{path}", served.url));
            if let Some(credential) = &credential {
                request = request.header("authorization", format!("Bearer {credential}"));
            }
            let body = problem(request).await;
            assert_eq!(body["status"], 401, "{credential:?} {path}");
            bodies.push(body);
        }
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "an answer tells what was wrong with the token");
}

#[tokio::test]
async fn the_limit_is_told_and_kept_and_is_each_callers_own() {
    let mut app = App::new().await;
    app.set("RATE_LIMIT_REQUESTS", "5").set("RATE_LIMIT_WINDOW", "30");
    let served = Served::new(&app).await;
    for left in (0..5).rev() {
        let response = served.request(Method::GET, "/api/v1/list").send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["ratelimit-policy"], "\"requests\";q=5;w=30");
        let told = response.headers()["ratelimit"].to_str().unwrap().to_owned();
        assert!(told.starts_with(&format!("\"requests\";r={left};t=")), "{told}");
    }
    let body = problem(served.request(Method::GET, "/api/v1/list")).await;
    assert_eq!((&body["status"], &body["code"]), (&429.into(), &"rate_limited".into()));
    assert!((1..=30).contains(&body["retry_after"].as_u64().unwrap()));
    // A stranger is counted by address, not on this user's account, and the other way round.
    let stranger = problem(served.client.get(format!("{}/api/v1/list", served.url))).await;
    assert_eq!(stranger["status"], 401);
}

fn limits(requests: u32, window: Duration) -> ApiConfig {
    ApiConfig {
        host: [127, 0, 0, 1].into(),
        port: 0,
        allowed_origins: Vec::new(),
        trusted_proxies: 0,
        proxy_networks: Vec::new(),
        proxy_header: String::new(),
        rate_limit_requests: requests,
        rate_limit_address_requests: requests,
        rate_limit_window: window,
        metrics_token: None,
    }
}

async fn passes(limiter: &RateLimiter, subject: Subject) -> bool {
    matches!(limiter.count(subject, 1).await, Verdict::Pass { .. })
}

#[tokio::test]
async fn processes_share_one_limit_and_hold_little_back() {
    let app = App::new().await;
    let belt = Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    let config = limits(1_000, Duration::from_secs(60));
    let processes: Vec<_> = (0..4).map(|_| RateLimiter::new(&config, Some(Shared::new(belt.clone())))).collect();
    let subject = Subject::User(UserId::new());
    let passed = futures::future::join_all(processes.iter().map(|process| async move {
        let mut passed = 0;
        for _ in 0..600 {
            passed += u32::from(passes(process, subject).await);
        }
        passed
    }))
    .await;
    let passed: u32 = passed.into_iter().sum();
    assert_eq!(passed, 1_000, "2,400 requests came in; exactly the limit had to pass");
}

#[tokio::test]
async fn without_redis_each_process_keeps_the_limit_by_itself() {
    let servers = Servers::private().await;
    let app = App::on(&servers).await;
    let belt = Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    let limiter = RateLimiter::new(&limits(10, Duration::from_secs(60)), Some(Shared::new(belt)));
    servers.control().await.redis.stop().await.unwrap();
    let subject = Subject::User(UserId::new());
    let started = std::time::Instant::now();
    let mut passed = 0;
    for _ in 0..30 {
        passed += u32::from(passes(&limiter, subject).await);
    }
    assert_eq!(passed, 10);
    assert!(started.elapsed() < Duration::from_secs(2), "requests waited for Redis: {:?}", started.elapsed());
}

#[tokio::test]
async fn strangers_are_told_apart_by_our_own_proxies_words_alone() {
    let mut app = App::new().await;
    app.set("RATE_LIMIT_REQUESTS", "2").set("RATE_LIMIT_ADDRESS_REQUESTS", "3");
    let ask = async |served: &Served, token: bool, said: &str| {
        let mut request = served.client.get(format!("{}/api/v1/list", served.url)).header("x-forwarded-for", said);
        if token {
            request = request.bearer_auth(&served.token);
        }
        request.send().await.unwrap()
    };
    // Nobody told us of a proxy: whatever a client writes there, it stays the same stranger.
    let alone = Served::new(&app).await;
    let mut statuses = Vec::new();
    for said in ["198.51.100.1", "198.51.100.2", "198.51.100.3"] {
        statuses.push(ask(&alone, false, said).await.status().as_u16());
    }
    assert_eq!(statuses, [401, 401, 429]);

    app.set("TRUSTED_PROXIES", "1");
    let behind = Served::new(&app).await;
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let said = format!("127.0.0.1, {client}");
        assert_eq!(ask(&behind, false, &said).await.status(), 401, "{client} is somebody else");
    }
    // It is not our proxy that connects from there: whatever it says, it is one stranger.
    app.set("TRUSTED_PROXY_NETWORKS", "192.0.2.0/24");
    let past = Served::new(&app).await;
    let mut statuses = Vec::new();
    for said in ["198.51.100.4", "198.51.100.5", "198.51.100.6"] {
        statuses.push(ask(&past, false, said).await.status().as_u16());
    }
    assert_eq!(statuses.last(), Some(&429), "{statuses:?}");

    // Many users at one address share what an address may.
    let mut names = Vec::new();
    for user in 0..4 {
        let mut other = App::new().await;
        other.set("RATE_LIMIT_REQUESTS", "2");
        let request = behind.client.get(format!("{}/api/v1/list", behind.url)).header("x-forwarded-for", "203.0.113.7");
        let response = request.bearer_auth(other.token()).send().await.unwrap();
        assert_eq!(response.headers()["ratelimit-policy"], "\"requests\";q=2;w=60, \"address\";q=3;w=60");
        let told = response.headers()["ratelimit"].to_str().unwrap();
        names.push((response.status().as_u16(), told.split(';').next().unwrap().to_owned()));
        assert_eq!(response.headers().contains_key("retry-after"), user == 3);
    }
    assert_eq!(names.last().unwrap(), &(429, "\"address\"".to_owned()), "{names:?}");
    assert!(names[..3].iter().all(|(status, _)| *status == 200), "{names:?}");
}

#[tokio::test]
async fn a_call_that_keeps_a_model_busy_counts_for_several() {
    let mut app = App::new().await;
    app.set("RATE_LIMIT_REQUESTS", "25");
    let api = app.api().await;
    let left = async |method: Method, path: &str| {
        let response = api.request(method, path).json(&json!({})).send().await.unwrap();
        let told = response.headers()["ratelimit"].to_str().unwrap().to_owned();
        told.split("r=").nth(1).unwrap().split(';').next().unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(left(Method::GET, "/api/v1/jobs").await, 24);
    assert_eq!(left(Method::POST, "/api/v1/ai/transform").await, 14);
    assert_eq!(left(Method::POST, "/api/v1/posts").await, 13);
    assert_eq!(left(Method::POST, "/api/v1/connections/x/callback").await, 8);
    assert_eq!(left(Method::POST, "/api/v1/patreon/link/finish").await, 3);
}

#[tokio::test]
async fn a_database_that_is_away_is_a_503_that_passes() {
    let servers = Servers::private().await;
    let mut app = App::on(&servers).await;
    app.set("DB_POOL_TIMEOUT", "1");
    let served = Served::new(&app).await;
    let ask = || served.request(Method::GET, "/api/v1/database");
    assert_eq!(ask().send().await.unwrap().status(), 200);
    servers.control().await.postgres.stop().await.unwrap();
    let response: Response = ask().send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.json::<Value>().await.unwrap()["code"], "unavailable");
    servers.control().await.postgres.run().await.unwrap();
    crate::harness::wait_until(Duration::from_secs(10), "the API to come back by itself", || async {
        ask().send().await.is_ok_and(|response| response.status() == 200)
    })
    .await;
}

#[tokio::test]
async fn what_is_in_flight_when_it_stops_is_still_answered() {
    let served = Served::new(&App::new().await).await;
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let late = futures::stream::once(async move {
        let _sent = receiver.await;
        Ok::<_, std::io::Error>("{\"text\": \"late\"}")
    });
    let answer = tokio::spawn(served.echo(reqwest::Body::wrap_stream(late)).send());
    crate::harness::wait_until(Duration::from_secs(5), "the request to arrive", || async {
        served.client.get(format!("{}/nothing", served.url)).send().await.is_ok()
    })
    .await;
    served.stop.cancel();
    sender.send(()).unwrap();
    assert_eq!(answer.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn the_product_itself_is_described_and_open_only_where_it_should() {
    let app = App::new().await;
    let api = app.api().await;
    let (status, document) = api.get("/openapi.json").await;
    assert_eq!((status, document["openapi"].as_str()), (200, Some("3.0.0")));
    for (path, calls) in document["paths"].as_object().unwrap() {
        for (method, call) in calls.as_object().unwrap() {
            let address = format!("{}{}", api.url, path.replace("{id}", "job_01988f6e5d3a7c41b2f09e6d8a417c35"));
            let request = api.client.request(method.to_uppercase().parse().unwrap(), address);
            let status = request.send().await.unwrap().status().as_u16();
            if path.starts_with("/api/") {
                assert_eq!(status, 401, "{method} {path} is open");
                assert!(call["security"].is_array(), "{method} {path} does not say that it needs a token");
            } else {
                // A webhook without its secret is none.
                let open = if path.starts_with("/webhooks/") { status == 404 } else { matches!(status, 200 | 503) };
                assert!(open, "{method} {path}: {status}");
            }
            // A question that is too long for an address writes nothing.
            let is_write = !path.ends_with("/validate")
                && path.starts_with("/api/")
                && matches!(method.as_str(), "post" | "patch" | "put" | "delete");
            let takes_key = call["parameters"].to_string().contains("\"Idempotency-Key\"");
            assert!(takes_key || !is_write, "{method} {path} takes no Idempotency-Key");
            assert!(call["operationId"].is_string(), "{method} {path} has no operationId");
        }
    }
    let options = api.request(Method::OPTIONS, "/api/v1/posts/validate").send().await.unwrap();
    assert_eq!((options.status().as_u16(), &options.headers()["allow"]), (405, &"POST".parse().unwrap()));
    let docs = api.client.get(format!("{}/docs", api.url)).send().await.unwrap();
    let policy = docs.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("connect-src 'self'"), "{policy}");
    assert!(docs.text().await.unwrap().contains("/api/v1/jobs"));
    let (status, figures) = api.get("/metrics").await;
    assert_eq!(status, 200);
    let figures = figures.as_str().unwrap();
    assert!(figures.contains("multivio_http_requests_total{method=\"GET\",route=\"/api/v1/jobs\",status=\"4xx\"} 1"));
    assert!(figures.contains("multivio_queue_working{queue=\"publish\"} 0"), "{figures}");
}

#[test]
fn the_document_in_the_repository_is_current() {
    let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json")).unwrap();
    assert!(kept == multivio::api::openapi_json(), "write it anew: cargo run -- openapi > openapi.json");
    // Nobody sees the calls under a path that is there twice, but the last.
    let mut paths: Vec<&str> = kept.lines().filter(|line| line.starts_with("    \"/")).collect();
    let all = paths.len();
    paths.sort_unstable();
    paths.dedup();
    assert!(all > 40 && paths.len() == all, "{all} paths, of which {} are told apart", paths.len());
}

#[tokio::test]
async fn health_tells_what_works_and_readiness_only_whether_it_can_commit() {
    let servers = Servers::private().await;
    let mut app = App::on(&servers).await;
    app.set("DB_POOL_TIMEOUT", "1").set("FFPROBE", "/nowhere/ffprobe");
    let api = app.api().await;
    let state = |health: &Value, name: &str| {
        let checks = health["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["name"] == name).unwrap()["state"].clone()
    };
    let (status, health) = api.get("/health").await;
    assert_eq!((status, &health["status"]), (200, &json!("degraded")), "no worker runs: {health}");
    assert_eq!((state(&health, "database"), state(&health, "redis")), (json!("ok"), json!("ok")));
    for queue in ["publish", "ai", "media", "ops"] {
        let checks = health["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == format!("queue:{queue}")).unwrap();
        let note = check["note"].as_str().unwrap();
        assert_eq!(check["state"], "down", "{check}");
        assert!(
            note.starts_with(&format!("no worker of the queue \"{queue}\" runs: its jobs are taken and kept")),
            "{note}"
        );
    }
    for (name, expected) in [("storage", "ok"), ("ffprobe", "down"), ("language models", "off"), ("platform:x", "off")]
    {
        assert_eq!(state(&health, name), expected, "{name}: {health}");
    }

    servers.control().await.redis.stop().await.unwrap();
    assert_eq!(api.get("/health/ready").await.0, 200, "Redis is an accelerator, not a need");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(state(&api.get("/health").await.1, "redis"), "down");

    servers.control().await.postgres.stop().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (status, ready) = api.get("/health/ready").await;
    assert_eq!((status, &ready["status"]), (503, &json!("down")));
    assert_eq!(api.get("/health").await.0, 503);
    assert_eq!(api.get("/health/live").await.0, 200);
    servers.control().await.postgres.run().await.unwrap();
    crate::harness::wait_until(Duration::from_secs(10), "readiness to come back", || async {
        api.get("/health/ready").await.0 == 200
    })
    .await;
}
