//! The twin of Patreon: consent, tokens that are good once, and nothing that was not asked for.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Harness, answered};

const REDIRECT: &str = "http://127.0.0.1:5173/patreon";
const SCOPE: &str = "identity identity.memberships";

fn address(sandbox: &Harness, path: &str, query: &[(&str, &str)]) -> url::Url {
    let mut address = url::Url::parse(&format!("{}/patreon{path}", sandbox.url)).expect("an address");
    address.query_pairs_mut().extend_pairs(query);
    address
}

async fn consent(sandbox: &Harness, redirect: &str, word: (&str, &str)) -> (StatusCode, Option<url::Url>) {
    let query = [
        ("response_type", "code"),
        ("client_id", "sandbox-client"),
        ("redirect_uri", redirect),
        ("scope", SCOPE),
        ("state", "s"),
        word,
    ];
    let page = address(sandbox, "/oauth2/authorize", &query);
    let answer = sandbox.http.get(page).send().await.expect("an answer");
    let to = answer.headers().get("location").and_then(|to| to.to_str().ok()).and_then(|to| to.parse().ok());
    (answer.status(), to)
}

fn value(url: &url::Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

async fn trade(sandbox: &Harness, grant: &[(&str, &str)], secret: &str) -> (StatusCode, Value) {
    let client = [("client_id", "sandbox-client"), ("client_secret", secret)];
    let form: Vec<_> = grant.iter().chain(&client).collect();
    let request = sandbox.http.post(format!("{}/patreon/api/oauth2/token", sandbox.url)).header("user-agent", "test");
    answered(request.form(&form)).await
}

async fn read(sandbox: &Harness, token: &str, query: &[(&str, &str)]) -> (StatusCode, Value) {
    let request = sandbox.http.get(address(sandbox, "/api/oauth2/v2/identity", query));
    answered(request.bearer_auth(token).header("user-agent", "test")).await
}

#[tokio::test]
async fn patreons_codes_and_refresh_tokens_are_good_once_and_nothing_comes_unasked() {
    let sandbox = Harness::start().await;
    let patron = sandbox.control("POST", "/patreon/patrons", json!({"tiers": ["7001"]})).await;
    let id = patron["id"].as_str().expect("an id");
    let (status, to) = consent(&sandbox, "http://127.0.0.1:5173/patreon/", ("sandbox_approve", id)).await;
    assert_eq!((status.as_u16(), to), (400, None), "an address that is not the client's");
    let (_, denied) = consent(&sandbox, REDIRECT, ("sandbox_deny", "1")).await;
    assert_eq!(denied.and_then(|to| value(&to, "error")).as_deref(), Some("access_denied"));
    let (status, to) = consent(&sandbox, REDIRECT, ("sandbox_approve", id)).await;
    assert_eq!(status, 302);
    let code = to.and_then(|to| value(&to, "code")).expect("a code");

    let secret = "patreon-sandbox-secret";
    let grant = [("grant_type", "authorization_code"), ("code", code.as_str()), ("redirect_uri", REDIRECT)];
    assert_eq!(trade(&sandbox, &grant, "wrong").await.0, 401);
    let (status, pair) = trade(&sandbox, &grant, secret).await;
    assert_eq!((status.as_u16(), &pair["token_type"]), (200, &json!("Bearer")), "{pair}");
    assert_eq!(trade(&sandbox, &grant, secret).await.1["error"], "invalid_grant");
    let grant = [("grant_type", "refresh_token"), ("refresh_token", pair["refresh_token"].as_str().expect("one"))];
    let (_, second) = trade(&sandbox, &grant, secret).await;
    assert_eq!(trade(&sandbox, &grant, secret).await.1["error"], "invalid_grant");

    let token = second["access_token"].as_str().expect("a token");
    let (_, bare) = read(&sandbox, token, &[]).await;
    assert_eq!((&bare["data"]["attributes"], &bare["included"]), (&json!({}), &json!([])), "{bare}");
    let include = ("include", "memberships,memberships.currently_entitled_tiers");
    let (_, asked) = read(&sandbox, token, &[include, ("fields[member]", "patron_status")]).await;
    assert_eq!(asked["included"][0]["attributes"], json!({"patron_status": "active_patron"}), "{asked}");
    let tiers = &asked["included"][0]["relationships"]["currently_entitled_tiers"]["data"];
    assert_eq!(tiers, &json!([{"id": "7001", "type": "tier"}]));
    for wrong in [("include", "friends"), ("fields[member]", "password"), ("fields[friend]", "name")] {
        assert_eq!(read(&sandbox, token, &[wrong]).await.0, 400, "{wrong:?}");
    }
    let nameless = sandbox.http.get(format!("{}/patreon/api/oauth2/v2/identity", sandbox.url)).bearer_auth(token);
    assert_eq!(answered(nameless).await.0, 403, "without a User-Agent");
    assert_eq!(read(&sandbox, "made-up", &[]).await.0, 401);
}
