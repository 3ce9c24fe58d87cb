//! Reads a chat request and refuses what this provider and this model refuse (1.2).

use serde_json::{Map, Value};

use super::{
    Provider,
    catalog::{self, Model},
    fields::{self, Fault},
    format,
    refusals::{self, Refusals},
};
use crate::exchange::{Answer, Call};

/// A request that this provider takes.
pub struct Request {
    pub model_asked: String,
    pub model: &'static Model,
    pub effort: String,
    pub messages: Vec<Value>,
    pub response_format: Option<Value>,
    pub stream: bool,
    pub include_usage: bool,
    pub obfuscate: bool,
    pub cap: Option<u64>,
    pub count: usize,
    pub prompt_tokens: u64,
}

pub fn read(provider: Provider, call: &Call) -> Result<Request, Answer> {
    let refusals = refusals::of(provider);
    if call.content_type() != "application/json" {
        return Err(refusals.wrong_content_type());
    }
    let body: Map<String, Value> = match call.json() {
        Some(Value::Object(fields)) => fields,
        Some(_) | None => return Err(refusals.bad_json()),
    };
    // A null is what an absent field is.
    let body: Map<String, Value> = body.into_iter().filter(|(_, value)| !value.is_null()).collect();
    check_forms(provider, &refusals, &body)?;
    let model_asked = required(&refusals, &body, "model")?.as_str().unwrap_or_default();
    let model = catalog::find(provider, model_asked).ok_or_else(|| refusals.no_such_model(model_asked))?; // 1.4: 404
    check_model(provider, &refusals, model, model_asked, &body)?;
    let messages = required(&refusals, &body, "messages")?.as_array().cloned().unwrap_or_default();
    check_messages(provider, &refusals, &messages)?;
    check_tools(&refusals, &body)?;
    let stream = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
    let (include_usage, obfuscate) = stream_options(provider, &refusals, &body, stream)?;
    format::check(provider, &refusals, &body, &messages)?;
    let cap = body.get("max_completion_tokens").or_else(|| body.get("max_tokens")).and_then(Value::as_u64);
    let prompt_tokens = tokens(&Value::from(messages.clone()).to_string());
    let asked = prompt_tokens + cap.unwrap_or(0);
    let truncates = body.get("context_length_exceeded_behavior").and_then(Value::as_str) == Some("truncate");
    if asked > model.context_tokens && !truncates {
        return Err(refusals.too_much_context(model.context_tokens, asked)); // 1.4
    }
    let effort = body.get("reasoning_effort").and_then(Value::as_str);
    Ok(Request {
        model_asked: String::from(model_asked),
        model,
        effort: String::from(effort.unwrap_or_else(|| catalog::default_effort(model, model_asked))),
        messages,
        response_format: body.get("response_format").cloned(),
        stream,
        include_usage,
        obfuscate,
        cap,
        count: body.get("n").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).unwrap_or(1),
        prompt_tokens,
    })
}

/// About four characters a token, as everyone counts on the back of an envelope.
pub fn tokens(text: &str) -> u64 {
    (text.chars().count() as u64).div_ceil(4)
}

fn check_forms(provider: Provider, refusals: &Refusals, body: &Map<String, Value>) -> Result<(), Answer> {
    for (name, value) in body {
        let Some(form) = fields::form(provider, name) else {
            // 1.2: a field of another provider is the commonest cause of 400 on fail-over.
            let message = match provider {
                Provider::OpenAi => format!("Unknown parameter: '{name}'."),
                Provider::Xai => format!("Argument not supported: {name}"),
                Provider::Together => format!("Input validation error: unknown field `{name}`"),
            };
            return Err(refusals.bad_field(name, "unknown_parameter", &message));
        };
        match form.check(value) {
            Ok(()) => {}
            Err(Fault::Type(expected)) => return Err(refusals.wrong_type(name, expected)),
            Err(Fault::Range(rule)) => {
                return Err(refusals.bad_field(name, "invalid_value", &format!("Invalid '{name}': {rule}.")));
            }
        }
    }
    Ok(())
}

fn required<'a>(refusals: &Refusals, body: &'a Map<String, Value>, name: &str) -> Result<&'a Value, Answer> {
    let message = format!("Missing required parameter: '{name}'.");
    body.get(name).ok_or_else(|| refusals.bad_field(name, "missing_required_parameter", &message))
}

