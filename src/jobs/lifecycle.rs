//! The whole life of a job, in reading order: handed out, attempted, decided, settled. Every kind takes this path.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc};

use apalis_core::task::data::Data;
use futures::FutureExt;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    Engine, JobContext, Registry,
    backend::Handed,
    emitter::Emitter,
    figures::Ended,
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
pub async fn execute(handed: Handed, bench: Data<Arc<Bench>>) -> Result<Ended, Infallible> {
    let Handed(claim, grip) = handed;
    let mut unsettled = Unsettled { claim: &claim, hand: &bench.hand, is_settled: false };
    let run = async {
        let cx = JobContext::new(&claim, grip, &bench.engine, &bench.hand, &bench.registry, &bench.emitter);
        attempt(&claim, &cx, &bench.registry).await
    };
    let outcome = match AssertUnwindSafe(run).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => Outcome::Panicked(panic_message(panic.as_ref())),
    };
    let attempts = Attempts { failed: claim.failed_attempts, max: claim.max_attempts };
    let backoff = bench.registry.get(&claim.kind).map_or(Backoff::DEFAULT, |kind| kind.backoff);
    // Without an end another worker has it; this one only forgets.
    let Some(end) = decide(outcome, attempts, backoff, rand::random()) else { return Ok(Ended::LeaseLost) };
    let ended = Ended::of(&end);
    unsettled.is_settled = settle(&claim, end, &bench).await;
    Ok(ended)
}

/// Lets go of a run that is dropped or meets a fault of ours on its way to the ledger, else its slot would be taken
/// for ever. The heartbeat finds that nobody holds its job and hands it back.
struct Unsettled<'a> {
    claim: &'a Claim,
    hand: &'a Hand,
    is_settled: bool,
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.hand.let_go([(self.claim.job, self.claim.run)]);
        }
    }
}

/// Timeout and an end from outside become values.
async fn attempt(claim: &Claim, cx: &JobContext, registry: &Registry) -> Outcome {
    let Some(kind) = registry.get(&claim.kind) else {
        return Outcome::Undecodable(format!("this worker does not know the kind \"{}\"", claim.kind));
    };
    let run = match kind.run(&claim.args, cx) {
        Ok(run) => run,
        Err(error) => return Outcome::Undecodable(format!("its arguments cannot be read: {error}")),
    };
    tokio::select! {
        biased;
        () = cx.cancelled().cancelled() => Outcome::Stopped(cx.stop_reason()),
        returned = tokio::time::timeout(claim.timeout, run) => match returned {
            Ok(result) => Outcome::Returned(result),
            Err(_) => Outcome::TimedOut(claim.timeout),
        },
    }
}

/// `false`: nobody is there to write it.
async fn settle(claim: &Claim, end: End, bench: &Bench) -> bool {
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
    let is_sent = bench.settlements.send(settlement).await.is_ok();
    if !is_sent {
        warn!(job = %claim.job, "the worker is gone before the job was settled; its lease brings it back");
    }
    is_sent
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked without a message".into())
}
