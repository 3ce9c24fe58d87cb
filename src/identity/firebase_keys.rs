//! The keys that Google signs ID tokens with, as it publishes them.
//!
//! Kept for as long as their `Cache-Control` says, and looked for again shortly before that is over, beside the calls
//! that go on with what is known. A key id that is not among them makes one look for new keys, at most once a minute
//! however many such tokens come; whether there is such a key is only known from a look that succeeded. While the key
//! server is away the last keys serve on for a day. Looks are never made by two at once. What to do is decided by
//! [`Kept::look`], which knows no network.

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
/// The last part of the keys' time, in which they are looked for ahead of its end: a tenth.
const AHEAD: u32 = 10;
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
    turn: Arc<tokio::sync::Mutex<()>>,
}

type Keys = HashMap<String, Arc<DecodingKey>>;

#[derive(Default)]
struct Kept {
    keys: Keys,
    fresh_until: Option<Instant>,
    /// From then on they are looked for ahead of their end.
    due_at: Option<Instant>,
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
        let rests = self.rests(now);
        match self.keys.get(kid).filter(|_| is_usable) {
            Some(key) if is_fresh || rests => Next::Use(Arc::clone(key)),
            _ if rests => Next::Away,
            None if is_fresh && self.unknown_looked_at.is_some_and(|at| now < at + UNKNOWN_REST) => Next::Unknown,
            _ => Next::Look,
        }
    }

    /// Whether a look failed a moment ago.
    fn rests(&self, now: Instant) -> bool {
        self.failed_at.is_some_and(|at| now < at + FAILED_REST)
    }

    /// Whether to look before the time of the keys is over.
    fn is_due(&self, now: Instant) -> bool {
        self.due_at.is_some_and(|at| at <= now) && !self.rests(now)
    }

    fn standing(&self, now: Instant) -> Standing {
        match self.fresh_until {
            Some(until) if now < until => Standing::Fresh,
            Some(until) if now < until + STALE => Standing::Stale,
            _ => Standing::None,
        }
    }

    /// `for_unknown`: the look was for a key id that fresh keys did not have, which is a rare thing.
    fn found(&mut self, keys: Keys, lifetime: Duration, for_unknown: bool, now: Instant) {
        self.keys = keys;
        self.fresh_until = Some(now + lifetime);
        self.due_at = Some(now + (lifetime - lifetime / AHEAD));
        self.failed_at = None;
        if for_unknown {
            self.unknown_looked_at = Some(now);
        }
    }

    /// Nothing was learned, not even that there is no such key.
    fn failed(&mut self, now: Instant) {
        self.failed_at = Some(now);
    }
}

