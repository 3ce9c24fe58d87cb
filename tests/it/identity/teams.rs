//! Workspaces: who is in which, with which role.

use multivio::ids::TenantId;
use reqwest::Method;
use serde_json::{Value, json};

use super::{SOON, call, get};
use crate::harness::{App, wait_until};

#[tokio::test]
async fn a_local_tokens_user_and_workspace_are_noted_at_first_sight() {
    let app = App::new().await;
    let api = app.api().await;
    assert_eq!(api.get("/api/v1/jobs").await.0, 200);
    wait_until(SOON, "the rows", || async {
        let sql = "select count(*) from users u join workspace_members m on m.user_id = u.id \
                   join workspaces w on w.id = m.tenant_id where u.id = $1 and w.id = $2 and m.role = 'owner'";
        let rows: i64 = sqlx::query_scalar(sql).bind(app.user).bind(app.tenant).fetch_one(&app.pool).await.unwrap();
        rows == 1
    })
    .await;
    let (_, me) = api.get("/api/v1/me").await;
    assert_eq!((&me["user_id"], &me["workspace_id"]), (&json!(app.user), &json!(app.tenant)));
    assert_eq!(me["scopes"], json!(["workspace", "admin"]));
}

#[tokio::test]
async fn a_team_shares_a_workspace_and_each_does_what_their_role_allows() {
    let app = App::new().await;
    let api = app.api().await;
    let ((editor, of_editor), (viewer, of_viewer), (_, of_stranger)) =
        (app.token_of_another(), app.token_of_another(), app.token_of_another());
    let (status, team) = api.post("/api/v1/workspaces", json!({"name": "Team"})).await;
    assert_eq!((status, &team["role"]), (201, &json!("owner")), "{team}");
    let team = team["id"].as_str().unwrap();
    let members = format!("/api/v1/workspaces/{team}/members");
    let invite = async |user: &str, role: &str| {
        let body = json!({"user_id": user, "role": role});
        call(&api, &api.token, Some(team), Method::POST, &members, Some(&body)).await
    };
    // Nobody who has never been here.
    let (status, problem) = invite(&viewer.to_string(), "viewer").await;
    assert_eq!((status, &problem["field"]), (422, &json!("user_id")), "{problem}");
    for token in [&of_editor, &of_viewer, &of_stranger] {
        assert_eq!(get(&api, token, "/api/v1/me").await.0, 200);
        let (status, problem) = call(&api, token, Some(team), Method::GET, "/api/v1/posts", None).await;
        assert_eq!((status, &problem["code"]), (403, &json!("no_such_workspace")), "before the invitation");
    }
    assert_eq!(invite(&editor.to_string(), "editor").await.0, 201);
    assert_eq!(invite(&viewer.to_string(), "viewer").await.0, 201);
    assert_eq!(invite(&viewer.to_string(), "viewer").await.0, 409);

    let post = json!({"universal_content": "ours"});
    let write = async |token: &str| call(&api, token, Some(team), Method::POST, "/api/v1/posts", Some(&post)).await;
    let (status, written) = write(&of_editor).await;
    assert_eq!(status, 201, "{written}");
    let path = format!("/api/v1/posts/{}", written["id"].as_str().unwrap());
    for (token, status) in [(&api.token, 200), (&of_editor, 200), (&of_viewer, 200), (&of_stranger, 403)] {
        assert_eq!(call(&api, token, Some(team), Method::GET, &path, None).await.0, status);
        // In their own workspaces it does not exist.
        assert_eq!(get(&api, token, &path).await.0, 404);
    }
    let (status, problem) = write(&of_viewer).await;
    assert_eq!(status, 403);
    assert!(problem["detail"].as_str().unwrap().contains("Ask an owner"), "{problem}");
    for token in [&of_editor, &of_viewer] {
        let body = json!({"user_id": editor, "role": "owner"});
        assert_eq!(call(&api, token, Some(team), Method::POST, &members, Some(&body)).await.0, 403);
        assert_eq!(call(&api, token, Some(team), Method::GET, "/api/v1/api-keys", None).await.0, 403);
    }
    // A workspace is steered from inside only.
    assert_eq!(call(&api, &api.token, None, Method::GET, &members, None).await.0, 404);
    let nowhere = TenantId::new().to_string();
    let (status, problem) = call(&api, &api.token, Some(&nowhere), Method::GET, "/api/v1/posts", None).await;
    assert_eq!((status, &problem["code"]), (403, &json!("no_such_workspace")), "no word on what exists");

    let of_viewers = format!("{members}/{viewer}");
    let (status, _) =
        call(&api, &api.token, Some(team), Method::PATCH, &of_viewers, Some(&json!({"role": "editor"}))).await;
    assert_eq!((status, write(&of_viewer).await.0), (200, 201), "at once");
    assert_eq!(call(&api, &api.token, Some(team), Method::DELETE, &of_viewers, None).await.0, 204);
    assert_eq!(write(&of_viewer).await.0, 403);
    assert_eq!(call(&api, &of_editor, Some(team), Method::DELETE, &format!("{members}/{editor}"), None).await.0, 204);
    let (_, list) = call(&api, &api.token, Some(team), Method::GET, &members, None).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
}

