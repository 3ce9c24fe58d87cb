//! API keys: what they open, what they never do, and what a guesser learns.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use multivio::{
    http::Scope,
    ids::{ConnectionId, TenantId},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{SOON, call, connect, get, new_key};
use crate::harness::{App, Proxy, Servers, Tripwire, wait_until};

/// Of the right form; nobody made it.
fn guess(number: u64) -> String {
    format!("mvk_{number:012x}_{}", "A".repeat(43))
}

#[tokio::test]
async fn a_key_is_shown_to_its_maker_alone_and_kept_nowhere_in_the_clear() {
    let app = App::new().await;
    let api = app.api().await;
    let make = async |token: &str| {
        let request = api.client.post(format!("{}/api/v1/api-keys", api.url)).bearer_auth(token);
        let request = request.header("X-Workspace", app.tenant.to_string()).header("Idempotency-Key", "once");
        let answer = request.json(&json!({"name": "ci", "scopes": ["read"]})).send().await.unwrap();
        answer.json::<Value>().await.unwrap()
    };
    let (first, second) = (make(&api.token).await, make(&api.token).await);
    let key = first["key"].as_str().unwrap().to_owned();
    assert!(key.starts_with(first["prefix"].as_str().unwrap()) && key.starts_with("mvk_"), "{first}");
    assert_eq!(second, first, "an answer that was lost is given again");
    let (_, list) = api.get("/api/v1/api-keys").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert!(!list.to_string().contains(&key));
    let secret = key.rsplit('_').next().unwrap();
    for table in ["api_keys", "idempotency_keys", "audit_log"] {
        let found: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "select exists (select from {table} t where t::text like '%' || $1 || '%')"
        )))
        .bind(secret)
        .fetch_one(&app.pool)
        .await
        .unwrap();
        assert!(!found, "{table} holds the key");
    }
    assert_eq!(get(&api, &key, "/api/v1/jobs").await.0, 200);
    // Another owner who happens to use the same Idempotency-Key makes a key of their own.
    let (other, of_other) = app.token_of_another();
    assert_eq!(get(&api, &of_other, "/api/v1/me").await.0, 200);
    let members = format!("/api/v1/workspaces/{}/members", app.tenant);
    assert_eq!(api.post(&members, json!({"user_id": other, "role": "owner"})).await.0, 201);
    let theirs = make(&of_other).await;
    assert!(theirs["id"] != first["id"] && theirs["key"].is_string() && theirs["key"] != first["key"], "{theirs}");
    // Revoked, it is answered as it was.
    let path = format!("/api/v1/api-keys/{}", first["id"].as_str().unwrap());
    assert_eq!(call(&api, &api.token, None, Method::DELETE, &path, None).await.0, 204);
    assert_eq!(make(&api.token).await, first);
    assert!(!api.program.log().contains(secret));
}

