//! Reads faults as the control API takes them, and refuses whatever is misspelt or out of range.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Complaint, Effect, Fault, Refusal, Twist};
use crate::gate::Twin;

/// Longer waits than this would outlive any test.
pub(super) const LONGEST_WAIT_MS: u64 = 600_000;

/// Reads a fault as the control API takes it.
pub fn parse(body: &Value, twins: &[Arc<dyn Twin>]) -> Result<Fault, Complaint> {
    const FIELDS: [&str; 9] =
        ["service", "operation", "account", "body_contains", "after", "times", "every", "delay_ms", "effect"];
    let fields = body.as_object().ok_or_else(|| Complaint::new("a fault is a JSON object"))?;
    if let Some(unknown) = fields.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(Complaint::with_valid(format!("a fault has no field `{unknown}`"), FIELDS));
    }
    let service = text(fields, "service")?.ok_or_else(|| no_service("service is missing", twins))?;
    let twin = twins.iter().find(|twin| twin.service() == service);
    let twin = twin.ok_or_else(|| no_service(&format!("there is no service `{service}`"), twins))?.as_ref();
    let delay_ms = wait(fields.get("delay_ms").unwrap_or(&json!(0)), "delay_ms")?;
    let (effect, effect_delay_ms) = effect(fields.get("effect"), twin)?;
    let mut operation = operation(text(fields, "operation")?.as_deref(), twin)?;
    if let Effect::Twist(twist) = &effect {
        // A twist on any other operation would change nothing, and the test would pass for that.
        let only = twin.twist_operation();
        if operation == "*" {
            operation = String::from(only);
        } else if operation != only {
            return Err(Complaint::with_valid(format!("`{}` is an effect of {only} only", twist.name), [only]));
        }
    }
    Ok(Fault {
        id: 0,
        operation,
        service,
        account: account(text(fields, "account")?, twin)?,
        body_contains: text(fields, "body_contains")?,
        after: whole(fields, "after")?.unwrap_or(0),
        times: times(fields)?,
        every: match whole(fields, "every")? {
            Some(0) => return Err(Complaint::new("`every` is a whole number, 1 or more")),
            every => every.unwrap_or(1),
        },
        delay_ms: delay_ms + effect_delay_ms,
        effect,
        matched: 0,
        struck: 0,
    })
}

fn no_service(message: &str, twins: &[Arc<dyn Twin>]) -> Complaint {
    Complaint::with_valid(message, twins.iter().map(|twin| twin.service()))
}

/// An account that exists; a fault for any other would never strike.
fn account(given: Option<String>, twin: &dyn Twin) -> Result<Option<String>, Complaint> {
    let Some(given) = given else { return Ok(None) };
    let known = twin.find_account(&given);
    known.map(Some).ok_or_else(|| Complaint::new(format!("{} has no account `{given}`", twin.service())))
}

/// An operation by its name or by `METHOD /route`.
fn operation(given: Option<&str>, twin: &dyn Twin) -> Result<String, Complaint> {
    let given = given.unwrap_or("*");
    let known = twin.operations().iter().find(|op| op.name == given || format!("{} {}", op.method, op.route) == given);
    match known {
        Some(op) => Ok(String::from(op.name)),
        None if given == "*" => Ok(String::from("*")),
        None => {
            let valid = twin.operations().iter().map(|op| format!("{} ({} {})", op.name, op.method, op.route));
            Err(Complaint::with_valid(format!("{} has no operation `{given}`", twin.service()), valid))
        }
    }
}

fn times(fields: &Map<String, Value>) -> Result<Option<u64>, Complaint> {
    match fields.get("times") {
        Some(Value::String(word)) if word == "always" => Ok(None),
        Some(value) if value.as_u64().is_some_and(|times| times >= 1) => Ok(value.as_u64()),
        None => Ok(Some(1)),
        Some(_) => Err(Complaint::with_valid("`times` is a whole number, 1 or more, or \"always\"", ["1", "always"])),
    }
}

const EFFECTS: [&str; 10] = [
    "delay_ms",
    "refuse",
    "rate_limited",
    "drop_before",
    "hang_ms",
    "accept_then_drop",
    "accept_then_hang_ms",
    "accept_then_delay_ms",
    "accept_then_status",
    "malformed",
];

/// The names of all effects of a twin, its own twists included.
pub fn effect_names(twin: &dyn Twin) -> Vec<&'static str> {
    EFFECTS.iter().chain(twin.twists()).copied().collect()
}

