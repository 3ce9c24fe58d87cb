//! Asks the providers in their order until one answers.
//!
//! First the retries within a provider, then the next provider; a circuit breaker leaves out whoever is known to be
//! down; one deadline bounds it all. Each call is reserved before and settled after (A2). Text that was shown and is
//! then withdrawn, by whichever failure, is voided before anything else is shown (A1).

use std::time::{Duration, Instant};

use rand::RngExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    billing::{Billing, BillingError, BudgetSpent, Reservation, Settlement},
    breaker::{Breakers, Permit},
    chat_completions::{ChatClient, Limits},
    errors::{CallError, Class},
    provider::{Answer, Ask, Finish, ProviderName},
    tries::Try,
    usage::{self, Usage},
};

/// A provider that is throttled for longer than this is left for the next one.
const WORTH_WAITING: Duration = Duration::from_secs(3);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How often the cap is raised when thinking has eaten it all.
const CAP_FACTOR: u32 = 4;

pub struct Chain {
    clients: Vec<ChatClient>,
    breakers: Breakers,
    request_timeout: Duration,
    max_retries: u32,
}

/// One piece of work for the chain.
pub struct Work<'a> {
    pub ask: &'a Ask,
    /// Providers that have had their chance at this work.
    pub skip: &'a [ProviderName],
    pub deadline: Instant,
    pub cancelled: &'a CancellationToken,
    pub billing: &'a dyn Billing,
    /// Every call that is made is added here, whatever comes of it.
    pub tries: &'a mut Vec<Try>,
    pub audience: &'a mut dyn Audience,
}

/// Who watches the answer being written.
pub trait Audience: Send {
    fn delta(&mut self, text: &str);
    /// Everything shown so far no longer holds (A1).
    fn void(&mut self, why: &str);
}

