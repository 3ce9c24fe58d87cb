//! Twins of three chat-completions services: xAI, Together AI and OpenAI, after the external services facts
//! (sections 1.1-1.5, 1.8). Alike from afar; each refuses what it alone refuses, in its own envelope.

mod answer;
mod catalog;
mod check;
pub mod control;
mod fields;
mod format;
mod named;
mod refusals;
mod schema;
mod task;
mod writer;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    clock,
    exchange::{Answer, Call, Operation},
    faults::Twist,
    gate::Twin,
};

const CALLS_KEPT: usize = 20_000;

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Xai,
    Together,
    OpenAi,
}

impl Provider {
    pub const ALL: [Self; 3] = [Self::Xai, Self::Together, Self::OpenAi];

    pub fn name(self) -> &'static str {
        match self {
            Self::Xai => "xai",
            Self::Together => "together",
            Self::OpenAi => "openai",
        }
    }

    /// The key that works from the start.
    pub fn default_key(self) -> &'static str {
        match self {
            Self::Xai => "xai-sandbox-key",
            Self::Together => "together-sandbox-key",
            Self::OpenAi => "sk-sandbox-key",
        }
    }
}

/// One provider's twin.
pub struct Llm {
    pub provider: Provider,
    desk: Mutex<Desk>,
}

pub struct Desk {
    pub settings: Settings,
    pub keys: BTreeMap<String, Key>,
    pub calls: VecDeque<Value>,
    window: (u64, u64),
}

#[derive(Clone, Debug, Serialize)]
pub struct Key {
    pub label: String,
    pub state: KeyState,
}

/// 1.4, 1.5: the states an account behind a key can be in.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    Ok,
    Exhausted,
    Blocked,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How long the model thinks before its first word, and between pieces of a stream.
    pub first_token_delay_ms: u64,
    pub chunk_delay_ms: u64,
    pub requests_per_minute: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { first_token_delay_ms: 0, chunk_delay_ms: 5, requests_per_minute: 100_000 }
    }
}

const CHAT: Operation = Operation::new("chat.create", "POST", "/chat/completions");
const MODELS: Operation = Operation::new("models.list", "GET", "/models");
const COMMON: [Operation; 2] = [CHAT, MODELS];
const XAI: [Operation; 4] = [
    CHAT,
    MODELS,
    Operation::new("models.language", "GET", "/language-models"),
    Operation::new("key.get", "GET", "/api-key"),
];

impl Llm {
    pub fn new(provider: Provider) -> Self {
        Self { provider, desk: Mutex::new(Desk::new(provider)) }
    }

    pub fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn reset(&self) {
        *self.desk() = Desk::new(self.provider);
    }

    fn admit(&self, call: &Call, operation: &str) -> Result<String, Answer> {
        let refusals = refusals::of(self.provider);
        let token = call.bearer().filter(|token| !token.is_empty()).ok_or_else(|| refusals.missing_key())?; // 1.4: 401
        let mut desk = self.desk();
        let key = desk.keys.get(token).cloned().ok_or_else(|| refusals.wrong_key(token))?; // 1.4: 400 or 401
        if operation == "key.get" {
            return Ok(key.label);
        }
        match key.state {
            KeyState::Ok => {}
            KeyState::Exhausted => return Err(refusals.exhausted()), // 1.4: 402, 403 or 429
            KeyState::Blocked => return Err(refusals.blocked()),     // 1.4: 403 or 401
        }
        if !desk.count_request() {
            return Err(refusals.rate_limited(desk.window_ends_in_s())); // 1.4: 429
        }
        Ok(key.label)
    }

    /// 1.5: what the key is worth; xAI only.
    fn api_key(&self, call: &Call) -> Answer {
        let desk = self.desk();
        let blocked =
            call.bearer().and_then(|token| desk.keys.get(token)).is_some_and(|key| key.state == KeyState::Blocked);
        Answer::ok(json!({
            "redacted_api_key": "xai-...key", "user_id": "00000000-0000-4000-8000-000000000001", "name": "sandbox",
            "create_time": "2026-01-01T00:00:00Z", "modify_time": "2026-01-01T00:00:00Z",
            "modified_by": "00000000-0000-4000-8000-000000000001", "team_id": "00000000-0000-4000-8000-000000000002",
            "acls": ["api-key:model:*", "api-key:endpoint:*"], "api_key_id": "00000000-0000-4000-8000-000000000003",
            "team_blocked": blocked, "api_key_blocked": false, "api_key_disabled": false,
        }))
    }

    fn chat(&self, call: &Call, label: &str, twist: Option<&Twist>) -> Result<Answer, Answer> {
        let request = check::read(self.provider, call)?;
        let settings = self.desk().settings.clone();
        let reply = answer::Reply::to(self.provider, &request, twist);
        self.desk().remember(json!({
            "time_ms": clock::now_ms(), "provider": self.provider.name(), "key": label, "model_asked": request.model_asked,
            "model_answered": reply.model, "stream": request.stream, "messages": request.messages,
            "response_format": request.response_format, "finish_reason": reply.finish_reason, "content": reply.content,
            "usage": reply.usage,
        }));
        let id = reply.id.clone();
        Ok(reply.answer(&request, &settings, twist).committing(id))
    }
}

impl Desk {
    fn new(provider: Provider) -> Self {
        let key = Key { label: String::from("default"), state: KeyState::Ok };
        let keys = BTreeMap::from([(String::from(provider.default_key()), key)]);
        Self { settings: Settings::default(), keys, calls: VecDeque::new(), window: (0, 0) }
    }

