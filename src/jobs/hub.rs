//! Who waits for news of which job, within this process. One Redis subscription serves them all; without it
//! waiters look at the ledger on a timer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use tokio::sync::Notify;
use tracing::debug;

use super::belt::{Belt, Message};
use crate::ids::JobId;

#[derive(Debug, Default)]
pub struct Hub {
    followers: Mutex<HashMap<JobId, (usize, Arc<Notify>)>>,
    bell: Notify,
}

impl Hub {
    /// A place in the line for news of `job`; take it before looking at the ledger.
    pub fn follow(self: &Arc<Self>, job: JobId) -> Follower {
        let mut followers = self.lock();
        let (count, notify) = followers.entry(job).or_default();
        *count += 1;
        Follower { hub: Arc::clone(self), job, notify: Arc::clone(notify) }
    }

    /// Waits until somebody rings for the relay.
    pub async fn bell(&self) {
        self.bell.notified().await;
    }

    pub fn ring(&self) {
        self.bell.notify_one();
    }

    /// Listens for as long as the process lives; comes back by itself when Redis was away.
    pub async fn listen(self: Arc<Self>, belt: Belt) {
        loop {
            match belt.listen().await {
                Ok(pubsub) => {
                    let mut messages = pubsub.into_on_message();
                    while let Some(message) = messages.next().await {
                        match Belt::decode(&message) {
                            Message::Bell => self.ring(),
                            Message::News(jobs) => self.tell(&jobs),
                        }
                    }
                }
                Err(error) => debug!(error = %crate::telemetry::chain(&error), "no news from Redis"),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn tell(&self, jobs: &[JobId]) {
        let followers = self.lock();
        if followers.is_empty() {
            return;
        }
        for job in jobs {
            if let Some((_, notify)) = followers.get(job) {
                notify.notify_waiters();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, (usize, Arc<Notify>)>> {
        self.followers.lock().expect("nothing panics while it holds this lock")
    }
}

/// Somebody who waits for news of a job.
#[derive(Debug)]
pub struct Follower {
    hub: Arc<Hub>,
    job: JobId,
    notify: Arc<Notify>,
}

impl Follower {
    /// Resolves at the next news after this call; poll it once (`enable`) before looking at the ledger.
    pub fn news(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followers = self.hub.lock();
        if let Some((count, _)) = followers.get_mut(&self.job) {
            *count -= 1;
            if *count == 0 {
                followers.remove(&self.job);
            }
        }
    }
}
