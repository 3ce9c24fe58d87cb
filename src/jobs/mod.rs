//! The job engine.
//!
//! The **ledger** (the `jobs` table) is the only truth about a job; the **belt** (Redis lists) only says "look at
//! this row", so losing all of Redis loses nothing and a duplicate id does no harm. This folder knows no domain.
//!
//! In reading order: [`job`] is what a kind of job is, [`engine`] enqueues, follows and steers, [`lifecycle`] shows
//! the whole life of a job, [`worker`] puts a worker process together.

/// Whether a job may run once more.
pub mod again;
/// Redis lists, events and channels.
pub mod belt;
/// The front: enqueue, follow, and what follows from a change that was asked for.
pub mod engine;
/// Group commit of jobs enqueued on their own.
mod enqueue;
/// How a job enters the ledger, and what is refused.
mod entry;
/// Who waits for news of which job.
mod hub;
/// What a job is and what a run of it may come to.
pub mod job;
/// Every change of a job's state.
pub mod ledger;

/// apalis's view of the engine.
mod backend;
/// Completions, many in one statement.
mod completion;
/// What a running job may use.
pub mod context;
/// Events of running jobs, on their way out.
mod emitter;
/// From the belt into the hand.
mod fetch;
/// What a worker counts of its runs.
mod figures;
/// What a worker process has in hand, and until when.
mod hand;
/// Heartbeats, on a thread of their own.
mod heart;
/// Tower layers around every run.
mod layers;
/// The timer that ends a process which outlives its lease with a request in its hand.
mod lease_guard;
/// The whole life of a job: claim, attempt, decide, settle.
pub mod lifecycle;
/// Which kinds a worker knows and the services they need.
pub mod registry;
/// What a run's outcome means: retry maths and rules, pure.
pub mod retry;
/// A worker process: all of the above, started and stopped.
pub mod worker;

/// Jobs that prove every queue alive.
pub mod canary;
/// The job that does nothing.
pub mod noop;

/// The elected loop: due jobs, the belt's window, rescue, cron, retention.
pub mod relay;

/// The calls about jobs and groups.
pub mod api;
/// The engine's part of health and figures.
pub mod health;

pub use again::{RetryRule, RetryRules};
pub use context::JobContext;
pub use engine::Engine;
pub use entry::{EnqueueError, Ticket};
pub use heart::LEASE;
pub use job::{Backoff, Job, Lane, NewJob, OnParent, Priority, Queue, State, Stop, Until, Why};
pub use registry::Registry;