/// An effect is a word (`"accept_then_drop"`) or an object of one key (`{"hang_ms": 500}`).
/// Gives also the milliseconds to wait before it.
fn effect(given: Option<&Value>, twin: &dyn Twin) -> Result<(Effect, u64), Complaint> {
    let unknown = |message: String| Complaint::with_valid(message, effect_names(twin));
    let (name, value) = match given {
        None => return Ok((Effect::Delay, 0)),
        Some(Value::String(name)) => (name.as_str(), &Value::Null),
        Some(Value::Object(fields)) => match fields.iter().next() {
            Some((name, value)) if fields.len() == 1 => (name.as_str(), value),
            Some(_) | None => {
                return Err(unknown(String::from("`effect` is a word or an object of exactly one key")));
            }
        },
        Some(_) => {
            return Err(unknown(String::from("`effect` is a word or an object of exactly one key")));
        }
    };
    let plain = |effect: Effect| match value {
        Value::Null => Ok((effect, 0)),
        _ => Err(Complaint::new(format!("`{name}` takes no value"))),
    };
    match name {
        "delay_ms" => Ok((Effect::Delay, wait(value, name)?)),
        "refuse" => Ok((Effect::Refuse(refusal(value, name, twin)?), 0)),
        "rate_limited" => Ok((Effect::RateLimited { reset_in_s: reset_in_s(value)? }, 0)),
        "drop_before" => plain(Effect::DropBefore),
        "hang_ms" => Ok((Effect::HangMs(wait(value, name)?), 0)),
        "accept_then_drop" => plain(Effect::AcceptThenDrop),
        "accept_then_hang_ms" => Ok((Effect::AcceptThenHangMs(wait(value, name)?), 0)),
        "accept_then_delay_ms" => Ok((Effect::AcceptThenDelayMs(wait(value, name)?), 0)),
        "accept_then_status" => Ok((Effect::AcceptThenStatus(refusal(value, name, twin)?), 0)),
        "malformed" => plain(Effect::Malformed),
        twist if twin.twists().contains(&twist) => {
            twin.check_twist(twist, value).map_err(Complaint::new)?;
            Ok((Effect::Twist(Twist { name: String::from(twist), value: value.clone() }), 0))
        }
        other => Err(unknown(format!("{} has no effect `{other}`", twin.service()))),
    }
}

fn reset_in_s(value: &Value) -> Result<u64, Complaint> {
    match value {
        Value::Null => Some(60),
        Value::Object(fields) if fields.len() == 1 => fields.get("reset_in_s").and_then(Value::as_u64),
        _ => None,
    }
    .ok_or_else(|| Complaint::new("`rate_limited` takes {\"reset_in_s\": whole seconds}"))
}

/// A refusal is a named error, a bare status, or `{error}` / `{status, body, headers}`.
fn refusal(value: &Value, effect: &str, twin: &dyn Twin) -> Result<Refusal, Complaint> {
    let named = |name: &str| match twin.error(name) {
        Some(_) => Ok(Refusal::Error(String::from(name))),
        None => Err(Complaint::with_valid(format!("{} has no error `{name}`", twin.service()), twin.errors())),
    };
    match value {
        Value::String(name) => named(name),
        Value::Number(_) => Ok(Refusal::Raw { status: status(value)?, body: Value::Null, headers: Vec::new() }),
        Value::Object(fields) => {
            if let Some(unknown) =
                fields.keys().find(|key| !["error", "status", "body", "headers"].contains(&key.as_str()))
            {
                let valid = ["error", "status", "body", "headers"];
                return Err(Complaint::with_valid(format!("`{effect}` has no field `{unknown}`"), valid));
            }
            match text(fields, "error")? {
                Some(name) if fields.len() == 1 => named(&name),
                Some(_) => Err(Complaint::new(format!(
                    "`{effect}`: give either `error`, or `status` with `body` and `headers`"
                ))),
                None => Ok(Refusal::Raw {
                    status: status(fields.get("status").unwrap_or(&Value::Null))?,
                    body: fields.get("body").cloned().unwrap_or_default(),
                    headers: headers(fields.get("headers"))?,
                }),
            }
        }
        _ => Err(Complaint::with_valid(
            format!("`{effect}` takes the name of an error, a status, or {{status, body}}"),
            twin.errors(),
        )),
    }
}

fn status(value: &Value) -> Result<u16, Complaint> {
    value
        .as_u64()
        .filter(|status| (200..=599).contains(status))
        .and_then(|status| u16::try_from(status).ok())
        .ok_or_else(|| Complaint::new("`status` is a number from 200 to 599"))
}

fn headers(value: Option<&Value>) -> Result<Vec<(String, String)>, Complaint> {
    let Some(value) = value else {
        return Ok(Vec::new());
    };
    let fields = value.as_object().ok_or_else(|| Complaint::new("`headers` is an object of names and texts"))?;
    fields
        .iter()
        .map(|(name, value)| {
            let valid = poem::http::HeaderName::try_from(name.as_str()).is_ok();
            match value.as_str().filter(|text| valid && poem::http::HeaderValue::from_str(text).is_ok()) {
                Some(text) => Ok((name.to_ascii_lowercase(), String::from(text))),
                None => Err(Complaint::new(format!("header `{name}` is not a header with a text value"))),
            }
        })
        .collect()
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, Complaint> {
    match fields.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Complaint::new(format!("`{name}` is a text"))),
    }
}

fn whole(fields: &Map<String, Value>, name: &str) -> Result<Option<u64>, Complaint> {
    match fields.get(name) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| Complaint::new(format!("`{name}` is a whole number"))),
    }
}

fn wait(value: &Value, name: &str) -> Result<u64, Complaint> {
    let wait_ms = value.as_u64().filter(|wait_ms| *wait_ms <= LONGEST_WAIT_MS);
    wait_ms
        .ok_or_else(|| Complaint::new(format!("`{name}` is a whole number of milliseconds, at most {LONGEST_WAIT_MS}")))
}
