use bytes::Bytes;
use poem::http::{HeaderMap, HeaderValue, Method};
use serde_json::json;

use super::*;
use crate::exchange::Payload;

fn checked(provider: Provider, extra: &Value) -> Result<String, (u16, String)> {
    let model = match provider {
        Provider::Xai => "grok-4.3",
        Provider::Together => "zai-org/GLM-5.3-Flash",
        Provider::OpenAi => "gpt-6-luna",
    };
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
    for (name, value) in extra.as_object().expect("fields") {
        body[name] = value.clone();
    }
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    let call = Call {
        method: Method::POST,
        path: String::from("/chat/completions"),
        query: Vec::new(),
        headers,
        body: Bytes::from(body.to_string()),
        parts: None,
        origin: String::new(),
    };
    read(provider, &call).map(|request| request.effort).map_err(|answer| match answer.payload {
        Payload::Json(body) => (answer.status, body.to_string()),
        other => panic!("{other:?}"),
    })
}

#[test]
fn a_field_of_another_provider_is_refused() {
    let cases = [
        (Provider::Together, json!({"max_completion_tokens": 9}), 400),
        (Provider::Together, json!({"stream_options": {"include_usage": true}}), 400),
        (Provider::Together, json!({"temperature": 1.5}), 400),
        (Provider::Xai, json!({"stop": ["."]}), 400),
        (Provider::Xai, json!({"top_k": 3}), 400),
        (Provider::Xai, json!({"temperature": "hot"}), 422),
        (Provider::OpenAi, json!({"max_tokens": 9}), 400),
        (Provider::OpenAi, json!({"temperature": 0.3}), 400),
        (Provider::OpenAi, json!({"stream_options": {"include_usage": true}}), 400),
        (Provider::OpenAi, json!({"logprobs": 3}), 400),
        (Provider::OpenAi, json!({"model": "gpt-4"}), 404),
        (Provider::Xai, json!({"model": "grok-4.20-reasoning", "reasoning_effort": "low"}), 400),
        (Provider::Xai, json!({"messages": []}), 400),
        (Provider::Xai, json!({"messages": [{"role": "developer", "content": "x"}]}), 400),
        (Provider::Together, json!({"max_tokens": 200_000}), 403),
    ];
    for (provider, extra, status) in cases {
        let refused = checked(provider, &extra).expect_err("refused");
        assert_eq!(refused.0, status, "{provider:?} {extra}: {}", refused.1);
    }
}

#[test]
fn what_each_takes_is_taken() {
    assert_eq!(
        checked(Provider::Xai, &json!({"max_completion_tokens": 9, "temperature": 0.2})),
        Ok(String::from("low"))
    );
    assert_eq!(checked(Provider::Xai, &json!({"model": "grok-3"})), Ok(String::from("none")));
    assert!(checked(Provider::Together, &json!({"max_tokens": 9, "temperature": 0.2})).is_ok());
    assert!(checked(Provider::OpenAi, &json!({"max_completion_tokens": 9, "reasoning_effort": "minimal"})).is_ok());
}

#[test]
fn strict_schemas_must_require_everything() {
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema}}});
    let loose =
        format(json!({"type": "object", "properties": {"text": {"type": "string"}}, "additionalProperties": false}));
    assert!(checked(Provider::OpenAi, &loose).is_err());
    assert!(checked(Provider::Xai, &loose).is_ok());
    let strict = format(json!({
        "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"], "additionalProperties": false,
    }));
    assert!(checked(Provider::OpenAi, &strict).is_ok());
}
