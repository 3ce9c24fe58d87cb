//! `multivio jobs`: the operators' view of every workspace's jobs, straight from the ledger; works without the API.

mod show;
mod stats;
pub mod steer;

pub(super) use show::duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use self::steer::Retried;
use super::{Failure, Screen, working::spinner};
use crate::{
    db::{Session, pooler},
    ids::{GroupId, JobId, TenantId},
    jobs::{
        Engine, Priority, Queue, State,
        belt::Belt,
        ledger::{CancelOutcome, is_committed},
    },
    telemetry::chain,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  multivio jobs list --state failed
  multivio jobs show job_01988f6e... --follow
  multivio jobs retry --failed --queue media
  multivio jobs priority high job_01988f6e...
  multivio jobs pause publish && multivio jobs resume publish")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Newest jobs first; without --all, the installation's own (upkeep, canaries) only where they failed
    List(ListArguments),
    /// One job with its timeline
    Show {
        /// The job, as `jobs list` names it
        #[arg(value_name = "job_...")]
        job: JobId,
        /// Follow it until it ends
        #[arg(long)]
        follow: bool,
    },
    /// Cancel jobs, also running ones
    Cancel {
        /// The jobs, as `jobs list` names them
        #[arg(required = true, value_name = "job_...")]
        jobs: Vec<JobId>,
    },
    /// Run failed or cancelled jobs once more
    Retry(RetryArguments),
    /// Change what goes first: of jobs that have not ended
    Priority {
        /// Which of two runnable jobs of a queue goes first; low is slow, never starved
        #[arg(value_name = "high|normal|low")]
        priority: Priority,
        /// The jobs, as `jobs list` shows them
        #[arg(required = true)]
        jobs: Vec<JobId>,
    },
    /// Start nothing more of a queue; what runs goes on
    Pause {
        /// The queue
        #[arg(value_name = QUEUES)]
        queue: Queue,
    },
    /// Go on with a paused queue
    Resume {
        /// The queue
        #[arg(value_name = QUEUES)]
        queue: Queue,
    },
    /// How full the queues are and who works
    Stats,
}

const QUEUES: &str = "publish|ai|media|ops";