    fn remember(&mut self, call: Value) {
        self.calls.push_back(call);
        if self.calls.len() > CALLS_KEPT {
            self.calls.pop_front();
        }
    }

    /// Counts a request into the present minute; false when the minute is full.
    fn count_request(&mut self) -> bool {
        let minute = clock::now_ms() / 60_000;
        if self.window.0 != minute {
            self.window = (minute, 0);
        }
        if self.window.1 >= self.settings.requests_per_minute {
            return false;
        }
        self.window.1 += 1;
        true
    }

    fn window_ends_in_s(&self) -> u64 {
        60 - clock::now_ms() / 1000 % 60
    }

    fn remaining(&self) -> u64 {
        self.settings.requests_per_minute.saturating_sub(self.window.1)
    }
}

impl Twin for Llm {
    fn service(&self) -> &'static str {
        self.provider.name()
    }

    fn prefix(&self) -> &'static str {
        match self.provider {
            Provider::Xai => "/xai/v1",
            Provider::Together => "/together/v1",
            Provider::OpenAi => "/openai/v1",
        }
    }

    fn operations(&self) -> &'static [Operation] {
        match self.provider {
            Provider::Xai => &XAI,
            Provider::Together | Provider::OpenAi => &COMMON,
        }
    }

    /// The label of the key, never the key.
    fn account(&self, call: &Call) -> Option<String> {
        self.desk().keys.get(call.bearer()?).map(|key| key.label.clone())
    }

    /// Accounts are keys here, known by their labels.
    fn find_account(&self, label: &str) -> Option<String> {
        let desk = self.desk();
        let known = desk.keys.values().any(|key| key.label == label);
        known.then(|| String::from(label))
    }

    fn serve(&self, operation: Option<&'static Operation>, call: &Call, twist: Option<&Twist>) -> Answer {
        let refusals = refusals::of(self.provider);
        let Some(operation) = operation else {
            let known_path = self.operations().iter().any(|operation| operation.route == call.path);
            return if known_path {
                refusals.wrong_method(call.method.as_str())
            } else {
                refusals.no_such_url(&call.path)
            };
        };
        let result = self.admit(call, operation.name).and_then(|label| match operation.name {
            "chat.create" => self.chat(call, &label, twist),
            "models.language" => Ok(Answer::ok(catalog::language_models())),
            "key.get" => Ok(self.api_key(call)),
            _ => Ok(Answer::ok(catalog::list(self.provider))),
        });
        let answer = result.unwrap_or_else(|refusal| refusal);
        if operation.name == "chat.create" { self.with_rate_headers(answer) } else { answer }
    }

    /// Prompts are looked at through `/_sandbox/llm/calls`; the log has the model only.
    fn loggable(&self, _operation: &'static str, call: &Call) -> Option<String> {
        let body = call.json()?;
        Some(json!({"model": body.get("model"), "stream": body.get("stream")}).to_string())
    }

    fn errors(&self) -> Vec<&'static str> {
        refusals::of(self.provider).named().iter().map(|(name, _)| *name).collect()
    }

    fn error(&self, name: &str) -> Option<Answer> {
        refusals::of(self.provider).named().into_iter().find(|(known, _)| *known == name).map(|(_, answer)| answer)
    }

    fn rate_limited(&self, _operation: &'static str, reset_in_s: u64) -> Answer {
        refusals::of(self.provider).rate_limited(reset_in_s)
    }

    fn twists(&self) -> &'static [&'static str] {
        &answer::TWISTS
    }

    fn twist_operation(&self) -> &'static str {
        CHAT.name
    }

    fn check_twist(&self, name: &str, value: &Value) -> Result<(), String> {
        answer::check_twist(name, value)
    }

    fn common_headers(&self) -> Vec<(String, String)> {
        let id = hex::encode(rand::random::<[u8; 12]>());
        match self.provider {
            Provider::OpenAi => vec![
                (String::from("x-request-id"), format!("req_{id}")),
                (String::from("openai-processing-ms"), String::from("1")),
            ],
            Provider::Xai | Provider::Together => vec![(String::from("x-request-id"), id)],
        }
    }
}

impl Llm {
    /// 1.4: how each tells what is left.
    fn with_rate_headers(&self, answer: Answer) -> Answer {
        if answer.headers.iter().any(|(name, _)| name.starts_with("x-ratelimit-")) {
            return answer;
        }
        let desk = self.desk();
        let (limit, remaining, reset_s) =
            (desk.settings.requests_per_minute, desk.remaining(), desk.window_ends_in_s());
        match self.provider {
            // 1.4: durations until a full refill.
            Provider::OpenAi => answer
                .with_header("x-ratelimit-limit-requests", limit.to_string())
                .with_header("x-ratelimit-remaining-requests", remaining.to_string())
                .with_header("x-ratelimit-reset-requests", format!("{reset_s}s"))
                .with_header("x-ratelimit-limit-tokens", "2000000")
                .with_header("x-ratelimit-remaining-tokens", "1999000")
                .with_header("x-ratelimit-reset-tokens", "12ms"),
            // 1.4: requests a second.
            Provider::Together => answer
                .with_header("x-ratelimit-limit", (limit / 60).to_string())
                .with_header("x-ratelimit-remaining", (remaining / 60).to_string())
                .with_header("x-ratelimit-reset", "1")
                .with_header("x-tokenlimit-limit", "30000")
                .with_header("x-tokenlimit-remaining", "29000"),
            // 1.4: not confirmed for xAI, so a client may not need them.
            Provider::Xai => answer,
        }
    }
}
