//! Runs the jobs of the `media` queue.

use std::process::ExitCode;

use multivio::{
    jobs::{Queue, Registry},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Media, 1, |_config, _db| Ok(Registry::of(Queue::Media)))
}
