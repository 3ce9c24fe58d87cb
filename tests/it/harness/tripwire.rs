//! Finds the places where a program can die by letting it run: every request that it makes is one, on either side.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::watch;

/// On which side of a request its maker dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It never reached its server.
    Before,
    /// Its server has done it, and the answer never came.
    After,
}

/// Counts the requests on the wires that it hangs on and stops at the n-th, until the program that made it is killed.
#[derive(Debug)]
pub struct Tripwire {
    /// Leaves out what comes by the clock: it would make the count another one each time.
    counts: fn(&str) -> bool,
    state: Mutex<State>,
    sprung: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<String>,
    trap: Option<(usize, Side)>,
}

impl Tripwire {
    pub fn new(counts: fn(&str) -> bool) -> Self {
        Self { counts, state: Mutex::default(), sprung: watch::Sender::new(false) }
    }

    /// Counts from nothing. `None`: a run that is only watched.
    pub fn arm(&self, trap: Option<(usize, Side)>) {
        *self.lock() = State { seen: Vec::new(), trap };
        self.sprung.send_replace(false);
    }

    /// What was requested since [`Self::arm`], in order.
    pub fn seen(&self) -> Vec<String> {
        self.lock().seen.clone()
    }

    pub async fn sprung(&self) {
        self.sprung.subscribe().wait_for(|sprung| *sprung).await.expect("the wire is there");
    }

    /// Requests on their way; where the trap is among them, on which side it closes.
    pub(super) fn met(&self, requests: &[String]) -> Option<Side> {
        let mut state = self.lock();
        for request in requests.iter().filter(|request| (self.counts)(request)) {
            let here = state.seen.len();
            state.seen.push(request.clone());
            if let Some((_, side)) = state.trap.take_if(|(place, _)| *place == here) {
                drop(state);
                if side == Side::Before {
                    self.spring();
                }
                return Some(side);
            }
        }
        None
    }

    pub(super) fn spring(&self) {
        self.sprung.send_replace(true);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}
