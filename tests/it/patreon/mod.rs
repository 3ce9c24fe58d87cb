//! Plans by membership: linking an account, tiers that change, and memberships that end.

mod hints;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use multivio::{
    http::Scope,
    ids::{TenantId, UserId},
    jobs::{Engine, NewJob, Queue, belt::Belt},
    patreon::PatreonUpkeep,
};
use reqwest::{Method, redirect};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use url::Url;

use self::hints::{SECRET, member_of, signed};
use crate::{
    harness::{Api, App, Sandbox, wait_until},
    identity::{SOON, call},
};

pub const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const REDIRECT: &str = "http://127.0.0.1:5173/patreon";

struct Stage {
    app: App,
    sandbox: Sandbox,
    api: Api,
}

impl Stage {
    /// Two tiers that are worth something, and one that is not.
    async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With settings of its own.
    async fn with(settings: &[(&str, &str)]) -> Self {
        let mut app = App::new().await;
        for (name, value) in settings {
            app.set(name, *value);
        }
        let sandbox = app.sandbox().await;
        let api = app.api().await;
        for arguments in [
            &["plans", "define", "free", "--connections", "1"][..],
            &["plans", "default", "free"],
            &["plans", "define", "supporter", "--rank", "1", "--connections", "5"],
            &["plans", "define", "patron", "--rank", "2", "--connections", "50"],
            &["plans", "tier", "7001", "supporter"],
            &["plans", "tier", "7002", "patron"],
        ] {
            let (done, said) = app.cli(arguments).await;
            assert!(done, "{arguments:?}: {said}");
        }
        sandbox.settings(json!({"patreon": {"webhook_uri": format!("{}/webhooks/patreon", api.url)}})).await;
        Self { app, sandbox, api }
    }

    async fn patron(&self, tiers: &[&str]) -> String {
        let made = self.sandbox.post("/_sandbox/patreon/patrons", json!({ "tiers": tiers })).await;
        made["id"].as_str().unwrap().to_owned()
    }

    async fn change(&self, patron: &str, change: Value) {
        self.patch(&format!("patrons/{patron}"), change).await;
    }

    /// The webhook as the twin has it, changed.
    async fn webhook(&self, change: Value) -> Value {
        self.patch("webhook", change).await
    }

    async fn patch(&self, path: &str, change: Value) -> Value {
        let url = format!("{}/_sandbox/patreon/{path}", self.sandbox.url());
        let answer = self.api.client.patch(url).json(&change).send().await.unwrap();
        let (status, answer) = (answer.status(), answer.json().await.unwrap());
        assert!(status.is_success(), "{path}: {answer}");
        answer
    }

    async fn begin(&self) -> Url {
        begin(&self.api).await
    }

    async fn link(&self, patron: &str) -> (u16, Value) {
        let (code, state) = allowed(&self.begin().await, patron).await;
        self.finish(&code, &state, VERIFIER).await
    }

    async fn finish(&self, code: &str, state: &str, verifier: &str) -> (u16, Value) {
        let body = json!({ "code": code, "state": state, "code_verifier": verifier });
        self.api.post("/api/v1/patreon/link/finish", body).await
    }

    async fn plan(&self) -> Value {
        let (status, plan) = self.api.get("/api/v1/plan").await;
        assert_eq!(status, 200, "{plan}");
        plan
    }

    async fn until_plan(&self, name: &str) {
        wait_until(SOON, &format!("the plan to be {name}"), || async { self.plan().await["name"] == name }).await;
    }

    async fn look_after_links(&self) {
        let belt = Belt::new(&self.app.config().redis, self.app.pool.clone()).unwrap();
        let engine = Engine::new(self.app.pool.clone(), self.app.session(), belt);
        engine.enqueue(NewJob::of(&PatreonUpkeep {}, TenantId::SYSTEM)).await.unwrap();
    }

    /// What the workers did with one kind of job.
    async fn jobs(&self, state: &str) -> i64 {
        let sql = "select count(*) from jobs where kind = 'read_membership' and state::text = $1";
        sqlx::query_scalar(sql).bind(state).fetch_one(&self.app.pool).await.unwrap()
    }

    /// How many looks there are, whatever became of them.
    async fn looks(&self) -> i64 {
        let sql = "select count(*) from jobs where kind = 'read_membership'";
        sqlx::query_scalar(sql).fetch_one(&self.app.pool).await.unwrap()
    }

