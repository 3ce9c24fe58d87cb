//! How full the queues are and who works on them.

use comfy_table::{Table, presets};
use serde::Serialize;

use super::{Failure, Screen, show::duration};
use crate::jobs::{
    Engine, Queue,
    ledger::{self, DEPTH_CEILING},
};

#[derive(Serialize)]
struct Line {
    queue: String,
    lane: String,
    queued: i64,
    running: i64,
    scheduled: i64,
    /// Unfinished, and handed back by stopping workers three times or more.
    handed_back: i64,
    oldest_queued_ms: Option<i64>,
    workers: i64,
    paused: bool,
}

pub async fn stats(engine: &Engine, screen: Screen) -> Result<(), Failure> {
    let paused = ledger::paused(engine.db()).await?;
    let mut lines = Vec::new();
    for &queue in Queue::ALL {
        let workers = ledger::live_workers(engine.db(), queue).await?;
        for &lane in queue.lanes() {
            let depth = ledger::depth(engine.db(), queue, lane).await?;
            lines.push(Line {
                paused: paused.iter().any(|paused| paused.queue == depth.queue),
                queue: depth.queue,
                lane: depth.lane,
                queued: depth.queued,
                running: depth.running,
                scheduled: depth.scheduled,
                handed_back: depth.handed_back,
                oldest_queued_ms: depth.oldest_queued_ms,
                workers,
            });
        }
    }
    screen.show(&lines, || table(&lines))
}

fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "QUEUE",
        "LANE",
        "QUEUED",
        "OLDEST",
        "RUNNING",
        "SCHEDULED",
        "HANDED BACK",
        "WORKERS",
        "",
    ]);
    for line in lines {
        let oldest = line.oldest_queued_ms.map(|ms| duration(u64::try_from(ms).unwrap_or(0)));
        table.add_row([
            line.queue.clone(),
            line.lane.clone(),
            count(line.queued),
            oldest.unwrap_or_default(),
            count(line.running),
            count(line.scheduled),
            count(line.handed_back),
            line.workers.to_string(),
            if line.paused { "paused".into() } else { String::new() },
        ]);
    }
    table.to_string()
}

fn count(jobs: i64) -> String {
    if jobs >= DEPTH_CEILING { format!("{DEPTH_CEILING} or more") } else { jobs.to_string() }
}
