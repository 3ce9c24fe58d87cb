//! What a call used and what it cost, in whole numbers: money is counted in ticks of 1e-10 US dollars.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Ticks of a US dollar.
pub const TICKS_PER_USD: f64 = 1e10;

/// A price of one US dollar per million tokens, in ticks per token.
const TICKS_PER_TOKEN: f64 = TICKS_PER_USD / 1e6;

/// Bytes of text per token, on the low side, so that an estimate is on the high side.
const BYTES_PER_TOKEN: usize = 3;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Of the prompt, what the provider had kept from before.
    pub cached_tokens: u32,
    /// Everything written and billed, thinking included.
    pub completion_tokens: u32,
    /// Of the completion, what was thought and not shown.
    pub reasoning_tokens: u32,
    /// The exact bill, where a provider gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billed_ticks: Option<i64>,
    /// Counted here, because the provider did not say.
    #[serde(default)]
    pub estimated: bool,
}

impl Usage {
    /// Reads a `usage` object. Providers differ in whether thinking is part of the completion: it is folded in only
    /// where the total says that it was kept apart.
    pub fn read(usage: &Value) -> Option<Self> {
        let number = |path: &str| usage.pointer(path).and_then(Value::as_u64).map(capped);
        let prompt_tokens = number("/prompt_tokens").or_else(|| number("/input_tokens"))?;
        let completion = number("/completion_tokens").or_else(|| number("/output_tokens"))?;
        let reasoning_tokens = number("/completion_tokens_details/reasoning_tokens").unwrap_or(0);
        let apart = number("/total_tokens").is_some_and(|total| {
            reasoning_tokens > 0 && u64::from(total) == sum(&[prompt_tokens, completion, reasoning_tokens])
        });
        Some(Self {
            prompt_tokens,
            cached_tokens: number("/prompt_tokens_details/cached_tokens").unwrap_or(0).min(prompt_tokens),
            completion_tokens: if apart { completion.saturating_add(reasoning_tokens) } else { completion },
            reasoning_tokens,
            billed_ticks: usage.get("cost_in_usd_ticks").and_then(Value::as_i64).filter(|ticks| *ticks >= 0),
            estimated: false,
        })
    }

    /// For a call that never told.
    pub fn estimate(prompt_bytes: usize, answer_bytes: usize) -> Self {
        Self {
            prompt_tokens: capped(tokens_of(prompt_bytes)),
            completion_tokens: capped(tokens_of(answer_bytes)),
            estimated: true,
            ..Self::default()
        }
    }

    /// Of two calls together. A bill is only exact for one call and is not added up here.
    pub fn plus(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            cached_tokens: self.cached_tokens.saturating_add(other.cached_tokens),
            completion_tokens: self.completion_tokens.saturating_add(other.completion_tokens),
            reasoning_tokens: self.reasoning_tokens.saturating_add(other.reasoning_tokens),
            billed_ticks: None,
            estimated: self.estimated || other.estimated,
        }
    }

    pub fn cost_ticks(&self, price: &Price) -> i64 {
        self.billed_ticks.unwrap_or_else(|| price.ticks(self))
    }
}

/// What a model takes per million tokens, in US dollars, and how much it can read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Price {
    pub model: String,
    pub input: f64,
    pub cached: Option<f64>,
    pub output: f64,
    pub context: Option<u32>,
}

impl Price {
    fn ticks(&self, usage: &Usage) -> i64 {
        let at = |tokens: u32, usd: f64| (f64::from(tokens) * usd * TICKS_PER_TOKEN).ceil() as i64;
        let fresh = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        at(fresh, self.input)
            + at(usage.cached_tokens, self.cached.unwrap_or(self.input))
            + at(usage.completion_tokens, self.output)
    }
}

static PRICES: LazyLock<Vec<Price>> =
    LazyLock::new(|| serde_json::from_str(include_str!("prices.json")).expect("the price list is valid, tested"));

/// The dearest of all: what a model that is not in the list is reckoned at, so that a budget is never overrun.
static UNKNOWN: LazyLock<Price> = LazyLock::new(|| Price {
    model: String::new(),
    input: PRICES.iter().map(|price| price.input).fold(0.0, f64::max),
    cached: None,
    output: PRICES.iter().map(|price| price.output).fold(0.0, f64::max),
    context: None,
});

/// The price of a model; its dated or suffixed versions count as itself.
pub fn price(model: &str) -> &'static Price {
    known_price(model).unwrap_or(&UNKNOWN)
}

pub fn known_price(model: &str) -> Option<&'static Price> {
    let family = |price: &&Price| {
        model.strip_prefix(price.model.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    PRICES.iter().filter(family).max_by_key(|price| price.model.len())
}

/// Ticks as dollars, for people.
pub fn usd(ticks: i64) -> f64 {
    ticks as f64 / TICKS_PER_USD
}

pub const fn tokens_of(bytes: usize) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN) as u64
}

fn sum(tokens: &[u32]) -> u64 {
    tokens.iter().copied().map(u64::from).sum()
}

/// A column's worth: a provider that counts more than this is mistaken.
fn capped(tokens: u64) -> u32 {
    tokens.min(i32::MAX as u64) as u32
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(usage: &Value) -> Usage {
        Usage::read(usage).unwrap()
    }

    #[test]
    fn thinking_is_folded_in_only_where_it_was_kept_apart() {
        let apart = json!({ "prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135,
            "completion_tokens_details": { "reasoning_tokens": 94 } });
        assert_eq!(read(&apart).completion_tokens, 103);
        let within = json!({ "prompt_tokens": 32, "completion_tokens": 103, "total_tokens": 135,
            "completion_tokens_details": { "reasoning_tokens": 94 } });
        assert_eq!(read(&within).completion_tokens, 103);
        assert_eq!(read(&within).reasoning_tokens, 94);
    }

    #[test]
    fn the_providers_own_bill_is_preferred_to_the_price_list() {
        let usage = read(&json!({ "prompt_tokens": 1, "completion_tokens": 1, "cost_in_usd_ticks": 77 }));
        assert_eq!(usage.cost_ticks(price("grok-4.3")), 77);
        let listed = read(&json!({ "prompt_tokens": 1000, "completion_tokens": 100 }));
        assert_eq!(listed.cost_ticks(price("gpt-6-luna")), 1000 * 1000 + 100 * 5000);
    }

    #[test]
    fn what_was_kept_from_before_is_cheaper() {
        let usage = read(&json!({ "prompt_tokens": 1000, "completion_tokens": 0,
            "prompt_tokens_details": { "cached_tokens": 1000 } }));
        assert_eq!(usage.cost_ticks(price("grok-4.6")), 1000 * 5000);
    }

    #[test]
    fn a_version_of_a_model_has_its_price_and_an_unknown_one_the_dearest() {
        assert_eq!(price("gpt-6-luna-2026-08-01").output, 0.5);
        assert_eq!(price("grok-4.3-latest").input, 1.25);
        assert_eq!((price("new-model").input, price("new-model").output), (10.0, 50.0));
        assert!(known_price("gpt-6-lunatic").is_none());
    }

    #[test]
    fn nonsense_is_no_usage() {
        assert_eq!(Usage::read(&Value::Null), None);
        assert_eq!(Usage::read(&json!({ "prompt_tokens": "many" })), None);
        let huge = read(&json!({ "prompt_tokens": u64::MAX, "completion_tokens": 1, "cost_in_usd_ticks": -5 }));
        assert_eq!((huge.prompt_tokens, huge.billed_ticks), (i32::MAX as u32, None));
    }
}
