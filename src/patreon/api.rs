//! `/api/v1/patreon/link`: a workspace's plan by its owner's membership on Patreon.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use poem::{http::StatusCode, web::Data};
use poem_openapi::{
    Object, OpenApi,
    payload::Json,
    types::{Password, ToJSON},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::{
    Patreon,
    arrival::Arrival,
    link,
    store::{self, LinkRow, Taken},
};
use crate::{
    audit::{self, Action},
    crypto::{random_text, sha256},
    http::{Also, App, Caller, Gone, IdempotencyKey, Input, Problem, Scope, Tag, Turn},
    identity::api::ensure,
    ids::UserId,
};

/// Needs `Arc<Option<Patreon>>` as `Data`.
#[derive(Debug, Clone, Copy)]
pub struct PatreonApi;

#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct BeginInput {
    /// SHA-256 of a random `code_verifier` (43 to 128 characters) in base64url without padding, as RFC 7636 has it.
    #[oai(validator(min_length = 43, max_length = 43))]
    code_challenge: String,
}

/// Where to send the user.
// Holds the state, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq, Object)]
struct LinkBegun {
    /// Patreon's own page; it comes back to the redirect URI of this installation with `code` and `state`, or with
    /// `error=access_denied`.
    authorize_url: String,
    /// Until then it has to be finished.
    expires_at: DateTime<Utc>,
}

#[derive(Object)]
#[oai(deny_unknown_fields)]
struct FinishInput {
    /// As Patreon gave it back.
    #[oai(validator(min_length = 1, max_length = 200))]
    state: String,
    /// As Patreon gave it.
    #[oai(validator(min_length = 1, max_length = 2000))]
    code: Password,
    /// The one whose challenge the linking began with.
    #[oai(validator(min_length = 43, max_length = 128))]
    code_verifier: Password,
}

/// The account whose membership gives the workspace a plan.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "PatreonLink", skip_serializing_if_is_none)]
pub struct LinkView {
    /// `active`, or `broken`: Patreon refuses our access, and it has to be linked again.
    state: String,
    /// Patreon's own id of the account.
    patreon_user_id: String,
    /// `active_patron`, `declined_patron`, `former_patron`; absent for who never paid.
    patron_status: Option<String>,
    /// Ids of the tiers that the account is entitled to.
    tiers: Vec<String>,
    /// When that was read.
    read_at: DateTime<Utc>,
    linked_by: UserId,
    created_at: DateTime<Utc>,
}

