//! Gives an account's tokens back to its platform: of accounts that are disconnected, and for whoever is leaving.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::{
    Accounts, ConnectionState,
    accounts::{access_place, platform_of, refresh_place},
    job::Seen,
    store::{self, SealedConnection},
};
use crate::{
    crypto::CryptoError,
    ids::{ConnectionId, TenantId},
    jobs::{Backoff, Job, JobContext, Lane, NewJob, Queue, Stop},
    platforms::{Connector, TokenPair},
    telemetry::chain,
};

/// How often a platform is asked at once to take back what is kept nowhere.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// The job that gives the tokens of a disconnected account back, and forgets them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GiveBackTokens {
    pub connection: ConnectionId,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Returned {
    /// `false`: the platform did not take them. They are forgotten here all the same, and end by themselves.
    pub given_back: bool,
}

impl GiveBackTokens {
    pub fn new_job(connection: ConnectionId, tenant: TenantId) -> NewJob {
        NewJob::of(&Self { connection }, tenant).unique(connection.to_string())
    }
}

impl Job for GiveBackTokens {
    const KIND: &'static str = "give_back_tokens";
    const QUEUE: Queue = Queue::Ops;
    const LANE: Lane = Lane::Tokens;
    /// Over some hours; what is left after a day goes in any case.
    const MAX_ATTEMPTS: u16 = 12;
    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(10), cap: Duration::from_secs(2 * 3600) };

    type Output = Returned;

    async fn run(&self, cx: &JobContext) -> Result<Returned, Stop> {
        let row = store::sealed(cx.db(), self.connection).await?;
        let row = row.ok_or_else(|| Stop::failed("connection_gone", "the account is not known any more"))?;
        if ConnectionState::of(&row)? != ConnectionState::Removed {
            return Err(Stop::failed("connection_in_use", "the account is connected"));
        }
        let outcome = cx.service::<Accounts>().give_back(cx.db(), &row).await?;
        if outcome == GivenBack::Later && cx.attempt < cx.max_attempts {
            return Err(Stop::retry("platform_in_trouble", "the platform does not take the tokens back yet"));
        }
        store::forget_tokens(cx.db(), row.id, row.generation).await?;
        Ok(Returned { given_back: outcome == GivenBack::Done })
    }
}

/// What came of offering tokens back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenBack {
    Done,
    /// The platform could not be asked, or did not take them.
    Later,
    /// We cannot read them, or cannot speak with the platform.
    Never,
}

impl Accounts {
    /// Offers this pair to the platform. Afterwards it is dead, and still kept here. Tokens that a connection of the
    /// same account uses (they were typed in again) stay with it.
    pub async fn give_back(&self, db: &PgPool, row: &SealedConnection) -> sqlx::Result<GivenBack> {
        let id = row.id;
        let Some(connector) = self.connectors().get(platform_of(row)?) else { return Ok(GivenBack::Never) };
        let kept = [(refresh_place(id), &row.refresh_token), (access_place(id), &row.access_token)];
        let mut given_back = GivenBack::Done;
        let mut tokens = Vec::new();
        for (place, sealed) in kept {
            let Some(sealed) = sealed else { continue };
            match self.keyring().decrypt(place, sealed) {
                Ok(token) => tokens.push(token),
                Err(error) => {
                    tracing::warn!(connection = %id, %error, "a token that cannot be read was not given back");
                    given_back = GivenBack::Never;
                }
            }
        }
        let ours: Vec<_> = tokens.iter().map(Some).collect();
        for other in store::others_of_account(db, row).await? {
            match self.tokens_of(&other) {
                Ok((access, refresh)) if share(&ours, &[access.as_ref(), refresh.as_ref()]) => {
                    return Ok(GivenBack::Never);
                }
                Ok(_) => {}
                Err(error) => {
                    // Whether it is the same pair cannot be told, and ending one in use is worse than leaving one.
                    tracing::warn!(connection = %id, %error, "tokens were not given back beside one that cannot be read");
                    return Ok(GivenBack::Never);
                }
            }
        }
        for token in tokens {
            if let Err(error) = connector.revoke(&token, &Seen::default()).await {
                tracing::warn!(connection = %id, error = chain(&error), "a token was not given back");
                return Ok(GivenBack::Later);
            }
        }
        Ok(given_back)
    }

    /// Access and refresh token, in the clear.
    fn tokens_of(&self, row: &SealedConnection) -> Result<(Option<SecretString>, Option<SecretString>), CryptoError> {
        let open = |place, sealed: &Option<Vec<u8>>| {
            sealed.as_ref().map(|sealed| self.keyring().decrypt(place, sealed)).transpose()
        };
        Ok((open(access_place(row.id), &row.access_token)?, open(refresh_place(row.id), &row.refresh_token)?))
    }

    /// A pair that came for an account which is not connected any more: it is kept nowhere, so it is offered at once.
    pub(super) async fn give_back_pair(&self, connector: &dyn Connector, id: ConnectionId, pair: &TokenPair) {
        for token in [pair.refresh_token.as_ref(), Some(&pair.access_token)].into_iter().flatten() {
            let mut tries = 1;
            while let Err(error) = connector.revoke(token, &Seen::default()).await {
                if tries == TRIES {
                    tracing::warn!(connection = %id, error = chain(&error), "a token was not given back");
                    break;
                }
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether two pairs are of one consent, as far as can be told: a token is in both.
fn share(one: &[Option<&SecretString>], other: &[Option<&SecretString>]) -> bool {
    let in_other =
        |token: &&SecretString| other.iter().flatten().any(|known| known.expose_secret() == token.expose_secret());
    one.iter().flatten().any(in_other)
}
