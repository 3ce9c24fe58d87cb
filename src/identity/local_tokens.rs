//! HS256 tokens that this installation signs and checks itself: for development and self-hosting.
//!
//! Such a token is the operator's own word: it opens the workspace it names, with the scopes it names, until it
//! expires. Checking it needs no database, which is what keeps the common path short.

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, get_current_timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{AuthError, Caller, Scopes, authenticator::SKEW, seen_tokens::SeenTokens};
use crate::{
    config::JwtConfig,
    ids::{TenantId, UserId},
};

const ISSUER: &str = "multivio";
const AUDIENCE: &str = "multivio-api";
/// HS256 is only as strong as its key: RFC 7518 asks for as many bits as the hash has.
const SHORTEST_SECRET_BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
#[error(
    "JWT_SECRET_KEY is too short: it needs at least {SHORTEST_SECRET_BYTES} bytes (`openssl rand -base64 48` makes one)"
)]
pub struct WeakSecret;

/// HS256 tokens that this installation signs and checks itself.
pub struct LocalTokens {
    signing: EncodingKey,
    checking: DecodingKey,
    validation: Validation,
    lifetime: Duration,
    /// Each with when it was issued.
    seen: SeenTokens<(Caller, u64)>,
}

impl std::fmt::Debug for LocalTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalTokens").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: UserId,
    tenant: TenantId,
    scope: String,
    iat: u64,
    exp: u64,
}

/// What a local token says.
#[derive(Debug)]
pub struct Local {
    pub caller: Caller,
    /// Seconds of the epoch.
    pub issued_at: u64,
    /// Whether it is the first time that this process sees the token.
    pub is_first: bool,
}

impl LocalTokens {
    pub fn new(config: &JwtConfig) -> Result<Self, WeakSecret> {
        let secret = config.secret.expose_secret().as_bytes();
        if secret.len() < SHORTEST_SECRET_BYTES {
            return Err(WeakSecret);
        }
        // The algorithm is ours to say, never the token's.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = SKEW.as_secs();
        validation.validate_nbf = true;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Ok(Self {
            signing: EncodingKey::from_secret(secret),
            checking: DecodingKey::from_secret(secret),
            validation,
            lifetime: config.access_token_lifetime,
            seen: SeenTokens::default(),
        })
    }

    /// A token for `caller`, valid for `lifetime` or as long as the settings say.
    pub fn issue(&self, caller: &Caller, lifetime: Option<Duration>) -> SecretString {
        let now = get_current_timestamp();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: caller.user,
            tenant: caller.tenant,
            scope: caller.scopes.words().join(" "),
            iat: now,
            exp: now.saturating_add(lifetime.unwrap_or(self.lifetime).as_secs()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
            .expect("plain claims can be signed with a secret")
            .into()
    }

    pub fn verify(&self, token: &str) -> Result<Local, AuthError> {
        let now = get_current_timestamp();
        if let Some((caller, issued_at)) = self.seen.find(token, now) {
            return Ok(Local { caller, issued_at, is_first: false });
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.checking, &self.validation)?.claims;
        if claims.iat > now + SKEW.as_secs() {
            return Err(AuthError::Claim("iat"));
        }
        let caller = Caller::new(claims.tenant, claims.sub, Scopes::parse(claims.scope.split(' ')));
        let kept = (caller.clone(), claims.iat);
        self.seen.remember(token, kept, claims.exp.saturating_add(SKEW.as_secs()), now);
        Ok(Local { caller, issued_at: claims.iat, is_first: true })
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    use super::*;
    use crate::identity::Scope;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn tokens() -> LocalTokens {
        LocalTokens::new(&JwtConfig { secret: SECRET.into(), access_token_lifetime: Duration::from_secs(60) }).unwrap()
    }

    fn claims(change: impl FnOnce(&mut Value)) -> Value {
        let now = get_current_timestamp();
        let mut claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": UserId::new(), "tenant": TenantId::new(),
            "scope": "workspace", "iat": now, "exp": now + 60,
        });
        change(&mut claims);
        claims
    }

    fn signed(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    fn accepts(token: &str) -> bool {
        tokens().verify(token).is_ok()
    }

    #[test]
    fn a_token_brings_back_its_caller() {
        let tokens = tokens();
        let caller = Caller::new(TenantId::new(), UserId::new(), Scopes::of([Scope::Workspace]));
        let token = tokens.issue(&caller, None);
        for first in [true, false] {
            let local = tokens.verify(token.expose_secret()).unwrap();
            assert_eq!((local.caller, local.is_first), (caller.clone(), first));
        }
        // One that was seen opens nothing for one that only begins like it.
        let mut forged = token.expose_secret().to_owned();
        let last = forged.pop().unwrap();
        forged.push(if last == 'A' { 'B' } else { 'A' });
        assert!(tokens.verify(&forged).is_err());
    }

    #[test]
    fn a_token_of_another_key_or_algorithm_is_refused() {
        let good = claims(|_| ());
        assert!(accepts(&signed(Algorithm::HS256, SECRET, &good)));
        assert!(!accepts(&signed(Algorithm::HS256, "another key, another key, another key", &good)));
        assert!(!accepts(&signed(Algorithm::HS384, SECRET, &good)));
        assert!(!accepts(&signed(Algorithm::HS512, SECRET, &good)));
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let payload = URL_SAFE_NO_PAD.encode(claims(|_| ()).to_string());
        for alg in ["none", "None", "NONE", ""] {
            let header = URL_SAFE_NO_PAD.encode(json!({ "alg": alg, "typ": "JWT" }).to_string());
            assert!(!accepts(&format!("{header}.{payload}.")), "alg {alg:?}");
        }
    }

    #[test]
    fn each_claim_is_checked() {
        let now = get_current_timestamp();
        let changes: [(&str, Value); 9] = [
            ("exp", json!(now - 31)),
            ("exp", Value::Null),
            ("exp", json!("tomorrow")),
            ("iat", json!(now + 3600)),
            ("nbf", json!(now + 3600)),
            ("iss", json!("someone else")),
            ("aud", json!("another service")),
            ("sub", json!("usr_1")),
            ("tenant", json!(UserId::new())),
        ];
        for (claim, value) in changes {
            let token = signed(Algorithm::HS256, SECRET, &claims(|claims| claims[claim] = value.clone()));
            assert!(!accepts(&token), "{claim} = {value} was accepted");
        }
    }

    #[test]
    fn a_clock_that_is_a_little_apart_does_no_harm() {
        let now = get_current_timestamp();
        assert!(accepts(&signed(Algorithm::HS256, SECRET, &claims(|claims| claims["exp"] = json!(now - 10)))));
        assert!(accepts(&signed(Algorithm::HS256, SECRET, &claims(|claims| claims["iat"] = json!(now + 10)))));
    }

    #[test]
    fn a_weak_secret_is_refused_at_start() {
        let config = JwtConfig { secret: "change-me".into(), access_token_lifetime: Duration::from_secs(60) };
        assert!(LocalTokens::new(&config).is_err());
    }
}
