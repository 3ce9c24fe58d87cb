//! The lease guard for systems whose kernel has no timer that kills, such as macOS: for development.
//!
//! A thread of this process looks at the clock and kills it. The promise is weaker: whoever stops the whole process
//! stops the thread as well, so between being continued and being killed the process may send for an instant.
//! Production is Linux.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::MARGIN;

/// How long the thread sleeps at most: the clock it sleeps by may stand still while the machine sleeps.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Kills this process at a time, unless it is moved or dropped before.
#[derive(Debug)]
pub struct Timer {
    end: Arc<End>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct End {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Unset,
    At(u64),
    Disarmed,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let end = Arc::<End>::default();
        let watched = Arc::clone(&end);
        let thread = thread::Builder::new().name("lease guard".into()).spawn(move || watched.watch())?;
        Ok(Self { end, thread: Some(thread) })
    }

    /// Moves the end to [`MARGIN`] before `lease_ends_ns`. One that is past already ends the process at once.
    pub(in crate::jobs) fn rearm(&self, lease_ends_ns: u64) -> io::Result<()> {
        self.end.set(State::At(lease_ends_ns.saturating_sub(u64::try_from(MARGIN.as_nanos()).unwrap_or(0))));
        Ok(())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.end.set(State::Disarmed);
        if let Some(thread) = self.thread.take() {
            // It ends as soon as it hears of it, and cannot panic.
            let _ended = thread.join();
        }
    }
}

impl End {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    fn watch(&self) {
        let mut state = self.lock();
        loop {
            match *state {
                State::Disarmed => return,
                // SAFETY: the call takes numbers only, and one of them is our own.
                State::At(end_ns) if boottime_ns() >= end_ns => unsafe {
                    libc::kill(libc::getpid(), libc::SIGKILL);
                },
                State::Unset | State::At(_) => {}
            }
            let waited = self.changed.wait_timeout(state, LOOK_EVERY);
            state = waited.expect("nothing panics while it holds this lock").0;
        }
    }
}

/// Nanoseconds of the monotonic clock, which on macOS also runs while the machine sleeps.
pub fn boottime_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid, and every Unix has this clock, so the call fills it.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(done, 0, "CLOCK_MONOTONIC is missing");
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_that_is_moved_and_dropped_in_time_kills_nobody() {
        let timer = Timer::new().unwrap();
        let soon = || boottime_ns() + u64::try_from((MARGIN + 2 * LOOK_EVERY).as_nanos()).unwrap();
        for _ in 0..5 {
            timer.rearm(soon()).unwrap();
            thread::sleep(LOOK_EVERY / 2);
        }
        drop(timer);
    }
}
