//! Against the twins of the providers, through the shipped worker.

use std::time::Duration;

use multivio::{
    ai::{Transform, TransformOutput, TransformRequest, TransformationType},
    jobs::{Engine, NewJob, Queue, State, belt::Belt},
    platforms::Platform,
    text,
};
use serde_json::json;

use super::fake::CONTENT;
use crate::harness::App;

#[tokio::test]
async fn every_platform_gets_its_text_and_the_next_provider_helps_when_the_first_is_down() {
    let mut app = App::new().await;
    let sandbox = app.sandbox().await;
    let belt = Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    let engine = Engine::new(app.pool.clone(), app.session(), belt);
    let _worker = app.worker(Queue::Ai).await;
    let run = async |kind, platforms: &[Platform], stream| {
        let request = TransformRequest::new(kind, CONTENT);
        let request = TransformRequest { platforms: platforms.to_vec(), stream, ..request };
        let job = engine.enqueue(NewJob::of(&Transform(request), app.tenant)).await.unwrap();
        let row = engine.wait(None, job, Duration::from_secs(60)).await.unwrap().unwrap();
        assert_eq!(row.state, State::Succeeded, "{:?}", row.why);
        serde_json::from_value::<TransformOutput>(row.result.unwrap()).unwrap()
    };
    let all = run(TransformationType::PlatformOptimize, Platform::ALL, true).await;
    assert_eq!((all.provider.as_str(), all.variants.len()), ("grok", Platform::ALL.len()));
    for variant in &all.variants {
        assert!(text::measure(variant.platform.unwrap(), &variant.text).fits());
    }
    assert!(all.usage.prompt_tokens > 0 && !all.usage.estimated && all.cost_usd > 0.0);

    sandbox
        .fault(json!({ "service": "xai", "times": "always", "effect": { "refuse": { "status": 503, "body": {} } } }))
        .await;
    let short = run(TransformationType::Shorten, &[], true).await;
    assert_eq!(short.provider, "together");
    sandbox.fault(json!({ "service": "together", "times": "always", "effect": "drop_before" })).await;
    let plain = run(TransformationType::Shorten, &[Platform::Threads], false).await;
    assert_eq!(plain.provider, "openai");
}
