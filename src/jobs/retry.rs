//! What an outcome means for the job. Pure: no clock, no server, chance comes as an argument.

use std::time::Duration;

use serde_json::Value;

use super::{
    hand::StopReason,
    job::{Backoff, Stop, Until, Why},
    ledger::{Again, End},
};

/// How a run ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    Returned(Result<Value, Stop>),
    TimedOut(Duration),
    Panicked(String),
    /// The arguments cannot be read by this version: another one wrote them (E15).
    Undecodable(String),
    /// Somebody else ended it.
    Stopped(StopReason),
}

/// What is known about the job when its run ends.
#[derive(Debug, Clone, Copy)]
pub struct Attempts {
    /// Failed ones before this run.
    pub failed: u16,
    pub max: u16,
}

/// Longer results belong into a table or a file.
const MAX_RESULT_BYTES: usize = 256 * 1024;
/// Longer messages are cut before they are stored (E9).
const MAX_MESSAGE_CHARS: usize = 2_000;
/// Until a worker that can read the arguments may be there.
const UNDECODABLE_REST: Duration = Duration::from_secs(30);
/// Nobody waits longer, whatever the other side asked for: a longer wait is a mistake in its answer.
const LONGEST_WAIT: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// A snooze shorter than this would be a busy loop.
const SHORTEST_SNOOZE: Duration = Duration::from_millis(50);

/// `chance` in `0.0..=1.0` spreads retries. `None`: there is nothing to write, the lease is lost.
pub fn decide(outcome: Outcome, attempts: Attempts, backoff: Backoff, chance: f64) -> Option<End> {
    Some(match outcome {
        Outcome::Returned(Ok(result)) => succeeded(result),
        Outcome::Returned(Err(stop)) => stopped_by_handler(stop, attempts, backoff, chance),
        Outcome::TimedOut(limit) => {
            let why = Why::new("timed_out", format!("it took longer than its limit of {} s", limit.as_secs_f64()));
            again_or_failed(None, why, "timeout", attempts, backoff, chance)
        }
        Outcome::Panicked(message) => {
            again_or_failed(None, Why::new("panicked", message), "panic", attempts, backoff, chance)
        }
        Outcome::Undecodable(message) => End::Again {
            at: Again::After(UNDECODABLE_REST),
            charged: false,
            class: "undecodable",
            why: clean(Why::new("undecodable", message)),
            wake: None,
        },
        Outcome::Stopped(StopReason::Cancelled) => {
            End::Cancelled { why: Why::new("cancelled", "cancelled on request while it ran") }
        }
        Outcome::Stopped(StopReason::Stopping) => {
            End::HandedBack { why: Why::new("worker_stopped", "its worker was stopped before it was done") }
        }
        Outcome::Stopped(StopReason::LeaseLost) => return None,
    })
}

/// Full jitter: anywhere between nothing and the exponential bound, so that a crowd spreads out.
pub fn wait_before(failed: u16, backoff: Backoff, chance: f64) -> Duration {
    let bound = backoff.base.saturating_mul(1_u32.checked_shl(u32::from(failed)).unwrap_or(u32::MAX)).min(backoff.cap);
    bound.mul_f64(chance.clamp(0.0, 1.0))
}

fn succeeded(result: Value) -> End {
    let length = result.to_string().len();
    if length > MAX_RESULT_BYTES {
        let message = format!("its result has {length} bytes, at most {MAX_RESULT_BYTES} are kept");
        return End::Failed { why: Why::new("result_too_large", message), class: "permanent" };
    }
    End::Succeeded { result }
}

fn stopped_by_handler(stop: Stop, attempts: Attempts, backoff: Backoff, chance: f64) -> End {
    match stop {
        Stop::Retry { after, why } => again_or_failed(after, why, "retry", attempts, backoff, chance),
        Stop::Snooze { until, why } => {
            let at = match until {
                Until::After(delay) => Again::After(delay.clamp(SHORTEST_SNOOZE, LONGEST_WAIT)),
                Until::At(time) => Again::At(time),
            };
            End::Again { at, charged: false, class: "snooze", why: clean(why), wake: None }
        }
        Stop::Park { wake, deadline, why } => parked(wake, deadline, why, "parked"),
        Stop::Reconnect { wake, deadline, why } => parked(wake, deadline, why, "reconnect"),
        Stop::Failed { why } => End::Failed { why: clean(why), class: "permanent" },
        Stop::Cancelled => End::Cancelled { why: Why::new("cancelled", "cancelled on request while it ran") },
    }
}

fn parked(wake: String, deadline: chrono::DateTime<chrono::Utc>, why: Why, class: &'static str) -> End {
    End::Again { at: Again::At(deadline), charged: false, class, why: clean(why), wake: Some(clean_text(&wake)) }
}

