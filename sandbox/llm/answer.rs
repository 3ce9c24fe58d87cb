//! The reply in each provider's shape (1.3): plain or streamed, finish reasons, usage arithmetic; and the ways
//! it can go wrong on purpose (1.8).

use serde_json::{Value, json};

use super::{
    Provider, Settings,
    check::{Request, tokens},
    refusals, schema,
    task::{Task, seed_of},
    writer,
};
use crate::{
    clock,
    exchange::{Answer, Events, Payload},
    faults::Twist,
};

pub const TWISTS: [&str; 14] = [
    "text",
    "too_long",
    "invalid_json",
    "wrong_schema",
    "refusal",
    "content_filter",
    "empty_length",
    "empty",
    "truncated",
    "other_model",
    "no_usage",
    "slow_first_token_ms",
    "stream_cut",
    "stream_error",
];

pub fn check_twist(name: &str, value: &Value) -> Result<(), String> {
    let fits = match name {
        "text" | "other_model" => value.is_string(),
        "slow_first_token_ms" => value.as_u64().is_some_and(|wait_ms| wait_ms <= 600_000),
        "stream_cut" | "stream_error" => {
            value.is_null()
                || (value.as_object().is_some_and(|fields| fields.len() == 1) && value["after_chunks"].is_u64())
        }
        _ => value.is_null(),
    };
    let wants = match name {
        "text" | "other_model" => "a text",
        "slow_first_token_ms" => "a whole number of milliseconds, at most 600000",
        "stream_cut" | "stream_error" => "{\"after_chunks\": n} or no value",
        _ => "no value",
    };
    if fits { Ok(()) } else { Err(format!("`{name}` takes {wants}")) }
}

pub struct Reply {
    provider: Provider,
    pub id: String,
    pub model: String,
    pub content: Vec<String>,
    pub refusal: Option<String>,
    pub finish_reason: &'static str,
    pub usage: Value,
    reasoning_tokens: u64,
}

impl Reply {
    pub fn to(provider: Provider, request: &Request, twist: Option<&Twist>) -> Self {
        let task = Task::of(&request.messages);
        let twist_name = twist.map(|twist| twist.name.as_str()).unwrap_or_default();
        let mut finish_reason = natural_end(provider, task.seed);
        let mut reasoning_tokens = thinking(&request.effort);
        let mut refusal = None;
        let mut content: Vec<String> = (0..request.count)
            .map(|index| {
                let seed = task.seed.wrapping_add(index as u64);
                written(request, &Task { seed, ..task.clone() }, twist)
            })
            .collect();
        match twist_name {
            "refusal" => {
                refusal = Some(String::from("I'm sorry, but I can't help with that."));
                content.iter_mut().for_each(String::clear);
            }
            "content_filter" => {
                finish_reason = "content_filter";
                content.iter_mut().for_each(|text| *text = head(text, 2));
            }
            "empty" => content.iter_mut().for_each(String::clear),
            "empty_length" => {
                // 1.3: the cap was eaten by thinking.
                finish_reason = "length";
                reasoning_tokens = request.cap.unwrap_or(256);
                content.iter_mut().for_each(String::clear);
            }
            "truncated" => {
                finish_reason = "length";
                content.iter_mut().for_each(|text| *text = head(text, tokens(text) / 2));
            }
            _ => {
                if let Some(room) = visible_cap(provider, request.cap, reasoning_tokens)
                    && content.iter().any(|text| tokens(text) > room)
                {
                    finish_reason = "length";
                    content.iter_mut().for_each(|text| *text = head(text, room));
                }
            }
        }
        let visible: u64 = content.iter().map(|text| tokens(text)).sum();
        let model = match twist {
            Some(twist) if twist.name == "other_model" => String::from(twist.value.as_str().unwrap_or_default()),
            // 1.1: a redirected name is answered by its real model, silently.
            Some(_) | None => String::from(request.model.id),
        };
        let usage = usage(provider, request, visible, reasoning_tokens);
        let id = new_id(provider);
        Self { provider, id, model, content, refusal, finish_reason, usage, reasoning_tokens }
    }

