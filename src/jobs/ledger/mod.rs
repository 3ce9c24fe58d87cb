//! The ledger: every change of a job's state, and nothing else changes one.
//!
//! Each transition is a single guarded statement that commits by itself: it names the state it leaves, locks rows
//! in id order and skips what another holds, so a process stopped in the middle holds nobody up (E4). The two that
//! every job passes, claiming and succeeding, look for what is held only once they have met it, or each other. Time
//! is Postgres's `now()`, never a worker's clock. Locks are taken, and an answer that never came is survived, by the
//! fence: every claim raises `run`, every completion names it (E2).

mod claim;
mod control;
mod enqueue;
mod leaving;
mod promote;
mod query;
mod relay;
mod rescue;
mod retention;
mod schedule;
mod settle;
mod timeline;
mod window;

pub use claim::{Claim, claim, claim_from_ledger};
pub use control::{
    CancelOutcome, Paused, cancel, commit, commit_unstarted, is_committed, leave_to_relay, pause, paused,
    request_retry, resume, retry_failed, set_priority, uncommit, wake,
};
pub use enqueue::{Insert, insert, insert_for, insert_with_parents};
pub use leaving::{cancel_of_tenant, cancel_waiting_of_tenant, is_at_work_for};
pub use promote::{
    Due, Group, promote_due, promote_due_by_turns, promote_serial, promote_serial_orders, sweep_waiting, sweep_wakes,
};
pub use query::{
    DEPTH_CEILING, Depth, GroupStatus, JobFilter, JobRow, depth, get, get_many, group, last_classes, list, live_workers,
};
pub use relay::{Leadership, lead, set_belt_epoch, step_down};
pub use rescue::{
    Death, Heartbeat, Rescued, WorkerRow, acquit, cancel_requests, hand_back_strays, heartbeat, lost_runs, reap,
    register, report_death, say_stopped,
};
pub use retention::{Pruning, Retention, prune};
pub use schedule::{ScheduleRow, due as due_schedules, fire, list as list_schedules, upsert as upsert_schedule};
pub use settle::{Again, End, Freed, Settled, Settlement, release_children, save_checkpoint, settle, settle_succeeded};
pub use timeline::{Entry, note, timeline};
pub use window::{Turn, Waiting, expected_on_belt, fill, runnable_suspects, suspect_lists, waiting};

use std::time::Duration;

use super::{
    belt::{List, Slot},
    job::{Lane, Priority, Queue},
};
use crate::{db::Session, ids::JobId};

/// How long a worker's statement waits for a row that another session holds, before it goes on with the others: longer
/// than anything holds one that has no trouble, and than a vacuum keeps the table's end to itself once somebody waits.
const ROW_PATIENCE: Duration = Duration::from_millis(50);

/// Sessions for [`claim`] and [`settle_succeeded`].
pub fn impatient(session: Session) -> Session {
    session.set("lock_timeout", ROW_PATIENCE.as_millis().to_string())
}

/// Another session holds a row, or the two hold one each that the other wants.
pub fn is_held(error: &sqlx::Error) -> bool {
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    const DEADLOCK_DETECTED: &str = "40P01";
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some(LOCK_NOT_AVAILABLE | DEADLOCK_DETECTED))
}

/// A runnable job and the list its id belongs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runnable {
    pub job: JobId,
    pub list: List,
}

/// Reads what the columns `queue`, `lane`, `priority` and `suspect` say; `None` for names of a newer version.
fn list_of(queue: &str, lane: &str, priority: i16, suspect: bool) -> Option<List> {
    let slot = if suspect { Slot::Suspects } else { Slot::Priority(priority_of(priority)?) };
    Some(List { queue: queue.parse::<Queue>().ok()?, lane: lane.parse::<Lane>().ok()?, slot })
}

pub(in crate::jobs) fn priority_of(stored: i16) -> Option<Priority> {
    Priority::ALL.get(usize::try_from(stored).ok()?).copied()
}

const fn stored_priority(priority: Priority) -> i16 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

/// Milliseconds as Postgres takes them; longer than 292 million years is cut.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
