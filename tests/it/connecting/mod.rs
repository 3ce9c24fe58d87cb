//! Connecting an account by its owner's consent: through the platform's page and back, and every way to abuse that.

mod attacks;
mod typed;

use multivio::{identity::Scope, jobs::Queue};
use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::{
    harness::{Api, App, Sandbox},
    identity::call,
};

const AUTHORIZE: &str = "/api/v1/connections/x/authorize";
const CALLBACK: &str = "/api/v1/connections/x/callback";

pub struct Rig {
    pub app: App,
    pub sandbox: Sandbox,
    pub api: Api,
    /// As the twin made it.
    pub account: Value,
}

/// What the platform's answer has in its address.
#[derive(Debug, Clone)]
pub struct Back {
    pub state: String,
    pub code: String,
}

impl Back {
    fn body(&self) -> Value {
        json!({ "state": self.state, "code": self.code })
    }
}

impl Rig {
    pub async fn new() -> Self {
        let mut app = App::new().await;
        let sandbox = app.sandbox().await;
        let account = sandbox.post("/_sandbox/x/accounts", json!({})).await;
        let api = app.api().await;
        Self { app, sandbox, api, account }
    }

    pub async fn ask(&self, credential: &str) -> Url {
        let (status, answer) = call(&self.api, credential, None, Method::POST, AUTHORIZE, None).await;
        assert_eq!(status, 200, "{answer}");
        answer["authorize_url"].as_str().expect("an address").parse().expect("an address")
    }

    /// Whom the owner's browser is sent on to, when they say yes at this page (or no).
    pub async fn visit(&self, page: &Url, answer: &str) -> Url {
        visit(page, answer, self.account["id"].as_str().expect("an id")).await
    }

    pub async fn approve(&self, page: &Url) -> Back {
        let back = self.visit(page, "sandbox_approve").await;
        assert_eq!(back.path(), "/connected/x", "the callback of the settings");
        Back { state: named(&back, "state"), code: named(&back, "code") }
    }

    pub async fn bring(&self, credential: &str, body: &Value) -> (u16, Value) {
        call(&self.api, credential, None, Method::POST, CALLBACK, Some(body)).await
    }

    pub async fn refused(&self, credential: &str, body: &Value, status: u16, code: &str) {
        let (found, answer) = self.bring(credential, body).await;
        assert_eq!((found, answer["code"].as_str()), (status, Some(code)), "{answer}");
    }

    pub async fn connections(&self) -> i64 {
        sqlx::query_scalar("select count(*) from connections").fetch_one(&self.app.pool).await.unwrap()
    }

    pub async fn calls(&self, operation: &str) -> u64 {
        self.sandbox.count(&format!("service=x&operation={operation}")).await
    }
}

pub async fn visit(page: &Url, answer: &str, value: &str) -> Url {
    let mut page = page.clone();
    page.query_pairs_mut().append_pair(answer, value);
    let client = multivio::outbound::client().expect("a client can be made");
    let response = client.get(page).send().await.expect("the twin answers");
    assert_eq!(response.status(), 302, "{}", response.text().await.unwrap_or_default());
    response.headers()["location"].to_str().expect("an address").parse().expect("an address")
}

pub fn named(back: &Url, name: &str) -> String {
    back.query_pairs().find(|(key, _)| key == name).expect("it is there").1.into_owned()
}

/// What the frontend brings back once whoever is there has said yes.
pub async fn answer(api: &Api) -> Value {
    let (status, asked) = api.post(AUTHORIZE, json!({})).await;
    assert_eq!(status, 200, "{asked}");
    let page = asked["authorize_url"].as_str().expect("an address").parse().expect("an address");
    let back = visit(&page, "sandbox_approve", "1").await;
    json!({ "state": named(&back, "state"), "code": named(&back, "code") })
}

