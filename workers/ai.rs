//! Runs the jobs of the `ai` queue.

use std::process::ExitCode;

use multivio::{
    jobs::{Queue, Registry},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ai, 16, |_config, _db| Ok(Registry::of(Queue::Ai)))
}
