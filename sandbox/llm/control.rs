//! What the control API can do to the language-model twins.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Key, KeyState, Llm, Settings};
use crate::{control::read, faults::Complaint};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKey {
    provider: String,
    key: String,
    label: Option<String>,
    state: Option<KeyState>,
}

/// Adds a key or changes the state of one that is there.
pub fn set_key(all: &[std::sync::Arc<Llm>], body: &Value) -> Result<Value, Complaint> {
    let new: NewKey = read(body)?;
    let llm = find(all, &new.provider)?;
    if new.key.trim().is_empty() {
        return Err(Complaint::new("`key` is empty"));
    }
    let mut desk = llm.desk();
    let next = format!("key-{}", desk.keys.len() + 1);
    let known = desk.keys.get(&new.key);
    let label = new.label.or_else(|| known.map(|key| key.label.clone())).unwrap_or(next);
    let key = Key { label, state: new.state.unwrap_or(KeyState::Ok) };
    let shown = json!({"provider": new.provider, "label": key.label, "state": key.state});
    desk.keys.insert(new.key, key);
    Ok(shown)
}

/// The calls that were answered with a completion, newest last.
pub fn calls(all: &[std::sync::Arc<Llm>], provider: Option<&str>, limit: usize) -> Result<Value, Complaint> {
    let chosen: Vec<&std::sync::Arc<Llm>> = match provider {
        Some(name) => vec![find(all, name)?],
        None => all.iter().collect(),
    };
    let mut calls: Vec<Value> =
        chosen.iter().flat_map(|llm| llm.desk().calls.iter().cloned().collect::<Vec<_>>()).collect();
    calls.sort_by_key(|call| call["time_ms"].as_u64());
    let skip = calls.len().saturating_sub(limit);
    Ok(Value::Array(calls.split_off(skip)))
}

pub fn settings(llm: &Llm) -> Value {
    serde_json::to_value(&llm.desk().settings).unwrap_or_default()
}

pub fn change_settings(llm: &Llm, body: &Value) -> Result<Value, Complaint> {
    let changes = body.as_object().ok_or_else(|| Complaint::new("settings are a JSON object"))?;
    let mut merged: Map<String, Value> = settings(llm).as_object().cloned().unwrap_or_default();
    let known: Vec<String> = merged.keys().cloned().collect();
    let name = llm.provider.name();
    if let Some(unknown) = changes.keys().find(|key| !known.contains(*key)) {
        return Err(Complaint::with_valid(format!("{name} has no setting `{unknown}`"), known));
    }
    merged.extend(changes.clone());
    let changed: Settings = serde_json::from_value(Value::Object(merged))
        .map_err(|error| Complaint::new(format!("{name} settings: {error}")))?;
    llm.desk().settings = changed;
    Ok(settings(llm))
}

fn find<'a>(all: &'a [std::sync::Arc<Llm>], name: &str) -> Result<&'a std::sync::Arc<Llm>, Complaint> {
    let found = all.iter().find(|llm| llm.provider.name() == name);
    found.ok_or_else(|| {
        Complaint::with_valid(format!("there is no provider `{name}`"), all.iter().map(|llm| llm.provider.name()))
    })
}