    /// For how many days from now the plan is given.
    async fn days_left(&self) -> f64 {
        let sql =
            "select extract(epoch from until - now())::float8 / 86400 from workspace_plans where source = 'patreon'";
        sqlx::query_scalar(sql).fetch_one(&self.app.pool).await.unwrap()
    }

    async fn hint(&self, body: &str, signature: &str) -> u16 {
        let request = self.api.client.post(format!("{}/webhooks/patreon", self.api.url)).body(body.to_owned());
        let request = request.header("X-Patreon-Event", "members:update").header("X-Patreon-Signature", signature);
        request.send().await.unwrap().status().as_u16()
    }
}

/// Where the user is to be sent.
pub async fn begin(api: &Api) -> Url {
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
    let (status, begun) = api.post("/api/v1/patreon/link", json!({ "code_challenge": challenge })).await;
    assert_eq!(status, 200, "{begun}");
    Url::parse(begun["authorize_url"].as_str().unwrap()).unwrap()
}

/// The user says yes: the code and the state that come back.
pub async fn allowed(page: &Url, patron: &str) -> (String, String) {
    let back = answer(page, &[("sandbox_approve", patron)]).await;
    (query(&back, "code").unwrap(), query(&back, "state").unwrap())
}

async fn answer(page: &Url, word: &[(&str, &str)]) -> Url {
    let client = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap();
    let mut page = page.clone();
    page.query_pairs_mut().extend_pairs(word);
    let answer = client.get(page).send().await.unwrap();
    assert_eq!(answer.status(), 302);
    let back = answer.headers()["location"].to_str().unwrap();
    assert!(back.starts_with(&format!("{REDIRECT}?")), "{back}");
    Url::parse(back).unwrap()
}

