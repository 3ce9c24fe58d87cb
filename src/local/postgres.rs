//! A private Postgres: its cluster, its start and stop, and the ways it may be ill-treated by a crash test.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection};

use super::{
    Account, LocalError, Process, Programs, ServerFolder, Spawning, free_port,
    process::{last_lines, tail},
};

const NAME: &str = "Postgres";
const USER: &str = "multivio";
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(20);

/// What a confirmed commit is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disk: `fsync` and `synchronous_commit` are on.
    Full,
    /// Nothing is waited for. A power cut may lose the whole cluster: for tests only.
    None,
}

#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    data: PathBuf,
    log: PathBuf,
    account: Option<Account>,
    durability: Durability,
    password: SecretString,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    pub(super) async fn start(
        programs: &Programs,
        folder: &ServerFolder,
        durability: Durability,
    ) -> Result<Self, LocalError> {
        let home = folder.private("postgres")?;
        let mut postgres = Self {
            programs: programs.postgres_bin.clone(),
            data: home.join("data"),
            log: folder.path().join("postgres.log"),
            account: folder.account(),
            durability,
            password: folder.password("postgres.password")?.into(),
            port: 0,
            process: None,
        };
        if !postgres.data.join("PG_VERSION").exists() {
            postgres.make_cluster(folder, &home).await?;
        }
        postgres.end_leftover().await?;
        postgres.port = free_port().map_err(LocalError::io("find a free port"))?;
        postgres.run().await?;
        Ok(postgres)
    }

    /// The address of a database of this server. It carries the password.
    pub fn url(&self, database: &str) -> SecretString {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.password.expose_secret(), self.port).into()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How it ended, when nobody here asked it to.
    pub(super) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.as_mut()?.exit_status()
    }

    /// Comes up again after [`Self::stop`] or [`Self::kill`], at the same address.
    pub async fn run(&mut self) -> Result<(), LocalError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let ended = match self.come_up(deadline).await {
                // Backends of a killed server take a moment to notice; until then it refuses to start.
                Err(LocalError::Ended { tail, .. }) if is_still_ending(&tail) && Instant::now() < deadline => tail,
                other => return other,
            };
            tracing::debug!(%ended, "Postgres has to wait for its predecessor");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends every session and stops, with everything written.
    pub async fn stop(&mut self) -> Result<(), LocalError> {
        self.end(libc::SIGINT).await
    }

    pub async fn restart(&mut self) -> Result<(), LocalError> {
        self.stop().await?;
        self.run().await
    }

    /// SIGKILL, as a crash of the machine's Postgres would be. [`Self::run`] then recovers from the log.
    pub async fn kill(&mut self) -> Result<(), LocalError> {
        self.end(libc::SIGKILL).await
    }

    /// Stops every process of it in its tracks: connections stay open and nothing answers.
    pub fn pause(&mut self) -> Result<(), LocalError> {
        self.signal_all(libc::SIGSTOP)
    }

    pub fn resume(&mut self) -> Result<(), LocalError> {
        self.signal_all(libc::SIGCONT)
    }

    pub async fn create_database(&self, name: &str) -> Result<(), LocalError> {
        self.execute("create a database", format!("create database {}", quoted(name))).await
    }

    /// A copy of another database that nobody is connected to: the quick way to a migrated one.
    pub async fn create_database_from(&self, name: &str, template: &str) -> Result<(), LocalError> {
        // Copying files is quicker than logging every page, as long as nothing waits for the disk.
        let strategy = match self.durability {
            Durability::Full => "wal_log",
            Durability::None => "file_copy",
        };
        let sql = format!("create database {} template {} strategy {strategy}", quoted(name), quoted(template));
        self.execute("copy a database", sql).await
    }

    pub async fn drop_database(&self, name: &str) -> Result<(), LocalError> {
        self.execute("drop a database", format!("drop database if exists {} with (force)", quoted(name))).await
    }

    pub async fn database_exists(&self, name: &str) -> Result<bool, LocalError> {
        let fail = |source| LocalError::Postgres { doing: "list its databases", source };
        let mut connection = self.connect("postgres").await.map_err(fail)?;
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await
            .map_err(fail)
    }

    pub(super) fn end_now(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop_now(self.stop_signal(), STOPPED_WITHIN);
        }
    }

    /// `initdb` into a folder beside the final place, moved there when complete: an interrupted one is not used.
    async fn make_cluster(&self, folder: &ServerFolder, home: &Path) -> Result<(), LocalError> {
        let (unfinished, password_file) = (home.join("unfinished"), home.join("password"));
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished).map_err(LocalError::io("remove an unfinished database"))?;
        }
        folder.write_private(&password_file, self.password.expose_secret(), true)?;
        let mut initdb = self.command("initdb", home);
        initdb.args(["--no-locale", "--encoding=UTF8", "--auth=scram-sha-256", "--username", USER]);
        initdb.arg("--pwfile").arg(&password_file).arg("--pgdata").arg(&unfinished);
        if self.durability == Durability::None {
            initdb.arg("--no-sync");
        }
        let made = self.complete("initdb", initdb, home).await;
        std::fs::remove_file(&password_file).map_err(LocalError::io("remove a password file"))?;
        made?;
        std::fs::rename(&unfinished, &self.data).map_err(LocalError::io("move the new database into place"))
    }

    /// A server that an owner killed on a system without parent-death signals. The folder's lock is ours, so
    /// whatever still runs in it has no owner.
    async fn end_leftover(&self) -> Result<(), LocalError> {
        if !self.data.join("postmaster.pid").exists() {
            return Ok(());
        }
        let mut stop = self.command("pg_ctl", &self.data);
        stop.args(["stop", "--mode=immediate", "--wait", "--timeout=15", "--pgdata"]).arg(&self.data);
        match self.complete("pg_ctl stop", stop, &self.data).await {
            // The ordinary case: the file is stale and nothing runs.
            Err(LocalError::Refused { .. }) | Ok(()) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Runs a program of the Postgres package to its end.
    async fn complete(&self, doing: &str, mut command: Command, home: &Path) -> Result<(), LocalError> {
        let output = home.with_extension("output");
        let file = File::create(&output).map_err(LocalError::io(format!("write {}", output.display())))?;
        let second = file.try_clone().map_err(LocalError::io("share a file"))?;
        command.stdout(file).stderr(second);
        let spawning = Spawning { account: self.account, ..Spawning::default() };
        let mut process = Process::spawn(doing, command, spawning).map_err(LocalError::io(format!("run {doing}")))?;
        let status = process.exited(READY_WITHIN).await;
        let said = std::fs::read_to_string(&output).unwrap_or_default();
        std::fs::remove_file(&output).map_err(LocalError::io(format!("remove {}", output.display())))?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(LocalError::Refused { doing: doing.into(), status, tail: last_lines(&said, 15) }),
            None => Err(LocalError::NotReady { name: doing.into(), waited: READY_WITHIN, tail: last_lines(&said, 15) }),
        }
    }

    async fn come_up(&mut self, deadline: Instant) -> Result<(), LocalError> {
        let started = Instant::now();
        let mut process = self.spawn()?;
        loop {
            if let Some(status) = process.exit_status() {
                return Err(LocalError::Ended { name: NAME.into(), status, tail: tail(&self.log) });
            }
            if let Ok(Ok(connection)) = tokio::time::timeout(Duration::from_secs(2), self.connect("postgres")).await {
                // The answer is all that was wanted; a server that is gone again shows at the next use.
                let _ = connection.close().await;
                self.process = Some(process);
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(LocalError::NotReady {
                    name: NAME.into(),
                    waited: started.elapsed(),
                    tail: tail(&self.log),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn spawn(&self) -> Result<Process, LocalError> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(LocalError::io(format!("open {}", self.log.display())))?;
        let second = log.try_clone().map_err(LocalError::io("share a file"))?;
        let port = self.port.to_string();
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            // The address above is the only way in; a socket's path may be too long for the system anyway.
            ("unix_socket_directories", ""),
            ("max_connections", "300"),
            ("shared_buffers", "128MB"),
            ("max_wal_size", "1GB"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("lc_messages", "C"),
        ];
        if self.durability == Durability::None {
            settings.extend([("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")]);
        }
        let mut command = self.command("postgres", &self.data);
        command.arg("-D").arg(&self.data).stdout(log).stderr(second);
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // SIGQUIT: all of it ends at once, and the next start recovers. A killed one would leave its children behind.
        let spawning = Spawning { account: self.account, on_our_death: libc::SIGQUIT };
        Process::spawn(NAME, command, spawning).map_err(LocalError::io("run postgres"))
    }

    /// With nothing of our environment that could lead it to another server.
    fn command(&self, program: &str, within: &Path) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env_clear().env("LC_ALL", "C").env("PATH", &self.programs);
        command.stdin(Stdio::null()).current_dir(within);
        command
    }

    async fn connect(&self, database: &str) -> sqlx::Result<PgConnection> {
        PgConnection::connect(self.url(database).expose_secret()).await
    }

    async fn execute(&self, doing: &'static str, sql: String) -> Result<(), LocalError> {
        let fail = |source| LocalError::Postgres { doing, source };
        let mut connection = self.connect("postgres").await.map_err(fail)?;
        // Names of databases cannot be bound; `quoted` has made them safe.
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.map_err(fail)?;
        connection.close().await.map_err(fail)
    }

    async fn end(&mut self, signal: libc::c_int) -> Result<(), LocalError> {
        let mut process = self.process.take().ok_or_else(|| LocalError::NotRunning(NAME.into()))?;
        process.stop(signal, STOPPED_WITHIN).await;
        match process.exit_status() {
            Some(_) => Ok(()),
            None => Err(LocalError::NotStopped { name: NAME.into(), waited: STOPPED_WITHIN }),
        }
    }

    fn signal_all(&mut self, signal: libc::c_int) -> Result<(), LocalError> {
        let running = self.process.as_mut().is_some_and(|process| process.signal_family(signal));
        if running { Ok(()) } else { Err(LocalError::NotRunning(NAME.into())) }
    }

    fn stop_signal(&self) -> libc::c_int {
        match self.durability {
            Durability::Full => libc::SIGINT,
            Durability::None => libc::SIGQUIT,
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end_now();
    }
}

fn is_still_ending(log: &str) -> bool {
    log.contains("pre-existing shared memory block") || log.contains("lock file \"postmaster.pid\" already exists")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_name_cannot_become_a_statement() {
        assert_eq!(quoted("a\"; drop database x; --"), "\"a\"\"; drop database x; --\"");
    }
}
