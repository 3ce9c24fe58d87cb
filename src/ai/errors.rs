//! What a provider's refusal means. Each answer gets one class, and the class alone decides whether to ask again,
//! ask another provider, or stop; and for how long to leave a provider alone.

use std::time::Duration;

use reqwest::header::HeaderMap;
use serde::Serialize;
use serde_json::Value;

use super::provider::ProviderName;

/// How much of a refusal's body is looked at and kept.
pub const KEPT_BODY_BYTES: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It may work in a moment: connection, time-out, 408, 409, 5xx, an error within a stream.
    Transient,
    /// Too fast for this provider just now.
    Throttled,
    /// The account's credit or spending limit is used up: an operator has to act.
    Exhausted,
    /// The key is wrong or blocked: an operator has to act.
    Credential,
    /// The configured model does not exist any more: an operator has to act.
    ModelGone,
    /// More than this model can read; another may read more.
    TooLong,
    /// The request itself is refused and would be everywhere.
    Caller,
    /// The provider will not write about this.
    Policy,
    /// Whoever asked has gone.
    Cancelled,
}

impl Class {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Exhausted => "exhausted",
            Self::Credential => "credential",
            Self::ModelGone => "model_gone",
            Self::TooLong => "too_long",
            Self::Caller => "caller",
            Self::Policy => "policy",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the same provider may be asked again in this job.
    pub const fn retries_same(self) -> bool {
        matches!(self, Self::Transient | Self::Throttled)
    }

    /// Whether the next provider is asked. [`Self::TooLong`] only where its model reads more.
    pub const fn asks_next(self) -> bool {
        matches!(
            self,
            Self::Transient | Self::Throttled | Self::Exhausted | Self::Credential | Self::ModelGone | Self::TooLong
        )
    }

    pub const fn cool_down(self) -> CoolDown {
        match self {
            Self::Transient => CoolDown::ByErrorRate,
            Self::Throttled => CoolDown::UntilTold,
            Self::Exhausted | Self::Credential => CoolDown::Fixed(Duration::from_secs(30 * 60)),
            Self::ModelGone => CoolDown::Fixed(Duration::from_secs(60 * 60)),
            Self::TooLong | Self::Caller | Self::Policy | Self::Cancelled => CoolDown::None,
        }
    }

    /// Whether nobody but an operator can mend it.
    pub const fn needs_operator(self) -> bool {
        matches!(self, Self::Exhausted | Self::Credential | Self::ModelGone)
    }
}

/// For how long a provider is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoolDown {
    None,
    /// Once too many of its recent answers were failures.
    ByErrorRate,
    /// Until the moment the provider named.
    UntilTold,
    Fixed(Duration),
}

/// A call that brought no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{provider} did not answer ({}): {message}", class.as_str())]
pub struct CallError {
    pub provider: ProviderName,
    pub class: Class,
    pub status: Option<u16>,
    /// The provider's own words, cut short; never a prompt, never a key.
    pub message: String,
    pub retry_after: Option<Duration>,
    /// The provider's own word on trying again, which overrides the class.
    pub should_retry: Option<bool>,
    pub request_id: Option<String>,
    /// What had been written when it broke off: a provider bills for it.
    pub partial: String,
    /// The provider was never reached, so that it cannot bill.
    pub unsent: bool,
}

impl CallError {
    pub fn new(provider: ProviderName, class: Class, message: impl Into<String>) -> Self {
        Self {
            provider,
            class,
            status: None,
            message: message.into(),
            retry_after: None,
            should_retry: None,
            request_id: None,
            partial: String::new(),
            unsent: false,
        }
    }

    pub fn may_retry_same(&self) -> bool {
        self.class.retries_same() && self.should_retry.unwrap_or(true)
    }
}

/// A refusal as it came over the wire, in whatever envelope.
#[derive(Debug, Clone, Default)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub kind: String,
    pub message: String,
    pub retry_after: Option<Duration>,
    pub should_retry: Option<bool>,
    pub request_id: Option<String>,
}