fn query(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

#[tokio::test]
async fn a_membership_gives_its_tiers_plan_and_follows_its_changes() {
    let stage = Stage::new().await;
    let _worker = stage.app.worker(Queue::Ops).await;
    assert_eq!(stage.plan().await["name"], "free");
    assert_eq!(stage.api.get("/api/v1/patreon/link").await.0, 404);
    let patron = stage.patron(&["7001"]).await;
    let (status, link) = stage.link(&patron).await;
    assert_eq!((status, &link["state"], &link["tiers"]), (200, &json!("active"), &json!(["7001"])), "{link}");
    assert_eq!((&link["patreon_user_id"], &link["patron_status"]), (&json!(patron), &json!("active_patron")));
    let plan = stage.plan().await;
    assert_eq!((&plan["name"], &plan["source"]), (&json!("supporter"), &json!("patreon")));
    assert!(plan["until"].is_string(), "{plan}");

    // Of several tiers, the plan of the highest rank; one that is worth nothing gives nothing.
    stage.change(&patron, json!({"tiers": ["7001", "7002", "7003"]})).await;
    stage.until_plan("patron").await;
    stage.change(&patron, json!({"tiers": ["7001"]})).await;
    stage.until_plan("supporter").await;
    // The operator's word counts before a membership's.
    let workspace = stage.app.tenant.to_string();
    assert!(stage.app.cli(&["plans", "set", &workspace, "patron"]).await.0);
    assert_eq!(stage.plan().await["source"], "operator");
    assert!(stage.app.cli(&["plans", "unset", &workspace]).await.0);

    // Unlinked, the plan is taken back at once, and the account may serve another workspace.
    let remove = stage.api.request(Method::DELETE, "/api/v1/patreon/link").header("Idempotency-Key", "once");
    let (first, again) = (remove.try_clone().unwrap().send().await.unwrap(), remove.send().await.unwrap());
    assert_eq!((first.status().as_u16(), again.status().as_u16()), (204, 204));
    assert!(again.headers().contains_key("idempotent-replayed"));
    assert_eq!(stage.plan().await["name"], "free");
    let kept: i64 = sqlx::query_scalar("select count(*) from patreon_links").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!(kept, 0);
    let (_, lines) = stage.api.get("/api/v1/audit").await;
    let done: Vec<_> = lines["items"].as_array().unwrap().iter().map(|line| line["action"].clone()).collect();
    assert!(done.contains(&json!("patreon.linked")) && done.contains(&json!("patreon.unlinked")), "{done:?}");
}

#[tokio::test]
async fn a_stolen_state_links_nothing_and_each_is_good_once() {
    let stage = Stage::new().await;
    let patron = stage.patron(&["7002"]).await;
    let (code, state) = allowed(&stage.begin().await, &patron).await;
    let body = json!({ "code": code, "state": state, "code_verifier": VERIFIER });
    let finish = "/api/v1/patreon/link/finish";
    // Another user, another owner of the same workspace, the same user in another workspace: all know all of it.
    let (thief, of_thief) = stage.app.token_of_another();
    assert_eq!(call(&stage.api, &of_thief, None, Method::GET, "/api/v1/me", None).await.0, 200);
    let (_, team) = stage.api.post("/api/v1/workspaces", json!({"name": "Team"})).await;
    let member = json!({"user_id": thief, "role": "owner"});
    wait_until(SOON, "the other user to be known", || async {
        let path = format!("/api/v1/workspaces/{}/members", stage.app.tenant);
        let (status, _) = stage.api.post(&path, member.clone()).await;
        matches!(status, 201 | 409)
    })
    .await;
    let own = stage.app.tenant.to_string();
    for (credential, workspace) in
        [(&of_thief, None), (&of_thief, Some(own.as_str())), (&stage.api.token, team["id"].as_str())]
    {
        let (status, problem) = call(&stage.api, credential, workspace, Method::POST, finish, Some(&body)).await;
        assert_eq!((status, &problem["code"]), (409, &json!("link_not_begun")), "{problem}");
    }
    // A key never manages, whoever's it is.
    let (_, key) = crate::identity::new_key(&stage.api, json!({})).await;
    assert_eq!(call(&stage.api, &key, None, Method::POST, finish, Some(&body)).await.0, 403);
    // None of that spent it: whoever began finishes, once.
    assert_eq!(stage.sandbox.count("service=patreon&operation=oauth.token").await, 0);
    let (status, link) = stage.finish(&code, &state, VERIFIER).await;
    assert_eq!(status, 200, "{link}");
    assert_eq!(stage.finish(&code, &state, VERIFIER).await.1["code"], "link_not_begun");

    // Without the secret of whoever began it is over, for the right one too.
    let (code, state) = allowed(&stage.begin().await, &patron).await;
    let wrong = VERIFIER.replace('d', "e");
    assert_eq!(stage.finish(&code, &state, &wrong).await.1["code"], "link_not_begun");
    assert_eq!(stage.finish(&code, &state, VERIFIER).await.1["code"], "link_not_begun");
    // So is one that is too old, and one before the newest.
    let (code, state) = allowed(&stage.begin().await, &patron).await;
    sqlx::query("update patreon_flows set expires_at = now()").execute(&stage.app.pool).await.unwrap();
    assert_eq!(stage.finish(&code, &state, VERIFIER).await.1["code"], "link_not_begun");
    let (code, state) = allowed(&stage.begin().await, &patron).await;
    let newest = stage.begin().await;
    assert_eq!(stage.finish(&code, &state, VERIFIER).await.1["code"], "link_not_begun");

    // A code that Patreon does not know, and a user who says no.
    let state = query(&newest, "state").unwrap();
    let (status, problem) = stage.finish("made-up", &state, VERIFIER).await;
    assert_eq!((status, &problem["field"]), (422, &json!("code")), "{problem}");
    let back = answer(&stage.begin().await, &[("sandbox_deny", "1")]).await;
    assert_eq!((query(&back, "error").as_deref(), query(&back, "code")), (Some("access_denied"), None));
}

#[tokio::test]
async fn one_membership_serves_one_workspace_and_a_repeat_is_answered_alike() {
    let stage = Stage::new().await;
    let patron = stage.patron(&["7001"]).await;
    let (code, state) = allowed(&stage.begin().await, &patron).await;
    let body = json!({ "code": code, "state": state, "code_verifier": VERIFIER });
    let finish =
        stage.api.request(Method::POST, "/api/v1/patreon/link/finish").header("Idempotency-Key", "k").json(&body);
    let mut answers = Vec::new();
    for request in [finish.try_clone().unwrap(), finish] {
        let response = request.send().await.unwrap();
        answers.push((response.status().as_u16(), response.json::<Value>().await.unwrap()));
    }
    assert_eq!((answers[0].0, &answers[0]), (200, &answers[1]));
    assert_eq!(stage.sandbox.count("service=patreon&operation=oauth.token").await, 1);

    let (_, other) = stage.api.post("/api/v1/workspaces", json!({"name": "Other"})).await;
    let other = other["id"].as_str();
    let challenge = json!({ "code_challenge": URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER)) });
    let (_, begun) =
        call(&stage.api, &stage.api.token, other, Method::POST, "/api/v1/patreon/link", Some(&challenge)).await;
    let (code, state) = allowed(&Url::parse(begun["authorize_url"].as_str().unwrap()).unwrap(), &patron).await;
    let body = json!({ "code": code, "state": state, "code_verifier": VERIFIER });
    let (status, problem) =
        call(&stage.api, &stage.api.token, other, Method::POST, "/api/v1/patreon/link/finish", Some(&body)).await;
    assert_eq!((status, &problem["code"]), (409, &json!("patreon_account_taken")), "{problem}");
    assert_eq!(call(&stage.api, &stage.api.token, other, Method::GET, "/api/v1/plan", None).await.1["name"], "free");
    // Another account in its place: what the first one gave goes with it.
    let (status, _) = stage.link(&stage.patron(&[]).await).await;
    assert_eq!((status, &stage.plan().await["name"]), (200, &json!("free")));
}

