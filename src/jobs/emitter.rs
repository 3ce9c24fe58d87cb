//! Events of running jobs, gathered and sent on without ever holding a job up.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;
use tokio::sync::mpsc;
use tracing::debug;

use super::belt::Belt;
use crate::{ids::JobId, telemetry::chain};

/// Events that wait; when Redis is slower than the jobs, the rest is dropped.
const WAITING: usize = 4_096;
/// Most sent in one go.
const BATCH: usize = 256;
/// A person does not see a shorter wait, and the words of a language model that come within it become one event: a
/// job's stream keeps only so many.
const GATHER: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub struct Emitter(mpsc::Sender<Sent>);

#[derive(Debug, Clone, PartialEq)]
struct Sent {
    job: JobId,
    name: &'static str,
    data: Value,
}

impl Emitter {
    pub fn start(belt: Belt) -> Self {
        let (events, mut waiting) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let mut gathered = Vec::new();
            while waiting.recv_many(&mut gathered, WAITING).await > 0 {
                tokio::time::sleep(GATHER).await;
                while let Ok(event) = waiting.try_recv() {
                    gathered.push(event);
                }
                for batch in joined(std::mem::take(&mut gathered)).chunks(BATCH) {
                    let batch: Vec<_> =
                        batch.iter().map(|event| (event.job, event.name, event.data.to_string())).collect();
                    if let Err(error) = belt.emit(&batch).await {
                        debug!(error = %chain(&error), "events were dropped");
                    }
                }
            }
        });
        Self(events)
    }

    pub fn emit(&self, job: JobId, name: &'static str, data: Value) {
        // Full: followers miss an event, the job misses nothing.
        let _full = self.0.try_send(Sent { job, name, data });
    }
}

/// Pieces of one text that follow each other in a job become one piece; everything else stays, in its order.
fn joined(events: Vec<Sent>) -> Vec<Sent> {
    let mut joined: Vec<Sent> = Vec::with_capacity(events.len());
    let mut last: HashMap<JobId, usize> = HashMap::new();
    for event in events {
        if let Some(&place) = last.get(&event.job)
            && goes_on(&mut joined[place], &event)
        {
            continue;
        }
        last.insert(event.job, joined.len());
        joined.push(event);
    }
    joined
}

/// Appends the `text` of `next` where that is all in which the two differ.
fn goes_on(before: &mut Sent, next: &Sent) -> bool {
    let (Value::Object(data), Value::Object(more)) = (&mut before.data, &next.data) else { return false };
    let same = |key: &str, value: &Value| key == "text" || more.get(key) == Some(value);
    if before.name != next.name || data.len() != more.len() || !data.iter().all(|(key, value)| same(key, value)) {
        return false;
    }
    let (Some(Value::String(text)), Some(Value::String(piece))) = (data.get_mut("text"), more.get("text")) else {
        return false;
    };
    text.push_str(piece);
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_of_one_text_become_one_and_nothing_changes_its_place() {
        let (one, other) = (JobId::new(), JobId::new());
        let token =
            |job, field: &str, text: &str| Sent { job, name: "token", data: json!({ "field": field, "text": text }) };
        let progress = |fraction: f64| Sent { job: one, name: "progress", data: json!({ "fraction": fraction }) };
        let events = vec![
            token(one, "text", "Hel"),
            token(other, "text", "Other"),
            token(one, "text", "lo"),
            token(one, "title", "A "),
            progress(0.5),
            progress(0.6),
            token(one, "title", "title"),
            token(one, "title", "."),
        ];
        let expected = vec![
            token(one, "text", "Hello"),
            token(other, "text", "Other"),
            token(one, "title", "A "),
            progress(0.5),
            progress(0.6),
            token(one, "title", "title."),
        ];
        assert_eq!(joined(events), expected);
    }
}
