//! What this process has in hand, and until when it may.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
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
    changed: Notify,
    /// Nanoseconds on `CLOCK_BOOTTIME`, counted from before the heartbeat was sent: the ledger's own is later.
    lease_ends_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    /// Who this process is to the ledger. `None`: not registered yet, or the lease was lost; nothing is claimed.
    worker: Option<WorkerId>,
    jobs: HashMap<JobId, Entry>,
    guards: Vec<std::sync::Weak<Timer>>,
    /// Claims on their way: neither in hand nor certainly not.
    claims: usize,
    /// Claims that wait for a suspect to be done.
    waiting_claims: usize,
    /// A suspect wants to run alone or does.
    alone: bool,
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
#[derive(Debug)]
pub struct ClaimUnderWay<'a> {
    hand: &'a Hand,
    /// Who claims.
    pub worker: WorkerId,
}

impl Drop for ClaimUnderWay<'_> {
    fn drop(&mut self) {
        self.hand.lock().claims -= 1;
        self.hand.changed.notify_waiters();
    }
}

struct WaitingClaim<'a>(&'a Hand);

impl<'a> WaitingClaim<'a> {
    fn new(hand: &'a Hand) -> Self {
        hand.lock().waiting_claims += 1;
        Self(hand)
    }
}

impl Drop for WaitingClaim<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting_claims -= 1;
    }
}

/// Until the suspect has settled.
#[derive(Debug)]
pub struct Alone(Arc<Hand>);

impl Drop for Alone {
    fn drop(&mut self) {
        self.0.lock().alone = false;
        self.0.changed.notify_waiters();
    }
}

