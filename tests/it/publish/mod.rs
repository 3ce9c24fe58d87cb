//! Publishing on X, through the real API, worker, database and Redis, against the twin of X.

mod budgets;
mod certainty;
mod contract;
pub mod picture;
mod requests;
mod settling;
mod tokens;
mod way;

use std::time::{Duration, Instant};

use multivio::jobs::Queue;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Api, App, Sandbox, Worker, eventually};

/// Longer than any way through the phases takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A connected account, an API and the twin; workers are started by the tests that need them.
pub struct Stage {
    pub app: App,
    pub sandbox: Sandbox,
    pub api: Api,
    /// As the twin made it: id, username, tokens.
    pub account: Value,
    pub connection: String,
}

impl Stage {
    /// Certainty comes soon here: a create may take 2 s, a post shows within 1 s, and no stopped worker goes on. The
    /// twin refuses no duplicates: a post that was made twice is there twice.
    pub async fn new() -> Self {
        let mut app = App::new().await;
        let sandbox = app.sandbox().await;
        app.set("TWITTER_CREATE_DEADLINE_SECONDS", "2").set("TWITTER_VISIBILITY_SECONDS", "1");
        app.set("TWITTER_STALL_SECONDS", "0");
        let account = sandbox.post("/_sandbox/x/accounts", json!({})).await;
        let api = app.api().await;
        let mut stage = Self { app, sandbox, api, account, connection: String::new() };
        stage.settings(json!({ "duplicate_window_s": 0 })).await;
        stage.connection = stage.connect(&stage.account.clone()).await;
        stage
    }

    pub async fn worker(&self) -> Worker {
        self.app.worker(Queue::Publish).await
    }

    /// Connects the account with these tokens, or again with new ones.
    pub async fn connect(&self, tokens: &Value) -> String {
        let (status, answer) = self.api.post("/api/v1/connections", connection(&self.account, tokens)).await;
        assert_eq!(status, 201, "{answer}");
        answer["id"].as_str().expect("an id").to_owned()
    }

    /// Puts a text on its way; the id of its publication.
    pub async fn publish(&self, text: &str) -> String {
        self.publish_with(json!({ "text": text })).await
    }

    pub async fn publish_with(&self, mut request: Value) -> String {
        if request.get("connections").is_none() {
            request["platforms"] = json!(["x"]);
        }
        let (status, answer) = self.api.post("/api/v1/publish", request).await;
        assert_eq!(status, 202, "{answer}");
        answer["publications"][0]["id"].as_str().expect("an id").to_owned()
    }

    pub async fn publication(&self, id: &str) -> Value {
        let (status, answer) = self.api.get(&format!("/api/v1/publications/{id}")).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The publication once it is in this phase; what it hangs on when that takes too long.
    pub async fn until(&self, id: &str, phase: &str) -> Value {
        let deadline = Instant::now() + SOON;
        loop {
            let publication = self.publication(id).await;
            if publication["phase"] == phase {
                return publication;
            }
            if Instant::now() > deadline {
                let jobs: Vec<Value> = sqlx::query_scalar(
                    "select to_jsonb(j) from jobs j where kind in ('publish', 'reconcile') order by id",
                )
                .fetch_all(&self.app.pool)
                .await
                .expect("the database answers");
                panic!("the publication is not {phase}: {publication:#}\nits jobs: {jobs:#?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What exists at the platform, oldest first.
    pub async fn posts(&self) -> Vec<Value> {
        let posts = self.sandbox.get("/_sandbox/x/posts").await;
        posts.as_array().expect("a list").clone()
    }

    /// Creating requests that reached the platform.
    pub async fn creates(&self) -> u64 {
        self.calls("tweets.create").await
    }

    pub async fn calls(&self, operation: &str) -> u64 {
        self.sandbox.count(&format!("service=x&operation={operation}")).await
    }

    pub async fn fault(&self, operation: &str, effect: Value) -> Value {
        self.sandbox.fault(json!({ "service": "x", "operation": operation, "effect": effect })).await
    }

    pub async fn settings(&self, settings: Value) {
        let url = format!("{}/_sandbox/settings", self.sandbox.url());
        let request = self.api.client.request(Method::PATCH, url).json(&json!({ "x": settings }));
        let answer = request.timeout(SOON).send().await.expect("the twin answers");
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
    }

    /// New tokens, as if the owner had authorised again.
    pub async fn new_tokens(&self) -> Value {
        let id = self.account["id"].as_str().expect("an id");
        self.sandbox.post(&format!("/_sandbox/x/accounts/{id}/tokens"), json!({})).await
    }

    /// All access tokens of the account end.
    pub async fn expire(&self) {
        let id = self.account["id"].as_str().expect("an id");
        self.sandbox.post(&format!("/_sandbox/x/accounts/{id}/expire"), json!({})).await;
    }

    /// The owner takes the permission back.
    pub async fn revoke(&self) {
        let id = self.account["id"].as_str().expect("an id");
        self.sandbox.post(&format!("/_sandbox/x/accounts/{id}/revoke"), json!({})).await;
    }

    /// Waits for these outcomes: what is sent is committed by itself, before its intent is closed.
    pub async fn until_outcomes(&self, id: &str, expected: &[&str]) {
        let what = format!("the intents to have ended as {expected:?}");
        eventually(SOON, &what, || async { (self.outcomes(id).await == expected).then_some(()) }).await;
    }

    /// The outcomes of a publication's intents, in order.
    pub async fn outcomes(&self, id: &str) -> Vec<String> {
        let id: multivio::ids::PublicationId = id.parse().expect("an id");
        sqlx::query_scalar("select outcome from publication_intents where publication_id = $1 order by attempt")
            .bind(id)
            .fetch_all(&self.app.pool)
            .await
            .expect("the database answers")
    }
}

pub fn connection(account: &Value, tokens: &Value) -> Value {
    json!({
        "platform": "x",
        "remote_account_id": account["id"],
        "username": account["username"],
        "access_token": tokens["access_token"],
        "refresh_token": tokens["refresh_token"],
    })
}
