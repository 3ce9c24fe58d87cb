//! Why a job is not done, or went wrong: in words.

use chrono::{DateTime, Utc};

use super::{Context, JobError};
use crate::jobs::{State, ledger::JobRow};

/// Whether what the row says in `why` is a trouble, and not only what it waits for.
pub fn has_error(row: &JobRow) -> bool {
    match row.state {
        State::Failed | State::Cancelled => true,
        State::Scheduled => row.attempt > 0 || row.crashes > 0,
        _ => false,
    }
}

pub fn error(row: &JobRow, context: &Context) -> Option<JobError> {
    let why = row.why.as_ref().filter(|_| has_error(row))?;
    let class = match context.classes.get(&row.id) {
        Some(class) if row.state != State::Cancelled => class.clone(),
        _ => row.state.to_string(),
    };
    Some(JobError { class, code: why.code.clone(), message: why.message.clone() })
}

/// Why it is not done yet.
pub fn reason(row: &JobRow, context: &Context) -> Option<String> {
    let why = row.why.as_ref().map(|why| why.message.trim_end_matches('.'));
    let text = match row.state {
        State::Succeeded | State::Failed | State::Cancelled => return None,
        State::Running if row.cancel_requested => "It is being stopped, as was asked.".to_owned(),
        State::Running => return None,
        State::Waiting => match row.open_parents {
            1 => "It waits for another job to end.".to_owned(),
            many => format!("It waits for {many} other jobs to end."),
        },
        State::Scheduled => match why {
            Some(why) if row.parked => {
                format!("It is on hold: {why}; at the latest it goes on at {}.", time(row.run_at))
            }
            Some(why) => format!("It goes on at {}: {why}.", time(row.run_at)),
            None if row.run_at > row.created_at => format!("It is due at {}.", time(row.run_at)),
            None if row.serial_key.is_some() => "It waits for its turn behind an earlier one.".to_owned(),
            None => "It is due and about to be queued.".to_owned(),
        },
        State::Queued if context.paused.contains(&row.queue) => {
            format!("The queue \"{}\" is paused.", row.queue)
        }
        State::Queued if row.suspect => "A worker crashed while it ran; it waits to run alone.".to_owned(),
        State::Queued => match row.queued_at {
            Some(at) => format!("It waits for a free worker of the queue \"{}\" since {}.", row.queue, time(at)),
            None => format!("It waits for a free worker of the queue \"{}\".", row.queue),
        },
    };
    Some(text)
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}
