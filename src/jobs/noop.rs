//! The job that does nothing: what the canaries of every queue run, and what `multivio bench` measures.

use serde::{Deserialize, Serialize};

use super::{Job, JobContext, Queue, Stop};

#[derive(Debug, Serialize, Deserialize)]
pub struct Noop {
    /// Carried for its weight.
    #[serde(default)]
    pub payload: String,
}

#[derive(Debug, Serialize)]
pub struct Carried {
    pub bytes: usize,
}

impl Job for Noop {
    const KIND: &'static str = "noop";
    const QUEUE: Queue = Queue::Ops;
    type Output = Carried;

    async fn run(&self, _cx: &JobContext) -> Result<Carried, Stop> {
        Ok(Carried { bytes: self.payload.len() })
    }
}