#[tokio::test]
async fn all_that_is_wrong_with_a_new_key_is_told_at_once_in_form_and_in_meaning() {
    let app = App::new().await;
    let api = app.api().await;
    let maker = app.token_for(app.tenant, &[Scope::Workspace]);
    let make = async |body: Value| {
        let (status, problem) = call(&api, &maker, None, Method::POST, "/api/v1/api-keys", Some(&body)).await;
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        let fields: Vec<_> = errors.iter().map(|error| error["field"].as_str().unwrap().to_owned()).collect();
        (status, fields)
    };
    let nobodys = ConnectionId::new().to_string();
    let body = json!({
        "scopes": ["admin", "everything"], "connections": ["no id", nobodys], "expires_at": "2020-01-01T00:00:00Z",
        "rate_limit": 0, "colour": "red",
    });
    let (status, fields) = make(body).await;
    let told: BTreeSet<_> = fields.iter().map(String::as_str).collect();
    let wrong =
        ["name", "scopes[1]", "connections[0]", "rate_limit", "colour", "scopes", "expires_at", "connections[1]"];
    assert_eq!((status, told), (422, BTreeSet::from(wrong)), "{fields:?}");
    assert_eq!(fields.len(), wrong.len(), "{fields:?}: each once");
    // What has the right form, and nothing else right.
    let body = json!({
        "name": " ", "scopes": ["admin"], "connections": [nobodys], "expires_at": "2020-01-01T00:00:00Z",
    });
    assert_eq!(make(body).await, (422, ["name", "scopes", "expires_at", "connections[0]"].map(str::to_owned).into()));
    // Neither is told to who may make none.
    let viewer = app.token_for(app.tenant, &[Scope::Read]);
    let (status, _) = call(&api, &viewer, None, Method::POST, "/api/v1/api-keys", Some(&json!({}))).await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn a_key_does_what_its_scopes_say_and_never_manages() {
    let app = App::new().await;
    let api = app.api().await;
    let (_, reads) = new_key(&api, json!({"scopes": ["read"]})).await;
    let (_, publishes) = new_key(&api, json!({"scopes": ["publish"]})).await;
    let (_, all) = new_key(&api, json!({})).await;
    let post = json!({"universal_content": "hello"});
    let write = async |key: &str| call(&api, key, None, Method::POST, "/api/v1/posts", Some(&post)).await;
    assert_eq!((get(&api, &reads, "/api/v1/posts").await.0, write(&reads).await.0), (200, 403));
    assert_eq!((get(&api, &publishes, "/api/v1/posts").await.0, write(&publishes).await.0), (403, 201));
    for key in [&reads, &publishes, &all] {
        for path in ["/api/v1/api-keys", "/api/v1/audit"] {
            let (status, problem) = get(&api, key, path).await;
            assert_eq!(status, 403, "{path}: {problem}");
            assert!(problem["detail"].as_str().unwrap().contains("Sign in as an owner"), "{problem}");
        }
        let wish = json!({"name": "more", "scopes": ["read"]});
        assert_eq!(call(&api, key, None, Method::POST, "/api/v1/api-keys", Some(&wish)).await.0, 403);
    }
    // Nor does it open any other workspace, its maker's own included.
    let (status, other) = api.post("/api/v1/workspaces", json!({"name": "other"})).await;
    assert_eq!(status, 201, "{other}");
    let (status, problem) = call(&api, &all, other["id"].as_str(), Method::GET, "/api/v1/posts", None).await;
    assert_eq!((status, &problem["code"]), (403, &json!("no_such_workspace")));
    // Being an administrator cannot be given by one who is none.
    let plain = app.token_for(app.tenant, &[Scope::Workspace]);
    let wish = json!({"name": "admin", "scopes": ["admin"]});
    assert_eq!(call(&api, &plain, None, Method::POST, "/api/v1/api-keys", Some(&wish)).await.0, 422);
    // Nor by whom only a token calls one: such a key would open nothing of it.
    let said = app.token_for(app.tenant, &[Scope::Workspace, Scope::Admin]);
    let make = async || call(&api, &said, None, Method::POST, "/api/v1/api-keys", Some(&wish)).await;
    let (status, problem) = make().await;
    assert_eq!((status, &problem["field"]), (422, &json!("scopes")), "{problem}");
    sqlx::query("update users set role = 'admin'").execute(&app.pool).await.unwrap();
    let (status, made) = make().await;
    assert_eq!(status, 201, "{made}");
    let retry = json!({"queue": "ops"});
    let key = made["key"].as_str().unwrap();
    let (status, answer) = call(&api, key, None, Method::POST, "/api/v1/admin/jobs/retry", Some(&retry)).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_key_that_is_limited_to_a_connection_sees_and_uses_no_other() {
    let mut app = App::new().await;
    let _sandbox = app.sandbox().await;
    let api = app.api().await;
    let (mine, other) = (connect(&app, app.tenant, "mine").await, connect(&app, app.tenant, "other").await);
    let strange = connect(&app, TenantId::new(), "strange").await;
    let (status, _) =
        api.post("/api/v1/api-keys", json!({"name": "k", "scopes": ["read"], "connections": [strange]})).await;
    assert_eq!(status, 422, "a connection of another workspace");
    let (_, key) = new_key(&api, json!({"connections": [mine]})).await;

    let (_, list) = get(&api, &key, "/api/v1/connections").await;
    let ids: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect();
    assert_eq!(ids, [json!(mine)]);
    assert_eq!(get(&api, &key, &format!("/api/v1/connections/{other}")).await.0, 404);
    let disconnect = format!("/api/v1/connections/{other}");
    assert_eq!(call(&api, &key, None, Method::DELETE, &disconnect, None).await.0, 404);
    let add = json!({"platform": "x", "remote_account_id": "1", "username": "u", "access_token": "t"});
    assert_eq!(call(&api, &key, None, Method::POST, "/api/v1/connections", Some(&add)).await.0, 403);

    let publish = async |credential: &str, wish: Value| {
        call(&api, credential, None, Method::POST, "/api/v1/publish", Some(&wish)).await
    };
    let (status, problem) = publish(&key, json!({"text": "a", "connections": [other]})).await;
    assert_eq!((status, &problem["field"]), (422, &json!("connections[0]")), "{problem}");
    let (status, answer) = publish(&key, json!({"text": "b", "platforms": ["x"]})).await;
    assert_eq!(status, 202, "{answer}");
    let went: Vec<_> = answer["publications"].as_array().unwrap().iter().map(|p| p["connection_id"].clone()).collect();
    assert_eq!(went, [json!(mine)], "{answer}");

    // What others put on its way on another connection is out of reach too, by publication and by job.
    let (status, answer) = publish(&api.token, json!({"text": "c", "connections": [other]})).await;
    assert_eq!(status, 202, "{answer}");
    let (publication, job) = (&answer["publications"][0]["id"], &answer["publications"][0]["job_id"]);
    let publication = format!("/api/v1/publications/{}", publication.as_str().unwrap());
    assert_eq!(get(&api, &key, &publication).await.0, 404);
    let post = answer["post_id"].as_str().unwrap();
    let (_, list) = get(&api, &key, &format!("/api/v1/posts/{post}/publications")).await;
    assert_eq!(list["items"], json!([]));
    for path in ["cancel", "send-late"] {
        let path = format!("{publication}/{path}");
        assert_eq!(call(&api, &key, None, Method::POST, &path, None).await.0, 404, "{path}");
    }
    let job = format!("/api/v1/jobs/{}", job.as_str().unwrap());
    for path in ["cancel", "retry"] {
        assert_eq!(call(&api, &key, None, Method::POST, &format!("{job}/{path}"), None).await.0, 403, "{path}");
    }
    assert_eq!(get(&api, &api.token, &publication).await.1["phase"], "planned");
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_here_and_within_seconds_elsewhere() {
    let app = App::new().await;
    let (api, elsewhere) = (app.api().await, app.api().await);
    let (id, key) = new_key(&api, json!({})).await;
    for process in [&api, &elsewhere] {
        assert_eq!(get(process, &key, "/api/v1/jobs").await.0, 200);
    }
    assert_eq!(api.delete(&format!("/api/v1/api-keys/{id}")).await.0, 204);
    assert_eq!(get(&api, &key, "/api/v1/jobs").await.0, 401);
    wait_until(Duration::from_secs(8), "the other process to refuse it", || async {
        get(&elsewhere, &key, "/api/v1/jobs").await.0 == 401
    })
    .await;
    assert_eq!(api.delete(&format!("/api/v1/api-keys/{id}")).await.0, 204, "again is no news");
}

#[tokio::test]
async fn a_key_ends_when_it_says_and_with_its_makers_membership() {
    let app = App::new().await;
    let api = app.api().await;
    let (status, problem) = api
        .post("/api/v1/api-keys", json!({"name": "k", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}))
        .await;
    assert_eq!((status, &problem["field"]), (422, &json!("expires_at")));
    let soon = (chrono::Utc::now() + chrono::TimeDelta::seconds(2)).to_rfc3339();
    let (_, short) = new_key(&api, json!({"expires_at": soon})).await;
    assert_eq!(get(&api, &short, "/api/v1/jobs").await.0, 200);
    wait_until(SOON, "it to expire", || async { get(&api, &short, "/api/v1/jobs").await.0 == 401 }).await;

    let (_, key) = new_key(&api, json!({})).await;
    assert_eq!(get(&api, &key, "/api/v1/jobs").await.0, 200);
    let role = async |role: &str| {
        let sql = "update workspace_members set role = $2 where tenant_id = $1";
        sqlx::query(sql).bind(app.tenant).bind(role).execute(&app.pool).await.unwrap();
    };
    role("viewer").await;
    let post = json!({"universal_content": "hello"});
    wait_until(SOON, "a viewer's key to write nothing", || async {
        call(&api, &key, None, Method::POST, "/api/v1/posts", Some(&post)).await.0 == 403
    })
    .await;
    sqlx::query("delete from workspace_members where tenant_id = $1")
        .bind(app.tenant)
        .execute(&app.pool)
        .await
        .unwrap();
    wait_until(SOON, "a stranger's key to open nothing", || async { get(&api, &key, "/api/v1/jobs").await.0 == 401 })
        .await;
}

#[tokio::test]
async fn the_last_use_is_noted_and_not_oftener_than_once_a_minute() {
    let app = App::new().await;
    let api = app.api().await;
    let (id, key) = new_key(&api, json!({})).await;
    let last_used = async || api.get(&format!("/api/v1/api-keys/{id}")).await.1["last_used_at"].clone();
    assert_eq!(last_used().await, Value::Null);
    get(&api, &key, "/api/v1/jobs").await;
    wait_until(SOON, "its use to be noted", || async { last_used().await.is_string() }).await;
    let noted = last_used().await;
    // Another process has not seen it yet, looks it up, and finds that the minute is not over.
    let elsewhere = app.api().await;
    assert_eq!(get(&elsewhere, &key, "/api/v1/jobs").await.0, 200);
    assert_eq!(get(&elsewhere, &key, "/api/v1/jobs").await.0, 200);
    assert_eq!(last_used().await, noted);
}

#[tokio::test]
async fn whoever_guesses_keys_is_stopped_before_the_guesses_are_looked_up() {
    let mut app = App::new().await;
    app.set("RATE_LIMIT_REQUESTS", "20").set("RATE_LIMIT_WINDOW", "60");
    let api = app.api().await;
    let (_, key) = new_key(&api, json!({})).await;
    let mut refused = 0;
    for number in 0..30 {
        match get(&api, &guess(number), "/api/v1/jobs").await.0 {
            401 => {}
            429 => refused += 1,
            other => panic!("a guess was answered {other}"),
        }
    }
    assert_eq!(refused, 10);
    // Even a good key, if it has to be looked up, waits: no guess is looked at any more. What is known passes.
    let (status, problem) = get(&api, &key, "/api/v1/jobs").await;
    assert_eq!((status, &problem["code"]), (429, &json!("rate_limited")));
    assert_eq!(api.get("/api/v1/jobs").await.0, 200);
}

#[tokio::test]
async fn a_known_and_an_unknown_prefix_cost_the_same_statements() {
    let servers = Servers::shared();
    let mut app = App::on(servers).await;
    let tripwire = Arc::new(Tripwire::new(|statement| statement.contains("app.find_key")));
    let proxy = Proxy::hung_with(servers.postgres_port(), &tripwire).await;
    app.set(
        "DATABASE_URL",
        secrecy::ExposeSecret::expose_secret(&servers.database_url_at(app.db.name(), proxy.port())),
    );
    let api = app.api().await;
    let (_, key) = new_key(&api, json!({})).await;
    let public = &key[..17];
    let asked = async |credential: String, status: u16| {
        tripwire.arm(None);
        assert_eq!(get(&api, &credential, "/api/v1/jobs").await.0, status, "{credential}");
        tripwire.seen()
    };
    // The first look prepares the statement, for whichever key it is.
    asked(guess(1), 401).await;
    let unknown = asked(guess(2), 401).await;
    let known = asked(format!("{public}{}", "A".repeat(43)), 401).await;
    assert_eq!((unknown.len(), &unknown), (1, &known));
    // What has not even the form of a key is not looked up.
    assert!(asked("mvk_nothing".to_owned(), 401).await.is_empty());
}
