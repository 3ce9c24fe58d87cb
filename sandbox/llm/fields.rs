//! Which request fields each provider knows, and their forms (1.2).

use serde_json::Value;

use super::Provider;

pub enum Form {
    Text,
    Flag,
    Number(f64, f64),
    Whole(i64, i64),
    List,
    Object,
    Words(&'static [&'static str]),
    Any,
}

const BIG: i64 = 1 << 40;

const EVERYONE: [(&str, Form); 15] = [
    ("model", Form::Text),
    ("messages", Form::List),
    ("top_p", Form::Number(0.0, 1.0)),
    ("n", Form::Whole(1, 128)),
    ("seed", Form::Whole(-BIG, BIG)),
    ("max_tokens", Form::Whole(1, BIG)),
    ("stream", Form::Flag),
    ("response_format", Form::Object),
    ("tools", Form::List),
    ("tool_choice", Form::Any),
    ("stop", Form::Any),
    ("presence_penalty", Form::Number(-2.0, 2.0)),
    ("frequency_penalty", Form::Number(-2.0, 2.0)),
    ("logit_bias", Form::Object),
    ("reasoning_effort", Form::Text),
];

const XAI: [(&str, Form); 9] = [
    ("temperature", Form::Number(0.0, 2.0)),
    ("max_completion_tokens", Form::Whole(1, BIG)),
    ("stream_options", Form::Object),
    ("logprobs", Form::Flag),
    ("top_logprobs", Form::Whole(0, 8)),
    ("user", Form::Text),
    ("parallel_tool_calls", Form::Flag),
    ("deferred", Form::Flag),
    ("search_parameters", Form::Object),
];

// Not in its schema: max_completion_tokens, stream_options, user.
const TOGETHER: [(&str, Form); 9] = [
    ("temperature", Form::Number(0.0, 1.0)),
    ("logprobs", Form::Whole(0, 20)),
    ("top_k", Form::Whole(-1, BIG)),
    ("min_p", Form::Number(0.0, 1.0)),
    ("repetition_penalty", Form::Number(0.0, 10.0)),
    ("reasoning", Form::Object),
    ("context_length_exceeded_behavior", Form::Words(&["truncate", "error"])),
    ("safety_model", Form::Text),
    ("echo", Form::Flag),
];

const OPENAI: [(&str, Form); 14] = [
    ("temperature", Form::Number(0.0, 2.0)),
    ("max_completion_tokens", Form::Whole(1, BIG)),
    ("stream_options", Form::Object),
    ("logprobs", Form::Flag),
    ("top_logprobs", Form::Whole(0, 20)),
    ("user", Form::Text),
    ("safety_identifier", Form::Text),
    ("prompt_cache_key", Form::Text),
    ("parallel_tool_calls", Form::Flag),
    ("service_tier", Form::Text),
    ("store", Form::Flag),
    ("metadata", Form::Object),
    ("verbosity", Form::Words(&["low", "medium", "high"])),
    ("moderation", Form::Any),
];

/// The form of a field at a provider; `None` when it does not know it.
pub fn form(provider: Provider, name: &str) -> Option<&'static Form> {
    let own: &'static [(&str, Form)] = match provider {
        Provider::Xai => &XAI,
        Provider::Together => &TOGETHER,
        Provider::OpenAi => &OPENAI,
    };
    static SHARED: [(&str, Form); 15] = EVERYONE;
    SHARED.iter().chain(own).find(|(known, _)| *known == name).map(|(_, form)| form)
}

/// What is wrong with a value. A number out of range is another thing than no number at all.
pub enum Fault {
    Type(&'static str),
    Range(String),
}

impl Form {
    pub fn check(&self, value: &Value) -> Result<(), Fault> {
        match self {
            Self::Any => Ok(()),
            Self::Text => value.is_string().then_some(()).ok_or(Fault::Type("a string")),
            Self::Flag => value.is_boolean().then_some(()).ok_or(Fault::Type("a boolean")),
            Self::List => value.is_array().then_some(()).ok_or(Fault::Type("an array")),
            Self::Object => value.is_object().then_some(()).ok_or(Fault::Type("an object")),
            Self::Number(least, most) => {
                let number = value.as_f64().ok_or(Fault::Type("a number"))?;
                let fits = (*least..=*most).contains(&number);
                fits.then_some(()).ok_or_else(|| Fault::Range(format!("must be between {least} and {most}")))
            }
            Self::Whole(least, most) => {
                let number = value.as_i64().ok_or(Fault::Type("an integer"))?;
                let fits = (*least..=*most).contains(&number);
                fits.then_some(()).ok_or_else(|| Fault::Range(format!("must be between {least} and {most}")))
            }
            Self::Words(words) => {
                let word = value.as_str().ok_or(Fault::Type("a string"))?;
                let fits = words.contains(&word);
                fits.then_some(()).ok_or_else(|| Fault::Range(format!("must be one of {}", words.join(", "))))
            }
        }
    }
}
