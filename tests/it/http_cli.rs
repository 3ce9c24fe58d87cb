//! `multivio`'s own commands, as they are typed.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{App, Ended, Servers};

#[tokio::test]
async fn many_that_migrate_at_once_apply_each_migration_once() {
    let servers = Servers::private().await;
    let mut app = App::on(&servers).await;
    servers.control().await.postgres.create_database("empty").await.unwrap();
    let url = servers.database_url("empty");
    app.set("DATABASE_URL", secrecy::ExposeSecret::expose_secret(&url));
    let (done, said) = app.cli(&["migrate", "--dry-run"]).await;
    assert!(done && said.contains("Would apply"), "{said}");
    let runs = futures::future::join_all((0..4).map(|_| app.cli(&["migrate"]))).await;
    assert!(runs.iter().all(|(done, said)| *done && said.contains("up to date")), "{runs:?}");
    let applied: usize = runs.iter().map(|(_, said)| said.matches("applied 0001").count()).sum();
    assert_eq!(applied, 1, "{runs:?}");
    let (done, said) = app.cli(&["migrate", "--json"]).await;
    assert!(done && said.trim() == "[]", "{said}");
}

#[tokio::test]
async fn migrate_waits_for_a_server_that_is_still_starting() {
    let servers = Servers::private().await;
    let app = App::on(&servers).await;
    servers.control().await.postgres.stop().await.unwrap();
    let migrating = app.cli(&["migrate", "--wait", "30"]);
    let starting = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        servers.control().await.postgres.run().await.unwrap();
    };
    let ((done, said), ()) = tokio::join!(migrating, starting);
    assert!(done && said.contains("waiting for the database"), "{said}");
    servers.control().await.postgres.stop().await.unwrap();
    let (done, said) = app.cli(&["migrate", "--wait", "1"]).await;
    assert!(!done && said.contains("did not answer within 1 s"), "{said}");
}

#[tokio::test]
async fn check_is_content_with_a_good_installation_and_names_everything_that_is_not() {
    let mut app = App::new().await;
    let (done, said) = app.cli(&["check", "--json"]).await;
    let lines: Vec<Value> = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let verdict = |name: &str| lines.iter().find(|line| line["name"] == name).unwrap()["verdict"].clone();
    for name in ["settings", "tokens", "encryption", "database", "schema", "sessions", "redis", "redis memory"] {
        assert_eq!(verdict(name), "ok", "{said}");
    }
    // The shared test servers do not wait for the disk, and `check` has to notice.
    assert_eq!(verdict("durability"), "warning", "{said}");
    assert!(done || said.contains("ffmpeg"), "{said}");

    app.set("DATABASE_URL", "postgres://nobody:hunter2@127.0.0.1:1/x").set("REDIS_URL", "redis://:hunter2@127.0.0.1:1");
    app.set("FFMPEG", "/nowhere/ffmpeg").set("STORAGE_FOLDER", "/proc/nothing").set("JWT_SECRET_KEY", "short");
    let (done, said) = app.cli(&["check"]).await;
    assert!(!done && !said.contains("hunter2"), "{said}");
    for part in
        ["DATABASE_URL", "REDIS_URL", "apt-get install ffmpeg", "STORAGE_FOLDER", "JWT_SECRET_KEY", "problem(s)"]
    {
        assert!(said.contains(part), "{part} is missing from:\n{said}");
    }
    app.set("PORT", "many").set("REDIS_URL", "");
    let (done, said) = app.cli(&["check"]).await;
    assert!(!done && said.contains("PORT") && said.contains("REDIS_URL"), "{said}");
}

#[tokio::test]
async fn a_token_opens_the_api_and_is_all_that_is_printed() {
    let app = App::new().await;
    let mut api = app.api().await;
    let (done, token) = app.cli(&["token"]).await;
    assert!(done && token.split('.').count() == 3 && !token.contains('\n'), "{token}");
    api.token = token;
    assert_eq!(api.get("/api/v1/jobs").await.0, 200);
    let (_, token) = app.cli(&["token", "--scope", "admin"]).await;
    api.token = token;
    assert_eq!(api.get("/api/v1/jobs").await.0, 403);
}

#[tokio::test]
async fn wrong_use_and_wrong_settings_end_with_2_and_the_remedy() {
    let mut app = App::new().await;
    let run = async |app: &App, args: &[&str]| {
        let program = app.program(env!("CARGO_BIN_EXE_multivio"), args);
        let Ended { status, said, .. } = program.finish(Duration::from_secs(20)).await;
        (status.code(), said)
    };
    for args in [&["jobs", "pause", "everything"][..], &["jobs", "show", "job_1"], &["nothing"], &["jobs", "retry"]] {
        let (code, said) = run(&app, args).await;
        assert_eq!(code, Some(2), "{args:?}: {said}");
    }
    app.set("DATABASE_URL", "");
    let (code, said) = run(&app, &["api"]).await;
    assert!(code == Some(2) && said.contains("DATABASE_URL") && said.contains(".env.sample"), "{said}");
    app.set("DATABASE_URL", "postgres://u@127.0.0.1:1/x").set("JWT_SECRET_KEY", "");
    let (code, said) = run(&app, &["token"]).await;
    assert!(code == Some(2) && said.contains("openssl rand"), "{said}");
}
