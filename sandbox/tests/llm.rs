use std::time::Instant;

use super::*;

const CONTENT: &str =
    "We repaired the harbour lighthouse this weekend and everybody helped to carry stones up the hill.";

fn chat(sandbox: &Harness, provider: &str, extra: &Value) -> RequestBuilder {
    let (model, key) = match provider {
        "xai" => ("grok-4.3", "xai-sandbox-key"),
        "together" => ("zai-org/GLM-5.3-Flash", "together-sandbox-key"),
        _ => ("gpt-6-luna", "sk-sandbox-key"),
    };
    let mut body = json!({"model": model, "messages": [
        {"role": "system", "content": "Shorten to at most 60 characters."},
        {"role": "user", "content": CONTENT},
    ]});
    for (name, value) in extra.as_object().expect("fields") {
        body[name] = value.clone();
    }
    sandbox.http.post(format!("{}/{provider}/v1/chat/completions", sandbox.url)).bearer_auth(key).json(&body)
}

async fn twist(sandbox: &Harness, service: &str, effect: Value) {
    sandbox.fault(json!({"service": service, "effect": effect})).await;
}

#[tokio::test]
async fn each_provider_answers_within_the_limit() {
    let sandbox = Harness::start().await;
    for provider in ["xai", "together", "openai"] {
        let (status, body) = answered(chat(&sandbox, provider, &json!({}))).await;
        assert_eq!(status, 200, "{body}");
        let content = body["choices"][0]["message"]["content"].as_str().expect("content");
        assert!(content.starts_with("We repaired") && content.chars().count() <= 60, "{content}");
    }
    let calls = sandbox.control("GET", "/llm/calls", Value::Null).await;
    assert_eq!(calls.as_array().map(Vec::len), Some(3));
    assert_eq!((&calls[0]["provider"], &calls[0]["key"]), (&json!("xai"), &json!("default")));
}

#[tokio::test]
async fn keys_are_checked_and_can_run_dry() {
    let sandbox = Harness::start().await;
    for (provider, missing, wrong, dry) in
        [("xai", 401, 400, 403), ("together", 401, 401, 402), ("openai", 401, 401, 429)]
    {
        let url = format!("{}/{provider}/v1/models", sandbox.url);
        assert_eq!(answered(sandbox.http.get(&url)).await.0, missing);
        assert_eq!(answered(sandbox.http.get(&url).bearer_auth("wrong-key")).await.0, wrong);
        let key = json!({"provider": provider, "key": "another-key", "state": "exhausted"});
        sandbox.control("POST", "/llm/keys", key).await;
        assert_eq!(answered(sandbox.http.get(&url).bearer_auth("another-key")).await.0, dry);
    }
    sandbox.control("POST", "/llm/keys", json!({"provider": "xai", "key": "xai-blocked", "state": "blocked"})).await;
    let probe = sandbox.http.get(format!("{}/xai/v1/api-key", sandbox.url)).bearer_auth("xai-blocked");
    assert_eq!(answered(probe).await.1["team_blocked"], true);
}

#[tokio::test]
async fn urls_methods_and_models_that_do_not_exist_are_refused() {
    let sandbox = Harness::start().await;
    let base = format!("{}/xai/v1", sandbox.url);
    assert_eq!(answered(sandbox.http.get(format!("{base}/nothing")).bearer_auth("xai-sandbox-key")).await.0, 404);
    assert_eq!(
        answered(sandbox.http.get(format!("{base}/chat/completions")).bearer_auth("xai-sandbox-key")).await.0,
        405
    );
    let (status, body) = answered(chat(&sandbox, "openai", &json!({"model": "gpt-4"}))).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &json!("model_not_found")));
    let (status, body) = answered(chat(&sandbox, "xai", &json!({"model": "grok-4-fast-reasoning"}))).await;
    assert_eq!((status.as_u16(), &body["model"]), (200, &json!("grok-4.3")));
    let plain = sandbox.http.post(format!("{base}/chat/completions")).bearer_auth("xai-sandbox-key").body("{}");
    assert_eq!(answered(plain).await.0, 415);
}

#[tokio::test]
async fn a_stream_ends_with_done_unless_it_is_cut() {
    let sandbox = Harness::start().await;
    let stream = json!({"stream": true});
    let whole = chat(&sandbox, "xai", &stream).send().await.expect("an answer");
    assert!(whole.headers()["content-type"].to_str().is_ok_and(|kind| kind.starts_with("text/event-stream")));
    assert!(whole.text().await.expect("text").ends_with("data: [DONE]\n\n"));

    twist(&sandbox, "xai", json!({"stream_cut": {"after_chunks": 3}})).await;
    let mut cut = chat(&sandbox, "xai", &stream).send().await.expect("an answer");
    let mut seen = String::new();
    let error = loop {
        match cut.chunk().await {
            Ok(Some(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    assert!(error.is_some() && seen.matches("data: ").count() == 3 && !seen.contains("[DONE]"), "{seen}");

    twist(&sandbox, "together", json!({"stream_error": {"after_chunks": 2}})).await;
    let text = chat(&sandbox, "together", &stream).send().await.expect("an answer").text().await.expect("a proper end");
    assert!(text.contains("\"error\"") && !text.contains("[DONE]"), "{text}");
}

#[tokio::test]
async fn a_slow_model_keeps_its_caller_waiting_plain_or_streamed() {
    let sandbox = Harness::start().await;
    for extra in [json!({}), json!({"stream": true})] {
        twist(&sandbox, "openai", json!({"slow_first_token_ms": 150})).await;
        let begun = Instant::now();
        chat(&sandbox, "openai", &extra).send().await.expect("an answer").text().await.expect("text");
        assert!(begun.elapsed() >= Duration::from_millis(150));
    }
}

#[tokio::test]
async fn a_schema_is_filled_and_can_be_spoilt() {
    let sandbox = Harness::start().await;
    let schema = json!({"type": "object", "properties": {"text": {"type": "string"}, "hashtags": {"type": "array", "items": {"type": "string"}}},
        "required": ["text", "hashtags"], "additionalProperties": false});
    let format = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "variant", "strict": true, "schema": schema}}});
    let content = |body: Value| String::from(body["choices"][0]["message"]["content"].as_str().unwrap_or_default());
    let good = content(answered(chat(&sandbox, "openai", &format)).await.1);
    let value: Value = serde_json::from_str(&good).expect("JSON");
    assert!(value["text"].as_str().is_some_and(|text| text.chars().count() <= 60) && value["hashtags"].is_array());
    twist(&sandbox, "openai", json!("invalid_json")).await;
    let bad = content(answered(chat(&sandbox, "openai", &format)).await.1);
    assert!(serde_json::from_str::<Value>(&bad).is_err());
    let (status, _) = sandbox
        .try_control("POST", "/faults", json!({"service": "openai", "operation": "models.list", "effect": "refusal"}))
        .await;
    assert_eq!(status, 400, "an effect that could never strike");
}

#[tokio::test]
async fn the_request_over_the_rate_is_refused_with_a_reset() {
    let sandbox = Harness::start().await;
    sandbox.control("PATCH", "/settings", json!({"openai": {"requests_per_minute": 1}})).await;
    // A minute may turn between two calls, so the second or the third is refused.
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = chat(&sandbox, "openai", &json!({})).send().await.expect("an answer");
        assert!(answer.headers().contains_key("x-ratelimit-reset-requests"));
        statuses.push(answer.status().as_u16());
    }
    assert!(statuses.contains(&429), "{statuses:?}");
}
