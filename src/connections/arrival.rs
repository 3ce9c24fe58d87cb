//! What happens once an account's owner has said yes: code for tokens, tokens for a name, name and tokens kept.

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Postgres, Transaction};

use super::{
    Accounts,
    api::{ConnectionView, not_connected},
    connect::{ConnectError, NewAccount},
    consent,
    job::Seen,
    proof,
    store::{self, Expires},
};
use crate::{
    audit::{self, Action},
    http::{App, Caller, Created, IdempotencyKey, Problem, Turn},
    ids::ConsentId,
    plans::{self, PlanError},
    platforms::{Connector, ConnectorError, Grant, Owner, Platform, TokenPair},
    telemetry::chain,
};

type Tx = Transaction<'static, Postgres>;

/// One answer of one owner, on its way to a connection.
pub struct Arrival {
    pub app: Arc<App>,
    pub accounts: Accounts,
    pub connector: Arc<dyn Connector>,
    pub caller: Caller,
    pub consent: ConsentId,
    pub key: IdempotencyKey,
    /// As the key knows it.
    pub request: Value,
}

/// Why nothing was connected.
#[derive(Debug)]
pub enum Refused {
    Platform(ConnectorError),
    /// Another workspace holds the account.
    Elsewhere(Platform),
    /// The workspace, or whoever asked, was deleted meanwhile.
    Gone,
    Plan(Box<plans::Refused>),
    Problem(Problem),
}

impl<E: Into<Problem>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Problem(error.into())
    }
}

impl Arrival {
    /// `taken` is the transaction in which the answer's state was taken: whoever commits it goes on to the end.
    pub async fn finish(
        self,
        taken: Transaction<'static, Postgres>,
        code: SecretString,
        verifier: SecretString,
    ) -> Result<Created<ConnectionView>, Refused> {
        taken.commit().await?;
        let seen = Seen::default();
        let outcome = self.connect(&code, &verifier, &seen).await;
        if let Err(refused) = &outcome {
            if let Refused::Platform(error) = refused {
                tracing::warn!(consent = %self.consent, error = chain(error), "an account was not connected");
            }
            // Only tells a repeat at once that it is over: it is told so after a minute in any case.
            if let Err(error) = self.over().await {
                tracing::warn!(consent = %self.consent, error = chain(&error), "a consent was left to its minute");
            }
        }
        outcome
    }

    async fn connect(
        &self,
        code: &SecretString,
        verifier: &SecretString,
        seen: &Seen,
    ) -> Result<Created<ConnectionView>, Refused> {
        let pair = self.connector.redeem(&Grant { code, verifier }, seen).await.map_err(Refused::Platform)?;
        let owner = match proof::owner(&*self.connector, &pair.access_token, seen).await {
            Ok(owner) => owner,
            Err(error) => {
                self.give_back(&pair, seen).await;
                return Err(Refused::Platform(error));
            }
        };
        match self.write(&pair, &owner).await {
            // Whether a commit that failed has come through, nobody knows: tokens that may be in use are not taken away.
            Ok((Some(tx), answer)) => tx.commit().await.map(|()| answer).map_err(Refused::from),
            Ok((None, answer)) => {
                self.give_back(&pair, seen).await;
                Ok(answer)
            }
            Err(refused) => {
                self.give_back(&pair, seen).await;
                Err(refused)
            }
        }
    }

    async fn over(&self) -> sqlx::Result<bool> {
        consent::finish(&mut *self.app.db.of(&self.caller).await?, self.consent).await
    }

    /// All that has to be there or not be there together. Without a transaction: the key had its answer before.
    async fn write(&self, pair: &TokenPair, owner: &Owner) -> Result<(Option<Tx>, Created<ConnectionView>), Refused> {
        let platform = self.connector.platform();
        let claimed = self.key.claim_at_last(&self.app.db, &self.caller, &self.request).await?;
        let (mut tx, claim) = match claimed {
            (tx, Turn::New(claim)) => (tx, claim),
            (_, Turn::Replay(answer)) => return Ok((None, answer)),
        };
        let tenant = self.caller.tenant;
        // Before anything is written: whatever ends the workspace or the user takes the consent with it. It has, and
        // nothing is kept; or it waits for us, and finds what we have kept.
        if !consent::finish(&mut *tx, self.consent).await? {
            return Err(Refused::Gone);
        }
        if consent::is_held_elsewhere(&mut tx, platform, &owner.remote_id).await? {
            return Err(Refused::Elsewhere(platform));
        }
        let new = NewAccount {
            platform,
            remote_account_id: &owner.remote_id,
            username: &owner.username,
            display_name: &owner.display_name,
            access_token: pair.access_token.clone(),
            refresh_token: pair.refresh_token.clone(),
            expires: Expires::In(pair.expires_in),
        };
        let connected = self.accounts.connect(&self.app.engine, &mut tx, tenant, &new).await;
        let id = connected.map_err(|error| match error {
            ConnectError::Plan(PlanError::Refused(refused)) => Refused::Plan(refused),
            error => not_connected(error).into(),
        })?;
        store::prove(&mut tx, tenant, id).await?;
        let row = store::get(&mut *tx, self.caller.reach(), id).await?;
        let row = row.ok_or_else(|| Problem::internal_with("a connection is not there right after it was written"))?;
        let details = json!({"platform": platform, "username": row.username, "consent": self.consent});
        audit::record(&mut tx, &self.caller, Action::ConnectionAdded, id, details).await?;
        let answer = Created::new(format!("/api/v1/connections/{id}"), ConnectionView::from(row));
        let answer = claim.keep(&mut tx, answer).await?;
        Ok((Some(tx), answer))
    }

    /// Tokens that nobody will use. Where the platform does not take them back, they end by themselves.
    async fn give_back(&self, pair: &TokenPair, seen: &Seen) {
        for token in [pair.refresh_token.as_ref(), Some(&pair.access_token)].into_iter().flatten() {
            if let Err(error) = self.connector.revoke(token, seen).await {
                tracing::warn!(consent = %self.consent, error = chain(&error), "an unused token was not given back");
            }
        }
    }
}