fn again_or_failed(
    after: Option<Duration>,
    why: Why,
    class: &'static str,
    attempts: Attempts,
    backoff: Backoff,
    chance: f64,
) -> End {
    let why = clean(why);
    if attempts.failed.saturating_add(1) >= attempts.max {
        return End::Failed { why, class };
    }
    let backoff = wait_before(attempts.failed, backoff, chance);
    // Never sooner than the other side asked for.
    let delay = after.map_or(backoff, |asked| asked.saturating_add(backoff.min(asked / 10))).min(LONGEST_WAIT);
    End::Again { at: Again::After(delay), charged: true, class, why, wake: None }
}

/// Text from outside may hold what Postgres refuses (NUL) or what a terminal obeys.
fn clean(why: Why) -> Why {
    Why { code: clean_text(&why.code), message: clean_text(&why.message) }
}

fn clean_text(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').take(MAX_MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcomes() -> impl Strategy<Value = Outcome> {
        let why = || ("[a-z_]{1,12}", any::<String>()).prop_map(|(code, message)| Why::new(code, message));
        prop_oneof![
            Just(Outcome::Returned(Ok(Value::Bool(true)))),
            (proptest::option::of(0_u64..100_000), why()).prop_map(|(after, why)| Outcome::Returned(Err(
                Stop::Retry { after: after.map(Duration::from_secs), why }
            ))),
            (0_u64..100_000, why()).prop_map(|(ms, why)| Outcome::Returned(Err(Stop::Snooze {
                until: Until::After(Duration::from_millis(ms)),
                why
            }))),
            why().prop_map(|why| Outcome::Returned(Err(Stop::Failed { why }))),
            any::<String>().prop_map(Outcome::Panicked),
            Just(Outcome::TimedOut(Duration::from_secs(1))),
            any::<String>().prop_map(Outcome::Undecodable),
            Just(Outcome::Stopped(StopReason::Cancelled)),
            Just(Outcome::Stopped(StopReason::Stopping)),
        ]
    }

    proptest! {
        #[test]
        fn attempts_never_pass_their_maximum(outcome in outcomes(), failed in 0_u16..20, more in 1_u16..10, chance in 0.0..=1.0) {
            let attempts = Attempts { failed, max: failed + more };
            if let Some(End::Again { charged: true, .. }) = decide(outcome, attempts, Backoff::DEFAULT, chance) {
                prop_assert!(failed + 1 < attempts.max);
            }
        }

        #[test]
        fn only_a_failed_attempt_is_charged(outcome in outcomes(), chance in 0.0..=1.0) {
            let is_fault = matches!(
                outcome,
                Outcome::TimedOut(_) | Outcome::Panicked(_) | Outcome::Returned(Err(Stop::Retry { .. }))
            );
            match decide(outcome, Attempts { failed: 0, max: 5 }, Backoff::DEFAULT, chance) {
                Some(End::Again { charged, .. }) => prop_assert_eq!(charged, is_fault),
                _ => prop_assert!(!is_fault),
            }
        }

        #[test]
        fn a_permanent_failure_is_never_retried(code in "[a-z]{1,8}", failed in 0_u16..5) {
            let outcome = Outcome::Returned(Err(Stop::failed(&code, "no")));
            let end = decide(outcome, Attempts { failed, max: 100 }, Backoff::DEFAULT, 0.5);
            let failed_for_good = matches!(end, Some(End::Failed { .. }));
            prop_assert!(failed_for_good);
        }

        #[test]
        fn a_wait_is_never_shorter_than_the_other_side_asked_for(seconds in 0_u64..100_000, failed in 0_u16..30, chance in 0.0..=1.0) {
            let asked = Duration::from_secs(seconds);
            let stop = Stop::Retry { after: Some(asked), why: Why::new("busy", "later") };
            match decide(Outcome::Returned(Err(stop)), Attempts { failed, max: 100 }, Backoff::DEFAULT, chance) {
                Some(End::Again { at: Again::After(delay), .. }) => prop_assert!(delay >= asked),
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn a_wait_never_passes_the_cap(failed in 0_u16..u16::MAX, chance in 0.0..=1.0) {
            prop_assert!(wait_before(failed, Backoff::DEFAULT, chance) <= Backoff::DEFAULT.cap);
        }

        #[test]
        fn stored_messages_are_short_and_hold_no_nul(message in any::<String>()) {
            let end = decide(Outcome::Panicked(message), Attempts { failed: 0, max: 1 }, Backoff::DEFAULT, 0.0);
            let Some(End::Failed { why, .. }) = end else { panic!("the only attempt failed") };
            prop_assert!(why.message.chars().count() <= MAX_MESSAGE_CHARS && !why.message.contains('\0'));
        }
    }

    #[test]
    fn a_deploy_does_not_use_up_an_attempt() {
        let end = decide(Outcome::Stopped(StopReason::Stopping), Attempts { failed: 0, max: 1 }, Backoff::DEFAULT, 1.0);
        assert!(matches!(end, Some(End::HandedBack { .. })));
    }

    #[test]
    fn a_run_that_lost_its_lease_writes_nothing() {
        let lost = Outcome::Stopped(StopReason::LeaseLost);
        assert!(decide(lost, Attempts { failed: 0, max: 1 }, Backoff::DEFAULT, 1.0).is_none());
    }
}
