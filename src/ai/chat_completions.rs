//! The chat-completions wire that all three providers speak: one call, plain or streamed, under its deadlines.
//!
//! An answer is only an answer when it came whole: a cut stream, an error within a stream and a page of HTML with
//! status 200 are failures, whatever text came before. Never logs a prompt or a key.

use std::time::{Duration, Instant};

use reqwest::{Client, Response, StatusCode};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    errors::{CallError, Class, KEPT_BODY_BYTES, Refusal},
    provider::{Answer, Ask, Dialect, Finish, ProviderName},
    stream::EventReader,
    usage::Usage,
};
use crate::{config::AiProviderConfig, outbound};

/// Far more than any transform's answer.
const LONGEST_ANSWER_BYTES: usize = 1 << 20;
const LONGEST_MODEL_LIST_BYTES: usize = 4 << 20;
const MODEL_LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// One provider that can be asked.
pub struct ChatClient {
    http: Client,
    config: AiProviderConfig,
    dialect: Box<dyn Dialect>,
}

/// How long one call may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until the first piece of the answer.
    pub first_token: Duration,
    /// Between two pieces.
    pub idle: Duration,
    /// Altogether.
    pub whole: Duration,
}

/// Told every visible piece of an answer as it comes.
pub type OnDelta<'a> = &'a mut (dyn FnMut(&str) + Send);

impl ChatClient {
    pub fn new(http: Client, config: AiProviderConfig, dialect: Box<dyn Dialect>) -> Self {
        Self { http, config, dialect }
    }

    pub fn name(&self) -> ProviderName {
        self.dialect.name()
    }

    pub fn most_tokens(&self, ask: &Ask) -> u32 {
        self.dialect.most_tokens(ask)
    }

    pub fn model(&self) -> &str {
        &self.config.model
    }

    /// Asks once. Dropping the future ends the request.
    pub async fn call(&self, ask: &Ask, limits: Limits, on_delta: OnDelta<'_>) -> Result<Answer, CallError> {
        let started = Instant::now();
        let mut reading = Reading::new(self.dialect.as_ref(), started);
        let outcome = timeout(limits.whole, self.exchange(ask, limits, &mut reading, on_delta)).await;
        match outcome {
            Ok(Ok(())) => reading.finish(self.model()),
            Ok(Err(mut error)) => {
                error.partial = std::mem::take(&mut reading.text);
                error.request_id = error.request_id.or(reading.request_id);
                Err(error)
            }
            Err(_) => {
                let mut error = self.transient(format!("no whole answer within {} s", limits.whole.as_secs()));
                error.partial = std::mem::take(&mut reading.text);
                error.request_id = reading.request_id;
                Err(error)
            }
        }
    }

    /// The ids the provider lists. Proves the key and the way there, not that the model will answer.
    pub async fn list_models(&self) -> Result<Vec<String>, CallError> {
        let request = self.http.get(self.url("models")).timeout(MODEL_LIST_TIMEOUT);
        let response = request.bearer_auth(self.config.api_key.expose_secret()).send().await;
        let response = self.checked(response.map_err(|error| self.lost(&error))?).await?;
        let body = outbound::body(response, LONGEST_MODEL_LIST_BYTES).await;
        let body = body.map_err(|error| self.transient(crate::telemetry::chain(&error)))?;
        serde_json::from_slice(&body)
            .ok()
            .and_then(|body| self.dialect.models(&body))
            .ok_or_else(|| self.transient("its list of models has no form that is known".to_owned()))
    }

    async fn exchange(
        &self,
        ask: &Ask,
        limits: Limits,
        reading: &mut Reading<'_>,
        on_delta: OnDelta<'_>,
    ) -> Result<(), CallError> {
        let body = self.dialect.encode(ask, self.model());
        let request = self.http.post(self.url("chat/completions")).json(&body);
        let response =
            timeout(limits.first_token, request.bearer_auth(self.config.api_key.expose_secret()).send()).await;
        let response = response
            .map_err(|_| self.transient(format!("silent for {} s", limits.first_token.as_secs())))?
            .map_err(|error| self.lost(&error))?;
        let response = self.checked(response).await?;
        reading.request_id = request_id(&response);
        if is_event_stream(&response) {
            self.read_stream(response, limits, reading, on_delta).await
        } else {
            self.read_plain(response, reading, on_delta).await
        }
    }

