//! Reads a linked membership anew: after a hint from Patreon, and now and then without one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Patreon, PatreonError,
    membership::{Read, ReadError},
};
use crate::{
    ids::{PatreonLinkId, TenantId},
    jobs::{Job, JobContext, NewJob, Queue, Stop},
    telemetry::chain,
};

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ReadMembership {
    pub link: PatreonLinkId,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Membership {
    /// `read`, `broken` (its owner has to link it again) or `gone`.
    pub outcome: &'static str,
    /// What it gives.
    pub plan: Option<String>,
}

impl ReadMembership {
    /// One after the other for each link: a refresh token must not be traded by two. And one at a time: an unfinished
    /// one is in the way of the next ([`crate::jobs::EnqueueError::Duplicate`]).
    pub fn new_job(self, tenant: TenantId) -> NewJob {
        NewJob::of(&self, tenant).serial(format!("patreon:{}", self.link)).unique(self.link.to_string())
    }

    /// One more, for news that comes while [`Self::new_job`] runs and may have read what was before.
    pub fn new_job_after(self, tenant: TenantId) -> NewJob {
        self.new_job(tenant).unique(format!("{} once more", self.link))
    }
}

impl Job for ReadMembership {
    const KIND: &'static str = "read_membership";
    const QUEUE: Queue = Queue::Ops;
    const TIMEOUT: Duration = Duration::from_secs(90);

    type Output = Membership;

    async fn run(&self, cx: &JobContext) -> Result<Membership, Stop> {
        // Switched off since: what was given runs out by itself.
        let Some(patreon) = &*cx.service::<Option<Patreon>>() else {
            return Err(Stop::failed("patreon_off", "PATREON_CLIENT_ID is not set for this worker"));
        };
        let membership = |outcome, plan| Membership { outcome, plan };
        match patreon.read(cx.db(), self.link).await {
            Ok(Read::Done(plan)) => Ok(membership("read", plan)),
            Ok(Read::Broken) => {
                tracing::warn!(link = %self.link, "a link to Patreon needs its owner");
                Ok(membership("broken", None))
            }
            Ok(Read::Gone) => Ok(membership("gone", None)),
            Err(error) => Err(stop(error)),
        }
    }
}

fn stop(error: ReadError) -> Stop {
    match error {
        ReadError::Database(error) => error.into(),
        // Putting the key back mends it, so nothing is given up.
        ReadError::Sealed(error) => Stop::snooze(Duration::from_secs(300), "secret_unreadable", error.to_string()),
        ReadError::Patreon(PatreonError::Throttled { after }) => {
            Stop::snooze(after, "patreon_throttles", "Patreon asks to be left alone for a while")
        }
        ReadError::Patreon(error) => Stop::retry("patreon_failed", chain(&error)),
    }
}
