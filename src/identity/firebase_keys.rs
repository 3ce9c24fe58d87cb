//! The keys that Google signs ID tokens with, as it publishes them.
//!
//! Kept for as long as their `Cache-Control` says. A key id that is not among them makes one look for new keys, at
//! most once a minute however many such tokens come. While the key server is away the last keys serve on for a day.
//! Looks are never made by two at once. What to do is decided by [`Kept::look`], which knows no network.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;
use reqwest::{Client, header};
use serde::Deserialize;
use url::Url;

use super::{AuthError, SetupError};
use crate::{
    outbound::{self, OutboundError},
    telemetry::chain,
};

/// One look, from its beginning to its end.
const LOOK: Duration = Duration::from_secs(4);
const LARGEST_ANSWER: usize = 64 * 1024;
/// How long keys are believed beyond their time while none can be had.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Between two looks for an unknown key id.
const UNKNOWN_REST: Duration = Duration::from_secs(60);
/// After a look that failed.
const FAILED_REST: Duration = Duration::from_secs(5);
/// Bounds of what a `Cache-Control` may ask for, and what counts without one.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const UNSAID: Duration = Duration::from_secs(300);
/// Shorter RSA keys are not worth their name.
const SMALLEST_MODULUS_BYTES: usize = 256;

pub struct PublishedKeys {
    url: Url,
    client: Client,
    kept: Mutex<Kept>,
    /// Whoever holds it looks; the others wait for what it brings.
    turn: tokio::sync::Mutex<()>,
}

type Keys = HashMap<String, Arc<DecodingKey>>;

#[derive(Default)]
struct Kept {
    keys: Keys,
    fresh_until: Option<Instant>,
    unknown_looked_at: Option<Instant>,
    failed_at: Option<Instant>,
}

enum Next {
    Use(Arc<DecodingKey>),
    /// There may be other keys by now.
    Look,
    /// There is no such key.
    Unknown,
    /// It cannot be known at the moment.
    Away,
}

impl Kept {
    fn look(&self, kid: &str, now: Instant) -> Next {
        let is_fresh = self.fresh_until.is_some_and(|until| now < until);
        let is_usable = self.fresh_until.is_some_and(|until| now < until + STALE);
        let rests = self.failed_at.is_some_and(|at| now < at + FAILED_REST);
        match self.keys.get(kid).filter(|_| is_usable) {
            Some(key) if is_fresh || rests => Next::Use(Arc::clone(key)),
            _ if rests => Next::Away,
            None if is_fresh && self.unknown_looked_at.is_some_and(|at| now < at + UNKNOWN_REST) => Next::Unknown,
            _ => Next::Look,
        }
    }

    /// A look for a key id that fresh keys do not have is a rare thing.
    fn begin_look(&mut self, now: Instant) {
        if self.fresh_until.is_some_and(|until| now < until) {
            self.unknown_looked_at = Some(now);
        }
    }

