//! The media domain's part of `/health`: can this process look at an upload, and keep it.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::MediaService;
use crate::{
    http::health::{Finding, Probe},
    telemetry::chain,
};

pub fn probes(media: &Arc<MediaService>) -> Vec<Box<dyn Probe>> {
    let tools = Ffprobe { media: Arc::clone(media), worked_at: Mutex::new(None) };
    vec![Box::new(Folder(Arc::clone(media))), Box::new(tools)]
}

/// Where uploads are kept.
struct Folder(Arc<MediaService>);

#[async_trait]
impl Probe for Folder {
    fn name(&self) -> String {
        "storage".into()
    }

    fn is_vital(&self) -> bool {
        false
    }

    async fn look(&self) -> Finding {
        match self.0.storage().try_out().await {
            Ok(()) => Finding::ok(),
            Err(error) => {
                tracing::warn!(cause = chain(&error), "the storage cannot be written");
                Finding::down("uploads and posts with media fail: STORAGE_FOLDER cannot be written")
            }
        }
    }
}

/// The program that looks at each upload while its sender waits.
struct Ffprobe {
    media: Arc<MediaService>,
    worked_at: Mutex<Option<Instant>>,
}

impl Ffprobe {
    /// A program does not go away by itself: starting one for each question would cost more than it tells.
    const FRESH: Duration = Duration::from_secs(60);

    fn worked_at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.worked_at.lock().expect("nothing panics while it holds this lock")
    }
}

#[async_trait]
impl Probe for Ffprobe {
    fn name(&self) -> String {
        "ffprobe".into()
    }

    fn is_vital(&self) -> bool {
        false
    }

    async fn look(&self) -> Finding {
        if self.worked_at().is_some_and(|at| at.elapsed() < Self::FRESH) {
            return Finding::ok();
        }
        match self.media.try_ffprobe().await {
            Ok(()) => {
                *self.worked_at() = Some(Instant::now());
                Finding::ok()
            }
            Err(error) => {
                tracing::warn!(cause = chain(&error), "ffprobe does not work");
                Finding::down("uploads fail: install ffmpeg where the API runs, or set FFPROBE")
            }
        }
    }
}
