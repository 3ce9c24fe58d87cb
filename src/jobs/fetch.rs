//! Fetching: from the belt into the hand, never more than there are free slots, nothing ahead of its start.

use std::{sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    backend::Handed,
    belt::{Belt, List, Popper, Slot},
    engine::Engine,
    hand::{ClaimUnderWay, Hand},
    job::{Lane, Priority, Queue},
    ledger::{self, Claim, Runnable},
};
use crate::{
    db::OwnConnection,
    ids::{JobId, WorkerId},
    telemetry::chain,
};

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
/// From so many slots on a lane has two fetchers.
const MANY: usize = 64;
/// How long a suspect first waits for what runs beside it, while nothing else is claimed ...
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
/// ... and at most, after it has waited in vain again and again.
const LONGEST_PATIENCE: Duration = Duration::from_secs(10 * 60);

pub struct Fetcher {
    pub queue: Queue,
    pub lane: Lane,
    pub kinds: Vec<&'static str>,
    pub concurrency: usize,
    /// The lane's, as many as its concurrency; shared by its fetchers.
    pub slots: Arc<Semaphore>,
    pub engine: Engine,
    /// Commits asynchronously: a lost claim only runs again.
    pub claims: OwnConnection,
    pub hand: Arc<Hand>,
    pub claimed: mpsc::Sender<Handed>,
    pub stopping: CancellationToken,
}

impl Fetcher {
    /// How many fetchers a lane is worth: with many short jobs one pops and starts what it has while another's claim
    /// is with the ledger.
    pub const fn how_many(concurrency: usize) -> usize {
        if concurrency >= MANY { 2 } else { 1 }
    }

    /// Fetches until the worker stops; outages are waited out.
    pub async fn run(self) {
        let mut popper = None;
        let mut patience = Patience::new();
        let mut fetches = 0_u64;
        while !self.stopping.is_cancelled() {
            let Some(permits) = self.free_slots().await else { return };
            fetches += 1;
            let suspects = if !patience.is_due() { Suspects::Not } else { Suspects::by_turns(fetches) };
            let popped = match self.pop(&mut popper, &self.lists(fetches, suspects), permits.num_permits()).await {
                Some(popped) => popped,
                None => self.claim_directly(suspects, permits.num_permits()).await,
            };
            match popped {
                Popped::Nothing => {}
                Popped::Ids(list, ids) => self.claim(list, &ids, permits).await,
                Popped::Claims(claims, _announced) => self.start(claims, permits).await,
                Popped::Suspects(ids) => {
                    drop(permits);
                    self.run_alone(&ids, &mut patience).await;
                }
            }
        }
    }

    /// A share of the slots, or what is free after a moment. `None`: the worker stops.
    async fn free_slots(&self) -> Option<OwnedSemaphorePermit> {
        let slots = &self.slots;
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
    async fn pop(&self, popper: &mut Option<Popper>, lists: &[List], limit: usize) -> Option<Popped<'_>> {
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
        match popper.as_mut()?.pop(lists, limit).await {
            Ok(None) => Some(Popped::Nothing),
            // What stood on the list was no id at all.
            Ok(Some((_, ids))) if ids.is_empty() => Some(Popped::Nothing),
            Ok(Some((List { slot: Slot::Suspects, .. }, ids))) => Some(Popped::Suspects(ids)),
            Ok(Some((list, ids))) => Some(Popped::Ids(list, ids)),
            Err(error) => {
                warn!(error = %chain(&error), "the belt was lost; claiming from the ledger");
                *popper = None;
                None
            }
        }
    }

    /// The priorities by turns, and the suspects first or last, so that neither waits behind the other for ever.
    fn lists(&self, fetches: u64, suspects: Suspects) -> Vec<List> {
        let order = match fetches % TURN {
            3 => [Priority::Normal, Priority::High, Priority::Low],
            7 => [Priority::Low, Priority::High, Priority::Normal],
            _ => [Priority::High, Priority::Normal, Priority::Low],
        };
        let slots = order.map(Slot::Priority);
        let slots = match suspects {
            Suspects::Not => slots.to_vec(),
            Suspects::First => [&[Slot::Suspects], &slots[..]].concat(),
            Suspects::Last => [&slots[..], &[Slot::Suspects]].concat(),
        };
        slots.into_iter().map(|slot| List { queue: self.queue, lane: self.lane, slot }).collect()
    }

    async fn claim(&self, list: List, ids: &[JobId], permits: OwnedSemaphorePermit) {
        // A worker that stops claims nothing more.
        let Some(announced) = self.unless_stopping(self.hand.claim_under_way()).await else {
            return self.give_back(list, ids).await;
        };
        match self.claim_ids(announced.worker, ids, false).await {
            Ok(claims) => self.start(claims, permits).await,
            Err(error) => {
                drop(announced);
                // The table itself is locked: nothing was claimed, for sure.
                if ledger::is_held(&error) {
                    self.give_back(list, ids).await;
                }
                self.wait_out(&error).await;
            }
        }
    }

    async fn claim_ids(&self, worker: WorkerId, ids: &[JobId], suspects: bool) -> sqlx::Result<Vec<Claim>> {
        let claim =
            async |db: &mut PgConnection| ledger::claim(db, worker, self.queue, &self.kinds, ids, suspects).await;
        self.claims.run(claim).await
    }