#[tokio::test]
async fn an_account_is_connected_by_its_owners_consent_and_publishes() {
    let rig = Rig::new().await;
    let token = rig.api.token.clone();
    let back = rig.approve(&rig.ask(&token).await).await;
    let (status, made) = rig.bring(&token, &back.body()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["remote_account_id"], rig.account["id"]);
    assert_eq!((&made["username"], &made["state"]), (&rig.account["username"], &json!("active")));
    let _publish = rig.app.worker(Queue::Publish).await;
    let _ops = rig.app.worker(Queue::Ops).await;
    let (status, sent) = rig.api.post("/api/v1/publish", json!({"text": "by consent", "platforms": ["x"]})).await;
    assert_eq!(status, 202, "{sent}");
    let job = sent["publications"][0]["job_id"].as_str().expect("a job").to_owned();
    let (_, done) = rig.api.get(&format!("/api/v1/jobs/{job}?wait=30")).await;
    assert_eq!(done["state"], "succeeded", "{done}");

    // Refreshed on demand, with the pair that came by consent; under one key once.
    let path = format!("/api/v1/connections/{}/refresh", made["id"].as_str().unwrap());
    let (status, asked) = rig.api.post(&path, json!({})).await;
    assert_eq!(status, 202, "{asked}");
    let (_, done) = rig.api.get(&format!("/api/v1/jobs/{}?wait=30", asked["job_id"].as_str().unwrap())).await;
    assert_eq!((&done["state"], &done["result"]["renewed"]), (&json!("succeeded"), &json!(true)), "{done}");
    assert_eq!(rig.calls("oauth2.refresh").await, 1);

    let (_, audit) = rig.api.get("/api/v1/audit").await;
    let actions: Vec<_> = audit["items"].as_array().unwrap().iter().map(|line| line["action"].clone()).collect();
    for action in ["connection.consent_asked", "connection.added", "connection.refresh_asked"] {
        assert!(actions.contains(&json!(action)), "{action} is not in {actions:?}");
    }
}

#[tokio::test]
async fn consent_given_again_mends_the_connection_that_is_there() {
    let rig = Rig::new().await;
    let token = rig.api.token.clone();
    let (_, first) = rig.bring(&token, &rig.approve(&rig.ask(&token).await).await.body()).await;
    sqlx::query("update connections set state = 'needs_reconnect'").execute(&rig.app.pool).await.unwrap();
    let (status, again) = rig.bring(&token, &rig.approve(&rig.ask(&token).await).await.body()).await;
    assert_eq!((status, &again["id"], &again["state"]), (201, &first["id"], &json!("active")));
    assert_eq!(rig.connections().await, 1);
}

#[tokio::test]
async fn a_repeat_under_one_key_gives_the_same_page_and_the_same_connection_also_when_it_is_over() {
    let rig = Rig::new().await;
    let send = |path: &'static str, body: Value| {
        let request = rig.api.request(Method::POST, path).header("Idempotency-Key", "one").json(&body);
        async move {
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.json::<Value>().await.unwrap())
        }
    };
    let first = send(AUTHORIZE, json!({})).await;
    assert_eq!((first.0, &first), (200, &send(AUTHORIZE, json!({})).await));
    let page: Url = first.1["authorize_url"].as_str().unwrap().parse().unwrap();
    let body = rig.approve(&page).await.body();
    let made = send(CALLBACK, body.clone()).await;
    assert_eq!(made.0, 201, "{}", made.1);
    assert_eq!(made, send(CALLBACK, body).await);
    assert_eq!(rig.calls("oauth2.token").await, 1);
    // What was asked for is used up, and then forgotten: the key keeps its answer for as long as any key.
    assert_eq!(send(AUTHORIZE, json!({})).await, first);
    sqlx::query("delete from account_consents").execute(&rig.app.pool).await.unwrap();
    let old = "update idempotency_keys set created_at = now() - interval '6 days 23 hours'";
    sqlx::query(old).execute(&rig.app.pool).await.unwrap();
    assert_eq!(send(AUTHORIZE, json!({})).await, first);
    let asked: i64 = sqlx::query_scalar("select count(*) from audit_log where action = 'connection.consent_asked'")
        .fetch_one(&rig.app.pool)
        .await
        .unwrap();
    assert_eq!(asked, 1);
    let other = rig.approve(&rig.ask(&rig.api.token).await).await.body();
    assert_eq!(send(CALLBACK, other).await.0, 422);
}