    pub fn answer(&self, request: &Request, settings: &Settings, twist: Option<&Twist>) -> Answer {
        let slow_ms = twist.filter(|twist| twist.name == "slow_first_token_ms").and_then(|twist| twist.value.as_u64());
        let first_delay_ms = settings.first_token_delay_ms + slow_ms.unwrap_or(0);
        let without_usage = twist.is_some_and(|twist| twist.name == "no_usage");
        let cut = twist.filter(|twist| ["stream_cut", "stream_error"].contains(&twist.name.as_str()));
        if !request.stream {
            let mut answer = Answer::ok(self.whole(without_usage));
            answer.wait_ms = first_delay_ms;
            // Without a stream there is nothing to cut but the body itself.
            return if cut.is_some() { answer.malformed() } else { answer };
        }
        let mut pieces = self.pieces(request, without_usage);
        let mut events = Events { first_delay_ms, delay_ms: settings.chunk_delay_ms, ..Events::default() };
        if let Some(twist) = cut {
            let after = twist.value["after_chunks"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(2);
            pieces.truncate(after);
            match twist.name.as_str() {
                "stream_error" => pieces.push(event(&refusals::of(self.provider).in_stream())), // 1.3
                _ => events.cut = true,
            }
        }
        events.pieces = pieces;
        Answer::new(200, Payload::Events(events))
    }

    fn whole(&self, without_usage: bool) -> Value {
        let choices: Vec<Value> = self
            .content
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let mut message = json!({"role": "assistant", "content": text, "refusal": self.refusal});
                match self.provider {
                    Provider::Xai if self.reasoning_tokens > 0 => message["reasoning_content"] = json!(THOUGHT),
                    Provider::Together if self.reasoning_tokens > 0 => message["reasoning"] = json!(THOUGHT),
                    Provider::Xai | Provider::Together => {}
                    // 1.3: a refusal has no content.
                    Provider::OpenAi if self.refusal.is_some() => message["content"] = Value::Null,
                    Provider::OpenAi => {}
                }
                json!({"index": index, "message": message, "finish_reason": self.finish_reason, "logprobs": null})
            })
            .collect();
        let mut body = json!({
            "id": self.id, "object": "chat.completion", "created": clock::now_ms() / 1000, "model": self.model,
            "choices": choices, "system_fingerprint": "fp_sandbox",
        });
        if self.provider == Provider::Together {
            // 1.3: what only Together adds.
            body["prompt"] = json!([]);
            body["warnings"] = Value::Null;
        }
        if !without_usage {
            body["usage"] = self.usage.clone();
        }
        body
    }

    fn pieces(&self, request: &Request, without_usage: bool) -> Vec<String> {
        let created = clock::now_ms() / 1000;
        let chunk = |choices: Value| {
            json!({
                "id": self.id, "object": "chat.completion.chunk", "created": created, "model": self.model,
                "choices": choices, "system_fingerprint": "fp_sandbox",
            })
        };
        let with_usage = request.include_usage && !without_usage;
        let mut chunks = Vec::new();
        for (index, text) in self.content.iter().enumerate() {
            let mut say = |delta: Value, finish: Option<&str>| {
                let mut made =
                    chunk(json!([{"index": index, "delta": delta, "finish_reason": finish, "logprobs": null}]));
                if with_usage && self.provider != Provider::Together {
                    made["usage"] = Value::Null; // 1.3: the other chunks carry usage:null
                }
                if request.obfuscate {
                    made["obfuscation"] = json!(noise(chunks.len()));
                }
                chunks.push(made);
            };
            say(json!({"role": "assistant", "content": ""}), None);
            if self.provider == Provider::Xai && self.reasoning_tokens > 0 {
                say(json!({"reasoning_content": THOUGHT}), None);
            }
            if let Some(refusal) = &self.refusal {
                say(json!({"refusal": refusal}), None);
            }
            for piece in text.split_inclusive(' ') {
                say(json!({"content": piece}), None);
            }
            say(json!({}), Some(self.finish_reason));
        }
        if with_usage {
            match (self.provider, chunks.last_mut()) {
                // 1.2: a chunk can carry usage anyway.
                (Provider::Together, Some(last)) => last["usage"] = self.usage.clone(),
                // 1.3: one extra chunk with no choices.
                (Provider::Xai | Provider::OpenAi, Some(_)) => {
                    let mut last = chunk(json!([]));
                    last["usage"] = self.usage.clone();
                    chunks.push(last);
                }
                (_, None) => {}
            }
        }
        let mut pieces: Vec<String> = chunks.iter().map(event).collect();
        pieces.push(String::from("data: [DONE]\n\n"));
        pieces
    }
}

const THOUGHT: &str = "The user wants the content reworked within the limit.";

fn event(body: &Value) -> String {
    format!("data: {body}\n\n")
}

