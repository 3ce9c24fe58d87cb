//! What a person may ask for, done for them at the command line.

use multivio::jobs::Queue;
use serde_json::{Value, json};

use super::{SOON, finished, rows};
use crate::{
    harness::{Api, App, eventually},
    identity::get,
};

/// Its user has written something, and has this address.
async fn known_as(app: &App, api: &Api, email: &str) {
    assert_eq!(api.post("/api/v1/posts", json!({"universal_content": "mine"})).await.0, 201);
    assert_eq!(api.get("/api/v1/me").await.0, 200);
    let update = sqlx::query("update users set email = $2 where id = $1").bind(app.user).bind(email);
    update.execute(&app.pool).await.unwrap();
}

#[tokio::test]
async fn an_operator_copies_and_ends_somebody_for_them_and_says_so_in_the_audit_log() {
    let app = App::new().await;
    let api = app.api().await;
    let user = app.user.to_string();
    let (done, said) = app.cli(&["users", "export", &user]).await;
    assert!(!done && said.contains("there is no user"), "{said}");
    known_as(&app, &api, "ada@example.com").await;
    let _ops = app.worker(Queue::Ops).await;

    let file = app.folder().join("copy.jsonl");
    let to = file.to_str().unwrap();
    let (done, said) = app.cli(&["users", "export", "Ada@example.com", "--to", to]).await;
    assert!(done, "{said}");
    let copy = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = copy.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["row"]["universal_content"] == "mine"), "{copy}");
    let (done, said) = app.cli(&["users", "export", &user, "--to", to]).await;
    assert!(!done && said.contains("the file is there already"), "{said}");

    let (done, said) = app.cli(&["users", "erase", &user]).await;
    assert!(!done && said.contains("--yes"), "{said}");
    assert_eq!(get(&api, &api.token, "/api/v1/posts").await.0, 200, "nothing happens without it");
    let (done, said) = app.cli(&["users", "erase", &user, "--yes", "--json"]).await;
    assert!(done && serde_json::from_str::<Value>(&said).unwrap()["workspaces"] == json!([app.tenant]), "{said}");
    finished(&app.pool, 2).await;
    assert_eq!(rows(&app.pool, "posts", app.tenant.uuid()).await, 0);
    eventually(SOON, "the process that serves to know", || async {
        (get(&api, &api.token, "/api/v1/posts").await.0 == 401).then_some(())
    })
    .await;
    let actions =
        "select action from audit_log where actor = 'operator' and user_id = $1 and tenant_id = $2 order by id";
    let actions = sqlx::query_scalar::<_, String>(actions).bind(app.user).bind(app.tenant);
    assert_eq!(actions.fetch_all(&app.pool).await.unwrap(), ["user.exported", "user.erased"]);
}

#[tokio::test]
async fn an_operator_finds_by_address_also_whom_nobody_lets_in() {
    let app = App::new().await;
    let api = app.api().await;
    known_as(&app, &api, "ada@example.com").await;
    let disabled = async || {
        let disabled = sqlx::query_scalar::<_, bool>("select disabled_at is not null from users where id = $1");
        disabled.bind(app.user).fetch_one(&app.pool).await.unwrap()
    };
    for (order, after) in [("disable", true), ("enable", false), ("disable", true)] {
        let (done, said) = app.cli(&["users", order, "Ada@example.com"]).await;
        assert!(done, "{order}: {said}");
        assert_eq!(disabled().await, after, "{order}");
    }
    let (done, said) = app.cli(&["users", "export", "ada@example.com"]).await;
    assert!(done, "{said}");
    // Who adds a member by address does not find them.
    let member = json!({"email": "ada@example.com", "role": "viewer"});
    let (_, colleague) = app.token_of_another();
    let (_, team) = get(&api, &colleague, "/api/v1/me").await;
    let members = format!("/api/v1/workspaces/{}/members", team["workspace_id"].as_str().unwrap());
    let (status, refused) =
        crate::identity::call(&api, &colleague, None, reqwest::Method::POST, &members, Some(&member)).await;
    assert!(matches!(status, 404 | 422), "{status}: {refused}");
    let (done, said) = app.cli(&["users", "erase", "ada@example.com", "--yes"]).await;
    assert!(done, "{said}");
}

#[tokio::test]
async fn an_operator_leaves_no_workspace_without_an_owner_either() {
    let app = App::new().await;
    let api = app.api().await;
    let (_, team) = api.post("/api/v1/workspaces", json!({"name": "Our team"})).await;
    let team = team["id"].as_str().unwrap().parse::<multivio::ids::TenantId>().unwrap();
    for statement in [
        "insert into users (id, provider, subject, personal_workspace_id) values ($1, 'local', 'colleague', $1)",
        "insert into workspace_members (tenant_id, user_id, role) values ($1, $1, 'editor')",
    ] {
        sqlx::query(statement).bind(team).execute(&app.pool).await.unwrap();
    }
    let (done, said) = app.cli(&["users", "erase", &app.user.to_string(), "--yes"]).await;
    assert!(!done && said.contains("Our team") && said.contains("owner"), "{said}");
    assert_eq!(api.get("/api/v1/posts").await.0, 200);
}

#[tokio::test]
async fn an_operator_makes_administrators_and_lets_nobody_in_who_is_disabled() {
    let app = App::new().await;
    let api = app.api().await;
    let user = app.user.to_string();
    assert_eq!(api.get("/api/v1/me").await.0, 200);
    let (status, key) = api.post("/api/v1/api-keys", json!({"name": "a program's", "scopes": ["read"]})).await;
    assert_eq!(status, 201, "{key}");
    let key = key["key"].as_str().unwrap().to_owned();
    let standing = async || {
        let row = sqlx::query_as::<_, (String, bool)>("select role, disabled_at is not null from users where id = $1");
        row.bind(app.user).fetch_one(&app.pool).await.unwrap()
    };
    let answers = async |status: u16| {
        eventually(SOON, "the process that serves to know", || async {
            (get(&api, &key, "/api/v1/posts").await.0 == status).then_some(())
        })
        .await;
    };
    for (args, role, is_disabled, status) in [
        (["role", &user, "admin"].as_slice(), "admin", false, 200),
        (&["disable", &user], "admin", true, 401),
        (&["disable", &user], "admin", true, 401),
        (&["role", &user, "user"], "user", true, 401),
        (&["enable", &user], "user", false, 200),
    ] {
        let (done, said) = app.cli(&[&["users"], args].concat()).await;
        assert!(done && said.contains(&user), "{args:?}: {said}");
        assert_eq!(standing().await, (role.to_owned(), is_disabled), "{args:?}");
        answers(status).await;
        let in_person = if is_disabled { 403 } else { 200 };
        eventually(SOON, "their own token to open what it should", || async {
            (api.get("/api/v1/posts").await.0 == in_person).then_some(())
        })
        .await;
    }
    let (done, said) = app.cli(&["users", "role", &user, "owner"]).await;
    assert!(!done && said.contains("admin"), "{said}");
    let lines = "select count(*) from audit_log where actor = 'operator' and action = 'user.changed' and user_id = $1";
    let lines: i64 = sqlx::query_scalar(lines).bind(app.user).fetch_one(&app.pool).await.unwrap();
    assert_eq!(lines, 5);
}