    fn found(&mut self, keys: Keys, lifetime: Duration, now: Instant) {
        self.keys = keys;
        self.fresh_until = Some(now + lifetime);
        self.failed_at = None;
    }
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("the key server could not be reached")]
    Reach(#[source] reqwest::Error),
    #[error("the key server answered {0}")]
    Status(u16),
    #[error("the key server's answer could not be read")]
    Answer(#[from] OutboundError),
    #[error("the key server's answer is no JWK set")]
    Form(#[from] serde_json::Error),
    #[error("the key server's answer has no key of use")]
    NoKey,
    #[error("the key server took too long")]
    Late,
}

impl PublishedKeys {
    pub fn new(url: Url) -> Result<Self, SetupError> {
        Ok(Self { url, client: outbound::client()?, kept: Mutex::default(), turn: tokio::sync::Mutex::default() })
    }

    pub async fn get(&self, kid: &str) -> Result<Arc<DecodingKey>, AuthError> {
        let settled = |next| match next {
            Next::Use(key) => Some(Ok(key)),
            Next::Unknown => Some(Err(AuthError::UnknownSigningKey)),
            Next::Away => Some(Err(AuthError::KeysAway)),
            Next::Look => None,
        };
        if let Some(outcome) = settled(self.kept().look(kid, Instant::now())) {
            return outcome;
        }
        let _turn = self.turn.lock().await;
        // Whoever had the turn before may have brought it.
        let now = Instant::now();
        if let Some(outcome) = settled(self.kept().look(kid, now)) {
            return outcome;
        }
        self.kept().begin_look(now);
        let looked = tokio::time::timeout(LOOK, self.fetch()).await.unwrap_or(Err(LookError::Late));
        let now = Instant::now();
        let mut kept = self.kept();
        match looked {
            Ok((keys, lifetime)) => kept.found(keys, lifetime, now),
            Err(error) => {
                tracing::warn!(cause = chain(&error), "Firebase's keys could not be had; the last ones serve on");
                kept.failed_at = Some(now);
            }
        }
        // Fresh keys without it: there is no such key.
        settled(kept.look(kid, now)).unwrap_or(Err(AuthError::UnknownSigningKey))
    }

    async fn fetch(&self) -> Result<(Keys, Duration), LookError> {
        let response = self.client.get(self.url.clone()).send().await.map_err(LookError::Reach)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(LookError::Status(response.status().as_u16()));
        }
        let lifetime = lifetime(response.headers());
        let keys = parse(&outbound::body(response, LARGEST_ANSWER).await?)?;
        if keys.is_empty() { Err(LookError::NoKey) } else { Ok((keys, lifetime)) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

/// Read by hand: a member of another kind must not spoil the set.
#[derive(Deserialize)]
struct Jwk {
    kid: Option<String>,
    kty: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

fn parse(body: &[u8]) -> Result<Keys, serde_json::Error> {
    let set: JwkSet = serde_json::from_slice(body)?;
    Ok(set.keys.iter().filter_map(|key| Some((key.kid.clone()?, Arc::new(usable(key)?)))).collect())
}

/// An RSA key for RS256 signatures, and nothing else.
fn usable(key: &Jwk) -> Option<DecodingKey> {
    let is_meant = key.kty.as_deref() == Some("RSA")
        && key.alg.as_deref().is_none_or(|alg| alg == "RS256")
        && key.purpose.as_deref().is_none_or(|purpose| purpose == "sig");
    let (n, e) = (key.n.as_deref()?, key.e.as_deref()?);
    let is_long = URL_SAFE_NO_PAD.decode(n).is_ok_and(|modulus| modulus.len() >= SMALLEST_MODULUS_BYTES);
    if is_meant && is_long { DecodingKey::from_rsa_components(n, e).ok() } else { None }
}

/// How long an answer is fresh, less the time it has spent in caches on the way.
fn lifetime(headers: &header::HeaderMap) -> Duration {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let directives = text(header::CACHE_CONTROL).unwrap_or_default().split(',').map(str::trim);
    let max_age = directives.filter_map(|directive| directive.strip_prefix("max-age=")?.parse().ok()).next();
    let age = text(header::AGE).and_then(|age| age.parse().ok()).unwrap_or(0);
    let left = max_age.map_or(UNSAID, |max_age: u64| Duration::from_secs(max_age.saturating_sub(age)));
    left.clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MOMENT: Duration = Duration::from_millis(1);

    fn keys(names: &[&str]) -> Keys {
        names.iter().map(|name| ((*name).to_owned(), Arc::new(DecodingKey::from_secret(b"any")))).collect()
    }

    fn kept(now: Instant) -> Kept {
        let mut kept = Kept::default();
        kept.found(keys(&["one"]), HOUR, now);
        kept
    }

    #[test]
    fn keys_are_used_for_their_time_and_then_looked_for_again() {
        let now = Instant::now();
        assert!(matches!(Kept::default().look("one", now), Next::Look));
        assert!(matches!(kept(now).look("one", now + HOUR - MOMENT), Next::Use(_)));
        assert!(matches!(kept(now).look("one", now + HOUR), Next::Look));
    }

    #[test]
    fn an_unknown_key_id_is_looked_for_once_a_minute_and_no_oftener() {
        let now = Instant::now();
        let mut kept = kept(now);
        assert!(matches!(kept.look("two", now), Next::Look));
        kept.begin_look(now);
        kept.found(keys(&["one"]), HOUR, now);
        for after in [MOMENT, UNKNOWN_REST - MOMENT] {
            assert!(matches!(kept.look("two", now + after), Next::Unknown));
            assert!(matches!(kept.look("one", now + after), Next::Use(_)));
        }
        assert!(matches!(kept.look("two", now + UNKNOWN_REST), Next::Look));
    }

    #[test]
    fn while_the_key_server_is_away_the_last_keys_serve_on_for_a_day_and_it_is_asked_now_and_then() {
        let now = Instant::now();
        let mut kept = kept(now);
        let failed_at = now + HOUR + MOMENT;
        kept.failed_at = Some(failed_at);
        assert!(matches!(kept.look("one", failed_at), Next::Use(_)));
        assert!(matches!(kept.look("two", failed_at), Next::Away));
        assert!(matches!(kept.look("one", failed_at + FAILED_REST), Next::Look));
        let too_late = now + HOUR + STALE;
        kept.failed_at = Some(too_late);
        assert!(matches!(kept.look("one", too_late), Next::Away));
    }

    #[test]
    fn only_rsa_keys_of_a_decent_size_for_signatures_are_taken() {
        let n = URL_SAFE_NO_PAD.encode([0xc1; 256]);
        let short = URL_SAFE_NO_PAD.encode([0xc1; 128]);
        let set = serde_json::json!({"keys": [
            {"kid": "good", "kty": "RSA", "alg": "RS256", "use": "sig", "n": n, "e": "AQAB"},
            {"kid": "bare", "kty": "RSA", "n": n, "e": "AQAB"},
            {"kid": "short", "kty": "RSA", "n": short, "e": "AQAB"},
            {"kid": "encrypts", "kty": "RSA", "use": "enc", "n": n, "e": "AQAB"},
            {"kid": "other", "kty": "RSA", "alg": "RS512", "n": n, "e": "AQAB"},
            {"kid": "secret", "kty": "oct", "k": "c2VjcmV0"},
            {"kty": "RSA", "n": n, "e": "AQAB"},
        ]});
        let mut kids: Vec<_> = parse(set.to_string().as_bytes()).unwrap().into_keys().collect();
        kids.sort();
        assert_eq!(kids, ["bare", "good"]);
    }

    #[test]
    fn cache_control_is_obeyed_within_reason() {
        let lifetime_of = |pairs: &[(&'static str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), header::HeaderValue::from_str(value).unwrap())
            });
            lifetime(&pairs.collect()).as_secs()
        };
        assert_eq!(lifetime_of(&[("cache-control", "public, max-age=21600, must-revalidate")]), 21600);
        assert_eq!(lifetime_of(&[("cache-control", "public, max-age=600"), ("age", "100")]), 500);
        assert_eq!(lifetime_of(&[("cache-control", "max-age=0")]), 1);
        assert_eq!(lifetime_of(&[("cache-control", "max-age=99999999")]), 24 * 3600);
        assert_eq!(lifetime_of(&[("cache-control", "no-cache")]), 300);
        assert_eq!(lifetime_of(&[]), 300);
    }
}
