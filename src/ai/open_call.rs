//! A call between its reservation and its settlement, whichever way it ends (A2).
//!
//! Answered, refused, cut or dropped: each way settles. Only the death of the process leaves the reservation behind.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    billing::{Billing, BillingError, Reservation, Settlement},
    errors::{CallError, Class},
    provider::Answer,
    usage::{self, Usage},
};

pub struct OpenCall {
    billing: Arc<dyn Billing>,
    id: Uuid,
    model: String,
    prompt_bytes: usize,
    written: usize,
    started: Instant,
    settled: bool,
}

impl OpenCall {
    pub async fn reserve(
        billing: &Arc<dyn Billing>,
        reservation: &Reservation,
        prompt_bytes: usize,
    ) -> Result<Self, BillingError> {
        let id = billing.reserve(reservation).await?;
        Ok(Self {
            billing: Arc::clone(billing),
            id,
            model: reservation.model.clone(),
            prompt_bytes,
            written: 0,
            started: Instant::now(),
            settled: false,
        })
    }

    pub fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
    }

    /// Bytes of the answer that were shown.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Writes down what the call used. When that fails the reservation stays and is written off at its full amount:
    /// the answer is worth more than the books.
    pub async fn settle(mut self, outcome: &Result<Answer, CallError>) -> Settlement {
        self.settled = true;
        let settlement = self.settlement(outcome);
        write_down(&self.billing, self.id, &settlement).await;
        settlement
    }

    /// The provider's word where it gave one, else an estimate of what went over the wire. A refusal before the first
    /// token costs nothing; a call that timed out may well be billed for its prompt.
    fn settlement(&self, outcome: &Result<Answer, CallError>) -> Settlement {
        match outcome {
            Ok(answer) => {
                let used = answer.usage.unwrap_or_else(|| Usage::estimate(self.prompt_bytes, answer.text.len()));
                let price = usage::known_price(&answer.model).unwrap_or_else(|| usage::price(&self.model));
                Settlement {
                    model_answered: Some(answer.model.clone()),
                    class: "answered",
                    status: Some(200),
                    request_id: answer.request_id.clone(),
                    cost_ticks: used.cost_ticks(price),
                    usage: used,
                    first_token: answer.first_token,
                    latency: answer.latency,
                }
            }
            Err(error) => {
                let refused = error.status.is_some_and(|status| status >= 300) && error.partial.is_empty();
                let free = refused || error.unsent;
                let written = self.written.max(error.partial.len());
                let usage = if free { Usage::default() } else { Usage::estimate(self.prompt_bytes, written) };
                Settlement {
                    status: error.status,
                    request_id: error.request_id.clone(),
                    ..self.unanswered(error.class, usage)
                }
            }
        }
    }

    fn unanswered(&self, class: Class, usage: Usage) -> Settlement {
        Settlement {
            model_answered: None,
            class: class.as_str(),
            status: None,
            request_id: None,
            cost_ticks: usage.cost_ticks(usage::price(&self.model)),
            usage,
            first_token: None,
            latency: self.started.elapsed(),
        }
    }
}

/// Whoever asked has gone: the provider bills what it wrote until then.
impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let settlement = self.unanswered(Class::Cancelled, Usage::estimate(self.prompt_bytes, self.written));
        let (billing, id) = (Arc::clone(&self.billing), self.id);
        // Outside a runtime the process is ending; the reservation is written off later.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { write_down(&billing, id, &settlement).await });
        }
    }
}

async fn write_down(billing: &Arc<dyn Billing>, id: Uuid, settlement: &Settlement) {
    let settled = tokio::time::timeout(Duration::from_secs(10), billing.settle(id, settlement)).await;
    let cause = match settled {
        Ok(Ok(())) => return,
        Ok(Err(error)) => crate::telemetry::chain(&error),
        Err(_) => "the database did not answer in time".to_owned(),
    };
    tracing::warn!(call = %id, cause, "a call to a language model could not be settled");
}
