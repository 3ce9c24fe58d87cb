//! What every measurement stands on: servers of its own, a fresh database, the production programs.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    cli::{Failure, working::spinner},
    config::Config,
    db::{MIGRATIONS, Session},
    local::{Durability, LocalError, Persistence, Process, ServerFolder, ServerOptions, Servers, Spawning},
    telemetry::chain,
};

const READY_WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(20);

pub struct Stage {
    servers: Servers,
    folder: PathBuf,
}

/// A migrated, empty database and what programs need to use it.
pub struct Ground {
    pub env: Vec<(String, String)>,
    pub config: Config,
    /// Without the product's limits on a statement: loading and counting may take long.
    pub db: PgPool,
    database: String,
}

impl Ground {
    /// How an engine in this process opens its own sessions.
    pub fn session(&self) -> sqlx::Result<Session> {
        Session::worker(&self.config.database, "multivio bench")
    }
}

impl Stage {
    pub async fn start(folder: Option<PathBuf>) -> Result<Self, Failure> {
        let runs = folder.unwrap_or_else(std::env::temp_dir).join("multivio-bench");
        // What a run that was killed left behind.
        ServerFolder::sweep(&runs);
        let folder = runs.join(std::process::id().to_string());
        let options = ServerOptions {
            folder: folder.clone(),
            durability: Durability::Full,
            // The belt is rebuilt from the ledger whenever it is lost: nothing on it is worth a disk.
            persistence: Persistence::Off,
        };
        let servers = spinner("starting a private Postgres and Redis", Servers::start(options)).await.map_err(local)?;
        age(&servers).await?;
        Ok(Self { servers, folder })
    }

    /// Stops the servers and removes everything.
    pub async fn end(self) -> Result<(), Failure> {
        self.servers.stop_and_remove().await.map_err(local)
    }

    /// A database of its own for each measurement, so that none meets what another left.
    pub async fn ground(&self, name: &str) -> Result<Ground, Failure> {
        self.servers.postgres.create_database(name).await.map_err(local)?;
        let url = self.servers.postgres.url(name);
        let redis = self.servers.redis.url();
        let env: Vec<(String, String)> = [
            ("DATABASE_URL", url.expose_secret()),
            ("REDIS_URL", redis.expose_secret()),
            ("DATABASE_CA_CERT", ""),
            ("REDIS_CA_CERT", ""),
            ("ENVIRONMENT", "production"),
            ("LOG_LEVEL", "warn"),
            ("JWT_SECRET_KEY", "the secret of a bench that lives for minutes on one machine"),
            ("ENCRYPTION_KEY", "4f3VvPAy9sZcE1qUO1m5dYxk2H0bWJtq8R7nLhGc6Xo="),
            ("LOCAL_TOKENS", "on"),
            ("RATE_LIMIT_REQUESTS", "1000000000"),
            ("RATE_LIMIT_ADDRESS_REQUESTS", "1000000000"),
            // Nothing is asked: jobs that would ask are only enqueued.
            ("GROK_API_KEY", "bench"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        // Of this run's own settings alone: the shell's must not change what is measured.
        let lookup = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let config = Config::load(&lookup)?;
        let session = Session::login(&config.database, "multivio bench")?;
        let session = session.set("statement_timeout", "0").set("lock_timeout", "0");
        let db = session.pool(config.database.acquire_timeout, 8);
        MIGRATIONS.run(&db).await.map_err(|error| Failure::failed(chain(&error)))?;
        Ok(Ground { env, config, db, database: name.to_owned() })
    }

    pub async fn clear(&self, ground: Ground) -> Result<(), Failure> {
        ground.db.close().await;
        self.servers.postgres.drop_database(&ground.database).await.map_err(local)
    }

    /// Starts a production program, found beside this executable.
    pub fn program(&self, ground: &Ground, name: &str, args: &[&str]) -> Result<Program, Failure> {
        let here = std::env::current_exe().map_err(|error| Failure::failed(format!("where am I? {error}")))?;
        let path = here.with_file_name(name);
        if !path.is_file() {
            return Err(Failure::failed(format!("{} is missing", path.display()))
                .remedy("Build all programs: `cargo build --release --bins`."));
        }
        let log = self.folder.join(name).with_extension("log");
        let write = |error| Failure::failed(format!("{} cannot be written: {error}", log.display()));
        let output = File::create(&log).map_err(write)?;
        let mut command = Command::new(path);
        command.args(args).env_clear().envs(ground.env.iter().cloned()).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(output.try_clone().map_err(write)?).stderr(output);
        let started = Instant::now();
        let process = Process::spawn(name, command, Spawning::default())
            .map_err(|error| Failure::failed(format!("{name} cannot be started: {error}")))?;
        Ok(Program { process, started, log })
    }
}

/// A server that has been up for a while writes its log over files of before. A new one makes each file first, and every
/// commit waits for that: some 25 ms, each time.
async fn age(servers: &Servers) -> Result<(), Failure> {
    const LOG_FILES: usize = 40;
    let mut db = PgConnection::connect(servers.postgres.url("postgres").expose_secret()).await?;
    sqlx::raw_sql("alter system set min_wal_size = '640MB'").execute(&mut db).await?;
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut db).await?;
    for _ in 0..LOG_FILES {
        sqlx::raw_sql("select pg_logical_emit_message(false, 'bench', '')").execute(&mut db).await?;
        sqlx::raw_sql("select pg_switch_wal()").execute(&mut db).await?;
    }
    sqlx::raw_sql("checkpoint").execute(&mut db).await?;
    Ok(db.close().await?)
}

/// A running program; dropping it kills it.
pub struct Program {
    process: Process,
    pub started: Instant,
    log: PathBuf,
}

impl Program {
    /// Waits until `ready` says so, asking often; returns the time since the start.
    pub async fn ready(&mut self, mut ready: impl AsyncFnMut() -> bool) -> Result<Duration, Failure> {
        loop {
            if ready().await {
                return Ok(self.started.elapsed());
            }
            let ended = self.process.exit_status().is_some();
            if ended || self.started.elapsed() > READY_WITHIN {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let how = if ended { "ended instead of coming up" } else { "did not come up" };
                return Err(Failure::failed(format!("{} {how}; its log:\n{}", self.process.name(), log.trim_end())));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn stop(mut self) {
        self.process.stop(libc::SIGTERM, STOP_WITHIN).await;
    }

    /// Processor time of it and its children so far.
    pub fn cpu(&mut self) -> Duration {
        self.process.family().into_iter().filter_map(cpu_of).sum()
    }

    /// Resident memory of it and each of its children, in megabytes.
    pub fn memory_mb(&mut self) -> Vec<f64> {
        self.process.family().into_iter().filter_map(memory_mb_of).collect()
    }
}

/// Whether an HTTP server says that it is ready.
pub async fn is_ready(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /health/ready HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(&answer == b"HTTP/1.1 200")
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
}

pub fn free_address() -> Result<SocketAddr, Failure> {
    let port = crate::local::free_port().map_err(|error| Failure::failed(format!("no free port: {error}")))?;
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // After the name, which may contain anything: user and system time are the 12th and 13th fields.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // SAFETY: the call takes a number only.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|ticks| *ticks > 0)?;
    Some(Duration::from_millis(ticks * 1_000 / per_second))
}

fn memory_mb_of(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
}

fn local(error: LocalError) -> Failure {
    Failure::failed(chain(&error))
}