const FINISH: &str = "/api/v1/patreon/link/finish";

/// Long enough for something else to happen meanwhile.
async fn patreon_is_slow(stage: &Stage) {
    let slow = json!({"service": "patreon", "operation": "oauth.token", "effect": {"accept_then_delay_ms": 4000}});
    stage.sandbox.fault(slow).await;
}

#[tokio::test]
async fn a_browser_that_leaves_does_not_cost_the_code_and_a_repeat_meanwhile_is_told_to_wait() {
    let stage = Stage::new().await;
    let patron = stage.patron(&["7001"]).await;
    let (code, state) = allowed(&stage.begin().await, &patron).await;
    patreon_is_slow(&stage).await;
    let body = json!({ "code": code, "state": state, "code_verifier": VERIFIER });
    let finish = || stage.api.request(Method::POST, FINISH).header("Idempotency-Key", "k").json(&body);
    assert!(finish().timeout(Duration::from_millis(800)).send().await.is_err(), "it left before the answer");
    let meanwhile = finish().send().await.unwrap();
    assert!(meanwhile.headers().contains_key("retry-after"), "{meanwhile:?}");
    let (status, problem) = (meanwhile.status(), meanwhile.json::<Value>().await.unwrap());
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("link_under_way")), "{problem}");
    // Sent again, it is answered as the first one would have been.
    wait_until(SOON, "the link", || async { finish().send().await.unwrap().status() == 200 }).await;
    assert_eq!(stage.plan().await["name"], "supporter");
    assert_eq!(stage.sandbox.count("service=patreon&operation=oauth.token").await, 1);
    let open: i64 = sqlx::query_scalar("select count(*) from patreon_flows").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!(open, 0);
}

#[tokio::test]
async fn a_linking_that_ends_while_it_is_on_its_way_links_nothing() {
    let stage = Stage::new().await;
    let demote = "update workspace_members set role = 'editor' where user_id = $1";
    for demote in [None, Some(demote)] {
        let patron = stage.patron(&["7001"]).await;
        let (code, state) = allowed(&stage.begin().await, &patron).await;
        patreon_is_slow(&stage).await;
        let end = async {
            wait_until(SOON, "the code to be on its way", || async {
                let sql = "select exists (select from patreon_flows where taken_at is not null)";
                sqlx::query_scalar(sql).fetch_one(&stage.app.pool).await.unwrap()
            })
            .await;
            match demote {
                None => drop(stage.begin().await),
                Some(sql) => drop(sqlx::query(sql).bind(stage.app.user).execute(&stage.app.pool).await.unwrap()),
            }
        };
        let ((status, problem), ()) = tokio::join!(stage.finish(&code, &state, VERIFIER), end);
        assert_eq!((status, &problem["code"]), (409, &json!("link_not_begun")), "{demote:?}: {problem}");
        let links: i64 =
            sqlx::query_scalar("select count(*) from patreon_links").fetch_one(&stage.app.pool).await.unwrap();
        assert_eq!(links, 0, "{demote:?}");
    }
}

