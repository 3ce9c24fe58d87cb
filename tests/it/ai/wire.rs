//! Odd answers on the wire, each with what it means.

use multivio::{
    ai::{chain::ChainError, errors::Class, transformer::Cause},
    platforms::Platform,
};
use serde_json::json;

use super::fake::{
    Fake, Say, Seen, config, delta, done, event, finish, plain, plain_with, refuse, request, run, streamed,
    transformer, variant,
};

const GOOD: &str = "Shop opens Monday, with cake.";

fn good() -> String {
    variant("x", GOOD)
}

/// Grok says `odd` for good, Together answers well: what came of it, and what followers saw.
async fn after(odd: Say) -> (Vec<String>, Vec<Seen>) {
    let (grok, together) = (Fake::start([odd]).await, Fake::start([streamed(&good())]).await);
    let (result, watching, _) = run(&transformer([Some(&grok), Some(&together), None]), &request()).await;
    let output = result.unwrap();
    assert_eq!((output.provider.as_str(), output.variants[0].text.as_str()), ("together", GOOD));
    assert_eq!(watching.text(), GOOD, "what stands on the screen is what was passed on");
    let classes = output.tries.iter().map(|one| one.class.clone()).collect();
    (classes, watching.0)
}

#[tokio::test]
async fn a_streamed_answer_is_shown_while_it_is_written_and_costs_what_it_says() {
    let grok = Fake::start([streamed(&good())]).await;
    let (result, watching, books) = run(&transformer([Some(&grok), None, None]), &request()).await;
    let output = result.unwrap();
    assert_eq!((watching.text().as_str(), watching.voids()), (GOOD, vec![]));
    assert!(watching.0.len() >= 2, "it came in pieces: {:?}", watching.0);
    assert_eq!((output.usage.prompt_tokens, output.usage.completion_tokens), (100, 20));
    assert!(output.cost_usd > 0.0 && output.first_token_ms.is_some() && !output.cached);
    assert_eq!(books.classes(), ["answered"]);
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_as_good() {
    let openai = Fake::start([plain(&good())]).await;
    let mut request = request();
    request.stream = false;
    let (result, watching, _) = run(&transformer([None, None, Some(&openai)]), &request).await;
    assert_eq!(result.unwrap().variants[0].platform, Some(Platform::X));
    assert_eq!(watching.text(), GOOD);
    assert_eq!(openai.seen()[0]["stream"], false);
}

#[tokio::test]
async fn a_page_of_html_is_no_answer_whatever_its_status() {
    for status in [200, 502] {
        let (classes, _) = after(refuse(status, "<html>Just a moment...</html>")).await;
        assert_eq!(classes, ["transient", "transient", "answered"], "{status}");
    }
}

#[tokio::test]
async fn an_error_within_a_stream_withdraws_what_was_shown() {
    let error = event(&json!({ "error": { "message": "overloaded" } }));
    let (classes, seen) = after(Say::Stream(vec![delta(&good()[..25]), error])).await;
    assert_eq!(classes, ["transient", "transient", "answered"]);
    assert_eq!(seen.iter().filter(|seen| matches!(seen, Seen::Void(_))).count(), 2, "{seen:?}");
}

#[tokio::test]
async fn a_stream_that_breaks_ends_early_or_falls_silent_withdraws_what_was_shown() {
    let half = || vec![delta(&good()[..25])];
    for (what, odd) in [("broken", Say::Broken(half())), ("ended", Say::Stream(half())), ("silent", Say::Hang(half()))]
    {
        let (classes, seen) = after(odd).await;
        assert_eq!(classes, ["transient", "transient", "answered"], "{what}");
        assert!(seen.contains(&Seen::Void("transient".into())), "{what}: {seen:?}");
    }
}

#[tokio::test]
async fn a_provider_that_says_nothing_at_all_is_left_in_time() {
    let (classes, seen) = after(Say::Hang(vec![])).await;
    assert_eq!(classes, ["transient", "transient", "answered"]);
    assert!(!seen.iter().any(|seen| matches!(seen, Seen::Void(_))), "nothing was shown, nothing is withdrawn");
}

#[tokio::test]
async fn a_missing_usage_is_estimated_and_said_to_be() {
    let grok = Fake::start([Say::Stream(vec![delta(&good()), finish("stop"), done()])]).await;
    let (result, _, books) = run(&transformer([Some(&grok), None, None]), &request()).await;
    let output = result.unwrap();
    assert!(output.usage.estimated && output.usage.prompt_tokens > 100 && output.cost_usd > 0.0);
    assert!(books.settled.lock().unwrap()[0].1.usage.estimated);
}

#[tokio::test]
async fn a_cap_that_thinking_has_eaten_is_raised_once_at_the_same_provider() {
    let eaten = plain_with(json!({ "choices": [{ "message": { "content": "" }, "finish_reason": "length" }] }));
    let grok = Fake::start([eaten, streamed(&good())]).await;
    let (result, _, _) = run(&transformer([Some(&grok), None, None]), &request()).await;
    assert_eq!(result.unwrap().variants[0].text, GOOD);
    let caps: Vec<_> = grok.seen().iter().map(|body| body["max_completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(caps, [500, 2000]);
}

#[tokio::test]
async fn an_answer_that_the_cap_cut_short_is_asked_again_with_more_room() {
    let cut = Say::Stream(vec![delta(&good()[..25]), finish("length"), done()]);
    let grok = Fake::start([cut, streamed(&good())]).await;
    let (result, watching, _) = run(&transformer([Some(&grok), None, None]), &request()).await;
    assert_eq!(result.unwrap().variants[0].text, GOOD);
    assert_eq!((watching.text().as_str(), watching.voids()), (GOOD, vec!["check"]));
    assert_eq!(grok.seen()[1]["max_completion_tokens"], 2000);
}

#[tokio::test]
async fn the_model_that_answered_is_told_when_it_is_not_the_one_asked() {
    let other =
        json!({ "model": "grok-4.3", "choices": [{ "message": { "content": good() }, "finish_reason": "eos" }] });
    let grok = Fake::start([plain_with(other)]).await;
    let (result, _, books) = run(&transformer([Some(&grok), None, None]), &request()).await;
    let output = result.unwrap();
    assert_eq!((output.model_asked.as_str(), output.model.as_str()), ("fake-1", "grok-4.3"));
    assert_eq!(books.settled.lock().unwrap()[0].1.model_answered.as_deref(), Some("grok-4.3"));
}

#[tokio::test]
async fn each_provider_gets_only_the_fields_it_knows() {
    let fakes =
        [Fake::start([plain(&good())]).await, Fake::start([plain(&good())]).await, Fake::start([plain(&good())]).await];
    for index in 0..3 {
        let mut providers = [None; 3];
        providers[index] = Some(&fakes[index]);
        run(&transformer(providers), &request()).await.0.unwrap();
    }
    let [grok, together, openai] = fakes.map(|fake| fake.seen().remove(0));
    let has = |body: &serde_json::Value, names: &[&str]| {
        names.iter().map(|name| body.get(*name).is_some()).collect::<Vec<_>>()
    };
    let names =
        ["max_tokens", "max_completion_tokens", "stream_options", "user", "safety_identifier", "stop", "temperature"];
    assert_eq!(has(&grok, &names), [false, true, true, true, false, false, true]);
    assert_eq!(has(&together, &names), [true, false, false, false, false, false, true]);
    assert_eq!(has(&openai, &names), [false, true, true, false, true, false, false]);
    for body in [&grok, &together, &openai] {
        assert_eq!(body["response_format"]["type"], "json_schema");
        assert_eq!(body["response_format"]["json_schema"]["schema"]["additionalProperties"], false);
    }
}

#[tokio::test]
async fn a_refusal_to_write_is_final() {
    let declined =
        json!({ "choices": [{ "message": { "content": null, "refusal": "I can't" }, "finish_reason": "stop" }] });
    let filtered = json!({ "choices": [{ "message": { "content": "par" }, "finish_reason": "content_filter" }] });
    for body in [declined, filtered] {
        let (grok, together) = (Fake::start([plain_with(body)]).await, Fake::start([plain(&good())]).await);
        let (result, _, _) = run(&transformer([Some(&grok), Some(&together), None]), &request()).await;
        let cause = result.unwrap_err().cause;
        assert!(
            matches!(&cause, Cause::Chain(ChainError::Refused(error)) if error.class == Class::Policy),
            "{cause:?}"
        );
        assert_eq!(together.calls(), 0);
    }
}

#[tokio::test]
async fn a_key_never_stands_in_an_error_or_in_what_can_be_printed() {
    let grok = Fake::start([refuse(401, r#"{"error":{"message":"bad key: sk-a-key-for-tests"}}"#)]).await;
    let (result, _, _) = run(&transformer([Some(&grok), None, None]), &request()).await;
    let error = result.unwrap_err();
    assert!(!format!("{error:?} {:?}", config([Some(&grok), None, None])).contains("key-for-tests"));
    assert!(!format!("{:?}", config([Some(&grok), None, None])).contains("a key for tests"));
}