#[OpenApi(prefix_path = "/api/v1/patreon", tag = "Tag::Identity")]
impl PatreonApi {
    /// Begin to link Patreon
    ///
    /// For owners. Keep `code_verifier` where only this browser finds it; a linking that was begun before ends.
    #[oai(path = "/link", method = "post", operation_id = "beginPatreonLink")]
    async fn begin(
        &self,
        app: Data<&Arc<App>>,
        patreon: Data<&Arc<Option<Patreon>>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<BeginInput>,
    ) -> Result<Json<LinkBegun>, Problem> {
        caller.require(Scope::Manage)?;
        let patreon = on(&patreon)?;
        let challenge = link::challenge(&body.0.code_challenge).ok_or_else(|| {
            let remedy = "Send base64url(SHA-256(code_verifier)) without padding";
            Problem::invalid_field("code_challenge", "is no SHA-256 in base64url", remedy)
        })?;
        ensure(&app, &caller).await?;
        let mut tx = app.db.begin(&caller).await?;
        let key = key.of_person(&caller);
        let claim = match key.claim_sealed(&mut tx, &caller, body.0.to_json(), &patreon.keyring).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let state = random_text();
        let hash = sha256(state.expose_secret());
        let expires_at = store::begin(&mut tx, hash, caller.tenant, caller.user, challenge).await?;
        let authorize_url = patreon.client.authorize_url(state.expose_secret()).into();
        let answer = Json(LinkBegun { authorize_url, expires_at });
        let answer = claim.keep_sealed(&mut tx, &patreon.keyring, answer).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Finish to link Patreon
    ///
    /// By the user, and in the workspace, that began it. The plan that the membership gives holds at once; a link that
    /// the workspace had is replaced.
    #[oai(path = "/link/finish", method = "post", operation_id = "finishPatreonLink")]
    async fn finish(
        &self,
        app: Data<&Arc<App>>,
        patreon: Data<&Arc<Option<Patreon>>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<FinishInput>,
    ) -> Result<Json<LinkView>, Problem> {
        caller.require(Scope::Manage)?;
        on(&patreon)?;
        let key = key.of_person(&caller);
        let FinishInput { state, code, code_verifier } = body.0;
        let request = json!({ "state": state, "code": code.0, "verifier": code_verifier.0 });
        let state_hash = sha256(&state);
        let mut tx = app.db.begin(&caller).await?;
        // Looked up now and kept at the end: between the two we speak with Patreon, in no transaction.
        if let Turn::Replay(answer) = key.clone().claim(&mut tx, &caller, Some(request.clone())).await? {
            return Ok(answer);
        }
        let challenge = match store::take_flow(&mut tx, state_hash, caller.tenant, caller.user).await? {
            Taken::Now(challenge) => challenge,
            Taken::UnderWay => return Err(under_way()),
            Taken::Unknown => return Err(not_begun()),
        };
        // Over with the first try, however that ends.
        if !link::fits(&SecretString::from(code_verifier.0), &challenge) {
            store::end_flow(&mut *tx, state_hash, caller.tenant, caller.user).await?;
            tx.commit().await?;
            return Err(not_begun());
        }
        let (app, patreon) = (Arc::clone(&app), Arc::clone(&patreon));
        let arrival = Arrival { app, patreon, caller, state_hash, key, request };
        // On its own feet: a browser that leaves now must not cost the code, which is good once.
        let done = tokio::spawn(arrival.finish(tx, SecretString::from(code.0))).await;
        done.map_err(|error| Problem::internal(&error))?
    }

    /// Get the link to Patreon
    #[oai(path = "/link", method = "get", operation_id = "getPatreonLink")]
    async fn get(&self, app: Data<&Arc<App>>, caller: Caller) -> Result<Json<LinkView>, Also<404>> {
        caller.require(Scope::Read)?;
        Ok(Json(store::get(&mut *app.db.of(&caller).await?, caller.tenant).await?.ok_or_else(no_link)?.into()))
    }

    /// Unlink Patreon
    ///
    /// Our access is forgotten at once, and the plan that it gave is taken back.
    #[oai(path = "/link", method = "delete", operation_id = "removePatreonLink")]
    async fn remove(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Gone, Also<404>> {
        caller.require(Scope::Manage)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let account = store::remove(&mut tx, caller.tenant).await?.ok_or_else(no_link)?;
        let details = json!({"patreon_user_id": account});
        audit::record(&mut tx, &caller, Action::PatreonUnlinked, caller.tenant, details).await?;
        let answer = claim.keep(&mut tx, Gone::default()).await?;
        tx.commit().await?;
        Ok(answer)
    }
}

impl From<LinkRow> for LinkView {
    fn from(row: LinkRow) -> Self {
        let LinkRow { state, patreon_user_id, patron_status, tiers, read_at, linked_by, created_at } = row;
        Self { state, patreon_user_id, patron_status, tiers, read_at, linked_by, created_at }
    }
}

pub fn on(patreon: &Option<Patreon>) -> Result<&Patreon, Problem> {
    patreon.as_ref().ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "patreon_off",
            "Patreon is off",
            "This installation gives no plans for memberships: its operator sets PATREON_CLIENT_ID.",
        )
    })
}

pub fn no_link() -> Problem {
    Problem::not_found("link to Patreon")
}

/// One answer for a linking that nobody began, that somebody else began, that is over, or whose secret is another.
pub fn not_begun() -> Problem {
    let text = "There is no such linking of yours in this workspace, or it is over. Begin again: POST \
                /api/v1/patreon/link";
    Problem::conflict("link_not_begun", text)
}

fn under_way() -> Problem {
    let text = "Another request is bringing this in. Look at the link: GET /api/v1/patreon/link";
    Problem::conflict("link_under_way", text).with_retry_after(Duration::from_secs(1))
}