#[derive(Debug, Args)]
struct ListArguments {
    /// Only those in this state (waiting, scheduled, queued, running, succeeded, failed, cancelled)
    #[arg(long)]
    state: Option<State>,
    /// Only those of this queue
    #[arg(long, value_name = QUEUES)]
    queue: Option<Queue>,
    /// Only those of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only those of this group
    #[arg(long, value_name = "grp_...")]
    group: Option<GroupId>,
    /// Only those of this workspace
    #[arg(long, value_name = "tnt_...")]
    tenant: Option<TenantId>,
    /// Only those created before this one
    #[arg(long, value_name = "job_...")]
    before: Option<JobId>,
    /// Also the installation's own jobs that did not fail: upkeep, canaries (shown as well with --kind, --group, --tenant)
    #[arg(long)]
    all: bool,
    /// At most so many
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

#[derive(Debug, Args)]
struct RetryArguments {
    /// These jobs
    #[arg(required_unless_present = "failed", conflicts_with = "failed", value_name = "job_...")]
    jobs: Vec<JobId>,
    /// All failed jobs of a queue, oldest first
    #[arg(long, requires = "queue")]
    failed: bool,
    /// The queue whose failed jobs are meant
    #[arg(long, requires = "failed", value_name = QUEUES)]
    queue: Option<Queue>,
    /// Of these, only those of this kind
    #[arg(long, requires = "failed")]
    kind: Option<String>,
    /// At most so many
    #[arg(long, requires = "failed", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

pub async fn run(arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let config = super::config()?;
    let session = Session::worker(&config.database, "multivio jobs")?;
    pooler::prove(&session).await?;
    let db = session.pool(config.database.acquire_timeout, config.database.max_connections);
    let belt = Belt::new(&config.redis, db.clone()).map_err(|error| Failure::usage(chain(&error)))?;
    let engine = Engine::new(db, session, belt);
    match arguments.command {
        Command::List(wish) => show::list(&engine, wish, screen).await,
        Command::Show { job, follow } => show::show(&engine, job, follow, screen).await,
        Command::Cancel { jobs } => cancel(&engine, jobs, screen).await,
        Command::Retry(wish) => retry(&engine, wish, screen).await,
        Command::Priority { priority, jobs } => set_priority(&engine, priority, jobs, screen).await,
        Command::Pause { queue } => {
            steer::pause(&engine, queue).await?;
            say(screen, queue.as_str(), format!("{queue} is paused; what runs goes on."), true)
        }
        Command::Resume { queue } => {
            let resumed = steer::resume(&engine, queue).await?;
            let text = if resumed { format!("{queue} goes on.") } else { format!("{queue} was not paused.") };
            say(screen, queue.as_str(), text, resumed)
        }
        Command::Stats => stats::stats(&engine, screen).await,
    }
}

/// What came of one wish.
#[derive(Serialize)]
struct Outcome {
    of: String,
    done: bool,
    text: String,
}

fn say(screen: Screen, of: &str, text: String, done: bool) -> Result<(), Failure> {
    let outcome = Outcome { of: of.to_owned(), done, text };
    screen.show(&outcome, || outcome.text.clone())
}

fn say_all(screen: Screen, outcomes: &[Outcome]) -> Result<(), Failure> {
    screen.show(&outcomes, || {
        outcomes.iter().map(|outcome| format!("{}: {}", outcome.of, outcome.text)).collect::<Vec<_>>().join("\n")
    })?;
    if outcomes.iter().all(|outcome| outcome.done) { Ok(()) } else { Err(Failure::silent()) }
}

async fn cancel(engine: &Engine, jobs: Vec<JobId>, screen: Screen) -> Result<(), Failure> {
    let mut outcomes = Vec::new();
    for job in jobs {
        let (done, text) = match steer::cancel(engine, job).await? {
            CancelOutcome::Cancelled => (true, "cancelled".to_owned()),
            CancelOutcome::Requested => (true, "runs; it is being stopped".to_owned()),
            CancelOutcome::TooLate(State::Cancelled) => (true, "is cancelled already".to_owned()),
            CancelOutcome::TooLate(state) => (false, format!("too late, it has {state}")),
            CancelOutcome::Committed => {
                (false, "too late, what it does elsewhere may have happened; its outcome is found out first".to_owned())
            }
            CancelOutcome::NotFound => (false, "there is no such job".to_owned()),
        };
        outcomes.push(Outcome { of: job.to_string(), done, text });
    }
    say_all(screen, &outcomes)
}

async fn set_priority(engine: &Engine, priority: Priority, jobs: Vec<JobId>, screen: Screen) -> Result<(), Failure> {
    let mut outcomes = Vec::new();
    for job in jobs {
        let done = steer::set_priority(engine, job, priority).await?;
        let text = if done {
            format!("has priority {priority}")
        } else {
            match engine.job(None, job).await? {
                Some(row) => format!("too late, it has {}", row.state),
                None => "there is no such job".to_owned(),
            }
        };
        outcomes.push(Outcome { of: job.to_string(), done, text });
    }
    say_all(screen, &outcomes)
}

async fn retry(engine: &Engine, wish: RetryArguments, screen: Screen) -> Result<(), Failure> {
    if let Some(queue) = wish.queue {
        let retrying = steer::retry_failed(engine, queue, wish.kind.as_deref(), wish.limit);
        let retried = spinner(format!("failed jobs of {queue} go back to the queue"), retrying).await?;
        return say(screen, queue.as_str(), format!("{retried} failed job(s) of {queue} run once more."), true);
    }
    let mut outcomes = Vec::new();
    for job in wish.jobs {
        let outcome = steer::retry(engine, job).await?;
        let done = matches!(outcome, Retried::Yes);
        let text = match outcome {
            Retried::Yes => "runs once more".to_owned(),
            Retried::Refused(refusal) => format!("does not run once more: {refusal}"),
            Retried::No => match engine.job(None, job).await? {
                Some(row) if row.state.is_final() && is_committed(engine.db(), job).await? => {
                    "is not settled: what it did elsewhere is being found out first".to_owned()
                }
                Some(row) => format!("is {}; only a failed or cancelled job can be retried", row.state),
                None => "there is no such job".to_owned(),
            },
        };
        outcomes.push(Outcome { of: job.to_string(), done, text });
    }
    say_all(screen, &outcomes)
}
