//! The stand-ins for every outside service, and the controls that tests have over them.

use std::time::Duration;

use serde_json::{Value, json};

use super::Program;

/// A running `multivio-sandbox` of this test's own.
pub struct Sandbox {
    pub program: Program,
    url: String,
    client: reqwest::Client,
}

impl Sandbox {
    pub async fn start() -> Self {
        let mut program = Program::start(env!("CARGO_BIN_EXE_multivio-sandbox"), &["--listen", "127.0.0.1:0"], &[]);
        let url = program.url().await;
        Self { program, url, client: super::app::http_client() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// What sends a program's outside traffic here.
    pub fn env(&self) -> Vec<(String, String)> {
        multivio::local::sandbox_settings(&self.url)
    }

    /// How many requests matched, such as `service=x&operation=create_post&status=201`.
    pub async fn count(&self, filter: &str) -> u64 {
        let answer = self.get(&format!("/_sandbox/log/count?{filter}")).await;
        answer["count"].as_u64().expect("a count is a number")
    }

    /// Asks for a fault and returns it with its id.
    pub async fn fault(&self, fault: Value) -> Value {
        self.post("/_sandbox/faults", fault).await
    }

    pub async fn clear_faults(&self) {
        self.send(reqwest::Method::DELETE, "/_sandbox/faults", None).await;
    }

    /// Changes settings, by service.
    pub async fn settings(&self, settings: Value) {
        self.send(reqwest::Method::PATCH, "/_sandbox/settings", Some(settings)).await;
    }

    pub async fn get(&self, path: &str) -> Value {
        self.send(reqwest::Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.send(reqwest::Method::POST, path, Some(body)).await
    }

    async fn send(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.timeout(Duration::from_secs(20)).send().await;
        let response = response.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let status = response.status();
        let text = response.text().await.expect("the sandbox answers text");
        assert!(status.is_success(), "{method} {path}: {status}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|_| json!(text))
    }
}
