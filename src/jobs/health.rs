//! The engine's part of `/health` and `/metrics`: Redis, and how fresh each queue is.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::{
    Engine, Queue,
    canary::{self, Seen},
    ledger::{self, Depth},
};
use crate::{
    http::{
        health::{Finding, Probe},
        metrics::Figures,
    },
    telemetry::chain,
};

pub fn probes(engine: &Engine) -> Vec<Box<dyn Probe>> {
    let mut probes: Vec<Box<dyn Probe>> = vec![Box::new(Redis(engine.clone()))];
    probes.extend(Queue::ALL.iter().map(|&queue| Box::new(Fresh { engine: engine.clone(), queue }) as Box<dyn Probe>));
    probes
}

/// An accelerator, not a need (E7): without it everything works, a little later.
struct Redis(Engine);

#[async_trait]
impl Probe for Redis {
    fn name(&self) -> String {
        "redis".into()
    }

    fn is_vital(&self) -> bool {
        false
    }

    async fn look(&self) -> Finding {
        match self.0.belt().ping().await {
            Ok(()) => Finding::ok(),
            Err(error) => {
                tracing::warn!(cause = chain(&error), "Redis does not answer");
                Finding::down("work goes on from the ledger, a little later")
            }
        }
    }
}

/// Whether what could run does run: judged by the queue's canary, which goes the whole way.
struct Fresh {
    engine: Engine,
    queue: Queue,
}

#[async_trait]
impl Probe for Fresh {
    fn name(&self) -> String {
        format!("queue:{}", self.queue)
    }

    fn is_vital(&self) -> bool {
        false
    }

    async fn look(&self) -> Finding {
        match self.judge().await {
            Ok(finding) => finding,
            Err(error) => {
                tracing::warn!(queue = %self.queue, cause = chain(&error), "a queue could not be looked at");
                Finding::down("the ledger cannot be read")
            }
        }
    }
}

impl Fresh {
    async fn judge(&self) -> sqlx::Result<Finding> {
        let db = self.engine.db();
        let (mut queued, mut running, mut oldest_ms) = (0, 0, 0);
        for &lane in self.queue.lanes() {
            let depth = ledger::depth(db, self.queue, lane).await?;
            queued += depth.queued;
            running += depth.running;
            oldest_ms = oldest_ms.max(depth.oldest_queued_ms.unwrap_or(0));
        }
        let workers = ledger::live_workers(db, self.queue).await?;
        let figures =
            format!("{workers} worker(s), {running} running, {queued} queued, the oldest for {} s", oldest_ms / 1000);
        let canary = canary::seen(db).await?.into_iter().find(|seen| seen.queue == self.queue.as_str());
        Ok(match canary {
            // Somebody wants it so.
            Some(canary) if canary.is_paused => Finding::off(format!("paused; {figures}")),
            Some(canary) if canary.is_fresh => Finding::ok().noted(figures),
            _ if workers == 0 => Finding::down(format!(
                "no worker of the queue \"{}\" runs: its jobs are taken and kept, and done once one is started; \
                 {queued} queued, the oldest for {} s",
                self.queue,
                oldest_ms / 1000
            )),
            Some(Seen { seen_at: Some(at), .. }) => {
                Finding::down(format!("its canary was seen last at {}; {figures}", at.format("%F %T UTC")))
            }
            _ => Finding::down(format!("its canary was not seen yet; {figures}")),
        })
    }
}

/// How full the queues are, for `/metrics` and whoever scales by it.
pub struct QueueFigures {
    engine: Engine,
    last: Mutex<Option<(Instant, String)>>,
}

/// Scrapers of several monitors do not multiply the queries.
const FRESH_FIGURES: Duration = Duration::from_secs(2);
const LONGEST_LOOK: Duration = Duration::from_secs(3);

impl QueueFigures {
    pub fn new(engine: Engine) -> Self {
        Self { engine, last: Mutex::new(None) }
    }

    async fn text(&self) -> sqlx::Result<String> {
        let mut depths = Vec::new();
        let mut workers = Vec::new();
        for &queue in Queue::ALL {
            for &lane in queue.lanes() {
                depths.push(ledger::depth(self.engine.db(), queue, lane).await?);
            }
            workers.push((queue, ledger::live_workers(self.engine.db(), queue).await?));
        }
        let mut text = String::with_capacity(4096);
        write_depths(&mut text, &depths).expect("a String takes everything");
        text.push_str("# HELP multivio_workers Worker processes that are alive.\n# TYPE multivio_workers gauge\n");
        for (queue, alive) in workers {
            writeln!(text, "multivio_workers{{queue=\"{queue}\"}} {alive}").expect("a String takes everything");
        }
        text.push_str(
            "# HELP multivio_queue_working 1: its canary went the whole way within a minute, or it is paused.\n",
        );
        text.push_str("# TYPE multivio_queue_working gauge\n");
        for Seen { queue, is_fresh, is_paused, .. } in canary::seen(self.engine.db()).await? {
            let working = u8::from(is_fresh || is_paused);
            writeln!(text, "multivio_queue_working{{queue=\"{queue}\"}} {working}").expect("a String takes everything");
        }
        Ok(text)
    }
}

fn write_depths(text: &mut String, depths: &[Depth]) -> std::fmt::Result {
    writeln!(text, "# HELP multivio_jobs Jobs that are not done yet; counted up to {}.", ledger::DEPTH_CEILING)?;
    writeln!(text, "# TYPE multivio_jobs gauge")?;
    for depth in depths {
        let Depth { queue, lane, queued, running, scheduled, .. } = depth;
        for (state, count) in [("queued", queued), ("running", running), ("scheduled", scheduled)] {
            writeln!(text, "multivio_jobs{{queue=\"{queue}\",lane=\"{lane}\",state=\"{state}\"}} {count}")?;
        }
    }
    writeln!(text, "# HELP multivio_oldest_queued_seconds Age of the oldest job that could run.")?;
    writeln!(text, "# TYPE multivio_oldest_queued_seconds gauge")?;
    for Depth { queue, lane, oldest_queued_ms, .. } in depths {
        let seconds = oldest_queued_ms.unwrap_or(0) as f64 / 1e3;
        writeln!(text, "multivio_oldest_queued_seconds{{queue=\"{queue}\",lane=\"{lane}\"}} {seconds}")?;
    }
    writeln!(
        text,
        "# HELP multivio_jobs_handed_back Unfinished jobs that stopping workers handed back three times or more."
    )?;
    writeln!(text, "# TYPE multivio_jobs_handed_back gauge")?;
    for Depth { queue, lane, handed_back, .. } in depths {
        writeln!(text, "multivio_jobs_handed_back{{queue=\"{queue}\",lane=\"{lane}\"}} {handed_back}")?;
    }
    Ok(())
}

#[async_trait]
impl Figures for QueueFigures {
    async fn write(&self, out: &mut String) {
        let mut last = self.last.lock().await;
        if let Some((_, text)) = last.as_ref().filter(|(seen, _)| seen.elapsed() < FRESH_FIGURES) {
            out.push_str(text);
            return;
        }
        // What could not be read is absent, never an old number: alerts see that.
        match tokio::time::timeout(LONGEST_LOOK, self.text()).await {
            Ok(Ok(text)) => {
                out.push_str(&text);
                *last = Some((Instant::now(), text));
            }
            Ok(Err(error)) => tracing::warn!(cause = chain(&error), "the queues' figures could not be read"),
            Err(_elapsed) => tracing::warn!("the queues' figures could not be read in time"),
        }
    }
}
