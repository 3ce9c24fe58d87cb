//! What to do with a publication whose time has passed. Nothing goes out days late by surprise.

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::jobs::job::stored_names;

stored_names! {
    /// What happens to a publication that could not go out within its `max_lateness`.
    LatePolicy {
        /// It goes out all the same.
        Publish = "publish",
        /// It does not go out any more.
        Skip = "skip",
        /// Its user is asked.
        Ask = "ask",
    }
}

/// For posts whose user did not say: a day late is a surprise.
pub const DEFAULT_MAX_LATENESS: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the question stands.
pub const ASK_PATIENCE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Go,
    Skip,
    Ask,
}

pub fn judge(
    policy: LatePolicy,
    due_at: DateTime<Utc>,
    max_lateness: Duration,
    accepted: bool,
    now: DateTime<Utc>,
) -> Verdict {
    let late = (now - due_at).to_std().unwrap_or(Duration::ZERO);
    if accepted || late <= max_lateness {
        return Verdict::Go;
    }
    match policy {
        LatePolicy::Publish => Verdict::Go,
        LatePolicy::Skip => Verdict::Skip,
        LatePolicy::Ask => Verdict::Ask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(policy: LatePolicy, late_s: i64, accepted: bool) -> Verdict {
        let due_at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let now = due_at + chrono::Duration::seconds(late_s);
        judge(policy, due_at, Duration::from_secs(60), accepted, now)
    }

    #[test]
    fn what_is_not_later_than_allowed_goes_out() {
        for policy in LatePolicy::ALL {
            assert_eq!(judged(*policy, -5, false), Verdict::Go);
            assert_eq!(judged(*policy, 60, false), Verdict::Go);
        }
    }

    #[test]
    fn what_is_later_follows_its_policy_until_its_user_says_go() {
        assert_eq!(judged(LatePolicy::Publish, 61, false), Verdict::Go);
        assert_eq!(judged(LatePolicy::Skip, 61, false), Verdict::Skip);
        assert_eq!(judged(LatePolicy::Ask, 61, false), Verdict::Ask);
        assert_eq!(judged(LatePolicy::Ask, 61, true), Verdict::Go);
    }
}
