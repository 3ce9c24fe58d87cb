//! What is no call: the documents, the figures, how we are. Open to everybody, counted by address, and the figures
//! closed where that is wanted. And what each caller may hold open.

use std::io::Read;

use multivio::{
    http::followers::MOST_STREAMS,
    jobs::{Engine, NewJob, belt::Belt, noop::Noop},
};
use serde_json::json;

use crate::{
    harness::App,
    identity::{get, new_key},
};

#[tokio::test]
async fn documents_are_counted_by_address_and_a_flood_of_them_starves_no_health_check() {
    let app = App::new().await;
    let api = app.api().await;
    let known = api.client.get(format!("{}/docs", api.url)).send().await.unwrap();
    assert!(known.headers().contains_key("ratelimit-policy"), "{:?}", known.headers());
    let etag = known.headers()["etag"].clone();
    let ask = async || {
        let request = api.client.get(format!("{}/docs", api.url)).header("if-none-match", &etag);
        request.send().await.unwrap()
    };
    let mut asked = 1;
    let refused = loop {
        let answer = ask().await;
        if answer.status() != 304 {
            break answer;
        }
        asked += 1;
        assert!(asked <= 300, "a page of some megabytes is given without end");
    };
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(refused.headers()["ratelimit"].to_str().unwrap().starts_with("\"open\";r=0"));
    assert!(asked > 100, "{asked}");
    for path in ["/health/live", "/health/ready", "/health"] {
        let answer = api.client.get(format!("{}{path}", api.url)).send().await.unwrap();
        assert!(answer.status() != 429 && answer.headers().contains_key("ratelimit"), "{path}");
    }
    assert_eq!(api.get("/api/v1/posts").await.0, 200, "calls are counted apart");
}

#[tokio::test]
async fn documents_are_packed_for_whoever_takes_it_and_what_a_call_answers_never_is() {
    let mut app = App::new().await;
    app.set("ALLOWED_ORIGINS", "https://app.example");
    let api = app.api().await;
    let ask = async |path: &str, takes: &str| {
        let request = api.request(reqwest::Method::GET, path).header("accept-encoding", takes);
        let answer = request.header("origin", "https://app.example").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        (answer.headers().clone(), answer.bytes().await.unwrap())
    };
    for path in ["/docs", "/openapi.json"] {
        let (of_plain, plain) = ask(path, "identity").await;
        let (of_packed, packed) = ask(path, "gzip, br").await;
        assert!(!of_plain.contains_key("content-encoding"), "{path}: {of_plain:?}");
        assert_eq!(of_packed["content-encoding"], "gzip", "{path}");
        assert!(packed.len() * 2 < plain.len(), "{path}: {} of {} bytes", packed.len(), plain.len());
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
        assert!(unpacked == plain, "{path} is another when it is packed");
        assert_ne!(of_plain["etag"], of_packed["etag"], "{path}");
        for headers in [&of_plain, &of_packed] {
            let vary: Vec<_> = headers.get_all("vary").iter().map(|it| it.to_str().unwrap()).collect();
            assert_eq!(vary, ["Accept-Encoding", "Origin"], "{path}");
            assert_eq!(headers["cache-control"], "no-cache", "{path}");
        }
    }
    for path in ["/api/v1/me", "/metrics", "/health", "/api/v1/media/presets"] {
        let (headers, _) = ask(path, "gzip").await;
        assert!(!headers.contains_key("content-encoding"), "{path}: {headers:?}");
    }
}

#[tokio::test]
async fn figures_are_shown_to_whoever_has_their_token_alone() {
    let mut app = App::new().await;
    let open = app.api().await;
    assert_eq!(open.client.get(format!("{}/metrics", open.url)).send().await.unwrap().status(), 200);
    app.set("METRICS_TOKEN", "k3Vb9sLqT0yJp7Wm2xRd8uHc");
    let api = app.api().await;
    let ask = async |authorization: Option<&str>| {
        let request = api.client.get(format!("{}/metrics", api.url));
        let request = authorization.map_or(request.try_clone().unwrap(), |text| request.header("authorization", text));
        request.send().await.unwrap()
    };
    for wrong in [None, Some("Bearer "), Some("Bearer k3Vb9sLqT0yJp7Wm2xRd8uH"), Some("k3Vb9sLqT0yJp7Wm2xRd8uHc")] {
        let answer = ask(wrong).await;
        assert_eq!(answer.status(), 401, "{wrong:?}");
        assert!(!answer.text().await.unwrap().contains("multivio_"), "{wrong:?}");
    }
    let answer = ask(Some("Bearer k3Vb9sLqT0yJp7Wm2xRd8uHc")).await;
    assert!(answer.status() == 200 && answer.text().await.unwrap().contains("multivio_"));
}

#[tokio::test]
async fn a_credential_comes_once() {
    let app = App::new().await;
    let api = app.api().await;
    let request = api.client.get(format!("{}/api/v1/me", api.url)).bearer_auth(&api.token).bearer_auth(&api.token);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let problem: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(problem["field"], "Authorization");
}

#[tokio::test]
async fn names_that_nobody_can_see_and_ends_that_nobody_named_are_refused_with_their_remedy() {
    let app = App::new().await;
    let api = app.api().await;
    let blank = json!({"name": "   ", "scopes": ["read"]});
    for (path, body) in [("/api/v1/workspaces", json!({"name": "   "})), ("/api/v1/api-keys", blank)] {
        let (status, problem) = api.post(path, body).await;
        assert_eq!((status, &problem["field"]), (422, &json!("name")), "{path}: {problem}");
    }
    let (status, problem) = api.delete("/api/v1/me").await;
    assert_eq!((status, &problem["field"]), (422, &json!("confirm")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("id of the user"), "{problem}");
}

#[tokio::test]
async fn a_caller_follows_so_many_jobs_at_once_with_all_their_keys_and_no_more() {
    let app = App::new().await;
    let api = app.api().await;
    let belt = Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    let engine = Engine::new(app.pool.clone(), app.session(), belt);
    let job = engine.enqueue(NewJob::of(&Noop { payload: String::new() }, app.tenant)).await.unwrap();
    let path = format!("/api/v1/jobs/{job}/events");
    let (_, key) = new_key(&api, json!({})).await;
    let follow =
        async |token: &str| api.client.get(format!("{}{path}", api.url)).bearer_auth(token).send().await.unwrap();
    let mut streams = Vec::new();
    for number in 0..MOST_STREAMS {
        let stream = follow(if number % 2 == 0 { &api.token } else { &key }).await;
        assert_eq!(stream.status(), 200, "{number}");
        streams.push(stream);
    }
    let refused = follow(&key).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let (_, stranger) = app.token_of_another();
    assert_eq!(get(&api, &stranger, "/api/v1/me").await.0, 200, "nobody else is held up");
    streams.pop();
    crate::harness::wait_until(crate::publish::SOON, "a place", || async { follow(&key).await.status() == 200 }).await;
}