#[tokio::test]
async fn an_account_beyond_the_plan_leaves_nothing_whether_it_comes_by_consent_or_with_its_tokens() {
    let rig = Rig::new().await;
    let token = rig.api.token.clone();
    crate::plans::plan(&rig.app, &rig.api, &["--connections", "1"]).await;
    let (status, first) = rig.bring(&token, &rig.approve(&rig.ask(&token).await).await.body()).await;
    assert_eq!(status, 201, "{first}");
    let other = rig.sandbox.post("/_sandbox/x/accounts", json!({})).await;
    let back = visit(&rig.ask(&token).await, "sandbox_approve", other["id"].as_str().unwrap()).await;
    let by_consent = json!({ "state": named(&back, "state"), "code": named(&back, "code") });
    let with_tokens = crate::publish::connection(&other, &other);
    let kept = async || -> Vec<i64> {
        let mut counts = Vec::new();
        for sql in [
            "select count(*) from connections",
            "select count(*) from audit_log where action = 'connection.added'",
            "select count(*) from idempotency_keys",
            "select count(*) from jobs where kind = 'refresh_token'",
        ] {
            counts.push(sqlx::query_scalar(sql).fetch_one(&rig.app.pool).await.unwrap());
        }
        counts
    };
    let before = kept().await;
    let send = async |path: &str, body: &Value| {
        let request = rig.api.request(Method::POST, path).header("Idempotency-Key", "one").json(body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    crate::plans::assert_refused(&send(CALLBACK, &by_consent).await, "connections");
    // Its tokens went back, and the answer is spent: under the same key, which keeps no refusal, as well.
    assert_eq!(rig.calls("oauth2.revoke").await, 2);
    let (status, again) = send(CALLBACK, &by_consent).await;
    assert_eq!((status, &again["code"]), (409, &json!("consent_used")), "{again}");
    let path = "/api/v1/connections";
    crate::plans::assert_refused(&send(path, &with_tokens).await, "connections");
    assert_eq!(kept().await, before, "nothing is written in part");
    let (_, list) = rig.api.get(path).await;
    assert_eq!((list["items"].as_array().unwrap().len(), &list["items"][0]["id"]), (1, &first["id"]), "{list}");

    // What is there is mended; and with room for it the same request goes through, under the same key.
    assert_eq!(rig.bring(&token, &rig.approve(&rig.ask(&token).await).await.body()).await.0, 201);
    let (done, said) = rig.app.cli(&["plans", "define", "small", "--connections", "2"]).await;
    assert!(done, "{said}");
    let (status, made) = send(path, &with_tokens).await;
    assert_eq!((status, rig.connections().await), (201, 2), "{made}");
}

#[tokio::test]
async fn an_installation_without_a_page_to_come_back_to_says_so() {
    let mut app = App::new().await;
    let _sandbox = app.sandbox().await;
    app.set("TWITTER_CALLBACK_URL", "");
    let api = app.api().await;
    let (status, answer) = api.post(AUTHORIZE, json!({})).await;
    assert_eq!((status, &answer["code"]), (409, &json!("platform_not_set_up")), "{answer}");
    let (status, answer) = api.post("/api/v1/connections/youtube/authorize", json!({})).await;
    assert_eq!((status, &answer["code"]), (409, &json!("platform_not_set_up")), "{answer}");
}

#[tokio::test]
async fn only_those_who_may_connect_accounts_can_ask() {
    let rig = Rig::new().await;
    let reader = rig.app.token_of(rig.app.tenant, rig.app.user, &[Scope::Read, Scope::Publish]);
    for path in [AUTHORIZE, CALLBACK] {
        let body = json!({"state": "s", "code": "c"});
        let (status, _) = call(&rig.api, &reader, None, Method::POST, path, Some(&body)).await;
        assert_eq!(status, 403, "{path}");
    }
}
