//! The audit: what should be on the belt and is not, at two looks in a row, is pushed again (E5, E6).
//!
//! An id is lost when it was popped into an answer that never came, when its maker died between the commit and the
//! push, or when Redis came back as an old copy. Instead of remembering when each row was pushed, which would cost a
//! write a job, the audit compares the belt's bounded window with the ledger.

use std::collections::{HashMap, HashSet};

use sqlx::PgConnection;
use tracing::{debug, info};

use super::window::Windows;
use crate::{
    ids::JobId,
    jobs::{
        belt::{Belt, BeltError, List},
        ledger::{self, Runnable},
    },
    telemetry::chain,
};

/// Rows of a list compared at one look: as many as a window and its direct pushes hold.
const LOOK: i64 = 20_000;

#[derive(Debug, Default)]
pub struct Audit {
    /// Missing at the last look. A claim on its way explains one miss, not two: it takes less than the time between.
    missing: HashMap<List, HashSet<JobId>>,
}

impl Audit {
    pub fn forget(&mut self) {
        self.missing.clear();
    }

    pub async fn run(&mut self, db: &mut PgConnection, belt: &Belt, windows: &Windows) -> sqlx::Result<()> {
        let mut lists = windows.cursors();
        lists.extend(ledger::suspect_lists(&mut *db).await?.into_iter().map(|list| (list, Vec::new())));
        let mut missing = HashMap::new();
        for (list, cursors) in lists {
            let expected = ledger::expected_on_belt(&mut *db, list, &cursors, LOOK).await?;
            if expected.is_empty() {
                continue;
            }
            match self.look(belt, list, expected).await {
                Ok(absent) => missing.insert(list, absent),
                Err(error) => {
                    debug!(error = %chain(&error), "no belt to audit");
                    return Ok(());
                }
            };
        }
        self.missing = missing;
        Ok(())
    }

    async fn look(&mut self, belt: &Belt, list: List, expected: Vec<JobId>) -> Result<HashSet<JobId>, BeltError> {
        // The belt is read after the ledger: an id pushed in between is found, one claimed in between is missed once.
        let there: HashSet<JobId> = belt.contents(list).await?.into_iter().collect();
        let absent: HashSet<JobId> = expected.into_iter().filter(|job| !there.contains(job)).collect();
        let before = self.missing.remove(&list).unwrap_or_default();
        let lost: Vec<_> = absent.intersection(&before).map(|job| Runnable { job: *job, list }).collect();
        // A suspect was never pushed by anyone else: the audit is what brings it to the belt.
        let suspects = list.slot == crate::jobs::belt::Slot::Suspects;
        let again: Vec<_> =
            if suspects { absent.iter().map(|job| Runnable { job: *job, list }).collect() } else { lost };
        if again.is_empty() {
            return Ok(absent);
        }
        if !suspects {
            info!(jobs = again.len(), queue = %list.queue, "ids were lost and are pushed again");
        }
        belt.push(&again).await?;
        Ok(absent.into_iter().filter(|job| !before.contains(job)).collect())
    }
}
