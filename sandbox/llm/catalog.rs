//! The models of each provider (1.1) and the shapes in which they list them (1.5).

use serde_json::{Value, json};

use super::Provider;

pub struct Model {
    pub id: &'static str,
    /// Thinks before it answers; refuses what such models refuse (1.2).
    pub reasoning: bool,
    /// The `reasoning_effort` words it takes; none at all when empty.
    pub efforts: &'static [&'static str],
    pub context_tokens: u64,
    /// US cents per million tokens, in and out.
    pub price_cents: (u64, u64),
}

const fn model(
    id: &'static str,
    reasoning: bool,
    efforts: &'static [&'static str],
    context_tokens: u64,
    price_cents: (u64, u64),
) -> Model {
    Model { id, reasoning, efforts, context_tokens, price_cents }
}

const XAI_EFFORTS: &[&str] = &["none", "low", "medium", "high"];
const TOGETHER_EFFORTS: &[&str] = &["low", "medium", "high"];
const OPENAI_EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];

const XAI: [Model; 7] = [
    model("grok-4.7", true, XAI_EFFORTS, 500_000, (200, 600)),
    model("grok-4.6", true, XAI_EFFORTS, 500_000, (200, 600)),
    model("grok-4.5", true, XAI_EFFORTS, 500_000, (200, 600)),
    model("grok-4.3", true, XAI_EFFORTS, 1_000_000, (125, 250)),
    model("grok-4.20-reasoning", true, &[], 1_000_000, (125, 250)),
    model("grok-4.20-non-reasoning", false, &[], 1_000_000, (125, 250)),
    model("grok-build-0.1", false, &[], 256_000, (100, 200)),
];

const TOGETHER: [Model; 4] = [
    model("openai/gpt-oss-120b", true, TOGETHER_EFFORTS, 131_072, (15, 60)),
    model("zai-org/GLM-5.3-Flash", false, TOGETHER_EFFORTS, 131_072, (15, 50)),
    model("deepseek-ai/DeepSeek-V4.1-Flash", false, TOGETHER_EFFORTS, 131_072, (30, 120)),
    model("moonshotai/Kimi-K3", false, TOGETHER_EFFORTS, 262_144, (300, 1_500)),
];

const OPENAI: [Model; 12] = [
    model("gpt-6-luna", true, OPENAI_EFFORTS, 400_000, (10, 50)),
    model("gpt-6.1-terra", true, OPENAI_EFFORTS, 400_000, (100, 500)),
    model("gpt-6.1-sol", true, OPENAI_EFFORTS, 400_000, (200, 1_000)),
    model("gpt-6-astra", true, OPENAI_EFFORTS, 400_000, (1_000, 5_000)),
    model("gpt-5.4-mini", true, OPENAI_EFFORTS, 400_000, (75, 450)),
    model("gpt-5", true, OPENAI_EFFORTS, 400_000, (125, 1_000)),
    model("gpt-5-mini", true, OPENAI_EFFORTS, 400_000, (25, 200)),
    model("gpt-5.1", true, OPENAI_EFFORTS, 400_000, (125, 1_000)),
    model("gpt-4o", false, &[], 128_000, (250, 1_000)),
    model("gpt-4o-mini", false, &[], 128_000, (15, 60)),
    model("gpt-4.1", false, &[], 1_000_000, (200, 800)),
    model("gpt-4.1-mini", false, &[], 1_000_000, (40, 160)),
];

pub fn models(provider: Provider) -> &'static [Model] {
    match provider {
        Provider::Xai => &XAI,
        Provider::Together => &TOGETHER,
        Provider::OpenAi => &OPENAI,
    }
}

/// The model that answers to a name. xAI serves retired names silently by another (1.1); the others do not
/// know them any more.
pub fn find(provider: Provider, name: &str) -> Option<&'static Model> {
    let known = |name: &str| models(provider).iter().find(|model| model.id == name);
    known(name).or_else(|| {
        if provider != Provider::Xai {
            return None;
        }
        let retired = ["grok-3", "grok-4-0709", "grok-code-fast-1"].contains(&name)
            || name.starts_with("grok-4-fast")
            || name.starts_with("grok-4-1-fast");
        if retired { known("grok-4.3") } else { name.strip_suffix("-latest").and_then(known) }
    })
}

/// 1.1: effort low for retired reasoning names, none for the others.
pub fn default_effort(model: &Model, asked: &str) -> &'static str {
    match () {
        () if !model.reasoning => "none",
        () if asked != model.id && model.id == "grok-4.3" && !asked.ends_with("-reasoning") => "none",
        () if model.id == "grok-4.3" => "low",
        () => "medium",
    }
}

const CREATED: u64 = 1_767_225_600;

/// 1.5: a list object, but a bare array at Together.
pub fn list(provider: Provider) -> Value {
    let owner = |id: &str| match provider {
        Provider::Xai => String::from("xai"),
        Provider::Together => String::from(id.split('/').next().unwrap_or_default()),
        Provider::OpenAi => String::from("system"),
    };
    let entries: Vec<Value> = models(provider)
        .iter()
        .map(|model| match provider {
            Provider::Together => json!({
                "id": model.id, "object": "model", "created": CREATED, "type": "chat", "display_name": model.id,
                "organization": owner(model.id), "context_length": model.context_tokens,
                "pricing": {
                    "input": cents(model.price_cents.0), "output": cents(model.price_cents.1), "hourly": 0, "base": 0, "finetune": 0,
                },
            }),
            Provider::Xai | Provider::OpenAi => {
                json!({"id": model.id, "object": "model", "created": CREATED, "owned_by": owner(model.id)})
            }
        })
        .collect();
    match provider {
        Provider::Together => Value::Array(entries),
        Provider::Xai | Provider::OpenAi => json!({"object": "list", "data": entries}),
    }
}

/// 1.5: prices in US cents per 100 million tokens.
pub fn language_models() -> Value {
    let entries: Vec<Value> = XAI
        .iter()
        .map(|model| {
            json!({
                "id": model.id, "object": "model", "created": CREATED, "owned_by": "xai", "version": "1.0",
                "fingerprint": "fp_sandbox", "aliases": [format!("{}-latest", model.id)],
                "input_modalities": ["text", "image"], "output_modalities": ["text"],
                "prompt_text_token_price": model.price_cents.0 * 100, "completion_text_token_price": model.price_cents.1 * 100,
            })
        })
        .collect();
    json!({"models": entries})
}

fn cents(cents: u64) -> Value {
    json!(f64::from(u32::try_from(cents).unwrap_or(u32::MAX)) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_name_is_served_by_another_model_at_xai_only() {
        let id = |provider, name| find(provider, name).map(|model| model.id);
        assert_eq!(id(Provider::Xai, "grok-4-fast-reasoning"), Some("grok-4.3"));
        assert_eq!(id(Provider::Xai, "grok-4.7-latest"), Some("grok-4.7"));
        assert_eq!(id(Provider::Xai, "grok-2"), None);
        assert_eq!(id(Provider::OpenAi, "gpt-4"), None);
        assert_eq!(id(Provider::Together, "meta-llama/Llama-3.3-70B-Instruct-Turbo"), None);
    }

    #[test]
    fn each_lists_its_models_in_its_own_shape() {
        assert!(list(Provider::Together).is_array());
        assert_eq!(list(Provider::Xai)["data"][0]["owned_by"], "xai");
        assert_eq!(language_models()["models"][3]["prompt_text_token_price"], 12_500);
    }
}
