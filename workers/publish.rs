//! Runs the jobs of the `publish` queue.

use std::{process::ExitCode, sync::Arc};

use multivio::{
    jobs::{Queue, Registry},
    media::MediaService,
    outbound,
    publishing::{Publish, Publisher, PublishingUpkeep, Reconcile, RemovePost},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Publish, 16, |config, db| {
        let media = MediaService::new(config, db)?;
        let publisher = Publisher::new(config, &outbound::client()?, Arc::new(media))?;
        Ok(Registry::of(Queue::Publish)
            .job::<Publish>()
            .job::<Reconcile>()
            .job::<RemovePost>()
            .service(Arc::new(publisher))
            .upkeep("publishing-upkeep", "* * * * *", &PublishingUpkeep {}))
    })
}