#[tokio::test]
async fn the_time_of_grace_is_what_the_setting_says() {
    let stage = Stage::with(&[("PATREON_GRACE_DAYS", "3")]).await;
    let patron = stage.patron(&["7001"]).await;
    assert_eq!(stage.link(&patron).await.0, 200);
    let is_set = |days: f64| (2.9..=3.0).contains(&days);
    assert!(is_set(stage.days_left().await), "when it is linked: {}", stage.days_left().await);
    let sql = "update workspace_plans set until = now() + interval '1 hour' where source = 'patreon'";
    sqlx::query(sql).execute(&stage.app.pool).await.unwrap();
    let _worker = stage.app.worker(Queue::Ops).await;
    let body = member_of(&patron);
    assert_eq!(stage.hint(&body, &signed(SECRET, &body)).await, 204);
    wait_until(SOON, "the look to renew it", || async { is_set(stage.days_left().await) }).await;
}

#[tokio::test]
async fn the_workers_look_after_links_by_the_clock_and_nobody_has_to_ask() {
    let stage = Stage::new().await;
    let patron = stage.patron(&["7001"]).await;
    assert_eq!(stage.link(&patron).await.0, 200);
    stage.change(&patron, json!({"tiers": ["7002"], "fires": false})).await;
    let long_ago =
        "update patreon_links set read_at = now() - interval '13 hours', looked_at = now() - interval '13 hours'";
    sqlx::query(long_ago).execute(&stage.app.pool).await.unwrap();
    let _worker = stage.app.worker(Queue::Ops).await;
    // Several times in any hour: its next time is made to be now.
    let due = "update schedules set next_at = now() where name = 'patreon-upkeep' and kind = 'patreon_upkeep' \
               and next_at between now() and now() + interval '15 minutes'";
    wait_until(SOON, "the schedule", || async {
        sqlx::query(due).execute(&stage.app.pool).await.unwrap().rows_affected() == 1
    })
    .await;
    stage.until_plan("patron").await;
}

#[tokio::test]
async fn a_membership_that_lapses_takes_its_plan_back_after_the_grace() {
    let stage = Stage::new().await;
    let _worker = stage.app.worker(Queue::Ops).await;
    let patron = stage.patron(&["7002"]).await;
    assert_eq!(stage.link(&patron).await.0, 200);
    let until = stage.plan().await["until"].clone();
    let days = stage.days_left().await;
    assert!((6.9..=7.0).contains(&days), "{days}");
    stage.change(&patron, json!({"tiers": []})).await;
    wait_until(SOON, "the look", || async {
        stage.api.get("/api/v1/patreon/link").await.1["patron_status"] == "former_patron"
    })
    .await;
    // Within the grace nothing is taken, and nothing is renewed.
    assert_eq!((&stage.plan().await["name"], &stage.plan().await["until"]), (&json!("patron"), &until));
    let sql = "update workspace_plans set until = now() where source = 'patreon'";
    sqlx::query(sql).execute(&stage.app.pool).await.unwrap();
    assert_eq!(stage.plan().await["name"], "free");
    // Whoever comes back has it back.
    stage.change(&patron, json!({"tiers": ["7002"]})).await;
    stage.until_plan("patron").await;
}

#[tokio::test]
async fn whoever_owns_a_workspace_no_more_gives_it_no_plan_and_may_give_it_to_another() {
    let stage = Stage::new().await;
    let linked = async || -> i64 {
        sqlx::query_scalar("select count(*) from patreon_links").fetch_one(&stage.app.pool).await.unwrap()
    };
    for end in [
        "update workspace_members set role = 'viewer' where user_id = $1",
        "delete from workspace_members where user_id = $1",
    ] {
        let patron = stage.patron(&["7002"]).await;
        let (status, answer) = stage.link(&patron).await;
        assert_eq!((status, linked().await), (200, 1), "{answer}");
        assert_eq!(stage.plan().await["name"], "patron");
        sqlx::query(end).bind(stage.app.user).execute(&stage.app.pool).await.unwrap();
        assert_eq!(linked().await, 0, "{end}");
        assert_eq!(stage.plan().await["name"], "free", "{end}");
    }
}