impl Refusal {
    /// `body` may be JSON of any shape, HTML of a proxy, or nothing.
    pub fn read(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let mut refusal = Self {
            status,
            retry_after: retry_after(&header),
            should_retry: header("x-should-retry").and_then(|text| text.parse().ok()),
            request_id: header("x-request-id").map(|id| id.chars().take(128).collect()),
            ..Self::default()
        };
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => refusal.read_json(&value),
            Err(_) => {
                let text = String::from_utf8_lossy(&body[..body.len().min(KEPT_BODY_BYTES)]);
                refusal.message = if text.trim_start().starts_with('<') {
                    "an HTML page instead of an answer, probably of a proxy on the way".to_owned()
                } else {
                    shown(&text)
                };
            }
        }
        if refusal.message.is_empty() {
            refusal.message = format!("status {status} without a word");
        }
        refusal
    }

    /// The error object within a stream, or a body: `{"error": {...}}`, or flat `{"code", "error"}`.
    pub fn read_json(&mut self, value: &Value) {
        let text = |value: &Value| match value {
            Value::String(text) => shown(text),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        match &value["error"] {
            Value::Object(error) => {
                let field = |name: &str| error.get(name).map(text).unwrap_or_default();
                self.message = field("message");
                self.code = field("code");
                self.kind =
                    [field("type"), field("error_type")].into_iter().find(|t| !t.is_empty()).unwrap_or_default();
            }
            Value::String(error) => {
                self.message = shown(error);
                self.code = text(&value["code"]);
            }
            _ => self.message = ["message", "detail"].iter().map(|name| text(&value[*name])).collect(),
        }
    }

    /// Whether code, kind or message contains one of `signs` (lower case).
    pub fn says(&self, signs: &[&str]) -> bool {
        let said = format!("{} {} {}", self.code, self.kind, self.message).to_lowercase();
        signs.iter().any(|sign| said.contains(sign))
    }

    pub fn says_exhausted(&self) -> bool {
        self.status == 402
            || self.says(&[
                "insufficient_quota",
                "spending-limit",
                "spending limit",
                "available credits",
                "credit limit",
            ])
    }

    pub fn says_too_long(&self) -> bool {
        self.says(&["context_length_exceeded", "context length", "maximum prompt length", "context window"])
    }

    pub fn says_policy(&self) -> bool {
        self.says(&["content_filter", "content_policy", "content policy", "usage policy", "usage guidelines", "safety"])
    }

    /// What the three providers have in common; each provider looks at its own signs first.
    pub fn common_class(&self) -> Class {
        match self.status {
            _ if self.says_exhausted() => Class::Exhausted,
            401 => Class::Credential,
            404 => Class::ModelGone,
            408 | 409 | 500..=599 => Class::Transient,
            429 => Class::Throttled,
            403 if self.says_policy() => Class::Policy,
            403 => Class::Credential,
            400..=499 if self.says_too_long() => Class::TooLong,
            400..=499 if self.says(&["content_filter", "content_policy"]) => Class::Policy,
            400..=499 => Class::Caller,
            // A redirect, or something that is no answer of this service at all.
            _ => Class::Transient,
        }
    }

    pub fn into_error(self, provider: ProviderName, class: Class) -> CallError {
        CallError {
            provider,
            class,
            status: Some(self.status),
            message: self.message,
            retry_after: self.retry_after,
            should_retry: self.should_retry,
            request_id: self.request_id,
            partial: String::new(),
            unsent: false,
        }
    }
}

/// A provider's words, short enough for a timeline and without control characters or what looks like a key.
fn shown(text: &str) -> String {
    let words = text.split_whitespace().map(|word| {
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        if ["sk-", "xai-", "xa*"].iter().any(|prefix| bare.starts_with(prefix)) || bare.contains("***") {
            "[key]"
        } else {
            word
        }
    });
    let text: String = words.collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).collect();
    text.chars().take(400).collect()
}

/// How long the provider asks to wait: `retry-after-ms`, `retry-after` (seconds or a date), or a reset in a rate
/// header of requests per second.
fn retry_after<'a>(header: &impl Fn(&str) -> Option<&'a str>) -> Option<Duration> {
    let seconds = |text: &str| text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    if let Some(ms) = header("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    if let Some(text) = header("retry-after") {
        return seconds(text).or_else(|| {
            let date = chrono::DateTime::parse_from_rfc2822(text).ok()?;
            (date.to_utc() - chrono::Utc::now()).to_std().ok()
        });
    }
    header("x-ratelimit-reset").and_then(seconds).filter(|wait| *wait <= Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn every_envelope_is_read() {
        let none = HeaderMap::new();
        let nested = Refusal::read(400, &none, br#"{"error":{"message":"m","type":"t","code":"c"}}"#);
        assert_eq!((&*nested.message, &*nested.kind, &*nested.code), ("m", "t", "c"));
        let flat = Refusal::read(400, &none, br#"{"code":"c","error":"m"}"#);
        assert_eq!((&*flat.message, &*flat.code), ("m", "c"));
        let html = Refusal::read(502, &none, b"<html><body>Bad gateway</body></html>");
        assert!(html.message.contains("HTML page"));
        assert!(Refusal::read(503, &none, b"").message.contains("503"));
        assert!(Refusal::read(500, &none, &[0xff; 5000]).message.len() <= 1200);
    }

    #[test]
    fn waiting_times_are_read_in_each_form() {
        let wait = |pairs: &[(&'static str, &str)]| Refusal::read(429, &headers(pairs), b"").retry_after;
        assert_eq!(wait(&[("retry-after-ms", "250"), ("retry-after", "9")]), Some(Duration::from_millis(250)));
        assert_eq!(wait(&[("retry-after", "9")]), Some(Duration::from_secs(9)));
        let soon = (chrono::Utc::now() + chrono::Duration::seconds(60)).to_rfc2822();
        let by_date = wait(&[("retry-after", &soon)]).unwrap();
        assert!(by_date > Duration::from_secs(50) && by_date <= Duration::from_secs(60));
        assert_eq!(wait(&[("x-ratelimit-reset", "2")]), Some(Duration::from_secs(2)));
        assert_eq!(wait(&[("retry-after", "-1")]), None);
        assert_eq!(wait(&[("retry-after", "NaN")]), None);
    }

    #[test]
    fn a_key_that_a_provider_repeats_is_not_kept() {
        let body = br#"{"code":"c","error":"Incorrect API key provided: xa***yz. See sk-abc123."}"#;
        let refusal = Refusal::read(400, &HeaderMap::new(), body);
        assert!(!refusal.message.contains("yz") && !refusal.message.contains("abc123"), "{}", refusal.message);
        assert!(refusal.says(&["incorrect api key"]));
    }
}
