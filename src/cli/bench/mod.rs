//! `multivio bench`: how fast this machine runs the product, each figure beside the limit it runs into.
//!
//! It starts a private Postgres (`fsync` and `synchronous_commit` on) and Redis in a temporary folder, never touches
//! another server and leaves nothing behind. The programs it measures are the production ones, found beside this
//! executable. Absolute numbers depend on what else the machine does; the ratios to limits measured in the same run
//! are what can be compared.

mod drain;
mod enqueue;
mod hello;
mod idle;
mod latency;
mod ledger;
mod limits;
mod load;
mod report;
mod stage;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Failure, Screen};
use crate::shutdown;
use report::{Figure, Report};
use stage::Stage;

/// Of the drain that shows what fair turns cost.
const TENANTS: u16 = 10;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  multivio bench                           everything, at sizes that take a few minutes
  multivio bench drain --waiting 1000000   with a million more jobs in the queue
  multivio bench drain --finished 10000000 with ten million finished jobs in the ledger (needs 12 GB of disk)
  multivio bench drain --jobs 1000000 --second
  multivio bench drain --tenants 100       what fair turns between a hundred tenants cost
  multivio --json bench enqueue --seconds 20")]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Where the servers keep their files while it runs [default: the system's temporary folder]
    #[arg(long, global = true, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Exit with 1 when a figure misses its target
    #[arg(long, global = true)]
    strict: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Jobs that do nothing, from the queue to their result in the ledger
    Drain(drain::Sizes),
    /// POST /api/v1/ai/transform through auth, rate limit, validation and a durable commit
    Enqueue(enqueue::Sizes),
    /// From the durable enqueue of a job to the start of its handler, while nothing else runs
    Latency(latency::Sizes),
    /// Memory of each program when idle, and how long it takes to be ready
    Idle,
    /// All of these
    All(AllSizes),
    /// The server whose rate is the limit of `enqueue`
    #[command(hide = true)]
    Hello(hello::Place),
}

#[derive(Debug, Clone, Args)]
struct AllSizes {
    /// Jobs of each drain
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    jobs: u32,
    /// Also the long ones: a second million, a million waiting, ten million finished
    #[arg(long)]
    full: bool,
}

pub async fn run(arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let what = arguments.what.unwrap_or(What::All(AllSizes { jobs: 200_000, full: false }));
    let what = match what {
        What::Hello(place) => return hello::serve(place).await,
        what => what,
    };
    let stop = shutdown::on_signal().map_err(|error| Failure::failed(format!("signals cannot be heard: {error}")))?;
    let stage = Stage::start(arguments.folder).await?;
    let measured = stop.run_until_cancelled(measure(&stage, what)).await;
    let removed = stage.end().await;
    let Some(figures) = measured else {
        return Err(Failure::failed("stopped before the end; nothing is left behind"));
    };
    let report = Report::new(figures?);
    removed?;
    screen.show(&report, || report.table())?;
    match report.missed() {
        0 => Ok(()),
        missed if arguments.strict => Err(Failure::failed(format!("{missed} figure(s) missed their target"))),
        _ => Ok(()),
    }
}

async fn measure(stage: &Stage, what: What) -> Result<Vec<Figure>, Failure> {
    match what {
        What::Drain(sizes) => drain::run(stage, &sizes).await,
        What::Enqueue(sizes) => enqueue::run(stage, &sizes).await,
        What::Latency(sizes) => latency::run(stage, &sizes).await,
        What::Idle => idle::run(stage).await,
        What::All(sizes) => all(stage, &sizes).await,
        What::Hello(_) => Ok(Vec::new()),
    }
}

async fn all(stage: &Stage, sizes: &AllSizes) -> Result<Vec<Figure>, Failure> {
    let mut figures = idle::run(stage).await?;
    figures.extend(latency::run(stage, &latency::Sizes::default()).await?);
    let drain = drain::Sizes { jobs: sizes.jobs, ..drain::Sizes::default() };
    figures.extend(drain::run(stage, &drain::Sizes { tenants: TENANTS, ..drain.clone() }).await?);
    if sizes.full {
        let (million, second) = (1_000_000, drain::Sizes { second: true, ..drain.clone() });
        figures.extend(drain::run(stage, &drain::Sizes { jobs: million, ..second }).await?);
        figures.extend(drain::run(stage, &drain::Sizes { waiting: million, ..drain.clone() }).await?);
        figures.extend(drain::run(stage, &drain::Sizes { finished: 10 * million, ..drain }).await?);
    }
    figures.extend(enqueue::run(stage, &enqueue::Sizes::default()).await?);
    Ok(figures)
}
