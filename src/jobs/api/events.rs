//! A job's events as they happen. What was missed is replayed from the job's stream in Redis; the state itself always
//! comes from the ledger, so a stream ends properly with Redis or without.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, stream};
use poem::web::sse;
use poem_openapi::{Object, payload::EventStream, types::ToJSON};
use serde_json::Value;

use super::{LOOK_ANYWAY, view, view_of};
use crate::{
    http::{App, Problem},
    ids::{JobId, TenantId},
    jobs::belt::Event,
};

/// Proxies close what is silent for long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A stream ends after so long, and the client comes back with `Last-Event-ID`: so a token that has expired does not
/// listen for ever, and a deploy is not the first time a client has to reconnect.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// While events pour in, the ledger is looked at this often.
const LOOK_BETWEEN: Duration = Duration::from_millis(250);
/// The id of the last event; a client that comes back with it has seen everything.
const END: &str = "end";

/// One event of a job.
#[derive(Debug, Clone, Object)]
pub struct JobEvent {
    /// Send it as `Last-Event-ID` to go on from here; empty for a state that is repeated anyway.
    pub id: String,
    /// `state`, `progress`, or what the kind of job sends.
    pub event: String,
    pub data: Value,
}

pub type JobEvents = Pin<Box<dyn Stream<Item = JobEvent> + Send>>;

/// Where to go on: after an event's id, or from the start. `Ok(None)`: the client has seen the end.
pub fn resume_point(last: Option<&str>) -> Result<Option<String>, Problem> {
    match last.filter(|last| !last.is_empty()) {
        None => Ok(Some("0".into())),
        Some(END) => Ok(None),
        Some(last) => {
            let is_number =
                |part: &str| !part.is_empty() && part.len() <= 20 && part.bytes().all(|b| b.is_ascii_digit());
            match last.split_once('-') {
                Some((time, count)) if is_number(time) && is_number(count) => Ok(Some(last.to_owned())),
                _ => Err(Problem::bad_parameter(
                    "Last-Event-ID",
                    "is not the id of an event of this job",
                    "Send the last event's id unchanged, or leave it out to start from the beginning",
                )),
            }
        }
    }
}

pub fn stream(app: Arc<App>, tenant: TenantId, job: JobId, after: String) -> EventStream<JobEvents> {
    let following = Following {
        app,
        tenant,
        job,
        after,
        ready: VecDeque::new(),
        shown: None,
        looked: None,
        until: Instant::now() + LONGEST,
        over: false,
    };
    let events = stream::unfold(following, |mut following| async move {
        let event = following.next().await?;
        Some((event, following))
    });
    let events: JobEvents = Box::pin(events);
    EventStream::new(events).keep_alive(KEEP_ALIVE).to_event(|event| {
        let sent = sse::Event::message(event.data.to_json_string()).event_type(event.event);
        if event.id.is_empty() { sent } else { sent.id(event.id) }
    })
}

struct Following {
    app: Arc<App>,
    tenant: TenantId,
    job: JobId,
    /// The last event's id.
    after: String,
    ready: VecDeque<JobEvent>,
    /// The state the client was shown last.
    shown: Option<String>,
    looked: Option<Instant>,
    until: Instant,
    over: bool,
}

impl Following {
    async fn next(&mut self) -> Option<JobEvent> {
        let follower = self.app.engine.follow(self.job);
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over || Instant::now() >= self.until || self.app.stop.is_cancelled() {
                return None;
            }
            let mut news = std::pin::pin!(follower.news());
            news.as_mut().enable();
            self.gather().await;
            if self.is_time_to_look() && self.look().await.is_err() {
                // The database is away: the client comes back and is told so by a 503.
                self.over = true;
            }
            if self.ready.is_empty() && !self.over {
                tokio::select! {
                    _ = tokio::time::timeout(LOOK_ANYWAY, news) => {}
                    () = self.app.stop.cancelled() => {}
                }
            }
        }
    }

    /// What the job has sent since.
    async fn gather(&mut self) {
        // Without Redis there are no such events; the state below does not need them.
        let Ok(events) = self.app.engine.events(self.job, &self.after).await else { return };
        for Event { id, name, data } in events {
            self.after.clone_from(&id);
            self.ready.push_back(JobEvent { id, event: name, data });
        }
    }

    fn is_time_to_look(&self) -> bool {
        self.ready.is_empty() || self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_BETWEEN)
    }

    /// How the ledger sees it, when that is news.
    async fn look(&mut self) -> Result<(), Problem> {
        self.looked = Some(Instant::now());
        let Some(row) = self.app.engine.job(Some(self.tenant), self.job).await? else {
            self.over = true;
            return Ok(());
        };
        let tag = view::etag(&row);
        if self.shown.as_ref() == Some(&tag) {
            return Ok(());
        }
        let data = view_of(&self.app, &row).await?.to_json().unwrap_or_default();
        self.shown = Some(tag);
        let mut id = String::new();
        if row.state.is_final() {
            // What it sent before it ended comes before its end.
            self.gather().await;
            (id, self.over) = (END.to_owned(), true);
        }
        self.ready.push_back(JobEvent { id, event: "state".into(), data });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_goes_on_where_it_was() {
        assert_eq!(resume_point(None).unwrap().as_deref(), Some("0"));
        assert_eq!(resume_point(Some("1700000000000-3")).unwrap().as_deref(), Some("1700000000000-3"));
        assert_eq!(resume_point(Some("end")).unwrap(), None);
    }

    #[test]
    fn an_id_that_is_none_is_refused_by_name() {
        for id in ["-", "1", "1-", "a-b", "1-1 *", "+", "1-111111111111111111111"] {
            let problem = resume_point(Some(id)).unwrap_err();
            assert_eq!(problem.document().field.as_deref(), Some("Last-Event-ID"), "{id}");
        }
    }
}
