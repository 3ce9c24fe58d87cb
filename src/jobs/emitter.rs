//! Events of running jobs, gathered and sent on without ever holding a job up.

use serde_json::Value;
use tokio::sync::mpsc;
use tracing::debug;

use super::belt::Belt;
use crate::{ids::JobId, telemetry::chain};

/// Events that wait; when Redis is slower than the jobs, the rest is dropped.
const WAITING: usize = 4_096;
const BATCH: usize = 256;

#[derive(Debug, Clone)]
pub struct Emitter(mpsc::Sender<(JobId, &'static str, String)>);

impl Emitter {
    pub fn start(belt: Belt) -> Self {
        let (events, mut waiting) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH);
            while waiting.recv_many(&mut batch, BATCH).await > 0 {
                if let Err(error) = belt.emit(&batch).await {
                    debug!(error = %chain(&error), "events were dropped");
                }
                batch.clear();
            }
        });
        Self(events)
    }

    pub fn emit(&self, job: JobId, name: &'static str, data: &Value) {
        // Full: followers miss an event, the job misses nothing.
        let _full = self.0.try_send((job, name, data.to_string()));
    }
}
