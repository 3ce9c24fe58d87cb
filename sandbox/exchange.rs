//! One request as a twin sees it, and the answer it gives: plain values, so that every twin is an ordinary
//! function that can be tested without a socket.

use bytes::Bytes;
use poem::http::{HeaderMap, Method};
use serde_json::{Value, json};

/// A request, read to its end.
pub struct Call {
    pub method: Method,
    /// The path below the twin's prefix, e.g. `/2/tweets`.
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The parts of a `multipart/form-data` body; `None` when the body is something else or broken.
    pub parts: Option<Vec<Part>>,
    /// Where the sandbox itself is reached, e.g. `http://127.0.0.1:4000`; links in pages are built from it.
    pub origin: String,
}

/// One field of a multipart form.
pub struct Part {
    pub name: String,
    pub bytes: Bytes,
}

impl Call {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The media type alone, lower case, without parameters.
    pub fn content_type(&self) -> String {
        let value = self.header("content-type").unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// The body as form fields; empty when it is not a form.
    pub fn form(&self) -> Vec<(String, String)> {
        url::form_urlencoded::parse(&self.body).into_owned().collect()
    }

    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.as_ref()?.iter().find(|part| part.name == name)
    }

    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// What a twin answers.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub payload: Payload,
    /// The id of what this call created or removed; for the log.
    pub committed: Option<String>,
    /// How long the caller waits for it.
    pub wait_ms: u64,
}

#[derive(Clone, Debug)]
pub enum Payload {
    Empty,
    Json(Value),
    Text { content_type: String, text: String },
    Bytes { content_type: String, bytes: Bytes },
    Events(Events),
}

/// A server-sent event stream, written piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Events {
    pub pieces: Vec<String>,
    /// How long the first piece is held back, and each one after it.
    pub first_delay_ms: u64,
    pub delay_ms: u64,
    /// End by cutting the connection instead of closing the stream properly.
    pub cut: bool,
}

impl Answer {
    pub fn new(status: u16, payload: Payload) -> Self {
        Self { status, headers: Vec::new(), payload, committed: None, wait_ms: 0 }
    }

    pub fn json(status: u16, body: Value) -> Self {
        Self::new(status, Payload::Json(body))
    }

    pub fn ok(body: Value) -> Self {
        Self::json(200, body)
    }

    pub fn empty(status: u16) -> Self {
        Self::new(status, Payload::Empty)
    }

    pub fn html(status: u16, text: String) -> Self {
        let content_type = String::from("text/html; charset=utf-8");
        Self::new(status, Payload::Text { content_type, text })
    }

    pub fn redirect(to: &str) -> Self {
        Self::empty(302).with_header("location", to)
    }

    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((String::from(name), value.into()));
        self
    }

    #[must_use]
    pub fn committing(mut self, id: impl Into<String>) -> Self {
        self.committed = Some(id.into());
        self
    }

    /// The same answer with its JSON cut off in the middle, as a proxy that dies half way leaves it.
    #[must_use]
    pub fn malformed(mut self) -> Self {
        let text = match &self.payload {
            Payload::Json(body) => body.to_string(),
            Payload::Empty | Payload::Text { .. } | Payload::Bytes { .. } | Payload::Events(_) => {
                json!({"data": {"id": "0"}}).to_string()
            }
        };
        let half = text.chars().take(text.chars().count() / 2).collect();
        self.payload = Payload::Text { content_type: String::from("application/json"), text: half };
        self
    }
}

/// One thing a service can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The name faults, limits and the log use.
    pub name: &'static str,
    pub method: &'static str,
    /// A path; `:name` stands for one segment.
    pub route: &'static str,
}

impl Operation {
    pub const fn new(name: &'static str, method: &'static str, route: &'static str) -> Self {
        Self { name, method, route }
    }

    /// The values of the `:name` segments in order, when the path is this operation's.
    pub fn captures<'a>(&self, path: &'a str) -> Option<Vec<&'a str>> {
        let mut values = Vec::new();
        let mut given = path.split('/');
        for wanted in self.route.split('/') {
            let segment = given.next()?;
            if wanted.starts_with(':') {
                if segment.is_empty() {
                    return None;
                }
                values.push(segment);
            } else if wanted != segment {
                return None;
            }
        }
        given.next().is_none().then_some(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_matches_whole_segments_only() {
        let append = Operation::new("media.append", "POST", "/2/media/upload/:id/append");
        assert_eq!(append.captures("/2/media/upload/17/append"), Some(vec!["17"]));
        assert_eq!(append.captures("/2/media/upload//append"), None);
        assert_eq!(append.captures("/2/media/upload/17/append/more"), None);
        assert_eq!(append.captures("/2/media/upload/17"), None);
    }

    #[test]
    fn a_malformed_answer_is_not_json_any_more() {
        let answer = Answer::ok(json!({"data": {"id": "17", "text": "hello"}})).malformed();
        let Payload::Text { text, .. } = answer.payload else { panic!("text") };
        assert!(serde_json::from_str::<Value>(&text).is_err(), "{text}");
    }
}