#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error("no language model is set up: set GROK_API_KEY, TOGETHER_API_KEY or OPENAI_API_KEY")]
    NoProvider,
    #[error("{0}")]
    Budget(BudgetSpent),
    #[error("it was cancelled")]
    Cancelled,
    #[error("no provider answered in time")]
    Deadline,
    /// The same request would be refused again.
    #[error("the request was refused")]
    Refused(#[source] CallError),
    /// Every provider was asked and none answered; `again_after` is the shortest wait that makes sense.
    #[error("no provider answered")]
    AllFailed { last: CallError, again_after: Option<Duration>, operator: bool },
    #[error("the usage could not be written down")]
    Database(#[source] sqlx::Error),
}

/// An answer and who gave it.
#[derive(Debug, Clone)]
pub struct Reply {
    pub provider: ProviderName,
    pub model_asked: String,
    pub answer: Answer,
}

impl Chain {
    pub fn new(clients: Vec<ChatClient>, request_timeout: Duration, max_retries: u32) -> Self {
        Self { clients, breakers: Breakers::default(), request_timeout, max_retries }
    }

    pub fn clients(&self) -> &[ChatClient] {
        &self.clients
    }

    pub fn breakers(&self) -> &Breakers {
        &self.breakers
    }

    pub async fn ask(&self, mut work: Work<'_>) -> Result<Reply, ChainError> {
        let candidates: Vec<_> = self.clients.iter().filter(|client| !work.skip.contains(&client.name())).collect();
        if candidates.is_empty() {
            return Err(ChainError::NoProvider);
        }
        let mut failures = Vec::new();
        let mut budget = None;
        for bypass in [false, true] {
            for client in &candidates {
                let permit = match self.breakers.admit(client.name(), client.model(), Instant::now()) {
                    Ok(permit) => permit,
                    Err(_) if bypass => self.breakers.bypass(client.name(), client.model()),
                    Err(_) => continue,
                };
                if failures.iter().any(|failed| reads_no_more(client.model(), failed)) {
                    continue;
                }
                match self.ask_one(client, permit, &mut work).await {
                    Ok(reply) => return Ok(reply),
                    // Another provider may have its own budget left.
                    Err(One::Budget(spent)) => budget = Some(spent),
                    Err(One::Failed(error)) if error.class.asks_next() => {
                        tracing::warn!(provider = %error.provider, class = error.class.as_str(), status = error.status,
                            cause = error.message, "a language model did not answer");
                        failures.push(Failure { model: client.model().to_owned(), error });
                    }
                    Err(One::Failed(error)) => return Err(ChainError::Refused(error)),
                    Err(One::Ended(error)) => return Err(error),
                }
            }
            // Only when every circuit is open: then there is nothing to lose by asking all the same.
            if !failures.is_empty() || budget.is_some() {
                break;
            }
        }
        Err(exhausted(failures, budget))
    }

    /// One provider, with its own retries.
    async fn ask_one(&self, client: &ChatClient, permit: Permit, work: &mut Work<'_>) -> Result<Reply, One> {
        let mut ask = work.ask.clone();
        let mut retries = 0;
        let mut permit = permit;
        loop {
            let outcome = self.call(client, &ask, work).await;
            match outcome {
                Ok(answer) if answer.text.trim().is_empty() && answer.finish == Finish::Length => {
                    permit.answered(Instant::now());
                    if ask.max_tokens > work.ask.max_tokens {
                        let message = "it thought until its tokens were used up and wrote nothing";
                        return Err(One::Failed(CallError::new(client.name(), Class::Transient, message)));
                    }
                    ask.max_tokens = ask.max_tokens.saturating_mul(CAP_FACTOR);
                    permit = self.breakers.bypass(client.name(), client.model());
                }
                Ok(answer) => {
                    permit.answered(Instant::now());
                    let model_asked = client.model().to_owned();
                    return Ok(Reply { provider: client.name(), model_asked, answer });
                }
                Err(One::Failed(error)) => {
                    permit.failed(&error, Instant::now());
                    let wait = error.retry_after.unwrap_or_else(|| backoff(retries));
                    let left = work.deadline.saturating_duration_since(Instant::now());
                    if !error.may_retry_same() || retries >= self.max_retries || wait > WORTH_WAITING || wait >= left {
                        return Err(One::Failed(error));
                    }
                    // Within a provider the retries are this request's own; the circuit has had its report.
                    permit = self.breakers.bypass(client.name(), client.model());
                    retries += 1;
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = work.cancelled.cancelled() => return Err(One::Ended(ChainError::Cancelled)),
                    }
                }
                Err(ended) => return Err(ended),
            }
        }
    }

    /// One call: reserve, call, settle.
    async fn call(&self, client: &ChatClient, ask: &Ask, work: &mut Work<'_>) -> Result<Answer, One> {
        let left = work.deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(100) {
            return Err(One::Ended(ChainError::Deadline));
        }
        let limits = Limits {
            first_token: self.request_timeout.min(left),
            idle: (self.request_timeout / 2).max(Duration::from_secs(1)),
            whole: if ask.stream { self.request_timeout * 3 } else { self.request_timeout }.min(left),
        };
        let attempt = u16::try_from(work.tries.len() + 1).unwrap_or(u16::MAX);
        let model = client.model().to_owned();
        let most = Usage {
            completion_tokens: ask.max_tokens.saturating_mul(2),
            ..Usage::estimate(ask.prompt_bytes(), 0)
        };
        let reservation = Reservation {
            provider: client.name(),
            ticks: most.cost_ticks(usage::price(&model)),
            model: model.clone(),
            attempt,
        };
        let open = OpenCall::reserve(work.billing, &reservation).await?;
        let started = Instant::now();
        let mut shown = 0;
        let audience = &mut *work.audience;
        let mut on_delta = |text: &str| {
            shown += text.len();
            audience.delta(text);
        };
        let outcome = tokio::select! {
            outcome = client.call(ask, limits, &mut on_delta) => outcome,
            () = work.cancelled.cancelled() => {
                let gone = CallError::new(client.name(), Class::Cancelled, "whoever asked has gone");
                Err(gone)
            }
        };
        let settlement = settlement(&outcome, ask, &model, shown, started.elapsed());
        work.tries.push(Try::of(&reservation, &outcome, &settlement));
        let settled = open.settle(settlement).await;
        if let Err(error) = settled {
            // The answer is worth more than the books: the reservation stays and is written off at its full amount.
            tracing::warn!(cause = crate::telemetry::chain(&error), "a call to a language model could not be settled");
        }
        outcome.map_err(|error| {
            if shown > 0 {
                work.audience.void(error.class.as_str());
            }
            if error.class == Class::Cancelled { One::Ended(ChainError::Cancelled) } else { One::Failed(error) }
        })
    }
}

