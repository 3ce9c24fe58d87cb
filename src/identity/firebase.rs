//! Firebase ID tokens: RS256, signed by Google with keys that it publishes, checked without the Admin SDK.
//!
//! The checks stand in [`check`], in their order. An ID token stays valid until it expires, whatever Firebase is told
//! meanwhile; who has to be out at once is signed out here (`users.tokens_valid_after`, `disabled_at`). What counts then
//! is when its user signed in (`auth_time`) and not when it was issued (`iat`): nothing of ours ends the session at
//! Firebase, from which a client has a new token every hour.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, get_current_timestamp};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::{AuthError, SetupError, authenticator::SKEW, firebase_keys::PublishedKeys, seen_tokens::SeenTokens};
use crate::{config::FirebaseConfig, ids::UserId};

const LONGEST_UID: usize = 128;
/// Bytes of an e-mail address (RFC 3696).
const LONGEST_ADDRESS: usize = 320;
/// Letters of a name.
const LONGEST_NAME: usize = 200;

/// Whoever a token speaks of.
pub struct Person {
    pub uid: String,
    /// Only when Firebase says that it is verified.
    pub email: Option<String>,
    pub name: Option<String>,
    /// When they showed who they are, in seconds of the epoch. Every token of one session at Firebase says the same.
    pub signed_in_at: u64,
    /// Looked up once for each token.
    pub user: OnceCell<UserId>,
}

pub struct Firebase {
    project: String,
    issuer: String,
    /// The Identity Platform tenant; `None`: none may be named.
    tenant: Option<String>,
    keys: Arc<PublishedKeys>,
    seen: SeenTokens<Arc<Person>>,
}

/// What is read of a token. Anything of another type is refused.
#[derive(Debug, Clone, Deserialize)]
struct Claims {
    aud: String,
    iss: String,
    sub: String,
    exp: u64,
    iat: u64,
    auth_time: u64,
    email: Option<String>,
    #[serde(default)]
    email_verified: bool,
    name: Option<String>,
    #[serde(default)]
    firebase: SignIn,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct SignIn {
    tenant: Option<String>,
    /// `password`, `google.com`, ...
    sign_in_provider: Option<String>,
}

impl Firebase {
    pub fn new(config: &FirebaseConfig) -> Result<Self, SetupError> {
        Ok(Self {
            project: config.project.clone(),
            issuer: format!("https://securetoken.google.com/{}", config.project),
            tenant: config.tenant.clone(),
            keys: Arc::new(PublishedKeys::new(config.keys_url.clone())?),
            seen: SeenTokens::default(),
        })
    }

    pub fn keys(&self) -> &Arc<PublishedKeys> {
        &self.keys
    }

    /// Whoever a token speaks of that passed all checks before and has not expired since.
    pub fn seen(&self, token: &str) -> Option<Arc<Person>> {
        self.seen.find(token, get_current_timestamp())
    }

    pub async fn verify(&self, token: &str) -> Result<Arc<Person>, AuthError> {
        let kid = key_id(token)?;
        let key = self.keys.get(&kid).await?;
        let claims = signed(token, &key)?;
        let now = get_current_timestamp();
        check(&claims, &self.project, &self.issuer, self.tenant.as_deref(), now).map_err(AuthError::Claim)?;
        let good_until = claims.exp.saturating_add(SKEW.as_secs());
        let person = Arc::new(Person {
            uid: claims.sub,
            email: claims.email.filter(|email| claims.email_verified && is_address(email)),
            name: claims.name.as_deref().and_then(shown),
            signed_in_at: claims.auth_time,
            user: OnceCell::new(),
        });
        self.seen.remember(token, Arc::clone(&person), good_until, now);
        Ok(person)
    }
}

/// As far as it can be kept and written to; anything else is nobody's address.
fn is_address(text: &str) -> bool {
    (1..=LONGEST_ADDRESS).contains(&text.len()) && !text.contains(char::is_control)
}

/// A name as it can be kept and shown: whoever bears it chose it freely.
fn shown(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|letter| !letter.is_control()).take(LONGEST_NAME).collect();
    Some(name).filter(|name| !name.trim().is_empty())
}

/// The algorithm is ours to say; a token that names another is not looked at any further.
fn key_id(token: &str) -> Result<String, AuthError> {
    if token.split('.').count() != 3 {
        return Err(AuthError::Malformed);
    }
    let header = jsonwebtoken::decode_header(token)?;
    if header.alg != Algorithm::RS256 {
        return Err(AuthError::Claim("alg"));
    }
    // Something that must be understood, and is not (RFC 7515, 4.1.11).
    if header.crit.is_some() {
        return Err(AuthError::Claim("crit"));
    }
    header.kid.filter(|kid| !kid.is_empty()).ok_or(AuthError::Claim("kid"))
}

