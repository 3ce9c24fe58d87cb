//! The Postgres pool, the limits every session carries, how long an answer is waited for, and the migrations.

mod own_connection;

use std::{future::Future, io, str::FromStr, time::Duration};

use secrecy::ExposeSecret;
use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub use self::own_connection::OwnConnection;
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

/// Connects lazily: a program starts in any order with its servers and is healthy once they are.
pub fn pool(config: &DatabaseConfig, application: &str) -> sqlx::Result<PgPool> {
    Ok(pool_with(config, connect_options(config, application)?, config.max_connections))
}

/// A pool that a network which swallows everything cannot use up: a connection that shows no sign of life is closed,
/// both when it is asked for and when it comes back. sqlx's own look at either place waits without limit.
pub fn pool_with(config: &DatabaseConfig, options: PgConnectOptions, max_connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(config.acquire_timeout)
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(is_alive(connection)))
        .after_release(|connection, _| Box::pin(is_alive(connection)))
        .connect_lazy_with(options)
}

/// An error makes the pool close the connection without a farewell, which would wait for the network too.
async fn is_alive(connection: &mut PgConnection) -> sqlx::Result<bool> {
    within(SIGN_OF_LIFE, connection.ping()).await.map(|()| true)
}

/// The answer, or an error once [`ANSWER_DEADLINE`] is over; the connection is closed then.
pub async fn answer<T>(statement: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    within(ANSWER_DEADLINE, statement).await
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

/// Whether another session held a row for longer than this one waits.
pub fn is_locked(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"))
}

/// What every session of the product agrees on.
pub fn connect_options(config: &DatabaseConfig, application: &str) -> sqlx::Result<PgConnectOptions> {
    let limit_ms = SESSION_LIMIT.as_millis().to_string();
    let options = PgConnectOptions::from_str(config.url.expose_secret())?.application_name(application);
    Ok(options.log_slow_statements(log::LevelFilter::Debug, SESSION_LIMIT / 5).options([
        ("lock_timeout", limit_ms.as_str()),
        ("statement_timeout", limit_ms.as_str()),
        ("idle_in_transaction_session_timeout", limit_ms.as_str()),
        // The server notices a vanished client in about the time a lease lasts; for our end see [`answer`].
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "10000"),
        ("timezone", "UTC"),
    ]))
}

/// The same for the engine's own sessions, whose few statements all find their rows by index. Said outright, because
/// statistics of a table that fills and drains in seconds mislead the planner into reading all of it.
pub fn engine_options(config: &DatabaseConfig, application: &str) -> sqlx::Result<PgConnectOptions> {
    Ok(connect_options(config, application)?.options([
        ("enable_seqscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_material", "off"),
        ("plan_cache_mode", "force_generic_plan"),
        ("jit", "off"),
    ]))
}

/// A pool of such sessions.
pub fn engine_pool(config: &DatabaseConfig, application: &str, connections: u32) -> sqlx::Result<PgPool> {
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(config.acquire_timeout)
        .connect_lazy_with(engine_options(config, application)?))
}
