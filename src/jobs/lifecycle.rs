//! The whole life of a job, in reading order: handed out, attempted, decided, settled. Every kind takes this path.

use std::{panic::AssertUnwindSafe, sync::Arc};

use apalis_core::task::data::Data;
use futures::FutureExt;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    Engine, JobContext, Registry,
    backend::Handed,
    emitter::Emitter,
    hand::Hand,
    job::Backoff,
    ledger::{Claim, End, Settlement},
    retry::{Attempts, Outcome, decide},
};

/// What every run of this worker shares.
#[derive(Clone)]
pub struct Bench {
    pub(super) engine: Engine,
    pub(super) hand: Arc<Hand>,
    pub(super) registry: Arc<Registry>,
    pub(super) emitter: Emitter,
    pub(super) settlements: mpsc::Sender<Settlement>,
}

/// One run of one job. Never fails for apalis: whatever happens becomes a value and goes to the ledger.
pub async fn execute(handed: Handed, bench: Data<Arc<Bench>>) {
    let Handed(claim, grip) = handed;
    let cx = JobContext::new(&claim, grip, &bench.engine, &bench.hand, &bench.registry, &bench.emitter);
    let outcome = attempt(&claim, &cx, &bench.registry).await;
    let attempts = Attempts { failed: claim.failed_attempts, max: claim.max_attempts };
    let backoff = bench.registry.get(&claim.kind).map_or(Backoff::DEFAULT, |kind| kind.backoff);
    match decide(outcome, attempts, backoff, rand::random()) {
        Some(end) => settle(&claim, end, &bench).await,
        // Another worker has it; this one only forgets.
        None => bench.hand.let_go([(claim.job, claim.run)]),
    }
}

/// Timeout, panic, and an end from outside become values.
async fn attempt(claim: &Claim, cx: &JobContext, registry: &Registry) -> Outcome {
    let Some(kind) = registry.get(&claim.kind) else {
        return Outcome::Undecodable(format!("this worker does not know the kind \"{}\"", claim.kind));
    };
    let run = match kind.run(&claim.args, cx) {
        Ok(run) => AssertUnwindSafe(run).catch_unwind(),
        Err(error) => return Outcome::Undecodable(format!("its arguments cannot be read: {error}")),
    };
    tokio::select! {
        biased;
        () = cx.cancelled().cancelled() => Outcome::Stopped(cx.stop_reason()),
        returned = tokio::time::timeout(claim.timeout, run) => match returned {
            Ok(Ok(result)) => Outcome::Returned(result),
            Ok(Err(panic)) => Outcome::Panicked(panic_message(panic.as_ref())),
            Err(_) => Outcome::TimedOut(claim.timeout),
        },
    }
}

async fn settle(claim: &Claim, end: End, bench: &Bench) {
    match &end {
        End::Failed { why, class } => {
            warn!(job = %claim.job, kind = claim.kind, class, code = why.code, message = why.message, "failed");
        }
        End::Again { why, class, charged: true, .. } => {
            debug!(job = %claim.job, kind = claim.kind, class, code = why.code, message = why.message, "will be retried");
        }
        _ => {}
    }
    let settlement = Settlement { job: claim.job, run: claim.run, end };
    if bench.settlements.send(settlement).await.is_err() {
        warn!(job = %claim.job, "the worker is gone before the job was settled; its lease brings it back");
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked without a message".into())
}
