//! Why a run of a publication stops here, and what its user is told.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Phase;
use crate::{
    jobs::{Stop, Until, Why},
    platforms::Explanation,
};

#[derive(Debug)]
pub enum Halt {
    /// Nothing to tell about the publication itself.
    Plain(Stop),
    /// The publication goes to `to` (or stays) and says why.
    Told { to: Option<Phase>, problem: Box<Explanation>, stop: Stop },
    /// Somebody else changed the publication meanwhile: look at it again.
    Overtaken,
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        Self::Plain(stop)
    }
}

impl From<sqlx::Error> for Halt {
    fn from(error: sqlx::Error) -> Self {
        Self::Plain(error.into())
    }
}

impl Halt {
    /// For good.
    pub fn failed(problem: Explanation) -> Self {
        Self::Told { to: Some(Phase::Failed), stop: Stop::Failed { why: why(&problem) }, problem: Box::new(problem) }
    }

    pub fn retry(after: Option<Duration>, problem: Explanation) -> Self {
        Self::Told { to: None, stop: Stop::Retry { after, why: why(&problem) }, problem: Box::new(problem) }
    }

    pub fn snooze(until: Until, problem: Explanation) -> Self {
        Self::Told { to: None, stop: Stop::Snooze { until, why: why(&problem) }, problem: Box::new(problem) }
    }

    pub fn park(wake: String, deadline: DateTime<Utc>, problem: Explanation) -> Self {
        Self::Told { to: None, stop: Stop::Park { wake, deadline, why: why(&problem) }, problem: Box::new(problem) }
    }

    /// Whether it exists is not known: the reconcile job goes on, and this job is over.
    pub fn unconfirmed(problem: Explanation) -> Self {
        Self::Told {
            to: Some(Phase::Unconfirmed),
            stop: Stop::Failed { why: why(&problem) },
            problem: Box::new(problem),
        }
    }
}

pub fn why(problem: &Explanation) -> Why {
    Why::new(problem.code.clone(), problem.message.clone())
}
