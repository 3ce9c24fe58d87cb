//! A real pgbouncer before a test's Postgres.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use multivio::local::{Account, Process, Spawning, find_in_path, free_port};
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::{Servers, TestDb, wait_until};

/// Ends when it is dropped.
pub struct PgBouncer {
    port: u16,
    process: Process,
    _folder: TempDir,
}

impl PgBouncer {
    /// `mode`: `session` or `transaction`. `more`: further lines of its settings.
    pub async fn start(servers: &Servers, db: &TestDb, mode: &str, more: &str) -> Self {
        let program = find_in_path("pgbouncer").unwrap_or_else(|| PathBuf::from("/usr/sbin/pgbouncer"));
        assert!(program.is_file(), "pgbouncer is missing: `bin/setup --tests` installs it");
        let folder = tempfile::tempdir().expect("a folder for pgbouncer");
        let url = url::Url::parse(db.url().expose_secret()).expect("the tests' own address");
        let (user, password) = (url.username(), url.password().expect("it has one"));
        let port = free_port().expect("a free port");
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\nmax_client_conn = 500\n{more}\n",
            servers.postgres_port()
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("its settings can be written");
        let account = Account::for_servers().expect("a user for servers");
        if let Some(account) = account {
            for path in [folder.path(), &file] {
                account.give(path).expect("the folder is ours to give");
            }
        }
        let mut command = Command::new(program);
        command.arg(&file).env_clear().current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let spawning = Spawning { account, on_our_death: libc::SIGTERM };
        let process = Process::spawn("pgbouncer", command, spawning).expect("pgbouncer starts");
        wait_until(Duration::from_secs(20), "pgbouncer to listen", || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Self { port, process, _folder: folder }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.process.stop_now(libc::SIGTERM, Duration::from_secs(2));
    }
}
