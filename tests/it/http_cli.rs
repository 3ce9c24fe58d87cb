//! `multivio`'s own commands, as they are typed.

use std::time::Duration;

use multivio::ids::TenantId;
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

#[tokio::test]
async fn the_list_of_jobs_shows_priorities_and_leaves_the_installations_own_out_unless_they_failed() {
    let app = App::new().await;
    let insert = "insert into jobs (id, tenant_id, queue, lane, kind, priority, args, max_attempts, timeout_ms, run_at, \
                  due_at, state) values (gen_random_uuid(), $1, 'ops', 'default', $2, 0, '{}', 8, 60000, \
                  now() + interval '1 day', now() + interval '1 day', 'scheduled')";
    for (tenant, kind) in [(app.tenant, "of_somebody"), (TenantId::SYSTEM, "of_the_house")] {
        sqlx::query(insert).bind(tenant).bind(kind).execute(&app.pool).await.unwrap();
    }
    let (done, said) = app.cli(&["jobs", "list"]).await;
    assert!(done && said.contains("of_somebody") && said.contains("PRIORITY"), "{said}");
    let line = said.lines().find(|line| line.contains("of_somebody")).unwrap();
    assert!(line.contains("high"), "{line}");
    let id = line.split_whitespace().next().unwrap();
    let (_, shown) = app.cli(&["jobs", "show", id]).await;
    assert!(shown.lines().any(|line| line.contains("priority") && line.contains("high")), "{shown}");
    assert!(!said.contains("of_the_house"), "{said}");
    let tenant = TenantId::SYSTEM.to_string();
    for words in [&["--all"][..], &["--kind", "of_the_house"], &["--tenant", &tenant]] {
        let (done, said) = app.cli(&[&["jobs", "list"], words].concat()).await;
        assert!(done && said.contains("of_the_house"), "{words:?}: {said}");
    }
    let failed = "update jobs set state = 'failed', finished_at = now() where kind = 'of_the_house'";
    sqlx::query(failed).execute(&app.pool).await.unwrap();
    let (done, said) = app.cli(&["jobs", "list"]).await;
    assert!(done && said.contains("of_the_house"), "a failure is no noise: {said}");
    let (_, help) = app.cli(&["jobs", "list", "--help"]).await;
    assert!(help.contains("--all"), "{help}");
}

#[tokio::test]
async fn migrate_says_what_it_applies_before_it_does() {
    let servers = Servers::private().await;
    let mut app = App::on(&servers).await;
    servers.control().await.postgres.create_database("empty").await.unwrap();
    app.set("DATABASE_URL", secrecy::ExposeSecret::expose_secret(&servers.database_url("empty")));
    let (done, said) = app.cli(&["migrate"]).await;
    assert!(done && said.contains("may take many minutes"), "{said}");
    let place = |words: &str| said.find(words).unwrap_or_else(|| panic!("no {words:?} in {said}"));
    assert!(place("applying 0001") < place("applied 0001") && place("applied 0001") < place("applying 0002"), "{said}");
}
