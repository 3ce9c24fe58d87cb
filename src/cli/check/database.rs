//! Postgres: does it answer, is it new enough, is the schema up to date, is what it calls committed on disk, and is
//! every connection one session.

use std::{collections::HashMap, time::Duration};

use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

use super::Line;
use crate::{
    config::DatabaseConfig,
    db::{self, MIGRATIONS},
    telemetry::chain,
};

const PATIENCE: Duration = Duration::from_secs(5);
const OLDEST: i32 = 15;

pub async fn look(config: &DatabaseConfig) -> Vec<Line> {
    let options = match db::connect_options(config, "multivio check") {
        Ok(options) => options,
        Err(error) => {
            return vec![Line::problem(
                "database",
                chain(&error),
                "Correct DATABASE_URL: postgres://user:password@host/name",
            )];
        }
    };
    let mut connection = match connect(&options).await {
        Ok(connection) => connection,
        Err(line) => return vec![line],
    };
    match tokio::time::timeout(2 * PATIENCE, questions(&mut connection, &options)).await {
        Ok(Ok(lines)) => lines,
        Ok(Err(error)) => vec![Line::problem("database", chain(&error), "See the database's own log")],
        Err(_elapsed) => vec![Line::problem("database", "stopped answering", "See the database's own log")],
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Line> {
    let error = match tokio::time::timeout(PATIENCE, options.connect()).await {
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(error)) => chain(&error),
        Err(_elapsed) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    let remedy = if error.contains("startup parameter") {
        "This pooler refuses session settings: connect to the server itself, or let the pooler pass `options` \
         (pgbouncer: ignore_startup_parameters = options) in session mode"
    } else {
        "Start the server, or correct DATABASE_URL (`multivio up` starts a private one)"
    };
    Err(Line::problem("database", error, remedy))
}

async fn questions(connection: &mut PgConnection, options: &PgConnectOptions) -> sqlx::Result<Vec<Line>> {
    let (number, version): (i32, String) =
        sqlx::query_as("select current_setting('server_version_num')::integer, current_setting('server_version')")
            .fetch_one(&mut *connection)
            .await?;
    let mut lines = vec![if number / 10_000 >= OLDEST {
        Line::ok("database", format!("PostgreSQL {version}"))
    } else {
        Line::problem("database", format!("PostgreSQL {version}"), format!("Upgrade it to {OLDEST} or newer"))
    }];
    lines.push(schema(connection).await?);
    lines.push(durability(connection).await?);
    lines.push(sessions(connection, options).await?);
    Ok(lines)
}

async fn schema(connection: &mut PgConnection) -> sqlx::Result<Line> {
    let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(MIGRATIONS.table_name.as_ref())
        .fetch_one(&mut *connection)
        .await?;
    let applied: Vec<(i64, Vec<u8>, bool)> = match exists {
        true => sqlx::query_as("select version, checksum, success from _sqlx_migrations").fetch_all(connection).await?,
        false => Vec::new(),
    };
    if let Some((version, ..)) = applied.iter().find(|(.., success)| !success) {
        return Ok(Line::problem(
            "schema",
            format!("migration {version} stopped halfway"),
            "Repair the schema by hand, then correct its row in _sqlx_migrations",
        ));
    }
    let applied: HashMap<_, _> = applied.into_iter().map(|(version, checksum, _)| (version, checksum)).collect();
    let changed = MIGRATIONS
        .iter()
        .find(|ours| applied.get(&ours.version).is_some_and(|theirs| theirs.as_slice() != ours.checksum.as_ref()));
    if let Some(migration) = changed {
        return Ok(Line::problem(
            "schema",
            format!("migration {} was changed after it was applied", migration.version),
            "An applied migration is never edited: bring its file back as it was",
        ));
    }
    let missing = MIGRATIONS.iter().filter(|ours| !applied.contains_key(&ours.version)).count();
    Ok(match missing {
        0 => Line::ok("schema", format!("up to date ({} migrations)", MIGRATIONS.iter().count())),
        missing => Line::problem("schema", format!("{missing} migration(s) are not applied"), "Run `multivio migrate`"),
    })
}

/// A job that was accepted must survive a power cut.
async fn durability(connection: &mut PgConnection) -> sqlx::Result<Line> {
    let (fsync, synchronous_commit, full_page_writes, recovering): (String, String, String, bool) = sqlx::query_as(
        "select current_setting('fsync'), current_setting('synchronous_commit'), \
                current_setting('full_page_writes'), pg_is_in_recovery()",
    )
    .fetch_one(connection)
    .await?;
    if recovering {
        return Ok(Line::problem(
            "durability",
            "this server is a standby and takes no writes",
            "Point DATABASE_URL at the primary",
        ));
    }
    let mut loose = Vec::new();
    for (name, value) in
        [("fsync", &fsync), ("synchronous_commit", &synchronous_commit), ("full_page_writes", &full_page_writes)]
    {
        if value == "off" {
            loose.push(format!("{name} = off"));
        }
    }
    Ok(if loose.is_empty() {
        Line::ok("durability", format!("fsync on, synchronous_commit {synchronous_commit}"))
    } else {
        Line::warning(
            "durability",
            format!("{}: a power cut loses accepted work", loose.join(", ")),
            "Turn it on in postgresql.conf; only a test may do without",
        )
    })
}

/// Behind a pooler in transaction mode, connections that are open at the same time share one backend; then session
/// settings, prepared statements and locks go astray.
async fn sessions(connection: &mut PgConnection, options: &PgConnectOptions) -> sqlx::Result<Line> {
    const OTHERS: usize = 3;
    let backend = "select pg_backend_pid()";
    let mut others = Vec::new();
    for _ in 0..OTHERS {
        others.push(options.connect().await?);
    }
    let mut backends = vec![sqlx::query_scalar::<_, i32>(backend).fetch_one(&mut *connection).await?];
    for other in &mut others {
        backends.push(sqlx::query_scalar(backend).fetch_one(other).await?);
    }
    for other in others {
        other.close().await?;
    }
    backends.sort_unstable();
    backends.dedup();
    let settings_arrive: bool =
        sqlx::query_scalar("select current_setting('statement_timeout') <> '0'").fetch_one(connection).await?;
    Ok(match backends.len() {
        count if count == OTHERS + 1 && settings_arrive => {
            Line::ok("sessions", "each connection is a session of its own")
        }
        count if count == OTHERS + 1 => Line::problem(
            "sessions",
            "session settings do not arrive at the server",
            "Let the pooler pass `options`, or connect to the server itself",
        ),
        _ => Line::problem(
            "sessions",
            "connections share a backend: a pooler in transaction mode stands between",
            "Use its session mode (Supabase: port 5432) or connect to the server itself",
        ),
    })
}
