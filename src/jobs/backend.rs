//! apalis's view of the engine: a backend that hands out jobs which are already claimed.
//!
//! It does nothing else. Fetching, heartbeats and completion are tasks of their own, so nothing in apalis's poll
//! loop can starve a heartbeat or delay a completion.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    task::{Task, task_id::RandomId},
    worker::context::WorkerContext,
};
use tokio::sync::mpsc;
use tower::layer::util::Identity;

use super::{hand::Grip, ledger::Claim};

/// A claimed job and this process's grip on it.
#[derive(Debug, Clone)]
pub struct Handed(pub Arc<Claim>, pub Grip);

/// Shared by the incarnations of one apalis worker, so that a restart by the monitor loses nothing.
#[derive(Debug, Clone)]
pub struct ClaimedJobs(Arc<Mutex<mpsc::Receiver<Handed>>>);

impl ClaimedJobs {
    pub fn new(claimed: mpsc::Receiver<Handed>) -> Self {
        Self(Arc::new(Mutex::new(claimed)))
    }
}

impl Backend for ClaimedJobs {
    type Task = Task<Handed>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Option<Result<Task<Handed>, Infallible>>> {
        let mut claimed = self.0.lock().expect("receiving does not panic");
        claimed.poll_recv(cx).map(|handed| handed.map(|handed| Ok(Task::new(handed))))
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for ClaimedJobs {
    type Args = Handed;
    type Id = RandomId;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}
