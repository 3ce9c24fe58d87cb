//! Runs the jobs of the `publish` queue.

use std::process::ExitCode;

use multivio::{
    jobs::{Queue, Registry},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Publish, 16, |_config, _db| Ok(Registry::of(Queue::Publish)))
}
