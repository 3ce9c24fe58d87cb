//! Runs the jobs of the `ops` queue.

use std::process::ExitCode;

use multivio::{
    jobs::{Queue, Registry},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ops, 8, |_config, _db| Ok(Registry::of(Queue::Ops)))
}
