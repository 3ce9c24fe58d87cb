//! What the control API can do to the twin of X: make accounts and apps, revoke, look at what exists.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    X,
    oauth::SCOPES,
    store::{Account, App, DEFAULT_CLIENT_ID, World},
    tweets,
};
use crate::{clock, control::read, faults::Complaint};

/// A1: what a publisher asks for.
const USUAL_SCOPES: [&str; 5] = ["tweet.read", "tweet.write", "users.read", "media.write", "offline.access"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewAccount {
    username: Option<String>,
    name: Option<String>,
    #[serde(default)]
    premium: bool,
    scopes: Option<Vec<String>>,
    client_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    premium: Option<bool>,
    suspended: Option<bool>,
    locked: Option<bool>,
    username: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTokens {
    scopes: Option<Vec<String>>,
    client_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewApp {
    client_id: Option<String>,
    #[serde(default)]
    public: bool,
    callback_urls: Vec<String>,
}

pub fn create_account(x: &X, body: &Value) -> Result<Value, Complaint> {
    let new: NewAccount = read(body)?;
    let mut world = x.world();
    let id = world.snowflake().to_string();
    let username = new.username.unwrap_or_else(|| format!("sandbox_{}", &id[id.len() - 6..]));
    check_username(&world, &username)?;
    let scopes = scopes(new.scopes)?;
    let client_id = app(&world, new.client_id)?;
    let account = Account {
        id: id.clone(),
        name: new.name.unwrap_or_else(|| username.clone()),
        username,
        premium: new.premium,
        suspended: false,
        locked: false,
        created_ms: clock::now_ms(),
    };
    world.accounts.insert(id.clone(), account);
    tokens(&mut world, &id, &client_id, &scopes)
}

pub fn list_accounts(x: &X) -> Value {
    let world = x.world();
    let (_, counts) = tweets::counts(&world);
    world
        .accounts
        .values()
        .map(|account| {
            json!({
                "id": account.id, "username": account.username, "name": account.name, "premium": account.premium,
                "suspended": account.suspended, "locked": account.locked,
                "posts": counts.get(account.id.as_str()).copied().unwrap_or(0),
            })
        })
        .collect()
}

pub fn change_account(x: &X, id: &str, body: &Value) -> Result<Value, Complaint> {
    let change: Change = read(body)?;
    let mut world = x.world();
    let id = known(&world, id)?;
    if let Some(username) = &change.username {
        check_username(&world, username)?;
    }
    world.revision += 1;
    let account = world.accounts.get_mut(&id).ok_or_else(|| no_account(&id))?;
    account.premium = change.premium.unwrap_or(account.premium);
    account.suspended = change.suspended.unwrap_or(account.suspended);
    account.locked = change.locked.unwrap_or(account.locked);
    account.username = change.username.unwrap_or_else(|| account.username.clone());
    Ok(json!({
        "id": account.id, "username": account.username, "premium": account.premium,
        "suspended": account.suspended, "locked": account.locked,
    }))
}

/// The owner takes the permission back: every token is dead at once.
pub fn revoke(x: &X, id: &str) -> Result<Value, Complaint> {
    let mut world = x.world();
    let id = known(&world, id)?;
    Ok(json!({"revoked": world.revoke_account(&id)}))
}

/// Two hours pass for this account's access tokens; refresh tokens live on.
pub fn expire(x: &X, id: &str) -> Result<Value, Complaint> {
    let mut world = x.world();
    let id = known(&world, id)?;
    let mut expired = 0;
    for grant in world.access_tokens.values_mut().filter(|grant| grant.account.as_deref() == Some(id.as_str())) {
        grant.expires_ms = 0;
        expired += 1;
    }
    world.revision += 1;
    Ok(json!({"expired": expired}))
}

/// More tokens for an account, as if its owner had authorized again.
pub fn issue_tokens(x: &X, id: &str, body: &Value) -> Result<Value, Complaint> {
    let new: NewTokens = read(body)?;
    let mut world = x.world();
    let id = known(&world, id)?;
    let scopes = scopes(new.scopes)?;
    let client_id = app(&world, new.client_id)?;
    tokens(&mut world, &id, &client_id, &scopes)
}

pub fn create_app(x: &X, body: &Value) -> Result<Value, Complaint> {
    let new: NewApp = read(body)?;
    if new.callback_urls.is_empty() || new.callback_urls.len() > 10 {
        return Err(Complaint::new("`callback_urls` has from 1 to 10 URLs")); // A1
    }
    let client_id = new.client_id.unwrap_or_else(|| hex::encode(rand::random::<[u8; 12]>()));
    let client_secret = (!new.public).then(|| hex::encode(rand::random::<[u8; 24]>()));
    let mut world = x.world();
    if world.apps.contains_key(&client_id) {
        return Err(Complaint::new(format!("there is an app `{client_id}` already")));
    }
    let body = json!({"client_id": client_id, "client_secret": client_secret, "callback_urls": new.callback_urls});
    let app = App {
        client_id: client_id.clone(),
        client_secret,
        callback_urls: new.callback_urls,
        any_loopback_callback: false,
    };
    world.apps.insert(client_id, app);
    world.revision += 1;
    Ok(body)
}

/// A bearer token of the app itself: it can read, and posting with it is refused (A1).
pub fn app_token(x: &X, client_id: &str) -> Result<Value, Complaint> {
    let mut world = x.world();
    let client_id = app(&world, Some(String::from(client_id)))?;
    let pair = world.grant(None, &client_id, &[]);
    Ok(json!({"access_token": pair.access_token}))
}

/// Which posts to show.
#[derive(Default)]
pub struct Filter {
    pub account: Option<String>,
    pub text_contains: Option<String>,
    pub include_deleted: bool,
    pub limit: usize,
}

pub fn posts(x: &X, filter: &Filter, origin: &str) -> Value {
    let world = x.world();
    let posts = world.posts.values().rev().filter(|post| {
        (filter.include_deleted || post.is_live())
            && filter.account.as_ref().is_none_or(|account| *account == post.account)
            && filter.text_contains.as_ref().is_none_or(|text| post.text.contains(text.as_str()))
    });
    let mut found: Vec<Value> = posts.take(filter.limit).map(|post| tweets::as_seen(&world, post, origin)).collect();
    found.reverse();
    Value::Array(found)
}

/// One post, deleted or not.
pub fn post(x: &X, id: &str, origin: &str) -> Option<Value> {
    let world = x.world();
    let post = id.parse().ok().and_then(|id: u64| world.posts.get(&id))?;
    Some(tweets::as_seen(&world, post, origin))
}

/// How many posts there are, and the texts an account has posted more than once.
pub fn count(x: &X) -> Value {
    let world = x.world();
    let (total, by_account) = tweets::counts(&world);
    let mut texts: HashMap<(&str, &str), u64> = HashMap::new();
    for post in world.posts.values().filter(|post| post.is_live()) {
        *texts.entry((&post.account, &post.text)).or_default() += 1;
    }
    let repeated = texts.into_iter().filter(|(_, count)| *count > 1);
    let repeated: Vec<Value> =
        repeated.map(|((account, text), count)| json!({"account": account, "text": text, "count": count})).collect();
    json!({"total": total, "by_account": by_account, "repeated": repeated})
}

pub fn settings(x: &X) -> Value {
    serde_json::to_value(&x.world().settings).unwrap_or_default()
}

/// Changes the settings that are named and leaves the others.
pub fn change_settings(x: &X, body: &Value) -> Result<Value, Complaint> {
    let changes = body.as_object().ok_or_else(|| Complaint::new("settings are a JSON object"))?;
    let mut world = x.world();
    let mut merged: Map<String, Value> =
        serde_json::to_value(&world.settings).ok().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let known: Vec<String> = merged.keys().cloned().collect();
    if let Some(unknown) = changes.keys().find(|key| !known.contains(*key)) {
        return Err(Complaint::with_valid(format!("x has no setting `{unknown}`"), known));
    }
    merged.extend(changes.clone());
    let settings: super::Settings = serde_json::from_value(Value::Object(merged))
        .map_err(|error| Complaint::new(format!("x settings: {error}")))?;
    if let Some(unknown) =
        settings.rate_limits.keys().find(|name| !super::OPERATIONS.iter().any(|op| op.name == **name))
    {
        let valid = super::OPERATIONS.iter().map(|op| op.name);
        return Err(Complaint::with_valid(format!("rate_limits: x has no operation `{unknown}`"), valid));
    }
    world.settings = settings;
    world.revision += 1;
    drop(world);
    Ok(self::settings(x))
}

pub fn reset(x: &X) {
    let mut world = x.world();
    let (revision, last_snowflake) = (world.revision + 1, world.last_snowflake);
    *world = World { revision, last_snowflake, ..World::default() };
}

fn tokens(world: &mut World, id: &str, client_id: &str, scopes: &[String]) -> Result<Value, Complaint> {
    let pair = world.grant(Some(id), client_id, scopes);
    let account = world.accounts.get(id).ok_or_else(|| no_account(id))?;
    Ok(json!({
        "id": account.id, "username": account.username, "premium": account.premium, "client_id": client_id,
        "access_token": pair.access_token, "refresh_token": pair.refresh_token, "expires_in": pair.expires_in,
        "scope": pair.scope,
    }))
}

fn no_account(id: &str) -> Complaint {
    Complaint::new(format!("there is no account `{id}`"))
}

fn known(world: &World, id: &str) -> Result<String, Complaint> {
    world.account_named(id).map(|account| account.id.clone()).ok_or_else(|| no_account(id))
}

fn check_username(world: &World, username: &str) -> Result<(), Complaint> {
    let well_formed =
        (1..=15).contains(&username.len()) && username.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !well_formed {
        return Err(Complaint::new("`username` has from 1 to 15 letters, digits and underscores"));
    }
    if world.account_named(username).is_some() {
        return Err(Complaint::new(format!("there is an account @{username} already")));
    }
    Ok(())
}

fn scopes(given: Option<Vec<String>>) -> Result<Vec<String>, Complaint> {
    let scopes = given.unwrap_or_else(|| USUAL_SCOPES.map(String::from).to_vec());
    match scopes.iter().find(|scope| !SCOPES.contains(&scope.as_str())) {
        Some(unknown) => Err(Complaint::with_valid(format!("there is no scope `{unknown}`"), SCOPES)),
        None => Ok(scopes),
    }
}

fn app(world: &World, given: Option<String>) -> Result<String, Complaint> {
    let client_id = given.unwrap_or_else(|| String::from(DEFAULT_CLIENT_ID));
    if !world.apps.contains_key(&client_id) {
        return Err(Complaint::with_valid(format!("there is no app `{client_id}`"), world.apps.keys().cloned()));
    }
    Ok(client_id)
}
