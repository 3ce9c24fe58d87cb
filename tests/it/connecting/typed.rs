//! Accounts that are connected with their tokens: the platform says whose they are, and takes back what they replace.

use multivio::jobs::Queue;
use reqwest::Method;
use serde_json::{Value, json};

use super::Rig;
use crate::{
    harness::wait_until,
    identity::{call, get},
    publish::{SOON, connection},
};

const CONNECTIONS: &str = "/api/v1/connections";

impl Rig {
    fn typed(&self) -> Value {
        connection(&self.account, &self.account)
    }

    async fn tokens(&self, of: &Value, wish: Value) -> Value {
        let id = of["id"].as_str().expect("an id");
        self.sandbox.post(&format!("/_sandbox/x/accounts/{id}/tokens"), wish).await
    }

    async fn fault(&self, operation: &str, effect: Value) {
        self.sandbox.fault(json!({ "service": "x", "operation": operation, "effect": effect })).await;
    }

    /// Refused, and nothing of it is kept: no account, no word in the audit log, no answer under the key.
    async fn nothing_kept(&self, typed: &Value) -> reqwest::Response {
        let request = self.api.request(Method::POST, CONNECTIONS).header("Idempotency-Key", "one").json(typed);
        let answer = request.send().await.unwrap();
        assert!(!answer.status().is_success(), "{}", answer.status());
        let kept: i64 = sqlx::query_scalar(
            "select (select count(*) from connections) + (select count(*) from jobs where kind like '%token%') \
               + (select count(*) from idempotency_keys) \
               + (select count(*) from audit_log where action = 'connection.added')",
        )
        .fetch_one(&self.app.pool)
        .await
        .unwrap();
        assert_eq!(kept, 0);
        answer
    }

    async fn refused_field(&self, typed: &Value, field: &str) -> String {
        let answer = self.nothing_kept(typed).await;
        let (status, problem) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
        assert_eq!((status, &problem["field"]), (422, &json!(field)), "{problem}");
        assert!(!problem.to_string().contains(typed["access_token"].as_str().unwrap()));
        problem.to_string()
    }

    /// Whether the platform still takes each of these tokens.
    async fn lives(&self, token: &Value) -> bool {
        let client = multivio::outbound::client().unwrap();
        let request = client.get(format!("{}/x/2/users/me", self.sandbox.url())).bearer_auth(token.as_str().unwrap());
        request.send().await.unwrap().status() == 200
    }

    async fn given_back(&self, jobs: i64) {
        wait_until(SOON, "the jobs that give tokens back", || async {
            let done = "select count(*) from jobs where kind = 'give_back_tokens' and state = 'succeeded'";
            sqlx::query_scalar::<_, i64>(done).fetch_one(&self.app.pool).await.unwrap() == jobs
        })
        .await;
    }
}

#[tokio::test]
async fn an_account_that_is_typed_in_is_named_by_the_platform() {
    let rig = Rig::new().await;
    let mut typed = rig.typed();
    typed["username"] = json!("somebody_else");
    let (status, made) = rig.api.post(CONNECTIONS, typed.clone()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["username"], &made["remote_account_id"]), (&rig.account["username"], &rig.account["id"]));
    typed.as_object_mut().unwrap().remove("username");
    let (status, again) = rig.api.post(CONNECTIONS, typed).await;
    assert_eq!((status, &again["id"], &again["username"]), (201, &made["id"], &rig.account["username"]));
    assert_eq!(rig.calls("users.me").await, 2, "also when it is connected again");
    // Held like one that came by consent: nobody else publishes on it.
    let (_, stranger) = rig.app.token_of_another();
    assert_eq!(get(&rig.api, &stranger, "/api/v1/me").await.0, 200);
    let (status, answer) = call(&rig.api, &stranger, None, Method::POST, CONNECTIONS, Some(&rig.typed())).await;
    assert_eq!((status, &answer["code"]), (409, &json!("connected_elsewhere")), "{answer}");
    assert_eq!(rig.connections().await, 1);
}

