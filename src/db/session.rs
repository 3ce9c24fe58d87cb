//! How a session with Postgres is opened: what it agrees on with the rest of the product, and which role it takes.
//!
//! All of it is said in one statement after the connection is made, and not in the connection's first message:
//! poolers refuse that.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use secrecy::ExposeSecret;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};

use super::{SESSION_LIMIT, is_alive};
use crate::config::DatabaseConfig;

/// What a session becomes after it has logged in: roles that row level security binds, made by the migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionRole {
    /// Serves callers: sees the rows of the workspace of the call, and none without one.
    Api,
    /// Serves every tenant: workers, the relay, operators at the command line. Knows nothing of people.
    Worker,
}

impl SessionRole {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "multivio_api",
            Self::Worker => "multivio_worker",
        }
    }
}

impl fmt::Display for SessionRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Sessions of one kind, all opened alike.
#[derive(Debug, Clone)]
pub struct Session {
    options: PgConnectOptions,
    settings: Vec<(&'static str, String)>,
}

impl Session {
    /// Sessions of the API, bound to whoever is calling; see [`super::TenantDb`], the only one that should open them.
    pub fn api(config: &DatabaseConfig, application: &str) -> sqlx::Result<Self> {
        Ok(Self::login(config, application)?.set("role", SessionRole::Api.as_str()))
    }

    pub fn worker(config: &DatabaseConfig, application: &str) -> sqlx::Result<Self> {
        Ok(Self::login(config, application)?.set("role", SessionRole::Worker.as_str()))
    }

    /// The engine's own, whose few statements all find their rows by index. Said outright, because statistics of a
    /// table that fills and drains in seconds mislead the planner into reading all of it.
    pub fn engine(config: &DatabaseConfig, application: &str) -> sqlx::Result<Self> {
        let off = [
            "enable_seqscan",
            "enable_hashjoin",
            "enable_mergejoin",
            "enable_bitmapscan",
            "enable_incremental_sort",
            "enable_material",
            "jit",
        ];
        let session = Self::worker(config, application)?.set("plan_cache_mode", "force_generic_plan");
        Ok(off.into_iter().fold(session, |session, name| session.set(name, "off")))
    }

    /// Stays whoever it logged in as: for migrations and for looking at the server, never for serving.
    pub fn login(config: &DatabaseConfig, application: &str) -> sqlx::Result<Self> {
        let limit_ms = SESSION_LIMIT.as_millis().to_string();
        let options = trusting(config, PgConnectOptions::from_str(config.url.expose_secret())?)
            .application_name(application)
            // Poolers refuse it, and nothing here reads numbers as text.
            .extra_float_digits(None)
            .log_slow_statements(log::LevelFilter::Debug, SESSION_LIMIT / 5);
        let settings = [
            ("lock_timeout", limit_ms.as_str()),
            ("statement_timeout", limit_ms.as_str()),
            ("idle_in_transaction_session_timeout", limit_ms.as_str()),
            // The server notices a vanished client in about the time a lease lasts; for our end see [`super::answer`].
            ("tcp_keepalives_idle", "5"),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "3"),
            ("tcp_user_timeout", "10000"),
            ("timezone", "UTC"),
        ];
        let session = Self { options, settings: Vec::new() };
        Ok(settings.into_iter().fold(session, |session, (name, value)| session.set(name, value)))
    }

    /// Another value for a setting of the server.
    pub fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.settings.retain(|(known, _)| *known != name);
        self.settings.push((name, value.into()));
        self
    }

    pub async fn connect(&self) -> sqlx::Result<PgConnection> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        agree(&mut connection, self.statement()).await?;
        Ok(connection)
    }

    /// Connects lazily. A network that swallows everything cannot use it up: a connection that shows no sign of life
    /// is closed, both when it is asked for and when it comes back. sqlx's own look at either place waits without
    /// limit.
    pub fn pool(&self, acquire_timeout: Duration, max_connections: u32) -> PgPool {
        self.pool_options(acquire_timeout, max_connections)
            .before_acquire(|connection, _| Box::pin(is_alive(connection)))
            .after_release(|connection, _| Box::pin(is_alive(connection)))
            .connect_lazy_with(self.options.clone())
    }

    pub(super) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    pub(super) fn pool_options(&self, acquire_timeout: Duration, max_connections: u32) -> PgPoolOptions {
        let statement: Arc<str> = self.statement().into();
        PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(acquire_timeout)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let statement = statement.to_string();
                Box::pin(agree(connection, statement))
            })
    }

    fn statement(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let set = |(name, value): &(&str, String)| format!("set_config({}, {}, false)", quoted(name), quoted(value));
        format!("select {}", self.settings.iter().map(set).collect::<Vec<_>>().join(", "))
    }
}

/// An address that asks for less than a proof is raised to one: managed databases hand out theirs with
/// `sslmode=require`, which takes any certificate there is, and whoever names an authority wants it to be asked. What
/// contradicts it outright (`disable`, a file beside it) is refused with the settings.
fn trusting(config: &DatabaseConfig, options: PgConnectOptions) -> PgConnectOptions {
    let Some(authority) = &config.authority else { return options };
    let mode = match config.asks_for_any_name() {
        true => PgSslMode::VerifyCa,
        false => PgSslMode::VerifyFull,
    };
    options.ssl_mode(mode).ssl_root_cert_from_pem(authority.pem().to_vec())
}

/// Names and values are this file's and the settings' own, and quoted.
async fn agree(connection: &mut PgConnection, statement: String) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_said_in_one_statement_and_the_last_word_counts() {
        let config = DatabaseConfig {
            url: "postgres://u:p@h/d".to_owned().into(),
            authority: None,
            max_connections: 1,
            acquire_timeout: Duration::from_secs(1),
        };
        let session = Session::engine(&config, "test").unwrap().set("jit", "it's on");
        let statement = session.statement();
        assert!(statement.contains("set_config('role', 'multivio_worker', false)"), "{statement}");
        assert!(statement.contains("set_config('jit', 'it''s on', false)") && !statement.contains("'off'') "));
        assert_eq!(statement.matches("'jit'").count(), 1);
        assert!(!statement.contains(';'));
    }
}
