//! API keys: `mvk_`, a public part to recognise the key by, and 256 random bits. Shown once, kept as a hash.
//!
//! A key is found by its public part and compared in constant time; one that does not exist costs the same statement
//! and the same comparison as one that does. What was verified is believed for five seconds (`recent.rs`): a key that is revoked is
//! refused at once by the process that revoked it, and by every other within those seconds.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::{
    AuthError, Caller,
    key_store::{self, KeptKey},
    recent::Recent,
};
use crate::{
    db::{self, TenantDb},
    ids::ApiKeyId,
    telemetry::chain,
};

pub const START: &str = "mvk_";
const PREFIX_HEX: usize = 12;
const SECRET_BYTES: usize = 32;
/// Uses written down at once; more are left to the next look.
const NOTES: usize = 4;

/// A key that was just made; this is the only moment at which there is one.
pub struct ApiKey {
    /// What is shown for ever: `mvk_` and the public part.
    pub prefix: String,
    pub text: SecretString,
    pub hash: [u8; 32],
}

impl ApiKey {
    pub fn generate() -> Self {
        let public: [u8; PREFIX_HEX / 2] = rand::random();
        let secret: [u8; SECRET_BYTES] = rand::random();
        let prefix = format!("{START}{}", hex::encode(public));
        let text = SecretString::from(format!("{prefix}_{}", URL_SAFE_NO_PAD.encode(secret)));
        let hash = hash(text.expose_secret());
        Self { prefix, text, hash }
    }
}

/// A key as a caller presents it, of the right form; whether it exists is another question.
pub struct Presented {
    prefix: String,
    hash: [u8; 32],
}

impl Presented {
    /// The form is public: refusing a wrong one at once tells nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let (public, secret) = text.strip_prefix(START)?.split_once('_')?;
        let is_hex = public.len() == PREFIX_HEX && public.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_secret = URL_SAFE_NO_PAD.decode(secret).is_ok_and(|bytes| bytes.len() == SECRET_BYTES);
        (is_hex && is_secret).then(|| Self { prefix: format!("{START}{public}"), hash: hash(text) })
    }
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// What is known of keys.
pub struct ApiKeys {
    /// By the hash of the whole key: the key itself is kept nowhere.
    verified: Recent<[u8; 32], (Caller, Option<DateTime<Utc>>)>,
    notes: Arc<Semaphore>,
}

impl Default for ApiKeys {
    fn default() -> Self {
        Self { verified: Recent::default(), notes: Arc::new(Semaphore::new(NOTES)) }
    }
}

impl ApiKeys {
    /// One that was verified a moment ago.
    pub fn seen(&self, presented: &Presented) -> Option<Caller> {
        let (caller, expires_at) = self.verified.find(&presented.hash, Instant::now())?;
        expires_at.is_none_or(|at| SystemTime::now() < at.into()).then_some(caller)
    }

    pub async fn verify(&self, db: &TenantDb, presented: &Presented) -> Result<Caller, AuthError> {
        let asked = self.verified.ask(Instant::now());
        let kept = db::answer(async { key_store::find(&mut *db.nobody().await?, &presented.prefix).await }).await?;
        let kept_hash = kept.as_ref().map_or([0; 32], KeptKey::hash);
        // Compared whether or not there is one.
        let is_same: bool = kept_hash.ct_eq(&presented.hash).into();
        let Some(kept) = kept.filter(|_| is_same) else { return Err(AuthError::UnknownKey) };
        let (id, expires_at, is_use_to_be_noted) = (kept.id, kept.expires_at, kept.is_use_to_be_noted);
        let caller = kept.caller().ok_or(AuthError::DeadKey)?;
        if is_use_to_be_noted {
            self.note_use(db, id);
        }
        self.verified.keep(presented.hash, (caller.clone(), expires_at), asked);
        Ok(caller)
    }

    pub fn forget_all(&self) {
        self.verified.forget_all();
    }

    /// Beside the call and not before it; the statement itself writes at most once a minute.
    fn note_use(&self, db: &TenantDb, id: ApiKeyId) {
        let Ok(permit) = Arc::clone(&self.notes).try_acquire_owned() else { return };
        let db = db.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let noted = db::answer(async { key_store::note_use(&mut *db.nobody().await?, id).await });
            if let Err(error) = noted.await {
                tracing::debug!(cause = chain(&error), "a key's use was not noted");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_recognised_by_what_is_shown_of_it_and_is_as_random_as_its_hash() {
        let (one, other) = (ApiKey::generate(), ApiKey::generate());
        let presented = Presented::parse(one.text.expose_secret()).unwrap();
        assert_eq!((&presented.prefix, presented.hash), (&one.prefix, one.hash));
        assert_ne!((&one.prefix, one.hash), (&other.prefix, other.hash));
        assert_eq!(one.text.expose_secret().len(), 4 + 12 + 1 + 43);
    }

    #[test]
    fn what_has_not_the_form_of_a_key_is_none() {
        let key = ApiKey::generate();
        let good = key.text.expose_secret();
        let wrong = [
            "mvk_".to_owned(),
            good[..good.len() - 1].to_owned(),
            format!("{good}A"),
            good.to_ascii_uppercase(),
            good.replacen("mvk_", "mvk_%", 1),
            good.replace('_', "-"),
        ];
        for text in wrong {
            assert!(Presented::parse(&text).is_none(), "{text}");
        }
    }
}
