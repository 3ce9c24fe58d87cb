//! Runs the jobs of the `media` queue.

use std::process::ExitCode;

use multivio::{
    jobs::{Lane, Queue, Registry, noop::Noop},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Media, 1, |_config, _db| Ok(Registry::default().job_on::<Noop>(Queue::Media, Lane::Default)))
}