#[tokio::test]
async fn tokens_of_another_account_or_of_nobody_or_with_too_little_are_refused_by_name_and_not_kept() {
    let rig = Rig::new().await;
    let other = rig.sandbox.post("/_sandbox/x/accounts", json!({})).await;
    rig.refused_field(&connection(&rig.account, &other), "remote_account_id").await;
    let mut forged = rig.typed();
    forged["access_token"] = json!("forged");
    rig.refused_field(&forged, "access_token").await;
    let little = rig.tokens(&rig.account, json!({ "scopes": ["tweet.read", "tweet.write", "offline.access"] })).await;
    let said = rig.refused_field(&connection(&rig.account, &little), "access_token").await;
    assert!(said.contains("lacks the scope users.read") && said.contains("media.write"), "{said}");
    // The app's own token is nobody's.
    rig.fault("users.me", json!({ "refuse": "unsupported_authentication" })).await;
    rig.refused_field(&rig.typed(), "access_token").await;
    rig.fault("users.me", json!({ "refuse": "account_locked" })).await;
    let answer = rig.nothing_kept(&rig.typed()).await;
    assert_eq!(answer.status(), 409);
    // Under the same key, once nothing is wrong any more.
    let request = rig.api.request(Method::POST, CONNECTIONS).header("Idempotency-Key", "one").json(&rig.typed());
    assert_eq!(request.send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn a_platform_that_does_not_answer_leaves_nothing_and_says_when_to_come_back() {
    let rig = Rig::new().await;
    for effect in [
        json!({ "refuse": "rate_limited" }),
        json!({ "refuse": "rate_limited_without_headers" }),
        json!({ "refuse": "service_unavailable" }),
        json!({ "refuse": "edge_html" }),
        json!("drop_before"),
    ] {
        // An outage is asked about once more.
        rig.fault("users.me", effect.clone()).await;
        rig.fault("users.me", effect.clone()).await;
        let answer = rig.nothing_kept(&rig.typed()).await;
        assert_eq!(answer.status(), 503, "{effect}");
        let after: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=900).contains(&after), "{effect}: {after}");
        rig.sandbox.clear_faults().await;
    }
    // One refusal alone is got over.
    rig.fault("users.me", json!({ "refuse": "service_unavailable" })).await;
    assert_eq!(rig.api.post(CONNECTIONS, rig.typed()).await.0, 201);
}

/// Whether the new pair would end with the old one is the platform's to know, and it does not say.
#[tokio::test]
async fn the_pair_that_another_replaces_is_forgotten_and_not_given_back() {
    let rig = Rig::new().await;
    let _ops = rig.app.worker(Queue::Ops).await;
    let (_, first) = rig.api.post(CONNECTIONS, rig.typed()).await;
    let new = rig.tokens(&rig.account, json!({})).await;
    let (status, again) = rig.api.post(CONNECTIONS, connection(&rig.account, &new)).await;
    assert_eq!((status, &again["id"]), (201, &first["id"]), "{again}");
    let token = rig.api.token.clone();
    let back = rig.approve(&rig.ask(&token).await).await;
    assert_eq!(rig.bring(&token, &back.body()).await.0, 201);
    let jobs = "select count(*) from jobs where kind = 'give_back_tokens'";
    assert_eq!(sqlx::query_scalar::<_, i64>(jobs).fetch_one(&rig.app.pool).await.unwrap(), 0);
    assert_eq!(rig.calls("oauth2.revoke").await, 0);
    // The newest is the one that is used.
    let (status, asked) =
        rig.api.post(&format!("{CONNECTIONS}/{}/refresh", first["id"].as_str().unwrap()), json!({})).await;
    assert_eq!(status, 202, "{asked}");
    let (_, done) = rig.api.get(&format!("/api/v1/jobs/{}?wait=30", asked["job_id"].as_str().unwrap())).await;
    assert_eq!((&done["state"], &done["result"]["renewed"]), (&json!("succeeded"), &json!(true)), "{done}");
}

#[tokio::test]
async fn tokens_that_are_typed_in_again_are_not_given_back() {
    let rig = Rig::new().await;
    let (_, first) = rig.api.post(CONNECTIONS, rig.typed()).await;
    // Disconnected, and typed in again before the job came to it, beside another access token: they are in use once more.
    let mut mixed = rig.typed();
    mixed["access_token"] = rig.tokens(&rig.account, json!({})).await["access_token"].clone();
    assert_eq!(rig.api.delete(&format!("{CONNECTIONS}/{}", first["id"].as_str().unwrap())).await.0, 204);
    assert_eq!(rig.api.post(CONNECTIONS, mixed.clone()).await.0, 201);
    let _ops = rig.app.worker(Queue::Ops).await;
    rig.given_back(1).await;
    assert_eq!(rig.calls("oauth2.revoke").await, 0);
    assert!(rig.lives(&mixed["access_token"]).await);
}