/// The words of one choice: free text or JSON by the schema.
fn written(request: &Request, task: &Task, twist: Option<&Twist>) -> String {
    let format = request.response_format.as_ref();
    let kind = format.and_then(|format| format["type"].as_str()).unwrap_or("text");
    let name = twist.map(|twist| twist.name.as_str()).unwrap_or_default();
    if let (Some(twist), "text") = (twist, name) {
        return String::from(twist.value.as_str().unwrap_or_default());
    }
    // A content longer than its own limit is what "too long" means everywhere below.
    let long = (name == "too_long").then(|| writer::oversized(task));
    match kind {
        "json_schema" => {
            let described = format.map(|format| format["json_schema"]["schema"].clone()).unwrap_or_default();
            let value = match long {
                Some(text) => stretched(schema::fill(&described, task), &text),
                None => schema::fill(&described, task),
            };
            match name {
                "invalid_json" => head(&value.to_string(), tokens(&value.to_string()) / 2),
                "wrong_schema" => json!({"unexpected": [1, 2, 3]}).to_string(),
                _ => value.to_string(),
            }
        }
        "json_object" => match name {
            "invalid_json" => String::from("{\"text\": \"cut off here"),
            "wrong_schema" => json!({"unexpected": [1, 2, 3]}).to_string(),
            _ => json!({"text": long.unwrap_or_else(|| writer::compose(task))}).to_string(),
        },
        _ => match name {
            "invalid_json" | "wrong_schema" => String::from("Sure! Here is what you asked for: {\"text\": "),
            _ => long.unwrap_or_else(|| writer::compose(task)),
        },
    }
}

/// Every text of a value replaced by one that is too long.
fn stretched(value: Value, text: &str) -> Value {
    match value {
        Value::String(_) => Value::String(String::from(text)),
        Value::Array(items) => items.into_iter().map(|item| stretched(item, text)).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, stretched(value, text))).collect(),
        other => other,
    }
}

fn head(text: &str, token_count: u64) -> String {
    text.chars().take(usize::try_from(token_count * 4).unwrap_or(usize::MAX)).collect()
}

/// 1.3: words for "done" that a client has to know.
fn natural_end(provider: Provider, seed: u64) -> &'static str {
    match (provider, seed % 4) {
        (Provider::Xai, 0) => "end_turn",
        (Provider::Together, 0 | 1) => "eos",
        _ => "stop",
    }
}

fn thinking(effort: &str) -> u64 {
    match effort {
        "none" => 0,
        "minimal" => 8,
        "low" => 32,
        "medium" => 96,
        _ => 256,
    }
}

/// 1.2: OpenAI's cap includes reasoning, the others' does not.
fn visible_cap(provider: Provider, cap: Option<u64>, reasoning_tokens: u64) -> Option<u64> {
    match provider {
        Provider::OpenAi => cap.map(|cap| cap.saturating_sub(reasoning_tokens)),
        Provider::Xai | Provider::Together => cap,
    }
}

/// 1.3: the three ways to add up.
fn usage(provider: Provider, request: &Request, visible: u64, reasoning: u64) -> Value {
    let prompt = request.prompt_tokens;
    match provider {
        Provider::Xai => {
            // Reasoning stands apart, and the total has all three.
            let (price_in, price_out) = request.model.price_cents;
            // A cent per million tokens is 100 ticks of 1e-10 USD a token.
            let ticks = (prompt * price_in + (visible + reasoning) * price_out) * 100;
            json!({
                "prompt_tokens": prompt, "completion_tokens": visible, "total_tokens": prompt + visible + reasoning,
                "prompt_tokens_details": {"text_tokens": prompt, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": reasoning, "audio_tokens": 0,
                    "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
                },
                "num_sources_used": 0, "cost_in_usd_ticks": ticks,
            })
        }
        Provider::Together => json!({
            "prompt_tokens": prompt, "completion_tokens": visible + reasoning, "total_tokens": prompt + visible + reasoning,
        }),
        Provider::OpenAi => json!({
            "prompt_tokens": prompt, "completion_tokens": visible + reasoning, "total_tokens": prompt + visible + reasoning,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": reasoning, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        }),
    }
}

fn new_id(provider: Provider) -> String {
    let id = hex::encode(rand::random::<[u8; 12]>());
    match provider {
        Provider::Xai => id,
        Provider::Together => format!("o{id}"),
        Provider::OpenAi => format!("chatcmpl-{id}"),
    }
}

/// 1.3: a random text that parsers must ignore.
fn noise(index: usize) -> String {
    format!("{:x}", seed_of(&index.to_string())).chars().take(3 + index % 10).collect()
}

#[cfg(test)]
mod tests;
