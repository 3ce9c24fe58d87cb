//! Postgres behind a pooler: sessions work, shared sessions are refused.

use std::time::Duration;

use multivio::{
    db::{Session, TenantDb, pooler},
    jobs::Queue,
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::{
    harness::{App, Ended, PgBouncer, Servers, eventually, worker_path},
    publish::SOON,
};

async fn behind(mode: &str, more: &str) -> (App, PgBouncer) {
    let servers = Servers::shared();
    let mut app = App::on(servers).await;
    let bouncer = PgBouncer::start(servers, &app.db, mode, more).await;
    let url = servers.database_url_at(app.db.name(), bouncer.port());
    app.set("DATABASE_URL", url.expose_secret());
    (app, bouncer)
}

#[tokio::test]
async fn everything_works_behind_a_pooler_that_gives_sessions() {
    let (mut app, _bouncer) = behind("session", "default_pool_size = 60").await;
    let (done, said) = app.cli(&["check", "--json"]).await;
    let lines: Vec<Value> = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let verdict = |name: &str| lines.iter().find(|line| line["name"] == name).unwrap()["verdict"].clone();
    for name in ["database", "schema", "sessions", "roles"] {
        assert_eq!(verdict(name), "ok", "{done} {said}");
    }
    app.set("GROK_API_KEY", "one").set("DB_POOL_SIZE", "2");
    let api = app.api().await;
    let _worker = app.worker(Queue::Ops).await;
    for number in 0..20 {
        let body = json!({ "universal_content": format!("post {number}") });
        assert_eq!(api.post("/api/v1/posts", body).await.0, 201);
    }
    let (_, list) = api.get("/api/v1/posts?limit=100").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 20);
    // The canary goes the whole way: enqueued, claimed, run, settled.
    eventually(SOON, "the canary of the queue", || async {
        let (_, health) = api.get("/health").await;
        let checks = health["checks"].as_array()?.clone();
        checks.iter().any(|check| check["name"] == "queue:ops" && check["state"] == "ok").then_some(())
    })
    .await;
    let (status, job) = api
        .post("/api/v1/ai/transform", json!({"content": "A text to be shortened.", "transformation_type": "shorten"}))
        .await;
    assert_eq!(status, 202, "{job}");
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_refused_by_every_program_with_the_remedy() {
    for more in ["", "server_round_robin = 1\nmin_pool_size = 5", "default_pool_size = 1"] {
        let (app, _bouncer) = behind("transaction", more).await;
        let (done, said) = app.cli(&["check"]).await;
        assert!(!done && said.contains("transaction mode") && said.contains("session mode"), "{more}: {said}");
        let multivio = env!("CARGO_BIN_EXE_multivio");
        for (path, args) in [
            (multivio, &["api"][..]),
            (multivio, &["migrate"]),
            (multivio, &["jobs", "list"]),
            (multivio, &["keys", "rotate", "--check"]),
            (worker_path(Queue::Ops), &[]),
        ] {
            let Ended { status, said, .. } = app.program(path, args).finish(Duration::from_secs(40)).await;
            assert!(!status.success() && said.contains("transaction mode"), "{path} {args:?} {more}: {said}");
        }
    }
}

#[tokio::test]
async fn no_call_is_served_before_it_is_known_that_sessions_are_not_shared() {
    let (app, _bouncer) = behind("transaction", "").await;
    let db = TenantDb::new(&app.config().database, "test").unwrap();
    for _ in 0..3 {
        let refused = db.nobody().await.map(drop).unwrap_err();
        assert!(pooler::is_shared(&refused), "{refused}");
    }
    // One that is reached directly is not suspected, however many connect at once.
    let direct = Session::login(&App::new().await.config().database, "test").unwrap();
    for outcome in futures::future::join_all((0..10).map(|_| pooler::prove(&direct))).await {
        outcome.unwrap();
    }
}
