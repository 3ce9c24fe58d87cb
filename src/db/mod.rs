//! Sessions with Postgres: the role and the limits each carries, how long an answer is waited for, and the migrations.

mod own_connection;
pub mod pooler;
mod session;
mod tenant_db;

use std::{future::Future, io, time::Duration};

use sqlx::{Connection, PgConnection, PgPool, migrate::Migrator};

pub use own_connection::OwnConnection;
pub use session::{Session, SessionRole};
pub use tenant_db::{Tenancy, TenantDb};

use crate::config::DatabaseConfig;

/// Applied by `multivio migrate`, in order; an applied file is never edited.
pub static MIGRATIONS: Migrator = sqlx::migrate!();

/// Longest any statement, lock or forgotten transaction may hold up the rest (E4).
const SESSION_LIMIT: Duration = Duration::from_secs(5);

/// Longest a statement of the engine waits for its answer, a connection included. The server ends a statement before
/// that, so who waits longer talks to a server that is gone without a word: a failed-over host, a cut network. The
/// keepalives below are the server's own, and a client's would take longer than a lease.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(8);
/// Longest a connection may take to show that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Of workers and operators. Connects lazily: a program starts in any order with its servers and is healthy once they
/// are.
pub fn pool(config: &DatabaseConfig, application: &str) -> sqlx::Result<PgPool> {
    Ok(Session::worker(config, application)?.pool(config.acquire_timeout, config.max_connections))
}

/// Of whoever the address names, bound by nothing but the session's limits: for tests and for looking at the server.
pub fn login_pool(config: &DatabaseConfig, application: &str) -> sqlx::Result<PgPool> {
    Ok(Session::login(config, application)?.pool(config.acquire_timeout, config.max_connections))
}

/// An error makes the pool close the connection without a farewell, which would wait for the network too.
async fn is_alive(connection: &mut PgConnection) -> sqlx::Result<bool> {
    within(SIGN_OF_LIFE, connection.ping()).await.map(|()| true)
}

/// The answer, or an error once [`ANSWER_DEADLINE`] is over; the connection is closed then.
///
/// Boxed, so that what seldom asks (a request whose caller is known from a moment ago) does not carry the room for it:
/// eight kilobytes a question, thrice, moved about with every request.
pub fn answer<T>(statement: impl Future<Output = sqlx::Result<T>>) -> impl Future<Output = sqlx::Result<T>> {
    let statement = Box::pin(statement);
    async move { within(ANSWER_DEADLINE, statement).await }
}

async fn within<T>(longest: Duration, statement: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("the database did not answer within {longest:?}"));
    tokio::time::timeout(longest, statement).await.map_err(late)?
}

/// Whether the database could not be reached or could not answer now, as against answering with an error: nobody's
/// fault, and worth asking again.
pub fn is_away(error: &sqlx::Error) -> bool {
    match error {
        // A connection that breaks in the middle of an answer is read as one that breaks the protocol.
        sqlx::Error::Protocol(_)
        | sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // 08 connection, 53 resources, 57P0x shutting down or starting, 57014, 55P03 and 25P03 our own time limits,
        // 25006 a standby that was not promoted yet, 40 a lost race that asks to be tried again.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            ["08", "53", "57P0", "40"].iter().any(|class| code.starts_with(class))
                || matches!(code.as_ref(), "57014" | "55P03" | "25P03" | "25006")
        }),
        _ => false,
    }
}

/// Whether the server broke a statement off because it took longer than [`SESSION_LIMIT`], waiting for locks included; or
/// because an administrator cancelled it, which looks alike. One of those that [`is_away`] knows.
pub fn met_its_limit(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "57014")
}
