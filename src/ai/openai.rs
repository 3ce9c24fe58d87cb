//! OpenAI, as it differs from the others.
//!
//! Its cap includes thinking, so room for it is added; a temperature other than the default may be refused by
//! reasoning models and is left out; the end user goes as `safety_identifier`. A 429 with `insufficient_quota` is no
//! matter of speed.

use serde_json::{Value, json};

use super::{
    errors::{Class, Refusal},
    provider::{Ask, Dialect, ProviderName, response_format},
};

/// Tokens for thinking, on top of the visible answer.
const ROOM_FOR_THINKING: u32 = 2048;

pub struct OpenAi;

impl Dialect for OpenAi {
    fn name(&self) -> ProviderName {
        ProviderName::OpenAi
    }

    fn encode(&self, ask: &Ask, model: &str) -> Value {
        let mut body = json!({
            "model": model,
            "messages": ask.messages(),
            "max_completion_tokens": self.most_tokens(ask),
            "response_format": response_format(&ask.schema),
            "safety_identifier": ask.end_user,
            "store": false,
            "stream": ask.stream,
        });
        if ask.stream {
            body["stream_options"] = json!({ "include_usage": true, "include_obfuscation": false });
        }
        body
    }

    fn most_tokens(&self, ask: &Ask) -> u32 {
        ask.max_tokens.saturating_add(ROOM_FOR_THINKING)
    }

    fn classify(&self, refusal: &Refusal) -> Class {
        match refusal.status {
            429 if refusal.says(&["insufficient_quota", "exceeded your current quota"]) => Class::Exhausted,
            404 if refusal.says(&["model_not_found"]) => Class::ModelGone,
            // A country that is not served: this installation cannot mend it by asking again.
            403 if refusal.says(&["country", "region", "territory"]) => Class::Credential,
            _ => refusal.common_class(),
        }
    }
}
