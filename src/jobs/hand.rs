//! What this process has in hand, and until when it may.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::{
    lease_guard::{self, LeaseGuard, Timer},
    ledger::Claim,
};
use crate::ids::{JobId, WorkerId};

/// Why a run is ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody asked for it.
    Cancelled,
    /// The ledger has given the job to another: nothing this run says counts any more.
    LeaseLost,
    /// The worker stops and its grace is over.
    Stopping,
}

#[derive(Debug)]
pub struct Hand {
    held: Mutex<Held>,
    /// Claims on their way: neither in hand nor certainly not.
    claims: AtomicUsize,
    /// A suspect wants to run alone or does.
    alone: AtomicBool,
    changed: Notify,
    /// Nanoseconds on `CLOCK_BOOTTIME`, counted from before the heartbeat was sent: the ledger's own is later.
    lease_ends_ns: AtomicU64,
}

#[derive(Debug)]
struct Held {
    worker: WorkerId,
    jobs: HashMap<JobId, Entry>,
    guards: Vec<std::sync::Weak<Timer>>,
}

#[derive(Debug)]
struct Entry {
    run: i32,
    stop: CancellationToken,
    reason: Arc<Mutex<Option<StopReason>>>,
    /// Free again once the ledger has the run's end: never more in hand than there are slots.
    _slot: OwnedSemaphorePermit,
}

/// What a run holds of its entry.
#[derive(Debug, Clone)]
pub struct Grip {
    pub stop: CancellationToken,
    reason: Arc<Mutex<Option<StopReason>>>,
}

impl Grip {
    pub fn reason(&self) -> StopReason {
        // Cancelled without a reason: the worker itself goes down.
        self.reason.lock().expect("never poisoned").unwrap_or(StopReason::Stopping)
    }
}

/// Until the claims of a batch are in hand or known to have failed.
pub struct ClaimUnderWay<'a>(&'a Hand);

impl Drop for ClaimUnderWay<'_> {
    fn drop(&mut self) {
        self.0.claims.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

/// Until the suspect has settled.
pub struct Alone(Arc<Hand>);

impl Drop for Alone {
    fn drop(&mut self) {
        self.0.alone.store(false, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Hand {
    pub fn new(worker: WorkerId) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::new(Held { worker, jobs: HashMap::new(), guards: Vec::new() }),
            claims: AtomicUsize::new(0),
            alone: AtomicBool::new(false),
            changed: Notify::new(),
            lease_ends_ns: AtomicU64::new(0),
        })
    }

    pub fn worker(&self) -> WorkerId {
        self.lock().worker
    }

    pub fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    pub fn pairs(&self) -> Vec<(JobId, i32)> {
        self.lock().jobs.iter().map(|(job, entry)| (*job, entry.run)).collect()
    }

    /// `None`: it was claimed for a worker that this process is no longer.
    pub fn take(&self, claim: &Claim, slot: OwnedSemaphorePermit) -> Option<Grip> {
        let entry = Entry { run: claim.run, stop: CancellationToken::new(), reason: Arc::default(), _slot: slot };
        let grip = Grip { stop: entry.stop.clone(), reason: Arc::clone(&entry.reason) };
        let mut held = self.lock();
        if held.worker != claim.worker {
            return None;
        }
        held.jobs.insert(claim.job, entry);
        Some(grip)
    }

    /// Lets go of what has settled.
    pub fn let_go(&self, settled: impl IntoIterator<Item = (JobId, i32)>) {
        {
            let mut held = self.lock();
            for (job, run) in settled {
                if held.jobs.get(&job).is_some_and(|entry| entry.run == run) {
                    held.jobs.remove(&job);
                }
            }
        }
        self.changed.notify_waiters();
    }

    pub fn stop(&self, job: JobId, run: i32, reason: StopReason) {
        if let Some(entry) = self.lock().jobs.get(&job).filter(|entry| entry.run == run) {
            end(entry, reason);
        }
    }

    pub fn stop_all(&self, reason: StopReason) {
        for entry in self.lock().jobs.values() {
            end(entry, reason);
        }
    }

    /// The ledger has taken everything away; from now on this process is another worker.
    pub fn become_another(&self, worker: WorkerId) {
        let mut held = self.lock();
        held.worker = worker;
        for entry in held.jobs.values() {
            end(entry, StopReason::LeaseLost);
        }
    }

    /// Waits until no suspect runs alone, then announces a claim.
    pub async fn claim_under_way(&self) -> ClaimUnderWay<'_> {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            self.claims.fetch_add(1, Ordering::SeqCst);
            if !self.alone.load(Ordering::SeqCst) {
                return ClaimUnderWay(self);
            }
            self.claims.fetch_sub(1, Ordering::SeqCst);
            self.changed.notify_waiters();
            changed.await;
        }
    }

    /// Waits until nothing is in hand and nobody claims. `None`: another suspect was first.
    pub async fn be_alone(self: &Arc<Self>) -> Option<Alone> {
        if self.alone.swap(true, Ordering::SeqCst) {
            return None;
        }
        let alone = Alone(Arc::clone(self));
        self.wait_until(|hand| hand.claims.load(Ordering::SeqCst) == 0 && hand.len() == 0).await;
        Some(alone)
    }

    pub async fn wait_empty(&self) {
        self.wait_until(|hand| hand.len() == 0).await;
    }

    pub async fn wait_settled(&self, job: JobId) {
        self.wait_until(|hand| !hand.lock().jobs.contains_key(&job)).await;
    }

    async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if done(self) {
                return;
            }
            changed.await;
        }
    }

    /// The lease was renewed by a heartbeat sent at `sent_ns` of [`lease_guard::boottime_ns`].
    pub fn renewed(&self, sent_ns: u64, lease: Duration) {
        let ends_ns = sent_ns + u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        self.lease_ends_ns.store(ends_ns, Ordering::SeqCst);
        let mut held = self.lock();
        held.guards.retain(|guard| guard.upgrade().is_some_and(|timer| timer.rearm(ends_ns).is_ok()));
    }

    pub fn lease_left(&self) -> Duration {
        let ends_ns = self.lease_ends_ns.load(Ordering::SeqCst);
        Duration::from_nanos(ends_ns.saturating_sub(lease_guard::boottime_ns()))
    }

    /// See [`super::JobContext::arm_lease_guard`].
    pub fn arm(&self) -> std::io::Result<LeaseGuard> {
        let guard = LeaseGuard::new(self.lease_ends_ns.load(Ordering::SeqCst))?;
        self.lock().guards.push(guard.timer());
        Ok(guard)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("nothing panics while it holds this lock")
    }
}

fn end(entry: &Entry, reason: StopReason) {
    entry.reason.lock().expect("never poisoned").get_or_insert(reason);
    entry.stop.cancel();
}
