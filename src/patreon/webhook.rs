//! `POST /webhooks/patreon`: hints that a membership may have changed. A hint is believed in nothing: it only has the
//! member's own word read anew.
//!
//! Hints have neither id nor time, and a membership that goes back to what it was tells so in the same bytes as before:
//! none is ever known to be a repeat. Every one is good for a look that begins after it came; one such look that waits
//! is enough for all of them, so that a crowd of repeats costs two looks at the most, one that runs and one after it.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use poem::{
    Endpoint, IntoResponse, Request, Response, Result,
    http::{Method, StatusCode},
};
use poem_openapi::{registry::MetaPath, types::Type};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Patreon, ReadMembership,
    store::{self, Found},
};
use crate::{
    db::Tenancy,
    http::{App, Problem, beside},
    jobs::{EnqueueError, State, ledger},
    telemetry::chain,
};

pub const SIGNATURE: &str = "x-patreon-signature";
const EVENT: &str = "x-patreon-event";

pub struct WebhookEndpoint {
    pub app: Arc<App>,
    pub patreon: Arc<Option<Patreon>>,
}

impl Endpoint for WebhookEndpoint {
    type Output = Response;

    async fn call(&self, mut request: Request) -> Result<Response> {
        // The gate has gathered it, within its bounds.
        let body = request.take_body().into_bytes().await.map_err(|_error| unreadable())?;
        let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
        let taken = self.take(&header(SIGNATURE), &header(EVENT), &body).await;
        Ok(taken.map_or_else(IntoResponse::into_response, |()| StatusCode::NO_CONTENT.into_response()))
    }
}

/// What the document says of it.
pub fn described() -> MetaPath {
    let about = "For Patreon alone, which signs what it sends in X-Patreon-Signature.";
    let mut operation = beside::operation(Method::POST, "patreonHint", "A membership may have changed", about);
    operation.request = Some(beside::body("application/json", Value::schema_ref()));
    operation.responses.responses = vec![
        beside::answer(204, "It will be looked into, where it is about somebody who is linked", None),
        beside::refusal(403, "X-Patreon-Signature is not of this body"),
        beside::refusal(404, "No PATREON_WEBHOOK_SECRET is set"),
    ];
    beside::path("/webhooks/patreon", operation)
}

impl WebhookEndpoint {
    async fn take(&self, signature: &str, event: &str, body: &[u8]) -> Result<(), Problem> {
        let secret = self.patreon.as_ref().as_ref().and_then(|patreon| patreon.config.webhook_secret.as_ref());
        let secret = secret.ok_or_else(|| Problem::not_found("webhook"))?;
        if !is_signed(secret, body, signature) {
            return Err(unsigned());
        }
        // Whoever posted something is of no interest here.
        if !event.starts_with("members:") {
            return Ok(());
        }
        let member: Hint = serde_json::from_slice(body).map_err(|_error| unreadable())?;
        let account = member.data.relationships.user.data.id;
        let link = store::of_account(&mut *self.app.db.nobody().await?, &account).await?;
        let Some(link) = link else { return Ok(()) };
        self.look(link).await
    }

    /// Sees to it that a look begins from here on.
    async fn look(&self, link: Found) -> Result<(), Problem> {
        let tenant = link.tenant_id;
        let read = ReadMembership { link: link.id };
        let mut tx = self.app.db.begin(Tenancy::of_things(tenant)).await?;
        // Looks at one link run one after the other: when the first of these runs, or has ended by the time we see it,
        // the second one begins after that, and so after the hint.
        for job in [read.new_job(tenant), read.new_job_after(tenant)] {
            match self.app.engine.enqueue_in(&mut tx, &[job]).await {
                Ok(tickets) => {
                    tx.commit().await?;
                    self.app.engine.ring(&tickets).await;
                    return Ok(());
                }
                Err(EnqueueError::Duplicate { existing }) => {
                    let row = ledger::get(&mut *tx, Some(tenant), existing).await?;
                    if row.is_some_and(|row| row.state != State::Running && !row.state.is_final()) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(not_enqueued(error)),
            }
        }
        Ok(())
    }
}

/// Lower-case hex of the HMAC-MD5 of the body, as it came. (MD5 is Patreon's choice; as a keyed hash it still holds.)
fn is_signed(secret: &SecretString, body: &[u8], signature: &str) -> bool {
    let Ok(given) = hex::decode(signature) else { return false };
    let mut mac = Hmac::<Md5>::new_from_slice(secret.expose_secret().as_bytes()).expect("a key of any length will do");
    mac.update(body);
    // In constant time.
    mac.verify_slice(&given).is_ok()
}

#[derive(Deserialize)]
struct Hint {
    data: Member,
}

#[derive(Deserialize)]
struct Member {
    relationships: Relationships,
}

#[derive(Deserialize)]
struct Relationships {
    user: User,
}

#[derive(Deserialize)]
struct User {
    data: Reference,
}

#[derive(Deserialize)]
struct Reference {
    id: String,
}

fn unsigned() -> Problem {
    let detail = "X-Patreon-Signature is not the HMAC-MD5 of this body under the webhook's secret. Set \
                  PATREON_WEBHOOK_SECRET to the secret that Patreon shows for this webhook.";
    Problem::new(StatusCode::FORBIDDEN, "bad_signature", "Not from Patreon", detail)
}

fn unreadable() -> Problem {
    Problem::bad_request("unreadable_hint", "The body names no member and user as Patreon's do.")
}

fn not_enqueued(error: EnqueueError) -> Problem {
    match error {
        EnqueueError::Ledger(error) => error.into(),
        error => {
            tracing::warn!(cause = chain(&error), "a hint from Patreon could not be taken in");
            Problem::unavailable()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_of_this_body_under_this_secret() {
        // RFC 2202, test case 2 of HMAC-MD5.
        let (secret, body) = (SecretString::from("Jefe"), b"what do ya want for nothing?");
        let good = "750c783e6ab0b503eaa86e310a5db738";
        assert!(is_signed(&secret, body, good));
        assert!(!is_signed(&secret, b"what do ya want for nothing!", good));
        assert!(!is_signed(&SecretString::from("Jeff"), body, good));
        for wrong in ["", "750c783e", "no hex at all", &good[..30], &format!("{good}00"), &good.replace('7', "8")] {
            assert!(!is_signed(&secret, body, wrong), "{wrong}");
        }
    }
}
