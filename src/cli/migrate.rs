//! `multivio migrate`: brings the schema up to date. Safe to run anywhere at any time: several at once take turns,
//! a server that is still starting is waited for, and an applied migration that was changed stops everything.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use sqlx::{
    PgConnection,
    migrate::{Migrate, MigrateError},
    postgres::PgDatabaseError,
};

use super::{Failure, Screen, working::spinner};
use crate::{
    config::DatabaseConfig,
    db::{MIGRATIONS, Session, pooler},
    telemetry::chain,
};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Seconds to wait for the database server
    #[arg(long, default_value_t = 60)]
    wait: u64,
    /// Say what would be applied, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Applied {
    version: i64,
    description: String,
    took_ms: u64,
}

pub async fn run(arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let config = super::config()?;
    let mut connection = connect(&config.database, Duration::from_secs(arguments.wait)).await?;
    if arguments.dry_run {
        let pending: Vec<_> = pending(&mut connection).await?;
        return screen.show(&pending, || match pending.as_slice() {
            [] => "The schema is up to date.".into(),
            pending => format!("Would apply:\n  {}", pending.join("\n  ")),
        });
    }
    let applied = apply(&mut connection).await?;
    screen.show(&applied, || match applied.len() {
        0 => "The schema is up to date.".into(),
        1 => "1 migration applied; the schema is up to date.".into(),
        many => format!("{many} migrations applied; the schema is up to date."),
    })
}

/// Keeps trying until `deadline`: in a new installation everything starts at once.
async fn connect(config: &DatabaseConfig, deadline: Duration) -> Result<PgConnection, Failure> {
    // A migration may take longer than any statement of the product may, and waits for others that migrate.
    let unlimited = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"];
    let session = Session::login(config, "multivio migrate")?;
    // One that reads or changes rows which its policies would hide fails, instead of finding none.
    let session =
        unlimited.into_iter().fold(session, |session, limit| session.set(limit, "0")).set("row_security", "off");
    let started = Instant::now();
    let mut told = false;
    loop {
        let error = match tokio::time::timeout(Duration::from_secs(10), session.connect()).await {
            Ok(Ok(connection)) => {
                // It takes a lock of its session.
                pooler::prove(&session).await?;
                return Ok(connection);
            }
            Ok(Err(error)) if !may_pass(&error) => return Err(error.into()),
            Ok(Err(error)) => chain(&error),
            Err(_elapsed) => "no answer".to_owned(),
        };
        if started.elapsed() >= deadline {
            return Err(Failure::failed(format!(
                "the database did not answer within {} s: {error}",
                deadline.as_secs()
            ))
            .remedy("Start the server, or correct DATABASE_URL."));
        }
        if !told {
            eprintln!("waiting for the database ({error})");
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Whether waiting can help: not with a wrong password or a missing database.
fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| code.starts_with("57P0") || code.starts_with("53"))
        }
        _ => false,
    }
}

/// Applies what is missing, under a lock that all who migrate this database share.
async fn apply(connection: &mut PgConnection) -> Result<Vec<Applied>, Failure> {
    let table = MIGRATIONS.table_name.as_ref();
    spinner("waiting for the turn of this one among all that migrate", connection.lock()).await.map_err(failed)?;
    connection.ensure_migrations_table(table).await.map_err(failed)?;
    if let Some(version) = connection.dirty_version(table).await.map_err(failed)? {
        return Err(failed(MigrateError::Dirty(version)));
    }
    let present = applied_checksums(connection).await?;
    let mut applied = Vec::new();
    let missing: Vec<_> = MIGRATIONS.iter().filter(|migration| !present.contains_key(&migration.version)).collect();
    if !missing.is_empty() {
        eprintln!("{} migration(s) to apply; with much data in the database one may take many minutes", missing.len());
    }
    for migration in missing {
        // Said before it is begun: it may be what one waits for.
        let what = format!("{:04} {}", migration.version, migration.description);
        eprintln!("applying {what} ...");
        let took = spinner(what.clone(), connection.apply(table, migration)).await.map_err(failed)?;
        eprintln!("applied {what} ({} ms)", took.as_millis());
        let done = Applied {
            version: migration.version,
            description: migration.description.to_string(),
            took_ms: took.as_millis().try_into().unwrap_or(u64::MAX),
        };
        applied.push(done);
    }
    connection.unlock().await.map_err(failed)?;
    Ok(applied)
}

/// What the database has, by version; an error when it does not fit what this program has.
async fn applied_checksums(connection: &mut PgConnection) -> Result<HashMap<i64, Vec<u8>>, Failure> {
    let present = connection.list_applied_migrations(MIGRATIONS.table_name.as_ref()).await.map_err(failed)?;
    let present: HashMap<_, _> =
        present.into_iter().map(|migration| (migration.version, migration.checksum.into_owned())).collect();
    for migration in MIGRATIONS.iter() {
        if present.get(&migration.version).is_some_and(|checksum| checksum.as_slice() != migration.checksum.as_ref()) {
            return Err(failed(MigrateError::VersionMismatch(migration.version)));
        }
    }
    // A database that is ahead is the ordinary case while a release is rolled back or out: this one's code works
    // with the schema after it (expand, move, contract).
    Ok(present)
}

/// What is missing, as `0001 description`. Changes nothing, not even on an empty database.
async fn pending(connection: &mut PgConnection) -> Result<Vec<String>, Failure> {
    let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(MIGRATIONS.table_name.as_ref())
        .fetch_one(&mut *connection)
        .await?;
    let present = if exists { applied_checksums(connection).await? } else { HashMap::new() };
    let missing = MIGRATIONS.iter().filter(|migration| !present.contains_key(&migration.version));
    Ok(missing.map(|migration| format!("{:04} {}", migration.version, migration.description)).collect())
}

fn failed(error: MigrateError) -> Failure {
    let remedy = match (&error, hint(&error)) {
        (MigrateError::VersionMismatch(_), _) => {
            "An applied migration is never edited: bring its file back as it was.".to_owned()
        }
        (MigrateError::Dirty(_), _) => {
            "It stopped halfway: repair the schema by hand, then correct its row in _sqlx_migrations.".to_owned()
        }
        (_, Some(hint)) => format!("{hint}. Then run `multivio migrate` again."),
        _ => "Nothing after it was applied. Correct the cause and run `multivio migrate` again.".to_owned(),
    };
    Failure::failed(format!("the schema could not be brought up to date: {}", chain(&error))).remedy(remedy)
}

/// What the migration itself says of its remedy.
fn hint(error: &MigrateError) -> Option<&str> {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else { return None };
    error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?.hint()
}
