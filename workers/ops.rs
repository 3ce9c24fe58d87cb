//! Runs the jobs of the `ops` queue.

use std::process::ExitCode;

use multivio::{
    jobs::{Lane, Queue, Registry, noop::Noop},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ops, 8, |_config, _db| Ok(Registry::default().job_on::<Noop>(Queue::Ops, Lane::Default)))
}
