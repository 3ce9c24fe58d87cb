//! `POST /webhooks/patreon`: hints that a membership may have changed. A hint is believed in nothing: it only has the
//! member's own word read anew. Not a part of the API's description: Patreon alone calls it.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use poem::{
    Endpoint, IntoResponse, Request, Response, Result,
    http::{Method, StatusCode},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Patreon, ReadMembership, store};
use crate::{
    db::Tenancy,
    http::{App, Problem},
    jobs::EnqueueError,
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
        if request.method() != Method::POST {
            return Ok(StatusCode::METHOD_NOT_ALLOWED.with_header("allow", "POST").into_response());
        }
        // The gate has gathered it, within its bounds.
        let body = request.take_body().into_bytes().await.map_err(|_error| unreadable())?;
        let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
        let taken = self.take(&header(SIGNATURE), &header(EVENT), &body).await;
        Ok(taken.map_or_else(IntoResponse::into_response, |()| StatusCode::NO_CONTENT.into_response()))
    }
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
        let mut tx = self.app.db.begin(Tenancy::of_things(link.tenant_id)).await?;
        if !store::take_hint(&mut tx, Sha256::digest(body).into()).await? {
            return Ok(());
        }
        let job = ReadMembership { link: link.id }.new_job(link.tenant_id);
        let tickets = self.app.engine.enqueue_in(&mut tx, &[job]).await.map_err(not_enqueued)?;
        tx.commit().await?;
        self.app.engine.ring(&tickets).await;
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
