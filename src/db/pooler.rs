//! Whether every connection is a session of its own.
//!
//! Behind a pooler in transaction mode it is not: one session serves whoever has a transaction just now. Settings,
//! prepared statements and locks then go astray, and one of the settings says whose rows are seen. So no call is
//! served before this is known.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Session, within};
use crate::telemetry::chain;

/// Connections beside the one that is looked at. Few: a pooler that does give sessions may have few to give.
const OTHERS: usize = 2;
/// Looks: other traffic may hide it for one of them.
const ROUNDS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(8);

/// A pooler in transaction (or statement) mode stands between.
#[derive(Debug, thiserror::Error)]
#[error(
    "connections share sessions: a pooler in transaction mode stands between. Use its session mode (Supabase: port \
     5432 of the pooler) or connect to the server itself, in DATABASE_URL"
)]
pub struct SharedSessions;

/// An error that [`is_shared`] knows when sessions are shared; any other when it could not be found out.
pub async fn prove(session: &Session) -> sqlx::Result<()> {
    match within(PATIENCE, shares(session)).await? {
        false => Ok(()),
        true => Err(sqlx::Error::Configuration(Box::new(SharedSessions))),
    }
}

/// For a program that starts in any order with its servers: looks until it is known, or until it is told to stop. What
/// else the program asks the database waits for it: behind a pooler with few sessions the two would wait for each other.
pub async fn watch(session: Session, stop: &CancellationToken) -> Result<(), SharedSessions> {
    const AGAIN: Duration = Duration::from_secs(1);
    let looking = async {
        let mut told = false;
        loop {
            match prove(&session).await {
                Ok(()) => return Ok(()),
                Err(error) if is_shared(&error) => return Err(SharedSessions),
                Err(away) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(error = %chain(&away), "waiting for the database");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    };
    stop.run_until_cancelled(looking).await.unwrap_or(Ok(()))
}

/// Whether this is what is wrong: nothing that passes by itself.
pub fn is_shared(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Configuration(error) if error.is::<SharedSessions>())
}

/// One connection notes its backend. Others each begin a transaction, which takes the backend that is free: with a
/// pooler in transaction mode that is the first one's, which then shows up with them, or is gone when it comes back.
async fn shares(session: &Session) -> sqlx::Result<bool> {
    let mut one = session.connect().await?;
    let mut others = Vec::with_capacity(OTHERS);
    for _ in 0..OTHERS {
        others.push(session.connect().await?);
    }
    let mut shares = false;
    let own = backend(&mut one).await?;
    'looks: for _ in 0..ROUNDS {
        for other in &mut others {
            // Simple statements: prepared ones are what such a pooler breaks first.
            sqlx::raw_sql("begin").execute(&mut *other).await?;
            if backend(other).await? == own {
                shares = true;
                break 'looks;
            }
        }
        if backend(&mut one).await? != own {
            shares = true;
            break;
        }
        for other in &mut others {
            sqlx::raw_sql("rollback").execute(&mut *other).await?;
        }
    }
    for connection in others.into_iter().chain([one]) {
        connection.close().await?;
    }
    Ok(shares)
}

async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::raw_sql("select pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}
