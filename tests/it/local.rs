//! The private servers themselves.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use multivio::local::{Dump, LocalError, ServerOptions, Servers as LocalServers};
use redis::AsyncCommands;
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};

use crate::harness::{App, Servers, wait_until};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn each_test_has_a_migrated_database_of_its_own() {
    let (one, other) = (App::new().await, App::new().await);
    let id = "select id::text from installation";
    let first: String = sqlx::query_scalar(id).fetch_one(&one.pool).await.unwrap();
    let second: String = sqlx::query_scalar(id).fetch_one(&other.pool).await.unwrap();
    assert_ne!(first, second, "two databases on one Redis must not share an identity");
    let jobs: i64 = sqlx::query_scalar("select count(*) from jobs").fetch_one(&one.pool).await.unwrap();
    assert_eq!(jobs, 0);
}

#[tokio::test]
async fn what_was_committed_survives_a_kill_of_both_servers() {
    // Below a folder that the servers' user cannot enter, as `/root` is.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let options = ServerOptions::durable(folder.path().join("data"));
    let mut servers = LocalServers::start(options.clone()).await.unwrap();
    let password = servers.postgres.url("postgres").expose_secret().to_owned();
    execute(&servers, "create table kept (n int)").await;
    execute(&servers, "insert into kept values (1)").await;
    redis_of(&servers).await.set::<_, _, ()>("kept", 1).await.unwrap();

    servers.postgres.kill().await.unwrap();
    servers.redis.kill().await.unwrap();
    servers.postgres.run().await.unwrap();
    servers.redis.run().await.unwrap();
    assert_eq!(servers.postgres.url("postgres").expose_secret(), password, "a restart keeps the address");
    assert_eq!(count(&servers, "select count(*) from kept").await, 1);
    assert_eq!(redis_of(&servers).await.get::<_, i64>("kept").await.unwrap(), 1);

    // And a second owner, later, in the same folder.
    servers.stop().await.unwrap();
    let servers = LocalServers::start(options).await.unwrap();
    assert_eq!(count(&servers, "select count(*) from kept").await, 1);
    assert_eq!(redis_of(&servers).await.get::<_, i64>("kept").await.unwrap(), 1);
    servers.stop_and_remove().await.unwrap();
    assert!(!folder.path().join("data").exists());
}

#[tokio::test]
async fn durable_servers_wait_for_the_disk_and_throw_nothing_away() {
    let servers = Servers::private().await;
    let control = servers.control().await;
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let mut connection = connect(&control).await;
        let value: String =
            sqlx::query_scalar("select current_setting($1)").bind(setting).fetch_one(&mut connection).await.unwrap();
        assert_eq!(value, "on", "{setting}");
    }
    let mut redis = redis_of(&control).await;
    for (name, expected) in [("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("bind", "127.0.0.1")] {
        let answer: Vec<String> = redis::cmd("config").arg(&["get", name]).query_async(&mut redis).await.unwrap();
        assert_eq!(answer[1], expected, "{name}");
    }
}

#[tokio::test]
async fn a_redis_can_come_back_empty_or_as_an_old_copy_of_itself() {
    let servers = Servers::private().await;
    let mut control = servers.control().await;
    redis_of(&control).await.set::<_, _, ()>("age", "old").await.unwrap();
    let old: Dump = control.redis.dump().await.unwrap();
    redis_of(&control).await.set::<_, _, ()>("age", "new").await.unwrap();

    control.redis.restart().await.unwrap();
    assert_eq!(redis_of(&control).await.get::<_, String>("age").await.unwrap(), "new");
    control.redis.restart_from(&old).await.unwrap();
    assert_eq!(redis_of(&control).await.get::<_, String>("age").await.unwrap(), "old");
    control.redis.restart().await.unwrap();
    assert_eq!(redis_of(&control).await.get::<_, String>("age").await.unwrap(), "old", "the old copy is kept");
    control.redis.restart_empty().await.unwrap();
    assert_eq!(redis_of(&control).await.get::<_, Option<String>>("age").await.unwrap(), None);
    redis_of(&control).await.set::<_, _, ()>("age", "newest").await.unwrap();
    control.redis.flush().await.unwrap();
    assert_eq!(redis_of(&control).await.get::<_, Option<String>>("age").await.unwrap(), None);
}

