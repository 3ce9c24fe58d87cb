//! Rate windows (A7): per user and per app, counted from the first call in each window.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{refusals, settings::Settings};
use crate::{clock, exchange::Answer};

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    pub limit: u64,
    pub window_s: u64,
}

const QUARTER_S: u64 = 15 * 60;
const DAY_S: u64 = 24 * 3600;

const fn quarter(limit: u64) -> Option<Quota> {
    Some(Quota { limit, window_s: QUARTER_S })
}

const fn day(limit: u64) -> Option<Quota> {
    Some(Quota { limit, window_s: DAY_S })
}

/// A7: the published quotas of an operation, per user and per app.
fn published(operation: &str) -> (Option<Quota>, Option<Quota>) {
    match operation {
        "tweets.create" => (quarter(100), day(10_000)),
        "tweets.delete" => (quarter(50), None),
        "tweets.lookup" => (quarter(5_000), quarter(3_500)),
        "tweets.get" => (quarter(900), quarter(450)),
        "users.tweets" => (quarter(900), quarter(10_000)),
        "users.me" => (quarter(75), None),
        "media.initialize" | "media.append" | "media.finalize" => (quarter(1_875), day(180_000)),
        "media.upload" => (quarter(500), day(50_000)),
        "media.status" => (quarter(1_000), day(100_000)),
        "media.metadata" => (quarter(500), day(50_000)),
        _ => (None, None),
    }
}

#[derive(Clone, Default, Deserialize, Serialize)]
pub struct Windows(HashMap<String, Window>);

#[derive(Clone, Copy, Deserialize, Serialize)]
struct Window {
    started_ms: u64,
    used: u64,
}

impl Windows {
    /// Counts one call, or refuses it without counting.
    pub fn count(&mut self, settings: &Settings, operation: &str, user: &str, app: &str) -> Result<(), Answer> {
        if !settings.rate_limits_enabled {
            return Ok(());
        }
        let now_ms = clock::now_ms();
        let (per_user, per_app) = quotas(settings, operation);
        let keys = [(format!("{operation} user {user}"), per_user), (format!("{operation} app {app}"), per_app)];
        for (key, quota) in &keys {
            let Some(quota) = quota else { continue };
            let window = self.open(key, *quota, now_ms);
            if window.used >= quota.limit {
                // A7, A6: 429 until the window ends.
                let reset_s = reset_s(window, *quota);
                let refusal = refusals::rate_limited(quota.limit, reset_s);
                return Err(if quota.window_s == DAY_S { with_daily(refusal, quota.limit, reset_s) } else { refusal });
            }
        }
        for (key, quota) in &keys {
            if let Some(quota) = quota {
                self.open(key, *quota, now_ms).used += 1;
            }
        }
        Ok(())
    }

    /// The three headers of the user's window, for an answer that has none yet.
    pub fn headers(&mut self, settings: &Settings, operation: &str, user: &str, answer: Answer) -> Answer {
        let (Some(quota), _) = quotas(settings, operation) else {
            return answer;
        };
        if !settings.rate_limits_enabled || answer.headers.iter().any(|(name, _)| name == "x-rate-limit-reset") {
            return answer;
        }
        let window = *self.open(&format!("{operation} user {user}"), quota, clock::now_ms());
        answer
            .with_header("x-rate-limit-limit", quota.limit.to_string())
            .with_header("x-rate-limit-remaining", quota.limit.saturating_sub(window.used).to_string())
            .with_header("x-rate-limit-reset", reset_s(&window, quota).to_string())
    }

    fn open(&mut self, key: &str, quota: Quota, now_ms: u64) -> &mut Window {
        let window = self.0.entry(String::from(key)).or_insert(Window { started_ms: now_ms, used: 0 });
        if window.started_ms + quota.window_s * 1000 <= now_ms {
            *window = Window { started_ms: now_ms, used: 0 };
        }
        window
    }
}

fn quotas(settings: &Settings, operation: &str) -> (Option<Quota>, Option<Quota>) {
    match settings.rate_limits.get(operation) {
        Some(quota) => (Some(*quota), None),
        None => published(operation),
    }
}

fn reset_s(window: &Window, quota: Quota) -> u64 {
    window.started_ms.div_ceil(1000) + quota.window_s
}

fn with_daily(answer: Answer, limit: u64, reset_s: u64) -> Answer {
    answer
        .with_header("x-app-limit-24hour-limit", limit.to_string())
        .with_header("x-app-limit-24hour-remaining", "0")
        .with_header("x-app-limit-24hour-reset", reset_s.to_string())
}

/// The 429 of a fault: the operation's own limit, ending when the test says.
pub fn refused(operation: &str, reset_in_s: u64) -> Answer {
    let limit = published(operation).0.map_or(100, |quota| quota.limit);
    refusals::rate_limited(limit, clock::now_ms() / 1000 + reset_in_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(answer: &Answer, wanted: &str) -> Option<u64> {
        let value = answer.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
        value.and_then(|value| value.parse().ok())
    }

    #[test]
    fn the_call_after_the_last_one_allowed_is_refused_until_the_window_ends() {
        let mut windows = Windows::default();
        let settings = Settings::default();
        for _ in 0..100 {
            windows.count(&settings, "tweets.create", "7", "app").expect("within the limit");
        }
        let refused = windows.count(&settings, "tweets.create", "7", "app").expect_err("the 101st");
        assert_eq!((refused.status, header(&refused, "x-rate-limit-remaining")), (429, Some(0)));
        let reset_s = header(&refused, "x-rate-limit-reset").expect("a reset");
        assert!(reset_s.abs_diff(clock::now_ms() / 1000 + QUARTER_S) <= 2);
        windows.count(&settings, "tweets.create", "8", "app").expect("another user has a window of its own");
    }

    #[test]
    fn every_answer_tells_what_is_left() {
        let mut windows = Windows::default();
        let mut settings = Settings::default();
        settings.rate_limits.insert(String::from("users.me"), Quota { limit: 3, window_s: 60 });
        windows.count(&settings, "users.me", "7", "app").expect("within the limit");
        let answer = windows.headers(&settings, "users.me", "7", Answer::empty(200));
        assert_eq!(header(&answer, "x-rate-limit-limit"), Some(3));
        assert_eq!(header(&answer, "x-rate-limit-remaining"), Some(2));
    }
}
