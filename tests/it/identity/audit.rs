//! The audit log: what is done is in it, from where, and stays there.

use std::os::unix::fs::MetadataExt as _;

use multivio::{
    http::Scope,
    ids::{JobId, TenantId},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{call, connect, get, new_key};
use crate::harness::App;

async fn lines(api: &crate::harness::Api) -> Vec<Value> {
    let (status, list) = api.get("/api/v1/audit?limit=100").await;
    assert_eq!(status, 200, "{list}");
    list["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn what_is_done_to_keys_members_connections_and_publications_is_written_down() {
    let mut app = App::new().await;
    let sandbox = app.sandbox().await;
    let api = app.api().await;
    let (key_id, key) = new_key(&api, json!({})).await;
    let account = sandbox.post("/_sandbox/x/accounts", json!({})).await;
    let add = json!({"platform": "x", "remote_account_id": account["id"], "username": account["username"],
                     "access_token": account["access_token"], "refresh_token": account["refresh_token"]});
    let request = api.request(Method::POST, "/api/v1/connections").header("X-Request-Id", "the-one");
    let added: Value = request.json(&add).send().await.unwrap().json().await.unwrap();
    let connection = added["id"].as_str().unwrap();
    let wish = json!({"text": "hello", "connections": [connection]});
    let (status, put) = call(&api, &key, None, Method::POST, "/api/v1/publish", Some(&wish)).await;
    assert_eq!(status, 202, "{put}");
    let publication = put["publications"][0]["id"].as_str().unwrap();
    assert_eq!(api.post(&format!("/api/v1/publications/{publication}/cancel"), Value::Null).await.0, 200);
    // Cancelled, a publication stays so; a transform is run once more.
    let transform = json!({"content": "A text that is long enough.", "transformation_type": "shorten"});
    let (status, transform) = api.post("/api/v1/ai/transform", transform).await;
    assert_eq!(status, 202, "{transform}");
    let job = transform["job_id"].as_str().unwrap();
    for act in ["cancel", "retry"] {
        assert_eq!(api.post(&format!("/api/v1/jobs/{job}/{act}"), Value::Null).await.0, 200, "{act}");
    }
    assert_eq!(api.delete(&format!("/api/v1/connections/{connection}")).await.0, 204);
    assert_eq!(api.delete(&format!("/api/v1/api-keys/{key_id}")).await.0, 204);

    let lines = lines(&api).await;
    let actions: Vec<_> = lines.iter().rev().map(|line| line["action"].as_str().unwrap()).collect();
    let expected = [
        "api_key.created",
        "connection.added",
        "post.published",
        "publication.cancelled",
        "job.cancelled",
        "job.retried",
        "connection.removed",
        "api_key.revoked",
    ];
    assert_eq!(actions, expected);
    let line = |action: &str| lines.iter().find(|line| line["action"] == action).unwrap();
    let added = line("connection.added");
    assert_eq!((&added["target"], &added["request_id"]), (&json!(connection), &json!("the-one")));
    assert_eq!(
        (&added["actor"], &added["user_id"], &added["address"]),
        (&json!("user"), &json!(app.user), &json!("127.0.0.1"))
    );
    let published = line("post.published");
    assert_eq!((&published["actor"], &published["key_id"]), (&json!("key"), &json!(key_id)));
    let all = json!(lines).to_string();
    for secret in [&key, account["access_token"].as_str().unwrap()] {
        assert!(!all.contains(secret), "the log holds a secret");
    }
    // Page by page.
    let (_, first) = api.get("/api/v1/audit?limit=3").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let (_, rest) = api.get(&format!("/api/v1/audit?limit=100&cursor={cursor}")).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), expected.len() - 3);
    assert_eq!(api.get("/api/v1/audit?action=api_key.revoked").await.1["items"].as_array().unwrap().len(), 1);
    assert_eq!(api.get("/api/v1/audit?action=nothing").await.0, 400);
}

#[tokio::test]
async fn what_did_not_happen_is_not_written_down() {
    let app = App::new().await;
    let api = app.api().await;
    let strange = connect(&app, TenantId::new(), "strange").await;
    assert_eq!(api.delete(&format!("/api/v1/connections/{strange}")).await.0, 404);
    let (status, _) =
        api.post("/api/v1/api-keys", json!({"name": "k", "scopes": ["read"], "connections": [strange]})).await;
    assert_eq!(status, 422);
    assert_eq!(lines(&api).await, Vec::<Value>::new());
}

