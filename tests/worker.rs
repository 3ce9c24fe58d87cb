//! A worker of the tests: the production worker in every way, but the jobs it knows are scripts.

#[path = "it/engine/act.rs"]
#[allow(dead_code, reason = "the tests use the other half")]
mod act;

use std::process::ExitCode;

use multivio::{
    jobs::{Queue, Registry},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ops, 8, |_config, _db| {
        let registry = Registry::of(Queue::Ops).job::<act::Act>();
        Ok(registry.job::<act::ActTokens>().job::<act::ActWebhooks>())
    })
}
