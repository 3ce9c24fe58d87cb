//! Faults: what a test asks the sandbox to do wrong, when, and how often.
//!
//! A fault names a service and an operation, waits for the calls it should spare (`after`), and then strikes
//! `times` calls. Only the oldest fault that matches a call strikes it, so two faults of one kind strike two
//! calls. Everything is checked when the fault is made: a misspelt name would otherwise make a test pass by
//! doing nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{exchange::Answer, gate::Twin};

/// Longer waits than this would outlive any test.
const LONGEST_WAIT_MS: u64 = 600_000;

#[derive(Default)]
pub struct Faults(Mutex<Shelf>);

#[derive(Default)]
struct Shelf {
    last_id: u64,
    faults: Vec<Fault>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    pub id: u64,
    pub service: String,
    /// An operation's name, or `*` for all of the service's.
    pub operation: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
    /// How many matching calls pass first.
    pub after: u64,
    /// How many calls it strikes; `None` is without end.
    pub times: Option<u64>,
    /// Of the calls that match, strike every n-th.
    pub every: u64,
    /// A pause before anything else happens to the struck call.
    pub delay_ms: u64,
    pub effect: Effect,
    /// Calls that matched so far, and those that were struck.
    pub matched: u64,
    pub struck: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing but the fault's `delay_ms`: the work is done late, also when the caller has left by then.
    Delay,
    /// Answer this; do nothing.
    Refuse(Refusal),
    /// Answer 429 as the service does, its limit ending in so many seconds; do nothing.
    RateLimited { reset_in_s: u64 },
    /// Close the connection; do nothing.
    DropBefore,
    /// Keep silent for so long, then close the connection; do nothing.
    HangMs(u64),
    /// Do it, then close the connection without an answer.
    AcceptThenDrop,
    /// Do it, keep silent for so long, then close the connection without an answer.
    AcceptThenHangMs(u64),
    /// Do it, and answer late.
    AcceptThenDelayMs(u64),
    /// Do it, then answer this instead.
    AcceptThenStatus(Refusal),
    /// Do it, then answer with JSON that breaks off in the middle.
    Malformed,
    /// Something only this service can do wrong.
    Twist(Twist),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// One of the service's own errors.
    Error(String),
    Raw {
        status: u16,
        body: Value,
        headers: Vec<(String, String)>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Twist {
    pub name: String,
    pub value: Value,
}

/// Why a request to the control API was refused, and what would have been right.
#[derive(Debug)]
pub struct Complaint {
    pub message: String,
    pub valid: Vec<String>,
}

impl Complaint {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), valid: Vec::new() }
    }

    pub fn with_valid(message: impl Into<String>, valid: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { message: message.into(), valid: valid.into_iter().map(Into::into).collect() }
    }
}

/// A call, as far as faults look at it.
pub struct Target<'a> {
    pub service: &'a str,
    pub operation: &'a str,
    pub account: Option<&'a str>,
    pub body: &'a [u8],
}

impl Faults {
    pub fn add(&self, mut fault: Fault) -> Fault {
        let mut shelf = self.lock();
        shelf.last_id += 1;
        fault.id = shelf.last_id;
        shelf.faults.push(fault.clone());
        fault
    }

    pub fn list(&self) -> Vec<Fault> {
        self.lock().faults.clone()
    }

    /// Removes one; false when there is none of that id.
    pub fn remove(&self, id: u64) -> bool {
        let mut shelf = self.lock();
        let before = shelf.faults.len();
        shelf.faults.retain(|fault| fault.id != id);
        shelf.faults.len() < before
    }

    pub fn clear(&self) {
        self.lock().faults.clear();
    }

    /// The fault that strikes this call, counted as used.
    pub fn strike(&self, target: &Target<'_>) -> Option<Fault> {
        let mut shelf = self.lock();
        shelf.faults.iter_mut().find_map(|fault| fault.strikes(target).then(|| fault.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fault {
    fn strikes(&mut self, target: &Target<'_>) -> bool {
        let used_up = self.times.is_some_and(|times| self.struck >= times);
        if used_up || !self.matches(target) {
            return false;
        }
        self.matched += 1;
        if self.matched <= self.after || !(self.matched - self.after).is_multiple_of(self.every) {
            return false;
        }
        self.struck += 1;
        true
    }

    fn matches(&self, target: &Target<'_>) -> bool {
        self.service == target.service
            && (self.operation == "*" || self.operation == target.operation)
            && self.account.as_deref().is_none_or(|account| Some(account) == target.account)
            && self.body_contains.as_deref().is_none_or(|text| contains(target.body, text.as_bytes()))
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

/// Reads a fault as the control API takes it.
pub fn parse(body: &Value, twins: &[std::sync::Arc<dyn Twin>]) -> Result<Fault, Complaint> {
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
    Ok(Fault {
        id: 0,
        operation: operation(text(fields, "operation")?.as_deref(), twin)?,
        service,
        account: text(fields, "account")?,
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

fn no_service(message: &str, twins: &[std::sync::Arc<dyn Twin>]) -> Complaint {
    Complaint::with_valid(message, twins.iter().map(|twin| twin.service()))
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

impl Refusal {
    pub fn answer(&self, twin: &dyn Twin) -> Answer {
        match self {
            Self::Error(name) => twin.error(name).unwrap_or_else(|| Answer::empty(500)),
            Self::Raw { status, body, headers } => {
                let answer = match body {
                    Value::Null => Answer::empty(*status),
                    Value::String(text) => Answer::html(*status, text.clone()),
                    other => Answer::json(*status, other.clone()),
                };
                headers.iter().fold(answer, |answer, (name, value)| answer.with_header(name, value.clone()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
