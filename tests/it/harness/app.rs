//! The product as one test sees it: its own database, its own programs, its own media folder.

use std::{sync::Once, time::Duration};

use multivio::{
    config::Config,
    db::Session,
    identity::{Caller, LocalTokens, Scope, Scopes},
    ids::{TenantId, UserId, WorkerId},
    jobs::Queue,
};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::Value;
use sqlx::PgPool;
use tempfile::TempDir;

use super::{Ended, Program, Sandbox, Servers, TestDb, eventually, servers::config_of};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A tenant's view of an installation of the product.
///
/// Nothing runs until it is asked for: `app.api().await`, `app.worker(Queue::Publish).await`.
pub struct App {
    pub db: TestDb,
    pub pool: PgPool,
    pub tenant: TenantId,
    pub user: UserId,
    env: Vec<(String, String)>,
    files: TempDir,
}

impl App {
    /// With a database of its own on the shared servers.
    pub async fn new() -> Self {
        Self::on(Servers::shared()).await
    }

    /// On servers that the test may ill-treat.
    pub async fn on(servers: &Servers) -> Self {
        let db = servers.database().await;
        let files = tempfile::tempdir().expect("a folder for media");
        let folder = |name: &str| files.path().join(name).to_string_lossy().into_owned();
        let env = [
            ("ENVIRONMENT", "development".into()),
            ("LOG_LEVEL", "info,multivio=debug".into()),
            ("HOST", "127.0.0.1".into()),
            ("PORT", "0".into()),
            ("DATABASE_URL", db.url().expose_secret().to_owned()),
            ("DB_POOL_SIZE", "5".into()),
            ("REDIS_URL", servers.redis_url().expose_secret().to_owned()),
            ("ENCRYPTION_KEY", "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=".into()),
            ("JWT_SECRET_KEY", "a secret for tests alone, 32 bytes or more".into()),
            ("STORAGE_FOLDER", folder("media")),
            ("MEDIA_SCRATCH_FOLDER", folder("scratch")),
            ("RATE_LIMIT_REQUESTS", "1000000".into()),
            ("WORKER_GRACE_SECONDS", "5".into()),
        ];
        let env = env.map(|(name, value): (&str, String)| (name.to_owned(), value)).to_vec();
        Self { pool: db.pool(), db, tenant: TenantId::new(), user: UserId::new(), env, files }
    }

    /// Sets a variable for the programs started from now on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.env.retain(|(key, _)| key != name);
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Sends all outside traffic of the programs started from now on to this sandbox.
    pub fn use_sandbox(&mut self, sandbox: &Sandbox) -> &mut Self {
        for (name, value) in sandbox.env() {
            self.set(&name, value);
        }
        self
    }

    /// A sandbox of this test's own, in use.
    pub async fn sandbox(&mut self) -> Sandbox {
        let sandbox = Sandbox::start().await;
        self.use_sandbox(&sandbox);
        sandbox
    }

    /// The settings the programs get, for tests that use the library directly.
    pub fn config(&self) -> Config {
        config_of(&self.env)
    }

