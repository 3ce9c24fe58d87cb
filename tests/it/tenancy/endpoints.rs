//! Every call of the document, as another user and as nobody: what is somebody else's is answered as what does not
//! exist, word for word.

use std::collections::BTreeMap;

use multivio::{
    identity::Scope,
    ids::{ApiKeyId, ConnectionId, ExportId, GroupId, JobId, MediaId, PostId, PublicationId, TenantId, UserId},
    jobs::Queue,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::Api,
    identity::{get, new_key},
    media_clips::Clips,
    publish::Stage,
};

/// Names of things in paths and bodies, each with an id.
type Ids = BTreeMap<&'static str, String>;

/// Ids that nobody has.
fn nowhere() -> Ids {
    BTreeMap::from([
        ("post", PostId::new().to_string()),
        ("publication", PublicationId::new().to_string()),
        ("connection", ConnectionId::new().to_string()),
        ("media", MediaId::new().to_string()),
        ("job", JobId::new().to_string()),
        ("group", GroupId::new().to_string()),
        ("workspace", TenantId::new().to_string()),
        ("user", UserId::new().to_string()),
        ("key", ApiKeyId::new().to_string()),
        ("export", ExportId::new().to_string()),
    ])
}

/// Something of everything, in the workspace of the stage.
async fn things(stage: &Stage) -> Ids {
    let clips = Clips::new();
    let clip = std::fs::read(clips.clip("clip.mp4", "320x180", 0.6, "").await).unwrap();
    let (status, media) = crate::media_api::upload(&stage.api, "xyzzy.mp4", clip).await;
    assert_eq!(status, 201, "{media}");
    let text = |value: &Value| value.as_str().expect("an id").to_owned();
    let later = (chrono::Utc::now() + chrono::Duration::hours(5)).to_rfc3339();
    let wish = json!({ "text": "xyzzy", "connections": [stage.connection], "scheduled_at": later });
    let (status, published) = stage.api.post("/api/v1/publish", wish).await;
    assert_eq!(status, 202, "{published}");
    let (_, me) = stage.api.get("/api/v1/me").await;
    let (key, _) = new_key(&stage.api, json!({})).await;
    let _ops = stage.app.worker(Queue::Ops).await;
    let (status, asked) = stage.api.post("/api/v1/me/export", json!({})).await;
    assert_eq!(status, 202, "{asked}");
    let (_, written) = stage.api.get(&format!("/api/v1/jobs/{}?wait=30", text(&asked["job_id"]))).await;
    assert_eq!(written["state"], "succeeded", "{written}");
    let publication = text(&published["publications"][0]["id"]);
    let shown = stage.publication(&publication).await;
    BTreeMap::from([
        ("post", text(&shown["post_id"])),
        ("publication", publication),
        ("connection", stage.connection.clone()),
        ("media", text(&media["id"])),
        ("job", text(&published["publications"][0]["job_id"])),
        ("group", text(&published["group_id"])),
        ("workspace", text(&me["workspace_id"])),
        ("user", text(&me["user_id"])),
        ("key", key),
        ("export", text(&asked["export_id"])),
    ])
}

/// `/posts/{id}` with an id of a post.
fn path_of(template: &str, ids: &Ids) -> String {
    let mut path = String::new();
    let mut before = "";
    for part in template.split('/').skip(1) {
        path.push('/');
        if part == "{platform}" {
            path.push('x');
            continue;
        }
        if !part.starts_with('{') {
            path.push_str(part);
            before = part;
            continue;
        }
        path.push_str(
            &ids[match before {
                "posts" => "post",
                "publications" => "publication",
                "connections" => "connection",
                "media" => "media",
                "jobs" => "job",
                "groups" => "group",
                "workspaces" => "workspace",
                "members" => "user",
                "api-keys" => "key",
                "exports" => "export",
                other => panic!("{template}: say here whose id stands behind {other}"),
            }],
        );
    }
    path
}

