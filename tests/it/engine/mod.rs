//! The proof of the engine: for each rule E1 to E20 of docs/hazards.md a test that fails without it.
//!
//! Jobs here are scripts ([`act`]) that tell a [`Witness`] what they do, so that what happened in the world is counted
//! outside of the ledger; the worker that runs them is the production worker with other jobs.

#[allow(dead_code, reason = "the tests' worker uses the other half")]
mod act;
mod stage;

mod answers;
mod control;
mod crashes;
mod cron;
mod crowd;
mod enqueue;
mod fairness;
mod forgetting;
mod kinds;
mod leases;
mod model;
mod outages;
mod outcomes;
mod parked;
mod scale;
mod serial;
mod suspects;
mod timeline;
mod upright;
mod workflow;

pub use act::{Act, ActTokens, ActWebhooks, Step};
pub use stage::Stage;
