//! Tower layers around every run: a span that carries who it is, and figures for the operators.
//!
//! Timeouts, panics and cancellation are values in [`super::lifecycle`], because each kind has its own limit and
//! each outcome belongs into the ledger; apalis's `catch_panic` is the net below.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use apalis_core::task::Task;
use tower::{Layer, Service};
use tracing::{Instrument, Span, info_span, instrument::Instrumented};

use super::{
    backend::Handed,
    figures::{Ended, RunFigures},
};

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

/// Measures runs: how they ended, and how long they took.
#[derive(Debug, Clone)]
pub struct MeasureLayer(pub Arc<RunFigures>);

#[derive(Debug, Clone)]
pub struct Measure<S> {
    inner: S,
    figures: Arc<RunFigures>,
}

impl<S> Layer<S> for MeasureLayer {
    type Service = Measure<S>;

    fn layer(&self, inner: S) -> Measure<S> {
        Measure { inner, figures: Arc::clone(&self.0) }
    }
}

impl<S: Service<Task<Handed>, Response = Ended>> Service<Task<Handed>> for Measure<S>
where
    S::Future: Unpin,
{
    type Response = Ended;
    type Error = S::Error;
    type Future = Measured<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, task: Task<Handed>) -> Self::Future {
        let Handed(claim, ..) = &task.args;
        let kind = self.figures.place_of(&claim.kind);
        let figures = Arc::clone(&self.figures);
        Measured { inner: self.inner.call(task), figures, kind, began: Instant::now(), ended: Ended::Unknown }
    }
}

/// Recorded when it is dropped, so that a run ended from outside counts too.
#[derive(Debug)]
pub struct Measured<F> {
    inner: F,
    figures: Arc<RunFigures>,
    kind: usize,
    began: Instant,
    ended: Ended,
}

impl<F: Future<Output = Result<Ended, E>> + Unpin, E> Future for Measured<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let output = Pin::new(&mut self.inner).poll(cx);
        if let Poll::Ready(Ok(ended)) = &output {
            self.ended = *ended;
        }
        output
    }
}

impl<F> Drop for Measured<F> {
    fn drop(&mut self) {
        self.figures.record(self.kind, self.ended, self.began.elapsed());
    }
}
