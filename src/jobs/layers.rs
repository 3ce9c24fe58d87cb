//! Tower layers around every run: a span that carries who it is, and counts for the operators.
//!
//! Timeouts, panics and cancellation are values in [`super::lifecycle`], because each kind has its own limit and
//! each outcome belongs into the ledger; apalis's `catch_panic` is the net below.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use apalis_core::task::Task;
use tower::{Layer, Service};
use tracing::{Instrument, Span, info_span, instrument::Instrumented};

use super::backend::Handed;

/// Runs of this process since its start; a heartbeat carries them to the ledger.
#[derive(Debug, Default)]
pub struct Counts(AtomicU64);

impl Counts {
    pub fn ended(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One span per run; everything a handler logs stands in it.
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer;

#[derive(Debug, Clone)]
pub struct Trace<S>(S);

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace(inner)
    }
}

impl<S: Service<Task<Handed>>> Service<Task<Handed>> for Trace<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, task: Task<Handed>) -> Self::Future {
        let span = span(&task);
        self.0.call(task).instrument(span)
    }
}

fn span(task: &Task<Handed>) -> Span {
    let Handed(claim, ..) = &task.args;
    info_span!("job", id = %claim.job, kind = claim.kind, run = claim.run, attempt = claim.failed_attempts + 1)
}

/// Counts runs, whatever they come to.
#[derive(Debug, Clone)]
pub struct CountLayer(pub Arc<Counts>);

#[derive(Debug, Clone)]
pub struct Count<S> {
    inner: S,
    counts: Arc<Counts>,
}

impl<S> Layer<S> for CountLayer {
    type Service = Count<S>;

    fn layer(&self, inner: S) -> Count<S> {
        Count { inner, counts: Arc::clone(&self.0) }
    }
}

impl<S: Service<Task<Handed>>> Service<Task<Handed>> for Count<S>
where
    S::Future: Unpin,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Counted<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, task: Task<Handed>) -> Self::Future {
        Counted { inner: self.inner.call(task), counts: Arc::clone(&self.counts) }
    }
}

/// Counts its end when it is dropped, so that a run ended from outside counts too.
#[derive(Debug)]
pub struct Counted<F> {
    inner: F,
    counts: Arc<Counts>,
}

impl<F: Future + Unpin> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

impl<F> Drop for Counted<F> {
    fn drop(&mut self) {
        self.counts.0.fetch_add(1, Ordering::Relaxed);
    }
}