/// A provider that was asked in vain.
struct Failure {
    model: String,
    error: CallError,
}

fn exhausted(failures: Vec<Failure>, budget: Option<BudgetSpent>) -> ChainError {
    let again_after = failures.iter().filter_map(|failure| failure.error.retry_after).min();
    let operator = failures.iter().all(|failure| failure.error.class.needs_operator());
    match (failures.into_iter().next_back(), budget) {
        (Some(Failure { error, .. }), _) if error.class == Class::TooLong => ChainError::Refused(error),
        (Some(Failure { error, .. }), _) => ChainError::AllFailed { last: error, again_after, operator },
        (None, Some(spent)) => ChainError::Budget(spent),
        (None, None) => ChainError::NoProvider,
    }
}

/// How asking one provider ended without an answer.
enum One {
    Failed(CallError),
    Budget(BudgetSpent),
    Ended(ChainError),
}

/// A reservation on its way to being settled.
struct OpenCall<'a> {
    billing: &'a dyn Billing,
    id: uuid::Uuid,
}

impl<'a> OpenCall<'a> {
    async fn reserve(billing: &'a dyn Billing, reservation: &Reservation) -> Result<Self, One> {
        match billing.reserve(reservation).await {
            Ok(id) => Ok(Self { billing, id }),
            Err(BillingError::Spent(spent)) => Err(One::Budget(spent)),
            Err(BillingError::Database(error)) => Err(One::Ended(ChainError::Database(error))),
        }
    }

    async fn settle(self, settlement: Settlement) -> Result<(), BillingError> {
        self.billing.settle(self.id, &settlement).await
    }
}

/// What a call is reckoned at: the provider's word where it gave one, else an estimate of what went over the wire. A
/// refusal before the first token costs nothing; a time-out may well have been billed for the prompt.
fn settlement(
    outcome: &Result<Answer, CallError>,
    ask: &Ask,
    model: &str,
    shown: usize,
    latency: Duration,
) -> Settlement {
    let estimate = |written: usize| Usage::estimate(ask.prompt_bytes(), written);
    match outcome {
        Ok(answer) => {
            let used = answer.usage.unwrap_or_else(|| estimate(answer.text.len()));
            let price = usage::known_price(&answer.model).unwrap_or_else(|| usage::price(model));
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
            let usage = if free { Usage::default() } else { estimate(shown.max(error.partial.len())) };
            Settlement {
                model_answered: None,
                class: error.class.as_str(),
                status: error.status,
                request_id: error.request_id.clone(),
                cost_ticks: usage.cost_ticks(usage::price(model)),
                usage,
                first_token: None,
                latency,
            }
        }
    }
}

/// Whether a text that was too long for one model is known to be too long for this one as well.
fn reads_no_more(model: &str, failed: &Failure) -> bool {
    let context = |model: &str| usage::known_price(model).and_then(|price| price.context);
    failed.error.class == Class::TooLong
        && context(model).zip(context(&failed.model)).is_some_and(|(this, that)| this <= that)
}

fn backoff(retries: u32) -> Duration {
    let wait = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(retries)).min(LONGEST_BACKOFF);
    wait.mul_f64(rand::rng().random_range(0.8..1.2))
}
