//! The API as a frontend uses it: JSON in and out, problem documents as errors, jobs followed by their events.

use std::{path::Path, time::Duration};

use futures::StreamExt;
use reqwest::{Body, Method, Response, header, multipart};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

/// Longest a call may take that uploads nothing.
const CALL_WITHIN: Duration = Duration::from_secs(60);
const UPLOAD_WITHIN: Duration = Duration::from_secs(30 * 60);
/// A stream of events is never silent for longer.
const SILENT_FOR: Duration = Duration::from_secs(40);
const JOB_WITHIN: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    api: String,
    token: String,
}

/// A call that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{call} could not be sent")]
    Transport { call: String, source: reqwest::Error },
    #[error("{call} was refused ({status}): {said}")]
    Refused { call: String, status: u16, said: String },
    #[error("{call} answered without \"{field}\"")]
    Odd { call: String, field: &'static str },
    #[error("the file could not be read")]
    File(#[source] std::io::Error),
    #[error("the job {0} went on for longer than {JOB_WITHIN:?}")]
    Endless(String),
}

/// A job as the API shows it.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct JobStatus {
    pub id: String,
    pub kind: String,
    pub queue: String,
    pub state: String,
    pub reason: Option<String>,
    pub attempt: u16,
    pub waited_ms: u64,
    pub ran_ms: Option<u64>,
    pub result: Option<Value>,
    pub error: Option<JobError>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct JobError {
    pub code: String,
    pub message: String,
}

/// One event of a job: its name and its data.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

impl JobStatus {
    pub fn is_final(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "failed" | "cancelled")
    }

    pub fn succeeded(&self) -> bool {
        self.state == "succeeded"
    }
}

impl Client {
    pub fn new(api: &str, token: &str) -> Self {
        Self { http: crate::local::http_client(), api: api.to_owned(), token: token.to_owned() }
    }

    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        let request = self.request(Method::GET, path).timeout(CALL_WITHIN);
        json(&format!("GET {path}"), request).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let request = self.request(Method::POST, path).timeout(CALL_WITHIN).json(body);
        json(&format!("POST {path}"), request).await
    }

    /// Sends a file as it is read; `sent` hears how much of it is out, 0 to 1.
    pub async fn upload(&self, path: &Path, sent: impl Fn(f64) + Send + Sync + 'static) -> Result<Value, ClientError> {
        let file = tokio::fs::File::open(path).await.map_err(ClientError::File)?;
        let size_bytes = file.metadata().await.map_err(ClientError::File)?.len();
        let mut out: u64 = 0;
        let chunks = ReaderStream::with_capacity(file, 256 << 10).inspect(move |chunk| {
            out += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
            sent(out as f64 / size_bytes.max(1) as f64);
        });
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let part = multipart::Part::stream_with_length(Body::wrap_stream(chunks), size_bytes).file_name(name);
        let request = self.request(Method::POST, "/api/v1/media").timeout(UPLOAD_WITHIN);
        json("POST /api/v1/media", request.multipart(multipart::Form::new().part("file", part))).await
    }

    /// Follows a job to its end. `hear` gets every event on the way.
    pub async fn follow(&self, job: &str, mut hear: impl FnMut(&Event)) -> Result<JobStatus, ClientError> {
        let following = async {
            let mut last_id = None;
            loop {
                // A stream that broke is taken up again where it ended; the job itself is asked in between.
                self.hear(job, &mut last_id, &mut hear).await?;
                let status = self.get(&format!("/api/v1/jobs/{job}?wait=5")).await?;
                let status: JobStatus = serde_json::from_value(status)
                    .map_err(|_| ClientError::Odd { call: format!("GET /api/v1/jobs/{job}"), field: "state" })?;
                if status.is_final() {
                    return Ok(status);
                }
            }
        };
        let outcome = tokio::time::timeout(JOB_WITHIN, following).await;
        outcome.unwrap_or_else(|_elapsed| Err(ClientError::Endless(job.to_owned())))
    }

    async fn hear(
        &self,
        job: &str,
        last_id: &mut Option<String>,
        hear: &mut impl FnMut(&Event),
    ) -> Result<(), ClientError> {
        let path = format!("/api/v1/jobs/{job}/events");
        let mut request = self.request(Method::GET, &path).header(header::ACCEPT, "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id.as_str());
        }
        let mut chunks = checked(&format!("GET {path}"), request).await?.bytes_stream();
        let mut lines = EventLines::default();
        // Its end, an error and a silence are all the same here: the job is asked next.
        while let Ok(Some(Ok(chunk))) = tokio::time::timeout(SILENT_FOR, chunks.next()).await {
            lines.take(&chunk, |id, event| {
                if !id.is_empty() {
                    *last_id = Some(id.to_owned());
                }
                hear(&event);
            });
        }
        Ok(())
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method.clone(), format!("{}{path}", self.api)).bearer_auth(&self.token);
        // A write may be sent again without doing anything twice.
        if method == Method::POST { request.header("Idempotency-Key", Uuid::new_v4().to_string()) } else { request }
    }
}

