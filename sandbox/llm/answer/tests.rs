use super::*;
use crate::llm::catalog;

fn request(provider: Provider) -> Request {
    let name = match provider {
        Provider::Xai => "grok-4.3",
        Provider::Together => "zai-org/GLM-5.3-Flash",
        Provider::OpenAi => "gpt-6-luna",
    };
    let model = catalog::find(provider, name).expect("listed");
    let content = "We repaired the harbour lighthouse this weekend and everybody helped to carry stones up the hill.";
    Request {
        model_asked: String::from(name),
        model,
        effort: String::from(catalog::default_effort(model, name)),
        messages: vec![
            json!({"role": "system", "content": "Shorten to at most 60 characters."}),
            json!({"role": "user", "content": content}),
        ],
        response_format: None,
        stream: false,
        include_usage: false,
        obfuscate: false,
        cap: None,
        count: 1,
        prompt_tokens: 32,
    }
}

fn twist(name: &str, value: Value) -> Twist {
    Twist { name: String::from(name), value }
}

fn number(usage: &Value, name: &str) -> u64 {
    usage[name].as_u64().expect("a number")
}

#[test]
fn reasoning_is_added_up_in_each_provider_s_way() {
    let xai = Reply::to(Provider::Xai, &request(Provider::Xai), None).usage;
    let reasoning = number(&xai["completion_tokens_details"], "reasoning_tokens");
    assert!(reasoning > 0);
    assert_eq!(
        number(&xai, "total_tokens"),
        number(&xai, "prompt_tokens") + number(&xai, "completion_tokens") + reasoning
    );
    let openai = Reply::to(Provider::OpenAi, &request(Provider::OpenAi), None).usage;
    assert_eq!(
        number(&openai, "total_tokens"),
        number(&openai, "prompt_tokens") + number(&openai, "completion_tokens")
    );
    assert!(number(&openai, "completion_tokens") > number(&openai["completion_tokens_details"], "reasoning_tokens"));
    let together = Reply::to(Provider::Together, &request(Provider::Together), None).usage;
    assert!(together.get("completion_tokens_details").is_none());
}

#[test]
fn a_cap_eaten_by_thinking_leaves_nothing_at_openai() {
    let capped = Request { cap: Some(16), ..request(Provider::OpenAi) };
    let reply = Reply::to(Provider::OpenAi, &capped, None);
    assert_eq!((reply.finish_reason, reply.content[0].as_str()), ("length", ""));
    let reply = Reply::to(Provider::Xai, &Request { cap: Some(5), ..request(Provider::Xai) }, None);
    assert_eq!((reply.finish_reason, reply.content[0].chars().count()), ("length", 20));
}

#[test]
fn the_reply_is_the_same_every_time_and_fits() {
    let first = Reply::to(Provider::Xai, &request(Provider::Xai), None);
    let second = Reply::to(Provider::Xai, &request(Provider::Xai), None);
    assert_eq!((&first.content, first.finish_reason), (&second.content, second.finish_reason));
    assert!(first.content[0].chars().count() <= 60, "{}", first.content[0]);
}

#[test]
fn twists_spoil_the_reply_as_named() {
    let content = |name: &str, value: Value| {
        let reply = Reply::to(Provider::OpenAi, &request(Provider::OpenAi), Some(&twist(name, value)));
        (reply.content[0].clone(), reply.finish_reason)
    };
    assert!(content("too_long", Value::Null).0.chars().count() > 120);
    assert_eq!(content("text", json!("just this")).0, "just this");
    assert_eq!(content("content_filter", Value::Null).1, "content_filter");
    assert_eq!(content("empty_length", Value::Null), (String::new(), "length"));
    assert_eq!(content("refusal", Value::Null).0, "");
}

#[test]
fn json_by_schema_is_valid_unless_it_is_twisted() {
    let schema = json!({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "variant", "schema": schema}});
    let asked = Request { response_format: Some(format), ..request(Provider::Together) };
    let content = |twist: Option<&Twist>| Reply::to(Provider::Together, &asked, twist).content[0].clone();
    let value: Value = serde_json::from_str(&content(None)).expect("JSON");
    assert!(value["text"].as_str().is_some_and(|text| !text.is_empty() && text.chars().count() <= 60));
    let value: Value = serde_json::from_str(&content(Some(&twist("too_long", Value::Null)))).expect("JSON");
    assert!(value["text"].as_str().is_some_and(|text| text.chars().count() > 60));
    assert!(serde_json::from_str::<Value>(&content(Some(&twist("invalid_json", Value::Null)))).is_err());
}

#[test]
fn a_stream_says_the_same_as_the_whole_answer() {
    let asked = Request { stream: true, include_usage: true, obfuscate: true, ..request(Provider::OpenAi) };
    let reply = Reply::to(Provider::OpenAi, &asked, None);
    let pieces = reply.pieces(&asked, false);
    assert_eq!(pieces.last().map(String::as_str), Some("data: [DONE]\n\n"));
    let chunks: Vec<Value> = pieces[..pieces.len() - 1]
        .iter()
        .map(|piece| serde_json::from_str(piece.trim_start_matches("data: ").trim()).expect("JSON"))
        .collect();
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, reply.content[0]);
    let last = chunks.last().expect("chunks");
    assert!(last["choices"].as_array().is_some_and(Vec::is_empty) && last["usage"]["total_tokens"].is_u64());
    assert!(chunks[0]["usage"].is_null() && chunks[0]["obfuscation"].is_string());
}
