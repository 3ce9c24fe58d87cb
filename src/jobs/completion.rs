//! Completions: many in one statement, kept until the ledger has them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use sqlx::PgConnection;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tracing::{debug, error, warn};

use super::{
    engine::Engine,
    entry::unstorable,
    hand::Hand,
    job::{State, Why},
    ledger::{self, End, Freed, Settlement},
};
use crate::{
    db::{self, OwnConnection, Session},
    ids::JobId,
    jobs::EnqueueError,
    telemetry::chain,
};

/// Most in one statement.
const BATCH: usize = 512;
/// Runs that wait to be settled before their slots are freed more slowly.
const WAITING: usize = 4 * BATCH;
/// Before a row that another session holds is tried again.
const LOCKED_REST: Duration = Duration::from_millis(20);
/// A crowd is worth this much waiting; a lone completion does not wait.
const GATHER: Duration = Duration::from_millis(2);
const CROWD: usize = 64;

/// Statements at once: while the ledger writes one batch, the next gathers and is sent.
const AT_ONCE: usize = 2;

/// Starts the task; it ends when the last sender is gone and everything is written.
pub fn start(db: &Session, engine: Engine, hand: Arc<Hand>) -> (mpsc::Sender<Settlement>, tokio::task::JoinHandle<()>) {
    let (settlements, waiting) = mpsc::channel(WAITING);
    let waiting = Arc::new(Mutex::new(waiting));
    let mut writers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let db = OwnConnection::new(db.clone());
        let completion = Completion { db, engine: engine.clone(), hand: Arc::clone(&hand) };
        writers.spawn(write_all(completion, Arc::clone(&waiting)));
    }
    let task = tokio::spawn(async move {
        while let Some(ended) = writers.join_next().await {
            ended.expect("a writer waits out every error");
        }
    });
    (settlements, task)
}

/// One writer: it gathers a batch, which another may do while this one writes.
async fn write_all(completion: Completion, waiting: Arc<Mutex<mpsc::Receiver<Settlement>>>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        if batch.is_empty() {
            let mut waiting = waiting.lock().await;
            if waiting.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            if batch.len() < CROWD && completion.hand.len() > 2 * CROWD {
                tokio::time::sleep(GATHER).await;
                take_more(&mut waiting, &mut batch);
            }
        } else {
            // Others do not wait for a row that somebody holds (E4): the other writer takes them, or, when it has met
            // such a row too, they come with this one's next try.
            tokio::time::sleep(LOCKED_REST).await;
            if let Ok(mut waiting) = waiting.try_lock() {
                take_more(&mut waiting, &mut batch);
            }
        }
        batch = completion.settle_for_sure(batch).await;
    }
}

/// What waits already, as far as there is room.
fn take_more(waiting: &mut mpsc::Receiver<Settlement>, batch: &mut Vec<Settlement>) {
    while batch.len() < BATCH
        && let Ok(more) = waiting.try_recv()
    {
        batch.push(more);
    }
}

struct Completion {
    /// Nothing else can use it up.
    db: OwnConnection,
    engine: Engine,
    hand: Arc<Hand>,
}

