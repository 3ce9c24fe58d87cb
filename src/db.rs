//! The Postgres pool, the limits every session carries, and the migrations.

use std::{str::FromStr, time::Duration};

use secrecy::ExposeSecret;
use sqlx::{
    ConnectOptions, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::config::DatabaseConfig;

/// Applied by `multivio migrate`, in order; an applied file is never edited.
pub static MIGRATIONS: Migrator = sqlx::migrate!();

/// Longest any statement, lock or forgotten transaction may hold up the rest (E4).
const SESSION_LIMIT: Duration = Duration::from_secs(5);

/// Connects lazily: a program starts in any order with its servers and is healthy once they are.
pub fn pool(config: &DatabaseConfig, application: &str) -> sqlx::Result<PgPool> {
    let options = connect_options(config, application)?;
    Ok(PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(config.acquire_timeout)
        .connect_lazy_with(options))
}

/// What every session of the product agrees on.
pub fn connect_options(config: &DatabaseConfig, application: &str) -> sqlx::Result<PgConnectOptions> {
    let limit_ms = SESSION_LIMIT.as_millis().to_string();
    let options = PgConnectOptions::from_str(config.url.expose_secret())?.application_name(application);
    Ok(options.log_slow_statements(log::LevelFilter::Debug, SESSION_LIMIT / 5).options([
        ("lock_timeout", limit_ms.as_str()),
        ("statement_timeout", limit_ms.as_str()),
        ("idle_in_transaction_session_timeout", limit_ms.as_str()),
        // A vanished peer is noticed in about the time a lease lasts, at both ends.
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
