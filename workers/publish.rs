//! Runs the jobs of the `publish` queue.

use std::process::ExitCode;

use multivio::{
    jobs::{Lane, Queue, Registry, noop::Noop},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Publish, 16, |_config, _db| {
        Ok(Registry::default().job_on::<Noop>(Queue::Publish, Lane::Default))
    })
}
