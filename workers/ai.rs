//! Runs the jobs of the `ai` queue.

use std::{process::ExitCode, sync::Arc};

use multivio::{
    ai::{Transform, Transformer},
    jobs::{Queue, Registry},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ai, 16, |config, _db| {
        let transformer = Transformer::new(&config.ai)?;
        Ok(Registry::of(Queue::Ai).service(Arc::new(transformer)).job::<Transform>())
    })
}
