//! `multivio bench drain`: jobs that do nothing, through the production worker, from the queue to their result in
//! the ledger.

use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use sqlx::Row;
use uuid::Uuid;

use super::{
    ledger,
    limits::{self, Updates},
    report::{Figure, Target},
    stage::{Ground, Program, Stage},
};
use crate::{
    cli::{Failure, working::progress},
    ids::JobId,
    jobs::{Engine, Queue, belt::Belt},
    telemetry::chain,
};

/// Of the batched updates measured in the same run.
const TARGET_RATIO: f64 = 0.15;
const GOAL_RATIO: f64 = 0.18;
/// A second drain, or one beside millions of finished jobs, must be as quick as the first, but for this.
const KEPT_RATIO: f64 = 0.9;
/// Fair turns between tenants may cost this much and no more (E18).
const TURNS_RATIO: f64 = 0.95;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Jobs looked at to see how far the drain is.
const MARKERS: usize = 100;
const STUCK_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Args)]
pub struct Sizes {
    /// Jobs to drain
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    pub jobs: u32,
    /// Jobs that wait behind them and stay there
    #[arg(long, default_value_t = 0)]
    pub waiting: u32,
    /// Finished jobs in the ledger before it begins
    #[arg(long, default_value_t = 0)]
    pub finished: u32,
    /// Drain as many again, and compare
    #[arg(long)]
    pub second: bool,
    /// Drain as many again that so many tenants share, one tenant's crowd behind the other's, and compare with one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub tenants: u16,
    /// Worker processes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub workers: u8,
    /// Jobs at once in each worker (WORKER_CONCURRENCY)
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub concurrency: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { jobs: 300_000, waiting: 0, finished: 0, second: false, tenants: 1, workers: 1, concurrency: 1_000 }
    }
}

/// One drain.
struct Drained {
    jobs: u64,
    per_second: f64,
    cpu_us_per_job: f64,
    /// Batched updates a second, before and after.
    limit: f64,
}

pub async fn run(stage: &Stage, sizes: &Sizes) -> Result<Vec<Figure>, Failure> {
    let ground = stage.ground("drain").await?;
    let figures = measure(stage, &ground, sizes).await?;
    stage.clear(ground).await?;
    Ok(figures)
}

async fn measure(stage: &Stage, ground: &Ground, sizes: &Sizes) -> Result<Vec<Figure>, Failure> {
    let belt = Belt::new(&ground.config.redis, ground.db.clone()).map_err(|error| Failure::failed(chain(&error)))?;
    let engine = Engine::new(ground.db.clone(), ground.session()?, belt);
    let updates = Updates::prepare(ground).await?;
    let drain = Drain { stage, ground, engine: &engine, updates: &updates };
    let mut figures = Vec::new();
    let before_all = if sizes.finished > 0 {
        let plain =
            drain.run(&Sizes { waiting: 0, finished: 0, ..sizes.clone() }, Tenants(1), Ledger::AsAfterDays).await?;
        ledger::add_finished(ground, sizes.finished).await?;
        Some(plain)
    } else {
        None
    };
    let first = drain.run(sizes, Tenants(1), Ledger::AsAfterDays).await?;
    let what = what(sizes);
    figures.push(first.figure(format!("drain, {what}")).target(Target::Ratio(TARGET_RATIO)));
    figures.push(first.figure("the same, its goal".to_owned()).target(Target::Ratio(GOAL_RATIO)));
    // For comparison: graphile-worker needs 21, Sidekiq 106.
    figures.push(Figure::new("worker CPU a job", first.cpu_us_per_job, "us"));
    let pops = limits::pops(ground).await?;
    figures.push(Figure::new("drain beside Redis", first.per_second, "jobs/s").beside("BLMPOP", pops, "ids/s"));
    if let Some(plain) = before_all {
        figures.push(plain.figure("drain, before there were finished jobs".to_owned()));
        let share = first.ratio() / plain.ratio();
        figures.push(kept(share, "its ratio beside finished jobs, as a share of that"));
    }
    if sizes.second {
        // At once: what the first left to autovacuum is there.
        let second = drain.run(sizes, Tenants(1), Ledger::AsItIs).await?;
        figures.push(second.figure(format!("drain, {} more", second.jobs)));
        figures.push(kept(second.ratio() / first.ratio(), "the second drain's ratio as a share of the first's"));
    }
    if sizes.tenants > 1 {
        let count = sizes.tenants;
        let shared = drain.run(sizes, Tenants(count), Ledger::AsAfterDays).await?;
        // Once more alone: what grows or warms up with every drain is in the middle of both.
        let alone = drain.run(sizes, Tenants(1), Ledger::AsAfterDays).await?;
        figures.push(shared.figure(format!("drain, {} jobs of {count} tenants", shared.jobs)));
        let share = shared.ratio() / f64::midpoint(first.ratio(), alone.ratio());
        let name = format!("{count} tenants' throughput as a share of one tenant's");
        figures.push(Figure::new(name, share, "").target(Target::AtLeast(TURNS_RATIO)));
    }
    Ok(figures)
}

fn kept(share: f64, name: &str) -> Figure {
    Figure::new(name, share, "").target(Target::AtLeast(KEPT_RATIO))
}

impl Drained {
    fn figure(&self, name: String) -> Figure {
        Figure::new(name, self.per_second, "jobs/s").beside("batched updates", self.limit, "rows/s")
    }

    /// What drains are compared by, each with the limit of its own time: the machine's other work must not look like
    /// ours.
    fn ratio(&self) -> f64 {
        self.per_second / self.limit
    }
}

