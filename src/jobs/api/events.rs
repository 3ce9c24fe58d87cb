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
    http::{App, Caller, Pass, Problem, Scope, followers::Follower},
    ids::JobId,
    jobs::{
        belt::{EVENTS_AT_ONCE, Event},
        ledger,
    },
};

/// Proxies close what is silent for long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A stream ends after so long, and the client comes back with `Last-Event-ID`: a deploy is not the first time that it
/// has to.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// While events pour in, the ledger is looked at this often.
const LOOK_BETWEEN: Duration = Duration::from_millis(250);
/// How the id of the last event begins. It goes on with the run that ended, so that a client that comes back with it
/// has seen everything unless the job was run again, and with the last event before it.
const END: &str = "end-";

/// Before every event.
const START: &str = "0";

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

/// Where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    After(String),
    /// The client has seen this run's end.
    Ended {
        run: i32,
        after: String,
    },
}

/// What a client's `Last-Event-ID` says.
pub fn resume_point(last: Option<&str>) -> Result<Resume, Problem> {
    let Some(last) = last.filter(|last| !last.is_empty()) else { return Ok(Resume::After(START.into())) };
    let resume = match last.strip_prefix(END) {
        None => place(last).map(Resume::After),
        Some(end) => end.split_once('-').and_then(|(run, after)| {
            let after = if after == START { Some(after.to_owned()) } else { place(after) };
            Some(Resume::Ended { run: run.parse().ok()?, after: after? })
        }),
    };
    resume.ok_or_else(|| {
        Problem::bad_parameter(
            "Last-Event-ID",
            "is not the id of an event of this job",
            "Send the last event's id unchanged, or leave it out to start from the beginning",
        )
    })
}

/// An id as Redis gives it: two numbers of 64 bits. Nothing can come after the greatest, which Redis refuses.
fn place(id: &str) -> Option<String> {
    let (time, count) = id.split_once('-')?;
    let number = |part: &str| part.parse::<u64>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
    let (time, count) = (number(time)?, number(count)?);
    ((time, count) != (u64::MAX, u64::MAX)).then(|| format!("{time}-{count}"))
}

/// # Errors
/// 429 when the caller follows as many jobs as one may.
pub fn stream(
    app: Arc<App>,
    caller: Caller,
    pass: Pass,
    job: JobId,
    after: String,
) -> Result<EventStream<JobEvents>, Problem> {
    let following = Following {
        _place: app.followers.join(caller.user)?,
        app,
        caller,
        pass,
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
    Ok(EventStream::new(events).keep_alive(KEEP_ALIVE).to_event(|event| {
        let sent = sse::Event::message(event.data.to_json_string()).event_type(event.event);
        if event.id.is_empty() { sent } else { sent.id(event.id) }
    }))
}

struct Following {
    app: Arc<App>,
    caller: Caller,
    pass: Pass,
    job: JobId,
    /// The last event's id.
    after: String,
    ready: VecDeque<JobEvent>,
    /// The state the client was shown last.
    shown: Option<String>,
    looked: Option<Instant>,
    until: Instant,
    over: bool,
    _place: Follower,
}

impl Following {
    async fn next(&mut self) -> Option<JobEvent> {
        let follower = self.app.engine.follow(self.job);
        loop {
            // Also before what is ready: the client comes back, and is told at the door what is wrong.
            if self.pass.check(&self.app.auth, Scope::Read).await.is_err() {
                return None;
            }
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

    /// What the job has sent since, to the last.
    async fn gather(&mut self) {
        loop {
            // Without Redis there are no such events; the state below does not need them.
            let Ok(events) = self.app.engine.events(self.job, &self.after).await else { return };
            let is_all = events.len() < EVENTS_AT_ONCE;
            for Event { id, name, data } in events {
                self.after.clone_from(&id);
                self.ready.push_back(JobEvent { id, event: name, data });
            }
            if is_all {
                return;
            }
        }
    }

    fn is_time_to_look(&self) -> bool {
        self.ready.is_empty() || self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_BETWEEN)
    }

    /// How the ledger sees it, when that is news.
    async fn look(&mut self) -> Result<(), Problem> {
        self.looked = Some(Instant::now());
        let mut db = self.app.db.of(&self.caller).await?;
        let Some(row) = ledger::get(&mut *db, Some(self.caller.tenant), self.job).await? else {
            self.over = true;
            return Ok(());
        };
        let tag = view::etag(&row);
        if self.shown.as_ref() == Some(&tag) {
            return Ok(());
        }
        let data = view_of(&self.app, db, &row).await?.to_json().unwrap_or_default();
        self.shown = Some(tag);
        let mut id = String::new();
        if row.state.is_final() {
            // What it sent before it ended comes before its end.
            self.gather().await;
            (id, self.over) = (format!("{END}{}-{}", row.run, self.after), true);
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
        let after = |id: &str| Resume::After(id.into());
        assert_eq!(resume_point(None).unwrap(), after("0"));
        assert_eq!(resume_point(Some("1700000000000-3")).unwrap(), after("1700000000000-3"));
        let ended = |after: &str| Resume::Ended { run: 2, after: after.into() };
        assert_eq!(resume_point(Some("end-2-1700000000000-3")).unwrap(), ended("1700000000000-3"));
        assert_eq!(resume_point(Some("end-2-0")).unwrap(), ended("0"));
    }

    #[test]
    fn an_id_that_is_none_is_refused_by_name() {
        let too_great = "18446744073709551616-1";
        let greatest = "18446744073709551615-18446744073709551615";
        for id in ["-", "1", "1-", "a-b", "1-1 *", "+", "+1-1", "end", "end-", "end-1", "end-x-0", too_great, greatest]
        {
            let problem = resume_point(Some(id)).unwrap_err();
            assert_eq!(problem.document().field.as_deref(), Some("Last-Event-ID"), "{id}");
        }
    }
}