/// A body that is right but for whose the things in it are.
fn body_of(operation: &str, ids: &Ids) -> Value {
    let media = json!([{ "media_id": ids["media"] }]);
    match operation {
        "createPost" | "changePost" | "validatePost" => json!({ "universal_content": "a", "media": media }),
        "publish" => json!({ "text": "a", "connections": [ids["connection"]], "media": media }),
        "publishPost" => json!({ "connections": [ids["connection"]] }),
        "settlePublication" => json!({ "exists": false }),
        "addConnection" => json!({ "platform": "x", "remote_account_id": "1", "username": "u", "access_token": "a" }),
        "uploadMedia" => Value::Null,
        "transcodeMedia" => json!({ "presets": ["thumbnail"] }),
        "aiTransform" => json!({ "content": "A text.", "transformation_type": "shorten" }),
        "changeJob" => json!({ "priority": "low" }),
        "retryFailedJobs" => json!({ "queue": "publish" }),
        "createWorkspace" => json!({ "name": "w" }),
        "addMember" => json!({ "user_id": ids["user"], "role": "viewer" }),
        "changeMember" => json!({ "role": "viewer" }),
        "createApiKey" => json!({ "name": "k", "scopes": ["read"], "connections": [ids["connection"]] }),
        "changeApiKey" => json!({ "rate_limit": 5 }),
        "importMedia" => json!({ "url": "https://a.example/a.mp4" }),
        "connectAccount" => json!({ "state": "s", "code": "c" }),
        "beginPatreonLink" => json!({ "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM" }),
        "finishPatreonLink" => json!({ "state": "s", "code": "c", "code_verifier": "v".repeat(43) }),
        other => panic!("{other} takes a body: give one here that names things of others"),
    }
}

struct Call {
    operation: String,
    method: Method,
    template: String,
    has_body: bool,
}

impl Call {
    fn names_a_thing(&self) -> bool {
        self.template.replace("{platform}", "").contains('{')
    }
}

async fn calls(api: &Api) -> Vec<Call> {
    let (_, document) = api.get("/openapi.json").await;
    let paths = document["paths"].as_object().unwrap().clone();
    let of_path = |(template, calls): (String, Value)| {
        let calls = calls.as_object().unwrap().clone();
        calls.into_iter().map(move |(method, call)| Call {
            operation: call["operationId"].as_str().unwrap().to_owned(),
            method: method.to_uppercase().parse().unwrap(),
            template: template.clone(),
            has_body: call.get("requestBody").is_some(),
        })
    };
    let calls: Vec<_> = paths.into_iter().flat_map(of_path).filter(|call| call.template.starts_with("/api/")).collect();
    assert!(calls.len() > 40);
    calls
}

/// What differs between two answers because time passes.
fn forget_the_moment(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !["request_id", "waited_ms", "ran_ms"].contains(&name.as_str()));
            fields.values_mut().for_each(forget_the_moment);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_the_moment),
        _ => {}
    }
}

