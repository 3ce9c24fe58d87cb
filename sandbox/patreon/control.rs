//! What the control API can do to the twin of Patreon: make patrons, change what they are entitled to, end tokens.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Patreon, Patron, Settings, TIERS, resources};
use crate::{control::read, faults::Complaint};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPatron {
    full_name: Option<String>,
    #[serde(default)]
    tiers: BTreeSet<String>,
    /// As the tiers say, unless given.
    patron_status: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    tiers: Option<BTreeSet<String>>,
    patron_status: Option<String>,
    /// Whether an event tells of it.
    #[serde(default = "yes")]
    fires: bool,
}

const fn yes() -> bool {
    true
}

const STATUSES: [&str; 3] = ["active_patron", "declined_patron", "former_patron"];

pub fn create(twin: &Patreon, body: &Value) -> Result<Value, Complaint> {
    let new: NewPatron = read(body)?;
    check(&new.tiers, new.patron_status.as_deref())?;
    let mut world = twin.world();
    let id = world.next_id().to_string();
    let active = (!new.tiers.is_empty()).then(|| String::from(STATUSES[0]));
    let patron = Patron {
        full_name: new.full_name.unwrap_or_else(|| format!("Patron {id}")),
        member_id: uuid::Uuid::new_v4().to_string(),
        patron_status: new.patron_status.or(active),
        tiers: new.tiers,
        id: id.clone(),
    };
    let shown = json!(patron);
    world.patrons.insert(id, patron);
    Ok(shown)
}

pub fn change(twin: &Patreon, id: &str, body: &Value) -> Result<Value, Complaint> {
    let change: Change = read(body)?;
    check(change.tiers.as_ref().unwrap_or(&BTreeSet::new()), change.patron_status.as_deref())?;
    let mut world = twin.world();
    let patron = world.patrons.get_mut(id).ok_or_else(|| no_patron(id))?;
    if let Some(tiers) = change.tiers {
        patron.patron_status = Some(String::from(if tiers.is_empty() { STATUSES[2] } else { STATUSES[0] }));
        patron.tiers = tiers;
    }
    patron.patron_status = change.patron_status.or_else(|| patron.patron_status.take());
    let (shown, event) = (json!(patron), resources::whole_member(patron).to_string());
    drop(world);
    if change.fires {
        twin.fire("members:pledge:update", event);
    }
    Ok(shown)
}

/// The user takes the permission back: every token is dead at once.
pub fn revoke(twin: &Patreon, id: &str) -> Result<Value, Complaint> {
    let mut world = twin.world();
    if !world.patrons.contains_key(id) {
        return Err(no_patron(id));
    }
    let before = world.access_tokens.len() + world.refresh_tokens.len();
    world.access_tokens.retain(|_, grant| grant.patron != id);
    world.refresh_tokens.retain(|_, grant| grant.patron != id);
    Ok(json!({"revoked": before - world.access_tokens.len() - world.refresh_tokens.len()}))
}

/// A month passes for this user's access tokens; refresh tokens live on.
pub fn expire(twin: &Patreon, id: &str) -> Result<Value, Complaint> {
    let mut world = twin.world();
    if !world.patrons.contains_key(id) {
        return Err(no_patron(id));
    }
    let before = world.access_tokens.len();
    world.access_tokens.retain(|_, grant| grant.patron != id);
    Ok(json!({"expired": before - world.access_tokens.len()}))
}

pub fn webhook(twin: &Patreon) -> Value {
    let world = twin.world();
    json!({"paused": world.hook.paused, "waiting": world.hook.waiting(), "deliveries": world.hook.deliveries})
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HookChange {
    paused: bool,
    /// What waited does not come one after the other, but all at the same time and the newest first.
    #[serde(default)]
    at_once: bool,
}

/// Not paused any more, it sends what waited.
pub fn change_webhook(twin: &Patreon, body: &Value) -> Result<Value, Complaint> {
    let HookChange { paused, at_once } = read(body)?;
    if paused && at_once {
        return Err(Complaint::new("a webhook that is paused sends nothing: `at_once` goes with `paused: false`"));
    }
    twin.world().hook.paused = paused;
    if at_once {
        twin.send_backlog_at_once();
    }
    twin.send_backlog();
    Ok(webhook(twin))
}

pub fn settings(twin: &Patreon) -> Value {
    json!(twin.world().settings)
}

pub fn change_settings(twin: &Patreon, body: &Value) -> Result<Value, Complaint> {
    let changes = body.as_object().ok_or_else(|| Complaint::new("settings are a JSON object"))?;
    let mut merged = settings(twin).as_object().cloned().unwrap_or_default();
    if let Some(unknown) = changes.keys().find(|key| !merged.contains_key(*key)) {
        let known: Vec<String> = merged.keys().cloned().collect();
        return Err(Complaint::with_valid(format!("patreon has no setting `{unknown}`"), known));
    }
    merged.extend(changes.clone());
    let changed: Settings = serde_json::from_value(Value::Object(merged))
        .map_err(|error| Complaint::new(format!("patreon settings: {error}")))?;
    twin.world().settings = changed;
    Ok(settings(twin))
}

fn check(tiers: &BTreeSet<String>, status: Option<&str>) -> Result<(), Complaint> {
    if let Some(unknown) = tiers.iter().find(|id| !TIERS.iter().any(|(known, ..)| known == id)) {
        return Err(Complaint::with_valid(format!("there is no tier `{unknown}`"), TIERS.map(|(id, ..)| id)));
    }
    match status.filter(|status| !STATUSES.contains(status)) {
        Some(unknown) => Err(Complaint::with_valid(format!("there is no status `{unknown}`"), STATUSES)),
        None => Ok(()),
    }
}

fn no_patron(id: &str) -> Complaint {
    Complaint::new(format!("there is no patron {id}"))
}
