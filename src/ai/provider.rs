//! One neutral request and one neutral answer, and what each provider says in its own way.
//!
//! A request is never shared between providers: each encodes only the fields it knows, since a foreign field is the
//! commonest cause of a refusal on fail-over.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    errors::{Class, Refusal},
    usage::Usage,
};
use crate::jobs::job::stored_names;

stored_names! {
    /// Who can be asked, in the order in which they are.
    ProviderName {
        Grok = "grok",
        Together = "together",
        OpenAi = "openai",
    }
}

/// What is asked, in no provider's words.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Instructions: from the product's own prompt files, never from a user.
    pub system: String,
    /// A JSON document with the user's texts: data, never instructions.
    pub user: String,
    /// Earlier answers that were not good enough, each with what was wrong.
    pub corrections: Vec<Correction>,
    pub schema: Schema,
    pub temperature: f64,
    /// For the visible answer; thinking comes on top where a provider counts it apart.
    pub max_tokens: u32,
    /// A hash that lets a provider tell end users apart without knowing them.
    pub end_user: String,
    pub stream: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    pub answer: String,
    pub faults: String,
}

/// The form of the answer: only what all providers understand (every property required, no further ones, no
/// minimum or maximum). The answer is checked again in any case.
#[derive(Debug, Clone)]
pub struct Schema {
    pub name: &'static str,
    pub schema: Value,
}

impl Ask {
    /// The conversation as all three take it. Instructions are the first message and the only one in their role.
    pub fn messages(&self) -> Vec<Value> {
        let message = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
        let mut messages = vec![message("system", &self.system), message("user", &self.user)];
        for correction in &self.corrections {
            messages.push(message("assistant", &correction.answer));
            messages.push(message("user", &correction.faults));
        }
        messages
    }

    /// Bytes that go to the model, to estimate tokens by.
    pub fn prompt_bytes(&self) -> usize {
        let corrections: usize = self.corrections.iter().map(|c| c.answer.len() + c.faults.len()).sum();
        self.system.len() + self.user.len() + corrections + self.schema.schema.to_string().len()
    }
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub text: String,
    /// As the provider names it: may differ from the model asked for.
    pub model: String,
    pub finish: Finish,
    /// `None` when the provider did not say.
    pub usage: Option<Usage>,
    pub request_id: Option<String>,
    pub first_token: Option<Duration>,
    pub latency: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    /// The cap on tokens was reached.
    Length,
    /// The provider withheld the rest.
    Filtered,
}

/// What one provider says differently. Pure: no connection, no key.
pub trait Dialect: Send + Sync {
    fn name(&self) -> ProviderName;

    fn encode(&self, ask: &Ask, model: &str) -> Value;

    /// The most tokens an answer may be billed for: some think on top of the cap, by about as much again.
    fn most_tokens(&self, ask: &Ask) -> u32 {
        ask.max_tokens.saturating_mul(2)
    }

    fn classify(&self, refusal: &Refusal) -> Class;

    fn usage(&self, usage: &Value) -> Option<Usage> {
        Usage::read(usage)
    }

    /// The ids in an answer to `GET /models`.
    fn models(&self, body: &Value) -> Option<Vec<String>> {
        ids(body.get("data")?)
    }
}

/// The `id` of each item of a list.
pub fn ids(list: &Value) -> Option<Vec<String>> {
    let ids = list.as_array()?.iter().filter_map(|model| model.get("id")?.as_str().map(str::to_owned));
    Some(ids.collect())
}

/// The structured form of the answer, spelled alike by all three.
pub fn response_format(schema: &Schema) -> Value {
    serde_json::json!({
        "type": "json_schema",
        "json_schema": { "name": schema.name, "schema": schema.schema, "strict": true },
    })
}
