//! Runs the jobs of the `ops` queue: tokens, webhooks, mail, upkeep, each in a lane of its own.

use std::{process::ExitCode, sync::Arc};

use multivio::{
    ai::{AiUpkeep, Transformer},
    jobs::{Queue, Registry},
    media::{MediaService, MediaUpkeep},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ops, 8, |config, db| {
        Ok(Registry::of(Queue::Ops)
            .service(Arc::new(Transformer::new(&config.ai)?))
            .service(Arc::new(MediaService::new(config, db)?))
            .upkeep("ai-upkeep", "*/5 * * * *", &AiUpkeep {})
            .upkeep("media-upkeep", "7 * * * *", &MediaUpkeep {}))
    })
}
