//! What the control API can do to the twin of Firebase: change keys, and sign tokens of every kind.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Firebase, Settings, keys::SigningKey};
use crate::{clock, control::read, faults::Complaint};

/// A token to be signed. Without any field it is the good token of a new user.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wish {
    uid: String,
    /// Over the claims of a good token; null takes one away.
    claims: Map<String, Value>,
    /// Over the header of a good token; null takes one away.
    header: Map<String, Value>,
    signer: Signer,
}

impl Default for Wish {
    fn default() -> Self {
        let uid = hex::encode(rand::random::<[u8; 14]>());
        Self { uid, claims: Map::new(), header: Map::new(), signer: Signer::Current }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Signer {
    /// The newest published key.
    Current,
    /// One that was withdrawn; its `kid` is in the header.
    Withdrawn,
    /// Somebody else's key, under the `kid` of the published one.
    Stranger,
    /// The published public key as the secret of HS256.
    PublicKeyAsSecret,
    /// 64 bytes that are no signature of anything.
    Noise,
    /// Nothing behind the last dot.
    Nobody,
}

/// 2.2, 2.4: an ID token as Firebase makes it, with what was asked to be wrong about it.
pub fn sign(twin: &Firebase, body: &Value) -> Result<Value, Complaint> {
    let wish: Wish = read(body)?;
    let mut desk = twin.desk();
    let project = desk.settings.project.clone();
    let published = desk.signer().kid.clone();
    let now_s = clock::now_ms() / 1000;
    let mut claims = json!({
        "iss": format!("https://securetoken.google.com/{project}"), "aud": project, "auth_time": now_s,
        "user_id": wish.uid, "sub": wish.uid, "iat": now_s, "exp": now_s + 3600,
        "firebase": {"identities": {}, "sign_in_provider": "password"},
    });
    let withdrawn = desk.withdrawn.last().map(|key| key.kid.clone());
    let kid = if wish.signer == Signer::Withdrawn { withdrawn.unwrap_or_default() } else { published };
    let alg = match wish.signer {
        Signer::PublicKeyAsSecret => "HS256",
        Signer::Noise => "ES256",
        Signer::Nobody => "none",
        Signer::Current | Signer::Withdrawn | Signer::Stranger => "RS256",
    };
    let mut header = json!({"alg": alg, "kid": kid, "typ": "JWT"});
    change(&mut claims, wish.claims);
    change(&mut header, wish.header);
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encode(&header), encode(&claims));
    let signature = match wish.signer {
        Signer::Current => desk.signer().rs256(&message),
        Signer::Withdrawn => {
            let key = desk.withdrawn.last();
            key.ok_or_else(|| Complaint::new("no key was withdrawn: rotate with \"withdraw\": true"))?.rs256(&message)
        }
        Signer::Stranger => desk.stranger.get_or_insert_with(SigningKey::generate).rs256(&message),
        Signer::PublicKeyAsSecret => desk.signer().hs256(&message),
        Signer::Noise => URL_SAFE_NO_PAD.encode(rand::random::<[u8; 64]>()),
        Signer::Nobody => String::new(),
    };
    Ok(json!({"token": format!("{message}.{signature}"), "uid": wish.uid}))
}

fn change(part: &mut Value, changes: Map<String, Value>) {
    let Some(part) = part.as_object_mut() else { return };
    part.extend(changes);
    part.retain(|_, value| !value.is_null());
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Rotation {
    /// The old keys are not published any more.
    withdraw: bool,
}

/// A new key signs from now on.
pub fn rotate(twin: &Firebase, body: &Value) -> Result<Value, Complaint> {
    let rotation: Rotation = read(body)?;
    let mut desk = twin.desk();
    desk.signer();
    if rotation.withdraw {
        let old = std::mem::take(&mut desk.published);
        desk.withdrawn.extend(old);
    }
    let key = SigningKey::generate();
    let kid = key.kid.clone();
    desk.published.push(key);
    Ok(json!({"kid": kid}))
}

pub fn settings(twin: &Firebase) -> Value {
    json!(twin.desk().settings)
}

pub fn change_settings(twin: &Firebase, body: &Value) -> Result<Value, Complaint> {
    let changes = body.as_object().ok_or_else(|| Complaint::new("settings are a JSON object"))?;
    let mut merged = settings(twin).as_object().cloned().unwrap_or_default();
    if let Some(unknown) = changes.keys().find(|key| !merged.contains_key(*key)) {
        let known: Vec<String> = merged.keys().cloned().collect();
        return Err(Complaint::with_valid(format!("firebase has no setting `{unknown}`"), known));
    }
    merged.extend(changes.clone());
    let changed: Settings = serde_json::from_value(Value::Object(merged))
        .map_err(|error| Complaint::new(format!("firebase settings: {error}")))?;
    twin.desk().settings = changed;
    Ok(settings(twin))
}