/// How the keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Fresh,
    /// Their time is over, and none can be had in their place.
    Stale,
    None,
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
        Ok(Self { url, client: outbound::client()?, kept: Mutex::default(), turn: Arc::default() })
    }

    pub async fn get(self: &Arc<Self>, kid: &str) -> Result<Arc<DecodingKey>, AuthError> {
        let settled = |next| match next {
            Next::Use(key) => Some(Ok(key)),
            Next::Unknown => Some(Err(AuthError::UnknownSigningKey)),
            Next::Away => Some(Err(AuthError::KeysAway)),
            Next::Look => None,
        };
        let now = Instant::now();
        let (next, is_due) = {
            let kept = self.kept();
            (kept.look(kid, now), kept.is_due(now))
        };
        if let Some(outcome) = settled(next) {
            if is_due {
                self.look_ahead();
            }
            return outcome;
        }
        let _turn = self.turn.lock().await;
        // Whoever had the turn before may have brought it.
        let now = Instant::now();
        if let Some(outcome) = settled(self.kept().look(kid, now)) {
            return outcome;
        }
        let for_unknown = self.kept().standing(now) == Standing::Fresh;
        self.renew(for_unknown).await;
        // Fresh keys without it: there is no such key.
        settled(self.kept().look(kid, Instant::now())).unwrap_or(Err(AuthError::UnknownSigningKey))
    }

    /// How the keys are, after a look where theirs is over.
    pub async fn standing(&self) -> Standing {
        if self.kept().standing(Instant::now()) != Standing::Fresh {
            let _turn = self.turn.lock().await;
            let now = Instant::now();
            let needed = {
                let kept = self.kept();
                kept.standing(now) != Standing::Fresh && !kept.rests(now)
            };
            if needed {
                self.renew(false).await;
            }
        }
        self.kept().standing(Instant::now())
    }

    /// Beside the call that saw that it is time; not where somebody looks already.
    fn look_ahead(self: &Arc<Self>) {
        let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() else { return };
        let keys = Arc::clone(self);
        tokio::spawn(async move {
            let _turn = turn;
            if keys.kept().is_due(Instant::now()) {
                keys.renew(false).await;
            }
        });
    }

    /// One look. Call with the turn.
    async fn renew(&self, for_unknown: bool) {
        let looked = tokio::time::timeout(LOOK, self.fetch()).await.unwrap_or(Err(LookError::Late));
        let now = Instant::now();
        match looked {
            Ok((keys, lifetime)) => self.kept().found(keys, lifetime, for_unknown, now),
            Err(error) => {
                tracing::warn!(cause = chain(&error), "Firebase's keys could not be had; the last ones serve on");
                self.kept().failed(now);
            }
        }
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
        kept.found(keys(&["one"]), HOUR, false, now);
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
        kept.found(keys(&["one"]), HOUR, true, now);
        for after in [MOMENT, UNKNOWN_REST - MOMENT] {
            assert!(matches!(kept.look("two", now + after), Next::Unknown));
            assert!(matches!(kept.look("one", now + after), Next::Use(_)));
        }
        assert!(matches!(kept.look("two", now + UNKNOWN_REST), Next::Look));
    }

    #[test]
    fn a_look_that_failed_says_of_no_key_that_it_does_not_exist() {
        let now = Instant::now();
        let mut kept = kept(now);
        assert!(matches!(kept.look("two", now), Next::Look));
        kept.failed(now);
        assert!(matches!(kept.look("two", now + FAILED_REST - MOMENT), Next::Away));
        assert!(matches!(kept.look("one", now + FAILED_REST - MOMENT), Next::Use(_)));
        assert!(matches!(kept.look("two", now + FAILED_REST), Next::Look), "not refused for the rest of a minute");
        kept.found(keys(&["one", "two"]), HOUR, true, now + FAILED_REST);
        assert!(matches!(kept.look("two", now + FAILED_REST), Next::Use(_)));
    }

    #[test]
    fn keys_are_looked_for_ahead_of_their_end_and_not_right_after_a_look_that_failed() {
        let now = Instant::now();
        let mut kept = kept(now);
        let due = now + HOUR - HOUR / AHEAD;
        assert!(!Kept::default().is_due(now) && !kept.is_due(due - MOMENT) && kept.is_due(due));
        assert!(matches!(kept.look("one", due), Next::Use(_)));
        kept.failed(due);
        assert!(!kept.is_due(due + FAILED_REST - MOMENT) && kept.is_due(due + FAILED_REST));
        kept.found(keys(&["one"]), HOUR, false, due + FAILED_REST);
        assert!(!kept.is_due(due + FAILED_REST));
    }

    #[test]
    fn how_the_keys_are_is_told() {
        let now = Instant::now();
        assert_eq!(Kept::default().standing(now), Standing::None);
        let kept = kept(now);
        let at = |after| kept.standing(now + after);
        assert_eq!([at(MOMENT), at(HOUR), at(HOUR + STALE)], [Standing::Fresh, Standing::Stale, Standing::None]);
    }

    #[test]
    fn while_the_key_server_is_away_the_last_keys_serve_on_for_a_day_and_it_is_asked_now_and_then() {
        let now = Instant::now();
        let mut kept = kept(now);
        let failed_at = now + HOUR + MOMENT;
        kept.failed(failed_at);
        assert!(matches!(kept.look("one", failed_at), Next::Use(_)));
        assert!(matches!(kept.look("two", failed_at), Next::Away));
        assert!(matches!(kept.look("one", failed_at + FAILED_REST), Next::Look));
        let too_late = now + HOUR + STALE;
        kept.failed(too_late);
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
