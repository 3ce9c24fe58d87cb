//! The twins over real HTTP: each test starts a sandbox of its own on a free port.

mod faults;
mod llm;
mod media;
mod oauth;
mod patreon;
mod posts;

use std::sync::Once;

use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::*;

pub struct Harness {
    pub url: String,
    pub http: reqwest::Client,
}

/// An account with its tokens.
pub struct User {
    pub id: String,
    pub username: String,
    pub token: String,
    pub refresh: String,
}

#[tokio::test]
async fn the_front_page_names_every_service_that_is_simulated() {
    let sandbox = Harness::start().await;
    let page = sandbox.http.get(&sandbox.url).send().await.expect("an answer").text().await.expect("a page");
    let readme = include_str!("../README.md");
    for prefix in ["/x", "/xai/v1", "/together/v1", "/openai/v1", "/firebase", "/patreon"] {
        assert!(page.contains(&format!("<code>{prefix}</code>")), "the page lacks {prefix}");
        assert!(readme.contains(&format!("| `{prefix}` |")), "the README lacks {prefix}");
    }
}

impl Harness {
    pub async fn start() -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            rustls::crypto::ring::default_provider().install_default().expect("only once");
        });
        let connections = Connections::default();
        let listener = Listener::bind("127.0.0.1:0", connections.clone()).await.expect("a port");
        let url = format!("http://{}", listener.address());
        let sandbox = Arc::new(Sandbox::new(connections));
        tokio::spawn(Server::new_with_acceptor(listener).run(routes(sandbox)));
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(10))
            .build()
            .expect("a client");
        Self { url, http }
    }

    pub async fn user(&self, body: Value) -> User {
        let made = self.control("POST", "/x/accounts", body).await;
        let text = |name: &str| String::from(made[name].as_str().unwrap_or_default());
        User { id: text("id"), username: text("username"), token: text("access_token"), refresh: text("refresh_token") }
    }

    /// A call to the control API that has to succeed.
    pub async fn control(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.try_control(method, path, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    }

    pub async fn try_control(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let method = method.parse().expect("a method");
        let request = self.http.request(method, format!("{}/_sandbox{path}", self.url));
        let request = if body.is_null() { request } else { request.json(&body) };
        answered(request).await
    }

    pub async fn set(&self, settings: Value) {
        self.control("PATCH", "/settings", json!({"x": settings})).await;
    }

    pub async fn fault(&self, body: Value) {
        self.control("POST", "/faults", body).await;
    }

    pub fn x(&self, method: &str, path: &str, user: &User) -> RequestBuilder {
        let method = method.parse().expect("a method");
        self.http.request(method, format!("{}/x{path}", self.url)).bearer_auth(&user.token)
    }

    pub fn post(&self, user: &User, body: &Value) -> RequestBuilder {
        self.x("POST", "/2/tweets", user).json(body)
    }

    /// Posts a text and gives its id.
    pub async fn posted(&self, user: &User, text: &str) -> String {
        let (status, body) = answered(self.post(user, &json!({"text": text}))).await;
        assert_eq!(status, 201, "{body}");
        String::from(body["data"]["id"].as_str().expect("an id"))
    }
}

/// Status and JSON body of an answer; null when it has none.
pub async fn answered(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

#[tokio::test]
async fn the_control_api_refuses_what_it_does_not_know_and_says_what_it_does() {
    let sandbox = Harness::start().await;
    let cases = [
        ("GET", "/nothing", Value::Null, "GET /_sandbox/health"),
        ("PATCH", "/settings", json!({"x": {"visibility": 3}}), "visibility_delay_ms"),
        ("PATCH", "/settings", json!({"y": {}}), "together"),
        ("POST", "/faults", json!({"service": "x", "effect": "explode"}), "accept_then_drop"),
        ("POST", "/x/accounts", json!({"scopes": ["tweet.fly"]}), "tweet.write"),
        ("GET", "/log?operation=tweets.make", Value::Null, "tweets.create"),
        ("GET", "/x/posts?acount=3", Value::Null, "account"),
    ];
    for (method, path, body, expected) in cases {
        let (status, answer) = sandbox.try_control(method, path, body).await;
        assert!(status == 400 || status == 404, "{path}: {status}");
        let valid = answer["valid"].as_array().expect("a list");
        assert!(valid.iter().any(|valid| valid.as_str().is_some_and(|v| v.contains(expected))), "{path}: {answer}");
    }
    let (status, _) = sandbox.try_control("POST", "/x/accounts", json!({"usrname": "ada"})).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn every_named_error_can_be_ordered_and_arrives_as_listed() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    let catalog = sandbox.control("GET", "/catalog", Value::Null).await;
    for (service, path) in [
        ("x", "/x/2/tweets"),
        ("xai", "/xai/v1/models"),
        ("together", "/together/v1/models"),
        ("openai", "/openai/v1/models"),
    ] {
        let errors = catalog[service]["errors"].as_array().expect("errors");
        assert!(errors.len() > 20, "{service}");
        for error in errors {
            sandbox.fault(json!({"service": service, "effect": {"refuse": error["name"]}})).await;
            let request = sandbox.http.get(format!("{}{path}", sandbox.url)).bearer_auth(&user.token);
            let (status, body) = answered(request).await;
            assert_eq!(json!(status.as_u16()), error["status"], "{service} {}", error["name"]);
            if error["body"].is_object() {
                assert_eq!(
                    body.as_object().map(|b| b.len()),
                    error["body"].as_object().map(|b| b.len()),
                    "{}",
                    error["name"]
                );
            }
        }
    }
}

#[tokio::test]
async fn a_reset_leaves_nothing_behind() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    sandbox.posted(&user, "hello").await;
    sandbox.fault(json!({"service": "x", "effect": "drop_before"})).await;
    sandbox.control("POST", "/reset", Value::Null).await;
    assert_eq!(sandbox.control("GET", "/x/posts/count", Value::Null).await["total"], 0);
    assert_eq!(sandbox.control("GET", "/faults", Value::Null).await, json!([]));
    assert_eq!(answered(sandbox.post(&user, &json!({"text": "again"}))).await.0, 401);
}
