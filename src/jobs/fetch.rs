//! Fetching: from the belt into the hand, never more than there are free slots, nothing ahead of its start.

use std::{sync::Arc, time::Duration};

use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    backend::Handed,
    belt::{Belt, List, Popper, Slot},
    engine::Engine,
    hand::Hand,
    job::{Lane, Priority, Queue},
    ledger::{self, Claim, Runnable},
};
use crate::{ids::JobId, telemetry::chain};

/// Claiming whenever a single slot frees makes a convoy of one-row commits: wait for a share of the slots ...
const SHARE: usize = 8;
/// ... or for this long, whichever is first.
const GATHER: Duration = Duration::from_millis(1);
/// Most claimed by one statement.
const BATCH: usize = 256;
/// Between looks at the ledger while Redis is away.
const LOOK: Duration = Duration::from_millis(500);
/// Every so many fetches begin with another priority than the highest, so that none starves.
const TURN: u64 = 8;

pub struct Fetcher {
    pub queue: Queue,
    pub lane: Lane,
    pub kinds: Vec<&'static str>,
    pub concurrency: usize,
    pub engine: Engine,
    /// Connections of its own that commit asynchronously: a lost claim only runs again.
    pub claims: PgPool,
    pub hand: Arc<Hand>,
    pub claimed: mpsc::Sender<Handed>,
    pub stopping: CancellationToken,
}

impl Fetcher {
    /// Fetches until the worker stops; outages are waited out.
    pub async fn run(self) {
        let slots = Arc::new(Semaphore::new(self.concurrency));
        let mut popper = None;
        let mut fetches = 0_u64;
        while !self.stopping.is_cancelled() {
            let Some(permits) = self.free_slots(&slots).await else { return };
            fetches += 1;
            let popped = match self.pop(&mut popper, fetches, permits.num_permits()).await {
                Some(popped) => popped,
                None => self.claim_directly(&permits).await,
            };
            match popped {
                Popped::Nothing => {}
                Popped::Ids(ids) if self.stopping.is_cancelled() => {
                    self.give_back(Slot::Priority(Priority::Normal), &ids).await
                }
                Popped::Ids(ids) => {
                    let _announced = self.hand.claim_under_way().await;
                    match ledger::claim(&self.claims, self.hand.worker(), self.queue, &self.kinds, &ids, false).await {
                        Ok(claims) => self.start(claims, permits).await,
                        Err(error) => self.wait_out(&error).await,
                    }
                }
                Popped::Claims(claims) => self.start(claims, permits).await,
                Popped::Suspects(ids) => {
                    drop(permits);
                    self.run_alone(&slots, &ids).await;
                }
            }
        }
    }

    /// A share of the slots, or what is free after a moment. `None`: the worker stops.
    async fn free_slots(&self, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        let first = tokio::select! {
            permit = Arc::clone(slots).acquire_owned() => permit.expect("never closed"),
            () = self.stopping.cancelled() => return None,
        };
        let share = (self.concurrency / SHARE).min(BATCH);
        if share > 1 && slots.available_permits() + 1 < share {
            let rest = u32::try_from(share - 1).unwrap_or(u32::MAX);
            if let Ok(Ok(more)) = tokio::time::timeout(GATHER, Arc::clone(slots).acquire_many_owned(rest)).await {
                return Some(merge(first, more));
            }
        }
        let rest = slots.available_permits().min(BATCH - 1);
        match Arc::clone(slots).try_acquire_many_owned(u32::try_from(rest).unwrap_or(0)) {
            Ok(more) => Some(merge(first, more)),
            Err(_) => Some(first),
        }
    }

    /// `None`: Redis is away.
    async fn pop(&self, popper: &mut Option<Popper>, fetches: u64, limit: usize) -> Option<Popped> {
        if popper.is_none() {
            *popper = match self.belt().popper().await {
                Ok(popper) => Some(popper),
                Err(error) => {
                    debug!(error = %chain(&error), "no belt; claiming from the ledger");
                    return None;
                }
            };
        }
        // Not raced against anything: dropping a pop that waits may lose ids.
        match popper.as_mut()?.pop(&self.lists(fetches), limit).await {
            Ok(None) => Some(Popped::Nothing),
            Ok(Some((List { slot: Slot::Suspects, .. }, ids))) => Some(Popped::Suspects(ids)),
            Ok(Some((_, ids))) => Some(Popped::Ids(ids)),
            Err(error) => {
                warn!(error = %chain(&error), "the belt was lost; claiming from the ledger");
                *popper = None;
                None
            }
        }
    }

