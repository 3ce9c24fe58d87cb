//! A connection that one loop keeps for its own statements.
//!
//! A pool looks whether a connection is alive before each use and twice after it: three journeys beside the one of a
//! claim, a settlement or a group commit, thousands of times a second. A loop that uses one connection all the time
//! learns of its death by its own statements.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};

use super::{SIGN_OF_LIFE, Session, answer, within};

/// A connection that was used a moment ago is believed to be alive.
const FRESH: Duration = Duration::from_millis(500);

/// Opened when it is first needed, and anew after anything went wrong with it.
#[derive(Debug)]
pub struct OwnConnection {
    session: Session,
    idle: Mutex<Option<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    since: Instant,
}

impl OwnConnection {
    pub fn new(session: Session) -> Self {
        Self { session, idle: Mutex::new(None) }
    }

    /// What `work` comes to, or an error once [`super::ANSWER_DEADLINE`] is over. The connection is closed after an
    /// error, and when nobody waits any more: who knows what a statement left behind that has not ended well.
    ///
    /// For one loop: a second one at the same time would open a connection for each of its statements.
    pub async fn run<T>(&self, work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>) -> sqlx::Result<T> {
        answer(async {
            let mut connection = self.open().await?;
            let outcome = work(&mut connection).await?;
            *self.idle() = Some(Idle { connection, since: Instant::now() });
            Ok(outcome)
        })
        .await
    }

    async fn open(&self) -> sqlx::Result<PgConnection> {
        // A statement of its own: the lock must not be held while the server is asked.
        let idle = self.idle().take();
        if let Some(Idle { mut connection, since }) = idle
            && (since.elapsed() < FRESH || within(SIGN_OF_LIFE, connection.ping()).await.is_ok())
        {
            return Ok(connection);
        }
        self.session.connect().await
    }

    fn idle(&self) -> MutexGuard<'_, Option<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
