//! A worker of the tests: the production worker in every way, but the jobs it knows are scripts,
//! and the example of docs/adding-a-job-kind.md.

#[path = "it/engine/act.rs"]
#[allow(dead_code, reason = "the tests use the other half")]
mod act;
#[path = "it/adding_a_job_kind/measure.rs"]
mod measure;

use std::process::ExitCode;

use multivio::{
    jobs::{Queue, Registry},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ops, 8, |_config, _db| {
        let registry = Registry::of(Queue::Ops).job::<act::Act>();
        Ok(registry.job::<act::ActTokens>().job::<act::ActWebhooks>().job::<measure::MeasurePosts>())
    })
}
