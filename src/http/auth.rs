//! Who is calling: a bearer token becomes a [`Caller`], or the call ends with one generic 401.
//!
//! Today that is a local HS256 token (development and self-hosting). [`Authenticator::verify`] is the one door that
//! other kinds of credentials come through; nothing else of the API looks at a credential. A token's text must never
//! reach a log or an error.

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, get_current_timestamp};
use poem::{Request, RequestBody, http::header::AUTHORIZATION};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{Problem, seen_tokens::SeenTokens};
use crate::{
    config::JwtConfig,
    ids::{TenantId, UserId},
};

const ISSUER: &str = "multivio";
const AUDIENCE: &str = "multivio-api";
/// How far two machines' clocks may be apart.
const SKEW: Duration = Duration::from_secs(30);
/// HS256 is only as strong as its key: RFC 7518 asks for as many bits as the hash has.
const SHORTEST_SECRET_BYTES: usize = 32;
/// A longer credential is nothing of ours, and must not cost a decoding.
const LONGEST_TOKEN_BYTES: usize = 4096;

/// Whoever is calling, proved. A handler takes this as a parameter and is thereby closed to everyone else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub tenant: TenantId,
    pub user: UserId,
    pub scopes: Scopes,
}

impl Caller {
    /// A 403 that names the scope when the caller lacks it.
    pub fn require(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.contain(scope) { Ok(()) } else { Err(Problem::forbidden(scope.as_str())) }
    }
}

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything that belongs to the caller's own workspace.
    Workspace,
    /// Queues, workers, schedules: everybody's.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 2] = [Self::Workspace, Self::Admin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Workspace => "workspace",
            Self::Admin => "admin",
        }
    }
}

/// A set of [`Scope`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    pub fn of(scopes: impl IntoIterator<Item = Scope>) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | 1 << scope as u8))
    }

    pub const fn contain(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// An unknown scope grants nothing: it may come from a newer release.
    fn parse(text: &str) -> Self {
        Self::of(text.split(' ').filter_map(|word| Scope::ALL.into_iter().find(|scope| scope.as_str() == word)))
    }

    fn text(self) -> String {
        let words: Vec<_> =
            Scope::ALL.into_iter().filter(|scope| self.contain(*scope)).map(|scope| scope.as_str()).collect();
        words.join(" ")
    }
}

/// Turns a credential into a caller.
#[derive(Debug)]
pub struct Authenticator {
    local: Option<LocalTokens>,
}

/// Why a credential was not accepted. For the log alone: outside, all of these are one 401.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the Authorization header is not a bearer token")]
    Malformed,
    #[error("local tokens are off: JWT_SECRET_KEY is not set")]
    Off,
    #[error("the token was not accepted")]
    Rejected(#[from] jsonwebtoken::errors::Error),
    #[error("the token's {0} is not what it must be")]
    Claim(&'static str),
}

impl Authenticator {
    pub fn new(jwt: Option<&JwtConfig>) -> Result<Self, WeakSecret> {
        Ok(Self { local: jwt.map(LocalTokens::new).transpose()? })
    }

    pub fn verify(&self, authorization: &[u8]) -> Result<Caller, AuthError> {
        let token = bearer(authorization).ok_or(AuthError::Malformed)?;
        self.local.as_ref().ok_or(AuthError::Off)?.verify(token)
    }

    /// `None` when local tokens are off.
    pub fn local(&self) -> Option<&LocalTokens> {
        self.local.as_ref()
    }
}

/// The scheme's name has no case (RFC 9110).
fn bearer(authorization: &[u8]) -> Option<&str> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") || token.len() > LONGEST_TOKEN_BYTES {
        return None;
    }
    std::str::from_utf8(token).ok().map(str::trim)
}

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
    seen: SeenTokens,
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
            scope: caller.scopes.text(),
            iat: now,
            exp: now.saturating_add(lifetime.unwrap_or(self.lifetime).as_secs()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
            .expect("plain claims can be signed with a secret")
            .into()
    }

    pub fn verify(&self, token: &str) -> Result<Caller, AuthError> {
        let now = get_current_timestamp();
        if let Some(caller) = self.seen.find(token, now) {
            return Ok(caller);
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.checking, &self.validation)?.claims;
        if claims.iat > now + SKEW.as_secs() {
            return Err(AuthError::Claim("iat"));
        }
        let caller = Caller { tenant: claims.tenant, user: claims.sub, scopes: Scopes::parse(&claims.scope) };
        self.seen.remember(token, &caller, claims.exp.saturating_add(SKEW.as_secs()), now);
        Ok(caller)
    }
}

