//! Hands out accounts with tokens that work, and refreshes the ones that do not.

use std::time::Duration;

use secrecy::SecretString;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    ConnectionState, RefreshToken,
    flight::{self, Taken},
    store::{self, Expires, Renewed, Sealed, SealedConnection},
    wake_key,
};
use crate::{
    crypto::{CryptoError, Keyring, Place},
    ids::{ConnectionId, TenantId},
    jobs::{Engine, EnqueueError, NewJob, Stop, Why, job::Until},
    platforms::{Account, Class, Connector, Connectors, Explanation, Platform, TokenPair, Turn, Witness},
    rotation::SealedColumn,
};

/// A token that is this close to its end is refreshed before it is used.
const FRESH_FOR: Duration = Duration::from_secs(60);
/// The job refreshes this long before the end, so that nothing due has to wait for it.
const AHEAD: Duration = Duration::from_secs(5 * 60);
/// How long a call waits for another holder's refresh before it comes back later.
const PATIENCE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(100);
/// How often new tokens are tried to be kept: they exist nowhere else.
const SAVES: u32 = 5;
/// How long what waits for a reconnect waits.
pub const RECONNECT_PATIENCE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Why there is no working token now.
#[derive(Debug, thiserror::Error)]
pub enum TokenTrouble {
    #[error("the account needs its owner")]
    Reconnect { connection: ConnectionId, explanation: Explanation },
    #[error("the account was disconnected")]
    Removed,
    #[error("the token cannot be refreshed just now")]
    Later { after: Duration, explanation: Explanation },
    #[error("this program has no connector for the account's platform")]
    NoConnector(Platform),
    #[error("the stored token cannot be read")]
    Sealed(#[from] CryptoError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// Cheap to clone; a service of the workers and of the API.
#[derive(Clone)]
pub struct Accounts {
    keyring: Keyring,
    connectors: Connectors,
}

impl Accounts {
    pub fn new(keyring: Keyring, connectors: Connectors) -> Self {
        Self { keyring, connectors }
    }

    pub fn connectors(&self) -> &Connectors {
        &self.connectors
    }

    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// The account with a token that will not end during the call.
    pub async fn open(
        &self,
        engine: &Engine,
        id: ConnectionId,
        witness: &dyn Witness,
    ) -> Result<Account, TokenTrouble> {
        let row = self.usable(engine, id).await?;
        let stale = row.expires_in_s.is_some_and(|seconds| seconds < FRESH_FOR.as_secs_f64());
        if !stale || row.refresh_token.is_none() {
            return self.unseal(&row);
        }
        match self.trade(engine, &row, witness).await {
            // What cannot be refreshed just now may still be good for a moment.
            Err(TokenTrouble::Later { .. }) if row.expires_in_s.is_some_and(|seconds| seconds > 5.0) => {
                self.unseal(&row)
            }
            other => other,
        }
    }

    /// Another token, after the platform refused this one. Whoever asks second gets what the first one brought.
    pub async fn renew(
        &self,
        engine: &Engine,
        refused: &Account,
        witness: &dyn Witness,
    ) -> Result<Account, TokenTrouble> {
        let row = self.usable(engine, refused.connection).await?;
        if row.generation > refused.generation { self.unseal(&row) } else { self.trade(engine, &row, witness).await }
    }

    /// The platform refuses even new tokens, or wants more than tokens: its owner has to act.
    pub async fn give_up(&self, engine: &Engine, refused: &Account, explanation: &Explanation) -> sqlx::Result<()> {
        let marked = store::needs_reconnect(engine.db(), refused.connection, refused.generation, explanation).await?;
        if marked {
            tracing::warn!(connection = %refused.connection, code = explanation.code, "a connection needs its owner");
        }
        Ok(())
    }

    /// Refreshes ahead of the end. `false`: somebody else did already.
    pub async fn refresh(
        &self,
        engine: &Engine,
        id: ConnectionId,
        generation: i32,
        witness: &dyn Witness,
    ) -> Result<bool, TokenTrouble> {
        let row = self.usable(engine, id).await?;
        if row.generation != generation || row.refresh_token.is_none() {
            return Ok(false);
        }
        self.trade(engine, &row, witness).await.map(|_| true)
    }

    async fn usable(&self, engine: &Engine, id: ConnectionId) -> Result<SealedConnection, TokenTrouble> {
        let row = store::sealed(engine.db(), id).await?.ok_or(TokenTrouble::Removed)?;
        match ConnectionState::of(&row)? {
            ConnectionState::Active => Ok(row),
            ConnectionState::NeedsReconnect => Err(reconnect(&row)),
            ConnectionState::Removed => Err(TokenTrouble::Removed),
        }
    }

    async fn trade(
        &self,
        engine: &Engine,
        row: &SealedConnection,
        witness: &dyn Witness,
    ) -> Result<Account, TokenTrouble> {
        match flight::take(engine.db(), row.tenant_id, row.id, row.generation).await? {
            Taken::Theirs => self.await_other(engine, row).await,
            Taken::Ours(fence) => {
                let outcome = self.fly(engine, row, fence, witness).await;
                // Only frees the way earlier: the flight expires by itself.
                if let Err(error) = flight::lands(engine.db(), row.id, fence).await {
                    tracing::warn!(connection = %row.id, %error, "a token flight was left to expire");
                }
                outcome
            }
        }
    }

    async fn fly(
        &self,
        engine: &Engine,
        row: &SealedConnection,
        fence: Uuid,
        witness: &dyn Witness,
    ) -> Result<Account, TokenTrouble> {
        // Between our reading and our taking the flight, its last holder may have brought a new pair.
        let now = self.usable(engine, row.id).await?;
        if now.generation != row.generation {
            return self.unseal(&now);
        }
        let platform = platform_of(&now)?;
        let connector = self.connectors.get(platform).ok_or(TokenTrouble::NoConnector(platform))?;
        let Some(sealed) = &now.refresh_token else {
            let explanation = Explanation::new(
                "token_ended",
                Turn::User,
                format!("Our access to this {} account has ended. Connect the account again.", platform.title()),
            );
            return self.end(engine, &now, explanation).await;
        };
        let refresh_token = self.keyring.decrypt(refresh_place(now.id), sealed)?;
        if !flight::departs(engine.db(), now.id, fence).await? {
            return Err(later(FLIGHT_PAUSE, "refresh_overtaken", "another worker refreshes the access"));
        }
        match connector.refresh(&refresh_token, witness).await {
            Ok(pair) => self.keep(engine, &now, pair, &*connector).await,
            Err(error) => {
                tracing::warn!(connection = %now.id, error = crate::telemetry::chain(&error), "a token refresh failed");
                self.refused(engine, &now, error.class(), error.explain()).await
            }
        }
    }

    /// The new pair is committed before anybody uses it, and tried hard: it exists nowhere else.
    async fn keep(
        &self,
        engine: &Engine,
        row: &SealedConnection,
        pair: TokenPair,
        connector: &dyn Connector,
    ) -> Result<Account, TokenTrouble> {
        let sealed = self.seal(row.id, &pair.access_token, pair.refresh_token.as_ref(), Expires::In(pair.expires_in));
        let mut tries = 0;
        let renewed = loop {
            tries += 1;
            match store::save_pair(engine.db(), row.id, row.generation, &sealed).await {
                Ok(renewed) => break renewed,
                Err(error) if tries == SAVES => return Err(error.into()),
                Err(_) => sleep(POLL * 2u32.pow(tries.min(4))).await,
            }
        };
        let Some(renewed) = renewed else {
            return match self.usable(engine, row.id).await {
                // Its owner connected the account again while we asked: those tokens are the newer ones.
                Ok(newer) => self.unseal(&newer),
                // Or disconnected it: what we traded was given back already, and this would live on.
                Err(TokenTrouble::Removed) => {
                    self.give_back_pair(connector, row.id, &pair).await;
                    Err(TokenTrouble::Removed)
                }
                Err(trouble) => Err(trouble),
            };
        };
        if let Err(error) = self.after_save(engine, row, renewed).await {
            // The pair is safe. The next use refreshes by itself, so only the head start is lost.
            tracing::warn!(connection = %row.id, error = crate::telemetry::chain(&error), "no refresh ahead of time");
        }
        Ok(Account {
            connection: row.id,
            remote_id: row.remote_account_id.clone(),
            username: row.username.clone(),
            access_token: pair.access_token,
            generation: renewed.generation,
        })
    }

    async fn after_save(&self, engine: &Engine, row: &SealedConnection, renewed: Renewed) -> Result<(), EnqueueError> {
        let mut tx = engine.db().begin().await?;
        self.schedule_refresh(engine, &mut tx, row.tenant_id, row.id, renewed).await?;
        engine.wake(&mut tx, &wake_key(row.id)).await?;
        tx.commit().await?;
        Ok(())
    }

    pub(super) async fn schedule_refresh(
        &self,
        engine: &Engine,
        tx: &mut sqlx::PgConnection,
        tenant: TenantId,
        id: ConnectionId,
        renewed: Renewed,
    ) -> Result<(), EnqueueError> {
        let Some(expires_at) = renewed.access_expires_at else { return Ok(()) };
        let job = NewJob::of(&RefreshToken { connection: id, generation: renewed.generation }, tenant)
            .run_at(expires_at - AHEAD)
            .unique(format!("{id}:{}", renewed.generation));
        match engine.enqueue_in(tx, &[job]).await {
            // Far in the future: the relay brings it to the belt in time.
            Ok(_) | Err(EnqueueError::Duplicate { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn refused(
        &self,
        engine: &Engine,
        row: &SealedConnection,
        class: Class,
        explanation: Explanation,
    ) -> Result<Account, TokenTrouble> {
        let after = match class {
            Class::Reconnect => return self.end(engine, row, explanation).await,
            // The old token may be spent. Asking once more with it is the only way to know: it is taken, or refused.
            Class::Uncertain => Duration::from_secs(5),
            Class::Retry { after } => after.unwrap_or(Duration::from_secs(15)),
            Class::RetryOnce { after } => after,
            Class::Snooze { until } => {
                until.and_then(|until| (until - chrono::Utc::now()).to_std().ok()).unwrap_or(Duration::from_secs(60))
            }
            Class::Config => Duration::from_secs(10 * 60),
            // Not what a token endpoint says: something in between answers for it.
            Class::Refresh | Class::Restage | Class::Duplicate { .. } | Class::Permanent => Duration::from_secs(60),
        };
        Err(TokenTrouble::Later { after, explanation })
    }

    async fn end(
        &self,
        engine: &Engine,
        row: &SealedConnection,
        explanation: Explanation,
    ) -> Result<Account, TokenTrouble> {
        if store::needs_reconnect(engine.db(), row.id, row.generation, &explanation).await? {
            tracing::warn!(connection = %row.id, code = explanation.code, "a connection needs its owner");
            return Err(TokenTrouble::Reconnect { connection: row.id, explanation });
        }
        // What was refused is not what is kept any more.
        self.unseal(&self.usable(engine, row.id).await?)
    }

    /// Somebody else refreshes: takes what they bring.
    async fn await_other(&self, engine: &Engine, row: &SealedConnection) -> Result<Account, TokenTrouble> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            sleep(POLL).await;
            let now = self.usable(engine, row.id).await?;
            if now.generation > row.generation {
                return self.unseal(&now);
            }
        }
        Err(later(FLIGHT_PAUSE, "refresh_under_way", "another worker refreshes the access"))
    }

    fn unseal(&self, row: &SealedConnection) -> Result<Account, TokenTrouble> {
        let sealed = row.access_token.as_ref().ok_or(TokenTrouble::Removed)?;
        Ok(Account {
            connection: row.id,
            remote_id: row.remote_account_id.clone(),
            username: row.username.clone(),
            access_token: self.keyring.decrypt(access_place(row.id), sealed)?,
            generation: row.generation,
        })
    }

    pub(super) fn seal(
        &self,
        id: ConnectionId,
        access: &SecretString,
        refresh: Option<&SecretString>,
        expires: Expires,
    ) -> Sealed {
        Sealed {
            access: self.keyring.encrypt(access_place(id), access),
            refresh: refresh.map(|token| self.keyring.encrypt(refresh_place(id), token)),
            expires,
        }
    }
}

/// When another holder has the flight.
const FLIGHT_PAUSE: Duration = Duration::from_secs(2);

impl TokenTrouble {
    /// What it means for a job that needs the token. `now` is the server's time.
    pub fn into_stop(self, now: chrono::DateTime<chrono::Utc>) -> Stop {
        match self {
            Self::Reconnect { connection, explanation } => Stop::Reconnect {
                wake: wake_key(connection),
                deadline: now + RECONNECT_PATIENCE,
                why: Why::new(explanation.code, explanation.message),
            },
            Self::Removed => Stop::failed("connection_removed", "the account was disconnected"),
            Self::Later { after, explanation } => {
                Stop::Snooze { until: Until::After(after), why: Why::new(explanation.code, explanation.message) }
            }
            Self::NoConnector(platform) => {
                Stop::failed("no_connector", format!("this version cannot publish on {}", platform.title()))
            }
            // Putting the key back mends it, so nothing is given up.
            Self::Sealed(error) => Stop::snooze(Duration::from_secs(300), "secret_unreadable", error.to_string()),
            Self::Database(error) => error.into(),
        }
    }
}

/// What is encrypted here.
pub const SEALED: [SealedColumn; 2] = [
    SealedColumn {
        table: "connections",
        column: "access_token",
        row: "id",
        position: "0::smallint",
        place: |row, _| access_place(ConnectionId::from_uuid(row)),
    },
    SealedColumn {
        table: "connections",
        column: "refresh_token",
        row: "id",
        position: "0::smallint",
        place: |row, _| refresh_place(ConnectionId::from_uuid(row)),
    },
];

pub(super) fn access_place(id: ConnectionId) -> Place {
    Place::new("connections", "access_token", id.uuid())
}

pub(super) fn refresh_place(id: ConnectionId) -> Place {
    Place::new("connections", "refresh_token", id.uuid())
}

pub(super) fn platform_of(row: &SealedConnection) -> sqlx::Result<Platform> {
    store::stored(&row.platform)
}

fn later(after: Duration, code: &str, message: &str) -> TokenTrouble {
    TokenTrouble::Later { after, explanation: Explanation::new(code, Turn::Us, message) }
}

fn reconnect(row: &SealedConnection) -> TokenTrouble {
    let explanation = row.problem.as_ref().map_or_else(
        || Explanation::new("reconnect", Turn::User, "Connect the account again."),
        |problem| problem.0.clone(),
    );
    TokenTrouble::Reconnect { connection: row.id, explanation }
}
