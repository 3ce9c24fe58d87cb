//! A key's own rate limit: within its maker's, over all processes, and changed while it is in use.

use std::time::Duration;

use futures::future::join_all;
use reqwest::{Method, Response};
use serde_json::json;

use super::{SOON, get, new_key};
use crate::harness::{Api, App, wait_until};

async fn ask(api: &Api, credential: &str) -> Response {
    let request = api.client.get(format!("{}/api/v1/jobs", api.url)).bearer_auth(credential);
    request.timeout(SOON).send().await.expect("the API answers")
}

fn header(response: &Response, name: &str) -> String {
    response.headers()[name].to_str().unwrap().to_owned()
}

/// How many of so many requests, half to each process and all at once, are let through.
async fn passing(processes: [&Api; 2], key: &str, requests: usize) -> usize {
    let answers = (0..requests).map(|number| ask(processes[number % 2], key));
    let answers = join_all(answers).await;
    for answer in answers.iter().filter(|answer| answer.status() != 200) {
        assert_eq!(answer.status(), 429);
        assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
    }
    answers.iter().filter(|answer| answer.status() == 200).count()
}

#[tokio::test]
async fn a_keys_own_limit_holds_over_processes_and_is_told() {
    let mut app = App::new().await;
    app.set("RATE_LIMIT_WINDOW", "600");
    let (api, elsewhere) = (app.api().await, app.api().await);
    let (id, key) = new_key(&api, json!({"rate_limit": 40})).await;
    let (_, other) = new_key(&api, json!({})).await;
    assert_eq!(api.get(&format!("/api/v1/api-keys/{id}")).await.1["rate_limit"], 40);
    let first = ask(&api, &key).await;
    assert_eq!(header(&first, "ratelimit"), "\"key\";r=39;t=600");
    assert_eq!(header(&first, "ratelimit-policy"), "\"key\";q=40;w=600, \"requests\";q=1000000;w=600");
    assert_eq!(passing([&api, &elsewhere], &key, 120).await, 39);
    let refused = ask(&elsewhere, &key).await;
    assert_eq!((refused.status().as_u16(), header(&refused, "ratelimit").starts_with("\"key\";r=0;")), (429, true));
    // Its maker, and another key of his, go on.
    for credential in [&api.token, &other] {
        let response = ask(&api, credential).await;
        assert_eq!(response.status(), 200);
        assert!(header(&response, "ratelimit").starts_with("\"requests\";"), "{response:?}");
    }
}

#[tokio::test]
async fn what_a_keys_own_limit_refuses_does_not_use_up_its_makers() {
    let mut app = App::new().await;
    app.set("RATE_LIMIT_WINDOW", "600").set("RATE_LIMIT_REQUESTS", "100");
    let api = app.api().await;
    let (_, key) = new_key(&api, json!({"rate_limit": 10})).await;
    assert_eq!(passing([&api, &api], &key, 150).await, 10);
    assert_eq!(ask(&api, &api.token).await.status(), 200);
}

#[tokio::test]
async fn a_keys_limit_is_changed_while_it_is_in_use() {
    let mut app = App::new().await;
    app.set("RATE_LIMIT_WINDOW", "600");
    let (api, elsewhere) = (app.api().await, app.api().await);
    let (id, key) = new_key(&api, json!({"rate_limit": 3})).await;
    let path = format!("/api/v1/api-keys/{id}");
    let change = async |limit| api.call(Method::PATCH, &path, Some(json!({ "rate_limit": limit }))).await;
    assert_eq!(passing([&api, &elsewhere], &key, 10).await, 3);
    let (status, changed) = change(json!(5)).await;
    assert_eq!((status, &changed["rate_limit"]), (200, &json!(5)), "{changed}");
    wait_until(Duration::from_secs(8), "the other process to know it", || async {
        let response = ask(&elsewhere, &key).await;
        header(&response, "ratelimit-policy").starts_with("\"key\";q=5;")
    })
    .await;
    // What was used before stays used, and what was refused meanwhile took nothing: the other process had one.
    assert_eq!(passing([&api, &elsewhere], &key, 10).await, 1);
    assert_eq!(change(json!(null)).await.1["rate_limit"], json!(null));
    assert_eq!(get(&api, &key, "/api/v1/jobs").await.0, 200);

    for wrong in [json!({}), json!({"rate_limit": 0}), json!({"rate_limit": "many"}), json!({"rate": 1})] {
        let (status, problem) = api.call(Method::PATCH, &path, Some(wrong)).await;
        assert_eq!(status, 422, "{problem}");
    }
    let strange = format!("/api/v1/api-keys/{}", multivio::ids::ApiKeyId::new());
    assert_eq!(api.call(Method::PATCH, &strange, Some(json!({"rate_limit": 5}))).await.0, 404);
    let body = json!({"rate_limit": 500});
    let by_key = super::call(&api, &key, None, Method::PATCH, &path, Some(&body)).await;
    assert_eq!(by_key.0, 403, "a key that widens its own limit: {}", by_key.1);
    let (_, lines) = api.get("/api/v1/audit?action=api_key.changed").await;
    assert_eq!(lines["items"].as_array().unwrap().len(), 2, "{lines}");
}
