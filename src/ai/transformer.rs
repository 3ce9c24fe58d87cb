//! Carries out a transform: asks, checks, asks again with the exact faults, and gives back only what passed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{
    billing::Billing,
    chain::{Audience, Chain, ChainError, Reply, Work},
    chat_completions::ChatClient,
    check::{self, Faults},
    grok::Grok,
    openai::OpenAi,
    partial::{PartialAnswer, Piece},
    prompt,
    provider::{Correction, Dialect, Finish, ProviderName},
    together::Together,
    transform::{Target, TransformOutput, TransformRequest, Variant},
    tries::Try,
    usage::{Usage, usd},
};
use crate::{
    config::AiConfig,
    ids::TenantId,
    outbound::{self, OutboundError},
};

/// How often one provider may correct its answer before the next one is asked.
const CORRECTIONS: usize = 1;
/// How much an answer that was cut by the cap may grow.
const CAP_FACTOR: u32 = 4;

/// The chain of providers, ready to work. One per process.
pub struct Transformer {
    chain: Chain,
    max_tokens: u32,
}

/// For whom, until when, and on whose account.
pub struct Order<'a> {
    pub tenant: TenantId,
    pub billing: Arc<dyn Billing>,
    pub deadline: Instant,
    pub watcher: &'a mut dyn Watcher,
}

/// Who follows the work.
pub trait Watcher: Send {
    fn phase(&mut self, fraction: f64, phase: &str);
    fn token(&mut self, piece: &Piece);
    /// Everything shown so far no longer holds (A1).
    fn void(&mut self, why: &str);
}

#[derive(Debug)]
pub struct TransformError {
    pub cause: Cause,
    /// Every call that was made.
    pub tries: Vec<Try>,
}

#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error(transparent)]
    Chain(ChainError),
    #[error("no provider's answer could be used: {}", .0.0.join("; "))]
    Unusable(Faults),
}

impl Transformer {
    pub fn new(config: &AiConfig) -> Result<Self, OutboundError> {
        let http = outbound::builder().read_timeout(config.request_timeout).build().map_err(OutboundError::Client)?;
        let dialects: [(&Option<_>, Box<dyn Dialect>); 3] = [
            (&config.grok, Box::new(Grok)),
            (&config.together, Box::new(Together)),
            (&config.openai, Box::new(OpenAi)),
        ];
        let clients = dialects
            .into_iter()
            .filter_map(|(config, dialect)| Some(ChatClient::new(http.clone(), config.clone()?, dialect)))
            .collect();
        let chain = Chain::new(clients, config.request_timeout, config.max_retries);
        Ok(Self { chain, max_tokens: config.max_tokens })
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    pub async fn run(&self, request: &TransformRequest, order: Order<'_>) -> Result<TransformOutput, TransformError> {
        let mut tries = Vec::new();
        match self.work(request, order, &mut tries).await {
            Ok(mut output) => {
                output.tries = tries;
                Ok(output)
            }
            Err(cause) => Err(TransformError { cause, tries }),
        }
    }

    async fn work(
        &self,
        request: &TransformRequest,
        order: Order<'_>,
        tries: &mut Vec<Try>,
    ) -> Result<TransformOutput, Cause> {
        let started = Instant::now();
        let mut ask = prompt::ask(request, end_user(order.tenant), self.max_tokens);
        let mut skip: Vec<ProviderName> = Vec::new();
        let mut faults: Option<Faults> = None;
        let mut audience = Translator::new(order.watcher);
        loop {
            audience.watcher.phase(0.1, if ask.corrections.is_empty() { "asking" } else { "correcting" });
            let work = Work {
                ask: &ask,
                skip: &skip,
                deadline: order.deadline,
                billing: &order.billing,
                tries,
                audience: &mut audience,
            };
            let reply = match (self.chain.ask(work).await, faults.take()) {
                (Ok(reply), _) => reply,
                // Everyone has had a chance: what was wrong with the last answer says more than that nobody is left.
                (Err(ChainError::NoProvider), Some(faults)) => return Err(Cause::Unusable(faults)),
                (Err(error), _) => return Err(Cause::Chain(error)),
            };
            audience.watcher.phase(0.9, "checking");
            match check::check(request, &reply.answer.text) {
                Ok(variants) => {
                    audience.show(&variants);
                    return Ok(output(request, variants, &reply, tries, started.elapsed()));
                }
                Err(found) => {
                    audience.void("check");
                    tracing::info!(provider = %reply.provider, faults = found.0.len(), "an answer was not good enough");
                    let cut = reply.answer.finish == Finish::Length && ask.max_tokens == self.max_tokens;
                    let of_provider = ask.corrections.len();
                    if cut {
                        ask.max_tokens = ask.max_tokens.saturating_mul(CAP_FACTOR);
                    } else if of_provider < CORRECTIONS {
                        ask.corrections.push(Correction { answer: reply.answer.text, faults: found.message() });
                    } else {
                        ask.corrections.clear();
                        skip.push(reply.provider);
                    }
                    faults = Some(found);
                }
            }
        }
    }
}

/// Lets a provider tell end users apart without knowing them.
fn end_user(tenant: TenantId) -> String {
    hex::encode(&Sha256::digest(format!("multivio end user {tenant}"))[..16])
}

fn output(
    request: &TransformRequest,
    variants: Vec<Variant>,
    reply: &Reply,
    tries: &[Try],
    latency: Duration,
) -> TransformOutput {
    let ticks: i64 = tries.iter().map(|one| one.cost_ticks).sum();
    TransformOutput {
        transformation_type: request.transformation_type,
        variants,
        provider: reply.provider.to_string(),
        model_asked: reply.model_asked.clone(),
        model: reply.answer.model.clone(),
        prompt: request.transformation_type.spec().prompt().id(),
        usage: tries.iter().map(|one| one.usage).fold(Usage::default(), Usage::plus),
        cost_usd: usd(ticks),
        first_token_ms: tries.last().and_then(|one| one.first_token_ms),
        latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
        cached: false,
        tries: Vec::new(),
    }
}

/// Turns the JSON that a model writes into the texts that people see, and remembers what they have seen.
struct Translator<'a> {
    watcher: &'a mut dyn Watcher,
    answer: PartialAnswer,
    seen: Vec<Piece>,
    written: usize,
}

