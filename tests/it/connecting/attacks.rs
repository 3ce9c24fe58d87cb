//! Every way to bring an answer back that must not connect anything.

use std::time::Duration;

use futures::future::join_all;
use multivio::identity::Scope;
use reqwest::Method;
use serde_json::json;

use super::{AUTHORIZE, CALLBACK, Rig, named};
use crate::{harness::eventually, identity::call};

#[tokio::test]
async fn an_answer_is_good_for_whoever_asked_and_for_nobody_else() {
    let rig = Rig::new().await;
    let token = rig.api.token.clone();
    let (_, other) = rig.app.token_of_another();
    let back = rig.approve(&rig.ask(&token).await).await;
    // Somebody else's code and state in my browser, or mine in theirs: both are this.
    rig.refused(&other, &back.body(), 409, "consent_unknown").await;
    // A colleague in the same workspace.
    let colleague = rig.app.token_of(rig.app.tenant, multivio::ids::UserId::new(), &[Scope::Workspace]);
    rig.refused(&colleague, &back.body(), 409, "consent_unknown").await;
    // Oneself, elsewhere.
    let elsewhere = rig.app.token_of(multivio::ids::TenantId::new(), rig.app.user, &[Scope::Workspace]);
    rig.refused(&elsewhere, &back.body(), 409, "consent_unknown").await;
    let nobody = rig.api.client.post(format!("{}{}", rig.api.url, CALLBACK)).json(&back.body()).send().await;
    assert_eq!(nobody.unwrap().status(), 401);
    rig.refused(&token, &json!({"state": "made-up", "code": back.code}), 409, "consent_unknown").await;
    assert_eq!((rig.calls("oauth2.token").await, rig.connections().await), (0, 0), "nothing was asked of the platform");
    // None of them has spent it.
    assert_eq!(rig.bring(&token, &back.body()).await.0, 201);
}

#[tokio::test]
async fn a_code_of_another_asking_does_not_fit_its_verifier() {
    let rig = Rig::new().await;
    let token = rig.api.token.clone();
    let (mine, planted) = (rig.approve(&rig.ask(&token).await).await, rig.approve(&rig.ask(&token).await).await);
    let mixed = json!({"state": mine.state, "code": planted.code});
    rig.refused(&token, &mixed, 409, "consent_refused").await;
    rig.refused(&token, &mine.body(), 409, "consent_used").await;
    assert_eq!(rig.connections().await, 0);
}

#[tokio::test]
async fn an_answer_is_taken_once_however_many_bring_it() {
    let rig = Rig::new().await;
    let token = rig.api.token.clone();
    let back = rig.approve(&rig.ask(&token).await).await.body();
    let crowd = join_all((0..8).map(|_| rig.bring(&token, &back))).await;
    let made = crowd.iter().filter(|(status, _)| *status == 201).count();
    let told = |answer: &serde_json::Value| answer["code"] == "consent_under_way" || answer["code"] == "consent_used";
    assert!(made == 1 && crowd.iter().all(|(status, answer)| *status == 201 || told(answer)), "{crowd:?}");
    assert_eq!((rig.calls("oauth2.token").await, rig.connections().await), (1, 1));
    rig.refused(&token, &back, 409, "consent_used").await;
}

#[tokio::test]
async fn an_answer_that_comes_too_late_or_says_no_connects_nothing() {
    let rig = Rig::new().await;
    let token = rig.api.token.clone();
    let late = rig.approve(&rig.ask(&token).await).await.body();
    sqlx::query("update account_consents set expires_at = now()").execute(&rig.app.pool).await.unwrap();
    rig.refused(&token, &late, 409, "consent_expired").await;
    assert_eq!(rig.calls("oauth2.token").await, 0);

    let denied = rig.visit(&rig.ask(&token).await, "sandbox_deny").await;
    let body = json!({"state": named(&denied, "state"), "error": named(&denied, "error")});
    rig.refused(&token, &body, 409, "consent_denied").await;
    rig.refused(&token, &body, 409, "consent_used").await;
    // The code's own half minute.
    let settings = json!({"x": {"code_lifetime_s": 0}});
    rig.sandbox.settings(settings).await;
    let stale = rig.approve(&rig.ask(&token).await).await.body();
    rig.refused(&token, &stale, 409, "consent_refused").await;
    for wrong in [json!({"state": "s"}), json!({"state": "s", "code": "c", "error": "e"}), json!({"code": "c"})] {
        assert!(matches!(rig.bring(&token, &wrong).await.0, 400 | 422), "{wrong}");
    }
    assert_eq!(rig.connections().await, 0);
}

#[tokio::test]
async fn nothing_of_a_request_says_where_the_platform_sends_people() {
    let rig = Rig::new().await;
    for more in ["?redirect_uri=https://evil.example", "?return_to=//evil.example"] {
        let path = format!("{AUTHORIZE}{more}");
        let (status, answer) = call(&rig.api, &rig.api.token, None, Method::POST, &path, None).await;
        assert!(status == 400 || !answer.to_string().contains("evil"), "{answer}");
    }
    let page = rig.ask(&rig.api.token).await;
    let (_, to) = page.query_pairs().find(|(name, _)| name == "redirect_uri").unwrap();
    assert_eq!(to, "http://127.0.0.1:3000/connected/x");
}

