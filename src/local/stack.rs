//! The whole product on this machine: its own servers, the API, one worker of each queue and, when asked for, the
//! sandbox that stands in for every outside service.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use super::{Kept, LocalError, Recipe, ServerOptions, Servers, WatchedServers, free_port, sandbox_settings};
use crate::{
    config::{Config, ConfigError},
    db::MIGRATIONS,
    jobs::Queue,
};

const DATABASE: &str = "multivio";
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Beyond a worker's own grace time: for handing back what is not finished.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// What to run, and where.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// Everything is kept below it.
    pub folder: PathBuf,
    /// Where the API listens; `None`: HOST and PORT. Port 0 is any that is free.
    pub listen: Option<SocketAddr>,
    /// All outside traffic goes to a sandbox of this installation's own.
    pub sandbox: bool,
    /// Show every program's log.
    pub verbose: bool,
    /// Settings of this installation's own; the environment wins over them.
    pub defaults: Vec<(String, String)>,
}

/// A running installation. [`Stack::stop`] ends it in order; dropping it ends it at once.
#[derive(Debug)]
pub struct Stack {
    pub api_url: String,
    pub sandbox_url: Option<String>,
    /// What the programs were started with.
    pub env: Vec<(String, String)>,
    pub config: Config,
    programs: Vec<Kept>,
    servers: WatchedServers,
}