    /// Suspects first, else they would wait behind a busy queue for ever; then the priorities by turns.
    fn lists(&self, fetches: u64) -> [List; 4] {
        let order = match fetches % TURN {
            3 => [Priority::Normal, Priority::High, Priority::Low],
            7 => [Priority::Low, Priority::High, Priority::Normal],
            _ => [Priority::High, Priority::Normal, Priority::Low],
        };
        let list = |slot| List { queue: self.queue, lane: self.lane, slot };
        let [first, second, third] = order.map(|priority| list(Slot::Priority(priority)));
        [list(Slot::Suspects), first, second, third]
    }

    async fn claim_directly(&self, permits: &OwnedSemaphorePermit) -> Popped {
        let worker = self.hand.worker();
        let claim = |suspects, limit| {
            ledger::claim_from_ledger(&self.claims, worker, self.queue, self.lane, &self.kinds, suspects, limit)
        };
        let announced = self.hand.claim_under_way().await;
        let claims = claim(false, permits.num_permits()).await;
        drop(announced);
        match claims {
            Ok(claims) if !claims.is_empty() => return Popped::Claims(claims),
            Ok(_) => {}
            Err(error) => {
                self.wait_out(&error).await;
                return Popped::Nothing;
            }
        }
        // Being alone waits for all that runs here: only for a suspect that there is.
        if let Ok(true) = ledger::suspect_waits(&self.claims, self.queue, self.lane).await
            && let Some(alone) = self.hand.be_alone().await
        {
            if let Ok(mut claims) = claim(true, 1).await
                && let Some(suspect) = claims.pop()
            {
                let job = suspect.job;
                let slots = Arc::new(Semaphore::new(1));
                let permit = slots.acquire_owned().await.expect("never closed");
                self.start(vec![suspect], permit).await;
                self.hand.wait_settled(job).await;
            }
            drop(alone);
        }
        self.rest(LOOK).await;
        Popped::Nothing
    }

    /// A job that was in the hand of a crashed process runs with nothing beside it (E10).
    async fn run_alone(&self, slots: &Arc<Semaphore>, ids: &[JobId]) {
        let (first, rest) = ids.split_first().expect("popped at least one");
        if !rest.is_empty() {
            self.give_back(Slot::Suspects, rest).await;
        }
        let Some(_alone) = self.hand.be_alone().await else {
            self.give_back(Slot::Suspects, &[*first]).await;
            return self.rest(LOOK).await;
        };
        let worker = self.hand.worker();
        match ledger::claim(&self.claims, worker, self.queue, &self.kinds, &[*first], true).await {
            Ok(claims) if claims.is_empty() => {}
            Ok(claims) => {
                info!(job = %first, "runs alone: its last worker died with it in hand");
                let permit = Arc::clone(slots).acquire_owned().await.expect("never closed");
                self.start(claims, permit).await;
                self.hand.wait_settled(*first).await;
            }
            Err(error) => self.wait_out(&error).await,
        }
    }

    async fn start(&self, claims: Vec<Claim>, mut permits: OwnedSemaphorePermit) {
        let jobs: Vec<JobId> = claims.iter().map(|claim| claim.job).collect();
        for claim in claims {
            let slot = permits.split(1).expect("never more claims than slots");
            // Claimed for who this process was before it lost its lease: not ours, however new the claim (P1).
            let Some(grip) = self.hand.take(&claim, slot) else {
                info!(job = %claim.job, "a claim came after the lease was lost");
                continue;
            };
            // The channel holds as many as there are slots: this never waits.
            if self.claimed.send(Handed(Arc::new(claim), grip)).await.is_err() {
                warn!("claimed jobs met no worker; their lease brings them back");
            }
        }
        if !jobs.is_empty()
            && let Err(error) = self.belt().tell_news(&jobs).await
        {
            debug!(error = %chain(&error), "followers will look by themselves");
        }
    }

    async fn give_back(&self, slot: Slot, ids: &[JobId]) {
        let list = List { queue: self.queue, lane: self.lane, slot };
        let runnable: Vec<_> = ids.iter().map(|job| Runnable { job: *job, list }).collect();
        if let Err(error) = self.belt().push(&runnable).await {
            debug!(error = %chain(&error), "left to the relay");
        }
    }

    async fn wait_out(&self, error: &sqlx::Error) {
        warn!(error = %chain(error), queue = %self.queue, "claiming waits for the ledger");
        self.rest(LOOK).await;
    }

    async fn rest(&self, longest: Duration) {
        let _stopping = tokio::time::timeout(longest, self.stopping.cancelled()).await;
    }

    fn belt(&self) -> &Belt {
        self.engine.belt()
    }
}

enum Popped {
    Nothing,
    Ids(Vec<JobId>),
    Suspects(Vec<JobId>),
    /// Claimed without the belt.
    Claims(Vec<Claim>),
}

fn merge(mut permits: OwnedSemaphorePermit, more: OwnedSemaphorePermit) -> OwnedSemaphorePermit {
    permits.merge(more);
    permits
}
