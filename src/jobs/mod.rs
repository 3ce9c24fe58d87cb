//! The job engine.
//!
//! The **ledger** (the `jobs` table) is the only truth about a job; the **belt** (Redis lists) only says "look at
//! this row", so losing all of Redis loses nothing and a duplicate id does no harm. This folder knows no domain.
//!
//! In reading order: [`job`] is what a kind of job is; [`engine`] enqueues and steers; `ledger` holds every change
//! of state; `belt` names every Redis key; `lifecycle` shows the whole life of a job; `backend` hands claimed jobs
//! to apalis; `relay` moves due jobs and rescues lost ones.

pub mod context;
pub mod engine;
pub mod job;

pub use context::JobContext;
pub use engine::{Engine, EnqueueError, Ticket};
pub use job::{Backoff, Job, Lane, NewJob, OnParent, Priority, Queue, State, Stop, Why};
