//! Runs the jobs of the `media` queue.

use std::{process::ExitCode, sync::Arc};

use multivio::{
    jobs::{Queue, Registry},
    media::{MediaService, Transcode},
    worker,
};

fn main() -> ExitCode {
    // One at a time: ffmpeg uses every core by itself.
    worker::main(Queue::Media, 1, |config, db| {
        let media = MediaService::new(config, db)?;
        media.sweep_scratch();
        Ok(Registry::of(Queue::Media).service(Arc::new(media)).job::<Transcode>())
    })
}
