//! The token endpoint (A1): codes for tokens, single-use refresh tokens, revocation.

use base64::{Engine, engine::general_purpose};
use rand::RngExt;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    X, refusals,
    store::{App, Challenge, Code, Grant, World},
};
use crate::{
    clock,
    exchange::{Answer, Call},
};

pub const SCOPES: [&str; 22] = [
    "tweet.read",
    "tweet.write",
    "tweet.moderate.write",
    "users.read",
    "users.email",
    "follows.read",
    "follows.write",
    "offline.access",
    "space.read",
    "mute.read",
    "mute.write",
    "like.read",
    "like.write",
    "list.read",
    "list.write",
    "block.read",
    "block.write",
    "bookmark.read",
    "bookmark.write",
    "dm.read",
    "dm.write",
    "media.write",
];

/// An access token and, with `offline.access`, its refresh token.
pub struct Pair {
    pub access_token: String,
    pub refresh_token: Option<String>,
    pub expires_in: u64,
    pub scope: String,
}

pub fn exchange_code(x: &X, call: &Call) -> Answer {
    let form = Form::of(call);
    let mut world = x.world();
    let app = match client(&world, call, &form) {
        Ok(app) => app,
        Err(refusal) => return refusal,
    };
    if form.value("grant_type") != Some("authorization_code") {
        return refusals::oauth(400, "invalid_request", "Value passed for the grant_type was invalid.");
    }
    // A1: a code is good once and for 30 seconds; taken before it is judged, so that nobody can try twice.
    let Some(code) = form.value("code").and_then(|code| world.codes.remove(code)) else {
        return refusals::code_invalid();
    };
    world.revision += 1;
    if code.expires_ms <= clock::now_ms() || code.client_id != app.client_id {
        return refusals::code_invalid();
    }
    if form.value("redirect_uri") != Some(code.redirect_uri.as_str()) {
        return refusals::oauth(
            400,
            "invalid_request",
            "Value passed for the redirect uri did not match the uri of the authorization code.",
        );
    }
    if !verifier_fits(&code, form.value("code_verifier").unwrap_or_default()) {
        return refusals::oauth(
            400,
            "invalid_request",
            "Value passed for the code verifier did not match the code challenge.",
        );
    }
    let pair = world.grant(Some(&code.account), &app.client_id, &code.scopes);
    token_answer(&pair)
}

pub fn refresh(x: &X, call: &Call) -> Answer {
    let form = Form::of(call);
    let mut world = x.world();
    let app = match client(&world, call, &form) {
        Ok(app) => app,
        Err(refusal) => return refusal,
    };
    let token = form.value("refresh_token").unwrap_or_default();
    let usable = world.refresh_tokens.get(token).is_some_and(|grant| grant.client_id == app.client_id);
    if !usable {
        return refusals::token_invalid(); // A1: dead, used or revoked
    }
    // A1: rotated on processing, whether or not the caller ever sees the answer.
    let Some(grant) = world.refresh_tokens.remove(token) else {
        return refusals::token_invalid();
    };
    world.revision += 1;
    let known = grant.account.as_ref().and_then(|id| world.accounts.get(id));
    if grant.expires_ms <= clock::now_ms() || known.is_none() {
        return refusals::token_invalid(); // A1: about 6 months
    }
    let pair = world.grant(grant.account.as_deref(), &app.client_id, &grant.scopes);
    token_answer(&pair)
}

pub fn revoke(x: &X, call: &Call) -> Answer {
    let form = Form::of(call);
    let mut world = x.world();
    if let Err(refusal) = client(&world, call, &form) {
        return refusal;
    }
    let token = form.value("token").unwrap_or_default();
    let access = world.access_tokens.remove(token);
    let refresh = world.refresh_tokens.remove(token);
    world.revision += 1;
    if access.is_none() && refresh.is_none() {
        return refusals::token_invalid();
    }
    Answer::ok(json!({"revoked": true}))
}

impl World {
    /// Issues tokens.
    pub fn grant(&mut self, account: Option<&str>, client_id: &str, scopes: &[String]) -> Pair {
        let now_ms = clock::now_ms();
        let grant = |lifetime_s: u64| Grant {
            account: account.map(String::from),
            client_id: String::from(client_id),
            scopes: scopes.to_vec(),
            expires_ms: now_ms + lifetime_s * 1000,
        };
        let access_token = secret("at");
        self.access_tokens.insert(access_token.clone(), grant(self.settings.access_token_lifetime_s));
        let offline = scopes.iter().any(|scope| scope == "offline.access");
        let refresh_token = offline.then(|| secret("rt"));
        if let Some(token) = &refresh_token {
            self.refresh_tokens.insert(token.clone(), grant(self.settings.refresh_token_lifetime_s));
        }
        self.revision += 1;
        Pair { access_token, refresh_token, expires_in: self.settings.access_token_lifetime_s, scope: scopes.join(" ") }
    }

