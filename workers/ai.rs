//! Runs the jobs of the `ai` queue.

use std::process::ExitCode;

use multivio::{
    jobs::{Lane, Queue, Registry, noop::Noop},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ai, 16, |_config, _db| Ok(Registry::default().job_on::<Noop>(Queue::Ai, Lane::Default)))
}