#[tokio::test]
async fn state_and_verifier_stand_nowhere_in_the_clear() {
    let rig = Rig::new().await;
    let request = rig.api.request(Method::POST, AUTHORIZE).header("Idempotency-Key", "k");
    let answer: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
    let page: reqwest::Url = answer["authorize_url"].as_str().unwrap().parse().unwrap();
    let (_, state) = page.query_pairs().find(|(name, _)| name == "state").unwrap();
    assert_eq!(state.len(), 43, "256 bits");
    let kept: Vec<String> = sqlx::query_scalar(
        "select to_jsonb(c)::text from account_consents c union all \
         select to_jsonb(k)::text from idempotency_keys k union all select to_jsonb(a)::text from audit_log a",
    )
    .fetch_all(&rig.app.pool)
    .await
    .unwrap();
    assert!(kept.len() >= 3 && kept.iter().all(|row| !row.contains(&*state)), "{kept:?}");
    assert!(!rig.api.program.log().contains(&*state));
}

#[tokio::test]
async fn an_account_that_another_workspace_holds_is_refused_and_its_tokens_given_back() {
    let rig = Rig::new().await;
    let (_, other) = rig.app.token_of_another();
    let theirs = rig.approve(&rig.ask(&other).await).await.body();
    assert_eq!(rig.bring(&other, &theirs).await.0, 201);
    let token = rig.api.token.clone();
    let mine = rig.approve(&rig.ask(&token).await).await.body();
    rig.refused(&token, &mine, 409, "connected_elsewhere").await;
    assert_eq!((rig.connections().await, rig.calls("oauth2.revoke").await), (1, 2));
    // Tokens that were typed in prove nothing, and bar nobody who can.
    sqlx::query("update connections set proven_at = null").execute(&rig.app.pool).await.unwrap();
    let mine = rig.approve(&rig.ask(&token).await).await.body();
    assert_eq!(rig.bring(&token, &mine).await.0, 201);
}

#[tokio::test]
async fn a_platform_in_trouble_costs_the_code_and_says_so() {
    let rig = Rig::new().await;
    let token = rig.api.token.clone();
    let fault = |operation: &str, effect| json!({"service": "x", "operation": operation, "effect": effect});
    rig.sandbox.fault(fault("oauth2.token", "accept_then_drop")).await;
    let lost = rig.approve(&rig.ask(&token).await).await.body();
    rig.refused(&token, &lost, 503, "consent_interrupted").await;
    rig.refused(&token, &lost, 409, "consent_used").await;
    // The name is asked for twice: the tokens are worth it.
    rig.sandbox.fault(fault("users.me", "drop_before")).await;
    let back = rig.approve(&rig.ask(&token).await).await.body();
    assert_eq!(rig.bring(&token, &back).await.0, 201);
}

#[tokio::test]
async fn a_browser_that_leaves_does_not_cost_the_tokens_that_are_on_their_way() {
    let rig = Rig::new().await;
    let token = rig.api.token.clone();
    let slow = json!({"service": "x", "operation": "oauth2.token", "effect": {"accept_then_delay_ms": 1500}});
    rig.sandbox.fault(slow).await;
    let back = rig.approve(&rig.ask(&token).await).await.body();
    let request = rig.api.request(Method::POST, CALLBACK).json(&back).timeout(Duration::from_millis(500));
    assert!(request.send().await.is_err(), "it left before the answer");
    eventually(Duration::from_secs(20), "the connection", || async { (rig.connections().await == 1).then_some(()) })
        .await;
}

/// Brings an answer in while the platform is slow to say whose account it is, and does something meanwhile.
async fn meanwhile(rig: &Rig, happens: impl AsyncFnOnce()) -> (u16, serde_json::Value) {
    let slow = json!({"service": "x", "operation": "users.me", "effect": {"accept_then_delay_ms": 2500}});
    rig.sandbox.fault(slow).await;
    let back = rig.approve(&rig.ask(&rig.api.token).await).await.body();
    let request = rig.api.request(Method::POST, CALLBACK).header("Idempotency-Key", "brought").json(&back);
    let brought = tokio::spawn(request.send());
    eventually(Duration::from_secs(20), "the name to be asked for", || async {
        (rig.calls("users.me").await == 1).then_some(())
    })
    .await;
    happens().await;
    let answer = brought.await.unwrap().unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn an_answer_that_arrives_after_its_workspaces_end_connects_nothing_and_its_tokens_go_back() {
    let rig = Rig::new().await;
    let (status, answer) = meanwhile(&rig, async || {
        let me = format!("/api/v1/me?confirm={}", rig.app.user);
        assert_eq!(rig.api.delete(&me).await.0, 202);
    })
    .await;
    assert_eq!((status, &answer["code"]), (409, &json!("consent_over")), "{answer}");
    assert_eq!((rig.connections().await, rig.calls("oauth2.revoke").await), (0, 2));
    let refreshes = "select count(*) from jobs where kind = 'refresh_token'";
    assert_eq!(sqlx::query_scalar::<_, i64>(refreshes).fetch_one(&rig.app.pool).await.unwrap(), 0);
}

#[tokio::test]
async fn tokens_that_could_not_be_kept_for_whatever_reason_go_back_to_the_platform() {
    let rig = Rig::new().await;
    let taken = "insert into idempotency_keys (tenant_id, route, key, request_hash, created_at) \
                 values ($1, $2, 'brought', sha256('another'), now())";
    let (status, answer) = meanwhile(&rig, async || {
        let insert = sqlx::query(taken).bind(rig.app.tenant).bind(format!("POST {CALLBACK} of {}", rig.app.user));
        insert.execute(&rig.app.pool).await.unwrap();
    })
    .await;
    assert_eq!((status, &answer["code"]), (422, &json!("idempotency_key_reused")), "{answer}");
    assert_eq!((rig.connections().await, rig.calls("oauth2.revoke").await), (0, 2));
}