/// What a token says, once its signature is right. The claims are checked by [`check`], all in one place.
fn signed(token: &str, key: &DecodingKey) -> Result<Claims, AuthError> {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    Ok(jsonwebtoken::decode::<Claims>(token, key, &validation)?.claims)
}

/// Which claim is not what it must be. Custom tokens, session cookies and tokens of other projects fail at the first
/// two lines.
fn check(claims: &Claims, project: &str, issuer: &str, tenant: Option<&str>, now: u64) -> Result<(), &'static str> {
    let skew = SKEW.as_secs();
    let checks = [
        ("aud", claims.aud == project),
        ("iss", claims.iss == issuer),
        ("sub", (1..=LONGEST_UID).contains(&claims.sub.len()) && !claims.sub.contains('\0')),
        ("exp", claims.exp.saturating_add(skew) > now),
        ("iat", claims.iat <= now.saturating_add(skew)),
        ("auth_time", claims.auth_time <= now.saturating_add(skew)),
        ("firebase.tenant", claims.firebase.tenant.as_deref() == tenant),
        // Whoever signs in so has shown nothing: anybody makes as many of them as they like.
        ("firebase.sign_in_provider", claims.firebase.sign_in_provider.as_deref() != Some("anonymous")),
    ];
    checks.into_iter().find(|(_, holds)| !holds).map_or(Ok(()), |(claim, _)| Err(claim))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn wrong(change: impl FnOnce(&mut Value)) -> Option<&'static str> {
        let mut claims = json!({
            "aud": "demo", "iss": "https://securetoken.google.com/demo", "sub": "uid", "exp": NOW + 3600, "iat": NOW,
            "auth_time": NOW - 60, "firebase": {"sign_in_provider": "password"},
        });
        change(&mut claims);
        let Ok(claims) = serde_json::from_value(claims) else { return Some("type") };
        check(&claims, "demo", "https://securetoken.google.com/demo", None, NOW).err()
    }

    #[test]
    fn each_claim_is_checked_and_a_clock_that_is_a_little_apart_does_no_harm() {
        let cookie = "https://session.firebase.google.com/demo";
        let custom = "https://identitytoolkit.googleapis.com/google.identity.identitytoolkit.v1.IdentityToolkit";
        let cases: [(&str, Value, Option<&str>); 19] = [
            ("sub", json!("uid"), None),
            ("aud", json!("another"), Some("aud")),
            ("aud", json!(["demo"]), Some("type")),
            ("aud", json!(custom), Some("aud")),
            ("iss", json!("https://securetoken.google.com/another"), Some("iss")),
            ("iss", json!(cookie), Some("iss")),
            ("sub", json!(""), Some("sub")),
            ("sub", json!("u".repeat(129)), Some("sub")),
            ("exp", json!(NOW - 20), None),
            ("exp", json!(NOW - 31), Some("exp")),
            ("exp", Value::Null, Some("type")),
            ("iat", json!(NOW + 20), None),
            ("iat", json!(NOW + 31), Some("iat")),
            ("auth_time", json!(NOW + 31), Some("auth_time")),
            ("auth_time", Value::Null, Some("type")),
            ("firebase", json!({"tenant": "other"}), Some("firebase.tenant")),
            ("firebase", json!({"sign_in_provider": "anonymous"}), Some("firebase.sign_in_provider")),
            ("firebase", json!({"sign_in_provider": "google.com"}), None),
            ("firebase", json!(7), Some("type")),
        ];
        for (claim, value, expected) in cases {
            assert_eq!(wrong(|claims| claims[claim] = value.clone()), expected, "{claim} = {value}");
        }
    }

    #[test]
    fn only_the_header_that_firebase_writes_is_accepted() {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let token = |header: Value| format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(header.to_string()));
        assert_eq!(key_id(&token(json!({"alg": "RS256", "kid": "one"}))).unwrap(), "one");
        for header in [
            json!({"alg": "RS256"}),
            json!({"alg": "RS256", "kid": ""}),
            json!({"alg": "HS256", "kid": "one"}),
            json!({"alg": "RS512", "kid": "one"}),
            json!({"alg": "ES256", "kid": "one"}),
            json!({"alg": "none", "kid": "one"}),
            json!({"kid": "one"}),
            json!({"alg": "RS256", "kid": "one", "crit": ["exp"]}),
        ] {
            assert!(key_id(&token(header.clone())).is_err(), "{header}");
        }
        assert!(key_id("a.b").is_err() && key_id("a.b.c.d").is_err());
    }
}