fn what(sizes: &Sizes) -> String {
    let mut what = format!("{} jobs", sizes.jobs);
    if sizes.waiting > 0 {
        what.push_str(&format!(" with {} waiting", sizes.waiting));
    }
    if sizes.finished > 0 {
        what.push_str(&format!(" with {} finished", sizes.finished));
    }
    what
}

/// In what state a drain finds the ledger.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ledger {
    /// Autovacuum has kept up with it.
    AsAfterDays,
    AsItIs,
}

/// How many share the jobs of a drain.
#[derive(Clone, Copy)]
struct Tenants(u16);

struct Drain<'a> {
    stage: &'a Stage,
    ground: &'a Ground,
    engine: &'a Engine,
    updates: &'a Updates,
}

impl Drain<'_> {
    async fn run(&self, sizes: &Sizes, Tenants(tenants): Tenants, state: Ledger) -> Result<Drained, Failure> {
        let Self { stage, ground, engine, updates } = *self;
        engine.pause(Queue::Ops, "multivio bench").await?;
        let jobs = ledger::enqueue(&ground.db, sizes.jobs, tenants, "enqueueing").await?;
        ledger::enqueue(&ground.db, sizes.waiting, 1, "enqueueing what waits").await?;
        if state == Ledger::AsAfterDays {
            ledger::settle_down(ground).await?;
        }
        let limit_before = updates.batched().await?;

        let concurrency = sizes.concurrency.to_string();
        let mut workers = Vec::new();
        for _ in 0..sizes.workers {
            workers.push(stage.program(ground, "multivio-ops", &["--concurrency", &concurrency])?);
        }
        registered(ground, &mut workers).await?;
        let cpu_before: Duration = workers.iter_mut().map(Program::cpu).sum();
        engine.resume(Queue::Ops).await?;
        let bar = progress("draining", u64::from(sizes.jobs));
        follow(ground, &jobs, sizes.waiting == 0, &bar).await?;
        let cpu = workers.iter_mut().map(Program::cpu).sum::<Duration>() - cpu_before;
        bar.finish_and_clear();
        engine.pause(Queue::Ops, "multivio bench").await?;
        for worker in workers {
            worker.stop().await;
        }
        let (finished, per_second) = rate(ground, &jobs).await?;
        let limit_after = updates.batched().await?;
        // What waits is not in the way of a second drain.
        sqlx::query("delete from jobs where state = 'queued'").execute(&ground.db).await?;
        Ok(Drained {
            jobs: finished,
            per_second,
            cpu_us_per_job: cpu.as_secs_f64() * 1e6 / finished as f64,
            limit: f64::midpoint(limit_before, limit_after),
        })
    }
}

async fn registered(ground: &Ground, workers: &mut [Program]) -> Result<(), Failure> {
    let wanted = workers.len();
    for worker in workers {
        let is_registered = async || {
            let alive = sqlx::query_scalar::<_, i64>("select count(*) from workers where state = 'alive'");
            alive.fetch_one(&ground.db).await.is_ok_and(|alive| usize::try_from(alive).is_ok_and(|n| n >= wanted))
        };
        worker.ready(is_registered).await?;
    }
    Ok(())
}

/// Waits until all of `jobs` have ended; and `to_the_end`, until nothing runs any more.
async fn follow(ground: &Ground, jobs: &[JobId], to_the_end: bool, bar: &ProgressBar) -> Result<(), Failure> {
    let every = (jobs.len() / MARKERS).max(1);
    let markers: Vec<Uuid> = jobs.iter().rev().step_by(every).map(|job| job.uuid()).collect();
    let (mut ended, mut moved_at) = (0, Instant::now());
    loop {
        let look = sqlx::query("select count(*) from jobs where id = any($1) and finished_at is not null");
        let now: i64 = look.bind(&markers).fetch_one(&ground.db).await?.try_get(0)?;
        if now > ended {
            (ended, moved_at) = (now, Instant::now());
            bar.set_position(u64::try_from(now).unwrap_or(0) * every as u64);
        }
        let is_done = usize::try_from(now).is_ok_and(|now| now == markers.len());
        if is_done && (!to_the_end || nothing_left(ground, jobs).await?) {
            return Ok(());
        }
        if moved_at.elapsed() > STUCK_AFTER {
            return Err(Failure::failed(format!("no job ended within {} s", STUCK_AFTER.as_secs())));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn nothing_left(ground: &Ground, jobs: &[JobId]) -> Result<bool, Failure> {
    let (Some(first), Some(last)) = (jobs.first(), jobs.last()) else { return Ok(true) };
    let left: bool =
        sqlx::query_scalar("select exists (select from jobs where id between $1 and $2 and finished_at is null)")
            .bind(first)
            .bind(last)
            .fetch_one(&ground.db)
            .await?;
    Ok(!left)
}

/// How many ended, and how many a second from the first start to the last end.
async fn rate(ground: &Ground, jobs: &[JobId]) -> Result<(u64, f64), Failure> {
    let row = sqlx::query(
        "select count(*), extract(epoch from max(finished_at) - min(claimed_at))::float8, \
                bool_and(state = 'succeeded' and result is not null and attempt = 0) \
         from jobs where id >= $1 and finished_at is not null",
    )
    .bind(jobs.first())
    .fetch_one(&ground.db)
    .await?;
    let (count, seconds, clean): (i64, Option<f64>, Option<bool>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    match (seconds, clean) {
        (Some(seconds), Some(true)) if seconds > 0.0 => Ok((u64::try_from(count).unwrap_or(0), count as f64 / seconds)),
        _ => Err(Failure::failed("not every job succeeded at its first attempt with a result")),
    }
}
