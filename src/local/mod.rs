//! A private Postgres and Redis on this machine, as a library.
//!
//! `multivio up`, `multivio demo` and the tests stand on it: the real servers, started from the machine's own
//! packages into one folder, on free ports of 127.0.0.1, with passwords of their own, and gone when their owner
//! is gone, however it ends. It must never touch a server that was already running, and never listen anywhere
//! but on the loopback address.
//!
//! As root the servers run as another user, since Postgres refuses to run as root.

mod account;
mod error;
mod folder;
mod kept;
mod postgres;
mod process;
mod programs;
mod redis;
mod stack;
mod twins;
mod watched;

use std::path::{Path, PathBuf};

pub use account::Account;
pub use error::LocalError;
pub use folder::ServerFolder;
pub use kept::{Kept, Recipe};
pub use postgres::{Durability, Postgres};
pub use process::{Process, Spawning, Stream, free_port};
pub use programs::{Programs, Remedy, find_in_path};
pub use redis::{Dump, Persistence, Redis};
pub use stack::{Stack, StackError, StackOptions};
pub use twins::sandbox_settings;
use watched::Watched;

/// How a set of servers is to be run.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Everything the servers write is below it; it is made when it does not exist.
    pub folder: PathBuf,
    pub durability: Durability,
    pub persistence: Persistence,
}

impl ServerOptions {
    /// What a user's data deserves: every commit on the disk before it is confirmed.
    pub fn durable(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), durability: Durability::Full, persistence: Persistence::AppendOnly }
    }

    /// For tests that ask nothing of a crash: the fastest, and nothing survives it.
    pub fn throwaway(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), durability: Durability::None, persistence: Persistence::Off }
    }
}

/// For the machine itself: no proxy stands between.
pub(crate) fn http_client() -> reqwest::Client {
    // An error means that this process has chosen its cryptography already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("a client without special wishes can be built")
}

/// One Postgres and one Redis that belong to this process. Dropping it stops both.
///
/// Declared in the order of stopping; the folder's lock goes last.
#[derive(Debug)]
pub struct Servers {
    pub postgres: Postgres,
    pub redis: Redis,
    folder: ServerFolder,
}

impl Servers {
    /// Starts both and waits until they answer.
    ///
    /// # Errors
    /// When a program is missing (the error says what to install), the folder is in use by another run, or a
    /// server does not come up (the error carries the last lines of its own log).
    pub async fn start(options: ServerOptions) -> Result<Self, LocalError> {
        let programs = Programs::find()?;
        let folder = ServerFolder::open(&options.folder)?;
        let (postgres, redis) = tokio::try_join!(
            Postgres::start(&programs, &folder, options.durability),
            Redis::start(&programs, &folder, options.persistence),
        )?;
        Ok(Self { postgres, redis, folder })
    }

    /// Where the servers keep their files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder that was asked for, ours alone; the servers' files may be elsewhere.
    pub fn asked(&self) -> &Path {
        self.folder.asked()
    }

    /// A secret of this installation: made once, the same at every start, and nobody else can read it.
    fn kept(&self, name: &str, make: impl FnOnce() -> String) -> Result<String, LocalError> {
        self.folder.kept(name, make)
    }

    fn write_private(&self, name: &str, text: &str) -> Result<(), LocalError> {
        self.folder.write_private(&self.folder.asked().join(name), text, false)
    }

    /// Stops both in order, with everything written; one that is gone already has nothing to write.
    pub async fn stop(mut self) -> Result<(), LocalError> {
        let redis = unless_gone(self.redis.stop().await);
        unless_gone(self.postgres.stop().await).and(redis)
    }

    /// Stops both and removes all they wrote.
    pub async fn stop_and_remove(self) -> Result<(), LocalError> {
        let folder = self.folder.share();
        self.stop().await?;
        folder.remove()
    }

    /// What [`Self::stop_and_remove`] does where nothing can be awaited.
    pub fn end_now(&mut self) {
        self.stop_now();
        // Nobody to tell; what could not be removed is swept by the next run.
        let _ = self.folder.share().remove();
    }

    /// Stops both where nothing can be awaited, and leaves their files.
    pub fn stop_now(&mut self) {
        self.redis.end_now();
        self.postgres.end_now();
    }
}

fn unless_gone(stopped: Result<(), LocalError>) -> Result<(), LocalError> {
    match stopped {
        Err(LocalError::NotRunning(_)) => Ok(()),
        other => other,
    }
}

/// [`Servers`] under care: one that dies comes up again.
#[derive(Debug)]
struct WatchedServers {
    postgres: Watched<Postgres>,
    redis: Watched<Redis>,
    folder: ServerFolder,
}

impl WatchedServers {
    fn watch(servers: Servers) -> Self {
        let Servers { postgres, redis, folder } = servers;
        Self { postgres: Watched::watch(postgres), redis: Watched::watch(redis), folder }
    }

    /// The folder that was asked for.
    fn asked(&self) -> &Path {
        self.folder.asked()
    }

    /// What removes all of it once it has stopped.
    fn removal(&self) -> ServerFolder {
        self.folder.share()
    }

    /// [`Servers::stop`].
    async fn stop(self) -> Result<(), LocalError> {
        let Self { postgres, redis, folder } = self;
        match tokio::join!(postgres.back(), redis.back()) {
            (Some(postgres), Some(redis)) => Servers { postgres, redis, folder }.stop().await,
            // The panic of a care was shown, and has ended its server; the other one ends by being dropped.
            _ => Ok(()),
        }
    }
}
