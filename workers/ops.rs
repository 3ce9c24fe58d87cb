//! Runs the jobs of the `ops` queue.

use std::{process::ExitCode, sync::Arc};

use multivio::{
    ai::{AiUpkeep, Transformer},
    jobs::{Queue, Registry},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ops, 8, |config, _db| {
        let transformer = Arc::new(Transformer::new(&config.ai)?);
        Ok(Registry::of(Queue::Ops).job::<AiUpkeep>().service(transformer))
    })
}