#[tokio::test]
async fn the_log_is_read_by_owners_and_administrators_and_by_nobody_else() {
    let app = App::new().await;
    let api = app.api().await;
    new_key(&api, json!({})).await;
    let (_, stranger) = app.token_of_another();
    let (status, theirs) = get(&api, &stranger, "/api/v1/audit").await;
    assert_eq!((status, &theirs["items"]), (200, &json!([])));
    let ours = format!("/api/v1/audit?workspace={}", app.tenant);
    assert_eq!(get(&api, &stranger, &ours).await.0, 403);
    let admin = app.token_for(TenantId::new(), &[Scope::Admin]);
    assert_eq!(get(&api, &admin, &ours).await.1["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_done_to_the_installation_is_read_by_administrators_in_person_alone() {
    let app = App::new().await;
    let api = app.api().await;
    assert!(app.cli(&["plans", "define", "free"]).await.0);
    for queue in ["pause", "resume"] {
        assert!(app.cli(&["jobs", queue, "ops"]).await.0);
    }
    let both = app.token_for(app.tenant, &[Scope::Workspace, Scope::Admin]);
    let admin = app.token_for(TenantId::new(), &[Scope::Admin]);
    let asked = "/api/v1/audit?installation=true";
    let actions = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|line| line["action"].as_str().unwrap().to_owned()).collect()
    };
    for token in [&both, &admin] {
        let (status, list) = get(&api, token, asked).await;
        assert_eq!(status, 200, "{list}");
        assert_eq!(actions(&list), ["queue.resumed", "queue.paused", "plan.defined"]);
    }
    let (_, first) = get(&api, &admin, &format!("{asked}&limit=1")).await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let (_, rest) = get(&api, &admin, &format!("{asked}&cursor={cursor}")).await;
    assert_eq!(actions(&rest), ["queue.paused", "plan.defined"]);
    assert_eq!(actions(&get(&api, &admin, &format!("{asked}&action=plan.defined")).await.1), ["plan.defined"]);
    let (status, problem) = get(&api, &admin, &format!("{asked}&workspace={}", app.tenant)).await;
    assert_eq!((status, &problem["field"]), (400, &json!("installation")), "{problem}");
    // An owner reads their own, and no key reads anything, whatever its scopes are.
    let owner = app.token_for(app.tenant, &[Scope::Workspace]);
    assert_eq!(get(&api, &owner, asked).await.0, 403);
    assert!(lines(&api).await.iter().all(|line| line["actor"] != "operator"));
    let body = json!({"name": "k", "scopes": ["read", "admin"]});
    sqlx::query("update users set role = 'admin'").execute(&app.pool).await.unwrap();
    let (status, made) = call(&api, &both, None, Method::POST, "/api/v1/api-keys", Some(&body)).await;
    assert_eq!(status, 201, "{made}");
    let key = made["key"].as_str().unwrap();
    for path in [asked.to_owned(), format!("/api/v1/audit?workspace={}", TenantId::new())] {
        assert_eq!(get(&api, key, &path).await.0, 403, "{path}");
    }
}

#[tokio::test]
async fn the_table_itself_refuses_every_change_but_forgetting_what_is_old() {
    let app = App::new().await;
    let api = app.api().await;
    new_key(&api, json!({})).await;
    sqlx::query("insert into audit_log (id, at, actor, action) values (gen_random_uuid(), now() - interval '366 days', 'user', 'old')")
        .execute(&app.pool)
        .await
        .unwrap();
    for statement in [
        "update audit_log set action = 'nothing'",
        "update audit_log set at = now() - interval '2 years'",
        "delete from audit_log",
        "truncate audit_log",
    ] {
        let error = sqlx::query(statement).execute(&app.pool).await.unwrap_err();
        assert!(error.to_string().contains("append-only"), "{statement}: {error}");
    }
    let gone =
        sqlx::query("delete from audit_log where at < now() - interval '365 days'").execute(&app.pool).await.unwrap();
    assert_eq!(gone.rows_affected(), 1);
    assert_eq!(lines(&api).await.len(), 1);
}

