//! The servers of this run, and a database for each test.

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Stdio,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use multivio::{
    config::{Config, DatabaseConfig},
    db::MIGRATIONS,
    local::{self, ServerFolder, ServerOptions},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::RwLock;

const TEMPLATE: &str = "multivio_template";

/// One Postgres and one Redis, with a migrated template database.
///
/// [`Servers::shared`] is for every test that treats them well; a test that kills, stops, fills or empties one
/// takes [`Servers::private`].
pub struct Servers {
    inner: RwLock<local::Servers>,
    postgres_port: u16,
    redis_port: u16,
    /// With the place for the database's name left out.
    postgres_base: SecretString,
    redis_url: SecretString,
}

impl Servers {
    /// This run's own, started with the first call, without waiting for the disk.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Servers> = OnceLock::new();

        extern "C" fn end() {
            // Nobody holds it any more: tests are over when the process exits.
            if let Some(mut servers) = SHARED.get().and_then(|shared| shared.inner.try_write().ok()) {
                servers.stop_now();
                remove_behind(&servers);
            }
        }

        SHARED.get_or_init(|| {
            ServerFolder::sweep(&parent_folder());
            // SAFETY: `end` is a plain function that lives as long as the process.
            let registered = unsafe { libc::atexit(end) };
            assert_eq!(registered, 0, "the servers could not be tied to the end of the process");
            // On a thread and a runtime of its own: the caller may be inside one.
            let start = || runtime().block_on(Self::start(ServerOptions::throwaway(new_folder())));
            std::thread::spawn(start).join().expect("the shared servers start")
        })
    }

    /// A set of one's own, which waits for the disk as production does. Dropping it stops and removes it.
    pub async fn private() -> Self {
        Self::start(ServerOptions::durable(new_folder())).await
    }

    async fn start(options: ServerOptions) -> Self {
        let servers = local::Servers::start(options).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        servers.postgres.create_database(TEMPLATE).await.expect("the template is made");
        let url = servers.postgres.url(TEMPLATE);
        let mut connection = PgConnection::connect(url.expose_secret()).await.expect("the template can be reached");
        MIGRATIONS.run(&mut connection).await.expect("the migrations run");
        connection.close().await.expect("the template can be left");
        Self {
            postgres_port: servers.postgres.port(),
            redis_port: servers.redis.port(),
            postgres_base: servers.postgres.url(""),
            redis_url: servers.redis.url(),
            inner: RwLock::new(servers),
        }
    }

    /// To ill-treat them: `servers.control().await.redis.flush().await`.
    pub async fn control(&self) -> tokio::sync::RwLockWriteGuard<'_, local::Servers> {
        self.inner.write().await
    }

    /// A migrated database that nobody else uses, with an identity of its own on the shared Redis.
    pub async fn database(&self) -> TestDb {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let servers = self.inner.read().await;
        servers.postgres.create_database_from(&name, TEMPLATE).await.expect("a database is made from the template");
        drop(servers);
        let db = TestDb {
            config: DatabaseConfig {
                url: self.database_url(&name),
                authority: None,
                max_connections: 10,
                acquire_timeout: std::time::Duration::from_secs(5),
            },
            name,
        };
        let mut connection = PgConnection::connect(db.url().expose_secret()).await.expect("the database answers");
        for sql in
            ["update installation set id = gen_random_uuid()", "update relay_leader set belt_epoch = gen_random_uuid()"]
        {
            sqlx::query(sql).execute(&mut connection).await.expect("the copy gets an identity of its own");
        }
        connection.close().await.expect("the database can be left");
        db
    }

    /// Through a proxy on another port, say.
    pub fn database_url_at(&self, name: &str, port: u16) -> SecretString {
        let direct = format!(":{}/", self.postgres_port);
        self.database_url(name).expose_secret().replace(&direct, &format!(":{port}/")).into()
    }

    pub fn redis_url_at(&self, port: u16) -> SecretString {
        let direct = format!("127.0.0.1:{}", self.redis_port);
        self.redis_url.expose_secret().replace(&direct, &format!("127.0.0.1:{port}")).into()
    }

    pub fn database_url(&self, name: &str) -> SecretString {
        format!("{}{name}", self.postgres_base.expose_secret()).into()
    }

    pub fn redis_url(&self) -> &SecretString {
        &self.redis_url
    }

    pub fn postgres_port(&self) -> u16 {
        self.postgres_port
    }

    pub fn redis_port(&self) -> u16 {
        self.redis_port
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.inner.get_mut().end_now();
    }
}

/// Lets another program remove the files, which outlives this one: many databases are hundreds of thousands of files, and
/// a disk that is told of each one's end (ext4 with `discard`) takes minutes for them. What it leaves the next run sweeps.
fn remove_behind(servers: &local::Servers) {
    let mut rm = std::process::Command::new("rm");
    rm.args(["-rf", "--"]).args([servers.folder(), servers.asked()]);
    rm.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = rm.process_group(0).spawn();
}

/// One test's own database. It goes with its servers.
pub struct TestDb {
    name: String,
    config: DatabaseConfig,
}

impl TestDb {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn url(&self) -> &SecretString {
        &self.config.url
    }

    /// The tests' own eyes, above row level security, with the limits of the product's sessions.
    pub fn pool(&self) -> PgPool {
        multivio::db::login_pool(&self.config, "test").expect("the address is well formed")
    }
}

/// The settings of a program that uses this database, as that program would read them.
pub fn config_of(env: &[(String, String)]) -> Config {
    let lookup = |name: &str| env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    Config::load(&lookup).unwrap_or_else(|error| panic!("{error}"))
}

fn parent_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("servers")
}

fn new_folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    parent_folder().join(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

fn chain(error: &dyn std::error::Error) -> String {
    multivio::telemetry::chain(error)
}
