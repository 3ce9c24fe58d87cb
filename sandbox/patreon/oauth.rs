//! The token endpoint: codes and refresh tokens, each good once.

use base64::{Engine, engine::general_purpose};
use serde_json::json;

use super::{Grant, World};
use crate::{
    clock,
    exchange::{Answer, Call},
};

pub fn exchange_code(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let form = client(world, call)?;
    if value(&form, "grant_type") != Some("authorization_code") {
        return Err(refused("unsupported_grant_type"));
    }
    // Taken before it is judged, so that nobody can try twice.
    let code =
        value(&form, "code").and_then(|code| world.codes.remove(code)).ok_or_else(|| refused("invalid_grant"))?;
    if code.expires_ms <= clock::now_ms() || value(&form, "redirect_uri") != Some(code.redirect_uri.as_str()) {
        return Err(refused("invalid_grant"));
    }
    Ok(issue(world, &code.patron, &code.scopes))
}

pub fn refresh(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let form = client(world, call)?;
    let token = value(&form, "refresh_token").unwrap_or_default();
    // Rotated on processing, whether or not the caller ever sees the answer.
    let grant = world.refresh_tokens.remove(token).ok_or_else(|| refused("invalid_grant"))?;
    Ok(issue(world, &grant.patron, &grant.scopes))
}

pub fn refused(error: &str) -> Answer {
    Answer::json(if error == "invalid_client" { 401 } else { 400 }, json!({"error": error}))
}

/// A random opaque text, as tokens and codes are.
pub fn secret(kind: &str) -> String {
    format!("{kind}-{}", general_purpose::URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()))
}

/// Secrets stand in the form, which has to be one.
fn client(world: &World, call: &Call) -> Result<Vec<(String, String)>, Answer> {
    if call.content_type() != "application/x-www-form-urlencoded" {
        return Err(refused("invalid_request"));
    }
    let form = call.form();
    let is_known = value(&form, "client_id") == Some(world.settings.client_id.as_str())
        && value(&form, "client_secret") == Some(world.settings.client_secret.as_str());
    if is_known { Ok(form) } else { Err(refused("invalid_client")) }
}

fn value<'a>(form: &'a [(String, String)], name: &str) -> Option<&'a str> {
    form.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn issue(world: &mut World, patron: &str, scopes: &[String]) -> Answer {
    let grant = |lifetime_s: u64| Grant {
        patron: String::from(patron),
        scopes: scopes.to_vec(),
        redirect_uri: String::new(),
        expires_ms: clock::now_ms() + lifetime_s * 1000,
    };
    let (access, refresh, lifetime_s) = (secret("access"), secret("refresh"), world.settings.access_token_lifetime_s);
    world.access_tokens.insert(access.clone(), grant(lifetime_s));
    world.refresh_tokens.insert(refresh.clone(), grant(u64::from(u32::MAX)));
    Answer::ok(json!({
        "access_token": access, "refresh_token": refresh, "expires_in": lifetime_s, "scope": scopes.join(" "),
        "token_type": "Bearer",
    }))
}
