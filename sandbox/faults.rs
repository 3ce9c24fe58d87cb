//! Faults: what a test asks the sandbox to do wrong, when, and how often.
//!
//! A fault names a service and an operation, waits for the calls it should spare (`after`), and then strikes
//! `times` calls. Only the oldest fault that matches a call strikes it, so two faults of one kind strike two
//! calls. Everything is checked when the fault is made: a misspelt name would otherwise make a test pass by
//! doing nothing.

mod parse;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use parse::{effect_names, parse};
use serde::Serialize;
use serde_json::Value;

use crate::{exchange::Answer, gate::Twin};

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
    /// It has struck as often as it should, and stays listed to be looked at.
    pub fn is_used_up(&self) -> bool {
        self.times.is_some_and(|times| self.struck >= times)
    }

    fn strikes(&mut self, target: &Target<'_>) -> bool {
        if self.is_used_up() || !self.matches(target) {
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
