//! xAI, as it differs from the others.
//!
//! Never sent: `stop` and the penalties (an error on reasoning models), and `reasoning_effort` except to the model
//! family known to take it. Refusals are flat (`{"code", "error"}`), a wrong key is a 400, and spent credit is a 403
//! or a 429. Thinking is counted apart from the visible answer, in the usage as in the cap.

use serde_json::{Value, json};

use super::{
    errors::{Class, Refusal},
    provider::{Ask, Dialect, ProviderName, response_format},
};

pub struct Grok;

impl Dialect for Grok {
    fn name(&self) -> ProviderName {
        ProviderName::Grok
    }

    fn encode(&self, ask: &Ask, model: &str) -> Value {
        let mut body = json!({
            "model": model,
            "messages": ask.messages(),
            "max_completion_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "response_format": response_format(&ask.schema),
            "user": ask.end_user,
            "stream": ask.stream,
        });
        if model.starts_with("grok-4.3") {
            body["reasoning_effort"] = json!("none");
        }
        if ask.stream {
            body["stream_options"] = json!({ "include_usage": true });
        }
        body
    }

    fn classify(&self, refusal: &Refusal) -> Class {
        match refusal.status {
            _ if refusal.says_exhausted() => Class::Exhausted,
            400 if refusal.says(&["incorrect api key", "invalid api key"]) => Class::Credential,
            // The code has "permission-denied" for what a key may not do and for what the rules forbid.
            403 if refusal.says(&["content violates", "usage guidelines", "safety check"]) => Class::Policy,
            _ => refusal.common_class(),
        }
    }
}
