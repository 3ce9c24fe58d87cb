//! `multivio bench latency`: from the moment a job is durable to the start of its handler, one at a time, while
//! nothing else runs.
//!
//! This process hosts the worker itself, with the production engine and a handler that reads the clock, so that both
//! ends are read from one clock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    limits::Updates,
    report::{Figure, Target},
    stage::{Ground, Stage},
};
use crate::{
    cli::{Failure, working::progress},
    ids::TenantId,
    jobs::{Engine, Job, JobContext, NewJob, Queue, Registry, Stop, belt::Belt, worker},
    telemetry::chain,
};

const TARGET_P50_MS: f64 = 1.5;
const TARGET_P99_MS: f64 = 5.0;
const WARM_UP: u32 = 20;
const START_WITHIN: Duration = Duration::from_secs(10);
const LONGEST_NS: u64 = 60_000_000_000;
/// Between two jobs: long enough that all is idle again.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Args)]
pub struct Sizes {
    /// Jobs, one at a time
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..))]
    jobs: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { jobs: 500 }
    }
}

/// Says when its handler started.
#[derive(Debug, Serialize, Deserialize)]
struct Probe {
    number: u32,
}

struct Starts(mpsc::UnboundedSender<(u32, Instant)>);

impl Job for Probe {
    const KIND: &'static str = "bench_probe";
    const QUEUE: Queue = Queue::Ops;
    type Output = u32;

    async fn run(&self, cx: &JobContext) -> Result<u32, Stop> {
        let now = Instant::now();
        // The measurement may have ended before its last job.
        let _ended = cx.service::<Starts>().0.send((self.number, now));
        Ok(self.number)
    }
}

pub async fn run(stage: &Stage, sizes: &Sizes) -> Result<Vec<Figure>, Failure> {
    let ground = stage.ground("latency").await?;
    let stop = CancellationToken::new();
    let figures = measure(&ground, sizes, &stop).await;
    stop.cancel();
    stage.clear(ground).await?;
    figures
}

async fn measure(ground: &Ground, sizes: &Sizes, stop: &CancellationToken) -> Result<Vec<Figure>, Failure> {
    let commits = Updates::prepare(ground).await?.commits().await?;
    let (sender, mut starts) = mpsc::unbounded_channel();
    let registry = Registry::default().job::<Probe>().service(Arc::new(Starts(sender)));
    let options = worker::Options { queue: Queue::Ops, concurrency: 8, grace: Duration::ZERO, process: Uuid::new_v4() };
    let (config, stopping) = (ground.config.clone(), stop.clone());
    tokio::spawn(async move { worker::run(&config, registry, options, stopping).await });
    let belt = Belt::new(&ground.config.redis, ground.db.clone()).map_err(|error| Failure::failed(chain(&error)))?;
    let engine = Engine::new(ground.db.clone(), ground.session()?, belt);

    let broken = |error: &dyn std::fmt::Display| Failure::failed(format!("latency: {error}"));
    // With bounds: one that grows by itself cuts what is recorded at the little that it begins with.
    let mut latencies = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3).map_err(|error| broken(&error))?;
    let bar = progress("enqueueing one by one", u64::from(sizes.jobs));
    for number in 0..WARM_UP + sizes.jobs {
        let job = NewJob::of(&Probe { number }, TenantId::SYSTEM);
        engine.enqueue(job).await.map_err(|error| broken(&chain(&error)))?;
        let durable = Instant::now();
        let started = tokio::time::timeout(START_WITHIN, starts.recv()).await;
        let (of, started) =
            started.ok().flatten().ok_or_else(|| broken(&"a job did not start within 10 s of its enqueue"))?;
        if of != number {
            return Err(broken(&"a job started twice"));
        }
        if number >= WARM_UP {
            // A handler that starts before the answer is here has waited for nothing.
            let nanos = started.saturating_duration_since(durable).as_nanos();
            latencies.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
            bar.inc(1);
        }
        tokio::time::sleep(PAUSE).await;
    }
    bar.finish_and_clear();
    let at_ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
    let commit_ms = 1e3 * 2.0 / commits;
    Ok(vec![
        Figure::new("durable enqueue to handler start: p50", at_ms(0.5), "ms")
            .beside("one commit", commit_ms, "ms")
            .target(Target::AtMost(TARGET_P50_MS)),
        Figure::new("durable enqueue to handler start: p99", at_ms(0.99), "ms")
            .beside("one commit", commit_ms, "ms")
            .target(Target::AtMost(TARGET_P99_MS)),
    ])
}
