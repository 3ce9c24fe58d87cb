//! What happens once somebody comes back from Patreon: code for tokens, tokens for a membership, both kept as a link.

use std::sync::Arc;

use poem::http::StatusCode;
use poem_openapi::payload::Json;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Postgres, Transaction};

use super::{
    Patreon, PatreonError,
    api::{LinkView, no_link, not_begun, on},
    client::{Identity, Tokens},
    membership, store,
};
use crate::{
    audit::{self, Action},
    http::{App, Caller, FieldError, IdempotencyKey, Problem, Turn},
    ids::PatreonLinkId,
    plans::{self, Source},
    telemetry::chain,
};

/// One linking that was taken, on its way to a link.
pub struct Arrival {
    pub app: Arc<App>,
    pub patreon: Arc<Option<Patreon>>,
    pub caller: Caller,
    pub state_hash: [u8; 32],
    pub key: IdempotencyKey,
    /// As the key knows it.
    pub request: Value,
}

impl Arrival {
    /// `taken` is the transaction in which it was taken: whoever commits it goes on to the end.
    pub async fn finish(
        self,
        taken: Transaction<'static, Postgres>,
        code: SecretString,
    ) -> Result<Json<LinkView>, Problem> {
        taken.commit().await?;
        let outcome = self.link(&code).await;
        if outcome.is_err()
            && let Err(error) = self.over().await
        {
            // Only tells a repeat at once that it is over: it is told so after a minute in any case.
            tracing::warn!(cause = chain(&error), "a linking was left to its minute");
        }
        outcome
    }

    async fn over(&self) -> sqlx::Result<()> {
        let Caller { tenant, user, .. } = self.caller;
        store::end_flow(&mut *self.app.db.of(&self.caller).await?, self.state_hash, tenant, user).await.map(drop)
    }

    async fn link(&self, code: &SecretString) -> Result<Json<LinkView>, Problem> {
        let patreon = on(&self.patreon)?;
        let Caller { tenant, user, .. } = self.caller;
        let (tokens, identity) = patreon.learn(code).await.map_err(not_linked)?;
        let (mut tx, turn) = self.key.claim_at_last(&self.app.db, &self.caller, &self.request).await?;
        let claim = match turn {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        // First: what ends a linking meanwhile waits for us, or we see that it has.
        if !store::end_flow(&mut *tx, self.state_hash, tenant, user).await? {
            return Err(not_begun());
        }
        let id = PatreonLinkId::new();
        let sealed = patreon.seal(id, &tokens);
        let before = store::put(&mut tx, id, tenant, user, &identity, &sealed).await.map_err(taken_elsewhere)?;
        if before.is_some_and(|before| before != identity.user_id) {
            plans::store::take_back(&mut tx, tenant, Source::Patreon).await?;
        }
        let plan = membership::give(&mut tx, tenant, &identity, patreon.config.grace).await?;
        let details = json!({"patreon_user_id": identity.user_id, "plan": plan});
        audit::record(&mut tx, &self.caller, Action::PatreonLinked, tenant, details).await?;
        let row = store::get(&mut *tx, tenant).await?.ok_or_else(no_link)?;
        let answer = claim.keep(&mut tx, Json(LinkView::from(row))).await?;
        tx.commit().await?;
        Ok(answer)
    }
}

impl Patreon {
    async fn learn(&self, code: &SecretString) -> Result<(Tokens, Identity), PatreonError> {
        let tokens = self.client.exchange(code).await?;
        let identity = self.client.identity(&tokens.access).await?;
        Ok((tokens, identity))
    }
}

fn not_linked(error: PatreonError) -> Problem {
    match error {
        PatreonError::Ended => {
            Problem::invalid_field("code", "is not accepted by Patreon", "Begin again: POST /api/v1/patreon/link")
        }
        PatreonError::Throttled { after } => Problem::unavailable().with_retry_after(after),
        error => {
            tracing::warn!(cause = chain(&error), "an account at Patreon was not linked");
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "patreon_failed",
                "Patreon did not answer as it should",
                "Nothing was linked. Begin again in a moment: POST /api/v1/patreon/link",
            )
        }
    }
}

fn taken_elsewhere(error: sqlx::Error) -> Problem {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    match constraint {
        Some("patreon_links_account_key") => Problem::conflict(
            "patreon_account_taken",
            "That account on Patreon gives another workspace its plan. Unlink it there first.",
        )
        .with_errors(vec![FieldError::new(
            "code",
            "is of an account that is linked elsewhere",
            "Unlink it there first",
        )]),
        Some("patreon_links_tenant_key") => {
            Problem::conflict("linked_meanwhile", "The workspace was linked by another request. Look at it first.")
        }
        _ => error.into(),
    }
}
