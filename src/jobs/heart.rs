//! Heartbeats, on an OS thread, a runtime and a connection of their own: neither a busy runtime nor a full pool
//! beside ffmpeg on two cores can lose a lease falsely (E13).

use std::{sync::Arc, thread, time::Duration};

use sqlx::{Connection, PgConnection};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    figures::RunFigures,
    hand::{Hand, StopReason},
    lease_guard::boottime_ns,
    ledger::{self, Heartbeat, WorkerRow},
};
use crate::{
    db::{self, Session},
    ids::WorkerId,
    telemetry::chain,
};

/// How long a worker may be silent before its jobs are given to others.
pub const LEASE: Duration = Duration::from_secs(8);
const BEAT: Duration = Duration::from_secs(2);
/// A cancelled job stops within a second.
const LOOK_FOR_CANCELS: Duration = Duration::from_millis(400);
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
/// How long a run that blocks its thread may keep everything else from hearing of its sockets and timers.
const NUDGE: Duration = Duration::from_millis(250);
/// Longer than any claim may still be on its way: whoever claims waits no longer than [`db::ANSWER_DEADLINE`].
const CLAIM_CERTAIN_AFTER: Duration = Duration::from_secs(12);
const _: () = assert!(db::ANSWER_DEADLINE.as_secs() < CLAIM_CERTAIN_AFTER.as_secs());

pub struct Heart {
    pub session: Session,
    pub hand: Arc<Hand>,
    pub figures: Arc<RunFigures>,
    pub row: WorkerRow,
    /// Cancelled when the worker starts to stop.
    pub stopping: CancellationToken,
    /// Cancelled when nothing is in hand any more.
    pub stopped: CancellationToken,
}

impl Heart {
    /// Beats until `stopped`. `registered` is cancelled once the worker may claim, `ended` however the beating ends.
    /// Called within the runtime of the runs.
    pub fn start(
        self,
        registered: CancellationToken,
        ended: CancellationToken,
    ) -> std::io::Result<thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let beating = Beating { heart: self, is_registered: false, silenced: Vec::new() };
        let of_runs = Handle::current();
        thread::Builder::new().name("heart".into()).spawn(move || {
            let _ended = ended.drop_guard();
            runtime.spawn(nudge(of_runs));
            runtime.block_on(beating.run(registered));
        })
    }
}

/// The thread that hears of sockets and timers goes straight on to a task that one of them wakes, and no other thread
/// takes its place before there is work for one. A run that blocks that thread would stop all the others: the smallest
/// work there is makes another thread listen.
async fn nudge(runtime: Handle) {
    loop {
        tokio::time::sleep(NUDGE).await;
        runtime.spawn(async {});
    }
}

struct Beating {
    heart: Heart,
    is_registered: bool,
    /// Who this process was when it lost a lease, until the ledger has taken note that it was silent, not dead.
    silenced: Vec<WorkerId>,
}

impl Beating {
    async fn run(mut self, registered: CancellationToken) {
        let mut connection = None;
        let mut last_beat = None::<tokio::time::Instant>;
        while !self.heart.stopped.is_cancelled() {
            let is_due = last_beat.is_none_or(|at| at.elapsed() >= BEAT);
            match tokio::time::timeout(ANSWER_DEADLINE, self.round(&mut connection, is_due)).await {
                Ok(Ok(())) => {
                    if is_due {
                        last_beat = Some(tokio::time::Instant::now());
                    }
                    registered.cancel();
                }
                Ok(Err(error)) => {
                    warn!(error = %chain(&error), lease_left = ?self.heart.hand.lease_left(), "the heartbeat failed");
                    connection = None;
                }
                Err(_) => {
                    warn!(lease_left = ?self.heart.hand.lease_left(), "the heartbeat had no answer");
                    connection = None;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_FOR_CANCELS) => {}
                () = self.heart.stopped.cancelled() => {}
            }
        }
        self.say_stopped(connection).await;
    }

    async fn round(&mut self, connection: &mut Option<PgConnection>, is_due: bool) -> sqlx::Result<()> {
        let db = match connection {
            Some(db) => db,
            none => none.insert(self.heart.session.connect().await?),
        };
        if !self.is_registered {
            self.register(db).await?;
        } else if is_due {
            self.renew(db).await?;
        }
        let Heart { hand, row, .. } = &self.heart;
        for (job, run) in ledger::cancel_requests(&mut *db, row.id).await? {
            hand.stop(job, run, StopReason::Cancelled);
        }
        while let Some(silenced) = self.silenced.last() {
            let acquitted = ledger::acquit(&mut *db, *silenced).await?;
            if acquitted > 0 {
                info!(acquitted, "its jobs are no suspects: this process was silent, not dead");
            }
            self.silenced.pop();
        }
        Ok(())
    }

    /// In this order: nothing is claimed for a worker that the ledger does not know. Repeated under the same name
    /// until it is answered.
    async fn register(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        let Heart { hand, row, .. } = &self.heart;
        // Counted from before it is sent: the ledger's lease ends later than ours.
        let sent_ns = boottime_ns();
        ledger::register(db, row, LEASE).await?;
        self.is_registered = true;
        hand.become_worker(row.id);
        hand.renewed(sent_ns, LEASE);
        Ok(())
    }

    async fn renew(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        let Heart { hand, row, figures, stopping, .. } = &self.heart;
        let sent_ns = boottime_ns();
        let (pairs, stopping) = (hand.pairs(), stopping.is_cancelled());
        match ledger::heartbeat(&mut *db, row.id, LEASE, pairs.len(), figures.runs(), stopping).await? {
            Heartbeat::Renewed => hand.renewed(sent_ns, LEASE),
            Heartbeat::Lost => return self.begin_anew(db).await,
        }
        // A run that has just settled may be among them: ending it again does nothing.
        for (job, run) in ledger::lost_runs(&mut *db, row.id, &pairs).await? {
            hand.stop(job, run, StopReason::LeaseLost);
        }
        let strays = ledger::hand_back_strays(&mut *db, row.id, &pairs, CLAIM_CERTAIN_AFTER).await?;
        if strays > 0 {
            info!(strays, "jobs whose claim had no answer were handed back");
        }
        Ok(())
    }

    /// The relay has given this worker's jobs to others. What still runs here is ended; the process goes on as
    /// another worker.
    async fn begin_anew(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        warn!(worker = %self.heart.row.id, "the lease was lost; its runs are ended");
        self.heart.hand.lose_lease();
        self.silenced.push(std::mem::replace(&mut self.heart.row.id, WorkerId::new()));
        self.is_registered = false;
        self.register(db).await
    }

    async fn say_stopped(&self, connection: Option<PgConnection>) {
        let goodbye = async {
            let mut db = match connection {
                Some(db) => db,
                None => self.heart.session.connect().await?,
            };
            ledger::say_stopped(&mut db, self.heart.row.id).await?;
            db.close().await
        };
        if !matches!(tokio::time::timeout(ANSWER_DEADLINE, goodbye).await, Ok(Ok(()))) {
            warn!("the ledger was not told that this worker stopped; its lease will end by itself");
        }
    }
}