/// The gate checked the credential once and left the caller in the request; here the handler picks it up.
impl<'a> ApiExtractor<'a> for Caller {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        registry.create_security_scheme(
            SCHEME,
            MetaSecurityScheme {
                ty: "http",
                description: Some("`multivio token` prints a token for development."),
                name: None,
                key_in: None,
                scheme: Some("bearer"),
                bearer_format: Some("JWT"),
                flows: None,
                openid_connect_url: None,
            },
        );
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![SCHEME]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(request.extensions().get::<Self>().cloned().ok_or_else(Problem::unauthorized)?)
    }
}

const SCHEME: &str = "bearer";

/// The caller behind a request's `Authorization` header; `Ok(None)` when it has none.
pub fn caller_of(request: &Request, authenticator: &Authenticator) -> Result<Option<Caller>, Problem> {
    let Some(authorization) = request.headers().get(AUTHORIZATION) else { return Ok(None) };
    match authenticator.verify(authorization.as_bytes()) {
        Ok(caller) => Ok(Some(caller)),
        Err(error) => {
            tracing::debug!(cause = crate::telemetry::chain(&error), "a credential was refused");
            Err(Problem::unauthorized())
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn authenticator(secret: &str) -> Authenticator {
        Authenticator::new(Some(&JwtConfig { secret: secret.into(), access_token_lifetime: Duration::from_secs(60) }))
            .unwrap()
    }

    fn caller() -> Caller {
        Caller { tenant: TenantId::new(), user: UserId::new(), scopes: Scopes::of([Scope::Workspace]) }
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
        authenticator(SECRET).verify(format!("Bearer {token}").as_bytes()).is_ok()
    }

    #[test]
    fn a_token_brings_back_its_caller() {
        let (authenticator, caller) = (authenticator(SECRET), caller());
        let token = authenticator.local().unwrap().issue(&caller, None);
        let header = format!("bEaReR {}", token.expose_secret());
        for _first_and_remembered in 0..2 {
            assert_eq!(authenticator.verify(header.as_bytes()).unwrap(), caller);
        }
        // One that was seen opens nothing for one that only begins like it.
        let mut forged = header.into_bytes();
        *forged.last_mut().unwrap() ^= 1;
        assert!(authenticator.verify(&forged).is_err());
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
    fn what_is_no_bearer_token_is_refused() {
        for header in ["", "Bearer", "Basic dXNlcjpwYXNz", "Bearer ", "Bearer a.b.c", "\u{0}\u{0}"] {
            assert!(authenticator(SECRET).verify(header.as_bytes()).is_err(), "{header:?}");
        }
        assert!(matches!(
            authenticator(SECRET).verify(format!("Bearer {}", "a".repeat(5000)).as_bytes()),
            Err(AuthError::Malformed)
        ));
    }

    #[test]
    fn a_weak_secret_is_refused_at_start() {
        let config = JwtConfig { secret: "change-me".into(), access_token_lifetime: Duration::from_secs(60) };
        assert!(Authenticator::new(Some(&config)).is_err());
    }

    #[test]
    fn an_unknown_scope_grants_nothing() {
        let scopes = Scopes::parse("workspace superuser");
        assert!(scopes.contain(Scope::Workspace) && !scopes.contain(Scope::Admin));
        assert_eq!(scopes.text(), "workspace");
    }
}
