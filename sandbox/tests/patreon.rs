//! The twin of Patreon: consent, tokens that are good once, nothing that was not asked for, and pages of members.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
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
    consent_to(sandbox, SCOPE, redirect, word).await
}

async fn consent_to(
    sandbox: &Harness,
    scope: &str,
    redirect: &str,
    word: (&str, &str),
) -> (StatusCode, Option<url::Url>) {
    let query = [
        ("response_type", "code"),
        ("client_id", "sandbox-client"),
        ("redirect_uri", redirect),
        ("scope", scope),
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

/// What a creator's token shows of the members, page by page until there is no more.
struct Campaign<'a> {
    sandbox: &'a Harness,
    token: String,
}

impl<'a> Campaign<'a> {
    async fn of(sandbox: &'a Harness, creator: &str) -> Self {
        let (_, to) = consent_to(sandbox, "campaigns.members", REDIRECT, ("sandbox_approve", creator)).await;
        let code = to.and_then(|to| value(&to, "code")).expect("a code");
        let grant = [("grant_type", "authorization_code"), ("code", code.as_str()), ("redirect_uri", REDIRECT)];
        let (_, pair) = trade(sandbox, &grant, "patreon-sandbox-secret").await;
        Self { sandbox, token: String::from(pair["access_token"].as_str().expect("a token")) }
    }

    async fn page(&self, query: &[(&str, &str)]) -> (StatusCode, Value) {
        let page = address(self.sandbox, "/api/oauth2/v2/campaigns/7700/members", query);
        answered(self.sandbox.http.get(page).bearer_auth(&self.token).header("user-agent", "test")).await
    }

    /// How many were on each page, and all of them.
    async fn walk(&self, query: &[(&str, &str)]) -> (Vec<usize>, BTreeSet<String>) {
        let (mut sizes, mut seen, mut cursor) = (Vec::new(), BTreeSet::new(), None::<String>);
        loop {
            let after = cursor.iter().map(|cursor| ("page[cursor]", cursor.as_str()));
            let (status, page) = self.page(&query.iter().copied().chain(after).collect::<Vec<_>>()).await;
            assert_eq!(status, 200, "{page}");
            let members = page["data"].as_array().expect("a list");
            sizes.push(members.len());
            for member in members {
                assert!(seen.insert(String::from(member["id"].as_str().expect("an id"))), "{member} comes twice");
            }
            match page["meta"]["pagination"]["cursors"]["next"].as_str() {
                Some(next) => cursor = Some(String::from(next)),
                None => return (sizes, seen),
            }
        }
    }
}

#[tokio::test]
async fn more_members_than_fit_on_a_page_come_page_by_page_each_once() {
    let sandbox = Harness::start().await;
    let patron = || sandbox.control("POST", "/patreon/patrons", json!({"tiers": ["7001"]}));
    let made: Vec<Value> = stream::iter(0..1003).map(|_| patron()).buffer_unordered(20).collect().await;
    // One who never paid is a user and no member.
    let creator = sandbox.control("POST", "/patreon/patrons", json!({})).await;
    let campaign = Campaign::of(&sandbox, creator["id"].as_str().expect("an id")).await;
    let all: BTreeSet<_> =
        made.iter().map(|patron| String::from(patron["member_id"].as_str().expect("an id"))).collect();
    assert_eq!(campaign.walk(&[]).await, (vec![1000, 3], all.clone()));
    let history = ("include", "pledge_history");
    assert_eq!(campaign.walk(&[history]).await, (vec![500, 500, 3], all.clone()));
    assert_eq!(campaign.walk(&[("page[count]", "501")]).await, (vec![501, 501, 1], all));
    let (_, first) = campaign.page(&[("page[count]", "2")]).await;
    assert_eq!(first["meta"]["pagination"]["total"], 1003, "of all pages");

    // Not what the page before gave, and more than there ever are on one.
    let cursor = first["meta"]["pagination"]["cursors"]["next"].as_str().expect("a cursor");
    for wrong in [
        &[("page[cursor]", "2")][..],
        &[("page[cursor]", &cursor[1..])],
        &[("page[count]", "1001")],
        &[("page[count]", "0")],
        &[("page[count]", "501"), history],
    ] {
        assert_eq!(campaign.page(wrong).await.0, 400, "{wrong:?}");
    }
    // Who comes while somebody walks moves nobody.
    patron().await;
    let (_, second) = campaign.page(&[("page[count]", "2"), ("page[cursor]", cursor)]).await;
    let ids =
        |page: &Value| page["data"].as_array().expect("a list").iter().map(|m| m["id"].clone()).collect::<Vec<_>>();
    assert_eq!((ids(&second).len(), ids(&first).iter().any(|id| ids(&second).contains(id))), (2, false));
}

#[tokio::test]
async fn a_page_of_members_can_be_refused_and_can_be_late() {
    let sandbox = Harness::start().await;
    let creator = sandbox.control("POST", "/patreon/patrons", json!({"tiers": ["7001"]})).await;
    let campaign = Campaign::of(&sandbox, creator["id"].as_str().expect("an id")).await;
    let order =
        |effect: Value| sandbox.fault(json!({"service": "patreon", "operation": "campaign.members", "effect": effect}));
    order(json!({"refuse": "unavailable"})).await;
    assert_eq!(campaign.page(&[]).await.0, 503);
    order(json!({"rate_limited": {"reset_in_s": 3}})).await;
    let (status, throttled) = campaign.page(&[]).await;
    assert_eq!((status.as_u16(), &throttled["errors"][0]["retry_after_seconds"]), (429, &json!(3)), "{throttled}");
    order(json!({"delay_ms": 300})).await;
    let begun = Instant::now();
    let (status, page) = campaign.page(&[]).await;
    assert_eq!((status.as_u16(), page["data"].as_array().map(Vec::len)), (200, Some(1)), "{page}");
    assert!(begun.elapsed() >= Duration::from_millis(300));
}
