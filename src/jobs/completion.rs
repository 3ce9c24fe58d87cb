//! Completions: many in one statement, kept until the ledger has them.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tracing::{debug, error, warn};

use super::{
    engine::{Engine, unstorable},
    hand::Hand,
    job::{State, Why},
    ledger::{self, End, Freed, Settlement},
};
use crate::{ids::JobId, jobs::EnqueueError, telemetry::chain};

/// Most in one statement.
const BATCH: usize = 512;
/// Runs that wait to be settled before their slots are freed more slowly.
const WAITING: usize = 4 * BATCH;
/// A crowd is worth this much waiting; a lone completion does not wait.
const GATHER: Duration = Duration::from_millis(2);
const CROWD: usize = 64;

/// Starts the task; it ends when the last sender is gone and everything is written.
pub fn start(db: PgPool, engine: Engine, hand: Arc<Hand>) -> (mpsc::Sender<Settlement>, tokio::task::JoinHandle<()>) {
    let (settlements, mut waiting) = mpsc::channel(WAITING);
    let task = tokio::spawn(async move {
        let completion = Completion { db, engine, hand };
        let mut batch = Vec::with_capacity(BATCH);
        while waiting.recv_many(&mut batch, BATCH).await > 0 {
            if batch.len() < CROWD && completion.hand.len() > 2 * CROWD {
                tokio::time::sleep(GATHER).await;
                while batch.len() < BATCH
                    && let Ok(more) = waiting.try_recv()
                {
                    batch.push(more);
                }
            }
            completion.settle_for_sure(std::mem::take(&mut batch)).await;
        }
    });
    (settlements, task)
}

struct Completion {
    /// Connections that nothing else can use up.
    db: PgPool,
    engine: Engine,
    hand: Arc<Hand>,
}

impl Completion {
    /// Writes until the ledger has answered for each: written, or no longer ours.
    async fn settle_for_sure(&self, mut batch: Vec<Settlement>) {
        let mut pause = Duration::from_millis(50);
        while !batch.is_empty() {
            match self.write(&batch).await {
                Ok(freed) => {
                    batch = self.after(batch, freed).await;
                    if !batch.is_empty() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
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
            freed.push(ledger::settle(&self.db, &others).await?);
        }
        Ok(freed)
    }

    async fn write_succeeded(&self, rows: &[(JobId, i32, &Value)], freed: &mut Vec<Freed>) -> sqlx::Result<()> {
        match ledger::settle_succeeded(&self.db, rows).await.map_err(unstorable) {
            Ok(written) => freed.push(written),
            Err(EnqueueError::Unstorable(_)) if rows.len() > 1 => {
                let (left, right) = rows.split_at(rows.len() / 2);
                Box::pin(self.write_succeeded(left, freed)).await?;
                Box::pin(self.write_succeeded(right, freed)).await?;
            }
            Err(EnqueueError::Unstorable(refusal)) => {
                for (job, run, _) in rows {
                    let why = Why::new("result_unstorable", format!("its result cannot be stored: {refusal}"));
                    let end = End::Failed { why, class: "permanent" };
                    freed.push(ledger::settle(&self.db, &[Settlement { job: *job, run: *run, end }]).await?);
                }
            }
            Err(EnqueueError::Ledger(error)) => return Err(error),
            Err(other) => error!(error = %chain(&other), "a completion met an error it cannot meet"),
        }
        Ok(())
    }

    /// Lets go of what is settled, pushes what was freed, and returns what has to be written again.
    async fn after(&self, mut batch: Vec<Settlement>, freed: Vec<Freed>) -> Vec<Settlement> {
        let mut settled = std::collections::HashSet::with_capacity(batch.len());
        let (mut runnable, mut cancelled) = (Vec::new(), Vec::new());
        for part in freed {
            settled.extend(part.settled.iter().map(|settled| settled.job));
            runnable.extend(part.runnable);
            cancelled.extend(part.cancelled_parents);
        }
        if settled.len() < batch.len() {
            let missed: Vec<_> = batch.iter().filter(|row| !settled.contains(&row.job)).map(|row| row.job).collect();
            match ledger::get_many(&self.db, &missed).await {
                // Still ours: its row was locked by another. Anything else: settled before, or the lease was lost (E2).
                Ok(rows) => {
                    let worker = self.hand.worker();
                    let ours = |row: &&ledger::JobRow| row.state == State::Running && row.worker == Some(worker);
                    let again: Vec<_> = rows.iter().filter(ours).map(|row| (row.id, row.run)).collect();
                    settled.extend(missed.into_iter().filter(|job| !again.iter().any(|(id, _)| id == job)));
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
            && let Err(error) = self.engine.release(cancelled).await
        {
            debug!(error = %chain(&error), "left to the relay's sweep");
        }
        batch
    }
}
