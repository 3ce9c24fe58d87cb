//! Every write of the API document, as somebody who may only look.

use multivio::identity::Scope;
use reqwest::Method;
use serde_json::{Value, json};

use super::{call, get, new_key};
use crate::harness::App;

/// Writes that change nothing in the workspace: a question, and what concerns the caller alone.
const OPEN: [(&str, &str); 9] = [
    ("POST", "/api/v1/posts/validate"),
    ("POST", "/api/v1/workspaces"),
    ("POST", "/api/v1/me/sign-out"),
    ("POST", "/api/v1/me/export"),
    // Refused by their own rules: see the tests of teams and of rights.
    ("DELETE", "/api/v1/workspaces/{id}"),
    ("POST", "/api/v1/workspaces/{id}/export"),
    ("POST", "/api/v1/workspaces/{id}/members"),
    ("PATCH", "/api/v1/workspaces/{id}/members/{user}"),
    ("DELETE", "/api/v1/workspaces/{id}/members/{user}"),
];

#[tokio::test]
async fn whoever_may_only_look_can_call_no_write_whatever_its_body() {
    let app = App::new().await;
    let api = app.api().await;
    let (_, key) = new_key(&api, json!({"scopes": ["read"]})).await;
    let viewer = {
        let (user, token) = app.token_of_another();
        get(&api, &token, "/api/v1/me").await;
        let members = format!("/api/v1/workspaces/{}/members", app.tenant);
        assert_eq!(api.post(&members, json!({"user_id": user, "role": "viewer"})).await.0, 201);
        token
    };
    let tenant = app.tenant.to_string();
    let (_, document) = api.get("/openapi.json").await;
    let mut tried = 0;
    for (path, calls) in document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("/api/")) {
        for method in calls.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            if method == "GET" || OPEN.contains(&(method.as_str(), path.as_str())) {
                continue;
            }
            let address = path.replace("{id}", "job_01988f6e5d3a7c41b2f09e6d8a417c35");
            for (who, token, workspace) in [("a key", &key, None), ("a viewer", &viewer, Some(tenant.as_str()))] {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                let (status, answer) = call(&api, token, workspace, method, &address, Some(&json!({}))).await;
                assert_eq!(status, 403, "{who} at {path}: {answer}");
            }
            tried += 1;
        }
    }
    assert!(tried > 10, "{tried}");
}

#[tokio::test]
async fn a_token_without_scopes_gets_nothing_from_any_call() {
    let app = App::new().await;
    let api = app.api().await;
    let empty = app.token_for(app.tenant, &[]);
    let admin = app.token_for(app.tenant, &[Scope::Admin]);
    let (_, document) = api.get("/openapi.json").await;
    for (path, calls) in document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("/api/")) {
        if !calls.as_object().unwrap().contains_key("get") || path == "/api/v1/me" || path.contains('{') {
            continue;
        }
        for token in [&empty, &admin] {
            let (status, answer): (u16, Value) = get(&api, token, path).await;
            assert_eq!(status, 403, "{path}: {answer}");
        }
    }
}