/// Status and body, with the ids that were asked for, and this one request's own, taken out.
async fn ask(api: &Api, token: Option<&str>, call: &Call, ids: &Ids) -> (u16, String) {
    // Confirmed with what names nothing of anybody's: it is no end of whoever asks.
    let query = if ["deleteMe", "deleteWorkspace"].contains(&&*call.operation) { "?confirm=no" } else { "" };
    let url = format!("{}{}{query}", api.url, path_of(&call.template, ids));
    let mut request = api.client.request(call.method.clone(), url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if call.has_body {
        request = request.json(&body_of(&call.operation, ids));
    }
    let answer = request.timeout(crate::publish::SOON).send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    let mut told = match serde_json::from_str::<Value>(&text) {
        Ok(mut body) => {
            forget_the_moment(&mut body);
            body.to_string()
        }
        Err(_) => text,
    };
    for id in ids.values() {
        told = told.replace(id.as_str(), "[id]");
    }
    (status, told)
}

#[tokio::test]
async fn every_call_answers_another_user_about_my_things_as_about_none() {
    let stage = Stage::new().await;
    let mine = things(&stage).await;
    let (api, none) = (&stage.api, nowhere());
    let (_, theirs) = stage.app.token_of_another();
    assert_eq!(get(api, &theirs, "/api/v1/me").await.0, 200);
    let calls = calls(api).await;
    let shown: Vec<&Call> = calls.iter().filter(|call| call.method == Method::GET && call.names_a_thing()).collect();
    let mut before = Vec::new();
    for call in &shown {
        // What ends by itself when the job does is looked at without waiting for it.
        if call.operation != "followJob" {
            let answer = ask(api, Some(&api.token), call, &mine).await;
            assert!(
                matches!(answer.0, 200 | 404) || call.operation.contains("Thumbnail"),
                "{}: {answer:?}",
                call.operation
            );
            before.push((call, answer));
        }
    }
    let mut refused = Vec::new();
    for call in &calls {
        let name = &call.operation;
        let (about_mine, about_none) =
            (ask(api, Some(&theirs), call, &mine).await, ask(api, Some(&theirs), call, &none).await);
        if call.names_a_thing() {
            assert_eq!(about_mine, about_none, "{name} tells that it exists");
            assert_eq!(about_mine.0, 404, "{name}: {about_mine:?}");
        } else if name == "exportMe" {
            assert_eq!((about_mine.0, about_none.0), (202, 409), "the second finds the first under way");
        } else {
            assert_eq!(about_mine.0, about_none.0, "{name}: {about_mine:?} {about_none:?}");
            assert!(about_mine.0 < 500, "{name}: {about_mine:?}");
            if about_mine.0 >= 400 {
                assert_eq!(about_mine.1, about_none.1, "{name} tells that what is in its body exists");
                refused.push(name.as_str());
            }
        }
        // Ids were taken out of the answer to the call that names them; none of mine may be left in the other.
        for id in mine.values() {
            assert!(!about_none.1.contains(id.as_str()), "{name} shows {id}: {about_none:?}");
        }
        assert!(!about_mine.1.contains("xyzzy"), "{name} shows what I wrote: {about_mine:?}");
    }
    for naming in ["createPost", "publish", "createApiKey"] {
        assert!(refused.contains(&naming), "{naming} takes what is another's: {refused:?}");
    }
    for (call, answer) in before {
        assert_eq!(ask(api, Some(&api.token), call, &mine).await, answer, "{} was changed by another", call.operation);
    }
    // Nor does anybody stand in another's line: with an account of their own they publish too.
    let account = stage.sandbox.post("/_sandbox/x/accounts", json!({})).await;
    let typed = crate::publish::connection(&account, &account);
    let (status, own) = ask_as(api, &theirs, "/api/v1/connections", typed).await;
    assert!(matches!(status, 200 | 201), "{own}");
    let wish = json!({ "text": "a", "connections": [own["id"]] });
    let (status, published) = ask_as(api, &theirs, "/api/v1/publish", wish).await;
    assert_eq!(status, 202, "{published}");
    let lines: Vec<(String, i64)> = sqlx::query_as(
        "select serial_key, count(distinct tenant_id) from jobs where serial_key is not null group by serial_key",
    )
    .fetch_all(&stage.app.pool)
    .await
    .unwrap();
    assert!(lines.len() >= 2, "each has a line: {lines:?}");
    assert!(lines.iter().all(|(_, tenants)| *tenants == 1), "{lines:?}");
}

async fn ask_as(api: &Api, token: &str, path: &str, body: Value) -> (u16, Value) {
    crate::identity::call(api, token, None, Method::POST, path, Some(&body)).await
}

#[tokio::test]
async fn every_call_answers_nobody_alike() {
    let stage = Stage::new().await;
    let (mine, none) = (things(&stage).await, nowhere());
    let forged = format!("{}x", stage.api.token);
    for call in calls(&stage.api).await {
        for token in [None, Some(forged.as_str())] {
            let about_mine = ask(&stage.api, token, &call, &mine).await;
            assert_eq!(about_mine.0, 401, "{}", call.operation);
            assert_eq!(about_mine, ask(&stage.api, token, &call, &none).await, "{}", call.operation);
        }
    }
}

#[tokio::test]
async fn lists_cursors_filters_keys_and_workspaces_lead_nowhere_else() {
    let stage = Stage::new().await;
    let mine = things(&stage).await;
    let api = &stage.api;
    stage.publish_with(json!({ "text": "xyzzy too", "scheduled_at": "2099-01-01T00:00:00Z" })).await;
    let (user, theirs) = stage.app.token_of_another();
    get(api, &theirs, "/api/v1/me").await;
    let mut cursors = 0;
    for call in calls(api).await {
        let lists = call.method == Method::GET && call.operation.starts_with("list") && !call.names_a_thing();
        if !lists || call.operation == "listMediaPresets" {
            continue;
        }
        let path = &call.template;
        let (_, first) = get(api, &api.token, &format!("{path}?limit=1")).await;
        let mut asked = vec![path.clone(), format!("{path}?limit=100")];
        // My own group; of other lists it is no parameter.
        if call.operation == "listJobs" {
            asked.push(format!("{path}?group={}&limit=100", mine["group"]));
        }
        // My own place in my own list.
        if let Some(cursor) = first["next_cursor"].as_str() {
            cursors += 1;
            asked.push(format!("{path}?cursor={cursor}"));
        }
        for path in asked {
            let (status, answer) = get(api, &theirs, &path).await;
            // Not every list is asked for one of a group.
            if status == 400 && answer["field"] == "group" {
                continue;
            }
            assert_eq!(status, 200, "{path}: {answer}");
            let own = if call.operation == "listWorkspaces" { 1 } else { 0 };
            assert!(answer["items"].as_array().unwrap().len() <= own, "{path} shows {answer}");
            assert!(mine.values().all(|id| !answer.to_string().contains(id.as_str())), "{path} shows {answer}");
        }
    }
    assert!(cursors >= 3, "{cursors} lists had a second page");
    // My key's answer is not given to another who sends the same.
    let body = json!({ "universal_content": "written under a key" });
    let mut ids = Vec::new();
    for token in [&api.token, &theirs, &api.token] {
        let request = api.client.post(format!("{}/api/v1/posts", api.url)).bearer_auth(token);
        let request = request.header("Idempotency-Key", "the-same").json(&body);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    assert!(ids[0] == ids[2] && ids[0] != ids[1], "{ids:?}");
    // My workspace is no more theirs than one that does not exist; its audit log is an administrator's to name.
    for operation in ["/api/v1/posts", "/api/v1/jobs", "/api/v1/audit", "/api/v1/me"] {
        let in_mine = crate::identity::call(api, &theirs, Some(&mine["workspace"]), Method::GET, operation, None).await;
        let nowhere = TenantId::new().to_string();
        let in_none = crate::identity::call(api, &theirs, Some(&nowhere), Method::GET, operation, None).await;
        assert_eq!((in_mine.0, &in_mine.1["code"]), (403, &json!("no_such_workspace")), "{operation}");
        assert_eq!(in_mine.1["detail"], in_none.1["detail"]);
    }
    let audit = format!("/api/v1/audit?workspace={}", mine["workspace"]);
    assert_eq!(get(api, &theirs, &audit).await.0, 403);
    let admin = stage.app.token_of(TenantId::new(), user, &[Scope::Workspace, Scope::Admin]);
    let (status, lines) = get(api, &admin, &audit).await;
    assert!(status == 200 && !lines["items"].as_array().unwrap().is_empty(), "{lines}");
}