/// 1.2: what reasoning models refuse, each provider's in its own way.
fn check_model(
    provider: Provider,
    refusals: &Refusals,
    model: &Model,
    asked: &str,
    body: &Map<String, Value>,
) -> Result<(), Answer> {
    let unsupported = |name: &str, message: String| refusals.bad_field(name, "unsupported_parameter", &message);
    if let Some(effort) = body.get("reasoning_effort").and_then(Value::as_str) {
        if model.efforts.is_empty() || (provider == Provider::Xai && asked != model.id && !asked.ends_with("-latest")) {
            let message = format!("Model {asked} does not support parameter reasoningEffort.");
            return Err(unsupported("reasoning_effort", message));
        }
        if !model.efforts.contains(&effort) {
            let message = format!("Invalid value: '{effort}'. Supported values are: {}.", model.efforts.join(", "));
            return Err(refusals.bad_field("reasoning_effort", "invalid_value", &message));
        }
    }
    if !model.reasoning {
        return Ok(());
    }
    let refused: &[&str] = match provider {
        Provider::Xai => &["stop", "presence_penalty", "frequency_penalty"],
        Provider::OpenAi => {
            &["max_tokens", "stop", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "logit_bias"]
        }
        Provider::Together => &[],
    };
    if let Some(name) = refused.iter().find(|name| body.contains_key(**name)) {
        let hint = if *name == "max_tokens" { " Use 'max_completion_tokens' instead." } else { "" };
        let message = match provider {
            Provider::Xai => format!("Model {} does not support parameter {name}.", model.id),
            Provider::Together | Provider::OpenAi => {
                format!("Unsupported parameter: '{name}' is not supported with this model.{hint}")
            }
        };
        return Err(unsupported(name, message));
    }
    let odd =
        |name: &str| body.get(name).and_then(Value::as_f64).is_some_and(|value| (value - 1.0).abs() > f64::EPSILON);
    if provider == Provider::OpenAi
        && let Some(name) = ["temperature", "top_p"].into_iter().find(|name| odd(name))
    {
        // 1.2: reasoning models may refuse any but the default (not confirmed; refused here to be safe).
        let message =
            format!("Unsupported value: '{name}' does not support other values than the default (1) with this model.");
        return Err(refusals.bad_field(name, "unsupported_value", &message));
    }
    Ok(())
}

fn check_messages(provider: Provider, refusals: &Refusals, messages: &[Value]) -> Result<(), Answer> {
    let bad = |index: usize, what: &str| {
        let param = format!("messages[{index}]");
        refusals.bad_field(&param, "invalid_value", &format!("Invalid '{param}': {what}."))
    };
    if messages.is_empty() {
        return Err(bad(0, "at least one message is needed"));
    }
    let roles: &[&str] = match provider {
        Provider::OpenAi => &["system", "developer", "user", "assistant", "tool"],
        Provider::Xai | Provider::Together => &["system", "user", "assistant", "tool"],
    };
    for (index, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if !roles.contains(&role) {
            return Err(bad(index, &format!("role must be one of {}", roles.join(", "))));
        }
        let parts_fit = |parts: &Vec<Value>| {
            !parts.is_empty()
                && parts.iter().all(|part| match part["type"].as_str() {
                    Some("text") => part["text"].is_string(),
                    Some("image_url") => part["image_url"]["url"].is_string() && role == "user",
                    _ => false,
                })
        };
        let fits = match &message["content"] {
            Value::String(_) => true,
            Value::Array(parts) => parts_fit(parts),
            Value::Null => role == "assistant" && message["tool_calls"].is_array(),
            _ => false,
        };
        if !fits {
            return Err(bad(index, "content must be a string or an array of text and image_url parts"));
        }
    }
    Ok(())
}

fn check_tools(refusals: &Refusals, body: &Map<String, Value>) -> Result<(), Answer> {
    let tools = body.get("tools").and_then(Value::as_array).map_or(0, Vec::len);
    if tools > 128 {
        return Err(refusals.bad_field("tools", "array_above_max_length", "At most 128 tools are allowed.")); // 1.2
    }
    let forced = body.get("tool_choice").is_some_and(|choice| choice != "auto" && choice != "none");
    let deferred = body.get("deferred").and_then(Value::as_bool) == Some(true);
    if forced || deferred {
        let name = if forced { "tool_choice" } else { "deferred" };
        let message = format!("The sandbox does not simulate {name} with this value.");
        return Err(refusals.bad_field(name, "invalid_value", &message));
    }
    if body.contains_key("search_parameters") {
        let message = "Live search is deprecated. Please switch to the Agent Tools API."; // 1.2: withdrawn
        return Err(refusals.bad_field("search_parameters", "invalid_value", message));
    }
    Ok(())
}

/// Whether the stream ends with a usage chunk, and whether deltas carry noise (1.3).
fn stream_options(
    provider: Provider,
    refusals: &Refusals,
    body: &Map<String, Value>,
    stream: bool,
) -> Result<(bool, bool), Answer> {
    // 1.2: Together has no such option; its last chunk carries usage anyway.
    let Some(options) = body.get("stream_options").and_then(Value::as_object) else {
        return Ok((provider == Provider::Together, provider == Provider::OpenAi));
    };
    if !stream {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
        return Err(refusals.bad_field("stream_options", "invalid_value", message));
    }
    let known: &[&str] =
        if provider == Provider::OpenAi { &["include_usage", "include_obfuscation"] } else { &["include_usage"] };
    if let Some(unknown) = options.keys().find(|name| !known.contains(&name.as_str())) {
        let param = format!("stream_options.{unknown}");
        return Err(refusals.bad_field(&param, "unknown_parameter", &format!("Unknown parameter: '{param}'.")));
    }
    let flag = |name: &str, default: bool| options.get(name).and_then(Value::as_bool).unwrap_or(default);
    Ok((flag("include_usage", false), provider == Provider::OpenAi && flag("include_obfuscation", true)))
}

#[cfg(test)]
mod tests;
