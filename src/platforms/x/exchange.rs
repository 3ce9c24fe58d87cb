//! One request to X and its answer: address, authorisation, deadline, rate headers.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use reqwest::{
    Client, Method, RequestBuilder,
    header::{DATE, HeaderMap},
};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use url::Url;

use super::answers::{self, Effect};
use crate::{
    config::XConfig,
    outbound,
    platforms::{Call, ConnectorError, Exchange, Platform, RateWindow, Witness},
};

/// A page of a hundred long posts is far below this.
const ANSWER_LIMIT_BYTES: usize = 4 << 20;
/// How long the time that X told is kept up by our own clock.
const TIME_KEEPS: Duration = Duration::from_secs(10 * 60);

pub struct Wire {
    base: Url,
    client: Client,
    client_id: Option<String>,
    client_secret: Option<SecretString>,
    /// When an answer last told X's own time, and what it told.
    clock: Mutex<Option<(Instant, DateTime<Utc>)>>,
}

/// An answer of the class 2xx, read to its end.
pub struct Answer {
    pub status: u16,
    body: Bytes,
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }
}

impl Wire {
    pub fn new(config: &XConfig, client: Client) -> Self {
        Self {
            base: config.api_base.clone(),
            client,
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone(),
            clock: Mutex::new(None),
        }
    }

    /// X's own time, or a little before it; `None` where no answer told it lately.
    pub fn their_time(&self) -> Option<DateTime<Utc>> {
        let (heard, told) = (*self.clock.lock().expect("nothing panics while it is held"))?;
        (heard.elapsed() < TIME_KEEPS).then(|| told + heard.elapsed())
    }

    fn hear_time(&self, headers: &HeaderMap) {
        let told = headers.get(DATE).and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok());
        if let Some(told) = told {
            *self.clock.lock().expect("nothing panics while it is held") = Some((Instant::now(), told.to_utc()));
        }
    }

    pub fn client_id(&self) -> Option<&str> {
        self.client_id.as_deref()
    }

    pub fn request(&self, method: Method, path: &str, call: &Call<'_>) -> RequestBuilder {
        self.request_with(method, path, &call.account.access_token)
    }

    /// For an account that is not connected yet.
    pub fn request_with(&self, method: Method, path: &str, access_token: &SecretString) -> RequestBuilder {
        self.client.request(method, self.address(path)).bearer_auth(access_token.expose_secret())
    }

    pub fn get(&self, path: &str, query: &[(&str, &str)], call: &Call<'_>) -> RequestBuilder {
        let mut address =
            Url::parse(&self.address(path)).expect("a path of ours behind an address that was read as one");
        address.query_pairs_mut().extend_pairs(query);
        self.client.get(address).bearer_auth(call.account.access_token.expose_secret())
    }

    pub fn token_request(&self, form: &[(&str, &str)]) -> RequestBuilder {
        self.app_request("/2/oauth2/token", form)
    }

    /// The app itself speaks: a confidential client proves itself by its secret, a public one only names itself.
    pub fn app_request(&self, path: &str, form: &[(&str, &str)]) -> RequestBuilder {
        let request = self.client.post(self.address(path));
        let mut form = form.to_vec();
        match (&self.client_id, &self.client_secret) {
            (Some(id), Some(secret)) => request.basic_auth(id, Some(secret.expose_secret())).form(&form),
            (Some(id), None) => {
                form.push(("client_id", id));
                request.form(&form)
            }
            (None, _) => request.form(&form),
        }
    }

    /// Sends and reads; every answer that is not 2xx is an error with its meaning. The request carries its deadline.
    pub async fn send(
        &self,
        what: &'static str,
        effect: Effect,
        request: RequestBuilder,
        witness: &dyn Witness,
    ) -> Result<Answer, ConnectorError> {
        let started = Instant::now();
        let seen = |status, trace_id, window| Exchange {
            what,
            status,
            duration_ms: started.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            trace_id,
            window,
        };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                witness.saw(seen(None, None, None));
                return Err(unanswered(effect, error.without_url()));
            }
        };
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        self.hear_time(&headers);
        let body = outbound::body(response, ANSWER_LIMIT_BYTES).await;
        witness.saw(seen(Some(status), trace_id(&headers), rate_window(&headers)));
        if (200..300).contains(&status) {
            let body = body.map_err(|error| broken(effect, error))?;
            return Ok(Answer { status, body });
        }
        // The status alone says that it was refused; a body that broke off only costs the explanation.
        let body = body.unwrap_or_default();
        Err(answers::meaning(effect, status, &headers, &body))
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.base.as_str().trim_end_matches('/'))
    }
}

fn unanswered(effect: Effect, error: reqwest::Error) -> ConnectorError {
    // Without a connection nothing was sent: the one failure that certainly created nothing.
    if error.is_connect() || error.is_builder() {
        return ConnectorError::Unreachable { platform: Platform::X, source: error };
    }
    broken(effect, error)
}

fn broken(effect: Effect, source: impl std::error::Error + Send + Sync + 'static) -> ConnectorError {
    let (platform, source) = (Platform::X, Box::new(source));
    match effect {
        Effect::Creates | Effect::Trades => ConnectorError::AnswerLost { platform, source },
        Effect::Repeatable | Effect::Appends | Effect::Revokes => ConnectorError::Interrupted { platform, source },
    }
}

fn trace_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-transaction-id")?.to_str().ok()?;
    (id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_graphic())).then(|| id.to_owned())
}

/// `None` where a header is missing, which happens: a default then applies.
fn rate_window(headers: &HeaderMap) -> Option<RateWindow> {
    Some(RateWindow {
        limit: number(headers, "x-rate-limit-limit")?.try_into().ok()?,
        remaining: number(headers, "x-rate-limit-remaining")?.try_into().ok()?,
        reset_at: instant(headers, "x-rate-limit-reset")?,
    })
}

pub fn number(headers: &HeaderMap, name: &str) -> Option<i64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

pub fn instant(headers: &HeaderMap, name: &str) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(number(headers, name)?, 0)
}