impl Completion {
    /// Writes until the ledger has answered for each: written, no longer ours, or (these are returned) locked.
    async fn settle_for_sure(&self, batch: Vec<Settlement>) -> Vec<Settlement> {
        let mut pause = Duration::from_millis(50);
        loop {
            match self.write(&batch).await {
                Ok(freed) => return self.after(batch, freed).await,
                Err(error) => {
                    warn!(error = %chain(&error), waiting = batch.len(), "completions wait for the ledger");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    /// One statement for the plain successes, one for the rest. A row that Postgres refuses for what is in it is
    /// found by halving and ends as a failure that says so; its neighbours are written (E9).
    async fn write(&self, batch: &[Settlement]) -> sqlx::Result<Vec<Freed>> {
        let mut freed = Vec::with_capacity(2);
        let (mut succeeded, mut others) = (Vec::with_capacity(batch.len()), Vec::new());
        for settlement in batch {
            match &settlement.end {
                End::Succeeded { result } => succeeded.push((settlement.job, settlement.run, result)),
                _ => others.push(settlement.clone()),
            }
        }
        if !succeeded.is_empty() {
            self.write_succeeded(&succeeded, &mut freed).await?;
        }
        if !others.is_empty() {
            self.write_others(&others, &mut freed).await?;
        }
        Ok(freed)
    }

    async fn write_others(&self, rows: &[Settlement], freed: &mut Vec<Freed>) -> sqlx::Result<()> {
        match self.settle(rows).await.map_err(unstorable) {
            Ok(written) => freed.push(written),
            Err(EnqueueError::Unstorable(_)) if rows.len() > 1 => {
                let (left, right) = rows.split_at(rows.len() / 2);
                Box::pin(self.write_others(left, freed)).await?;
                Box::pin(self.write_others(right, freed)).await?;
            }
            Err(EnqueueError::Unstorable(refusal)) => {
                for Settlement { job, run, .. } in rows {
                    freed.push(self.fail(*job, *run, "outcome_unstorable", &refusal).await?);
                }
            }
            Err(EnqueueError::Ledger(error)) => return Err(error),
            Err(other) => error!(error = %chain(&other), "a completion met an error it cannot meet"),
        }
        Ok(())
    }

    async fn fail(&self, job: JobId, run: i32, code: &str, refusal: &str) -> sqlx::Result<Freed> {
        let why = Why::new(code, format!("what it came to cannot be stored: {refusal}"));
        let end = End::Failed { why, class: "permanent" };
        self.settle(&[Settlement { job, run, end }]).await
    }

    async fn settle(&self, rows: &[Settlement]) -> sqlx::Result<Freed> {
        self.db.run(async |db: &mut PgConnection| ledger::settle(db, rows).await).await
    }

    async fn write_succeeded(&self, rows: &[(JobId, i32, &Value)], freed: &mut Vec<Freed>) -> sqlx::Result<()> {
        let settle = async |db: &mut PgConnection| ledger::settle_succeeded(db, rows).await;
        match self.db.run(settle).await.map_err(unstorable) {
            Ok(written) => freed.push(written),
            Err(EnqueueError::Unstorable(_)) if rows.len() > 1 => {
                let (left, right) = rows.split_at(rows.len() / 2);
                Box::pin(self.write_succeeded(left, freed)).await?;
                Box::pin(self.write_succeeded(right, freed)).await?;
            }
            Err(EnqueueError::Unstorable(refusal)) => {
                for (job, run, _) in rows {
                    freed.push(self.fail(*job, *run, "result_unstorable", &refusal).await?);
                }
            }
            Err(EnqueueError::Ledger(error)) => return Err(error),
            Err(other) => error!(error = %chain(&other), "a completion met an error it cannot meet"),
        }
        Ok(())
    }

    /// Lets go of what is settled, pushes what was freed, and returns what has to be written again.
    async fn after(&self, mut batch: Vec<Settlement>, freed: Vec<Freed>) -> Vec<Settlement> {
        let mut settled = HashSet::with_capacity(batch.len());
        let (mut runnable, mut cancelled) = (Vec::new(), Vec::new());
        for part in freed {
            settled.extend(part.settled.iter().map(|settled| settled.job));
            runnable.extend(part.runnable);
            cancelled.extend(part.cancelled_parents);
            cancelled.extend(part.held_up);
        }
        if settled.len() < batch.len() {
            let missed: Vec<_> = batch.iter().filter(|row| !settled.contains(&row.job)).map(|row| row.job).collect();
            match self.db.run(async |db: &mut PgConnection| ledger::get_many(db, &missed).await).await {
                // Still this very run: its row was locked by another. Anything else: settled before, the lease was
                // lost, or the next run is under way in this same process (E2).
                Ok(rows) => {
                    let running = |row: &&ledger::JobRow| row.state == State::Running;
                    let runs: HashMap<JobId, i32> = rows.iter().filter(running).map(|row| (row.id, row.run)).collect();
                    let is_locked = |row: &&Settlement| runs.get(&row.job) == Some(&row.run);
                    let locked: HashSet<JobId> = batch.iter().filter(is_locked).map(|row| row.job).collect();
                    settled.extend(missed.into_iter().filter(|job| !locked.contains(job)));
                }
                Err(error) => debug!(error = %chain(&error), "will be written again"),
            }
        }
        self.hand.let_go(batch.iter().filter(|row| settled.contains(&row.job)).map(|row| (row.job, row.run)));
        let jobs: Vec<JobId> = settled.iter().copied().collect();
        batch.retain(|row| !settled.contains(&row.job));

        let belt = self.engine.belt();
        if !runnable.is_empty()
            && let Err(error) = belt.push(&runnable).await
        {
            debug!(error = %chain(&error), "left to the relay");
        }
        if let Err(error) = belt.tell_news(&jobs).await {
            debug!(error = %chain(&error), "followers will look by themselves");
        }
        if !cancelled.is_empty()
            && let Err(error) = db::answer(self.engine.release(cancelled)).await
        {
            debug!(error = %chain(&error), "left to the relay's sweep");
        }
        batch
    }
}