#[tokio::test]
async fn a_paused_postgres_keeps_its_connections_and_answers_nothing() {
    let servers = Servers::private().await;
    let mut control = servers.control().await;
    let mut connection = connect(&control).await;
    control.postgres.pause().unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(300), connection.ping()).await;
    assert!(answer.is_err(), "a stopped server must not answer");
    control.postgres.resume().unwrap();
    tokio::time::timeout(SOON, connect(&control).await.ping()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_folder_in_use_is_refused_and_the_running_servers_go_on() {
    let servers = Servers::private().await;
    let control = servers.control().await;
    let folder = control.folder().to_owned();
    // As root the files may be elsewhere; the lock is where the folder was asked for.
    let asked = std::fs::read_dir(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers")).unwrap();
    let mut refused = 0;
    for entry in asked.flatten() {
        let path = entry.path();
        let link = std::fs::read_link(path.join("servers")).ok();
        if path == folder || link.is_some_and(|link| link == folder) {
            let again = LocalServers::start(ServerOptions::durable(path)).await;
            assert!(matches!(again, Err(LocalError::FolderInUse(_))));
            refused += 1;
        }
    }
    assert_eq!(refused, 1);
    assert_eq!(count(&control, "select 1::bigint").await, 1);
}

/// The test starts itself again as a run that never ends, kills that with SIGKILL, and looks for survivors.
#[tokio::test]
async fn nothing_is_left_when_the_owner_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut owner = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "local::an_owner_that_never_ends", "--ignored", "--nocapture", "--test-threads=1"])
        .env("MULTIVIO_TEST_OWNER_FOLDER", &data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ready = data.join("ready");
    wait_until(SOON * 2, "the owner's servers", || async { ready.exists() }).await;
    let ports: Vec<u16> =
        std::fs::read_to_string(&ready).unwrap().split(' ').map(|port| port.parse().unwrap()).collect();
    assert_eq!(ports.len(), 2);
    for port in &ports {
        std::net::TcpStream::connect(("127.0.0.1", *port)).expect("the server listens while its owner lives");
    }

    let killed = Instant::now();
    owner.kill().await.unwrap();
    wait_until(SOON, "the servers to go with their owner", || {
        let gone = ports.iter().all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_err());
        async move { gone }
    })
    .await;
    assert!(killed.elapsed() < SOON);
    // What it left on the disk is swept by the next run.
    multivio::local::ServerFolder::sweep(folder.path());
    assert!(!data.exists());
}

#[tokio::test]
#[ignore = "a part of nothing_is_left_when_the_owner_is_killed"]
async fn an_owner_that_never_ends() {
    #[expect(clippy::disallowed_methods, reason = "handed over by the test that starts this one")]
    let Some(data) = std::env::var_os("MULTIVIO_TEST_OWNER_FOLDER").map(std::path::PathBuf::from) else { return };
    let servers = LocalServers::start(ServerOptions::durable(&data)).await.unwrap();
    let ports = format!("{} {}", servers.postgres.port(), servers.redis.port());
    std::fs::write(data.join("ready.new"), ports).unwrap();
    std::fs::rename(data.join("ready.new"), data.join("ready")).unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
}

async fn connect(servers: &LocalServers) -> PgConnection {
    PgConnection::connect(servers.postgres.url("postgres").expose_secret()).await.unwrap()
}

async fn execute(servers: &LocalServers, sql: &'static str) {
    sqlx::query(sql).execute(&mut connect(servers).await).await.unwrap();
}

async fn count(servers: &LocalServers, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&mut connect(servers).await).await.unwrap()
}

async fn redis_of(servers: &LocalServers) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(servers.redis.url().expose_secret()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}