#[tokio::test]
async fn what_is_done_to_jobs_by_a_call_is_written_down_once_and_what_is_refused_is_not() {
    let mut app = App::new().await;
    let _models = app.sandbox().await;
    let api = app.api().await;
    let wish = json!({ "content": "A text that is long enough.", "transformation_type": "shorten" });
    let (_, asked) = api.post("/api/v1/ai/transform", wish).await;
    let job = asked["job_id"].as_str().unwrap();
    let path = format!("/api/v1/jobs/{job}");
    let send = async |method: Method, path: &str, body: Value, key: &str| {
        let request = api.request(method, path).header("Idempotency-Key", key).json(&body);
        request.send().await.unwrap().status().as_u16()
    };
    // Each is sent again: it is done once.
    for _ in 0..2 {
        assert_eq!(send(Method::PATCH, &path, json!({"priority": "low"}), "p").await, 200);
        assert_eq!(send(Method::POST, &format!("{path}/cancel"), Value::Null, "c").await, 200);
        assert_eq!(send(Method::POST, &format!("{path}/retry"), Value::Null, "r").await, 200);
        let failed = json!({"queue": "media", "limit": 7});
        assert_eq!(send(Method::POST, "/api/v1/admin/jobs/retry", failed, "f").await, 200);
    }
    let done = [
        ("job.priority_changed", job, json!({"priority": "low"})),
        ("job.cancelled", job, json!({})),
        ("job.retried", job, json!({})),
        ("jobs.failed_retried", "jobs", json!({"queue": "media", "kind": null, "limit": 7})),
    ];
    let expected = done.map(|(action, target, details)| (json!(action), json!(target), details));
    let written = async || -> Vec<_> {
        let lines = lines(&api).await.into_iter().rev();
        lines.map(|line| (line["action"].clone(), line["target"].clone(), line["details"].clone())).collect()
    };
    assert_eq!(written().await, expected);
    assert_eq!(send(Method::POST, &format!("{path}/cancel"), Value::Null, "again").await, 200);
    assert_eq!(send(Method::PATCH, &path, json!({"priority": "high"}), "late").await, 409);
    let strange = format!("/api/v1/jobs/{}", JobId::new());
    assert_eq!(send(Method::PATCH, &strange, json!({"priority": "high"}), "strange").await, 404);
    assert_eq!(written().await.len(), expected.len() + 1, "the cancellation alone");
}

#[tokio::test]
async fn that_a_post_was_changed_or_deleted_is_written_down_once_and_without_its_words() {
    let mut app = App::new().await;
    let _sandbox = app.sandbox().await;
    let api = app.api().await;
    let other = connect(&app, app.tenant, "other").await;
    let (key_id, key) = new_key(&api, json!({"connections": [connect(&app, app.tenant, "mine").await]})).await;
    let first = json!({"universal_content": "words of before"});
    let (status, post) = api.post("/api/v1/posts", first).await;
    assert_eq!(status, 201, "{post}");
    let (id, path) = (&post["id"], format!("/api/v1/posts/{}", post["id"].as_str().unwrap()));
    let send = async |credential: &str, body: Option<&Value>, idempotency: &str| {
        let method = if body.is_some() { Method::PUT } else { Method::DELETE };
        let request = api.client.request(method, format!("{}{path}", api.url)).bearer_auth(credential);
        let mut request = request.header("Idempotency-Key", idempotency);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap().status().as_u16()
    };
    let words = json!({"universal_content": "words of after", "version": 1,
                       "variants": [{"platform": "x", "text": "words for one"}]});
    let fewer = json!({"universal_content": "words of after"});
    // Each is sent again: it is done once. What is refused in between is not written down.
    for _ in 0..2 {
        assert_eq!(send(&key, Some(&words), "words").await, 200);
        assert_eq!(send(&api.token, Some(&fewer), "fewer").await, 200);
    }
    assert_eq!(send(&api.token, Some(&words), "stale").await, 409);
    let tomorrow = (chrono::Utc::now() + chrono::TimeDelta::days(1)).to_rfc3339();
    let wish = json!({"connections": [other], "scheduled_at": tomorrow});
    let (status, going) = api.post(&format!("{path}/publish"), wish).await;
    assert_eq!(status, 202, "{going}");
    assert_eq!(send(&key, Some(&fewer), "beyond").await, 403);
    assert_eq!(send(&key, None, "beyond-it").await, 403);
    assert_eq!(send(&api.token, None, "open").await, 409);
    let cancel = format!("/api/v1/publications/{}/cancel", going["publications"][0]["id"].as_str().unwrap());
    assert_eq!(api.post(&cancel, Value::Null).await.0, 200);
    for idempotency in ["delete", "delete"] {
        assert_eq!(send(&api.token, None, idempotency).await, 204);
    }
    assert_eq!(send(&api.token, None, "gone").await, 404);

    let all = lines(&api).await;
    let of_post: Vec<_> = all.iter().rev().filter(|line| line["target"] == *id).collect();
    let said: Vec<_> = of_post.iter().map(|line| (line["action"].as_str().unwrap(), line["actor"].as_str())).collect();
    let expected = [
        ("post.changed", Some("key")),
        ("post.changed", Some("user")),
        ("post.published", Some("user")),
        ("post.deleted", Some("user")),
    ];
    assert_eq!(said, expected);
    assert_eq!(of_post[0]["key_id"], key_id);
    assert_eq!(of_post[0]["details"], json!({"fields": ["universal_content", "variants"], "version": 2}));
    assert_eq!(of_post[1]["details"], json!({"fields": ["variants"], "version": 3}));
    assert!(!json!(all).to_string().contains("words"), "the log holds what was written");
}

