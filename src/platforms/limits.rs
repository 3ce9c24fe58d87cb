//! A platform's limits as data: how often, how long, how soon visible.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// How many posts may be created in any stretch of `window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Stored with every grant: never rename.
    pub name: &'static str,
    pub scope: Scope,
    pub limit: u32,
    pub window: Duration,
    /// Whether the rate headers of a create speak of this budget.
    pub observed: bool,
}

/// Who shares a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Connection,
    /// All connections of this deployment's app at the platform.
    App,
}

/// What the platform itself said about its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateWindow {
    pub limit: u32,
    pub remaining: u32,
    pub reset_at: DateTime<Utc>,
}

/// What decides when a post that was not seen is certainly not there (P2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The whole creating request, from its first byte to the last of its answer.
    pub request: Duration,
    /// From the platform's acceptance until the post shows in its author's list.
    pub visibility: Duration,
    /// How long the sender may be stopped in the middle of it and go on afterwards: a worker's lease, at whose end the
    /// kernel ends a process that holds such a request.
    pub stall: Duration,
    /// When to look, counted from the intent; a last look follows at [`Timing::certain_after`].
    pub looks: &'static [Duration],
}

impl Timing {
    /// Counted from the intent: a look after this that sees nothing proves that nothing is there.
    pub fn certain_after(&self) -> Duration {
        self.request + self.visibility + self.stall
    }

    /// How long after the intent the look numbered `look` (from 0) is due.
    pub fn look_after(&self, look: usize) -> Duration {
        let certain = self.certain_after();
        match self.looks.get(look) {
            Some(&after) => after.min(certain),
            // Past the schedule only a look that did not count leads here: go on at a calm pace.
            None => {
                certain + Duration::from_secs(30) * u32::try_from(look - self.looks.len()).unwrap_or(u32::MAX).min(20)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        request: Duration::from_secs(20),
        visibility: Duration::from_secs(60),
        stall: Duration::from_secs(8),
        looks: &[Duration::from_secs(5), Duration::from_secs(60)],
    };

    #[test]
    fn the_last_look_comes_after_the_request_and_the_visibility_delay() {
        let looks: Vec<_> = (0..4).map(|look| TIMING.look_after(look).as_secs()).collect();
        assert_eq!(looks, [5, 60, 88, 118]);
    }

    #[test]
    fn looks_are_never_later_than_certainty_needs() {
        let short = Timing {
            request: Duration::from_secs(2),
            visibility: Duration::from_secs(1),
            stall: Duration::ZERO,
            ..TIMING
        };
        assert_eq!(short.look_after(0).as_secs(), 3);
        assert_eq!(short.look_after(2).as_secs(), 3);
    }
}