impl Hand {
    /// Claims nothing before [`Self::become_worker`].
    pub fn new() -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), changed: Notify::new(), lease_ends_ns: AtomicU64::new(0) })
    }

    pub fn worker(&self) -> Option<WorkerId> {
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
        if held.worker != Some(claim.worker) {
            return None;
        }
        // The ledger took the job from this very worker, as past its deadline, and gave it back: the run before is over.
        if let Some(before) = held.jobs.insert(claim.job, entry) {
            end(&before, StopReason::LeaseLost);
        }
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

    /// The ledger has taken everything away: what runs is ended, and nothing is claimed until
    /// [`Self::become_worker`], since a claim for a worker that the ledger does not know would be taken back at once.
    pub fn lose_lease(&self) {
        let mut held = self.lock();
        held.worker = None;
        self.lease_ends_ns.store(0, Ordering::SeqCst);
        for entry in held.jobs.values() {
            end(entry, StopReason::LeaseLost);
        }
    }

    /// The ledger knows this process by this name now.
    pub fn become_worker(&self, worker: WorkerId) {
        self.lock().worker = Some(worker);
        self.changed.notify_waiters();
    }

    /// Waits until this process has a lease and no suspect runs alone, then announces a claim.
    pub async fn claim_under_way(&self) -> ClaimUnderWay<'_> {
        let _waiting = WaitingClaim::new(self);
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            {
                let mut held = self.lock();
                if let Some(worker) = held.worker
                    && !held.alone
                    && !self.lease_left().is_zero()
                {
                    held.claims += 1;
                    return ClaimUnderWay { hand: self, worker };
                }
            }
            changed.await;
        }
    }

    /// Waits, while nothing is claimed, until nothing is in hand. `None`: that took too long, another suspect was
    /// first, or those whom the last suspect kept waiting go first.
    pub async fn be_alone(self: &Arc<Self>, longest: Duration) -> Option<Alone> {
        {
            let mut held = self.lock();
            if held.alone || held.waiting_claims > 0 {
                return None;
            }
            held.alone = true;
        }
        let alone = Alone(Arc::clone(self));
        let quiet = self.wait_until(|held| held.claims == 0 && held.jobs.is_empty());
        tokio::time::timeout(longest, quiet).await.ok().map(|()| alone)
    }

    pub async fn wait_empty(&self) {
        self.wait_until(|held| held.jobs.is_empty()).await;
    }

    pub async fn wait_settled(&self, job: JobId) {
        self.wait_until(|held| !held.jobs.contains_key(&job)).await;
    }

    async fn wait_until(&self, done: impl Fn(&Held) -> bool) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if done(&self.lock()) {
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
        drop(held);
        self.changed.notify_waiters();
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

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Poll};

    use futures::poll;

    use super::*;

    const LEASE: Duration = Duration::from_secs(8);
    const LONG: Duration = Duration::from_secs(60);

    fn leased(worker: WorkerId) -> Arc<Hand> {
        let hand = Hand::new();
        hand.become_worker(worker);
        hand.renewed(lease_guard::boottime_ns(), LEASE);
        hand
    }

    fn claim_of(worker: WorkerId) -> Claim {
        Claim {
            job: JobId::new(),
            run: 1,
            worker,
            tenant: crate::ids::TenantId::SYSTEM,
            group: None,
            kind: "any".into(),
            failed_attempts: 0,
            retries: 0,
            max_attempts: 1,
            timeout: LONG,
            args: serde_json::value::RawValue::from_string("null".into()).unwrap(),
            checkpoint: None,
            suspect: false,
            created_at: chrono::Utc::now(),
            due_at: chrono::Utc::now(),
            claimed_at: chrono::Utc::now(),
        }
    }

    async fn take(hand: &Hand, claim: &Claim) -> Option<Grip> {
        let slots = Arc::new(tokio::sync::Semaphore::new(1));
        hand.take(claim, slots.acquire_owned().await.unwrap())
    }

    async fn waits(future: impl Future) -> bool {
        poll!(pin!(future)).is_pending()
    }

    #[tokio::test]
    async fn nothing_is_claimed_for_a_worker_that_the_ledger_does_not_know() {
        let hand = Hand::new();
        assert!(waits(hand.claim_under_way()).await, "it is not registered");
        let first = WorkerId::new();
        hand.become_worker(first);
        assert!(waits(hand.claim_under_way()).await, "it has no lease");
        hand.renewed(lease_guard::boottime_ns(), LEASE);
        assert_eq!(hand.claim_under_way().await.worker, first);

        let (running, late) = (claim_of(first), claim_of(first));
        let grip = take(&hand, &running).await.unwrap();
        hand.lose_lease();
        assert!(grip.stop.is_cancelled() && grip.reason() == StopReason::LeaseLost);
        let mut claims = pin!(hand.claim_under_way());
        assert!(poll!(claims.as_mut()).is_pending(), "it is nobody until it has registered anew");
        assert!(take(&hand, &late).await.is_none(), "what was claimed before is another's");

        let second = WorkerId::new();
        hand.become_worker(second);
        hand.renewed(lease_guard::boottime_ns(), LEASE);
        let Poll::Ready(claims) = poll!(claims.as_mut()) else { panic!("it may claim again") };
        assert_eq!(claims.worker, second);
        assert!(take(&hand, &late).await.is_none());
    }

    #[tokio::test]
    async fn who_waited_for_a_suspect_goes_before_the_next() {
        let hand = leased(WorkerId::new());
        let alone = hand.be_alone(LONG).await.unwrap();
        let mut claims = pin!(hand.claim_under_way());
        assert!(poll!(claims.as_mut()).is_pending());
        drop(alone);
        assert!(hand.be_alone(LONG).await.is_none());
        let Poll::Ready(claims) = poll!(claims.as_mut()) else { panic!("the suspect is done") };
        assert!(waits(hand.be_alone(LONG)).await, "a claim is on its way");
        drop(claims);
        assert!(hand.be_alone(LONG).await.is_some());
    }

    #[tokio::test]
    async fn a_suspect_that_gives_up_lets_the_others_claim() {
        let worker = WorkerId::new();
        let hand = leased(worker);
        let _grip = take(&hand, &claim_of(worker)).await.unwrap();
        assert!(hand.be_alone(Duration::from_millis(5)).await.is_none());
        assert!(!waits(hand.claim_under_way()).await);
    }
}