#[derive(Debug, thiserror::Error)]
pub enum StackError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error("{} is missing: build all programs (`cargo build --bins`)", .0.display())]
    NoProgram(PathBuf),
    #[error("{0} is taken: stop what listens there, or choose another with --listen (port 0 is any free one)")]
    AddressTaken(SocketAddr),
    #[error("the schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("the database could not be asked")]
    Database(#[from] sqlx::Error),
    #[error("{name} did not come up within {} s; the last lines of its log:\n{last_words}", READY_WITHIN.as_secs())]
    NotReady { name: &'static str, last_words: String },
    #[error("stopped before everything was up")]
    Stopped,
}

impl Stack {
    /// Starts everything and waits until it works. `tell` hears what is being done; `stop` breaks off.
    pub async fn start(
        options: StackOptions,
        stop: &CancellationToken,
        tell: impl Fn(&str),
    ) -> Result<Self, StackError> {
        match stop.run_until_cancelled(Self::start_all(options, tell)).await {
            Some(outcome) => outcome,
            None => Err(StackError::Stopped),
        }
    }

    async fn start_all(options: StackOptions, tell: impl Fn(&str)) -> Result<Self, StackError> {
        tell("starting Postgres and Redis");
        let servers = Servers::start(ServerOptions::durable(&options.folder)).await?;
        let mut stack = Setting::prepare(servers, options).await?;
        if stack.options.sandbox {
            tell("starting the sandbox");
            stack.start_sandbox().await?;
        }
        tell("starting the API and the workers");
        let stack = stack.start_programs().await?;
        Ok(stack)
    }

    /// Where everything is kept.
    pub fn folder(&self) -> &Path {
        self.servers.asked()
    }

    pub fn logs(&self) -> PathBuf {
        self.folder().join("logs")
    }

    /// Stops programs, then servers, each with its time to finish. Once `hurry` is cancelled, at once.
    pub async fn stop(self, hurry: &CancellationToken) -> Result<(), LocalError> {
        let Self { programs, servers, .. } = self;
        let in_order = async {
            for program in &programs {
                program.ask_to_stop();
            }
            for program in programs {
                program.stopped().await;
            }
        };
        // Breaking off drops the rest, which kills it; the servers still write what they have.
        let _ = hurry.run_until_cancelled(in_order).await;
        servers.stop().await
    }

    /// [`Self::stop`], and nothing is left of it.
    pub async fn stop_and_remove(self, hurry: &CancellationToken) -> Result<(), LocalError> {
        let folder = self.servers.removal();
        self.stop(hurry).await?;
        folder.remove()
    }
}

/// A stack on its way up.
struct Setting {
    options: StackOptions,
    /// Before the servers, so that a failed start ends them in this order.
    programs: Vec<Kept>,
    servers: Servers,
    config: Config,
    env: Vec<(String, String)>,
    api: SocketAddr,
    sandbox_url: Option<String>,
    http: reqwest::Client,
}

impl Setting {
    /// Settings, secrets and schema.
    async fn prepare(servers: Servers, options: StackOptions) -> Result<Self, StackError> {
        if !servers.postgres.database_exists(DATABASE).await? {
            servers.postgres.create_database(DATABASE).await?;
        }
        let url = servers.postgres.url(DATABASE);
        let mut connection = PgConnection::connect(url.expose_secret()).await?;
        MIGRATIONS.run(&mut connection).await?;
        connection.close().await?;

        let folder = servers.asked().to_owned();
        let below = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let mut env = vec![
            ("DATABASE_URL".to_owned(), url.expose_secret().to_owned()),
            ("REDIS_URL".to_owned(), servers.redis.url().expose_secret().to_owned()),
            // These servers are this machine's own, whoever vouches for others.
            ("DATABASE_CA_CERT".to_owned(), String::new()),
            ("REDIS_CA_CERT".to_owned(), String::new()),
            // What runs here is for whoever sits here: they sign in with a token of their own.
            ("LOCAL_TOKENS".to_owned(), "on".to_owned()),
            ("STORAGE_FOLDER".to_owned(), below("media")),
            ("MEDIA_SCRATCH_FOLDER".to_owned(), below("scratch")),
        ];
        env.extend(options.defaults.iter().filter(|(name, _)| !Config::is_set(name)).cloned());
        if !Config::is_set("ENCRYPTION_KEY") {
            let key = servers.kept("encryption.key", || STANDARD.encode(rand::random::<[u8; 32]>()))?;
            env.push(("ENCRYPTION_KEY".to_owned(), key));
        }
        if !Config::is_set("JWT_SECRET_KEY") {
            let secret = servers.kept("jwt.secret", || hex::encode(rand::random::<[u8; 32]>()))?;
            env.push(("JWT_SECRET_KEY".to_owned(), secret));
        }
        let given = Config::from_env_with(&env)?;
        let mut api = options.listen.unwrap_or(SocketAddr::new(given.api.host, given.api.port));
        if api.port() == 0 {
            api.set_port(free_port().map_err(LocalError::io("find a free port"))?);
        } else if std::net::TcpListener::bind(api).is_err() {
            return Err(StackError::AddressTaken(api));
        }
        env.push(("HOST".to_owned(), api.ip().to_string()));
        env.push(("PORT".to_owned(), api.port().to_string()));
        let logs = folder.join("logs");
        fs::create_dir_all(&logs).map_err(LocalError::io(format!("make the folder {}", logs.display())))?;
        let config = Config::from_env_with(&env)?;
        let http = crate::local::http_client();
        Ok(Self { options, servers, config, env, api, sandbox_url: None, programs: Vec::new(), http })
    }

    async fn start_sandbox(&mut self) -> Result<(), StackError> {
        let port = free_port().map_err(LocalError::io("find a free port"))?;
        let listen = format!("127.0.0.1:{port}");
        let url = format!("http://{listen}");
        // Accounts, tokens and posts survive a restart, as those of the real services do.
        let state = self.servers.asked().join("sandbox.json");
        let args = ["--listen".to_owned(), listen, "--state".to_owned(), state.to_string_lossy().into_owned()];
        self.run("sandbox", "multivio-sandbox", &args, Vec::new())?;
        self.answers("sandbox", &format!("{url}/_sandbox/health")).await?;
        self.env.extend(sandbox_settings(&url));
        self.config = Config::from_env_with(&self.env)?;
        self.sandbox_url = Some(url);
        Ok(())
    }

    async fn start_programs(mut self) -> Result<Stack, StackError> {
        let url = self.servers.postgres.url(DATABASE);
        let mut connection = PgConnection::connect(url.expose_secret()).await?;
        let since: DateTime<Utc> = sqlx::query_scalar("select now()").fetch_one(&mut connection).await?;
        self.run("api", "multivio", &["api".to_owned()], self.env.clone())?;
        for queue in Queue::ALL {
            self.run(queue.as_str(), &format!("multivio-{queue}"), &[], self.env.clone())?;
        }
        let host = match self.api.ip() {
            ip if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            ip => ip,
        };
        let api_url = format!("http://{}", SocketAddr::new(host, self.api.port()));
        self.answers("api", &format!("{api_url}/health/ready")).await?;
        self.workers_registered(&mut connection, since).await?;
        connection.close().await?;
        self.write_env()?;
        let Self { servers, config, env, sandbox_url, programs, .. } = self;
        // From here on: one that dies while everything starts is why it did not.
        let servers = WatchedServers::watch(servers);
        Ok(Stack { api_url, sandbox_url, env, config, programs, servers })
    }

    fn run(
        &mut self,
        name: &'static str,
        program: &str,
        args: &[String],
        env: Vec<(String, String)>,
    ) -> Result<(), StackError> {
        let beside = std::env::current_exe().map_err(LocalError::io("find this program's own place"))?;
        let program = beside.with_file_name(program);
        if !program.is_file() {
            return Err(StackError::NoProgram(program));
        }
        let recipe = Recipe {
            name,
            program,
            args: args.to_vec(),
            env,
            log: self.servers.asked().join("logs").join(name).with_extension("log"),
            verbose: self.options.verbose,
            grace: self.config.worker.grace + STOP_MARGIN,
        };
        self.programs.push(Kept::start(recipe)?);
        Ok(())
    }

    /// Until `url` answers with success.
    async fn answers(&self, name: &'static str, url: &str) -> Result<(), StackError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let answer = self.http.get(url).timeout(Duration::from_secs(5)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.not_ready(name));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn workers_registered(&self, connection: &mut PgConnection, since: DateTime<Utc>) -> Result<(), StackError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let alive: Vec<String> =
                sqlx::query_scalar("select distinct queue from workers where state = 'alive' and started_at >= $1")
                    .bind(since)
                    .fetch_all(&mut *connection)
                    .await?;
            let missing = Queue::ALL.iter().find(|queue| !alive.iter().any(|name| name == queue.as_str()));
            let Some(missing) = missing else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(self.not_ready(missing.as_str()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn not_ready(&self, name: &'static str) -> StackError {
        let program = self.programs.iter().find(|program| program.name() == name);
        StackError::NotReady { name, last_words: program.map(Kept::last_words).unwrap_or_default() }
    }

    /// The settings for other shells: `set -a; . .multivio/env; set +a`.
    fn write_env(&self) -> Result<(), LocalError> {
        let mut text = String::from("# Written at every start of `multivio up`. Holds secrets.\n");
        for (name, value) in &self.env {
            text.push_str(&format!("{name}='{}'\n", value.replace('\'', r"'\''")));
        }
        self.servers.write_private("env", &text)
    }
}