    /// As workers open theirs, for engines that a test has in its own process.
    pub fn session(&self) -> Session {
        Session::worker(&self.config().database, "test").expect("the address is well formed")
    }

    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }

    pub fn folder(&self) -> &std::path::Path {
        self.files.path()
    }

    /// `multivio api`, answering.
    pub async fn api(&self) -> Api {
        let mut program = self.program(env!("CARGO_BIN_EXE_multivio"), &["api"]);
        let url = program.url().await;
        Api { program, url, token: self.token(), client: http_client() }
    }

    /// A worker of this queue, registered and fetching.
    pub async fn worker(&self, queue: Queue) -> Worker {
        self.worker_with(queue, &[]).await
    }

    /// With settings of its own.
    pub async fn worker_with(&self, queue: Queue, env: &[(&str, &str)]) -> Worker {
        self.start_worker(worker_path(queue), queue, env).await
    }

    /// The tests' own worker of the `ops` queue.
    pub async fn scripted_worker(&self) -> Worker {
        self.start_worker(env!("CARGO_BIN_EXE_test-worker"), Queue::Ops, &[]).await
    }

    async fn start_worker(&self, path: &str, queue: Queue, env: &[(&str, &str)]) -> Worker {
        let mut all = self.env.clone();
        all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut program = Program::start(path, &[], &all);
        let (id, pid) = eventually(READY_WITHIN, &format!("the {queue} worker to register"), || {
            assert!(!program.has_ended(), "the {queue} worker ended:\n{}", program.log());
            // The worker itself is a child of the process that we started.
            let family: Vec<_> = program.process().family().iter().filter_map(|pid| i32::try_from(*pid).ok()).collect();
            async move {
                let row: Option<(WorkerId, i32)> = sqlx::query_as(
                    "select id, pid from workers where pid = any($1) and queue = $2 and state = 'alive'
                     order by started_at desc limit 1",
                )
                .bind(family)
                .bind(queue.as_str())
                .fetch_optional(&self.pool)
                .await
                .ok()?;
                row
            }
        })
        .await;
        Worker { program, id, pid: u32::try_from(pid).expect("a process has a positive number") }
    }

    /// One of the product's programs, whatever it does, with this app's settings.
    pub fn program(&self, path: &str, args: &[&str]) -> Program {
        Program::start(path, args, &self.env)
    }

    /// `multivio ARGS`, to its end: whether it succeeded, and what it said.
    pub async fn cli(&self, args: &[&str]) -> (bool, String) {
        let program = self.program(env!("CARGO_BIN_EXE_multivio"), args);
        let Ended { status, said, .. } = program.finish(Duration::from_secs(60)).await;
        (status.success(), said)
    }

    /// A token of this app's own tenant.
    pub fn token(&self) -> String {
        self.token_for(self.tenant, &[Scope::Workspace, Scope::Admin])
    }

    pub fn token_for(&self, tenant: TenantId, scopes: &[Scope]) -> String {
        self.token_of(tenant, self.user, scopes)
    }

    pub fn token_of(&self, tenant: TenantId, user: UserId, scopes: &[Scope]) -> String {
        // Whether the programs accept it is another question.
        let on = [&self.env[..], &[("LOCAL_TOKENS".to_owned(), "on".to_owned())]].concat();
        let config = config_of(&on).jwt.expect("tests have a secret");
        let local = LocalTokens::new(&config).expect("the tests' secret is long enough");
        let caller = Caller::new(tenant, user, Scopes::of(scopes.iter().copied()));
        local.issue(&caller, None).expose_secret().to_owned()
    }
}

/// A running `multivio api`, called as the app's own tenant.
pub struct Api {
    pub program: Program,
    pub url: String,
    pub token: String,
    pub client: reqwest::Client,
}

impl Api {
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.call(Method::DELETE, path, None).await
    }

    /// A request to be finished by the test: further headers, another body, another token.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        request.bearer_auth(&self.token).timeout(Duration::from_secs(60))
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.request(method.clone(), path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let status = response.status().as_u16();
        let text = response.text().await.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

/// A running worker: the process that runs jobs, and the one that was started, which watches over it (E11).
pub struct Worker {
    pub program: Program,
    /// Of the first process that ran jobs; its successors have others.
    pub id: WorkerId,
    pub pid: u32,
}

impl Worker {
    /// The process that runs jobs at this moment; `None` between a crash and its successor.
    pub fn running(&mut self) -> Option<u32> {
        self.program.process().family().get(1).copied()
    }

    /// SIGKILL to the process that runs jobs; whoever watches over it says why it died and starts another.
    pub fn crash(&mut self) {
        self.signal_running(libc::SIGKILL);
    }

    /// Stops the process that runs jobs in its tracks; [`Self::resume`] lets it go on.
    pub fn pause(&mut self) {
        self.signal_running(libc::SIGSTOP);
    }

    pub fn resume(&mut self) {
        self.signal_running(libc::SIGCONT);
    }

    /// SIGKILL to both, as when the machine goes.
    pub async fn vanish(&mut self) {
        self.program.process().signal_group(libc::SIGKILL);
        self.program.kill().await;
    }

    fn signal_running(&mut self, signal: libc::c_int) {
        let pid = self.running().expect("a process of it runs jobs");
        let pid = libc::pid_t::try_from(pid).expect("process numbers fit their own type");
        // SAFETY: plain numbers; it was a child of a program of ours a moment ago.
        unsafe { libc::kill(pid, signal) };
    }
}

/// The program that runs jobs of this queue.
pub fn worker_path(queue: Queue) -> &'static str {
    match queue {
        Queue::Publish => env!("CARGO_BIN_EXE_multivio-publish"),
        Queue::Ai => env!("CARGO_BIN_EXE_multivio-ai"),
        Queue::Media => env!("CARGO_BIN_EXE_multivio-media"),
        Queue::Ops => env!("CARGO_BIN_EXE_multivio-ops"),
    }
}

pub(super) fn http_client() -> reqwest::Client {
    static CRYPTO: Once = Once::new();
    CRYPTO.call_once(|| {
        // An error means that somebody else has chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder().no_proxy().build().expect("a client without special wishes can be built")
}