#[tokio::test]
async fn the_last_owner_can_neither_leave_nor_step_down_also_when_two_go_at_once() {
    let app = App::new().await;
    let api = app.api().await;
    let (other, of_other) = app.token_of_another();
    get(&api, &of_other, "/api/v1/me").await;
    let (_, team) = api.post("/api/v1/workspaces", json!({"name": "Team"})).await;
    let team = team["id"].as_str().unwrap();
    let members = format!("/api/v1/workspaces/{team}/members");
    let me = format!("{members}/{}", app.user);
    let leave = async |token: &str, path: &str| call(&api, token, Some(team), Method::DELETE, path, None).await;
    let (status, problem) = leave(&api.token, &me).await;
    assert_eq!((status, &problem["code"]), (409, &json!("last_owner")));
    let step_down = json!({"role": "viewer"});
    assert_eq!(call(&api, &api.token, Some(team), Method::PATCH, &me, Some(&step_down)).await.0, 409);
    let invite = json!({"user_id": other, "role": "owner"});
    assert_eq!(call(&api, &api.token, Some(team), Method::POST, &members, Some(&invite)).await.0, 201);
    let theirs = format!("{members}/{other}");
    let (one, two) = tokio::join!(leave(&api.token, &me), leave(&of_other, &theirs));
    let mut statuses = [one.0, two.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 409]);
    let owners: i64 = sqlx::query_scalar("select count(*) from workspace_members where tenant_id = $1::uuid")
        .bind(uuid::Uuid::parse_str(team.trim_start_matches("tnt_")).unwrap())
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(owners, 1);
}

#[tokio::test]
async fn a_workspace_that_is_no_id_or_named_twice_is_a_clear_400() {
    let app = App::new().await;
    let api = app.api().await;
    let (status, problem) = call(&api, &api.token, Some("mine"), Method::GET, "/api/v1/jobs", None).await;
    assert_eq!((status, &problem["field"]), (400, &json!("X-Workspace")));
    let (status, problem): (u16, Value) =
        call(&api, &api.token, Some(&app.tenant.to_string()), Method::GET, "/api/v1/jobs", None).await;
    assert_eq!(status, 200, "one's own may be named: {problem}");
}

#[tokio::test]
async fn what_is_asked_of_workspaces_again_under_one_key_is_done_once() {
    let app = App::new().await;
    let api = app.api().await;
    let (user, token) = app.token_of_another();
    assert_eq!(get(&api, &token, "/api/v1/me").await.0, 200);
    let members = format!("/api/v1/workspaces/{}/members", app.tenant);
    let writes = [
        (Method::POST, "/api/v1/workspaces".to_owned(), Some(json!({"name": "Once"})), 201),
        (Method::POST, members.clone(), Some(json!({"user_id": user, "role": "viewer"})), 201),
        (Method::DELETE, format!("{members}/{user}"), None, 204),
    ];
    for (method, path, body, status) in writes {
        let mut answers = Vec::new();
        for _ in 0..2 {
            let request = api.request(method.clone(), &path).header("Idempotency-Key", "again");
            let request = if let Some(body) = &body { request.json(body) } else { request };
            let response = request.send().await.unwrap();
            answers.push((response.status().as_u16(), response.text().await.unwrap()));
        }
        assert_eq!(answers[0].0, status, "{method} {path}: {answers:?}");
        assert_eq!(answers[0], answers[1], "{method} {path}");
    }
}

