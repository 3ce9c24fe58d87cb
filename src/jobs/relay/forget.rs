//! Forgetting what is old: a task and a connection of its own, so that it never holds up what is due.

use std::time::Duration;

use sqlx::PgPool;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    jobs::ledger::{self, Pruning, Retention},
    telemetry::chain,
};

const EVERY: Duration = Duration::from_secs(60);
/// Longest it goes on at a time.
const SPELL: Duration = Duration::from_secs(20);
/// Rows of each table that one step forgets.
const STEP: i64 = 1_000;
/// A step that takes longer than this met a server that is not well.
const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// Forgets a spell a minute while `leads`, beginning at once: a program that is restarted every minute forgets too.
pub(super) async fn run(db: PgPool, mut leads: watch::Receiver<bool>, stop: CancellationToken) {
    let (mut at, retention) = (Pruning::default(), Retention::default());
    loop {
        tokio::select! {
            led = leads.wait_for(|leads| *leads) => if led.is_err() { return },
            () = stop.cancelled() => return,
        }
        let began = Instant::now();
        while began.elapsed() < SPELL && *leads.borrow() && !stop.is_cancelled() {
            let step = Instant::now();
            let pruned = async { ledger::prune(&mut *db.acquire().await?, &mut at, &retention, STEP).await };
            match tokio::time::timeout(STEP_DEADLINE, pruned).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => break,
                Ok(Err(error)) => {
                    warn!(error = %chain(&error), "what is old was not forgotten");
                    break;
                }
                Err(_) => {
                    warn!("forgetting had no answer in time");
                    break;
                }
            }
            // As long a rest as the step took: half of one connection's time at most.
            tokio::time::sleep(step.elapsed()).await;
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}
