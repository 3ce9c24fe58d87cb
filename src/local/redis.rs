//! A private Redis: its start and stop, and the ways it may be ill-treated by a crash test.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use ::redis::{AsyncConnectionConfig, Client, FromRedisValue, aio::MultiplexedConnection};
use secrecy::{ExposeSecret, SecretString};

use super::{Account, LocalError, Process, Programs, ServerFolder, Spawning, free_port, process::tail};

const NAME: &str = "Redis";
const READY_WITHIN: Duration = Duration::from_secs(30);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What a restart finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// All but the last second before a power cut; all of it after anything less.
    AppendOnly,
    /// Nothing.
    Off,
}

/// A copy of everything a Redis held at one moment.
#[derive(Debug, Clone)]
pub struct Dump(Vec<u8>);

#[derive(Debug)]
pub struct Redis {
    program: PathBuf,
    home: PathBuf,
    config: PathBuf,
    log: PathBuf,
    account: Option<Account>,
    persistence: Persistence,
    password: SecretString,
    port: u16,
    process: Option<Process>,
}

impl Redis {
    pub(super) async fn start(
        programs: &Programs,
        folder: &ServerFolder,
        persistence: Persistence,
    ) -> Result<Self, LocalError> {
        let home = folder.private("redis")?;
        let mut redis = Self {
            program: programs.redis_server.clone(),
            config: home.join("redis.conf"),
            home,
            log: folder.path().join("redis.log"),
            account: folder.account(),
            persistence,
            password: folder.password("redis.password")?.into(),
            port: 0,
            process: None,
        };
        redis.end_leftover().await?;
        redis.port = free_port().map_err(LocalError::io("find a free port"))?;
        folder.write_private(&redis.config, &redis.settings(), true)?;
        redis.run().await?;
        Ok(redis)
    }

    /// The address. It carries the password.
    pub fn url(&self) -> SecretString {
        format!("redis://:{}@127.0.0.1:{}", self.password.expose_secret(), self.port).into()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How it ended, when nobody here asked it to.
    pub(super) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.as_mut()?.exit_status()
    }

    /// Comes up again after [`Self::stop`] or [`Self::kill`], at the same address, with what it kept.
    pub async fn run(&mut self) -> Result<(), LocalError> {
        self.come_up(&[]).await
    }

    pub async fn stop(&mut self) -> Result<(), LocalError> {
        self.end(libc::SIGTERM).await
    }

    pub async fn restart(&mut self) -> Result<(), LocalError> {
        self.stop().await?;
        self.run().await
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> Result<(), LocalError> {
        self.end(libc::SIGKILL).await
    }

    /// Stops it in its tracks: connections stay open and nothing answers.
    pub fn pause(&mut self) -> Result<(), LocalError> {
        self.signal(libc::SIGSTOP)
    }

    pub fn resume(&mut self) -> Result<(), LocalError> {
        self.signal(libc::SIGCONT)
    }

    /// Empties it while it runs.
    pub async fn flush(&self) -> Result<(), LocalError> {
        self.command("empty itself", &["flushall"]).await
    }

    /// Comes back with nothing, as a replaced server would.
    pub async fn restart_empty(&mut self) -> Result<(), LocalError> {
        self.stop().await?;
        self.forget()?;
        self.run().await
    }

    /// A copy of what it holds now, for [`Self::restart_from`].
    pub async fn dump(&self) -> Result<Dump, LocalError> {
        self.command::<()>("save a copy", &["save"]).await?;
        let file = self.home.join("dump.rdb");
        std::fs::read(&file).map(Dump).map_err(LocalError::io(format!("read {}", file.display())))
    }

    /// Comes back as an old copy of itself (E6).
    pub async fn restart_from(&mut self, dump: &Dump) -> Result<(), LocalError> {
        self.stop().await?;
        self.forget()?;
        let file = self.home.join("dump.rdb");
        std::fs::write(&file, &dump.0)
            .and_then(|()| self.account.map_or(Ok(()), |account| account.give(&file)))
            .map_err(LocalError::io(format!("write {}", file.display())))?;
        // With an append-only file asked for, Redis would look at nothing else.
        self.come_up(&["--appendonly", "no"]).await?;
        if self.persistence == Persistence::AppendOnly {
            self.command::<()>("keep an append-only file", &["config", "set", "appendonly", "yes"]).await?;
            self.rewritten().await?;
        }
        Ok(())
    }

    pub(super) fn end_now(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop_now(libc::SIGTERM, STOPPED_WITHIN);
        }
    }