impl<'a> Translator<'a> {
    fn new(watcher: &'a mut dyn Watcher) -> Self {
        Self { watcher, answer: PartialAnswer::default(), seen: Vec::new(), written: 0 }
    }

    /// Makes what people see what they get: what was mended since is shown anew.
    fn show(&mut self, variants: &[Variant]) {
        let pieces = pieces(variants);
        if whole(&self.seen) != whole(&pieces) {
            self.void("mended");
            for piece in pieces {
                self.token(piece);
            }
        }
    }

    fn token(&mut self, piece: Piece) {
        self.watcher.token(&piece);
        self.seen.push(piece);
    }
}

impl Audience for Translator<'_> {
    fn delta(&mut self, text: &str) {
        self.written += text.len();
        let fraction = 0.2 + 0.6 * (self.written as f64 / 4000.0).min(1.0);
        self.watcher.phase(fraction, "writing");
        for piece in self.answer.push(text) {
            self.token(piece);
        }
    }

    fn void(&mut self, why: &str) {
        (self.answer, self.written) = (PartialAnswer::default(), 0);
        if !std::mem::take(&mut self.seen).is_empty() {
            self.watcher.void(why);
        }
    }
}

/// Finished variants as pieces, for whoever follows an answer that was not streamed.
pub fn pieces(variants: &[Variant]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for variant in variants {
        let platform = variant.platform.map_or(Target::General, Target::Platform).to_string();
        for (field, text) in [("text", Some(&variant.text)), ("title", variant.title.as_ref())] {
            if let Some(text) = text {
                pieces.push(Piece { platform: platform.clone(), field, text: text.clone() });
            }
        }
    }
    pieces
}

/// What pieces add up to, by platform and field.
fn whole(pieces: &[Piece]) -> BTreeMap<(&str, &str), String> {
    let mut whole = BTreeMap::new();
    for piece in pieces.iter().filter(|piece| !piece.text.is_empty()) {
        let text: &mut String = whole.entry((piece.platform.as_str(), piece.field)).or_default();
        text.push_str(&piece.text);
    }
    whole
}
