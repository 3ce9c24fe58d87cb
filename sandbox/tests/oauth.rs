use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::*;

const CALLBACK: &str = "http://127.0.0.1:9/callback";
const VERIFIER: &str = "a-verifier-that-is-long-enough-to-be-a-real-one-0123456789";

fn authorize_url(sandbox: &Harness, extra: &[(&str, &str)]) -> String {
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
    let mut url = url::Url::parse(&format!("{}/x/i/oauth2/authorize", sandbox.url)).expect("a URL");
    url.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", "sandbox-client")
        .append_pair("redirect_uri", CALLBACK)
        .append_pair("scope", "tweet.read tweet.write users.read offline.access")
        .append_pair("state", "some-state")
        .append_pair("code_challenge", &challenge)
        .append_pair("code_challenge_method", "S256")
        .extend_pairs(extra);
    url.into()
}

/// Follows the page to its redirect and reads the query of the callback.
async fn callback(sandbox: &Harness, extra: &[(&str, &str)]) -> Vec<(String, String)> {
    let response = sandbox.http.get(authorize_url(sandbox, extra)).send().await.expect("an answer");
    assert_eq!(response.status(), 302);
    let location = url::Url::parse(response.headers()["location"].to_str().expect("text")).expect("a URL");
    assert!(location.as_str().starts_with(CALLBACK));
    location.query_pairs().into_owned().collect()
}

async fn code(sandbox: &Harness) -> String {
    let query = callback(sandbox, &[("sandbox_approve", "1")]).await;
    assert_eq!(query[0], (String::from("state"), String::from("some-state")));
    query[1].1.clone()
}

async fn token(sandbox: &Harness, form: &[(&str, &str)]) -> (StatusCode, Value) {
    let url = format!("{}/x/2/oauth2/token", sandbox.url);
    answered(sandbox.http.post(url).basic_auth("sandbox-client", Some("sandbox-secret")).form(form)).await
}

fn exchange<'a>(code: &'a str, verifier: &'a str) -> [(&'a str, &'a str); 4] {
    [("grant_type", "authorization_code"), ("code", code), ("redirect_uri", CALLBACK), ("code_verifier", verifier)]
}

#[tokio::test]
async fn a_user_authorizes_and_the_code_becomes_tokens_once() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({"username": "ada"})).await;
    let code = code(&sandbox).await;
    let (status, pair) = token(&sandbox, &exchange(&code, VERIFIER)).await;
    assert_eq!(status, 200, "{pair}");
    assert_eq!((&pair["token_type"], &pair["expires_in"]), (&json!("bearer"), &json!(7200)));
    let user = User { token: String::from(pair["access_token"].as_str().expect("a token")), ..user };
    let (_, me) = answered(sandbox.x("GET", "/2/users/me", &user)).await;
    assert_eq!(me["data"]["id"], json!(user.id));
    let (status, refusal) = token(&sandbox, &exchange(&code, VERIFIER)).await;
    assert_eq!(
        (status.as_u16(), &refusal["error_description"]),
        (400, &json!("Value passed for the authorization code was invalid."))
    );
}

#[tokio::test]
async fn a_code_needs_its_verifier_its_app_and_its_thirty_seconds() {
    let sandbox = Harness::start().await;
    sandbox.user(json!({})).await;
    let wrong_verifier = code(&sandbox).await;
    assert_eq!(token(&sandbox, &exchange(&wrong_verifier, "other")).await.0, 400);
    sandbox.set(json!({"code_lifetime_s": 0})).await;
    let late = code(&sandbox).await;
    assert_eq!(token(&sandbox, &exchange(&late, VERIFIER)).await.0, 400);
    let url = format!("{}/x/2/oauth2/token", sandbox.url);
    let bare = answered(sandbox.http.post(&url).form(&exchange("c", VERIFIER))).await;
    assert_eq!((bare.0.as_u16(), &bare.1["error_description"]), (401, &json!("Missing valid authorization header")));
    let wrong = sandbox.http.post(&url).basic_auth("sandbox-client", Some("guess")).form(&exchange("c", VERIFIER));
    assert_eq!(answered(wrong).await.1["error"], "invalid_client");
}

#[tokio::test]
async fn a_refresh_token_works_once_even_when_its_answer_is_lost() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    let refresh = |token: String| async { token_with(&sandbox, token).await };
    let (status, first) = refresh(user.refresh.clone()).await;
    assert_eq!(status, 200);
    let second = String::from(first["refresh_token"].as_str().expect("a token"));
    assert_ne!(second, user.refresh);
    assert_eq!(refresh(user.refresh.clone()).await.1["error_description"], "Value passed for the token was invalid.");

    sandbox
        .fault(json!({"service": "x", "operation": "oauth2.refresh", "account": user.id, "effect": "accept_then_drop"}))
        .await;
    let lost = sandbox
        .http
        .post(format!("{}/x/2/oauth2/token", sandbox.url))
        .basic_auth("sandbox-client", Some("sandbox-secret"));
    assert!(lost.form(&[("grant_type", "refresh_token"), ("refresh_token", &second)]).send().await.is_err());
    assert_eq!(refresh(second).await.0, 400);
}

async fn token_with(sandbox: &Harness, refresh: String) -> (StatusCode, Value) {
    token(sandbox, &[("grant_type", "refresh_token"), ("refresh_token", &refresh)]).await
}

#[tokio::test]
async fn the_page_never_redirects_to_a_stranger() {
    let sandbox = Harness::start().await;
    sandbox.user(json!({"username": "ada"})).await;
    let page = sandbox.http.get(authorize_url(&sandbox, &[])).send().await.expect("a page");
    assert_eq!(page.status(), 200);
    assert!(page.text().await.expect("text").contains("Authorize as @ada"));
    assert_eq!(
        callback(&sandbox, &[("sandbox_deny", "1")]).await[0],
        (String::from("error"), String::from("access_denied"))
    );
    let good = authorize_url(&sandbox, &[("sandbox_approve", "1")]);
    for bad in [
        good.replace("127.0.0.1%3A9", "localhost%3A9"),
        good.replace("sandbox-client", "nobody"),
        good.replace("S256", "md5"),
        good.replace("tweet.write", "tweet.fly"),
        good.replace("state=some-state", &format!("state={}", "s".repeat(501))),
    ] {
        assert_ne!(bad, good);
        assert_eq!(sandbox.http.get(&bad).send().await.expect("a page").status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn an_owner_who_takes_permission_back_ends_every_token() {
    let sandbox = Harness::start().await;
    let (ada, bob) = (sandbox.user(json!({})).await, sandbox.user(json!({})).await);
    sandbox.control("POST", &format!("/x/accounts/{}/expire", ada.id), Value::Null).await;
    assert_eq!(answered(sandbox.x("GET", "/2/users/me", &ada)).await.0, 401);
    sandbox.control("POST", &format!("/x/accounts/{}/revoke", ada.id), Value::Null).await;
    assert_eq!(token_with(&sandbox, ada.refresh.clone()).await.0, 400);
    assert_eq!(answered(sandbox.x("GET", "/2/users/me", &bob)).await.0, 200);
    let revoke = sandbox
        .http
        .post(format!("{}/x/2/oauth2/revoke", sandbox.url))
        .basic_auth("sandbox-client", Some("sandbox-secret"));
    assert_eq!(answered(revoke.form(&[("token", &bob.token)])).await.1, json!({"revoked": true}));
    assert_eq!(answered(sandbox.x("GET", "/2/users/me", &bob)).await.0, 401);
}
