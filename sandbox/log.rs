//! What reached the sandbox: every request, in order of arrival, with how it ended.
//!
//! Tests count here. So an entry is written when the request arrives, before any fault, and completed later;
//! and nothing secret may enter it: no header, no query string, no body of an OAuth call.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use crate::clock;

const CAPACITY: usize = 200_000;
const BODY_CHARS: usize = 400;

#[derive(Default)]
pub struct Log(Mutex<Book>);

#[derive(Default)]
struct Book {
    entries: VecDeque<Entry>,
    /// The number of the first entry still kept.
    first: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub seq: u64,
    pub time_ms: u64,
    pub service: &'static str,
    pub operation: &'static str,
    pub method: String,
    pub path: String,
    pub account: Option<String>,
    /// `in_flight`, `answered` or `dropped` (ended without an answer).
    pub state: State,
    pub status: Option<u16>,
    /// The id of what the call created or removed, also when the answer was lost afterwards.
    pub committed: Option<String>,
    pub duration_ms: Option<u64>,
    /// The fault that had a hand in it.
    pub fault: Option<u64>,
    /// The caller hung up before its answer was ready.
    pub caller_gone: bool,
    pub body: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    InFlight,
    Answered,
    Dropped,
}

/// What is known of a request when it arrives.
pub struct Arrival {
    pub service: &'static str,
    pub operation: &'static str,
    pub method: String,
    pub path: String,
    pub account: Option<String>,
    pub body: Option<String>,
}

/// Which entries to show; every field narrows.
#[derive(Default)]
pub struct Filter {
    pub after_seq: Option<u64>,
    pub service: Option<String>,
    pub operation: Option<String>,
    pub account: Option<String>,
    pub status: Option<u16>,
    pub state: Option<String>,
}

impl Log {
    pub fn arrive(&self, arrival: Arrival) -> u64 {
        let mut book = self.lock();
        let seq = book.first + book.entries.len() as u64;
        book.entries.push_back(Entry {
            seq,
            time_ms: clock::now_ms(),
            service: arrival.service,
            operation: arrival.operation,
            method: arrival.method,
            path: arrival.path,
            account: arrival.account,
            state: State::InFlight,
            status: None,
            committed: None,
            duration_ms: None,
            fault: None,
            caller_gone: false,
            body: arrival.body.map(|body| trimmed(&body)),
        });
        if book.entries.len() > CAPACITY {
            book.entries.pop_front();
            book.first += 1;
        }
        seq
    }

    /// Changes an entry that is still kept.
    pub fn update(&self, seq: u64, change: impl FnOnce(&mut Entry)) {
        let mut book = self.lock();
        let Some(index) = seq.checked_sub(book.first).and_then(|index| usize::try_from(index).ok()) else {
            return;
        };
        if let Some(entry) = book.entries.get_mut(index) {
            change(entry);
        }
    }

    pub fn finish(&self, seq: u64, state: State, status: Option<u16>, committed: Option<String>) {
        self.update(seq, |entry| {
            entry.state = state;
            entry.status = status;
            if committed.is_some() {
                entry.committed = committed;
            }
            entry.duration_ms = Some(clock::now_ms().saturating_sub(entry.time_ms));
        });
    }

    /// The newest `limit` matching entries, oldest of them first.
    pub fn list(&self, filter: &Filter, limit: usize) -> Vec<Entry> {
        let book = self.lock();
        let mut found: Vec<Entry> =
            book.entries.iter().rev().filter(|e| filter.admits(e)).take(limit).cloned().collect();
        found.reverse();
        found
    }

    pub fn count(&self, filter: &Filter) -> usize {
        self.lock().entries.iter().filter(|entry| filter.admits(entry)).count()
    }

    pub fn clear(&self) {
        let mut book = self.lock();
        book.first += book.entries.len() as u64;
        book.entries.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filter {
    fn admits(&self, entry: &Entry) -> bool {
        let state = match entry.state {
            State::InFlight => "in_flight",
            State::Answered => "answered",
            State::Dropped => "dropped",
        };
        self.after_seq.is_none_or(|seq| entry.seq > seq)
            && self.service.as_deref().is_none_or(|service| entry.service == service)
            && self.operation.as_deref().is_none_or(|operation| entry.operation == operation)
            && self.account.as_ref().is_none_or(|account| entry.account.as_ref() == Some(account))
            && self.status.is_none_or(|status| entry.status == Some(status))
            && self.state.as_deref().is_none_or(|wanted| wanted == state)
    }
}

fn trimmed(body: &str) -> String {
    match body.char_indices().nth(BODY_CHARS) {
        Some((end, _)) => format!("{}...", &body[..end]),
        None => String::from(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(operation: &'static str) -> Arrival {
        Arrival {
            service: "x",
            operation,
            method: String::from("POST"),
            path: String::from("/2/tweets"),
            account: Some(String::from("7")),
            body: Some("é".repeat(BODY_CHARS + 1)),
        }
    }

    #[test]
    fn an_entry_exists_from_arrival_and_is_completed_later() {
        let log = Log::default();
        let seq = log.arrive(arrival("tweets.create"));
        let in_flight = Filter { state: Some(String::from("in_flight")), ..Filter::default() };
        assert_eq!(log.count(&in_flight), 1);
        log.finish(seq, State::Dropped, None, Some(String::from("17")));
        assert_eq!(log.count(&in_flight), 0);
        let entry = log.list(&Filter::default(), 10).remove(0);
        assert_eq!((entry.state, entry.status, entry.committed.as_deref()), (State::Dropped, None, Some("17")));
    }

    #[test]
    fn numbers_go_on_after_the_log_is_cleared() {
        let log = Log::default();
        let before = log.arrive(arrival("tweets.create"));
        log.clear();
        log.update(before, |entry| entry.caller_gone = true);
        assert!(log.arrive(arrival("tweets.create")) > before);
        assert_eq!(log.list(&Filter::default(), 10).len(), 1);
        assert!(!log.list(&Filter::default(), 10)[0].caller_gone);
    }

    #[test]
    fn a_long_body_is_cut_on_a_character() {
        let log = Log::default();
        log.arrive(arrival("tweets.create"));
        let body = log.list(&Filter::default(), 1).remove(0).body.expect("kept");
        assert_eq!(body.chars().count(), BODY_CHARS + 3);
    }
}
