//! What a worker counts of its runs, for `/metrics` in Prometheus' text form: by kind and end, and how long they took.
//!
//! Recording is a few atomic additions. The labels are the kinds that the worker knows, so nothing can make them grow.

use std::{
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use poem::{Route, Server, endpoint::make_sync, get, listener::TcpListener};
use tracing::warn;

use super::{hand::Hand, ledger::End};
use crate::telemetry::chain;

/// Upper bounds in seconds: from a token refresh to a long transcode.
const BUCKETS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 1_800.0, 7_200.0];

/// Shows them at `/metrics` for as long as the process lives. A worker whose address is taken works without.
pub async fn serve(address: SocketAddr, figures: Arc<RunFigures>, hand: Arc<Hand>) {
    let shown = make_sync(move |_| figures.render(hand.len()));
    let routes = Route::new().at("/metrics", get(shown));
    if let Err(error) = Server::new(TcpListener::bind(address)).name("metrics").run(routes).await {
        warn!(%address, error = %chain(&error), "no figures are shown: choose another WORKER_METRICS_LISTEN");
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Succeeded,
    Failed,
    /// Failed, and will be tried again.
    Retried,
    /// It was too early, or somebody has to act first.
    Postponed,
    Cancelled,
    /// The worker stops.
    HandedBack,
    /// The lease was lost: another worker has the job.
    LeaseLost,
    /// It came to no end that could be told: a fault of the engine.
    Unknown,
}

impl Ended {
    const ALL: [Self; 8] = [
        Self::Succeeded,
        Self::Failed,
        Self::Retried,
        Self::Postponed,
        Self::Cancelled,
        Self::HandedBack,
        Self::LeaseLost,
        Self::Unknown,
    ];

    pub fn of(end: &End) -> Self {
        match end {
            End::Succeeded { .. } => Self::Succeeded,
            End::Failed { .. } => Self::Failed,
            End::Cancelled { .. } => Self::Cancelled,
            End::HandedBack { .. } => Self::HandedBack,
            End::Again { charged: true, .. } => Self::Retried,
            End::Again { charged: false, .. } => Self::Postponed,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Retried => "retried",
            Self::Postponed => "postponed",
            Self::Cancelled => "cancelled",
            Self::HandedBack => "handed_back",
            Self::LeaseLost => "lease_lost",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Debug)]
pub struct RunFigures {
    kinds: Vec<OfKind>,
    /// Runs since the start; a heartbeat carries them to the ledger.
    runs: AtomicU64,
}

#[derive(Debug)]
struct OfKind {
    kind: &'static str,
    ends: [AtomicU64; Ended::ALL.len()],
    buckets: [AtomicU64; BUCKETS.len() + 1],
    total_us: AtomicU64,
}

impl RunFigures {
    pub fn new(kinds: impl IntoIterator<Item = &'static str>) -> Self {
        let of_kind = |kind| OfKind {
            kind,
            ends: Default::default(),
            buckets: Default::default(),
            total_us: AtomicU64::default(),
        };
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_unstable();
        // Last: a kind that is not known, which no claim brings.
        kinds.push("other");
        Self { kinds: kinds.into_iter().map(of_kind).collect(), runs: AtomicU64::default() }
    }

    pub fn runs(&self) -> u64 {
        self.runs.load(Relaxed)
    }

    /// Where [`Self::record`] counts this kind.
    pub(super) fn place_of(&self, kind: &str) -> usize {
        self.kinds.iter().position(|known| known.kind == kind).unwrap_or(self.kinds.len() - 1)
    }

    pub(super) fn record(&self, place: usize, ended: Ended, took: Duration) {
        let of_kind = &self.kinds[place];
        self.runs.fetch_add(1, Relaxed);
        of_kind.ends[ended as usize].fetch_add(1, Relaxed);
        let bucket = BUCKETS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BUCKETS.len());
        of_kind.buckets[bucket].fetch_add(1, Relaxed);
        of_kind.total_us.fetch_add(took.as_micros().try_into().unwrap_or(u64::MAX), Relaxed);
    }

    /// `in_hand`: runs under way.
    pub fn render(&self, in_hand: usize) -> String {
        let mut text = String::with_capacity(4096);
        self.write(&mut text, in_hand).expect("a String takes everything");
        text
    }

    fn write(&self, text: &mut String, in_hand: usize) -> std::fmt::Result {
        writeln!(text, "# HELP multivio_jobs_in_hand Jobs that this worker has claimed and not settled.")?;
        writeln!(text, "# TYPE multivio_jobs_in_hand gauge")?;
        writeln!(text, "multivio_jobs_in_hand {in_hand}")?;
        writeln!(text, "# HELP multivio_job_runs_total Runs of jobs by how they ended.")?;
        writeln!(text, "# TYPE multivio_job_runs_total counter")?;
        for of_kind in &self.kinds {
            for (ended, count) in Ended::ALL.iter().zip(&of_kind.ends) {
                let (kind, ended, count) = (of_kind.kind, ended.as_str(), count.load(Relaxed));
                if count > 0 {
                    writeln!(text, "multivio_job_runs_total{{kind=\"{kind}\",end=\"{ended}\"}} {count}")?;
                }
            }
        }
        writeln!(text, "# HELP multivio_job_run_seconds How long runs took.")?;
        writeln!(text, "# TYPE multivio_job_run_seconds histogram")?;
        self.kinds.iter().try_for_each(|of_kind| of_kind.write_histogram(text))
    }
}

impl OfKind {
    fn write_histogram(&self, text: &mut String) -> std::fmt::Result {
        let counts = self.buckets.each_ref().map(|bucket| bucket.load(Relaxed));
        let all: u64 = counts.iter().sum();
        if all == 0 {
            return Ok(());
        }
        let (kind, mut upto) = (self.kind, 0);
        for (bound, count) in BUCKETS.iter().zip(counts) {
            upto += count;
            writeln!(text, "multivio_job_run_seconds_bucket{{kind=\"{kind}\",le=\"{bound}\"}} {upto}")?;
        }
        writeln!(text, "multivio_job_run_seconds_bucket{{kind=\"{kind}\",le=\"+Inf\"}} {all}")?;
        let seconds = Duration::from_micros(self.total_us.load(Relaxed)).as_secs_f64();
        writeln!(text, "multivio_job_run_seconds_sum{{kind=\"{kind}\"}} {seconds}")?;
        writeln!(text, "multivio_job_run_seconds_count{{kind=\"{kind}\"}} {all}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_counts_where_its_name_stands() {
        for (place, ended) in Ended::ALL.into_iter().enumerate() {
            assert_eq!(ended as usize, place, "{ended:?}");
        }
    }

    #[test]
    fn runs_are_shown_by_kind_and_end_with_how_long_they_took() {
        let figures = RunFigures::new(["transcode", "publish"]);
        let place = figures.place_of("publish");
        figures.record(place, Ended::Succeeded, Duration::from_millis(250));
        figures.record(place, Ended::Retried, Duration::from_secs(20));
        figures.record(figures.place_of("none of ours"), Ended::Unknown, Duration::ZERO);
        let text = figures.render(3);
        for line in [
            "multivio_jobs_in_hand 3",
            "multivio_job_runs_total{kind=\"publish\",end=\"succeeded\"} 1",
            "multivio_job_runs_total{kind=\"publish\",end=\"retried\"} 1",
            "multivio_job_runs_total{kind=\"other\",end=\"unknown\"} 1",
            "multivio_job_run_seconds_bucket{kind=\"publish\",le=\"0.1\"} 0",
            "multivio_job_run_seconds_bucket{kind=\"publish\",le=\"0.5\"} 1",
            "multivio_job_run_seconds_bucket{kind=\"publish\",le=\"+Inf\"} 2",
            "multivio_job_run_seconds_sum{kind=\"publish\"} 20.25",
            "multivio_job_run_seconds_count{kind=\"publish\"} 2",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is missing from\n{text}");
        }
        assert!(!text.contains("transcode"), "what never ran is left out");
        assert_eq!(figures.runs(), 3);
    }
}