/// A field that an answer must have.
pub fn text_of(call: &str, answer: &Value, field: &'static str) -> Result<String, ClientError> {
    let found = answer[field].as_str().map(str::to_owned);
    found.ok_or_else(|| ClientError::Odd { call: call.to_owned(), field })
}

pub async fn json(call: &str, request: reqwest::RequestBuilder) -> Result<Value, ClientError> {
    let answer = checked(call, request).await?;
    answer.json().await.map_err(|source| ClientError::Transport { call: call.to_owned(), source })
}

async fn checked(call: &str, request: reqwest::RequestBuilder) -> Result<Response, ClientError> {
    let call = call.to_owned();
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(source) => return Err(ClientError::Transport { call, source }),
    };
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let said = answer.text().await.unwrap_or_default();
    Err(ClientError::Refused { call, status: status.as_u16(), said: problem(&said) })
}

/// What a problem document says to people.
fn problem(body: &str) -> String {
    let Ok(document) = serde_json::from_str::<Value>(body) else { return body.chars().take(300).collect() };
    let mut said = document["detail"].as_str().or(document["title"].as_str()).unwrap_or(body).to_owned();
    for error in document["errors"].as_array().into_iter().flatten() {
        said.push_str(&format!("; {error}"));
    }
    said
}

/// Puts server-sent events together from whatever pieces arrive.
#[derive(Debug, Default)]
struct EventLines {
    rest: Vec<u8>,
    id: String,
    name: String,
    data: String,
}

impl EventLines {
    fn take(&mut self, chunk: &[u8], mut event: impl FnMut(&str, Event)) {
        self.rest.extend_from_slice(chunk);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value))) {
                None if line.is_empty() && !self.data.is_empty() => {
                    let data = serde_json::from_str(&self.data).unwrap_or(Value::Null);
                    event(&self.id, Event { name: std::mem::take(&mut self.name), data });
                    self.data.clear();
                }
                Some(("id", value)) => value.clone_into(&mut self.id),
                Some(("event", value)) => value.clone_into(&mut self.name),
                Some(("data", value)) => self.data.push_str(value),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_put_together_from_any_pieces() {
        let text =
            ": hello\n\nid: 1-0\nevent: progress\ndata: {\"fraction\":0.5}\n\nevent: state\ndata: {}\nid: end\n\n";
        for size in [1, 7, text.len()] {
            let (mut lines, mut heard) = (EventLines::default(), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                lines.take(chunk, |id, event| heard.push((id.to_owned(), event)));
            }
            let progress = Event { name: "progress".into(), data: json!({"fraction": 0.5}) };
            let state = Event { name: "state".into(), data: json!({}) };
            assert_eq!(heard, [("1-0".to_owned(), progress), ("end".to_owned(), state)], "in pieces of {size}");
        }
    }

    #[test]
    fn a_problem_is_told_with_every_field() {
        let said = problem(r#"{"title":"Bad","detail":"Two things.","errors":[{"field":"text"}]}"#);
        assert_eq!(said, r#"Two things.; {"field":"text"}"#);
        assert_eq!(problem("<html>"), "<html>");
    }
}