/// By hand, at the machine: as much of it as by a call.
#[tokio::test]
async fn what_operators_do_at_the_command_line_is_written_down_with_who_and_where() {
    let mut app = App::new().await;
    let _models = app.sandbox().await;
    let api = app.api().await;
    let wish = json!({ "content": "A text that is long enough.", "transformation_type": "shorten" });
    let (status, asked) = api.post("/api/v1/ai/transform", wish).await;
    assert_eq!(status, 202, "{asked}");
    let job = asked["job_id"].as_str().unwrap();
    for arguments in [
        &["jobs", "priority", "high", job][..],
        &["jobs", "cancel", job],
        &["jobs", "retry", job],
        &["jobs", "retry", "--failed", "--queue", "media"],
        &["jobs", "pause", "ops"],
        &["jobs", "resume", "ops"],
        &["plans", "define", "free"],
        &["plans", "set", &app.tenant.to_string(), "free"],
        &["keys", "rotate"],
    ] {
        let (done, said) = app.cli(arguments).await;
        assert!(done, "{arguments:?}: {said}");
    }
    // What changes nothing is not written down.
    assert!(!app.cli(&["jobs", "retry", job]).await.0);
    assert!(!app.cli(&["jobs", "priority", "low", &JobId::new().to_string()]).await.0);
    assert!(app.cli(&["jobs", "resume", "ops"]).await.0);
    assert!(app.cli(&["keys", "rotate", "--check"]).await.0);
    let written: Vec<(String, bool, Option<String>)> = sqlx::query_as(
        "select action, tenant_id is not null, target from audit_log where actor = 'operator' order by id",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    let said: Vec<_> = written.iter().map(|(action, is_theirs, _)| (action.as_str(), *is_theirs)).collect();
    let expected = [
        ("job.priority_changed", true),
        ("job.cancelled", true),
        ("job.retried", true),
        ("jobs.failed_retried", false),
        ("queue.paused", false),
        ("queue.resumed", false),
        ("plan.defined", false),
        ("plan.given", true),
        ("encryption_keys.rotated", false),
    ];
    assert_eq!(said, expected);
    assert_eq!((written[0].2.as_deref(), written[4].2.as_deref()), (Some(job), Some("ops")));
    let by = "select distinct details ->> 'by' from audit_log where actor = 'operator'";
    let by: Vec<Option<String>> = sqlx::query_scalar(by).fetch_all(&app.pool).await.unwrap();
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let account = std::fs::metadata("/proc/self").unwrap().uid();
    let [Some(by)] = &by[..] else { panic!("every line names them, all alike: {by:?}") };
    assert!(by.starts_with(&format!("uid {account} ")) && by.ends_with(&format!(" at {}", machine.trim())), "{by}");
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
    let name = accounts.lines().find(|line| line.split(':').nth(2) == Some(&account.to_string()));
    if let Some(name) = name.and_then(|line| line.split(':').next()) {
        assert!(by.contains(&format!("({name})")), "{by}");
    }
    // The workspace's owners see what was done to what is theirs.
    let (_, list) = api.get("/api/v1/audit?action=job.cancelled").await;
    let line = &list["items"][0];
    assert_eq!((&line["actor"], &line["target"]), (&json!("operator"), &json!(job)), "{list}");
    assert_eq!(&line["details"]["by"], by, "{list}");
    let (_, list) = api.get("/api/v1/audit?action=job.priority_changed").await;
    assert_eq!(list["items"][0]["details"]["priority"], "high", "{list}");
}
