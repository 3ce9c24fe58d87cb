//! A login that is no superuser, on a cluster like Supabase's: it migrates, becomes what the programs are, and is
//! nobody without that.

use multivio::jobs::Queue;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::supabase::like_supabase;
use crate::{
    harness::{App, Servers, eventually},
    publish::SOON,
};

#[tokio::test]
async fn a_plain_login_migrates_serves_and_is_nobody_by_itself() {
    let servers = Servers::private().await;
    let mut app = App::on(&servers).await;
    let (mut superuser, mut url) = like_supabase(&servers, &mut app, "noinherit createrole").await;

    let (done, said) = app.cli(&["migrate"]).await;
    assert!(done, "{said}");
    let (_, said) = app.cli(&["check", "--json"]).await;
    let lines: Vec<Value> = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    for name in ["schema", "sessions", "roles"] {
        let line = lines.iter().find(|line| line["name"] == name).unwrap();
        assert_eq!(line["verdict"], "ok", "{line}");
    }

    let api = app.api().await;
    let worker = app.program(crate::harness::worker_path(Queue::Ops), &[]);
    let (status, post) = api.post("/api/v1/posts", json!({ "universal_content": "kept apart" })).await;
    assert_eq!(status, 201, "{post}");
    let (status, team) = api.post("/api/v1/workspaces", json!({ "name": "Team" })).await;
    assert_eq!(status, 201, "{team}");
    crate::identity::new_key(&api, json!({})).await;
    let (_, theirs) = app.token_of_another();
    let path = format!("/api/v1/posts/{}", post["id"].as_str().unwrap());
    assert_eq!((api.get(&path).await.0, crate::identity::get(&api, &theirs, &path).await.0), (200, 404));
    eventually(SOON, "the canary of the queue", || async {
        let (_, health) = api.get("/health").await;
        let checks = health["checks"].as_array()?.clone();
        checks.iter().any(|check| check["name"] == "queue:ops" && check["state"] == "ok").then_some(())
    })
    .await;
    drop((api, worker));

    // The owner of every table, who has not become anybody.
    let mut session = PgConnection::connect(url.as_str()).await.unwrap();
    for table in ["posts", "jobs", "users", "workspaces", "api_keys", "audit_log", "relay_leader"] {
        let count = format!("select count(*) from {table}");
        let seen: i64 = sqlx::query_scalar(AssertSqlSafe(count.clone())).fetch_one(&mut session).await.unwrap();
        assert_eq!(seen, 0, "{table} is open to its owner");
    }

    // A login that may not become what the programs are is told what to ask for.
    sqlx::raw_sql(
        "create role poor login password 'poor'; grant connect on database plain to poor; \
                   grant select on _sqlx_migrations to poor",
    )
    .execute(&mut superuser)
    .await
    .unwrap();
    url.set_username("poor").unwrap();
    url.set_password(Some("poor")).unwrap();
    app.set("DATABASE_URL", url.as_str());
    let line = roles(&app).await;
    assert_eq!(line["verdict"], "problem", "{line}");
    // With that it becomes them, and is nobody without.
    let remedy = line["remedy"].as_str().unwrap().strip_prefix("As an administrator: ").unwrap();
    sqlx::raw_sql(AssertSqlSafe(remedy.to_owned())).execute(&mut superuser).await.unwrap();
    let line = roles(&app).await;
    assert_eq!(line["verdict"], "ok", "{line}");
}

/// What it is told to ask an administrator for is all that there is to do.
#[tokio::test]
async fn a_login_that_may_make_no_roles_is_told_each_step_of_the_way() {
    let servers = Servers::private().await;
    let mut app = App::on(&servers).await;
    let admin = servers.database_url("postgres").expose_secret().to_owned();
    let mut superuser = PgConnection::connect(&admin).await.unwrap();
    app.pool.close().await;
    for statement in [
        &format!("drop database {} with (force)", app.db.name()),
        "drop database multivio_template with (force)",
        "drop role multivio_api, multivio_worker, multivio_definer",
        "create role modest login password 'modest'",
        "create database modest owner modest",
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut superuser).await.unwrap();
    }
    let above = servers.database_url("modest").expose_secret().to_owned();
    let mut superuser = PgConnection::connect(&above).await.unwrap();
    let mut url = url::Url::parse(&above).unwrap();
    url.set_username("modest").unwrap();
    url.set_password(Some("modest")).unwrap();
    app.set("DATABASE_URL", url.as_str());
    let mut steps = 0;
    loop {
        let (done, said) = app.cli(&["migrate"]).await;
        if done {
            break;
        }
        steps += 1;
        assert!(steps <= 3, "{said}");
        let remedy = said.split("As an administrator: ").nth(1).and_then(|said| said.split(". Then run").next());
        let remedy = remedy.unwrap_or_else(|| panic!("no remedy: {said}")).to_owned();
        sqlx::raw_sql(AssertSqlSafe(remedy)).execute(&mut superuser).await.unwrap();
    }
    assert_eq!(steps, 3, "each role is asked for");
    let line = roles(&app).await;
    assert_eq!(line["verdict"], "ok", "{line}");
}

async fn roles(app: &App) -> Value {
    let ended = app.program(env!("CARGO_BIN_EXE_multivio"), &["check", "--json"]).finish(SOON).await;
    let lines: Vec<Value> =
        serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {}", ended.said));
    lines.into_iter().find(|line| line["name"] == "roles").unwrap()
}
