//! Heartbeats, on an OS thread, a runtime and a connection of their own: neither a busy runtime nor a full pool
//! beside ffmpeg on two cores can lose a lease falsely (E13).

use std::{sync::Arc, thread, time::Duration};

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    hand::{Hand, StopReason},
    layers::Counts,
    lease_guard::boottime_ns,
    ledger::{self, Heartbeat, WorkerRow},
};
use crate::{ids::WorkerId, telemetry::chain};

/// How long a worker may be silent before its jobs are given to others.
pub const LEASE: Duration = Duration::from_secs(8);
const BEAT: Duration = Duration::from_secs(2);
/// A cancelled job stops within a second.
const LOOK_FOR_CANCELS: Duration = Duration::from_millis(400);
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
/// Longer than any claim may still be on its way: the statement's own limit and the answer's.
const CLAIM_CERTAIN_AFTER: Duration = Duration::from_secs(12);

pub struct Heart {
    pub options: PgConnectOptions,
    pub hand: Arc<Hand>,
    pub counts: Arc<Counts>,
    pub row: WorkerRow,
    /// Cancelled when the worker starts to stop.
    pub stopping: CancellationToken,
    /// Cancelled when nothing is in hand any more.
    pub stopped: CancellationToken,
}

impl Heart {
    /// Beats until `stopped`. `registered` is cancelled once the worker may claim.
    pub fn start(self, registered: CancellationToken) -> std::io::Result<thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("heart".into()).spawn(move || runtime.block_on(self.beat(registered)))
    }

    async fn beat(mut self, registered: CancellationToken) {
        let mut connection = None;
        let mut last_beat = None::<tokio::time::Instant>;
        let mut is_registered = false;
        while !self.stopped.is_cancelled() {
            let is_due = last_beat.is_none_or(|at| at.elapsed() >= BEAT);
            let round = self.round(&mut connection, is_due, &mut is_registered);
            match tokio::time::timeout(ANSWER_DEADLINE, round).await {
                Ok(Ok(())) => {
                    if is_due {
                        last_beat = Some(tokio::time::Instant::now());
                    }
                    if is_registered {
                        registered.cancel();
                    }
                }
                Ok(Err(error)) => {
                    warn!(error = %chain(&error), lease_left = ?self.hand.lease_left(), "the heartbeat failed");
                    connection = None;
                }
                Err(_) => {
                    warn!(lease_left = ?self.hand.lease_left(), "the heartbeat had no answer");
                    connection = None;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_FOR_CANCELS) => {}
                () = self.stopped.cancelled() => {}
            }
        }
        self.say_stopped(connection).await;
    }

    async fn round(
        &mut self,
        connection: &mut Option<PgConnection>,
        is_due: bool,
        is_registered: &mut bool,
    ) -> sqlx::Result<()> {
        let db = match connection {
            Some(db) => db,
            none => none.insert(PgConnection::connect_with(&self.options).await?),
        };
        // Counted from before it is sent: the ledger's lease ends later than ours.
        let sent_ns = boottime_ns();
        if !*is_registered {
            ledger::register(&mut *db, &self.row, LEASE).await?;
            *is_registered = true;
            self.hand.renewed(sent_ns, LEASE);
        } else if is_due {
            let pairs = self.hand.pairs();
            let stopping = self.stopping.is_cancelled();
            match ledger::heartbeat(&mut *db, self.row.id, LEASE, pairs.len(), self.counts.ended(), stopping).await? {
                Heartbeat::Renewed => self.hand.renewed(sent_ns, LEASE),
                Heartbeat::Lost => return self.begin_anew(db).await,
            }
            // A run that has just settled may be among them: ending it again does nothing.
            for (job, run) in ledger::lost_runs(&mut *db, self.row.id, &pairs).await? {
                self.hand.stop(job, run, StopReason::LeaseLost);
            }
            let strays = ledger::hand_back_strays(&mut *db, self.row.id, &pairs, CLAIM_CERTAIN_AFTER).await?;
            if strays > 0 {
                info!(strays, "jobs whose claim had no answer were handed back");
            }
        }
        for (job, run) in ledger::cancel_requests(db, self.row.id).await? {
            self.hand.stop(job, run, StopReason::Cancelled);
        }
        Ok(())
    }

    /// The relay has given this worker's jobs to others. What still runs here is ended; the process goes on as
    /// another worker.
    async fn begin_anew(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        warn!(worker = %self.row.id, "the lease was lost; its runs are ended");
        let lost = std::mem::replace(&mut self.row.id, WorkerId::new());
        self.hand.become_another(self.row.id);
        let sent_ns = boottime_ns();
        ledger::register(&mut *db, &self.row, LEASE).await?;
        self.hand.renewed(sent_ns, LEASE);
        let acquitted = ledger::acquit(db, lost).await?;
        if acquitted > 0 {
            info!(acquitted, "its jobs are no suspects: this process was silent, not dead");
        }
        Ok(())
    }

    async fn say_stopped(&self, connection: Option<PgConnection>) {
        let goodbye = async {
            let mut db = match connection {
                Some(db) => db,
                None => PgConnection::connect_with(&self.options).await?,
            };
            ledger::say_stopped(&mut db, self.row.id).await?;
            db.close().await
        };
        if !matches!(tokio::time::timeout(ANSWER_DEADLINE, goodbye).await, Ok(Ok(()))) {
            warn!("the ledger was not told that this worker stopped; its lease will end by itself");
        }
    }
}