    async fn read_stream(
        &self,
        mut response: Response,
        limits: Limits,
        reading: &mut Reading<'_>,
        on_delta: OnDelta<'_>,
    ) -> Result<(), CallError> {
        let mut events = EventReader::default();
        let mut received = 0;
        while !reading.done {
            let limit = if reading.first_token.is_some() {
                limits.idle
            } else {
                limits.first_token.saturating_sub(reading.started.elapsed())
            };
            let piece = timeout(limit, response.chunk()).await;
            let piece = piece.map_err(|_| self.transient("the stream fell silent".to_owned()))?;
            let Some(piece) = piece.map_err(|error| self.lost(&error))? else { break };
            received += piece.len();
            if received > LONGEST_ANSWER_BYTES * 8 {
                return Err(self.transient("an answer without end".to_owned()));
            }
            for event in events.push(&piece).map_err(|error| self.transient(error.to_string()))? {
                reading.event(&event, on_delta)?;
            }
        }
        if !reading.done
            && let Some(event) = events.finish()
        {
            reading.event(&event, on_delta)?;
        }
        Ok(())
    }

    async fn read_plain(
        &self,
        response: Response,
        reading: &mut Reading<'_>,
        on_delta: OnDelta<'_>,
    ) -> Result<(), CallError> {
        let body = outbound::body(response, LONGEST_ANSWER_BYTES).await;
        let body = body.map_err(|error| self.transient(crate::telemetry::chain(&error)))?;
        let Ok(value) = serde_json::from_slice::<Value>(&body) else {
            let refusal = Refusal { status: 200, ..Refusal::read(200, &Default::default(), &body) };
            return Err(refusal.into_error(self.name(), Class::Transient));
        };
        reading.chunk(&value, "message", on_delta)?;
        reading.done = true;
        Ok(())
    }

    /// An answer with a status of success, or what the refusal means.
    async fn checked(&self, mut response: Response) -> Result<Response, CallError> {
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let mut body = Vec::new();
        // A refusal that breaks off still says what came; its status alone is enough to go on.
        while body.len() < KEPT_BODY_BYTES * 2
            && let Ok(Ok(Some(piece))) = timeout(Duration::from_secs(5), response.chunk()).await
        {
            body.extend_from_slice(&piece);
        }
        let mut refusal = Refusal::read(response.status().as_u16(), response.headers(), &body);
        // Some repeat the key that they refuse, and what they say is kept and shown.
        refusal.message = refusal.message.replace(self.config.api_key.expose_secret(), "[key]");
        let class = self.dialect.classify(&refusal);
        Err(refusal.into_error(self.name(), class))
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.config.base_url.as_str().trim_end_matches('/'))
    }

    fn transient(&self, message: String) -> CallError {
        CallError::new(self.name(), Class::Transient, message)
    }

    fn lost(&self, error: &reqwest::Error) -> CallError {
        let what = if error.is_connect() {
            "it could not be reached"
        } else if error.is_timeout() {
            "it took too long"
        } else {
            "the connection broke"
        };
        CallError { unsent: error.is_connect(), ..self.transient(what.to_owned()) }
    }
}

fn is_event_stream(response: &Response) -> bool {
    let content_type = response.headers().get(reqwest::header::CONTENT_TYPE);
    content_type.and_then(|value| value.to_str().ok()).is_some_and(|value| value.starts_with("text/event-stream"))
}

fn request_id(response: &Response) -> Option<String> {
    let id = response.headers().get("x-request-id")?.to_str().ok()?;
    Some(id.chars().take(128).collect())
}

/// An answer being put together.
struct Reading<'a> {
    dialect: &'a dyn Dialect,
    started: Instant,
    text: String,
    refused: String,
    model: Option<String>,
    finish: Option<String>,
    usage: Option<Usage>,
    first_token: Option<Duration>,
    request_id: Option<String>,
    done: bool,
}

