//! A worker process: claimed jobs through apalis workers under a monitor, with the tasks beside them, started and
//! stopped in the right order.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use apalis::layers::WorkerBuilderExt;
use apalis::prelude::{Monitor, ParallelizeExt, WorkerBuilder};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    Engine, Queue, Registry,
    backend::ClaimedJobs,
    belt::Belt,
    completion,
    emitter::Emitter,
    fetch::Fetcher,
    figures::{self, RunFigures},
    hand::{Hand, StopReason},
    heart::Heart,
    layers::{MeasureLayer, TraceLayer},
    ledger::{self, WorkerRow},
    lifecycle::{self, Bench},
    relay,
};
use crate::{
    config::Config,
    db::{OwnConnection, Session},
    ids::WorkerId,
    telemetry,
};

/// After the grace: for what still runs to be handed back ...
const HAND_BACK_WITHIN: Duration = Duration::from_secs(4);
/// ... and for everything else to end, but the last word to the ledger.
const END_WITHIN: Duration = Duration::from_secs(6);
/// How long after the grace time a worker may at most take to end; its parent kills it then.
pub const ENDS_AFTER_GRACE: Duration = Duration::from_secs(10);

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
    // Cancelled by itself when a part of the worker fails.
    let stop = stop.child_token();
    let name = format!("multivio-{queue}");
    let session = Session::worker(&config.database, &name)?;
    let pool = session.pool(config.database.acquire_timeout, config.database.max_connections);
    let connect = Session::engine(&config.database, &name)?;
    let belt = Belt::new(&config.redis, pool.clone()).context("REDIS_URL")?;
    let engine = Engine::new(pool.clone(), session, belt);
    let registry = Arc::new(registry);

    let row =
        WorkerRow { id: WorkerId::new(), process, queue: queue.to_string(), host: hostname(), pid: std::process::id() };
    info!(worker = %row.id, %queue, concurrency, "starting");
    let hand = Hand::new();
    let run_figures = Arc::new(RunFigures::new(registry.all_kinds()));
    let (stopped, registered, heart_ended) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let heart = Heart {
        session: connect.clone(),
        hand: Arc::clone(&hand),
        figures: Arc::clone(&run_figures),
        row,
        stopping: stop.clone(),
        stopped: stopped.clone(),
    };
    let heart = heart.start(registered.clone(), heart_ended.clone()).context("the heart's thread could not start")?;
    let relay_pool = connect.pool(config.database.acquire_timeout, 2);
    let mut relay = tokio::spawn(relay::run(engine.clone(), connect.clone(), relay_pool, stop.clone()));
    let impatient = ledger::impatient(connect.clone());
    let (settlements, mut completion) = completion::start(&impatient, engine.clone(), Arc::clone(&hand));
    if let Some(address) = config.worker.metrics_listen {
        tokio::spawn(figures::serve(address, Arc::clone(&run_figures), Arc::clone(&hand)));
    }
    let bench = Arc::new(Bench {
        engine: engine.clone(),
        hand: Arc::clone(&hand),
        registry: Arc::clone(&registry),
        emitter: Emitter::start(engine.belt().clone()),
        settlements,
    });

    tokio::select! {
        () = registered.cancelled() => info!(%queue, "ready"),
        () = heart_ended.cancelled() => {}
        () = stop.cancelled() => {}
    }
    if !stop.is_cancelled() {
        save_schedules(&registry, &engine).await;
    }
    let lanes = registry.lanes(queue);
    let each = Fetcher::how_many(concurrency);
    let claims = impatient.set("synchronous_commit", "off");
    let mut monitor = Monitor::new();
    let mut fetchers = JoinSet::new();
    for lane in lanes {
        let (claimed, jobs) = mpsc::channel(concurrency);
        let slots = Arc::new(Semaphore::new(concurrency));
        for _ in 0..each {
            let fetcher = Fetcher {
                queue,
                lane,
                kinds: registry.kinds(queue, lane),
                concurrency,
                slots: Arc::clone(&slots),
                engine: engine.clone(),
                claims: OwnConnection::new(claims.clone()),
                hand: Arc::clone(&hand),
                claimed: claimed.clone(),
                stopping: stop.clone(),
            };
            fetchers.spawn(fetcher.run());
        }
        let (jobs, bench, name) = (ClaimedJobs::new(jobs), Arc::clone(&bench), format!("{queue}-{lane}"));
        let run_figures = Arc::clone(&run_figures);
        monitor = monitor.register(move |_| {
            WorkerBuilder::new(name.as_str())
                .backend(jobs.clone())
                .data(Arc::clone(&bench))
                // Each run is a task of its own: one that blocks its thread stops no other, nor another lane.
                .parallelize(|run| AbortOnDropHandle::new(tokio::spawn(run)))
                .layer(TraceLayer)
                .layer(MeasureLayer(Arc::clone(&run_figures)))
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
    let mut monitor = tokio::spawn(monitor);

    // Any of these that ends by itself leaves a worker that looks alive and is not: another process has to go on.
    let failed = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        () = heart_ended.cancelled() => {
            hand.lose_lease();
            Some("heart")
        }
        Some(_) = fetchers.join_next() => Some("fetcher"),
        _ = &mut completion => Some("completion"),
        _ = &mut relay => Some("relay"),
        _ = &mut monitor => Some("monitor"),
    };
    if let Some(part) = failed {
        error!(part, "a part of the worker ended by itself; the worker stops");
        stop.cancel();
    }
    // The grace begins with the signal, whatever is under way.
    let over = Instant::now() + grace;
    info!(in_hand = hand.len(), ?grace, "stopping");
    let finish = async {
        while fetchers.join_next().await.is_some() {}
        hand.wait_empty().await;
    };
    if timeout_at(over, finish).await.is_err() {
        info!(in_hand = hand.len(), "the grace time is over; handing back");
        // A claim still on its way is nobody's: the ledger gives it to another.
        fetchers.abort_all();
        hand.stop_all(StopReason::Stopping);
        if timeout_at(over + HAND_BACK_WITHIN, hand.wait_empty()).await.is_err() {
            warn!(in_hand = hand.len(), "some jobs could not be handed back; their lease will bring them back");
        }
    }
    drained.cancel();
    let latest = Instant::now().min(over) + END_WITHIN;
    finish_by(latest, &mut monitor).await;
    finish_by(latest, &mut completion).await;
    finish_by(latest, &mut relay).await;
    stopped.cancel();
    let _ended = tokio::task::spawn_blocking(move || heart.join()).await;
    info!(%queue, "stopped");
    match failed {
        Some(part) => anyhow::bail!("the {part} ended by itself"),
        None => Ok(()),
    }
}

async fn finish_by<T>(latest: Instant, part: &mut JoinHandle<T>) {
    // One that has ended was asked for its end before, and must not be asked twice.
    if !part.is_finished() {
        let _ended = timeout_at(latest, part).await;
    }
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