/// A copy of one's data, a workspace of one's own: what a person asks for is not answered with a colleague's.
#[tokio::test]
async fn a_colleague_with_the_same_key_gets_an_answer_of_their_own() {
    let app = App::new().await;
    let api = app.api().await;
    let (other, of_other) = app.token_of_another();
    assert_eq!(get(&api, &of_other, "/api/v1/me").await.0, 200);
    let workspace = app.tenant.to_string();
    let members = format!("/api/v1/workspaces/{workspace}/members");
    assert_eq!(api.post(&members, json!({"user_id": other, "role": "owner"})).await.0, 201);
    let whole = format!("/api/v1/workspaces/{workspace}/export");
    for (path, body, id) in [
        ("/api/v1/me/export", json!({}), "export_id"),
        (whole.as_str(), json!({}), "export_id"),
        ("/api/v1/workspaces", json!({"name": "Mine"}), "id"),
    ] {
        let mut ids = Vec::new();
        for token in [&api.token, &of_other, &api.token] {
            let request = api.client.post(format!("{}{path}", api.url)).bearer_auth(token).json(&body);
            let request = request.header("X-Workspace", &workspace).header("Idempotency-Key", "the-same");
            let answer: Value = request.send().await.unwrap().json().await.unwrap();
            ids.push(answer[id].as_str().unwrap_or_else(|| panic!("{path}: {answer}")).to_owned());
        }
        assert!(ids[0] == ids[2] && ids[0] != ids[1], "{path}: {ids:?}");
    }
}

/// Without it they could not ask for their data, nor delete themselves.
#[tokio::test]
async fn nobody_is_put_out_of_their_own_workspace() {
    let app = App::new().await;
    let api = app.api().await;
    let (other, of_other) = app.token_of_another();
    for token in [&api.token, &of_other] {
        assert_eq!(get(&api, token, "/api/v1/me").await.0, 200);
    }
    let workspace = app.tenant.to_string();
    let members = format!("/api/v1/workspaces/{workspace}/members");
    assert_eq!(api.post(&members, json!({"user_id": other, "role": "owner"})).await.0, 201);
    let (me, demotion) = (format!("{members}/{}", app.user), json!({"role": "viewer"}));
    for token in [&of_other, &api.token] {
        for (method, body) in [(Method::DELETE, None), (Method::PATCH, Some(&demotion))] {
            let (status, problem) = call(&api, token, Some(&workspace), method, &me, body).await;
            assert_eq!((status, &problem["code"]), (409, &json!("personal_workspace")), "{problem}");
        }
    }
    let owner = json!({"role": "owner"});
    assert_eq!(call(&api, &of_other, Some(&workspace), Method::PATCH, &me, Some(&owner)).await.0, 200);
    // For the other it is not their own.
    let theirs = format!("{members}/{other}");
    assert_eq!(call(&api, &of_other, Some(&workspace), Method::PATCH, &theirs, Some(&demotion)).await.0, 200);
    assert_eq!(call(&api, &of_other, Some(&workspace), Method::DELETE, &theirs, None).await.0, 204);
}

#[tokio::test]
async fn a_disabled_user_comes_in_nowhere_until_they_are_enabled() {
    let app = App::new().await;
    let api = app.api().await;
    let (user, token) = app.token_of_another();
    assert_eq!(get(&api, &token, "/api/v1/me").await.0, 200);
    let (_, team) = api.post("/api/v1/workspaces", json!({"name": "Team"})).await;
    let team = team["id"].as_str().unwrap();
    let invite = json!({"user_id": user, "role": "viewer"});
    let members = format!("/api/v1/workspaces/{team}/members");
    assert_eq!(call(&api, &api.token, Some(team), Method::POST, &members, Some(&invite)).await.0, 201);
    let enter = async |workspace| call(&api, &token, workspace, Method::GET, "/api/v1/posts", None).await;
    for (change, status) in [("now()", 403), ("null", 200)] {
        let change = format!("update users set disabled_at = {change} where id = $1");
        sqlx::query(sqlx::AssertSqlSafe(change)).bind(user).execute(&app.pool).await.unwrap();
        // Their own workspace and another's; one that they had been in before, and one that they bring a new token to.
        for workspace in [None, Some(team)] {
            wait_until(SOON, "the door to know", || async { enter(workspace).await.0 == status }).await;
            if status == 403 {
                assert_eq!(enter(workspace).await.1["code"], "user_disabled");
            }
        }
        let scopes = [multivio::identity::Scope::Workspace];
        let another = app.token_of(TenantId::new(), user, &scopes);
        assert_eq!(get(&api, &another, "/api/v1/me").await.0, status, "a token that was not seen before");
        assert_eq!(api.get("/api/v1/me").await.0, 200, "nobody else is put out");
    }
    // A process that begins while they are disabled knows it before it lets anybody in.
    sqlx::query("update users set disabled_at = now() where id = $1").bind(user).execute(&app.pool).await.unwrap();
    let elsewhere = app.api().await;
    assert_eq!(get(&elsewhere, &token, "/api/v1/posts").await.0, 403);
}