    fn settings(&self) -> String {
        let append_only = match self.persistence {
            Persistence::AppendOnly => "yes",
            Persistence::Off => "no",
        };
        format!(
            "# Written at every start; changes here are lost.\n\
             bind 127.0.0.1\nport {}\nunixsocket \"\"\nprotected-mode yes\nrequirepass {}\n\
             dir \"{}\"\ndaemonize no\nlogfile \"\"\nloglevel notice\n\
             maxmemory-policy noeviction\nsave \"\"\nappendonly {append_only}\nappendfsync everysec\n\
             aof-load-truncated yes\nenable-debug-command local\n",
            self.port,
            self.password.expose_secret(),
            self.home.display(),
        )
    }

    async fn come_up(&mut self, arguments: &[&str]) -> Result<(), LocalError> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut process = self.spawn(arguments)?;
        loop {
            if let Some(status) = process.exit_status() {
                return Err(LocalError::Ended { name: NAME.into(), status, tail: tail(&self.log) });
            }
            // While it reads its files it answers with an error.
            if self.command::<String>("answer", &["ping"]).await.is_ok() {
                self.process = Some(process);
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(LocalError::NotReady { name: NAME.into(), waited: READY_WITHIN, tail: tail(&self.log) });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn spawn(&self, arguments: &[&str]) -> Result<Process, LocalError> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(LocalError::io(format!("open {}", self.log.display())))?;
        let second = log.try_clone().map_err(LocalError::io("share a file"))?;
        let mut command = Command::new(&self.program);
        command.env_clear().env("LC_ALL", "C").stdin(Stdio::null()).current_dir(&self.home);
        command.arg(&self.config).args(arguments).stdout(log).stderr(second);
        // What it has confirmed is with the kernel already: nothing is lost by SIGKILL, and it cannot be ignored.
        let spawning = Spawning { account: self.account, on_our_death: libc::SIGKILL };
        Process::spawn(NAME, command, spawning).map_err(LocalError::io("run redis-server"))
    }

    /// A server that an owner killed on a system without parent-death signals: the last settings say where it
    /// listens, and only one that keeps its files here is ended.
    async fn end_leftover(&mut self) -> Result<(), LocalError> {
        let Ok(settings) = std::fs::read_to_string(&self.config) else { return Ok(()) };
        let port = settings.lines().find_map(|line| line.strip_prefix("port ")?.parse().ok());
        let Some(port) = port else { return Ok(()) };
        self.port = port;
        let folder = self.command::<Vec<String>>("tell its folder", &["config", "get", "dir"]).await;
        if !folder.is_ok_and(|answer| answer.get(1).is_some_and(|dir| Path::new(dir) == self.home)) {
            return Ok(());
        }
        // It answers a shutdown by closing the connection.
        let _ = self.command::<()>("shut down", &["shutdown", "nosave"]).await;
        let deadline = Instant::now() + STOPPED_WITHIN;
        while self.command::<String>("answer", &["ping"]).await.is_ok() {
            if Instant::now() >= deadline {
                return Err(LocalError::NotStopped { name: "A Redis left behind".into(), waited: STOPPED_WITHIN });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn rewritten(&self) -> Result<(), LocalError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let info: String = self.command("tell its state", &["info", "persistence"]).await?;
            if info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0") {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(LocalError::NotReady { name: NAME.into(), waited: READY_WITHIN, tail: tail(&self.log) });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn forget(&self) -> Result<(), LocalError> {
        for name in ["dump.rdb", "appendonlydir"] {
            let path = self.home.join(name);
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(LocalError::Io { doing: format!("remove {}", path.display()), source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn command<T: FromRedisValue>(&self, doing: &'static str, words: &[&str]) -> Result<T, LocalError> {
        let fail = |source| LocalError::Redis { doing, source };
        let mut connection = self.connect().await.map_err(fail)?;
        let mut command = ::redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await.map_err(fail)
    }

    async fn connect(&self) -> ::redis::RedisResult<MultiplexedConnection> {
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(Some(ANSWER_WITHIN));
        Client::open(self.url().expose_secret())?.get_multiplexed_async_connection_with_config(&limits).await
    }

    async fn end(&mut self, signal: libc::c_int) -> Result<(), LocalError> {
        let mut process = self.process.take().ok_or_else(|| LocalError::NotRunning(NAME.into()))?;
        process.stop(signal, STOPPED_WITHIN).await;
        match process.exit_status() {
            Some(_) => Ok(()),
            None => Err(LocalError::NotStopped { name: NAME.into(), waited: STOPPED_WITHIN }),
        }
    }

    fn signal(&mut self, signal: libc::c_int) -> Result<(), LocalError> {
        let running = self.process.as_mut().is_some_and(|process| process.signal(signal));
        if running { Ok(()) } else { Err(LocalError::NotRunning(NAME.into())) }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.end_now();
    }
}
