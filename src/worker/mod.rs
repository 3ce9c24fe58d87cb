//! What the worker binaries share: they hold wiring only.
//!
//! Each is two processes: a thin parent that starts the worker, forwards signals and records how it died (E11), and
//! the worker itself.

mod supervisor;

use std::process::ExitCode;

use clap::Parser;
use uuid::Uuid;

use crate::{
    config::Config,
    jobs::{Queue, Registry, worker},
    shutdown, telemetry,
};

/// Command line of every worker.
#[derive(Debug, Parser)]
#[command(version, about = "Runs jobs of one queue. Start as many as there is work for.")]
struct Args {
    /// Jobs run at once [default: WORKER_CONCURRENCY, or as many as suit the queue].
    #[arg(long)]
    concurrency: Option<usize>,
    /// This process is the worker, started by its parent under this name.
    #[arg(long, hide = true, requires = "parent")]
    supervised: Option<Uuid>,
    /// The number of that parent's process.
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

/// The whole of a worker's `main`: `wire` makes the registry with its services.
pub fn main(
    queue: Queue,
    concurrency: usize,
    wire: impl FnOnce(&Config, sqlx::PgPool) -> anyhow::Result<Registry>,
) -> ExitCode {
    let args = Args::parse();
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    telemetry::start(&config);
    let outcome = match args.supervised {
        None => supervisor::run(&config, queue),
        Some(process) => {
            let concurrency = args.concurrency.or(config.worker.concurrency).unwrap_or(concurrency).max(1);
            let options = worker::Options { queue, concurrency, grace: config.worker.grace, process };
            run(&config, args.parent, options, wire)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(
    config: &Config,
    parent: Option<u32>,
    options: worker::Options,
    wire: impl FnOnce(&Config, sqlx::PgPool) -> anyhow::Result<Registry>,
) -> anyhow::Result<()> {
    supervisor::die_with_parent()?;
    supervisor::is_there(parent)?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads()).enable_all().build()?.block_on(async {
        let pool = crate::db::pool(&config.database, &format!("multivio-{}-jobs", options.queue))?;
        let registry = wire(config, pool)?;
        worker::run(config, registry, options, shutdown::on_signal()?).await
    })
}

/// Two are enough for what a worker does itself; the heavy work is in subprocesses and on other machines.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4))
}
