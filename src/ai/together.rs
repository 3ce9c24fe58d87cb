//! Together AI, as it differs from the others.
//!
//! It knows `max_tokens` only, a temperature up to 1, and neither `stream_options` nor an end user. A 403 means that
//! the input and the cap exceed the model's context, a 503 that the model is busy though the caller is within its
//! rate. Its list of models is a bare array.

use serde_json::{Value, json};

use super::{
    errors::{Class, Refusal},
    provider::{Ask, Dialect, ProviderName, ids, response_format},
};

pub struct Together;

impl Dialect for Together {
    fn name(&self) -> ProviderName {
        ProviderName::Together
    }

    fn encode(&self, ask: &Ask, model: &str) -> Value {
        json!({
            "model": model,
            "messages": ask.messages(),
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature.min(1.0),
            "response_format": response_format(&ask.schema),
            "stream": ask.stream,
        })
    }

    fn classify(&self, refusal: &Refusal) -> Class {
        match refusal.status {
            _ if refusal.says_exhausted() => Class::Exhausted,
            403 if refusal.says(&["api key", "blocked", "permission"]) => Class::Credential,
            403 if refusal.says_policy() => Class::Policy,
            403 => Class::TooLong,
            503 => Class::Throttled,
            _ => refusal.common_class(),
        }
    }

    fn models(&self, body: &Value) -> Option<Vec<String>> {
        ids(body)
    }
}