impl<'a> Reading<'a> {
    fn new(dialect: &'a dyn Dialect, started: Instant) -> Self {
        Self {
            dialect,
            started,
            text: String::new(),
            refused: String::new(),
            model: None,
            finish: None,
            usage: None,
            first_token: None,
            request_id: None,
            done: false,
        }
    }

    fn event(&mut self, data: &str, on_delta: OnDelta<'_>) -> Result<(), CallError> {
        if data.trim() == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk = serde_json::from_str::<Value>(data);
        let chunk = chunk.map_err(|_| self.error(Class::Transient, "a piece of the stream is not JSON".to_owned()))?;
        self.chunk(&chunk, "delta", on_delta)
    }

    /// A whole answer (`message`) or a piece of a streamed one (`delta`). Unknown keys are passed over.
    fn chunk(&mut self, chunk: &Value, part: &str, on_delta: OnDelta<'_>) -> Result<(), CallError> {
        if chunk.get("error").is_some_and(|error| !error.is_null()) {
            let mut refusal = Refusal { status: 200, ..Refusal::default() };
            refusal.read_json(chunk);
            let class = if refusal.says_exhausted() { Class::Exhausted } else { Class::Transient };
            return Err(refusal.into_error(self.dialect.name(), class));
        }
        if let Some(model) = chunk["model"].as_str().filter(|model| !model.is_empty()) {
            self.model = Some(model.chars().take(128).collect());
        }
        if let Some(usage) = chunk.get("usage").and_then(|usage| self.dialect.usage(usage)) {
            self.usage = Some(usage);
        }
        let Some(choice) = chunk["choices"].as_array().and_then(|choices| choices.first()) else { return Ok(()) };
        if let Some(refusal) = choice[part]["refusal"].as_str() {
            self.refused.push_str(refusal);
        }
        if let Some(piece) = choice[part]["content"].as_str().filter(|piece| !piece.is_empty()) {
            self.first_token.get_or_insert_with(|| self.started.elapsed());
            if self.text.len() + piece.len() > LONGEST_ANSWER_BYTES {
                return Err(self.error(Class::Transient, "an answer without end".to_owned()));
            }
            self.text.push_str(piece);
            on_delta(piece);
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
        Ok(())
    }

    fn finish(self, asked: &str) -> Result<Answer, CallError> {
        if !self.refused.is_empty() {
            let message = "it declined to write this".to_owned();
            return Err(CallError { partial: self.refused.clone(), ..self.error(Class::Policy, message) });
        }
        let finish = match self.finish.as_deref() {
            Some("stop" | "eos" | "end_turn") => Finish::Stop,
            Some("length") => Finish::Length,
            Some("content_filter") => Finish::Filtered,
            // Some servers end a whole answer without a reason; a stream without reason and end was cut.
            None | Some("") if self.done => Finish::Stop,
            Some(other) if self.done => {
                let message = format!("it ended with \"{}\"", other.chars().take(40).collect::<String>());
                return Err(CallError { partial: self.text.clone(), ..self.error(Class::Transient, message) });
            }
            _ => {
                let message = "the stream was cut before its end".to_owned();
                return Err(CallError { partial: self.text.clone(), ..self.error(Class::Transient, message) });
            }
        };
        if finish == Finish::Filtered {
            let message = "it withheld its answer".to_owned();
            return Err(CallError { partial: self.text.clone(), ..self.error(Class::Policy, message) });
        }
        if self.text.is_empty() && finish == Finish::Stop {
            return Err(self.error(Class::Transient, "an empty answer".to_owned()));
        }
        Ok(Answer {
            text: self.text,
            model: self.model.unwrap_or_else(|| asked.to_owned()),
            finish,
            usage: self.usage,
            request_id: self.request_id,
            first_token: self.first_token,
            latency: self.started.elapsed(),
        })
    }

    fn error(&self, class: Class, message: String) -> CallError {
        CallError { request_id: self.request_id.clone(), ..CallError::new(self.dialect.name(), class, message) }
    }
}