    /// Ends every token of an account, as its owner does in the settings of X; gives how many there were.
    pub fn revoke_account(&mut self, account: &str) -> usize {
        let before = self.access_tokens.len() + self.refresh_tokens.len();
        self.access_tokens.retain(|_, grant| grant.account.as_deref() != Some(account));
        self.refresh_tokens.retain(|_, grant| grant.account.as_deref() != Some(account));
        self.codes.retain(|_, code| code.account != account);
        self.revision += 1;
        before - self.access_tokens.len() - self.refresh_tokens.len()
    }
}

/// A random opaque text, as tokens and codes are.
pub fn secret(kind: &str) -> String {
    let bytes: [u8; 36] = rand::rng().random();
    format!("{}:1:{kind}", general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

fn token_answer(pair: &Pair) -> Answer {
    // A1: `refresh_token` only with offline.access.
    let mut body = json!({
        "token_type": "bearer", "expires_in": pair.expires_in, "access_token": pair.access_token, "scope": pair.scope,
    });
    if let Some(token) = &pair.refresh_token {
        body["refresh_token"] = json!(token);
    }
    Answer::ok(body)
}

fn verifier_fits(code: &Code, verifier: &str) -> bool {
    // RFC 7636, 4.1: so short a one could be guessed.
    let is_one = (43..=128).contains(&verifier.len())
        && verifier.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    is_one
        && match code.method {
            Challenge::Plain => code.challenge == verifier,
            Challenge::S256 => code.challenge == general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)),
        }
}

/// A1: a confidential client shows its secret in the Basic header, a public one its id in the body.
fn client(world: &World, call: &Call, form: &Form) -> Result<App, Answer> {
    if call.content_type() != "application/x-www-form-urlencoded" {
        return Err(refusals::oauth(
            400,
            "invalid_request",
            "The content type must be application/x-www-form-urlencoded.",
        ));
    }
    let basic = call.header("authorization").and_then(|value| value.strip_prefix("Basic "));
    match basic {
        Some(encoded) => {
            let decoded = general_purpose::STANDARD.decode(encoded.trim()).ok().and_then(|b| String::from_utf8(b).ok());
            let (id, secret) =
                decoded.as_deref().and_then(|pair| pair.split_once(':')).ok_or_else(refusals::unauthorized_client)?;
            let app = world.apps.get(&unescaped(id)).ok_or_else(refusals::invalid_client)?; // A1: CONFIG
            match &app.client_secret {
                Some(known) if *known == unescaped(secret) => Ok(app.clone()),
                Some(_) | None => Err(refusals::invalid_client()),
            }
        }
        None => {
            let app = form.value("client_id").and_then(|id| world.apps.get(id));
            let app = app.ok_or_else(refusals::unauthorized_client)?;
            if app.client_secret.is_some() {
                return Err(refusals::unauthorized_client()); // A1: "Missing valid authorization header"
            }
            Ok(app.clone())
        }
    }
}

/// RFC 6749 has both halves of the Basic header form-encoded; clients differ.
fn unescaped(text: &str) -> String {
    let pair = format!("v={text}");
    url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

struct Form(Vec<(String, String)>);

impl Form {
    fn of(call: &Call) -> Self {
        Self(call.form())
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(method: Challenge, challenge: &str) -> Code {
        Code {
            account: String::from("7"),
            client_id: String::from("app"),
            scopes: Vec::new(),
            redirect_uri: String::new(),
            challenge: String::from(challenge),
            method,
            expires_ms: 0,
        }
    }

    #[test]
    fn the_verifier_is_checked_by_either_method() {
        // The pair of RFC 7636, appendix B.
        let s256 = code(Challenge::S256, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        assert!(verifier_fits(&s256, "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"));
        assert!(!verifier_fits(&s256, "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXl"));
        let plain = "v".repeat(43);
        assert!(verifier_fits(&code(Challenge::Plain, &plain), &plain));
        assert!(!verifier_fits(&code(Challenge::Plain, &plain), ""));
        assert!(!verifier_fits(&code(Challenge::Plain, "short"), "short"));
    }

    #[test]
    fn a_refresh_token_comes_only_with_offline_access() {
        let mut world = World::default();
        let scopes = [String::from("tweet.read")];
        assert!(world.grant(Some("7"), "app", &scopes).refresh_token.is_none());
        let scopes = [String::from("offline.access")];
        assert!(world.grant(Some("7"), "app", &scopes).refresh_token.is_some());
        assert_eq!(world.revoke_account("7"), 3);
        assert!(world.access_tokens.is_empty());
    }
}
