//! A worker process: claimed jobs through apalis workers under a monitor, with the tasks beside them, started and
//! stopped in the right order.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use apalis::layers::WorkerBuilderExt;
use apalis::prelude::{Monitor, WorkerBuilder};
use sqlx::postgres::PgPoolOptions;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    Engine, Queue, Registry,
    backend::ClaimedJobs,
    belt::Belt,
    completion,
    emitter::Emitter,
    fetch::Fetcher,
    hand::{Hand, StopReason},
    heart::Heart,
    layers::{CountLayer, Counts, TraceLayer},
    ledger::WorkerRow,
    lifecycle::{self, Bench},
    relay,
};
use crate::{config::Config, db, ids::WorkerId, telemetry};

/// How a worker runs.
#[derive(Debug, Clone)]
pub struct Options {
    pub queue: Queue,
    /// Jobs at once in each lane.
    pub concurrency: usize,
    /// How long running jobs may finish after the first signal.
    pub grace: Duration,
    /// This process, as its supervising parent knows it.
    pub process: Uuid,
}

/// Runs until `stop`, then lets running jobs finish within the grace time and hands the rest back, no attempt used
/// (E16).
pub async fn run(config: &Config, registry: Registry, options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let Options { queue, concurrency, grace, process } = options;
    let name = format!("multivio-{queue}");
    let pool = db::pool(&config.database, &name)?;
    let connect = db::engine_options(&config.database, &name)?;
    let own_pool = |options: sqlx::postgres::PgConnectOptions, size: u32| {
        PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(config.database.acquire_timeout)
            .connect_lazy_with(options)
    };
    let belt = Belt::new(&config.redis.url, pool.clone()).context("REDIS_URL")?;
    let engine = Engine::new(pool.clone(), belt);
    let registry = Arc::new(registry);

    let row =
        WorkerRow { id: WorkerId::new(), process, queue: queue.to_string(), host: hostname(), pid: std::process::id() };
    info!(worker = %row.id, %queue, concurrency, "starting");
    let hand = Hand::new(row.id);
    let counts = Arc::<Counts>::default();
    let (stopped, registered) = (CancellationToken::new(), CancellationToken::new());
    let heart = Heart {
        options: connect.clone(),
        hand: Arc::clone(&hand),
        counts: Arc::clone(&counts),
        row,
        stopping: stop.clone(),
        stopped: stopped.clone(),
    };
    let heart = heart.start(registered.clone()).context("the heart's thread could not start")?;
    let relay = tokio::spawn(relay::run(engine.clone(), own_pool(connect.clone(), 2), stop.clone()));
    let (settlements, completion) = completion::start(own_pool(connect.clone(), 2), engine.clone(), Arc::clone(&hand));
    let bench = Arc::new(Bench {
        engine: engine.clone(),
        hand: Arc::clone(&hand),
        registry: Arc::clone(&registry),
        emitter: Emitter::start(engine.belt().clone()),
        settlements,
    });

    tokio::select! {
        () = registered.cancelled() => info!(%queue, "ready"),
        () = stop.cancelled() => {}
    }
    if !stop.is_cancelled() {
        save_schedules(&registry, &engine).await;
    }
    let lanes = registry.lanes(queue);
    let claims =
        own_pool(connect.options([("synchronous_commit", "off")]), u32::try_from(lanes.len() + 1).unwrap_or(u32::MAX));
    let mut monitor = Monitor::new();
    let mut fetchers = Vec::new();
    for lane in lanes {
        let (claimed, jobs) = mpsc::channel(concurrency);
        let fetcher = Fetcher {
            queue,
            lane,
            kinds: registry.kinds(queue, lane),
            concurrency,
            engine: engine.clone(),
            claims: claims.clone(),
            hand: Arc::clone(&hand),
            claimed,
            stopping: stop.clone(),
        };
        fetchers.push(tokio::spawn(fetcher.run()));
        let (jobs, bench, name) = (ClaimedJobs::new(jobs), Arc::clone(&bench), format!("{queue}-{lane}"));
        let counts = Arc::clone(&counts);
        monitor = monitor.register(move |_| {
            WorkerBuilder::new(name.as_str())
                .backend(jobs.clone())
                .data(Arc::clone(&bench))
                .layer(TraceLayer)
                .layer(CountLayer(Arc::clone(&counts)))
                // A net below the lifecycle's own: a fault of the engine itself must not end the worker.
                .catch_panic()
                .build(lifecycle::execute)
        });
    }
    drop(bench);

    // apalis is told to stop only when nothing is in hand: it would not hand back what it holds.
    let drained = CancellationToken::new();
    let monitor = monitor.should_restart(|_, _| true).run_with_signal({
        let drained = drained.clone();
        async move {
            drained.cancelled().await;
            Ok(())
        }
    });
    let monitor = tokio::spawn(monitor);

    stop.cancelled().await;
    info!(in_hand = hand.len(), ?grace, "stopping");
    for fetcher in fetchers {
        let _ended = fetcher.await;
    }
    if tokio::time::timeout(grace, hand.wait_empty()).await.is_err() {
        info!(in_hand = hand.len(), "the grace time is over; handing back");
        hand.stop_all(StopReason::Stopping);
        if tokio::time::timeout(Duration::from_secs(5), hand.wait_empty()).await.is_err() {
            warn!(in_hand = hand.len(), "some jobs could not be handed back; their lease will bring them back");
        }
    }
    drained.cancel();
    let _ended = tokio::time::timeout(Duration::from_secs(2), monitor).await;
    let _ended = tokio::time::timeout(Duration::from_secs(5), completion).await;
    let _ended = tokio::time::timeout(Duration::from_secs(2), relay).await;
    stopped.cancel();
    let _ended = tokio::task::spawn_blocking(move || heart.join()).await;
    info!(%queue, "stopped");
    Ok(())
}

/// A schedule that could not be saved is as it was before; the next start of a worker saves it.
async fn save_schedules(registry: &Registry, engine: &Engine) {
    let save = async {
        let mut db = engine.db().acquire().await?;
        for schedule in registry.schedules() {
            schedule.save(&mut db).await?;
        }
        Ok::<_, relay::ScheduleError>(())
    };
    if let Err(error) = save.await {
        warn!(error = %telemetry::chain(&error), "the upkeep's schedules were not saved");
    }
}

pub(crate) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".into(), |name| name.trim().into())
}
