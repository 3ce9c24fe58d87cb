//! Asks the providers in their order until one answers.
//!
//! First the retries within a provider, then the next provider; a circuit breaker leaves out whoever is known to be
//! down; one deadline bounds it all. Each call is reserved before and settled after (A2). Text that was shown and is
//! then withdrawn, by whichever failure, is voided before anything else is shown (A1). Whoever no longer wants the
//! answer drops the future: the request ends at once and what it used is settled all the same.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngExt as _;

use super::{
    billing::{Billing, BillingError, BudgetSpent, Reservation},
    breaker::{Breakers, Permit},
    chat_completions::{ChatClient, Limits},
    errors::{CallError, Class},
    open_call::OpenCall,
    provider::{Answer, Ask, Finish, ProviderName},
    tries::Try,
    usage::{self, Usage},
};

/// A provider that is throttled for longer than this is left for the next one.
const WORTH_WAITING: Duration = Duration::from_secs(3);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How far the cap is raised when thinking has eaten it all.
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
    pub billing: &'a Arc<dyn Billing>,
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
                if failures.iter().any(|failed| reads_no_more(client, failed)) {
                    continue;
                }
                let permit = match self.breakers.admit(client.name(), client.model(), Instant::now()) {
                    Ok(permit) => permit,
                    Err(_) if bypass => self.breakers.bypass(client.name(), client.model()),
                    Err(_) => continue,
                };
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
            // Those whose circuit is open are asked all the same when there is nothing to lose by it: everyone's is,
            // or the others' models cannot read so much.
            if budget.is_some() || failures.iter().any(|failed| failed.error.class != Class::TooLong) {
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
                    tokio::time::sleep(wait).await;
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
        let most = Usage { completion_tokens: client.most_tokens(ask), ..Usage::estimate(ask.prompt_bytes(), 0) };
        let reservation = Reservation {
            provider: client.name(),
            ticks: most.cost_ticks(usage::price(&model)),
            model: model.clone(),
            attempt,
        };
        let mut open = OpenCall::reserve(work.billing, &reservation, ask.prompt_bytes()).await?;
        let audience = &mut *work.audience;
        let outcome = client
            .call(ask, limits, &mut |text| {
                open.wrote(text.len());
                audience.delta(text);
            })
            .await;
        let shown = open.written() > 0;
        let settlement = open.settle(&outcome).await;
        work.tries.push(Try::of(&reservation, &outcome, &settlement));
        outcome.map_err(|error| {
            if shown {
                work.audience.void(error.class.as_str());
            }
            One::Failed(error)
        })
    }
}

/// A provider that was asked in vain.
struct Failure {
    model: String,
    error: CallError,
}

fn exhausted(failures: Vec<Failure>, budget: Option<BudgetSpent>) -> ChainError {
    // Final only when nobody can read it: a provider that was down, or that the budget left out, may have a model
    // that reads more.
    let (too_long, mut others): (Vec<_>, Vec<_>) =
        failures.into_iter().map(|failure| failure.error).partition(|error| error.class == Class::TooLong);
    let again_after = others.iter().filter_map(|error| error.retry_after).min();
    let operator = others.iter().all(|error| error.class.needs_operator());
    match (others.pop(), budget, too_long.into_iter().next_back()) {
        (Some(last), ..) => ChainError::AllFailed { last, again_after, operator },
        (None, Some(spent), _) => ChainError::Budget(spent),
        (None, None, Some(error)) => ChainError::Refused(error),
        (None, None, None) => ChainError::NoProvider,
    }
}

/// How asking one provider ended without an answer.
enum One {
    Failed(CallError),
    Budget(BudgetSpent),
    Ended(ChainError),
}

impl From<BillingError> for One {
    fn from(error: BillingError) -> Self {
        match error {
            BillingError::Spent(spent) => Self::Budget(spent),
            BillingError::Database(error) => Self::Ended(ChainError::Database(error)),
        }
    }
}

/// Whether a text that was too long for one model is known to be too long for this one as well.
fn reads_no_more(client: &ChatClient, failed: &Failure) -> bool {
    let context = |model: &str| usage::known_price(model).and_then(|price| price.context);
    let is_smaller = || context(client.model()).zip(context(&failed.model)).is_some_and(|(this, that)| this <= that);
    failed.error.class == Class::TooLong && (client.name() == failed.error.provider || is_smaller())
}

fn backoff(retries: u32) -> Duration {
    let wait = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(retries)).min(LONGEST_BACKOFF);
    wait.mul_f64(rand::rng().random_range(0.8..1.2))
}