#[tokio::test]
async fn a_link_that_cannot_be_read_waits_for_its_next_turn_like_the_others() {
    let stage = Stage::new().await;
    let _worker = stage.app.worker(Queue::Ops).await;
    assert_eq!(stage.link(&stage.patron(&["7001"]).await).await.0, 200);
    // The account that answers is another one: nothing is noted of what is read.
    let unreadable = "update patreon_links set patreon_user_id = 'another', read_at = now() - interval '2 days', \
                      looked_at = now() - interval '2 days'";
    sqlx::query(unreadable).execute(&stage.app.pool).await.unwrap();
    stage.look_after_links().await;
    let is = async |column: &str| -> bool {
        let sql = format!("select {column} > now() - interval '1 hour' from patreon_links");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&stage.app.pool).await.unwrap()
    };
    wait_until(SOON, "the look to begin", || is("looked_at")).await;
    assert!(!is("read_at").await);
}

#[tokio::test]
async fn tokens_are_refreshed_kept_and_given_up_when_patreon_refuses_them() {
    let stage = Stage::new().await;
    let _worker = stage.app.worker(Queue::Ops).await;
    let patron = stage.patron(&["7001"]).await;
    assert_eq!(stage.link(&patron).await.0, 200);
    let generation = async || {
        let sql = "select generation from patreon_links";
        sqlx::query_scalar::<_, i32>(sql).fetch_one(&stage.app.pool).await.unwrap()
    };
    // Ended by the clock, and ended before its time: each costs one refresh, whose pair is the one that is used next.
    sqlx::query("update patreon_links set access_expires_at = now()").execute(&stage.app.pool).await.unwrap();
    stage.change(&patron, json!({"tiers": ["7002"]})).await;
    stage.until_plan("patron").await;
    assert_eq!(generation().await, 2);
    stage.sandbox.post(&format!("/_sandbox/patreon/patrons/{patron}/expire"), json!({})).await;
    stage.change(&patron, json!({"tiers": ["7001"]})).await;
    stage.until_plan("supporter").await;
    assert_eq!(generation().await, 3);
    assert_eq!(stage.sandbox.count("service=patreon&operation=oauth.refresh").await, 2);
    // Patreon away, or asking to be left alone, ends nothing.
    let fault = |effect: Value| json!({"service": "patreon", "operation": "identity", "times": 1, "effect": effect});
    stage.sandbox.fault(fault(json!({"refuse": "unavailable"}))).await;
    stage.change(&patron, json!({"tiers": ["7002"]})).await;
    stage.until_plan("patron").await;
    stage.sandbox.fault(fault(json!({"rate_limited": {"reset_in_s": 1}}))).await;
    stage.change(&patron, json!({"tiers": ["7001"]})).await;
    stage.until_plan("supporter").await;
    // Taken back by its owner: said, and the plan runs out by itself.
    stage.sandbox.post(&format!("/_sandbox/patreon/patrons/{patron}/revoke"), json!({})).await;
    stage.change(&patron, json!({"tiers": ["7002"]})).await;
    wait_until(SOON, "the link to be broken", || async {
        stage.api.get("/api/v1/patreon/link").await.1["state"] == "broken"
    })
    .await;
    assert_eq!(stage.plan().await["name"], "supporter");
    assert_eq!(stage.link(&patron).await.1["state"], "active");
    assert_eq!(stage.plan().await["name"], "patron");
}

#[tokio::test]
async fn without_patreon_nothing_of_it_is_open() {
    let app = App::new().await;
    let api = app.api().await;
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
    let (status, problem) = api.post("/api/v1/patreon/link", json!({ "code_challenge": challenge })).await;
    assert_eq!((status, &problem["code"]), (503, &json!("patreon_off")));
    let hint = api.client.post(format!("{}/webhooks/patreon", api.url)).body("{}").send().await.unwrap();
    assert_eq!(hint.status(), 404);
    // Who may not manage may not link either.
    let reader = app.token_of(app.tenant, UserId::new(), &[Scope::Read]);
    let body = json!({ "code_challenge": challenge });
    assert_eq!(call(&api, &reader, None, Method::POST, "/api/v1/patreon/link", Some(&body)).await.0, 403);
}