    /// What a worker does while Redis is away (E7).
    async fn claim_directly(&self, suspects: Suspects, limit: usize) -> Popped<'_> {
        let popped = match suspects {
            Suspects::Not => self.claim_from_ledger(limit).await,
            Suspects::First => match self.suspects_in_ledger().await {
                Ok(Popped::Nothing) => self.claim_from_ledger(limit).await,
                popped => popped,
            },
            Suspects::Last => match self.claim_from_ledger(limit).await {
                Ok(Popped::Nothing) => self.suspects_in_ledger().await,
                popped => popped,
            },
        };
        match popped {
            Ok(Popped::Nothing) => self.rest(LOOK).await,
            Ok(popped) => return popped,
            Err(error) => self.wait_out(&error).await,
        }
        Popped::Nothing
    }

    async fn claim_from_ledger(&self, limit: usize) -> sqlx::Result<Popped<'_>> {
        let Some(announced) = self.unless_stopping(self.hand.claim_under_way()).await else {
            return Ok(Popped::Nothing);
        };
        let claim = async |db: &mut PgConnection| {
            let Self { queue, lane, kinds, .. } = self;
            ledger::claim_from_ledger(db, announced.worker, *queue, *lane, kinds, false, limit).await
        };
        let claims = self.claims.run(claim).await?;
        Ok(if claims.is_empty() { Popped::Nothing } else { Popped::Claims(claims, announced) })
    }

    async fn suspects_in_ledger(&self) -> sqlx::Result<Popped<'_>> {
        let suspects = self.runnable_suspects(None).await?;
        Ok(if suspects.is_empty() { Popped::Nothing } else { Popped::Suspects(suspects) })
    }

    /// Being alone holds up all that this process would run: only for a suspect that it could run now.
    async fn runnable_suspects(&self, among: Option<&[JobId]>) -> sqlx::Result<Vec<JobId>> {
        let look = async |db: &mut PgConnection| {
            ledger::runnable_suspects(db, self.queue, self.lane, &self.kinds, among, BATCH).await
        };
        self.claims.run(look).await
    }

    /// A job that was in the hand of a crashed process runs with nothing beside it (E10).
    async fn run_alone(&self, ids: &[JobId], patience: &mut Patience) {
        let runnable = match self.runnable_suspects(Some(ids)).await {
            Ok(runnable) => runnable,
            Err(error) => return self.wait_out(&error).await,
        };
        // What is left out here the relay's audit brings back for as long as it waits.
        let Some((&suspect, rest)) = runnable.split_first() else { return };
        let list = List { queue: self.queue, lane: self.lane, slot: Slot::Suspects };
        if !rest.is_empty() {
            self.give_back(list, rest).await;
        }
        let since = Instant::now();
        let alone = self.unless_stopping(self.hand.be_alone(patience.longest)).await.flatten();
        let (Some(_alone), Some(worker)) = (alone, self.hand.worker()) else {
            patience.was_in_vain(since.elapsed());
            return self.give_back(list, &[suspect]).await;
        };
        patience.was_rewarded();
        match self.claim_ids(worker, &[suspect], true).await {
            Ok(claims) if claims.is_empty() => {}
            Ok(claims) => {
                info!(job = %suspect, "runs alone: its last worker died with it in hand");
                let permit = Arc::clone(&self.slots).acquire_owned().await.expect("never closed");
                self.start(claims, permit).await;
                let _stopping = self.unless_stopping(self.hand.wait_settled(suspect)).await;
            }
            Err(error) => warn!(error = %chain(&error), job = %suspect, "a suspect waits for the ledger"),
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

    async fn give_back(&self, list: List, ids: &[JobId]) {
        let runnable: Vec<_> = ids.iter().map(|job| Runnable { job: *job, list }).collect();
        if let Err(error) = self.belt().push(&runnable).await {
            debug!(error = %chain(&error), "left to the relay");
        }
    }

    /// `None`: the worker stops, and what was waited for is given up.
    async fn unless_stopping<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => None,
            value = wait => Some(value),
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

enum Popped<'a> {
    Nothing,
    Ids(List, Vec<JobId>),
    Suspects(Vec<JobId>),
    /// Claimed without the belt, and announced until they are in hand: no suspect believes itself alone meanwhile.
    Claims(Vec<Claim>, ClaimUnderWay<'a>),
}

/// Where suspects stand in a fetch.
#[derive(Debug, Clone, Copy)]
enum Suspects {
    First,
    Last,
    /// The last one waited in vain a moment ago.
    Not,
}

impl Suspects {
    fn by_turns(fetches: u64) -> Self {
        if fetches.is_multiple_of(2) { Self::First } else { Self::Last }
    }
}

/// How long a suspect may keep everything else from being claimed. Doubled when it was in vain, so that its turn
/// comes however long the others run; and for as long as it waited, the others are claimed first.
struct Patience {
    longest: Duration,
    due: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { longest: FIRST_PATIENCE, due: Instant::now() }
    }

    fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    fn was_in_vain(&mut self, waited: Duration) {
        if waited >= self.longest {
            self.longest = (self.longest * 2).min(LONGEST_PATIENCE);
        }
        self.due = Instant::now() + waited.max(LOOK);
    }

    fn was_rewarded(&mut self) {
        self.longest = FIRST_PATIENCE;
    }
}

fn merge(mut permits: OwnedSemaphorePermit, more: OwnedSemaphorePermit) -> OwnedSemaphorePermit {
    permits.merge(more);
    permits
}
