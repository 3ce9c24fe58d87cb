//! Every write of the product, one by one: sent again with the same `Idempotency-Key` it gets the same answer.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use multivio::http::idempotency::{lock_of, persons_route};
use reqwest::{
    Method, Response,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{media_clips::Clips, publish::Stage};

/// Writes that are a person's own: a colleague's key is another key.
const PERSONAL: [&str; 5] = ["exportMe", "askForConnection", "connectAccount", "createApiKey", "beginPatreonLink"];
/// Tried with the rest of their area, in `identity::teams`, `identity::firebase`, `patreon` and `rights`. After an end
/// nobody is there to repeat it.
const TRIED_ELSEWHERE: [&str; 9] = [
    "signOutEverywhere",
    "createWorkspace",
    "addMember",
    "removeMember",
    "finishPatreonLink",
    "removePatreonLink",
    "exportWorkspace",
    "deleteWorkspace",
    "deleteMe",
];

/// A write, and the same call with other content where it has any.
struct Write {
    operation: &'static str,
    method: Method,
    path: String,
    body: Body,
    other: Body,
}

#[derive(Clone)]
enum Body {
    None,
    Json(Value),
    File(&'static str, Vec<u8>),
}

impl Body {
    fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

async fn send(stage: &Stage, write: &Write, body: &Body, key: &str) -> Response {
    let request = stage.api.request(write.method.clone(), &write.path).header("Idempotency-Key", key);
    let request = match body.clone() {
        Body::None => request,
        Body::Json(body) => request.json(&body),
        Body::File(name, bytes) => {
            request.multipart(Form::new().part("file", Part::bytes(bytes).file_name(name.to_owned())))
        }
    };
    request.send().await.expect("the API answers")
}

/// What a repeat has to give again.
async fn essence(response: Response) -> (u16, Option<String>, Value) {
    let status = response.status().as_u16();
    let location = response.headers().get("location").map(|location| location.to_str().unwrap().to_owned());
    let text = response.text().await.unwrap();
    (status, location, serde_json::from_str(&text).unwrap_or(Value::Null))
}

async fn made(stage: &Stage, path: &str, body: Value) -> Value {
    let (status, answer) = stage.api.post(path, body).await;
    assert!(matches!(status, 201 | 202), "{path}: {status} {answer}");
    answer
}

/// All writes of the document, each with something to write on.
async fn writes(stage: &Stage, clip: Vec<u8>) -> Vec<Write> {
    let id = |value: &Value| value["id"].as_str().expect("an id").to_owned();
    let job_id = |value: &Value| value["job_id"].as_str().expect("an id").to_owned();
    let later = (chrono::Utc::now() + chrono::Duration::hours(5)).to_rfc3339();
    let mut posts = Vec::new();
    for text in ["changed", "deleted", "published"] {
        posts.push(id(&made(stage, "/api/v1/posts", json!({ "universal_content": text })).await));
    }
    let mut publications = Vec::new();
    for text in ["cancelled", "late"] {
        publications.push(stage.publish_with(json!({ "text": text, "scheduled_at": later })).await);
    }
    let account = stage.sandbox.post("/_sandbox/x/accounts", json!({})).await;
    let new = |tokens: &Value| crate::publish::connection(&account, tokens);
    let path = format!("/_sandbox/x/accounts/{}/tokens", account["id"].as_str().expect("an id"));
    let again = stage.sandbox.post(&path, json!({})).await;
    let transform = json!({ "content": "A text that is long enough.", "transformation_type": "shorten" });
    let job = job_id(&made(stage, "/api/v1/ai/transform", transform.clone()).await);
    let retried = json!({ "content": "Another one.", "transformation_type": "shorten" });
    let retried = job_id(&made(stage, "/api/v1/ai/transform", retried).await);
    let (status, _) = stage.api.post(&format!("/api/v1/jobs/{retried}/cancel"), json!({})).await;
    assert_eq!(status, 200);
    let (status, media) = crate::media_api::upload(&stage.api, "kept.mp4", clip.clone()).await;
    assert_eq!(status, 201, "{media}");
    let (_, deleted) = crate::media_api::upload(&stage.api, "deleted.mp4", clip.clone()).await;
    let answers = [crate::connecting::answer(&stage.api).await, crate::connecting::answer(&stage.api).await];
    let new_key = |name: &str| json!({ "name": name, "scopes": ["read"] });
    let key = id(&made(stage, "/api/v1/api-keys", new_key("limited")).await);
    let revoked = id(&made(stage, "/api/v1/api-keys", new_key("revoked")).await);
    let mut ended = Vec::new();
    for phase in ["unconfirmed", "sent"] {
        let publication = stage.publish_with(json!({ "text": phase, "scheduled_at": later })).await;
        let bare = uuid::Uuid::parse_str(publication.split_once('_').expect("a prefix").1).unwrap();
        sqlx::query(
            "update publications set phase = $2, fingerprint = 'f', content = '{\"text\": \"t\", \"media\": []}', \
               remote_id = case when $2 = 'sent' then '1234567890' end where id = $1",
        )
        .bind(bare)
        .bind(phase)
        .execute(&stage.app.pool)
        .await
        .unwrap();
        ended.push(publication);
    }
    let (colleague, of_colleague) = stage.app.token_of_another();
    assert_eq!(crate::identity::get(&stage.api, &of_colleague, "/api/v1/me").await.0, 200);
    let members = format!("/workspaces/{}/members", stage.app.tenant);
    made(stage, &format!("/api/v1{members}"), json!({ "user_id": colleague, "role": "viewer" })).await;
    let challenge = |of: &str| json!({ "code_challenge": URL_SAFE_NO_PAD.encode(Sha256::digest(of)) });
    let write = |operation, method: &Method, path: String, body, other| Write {
        operation,
        method: method.clone(),
        path: format!("/api/v1{path}"),
        body,
        other,
    };
    let (post, put, patch, delete) = (Method::POST, Method::PUT, Method::PATCH, Method::DELETE);
    let json = |body: Value| Body::Json(body);
    let text = |text: &str| Body::Json(json!({ "universal_content": text }));
    let publish = |text: &str| Body::Json(json!({ "text": text, "platforms": ["x"], "scheduled_at": later }));
    let due = |lateness: u32| {
        Body::Json(json!({ "platforms": ["x"], "scheduled_at": later, "max_lateness_seconds": lateness }))
    };
    let priority = |priority: &str| Body::Json(json!({ "priority": priority }));
    let presets = |preset: &str| Body::Json(json!({ "presets": [preset] }));
    let mut more = transform.clone();
    more["content"] = "Other content.".into();
    vec![
        write("createPost", &post, "/posts".into(), text("a"), text("b")),
        write("changePost", &put, format!("/posts/{}", posts[0]), text("a"), text("b")),
        write("deletePost", &delete, format!("/posts/{}", posts[1]), Body::None, Body::None),
        write("publish", &post, "/publish".into(), publish("a"), publish("b")),
        write("publishPost", &post, format!("/posts/{}/publish", posts[2]), due(100), due(200)),
        write("cancelPublication", &post, format!("/publications/{}/cancel", publications[0]), Body::None, Body::None),
        write(
            "sendLatePublication",
            &post,
            format!("/publications/{}/send-late", publications[1]),
            Body::None,
            Body::None,
        ),
        write("addConnection", &post, "/connections".into(), json(new(&account)), json(new(&again))),
        write("exportMe", &post, "/me/export".into(), Body::None, Body::None),
        write("askForConnection", &post, "/connections/x/authorize".into(), Body::None, Body::None),
        write(
            "connectAccount",
            &post,
            "/connections/x/callback".into(),
            json(answers[0].clone()),
            json(answers[1].clone()),
        ),
        write("refreshConnection", &post, format!("/connections/{}/refresh", stage.connection), Body::None, Body::None),
        write("uploadMedia", &post, "/media".into(), Body::File("a.mp4", clip.clone()), Body::File("b.mp4", clip)),
        write(
            "importMedia",
            &post,
            "/media/import".into(),
            json(json!({ "url": "https://a.example/1.mp4" })),
            json(json!({ "url": "https://a.example/2.mp4" })),
        ),
        write(
            "transcodeMedia",
            &post,
            format!("/media/{}/transcode", id(&media)),
            presets("x_video"),
            presets("thumbnail"),
        ),
        write("deleteMedia", &delete, format!("/media/{}", id(&deleted)), Body::None, Body::None),
        write("aiTransform", &post, "/ai/transform".into(), json(transform), json(more)),
        write(
            "settlePublication",
            &post,
            format!("/publications/{}/settle", ended[0]),
            json(json!({ "exists": false })),
            json(json!({ "exists": true, "remote_id": "1234567891" })),
        ),
        write("removeRemotePost", &delete, format!("/publications/{}/remote-post", ended[1]), Body::None, Body::None),
        write("changeJob", &patch, format!("/jobs/{job}"), priority("high"), priority("low")),
        write("cancelJob", &post, format!("/jobs/{job}/cancel"), Body::None, Body::None),
        write("retryJob", &post, format!("/jobs/{retried}/retry"), Body::None, Body::None),
        write(
            "changeApiKey",
            &patch,
            format!("/api-keys/{key}"),
            json(json!({ "rate_limit": 5 })),
            json(json!({ "rate_limit": null })),
        ),
        write(
            "retryFailedJobs",
            &post,
            "/admin/jobs/retry".into(),
            json(json!({ "queue": "media" })),
            json(json!({ "queue": "ai" })),
        ),
        write(
            "changeMember",
            &patch,
            format!("{members}/{colleague}"),
            json(json!({ "role": "editor" })),
            json(json!({ "role": "viewer" })),
        ),
        write("createApiKey", &post, "/api-keys".into(), json(new_key("new")), json(new_key("other"))),
        write("revokeApiKey", &delete, format!("/api-keys/{revoked}"), Body::None, Body::None),
        write("beginPatreonLink", &post, "/patreon/link".into(), json(challenge("one")), json(challenge("other"))),
        // Last: it cancels what was to go out there.
        write("removeConnection", &delete, format!("/connections/{}", stage.connection), Body::None, Body::None),
    ]
}

#[tokio::test]
async fn every_write_is_done_once_under_a_key_and_answers_its_repeats_alike() {
    let (stage, clips) = (Stage::new().await, Clips::new());
    let clip = std::fs::read(clips.clip("clip.mp4", "320x180", 0.6, "").await).unwrap();
    let writes = writes(&stage, clip).await;
    let (_, document) = stage.api.get("/openapi.json").await;
    let mut described = BTreeSet::new();
    for (path, calls) in document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("/api/")) {
        let changing = calls.as_object().unwrap().iter().filter(|(method, _)| *method != "get");
        // A question that is too long for an address writes nothing.
        let changing = changing.filter(|_| !path.ends_with("/validate"));
        described.extend(changing.map(|(_, call)| call["operationId"].as_str().unwrap().to_owned()));
    }
    let here = writes.iter().map(|write| write.operation);
    let tried: BTreeSet<_> = here.chain(TRIED_ELSEWHERE).map(str::to_owned).collect();
    assert_eq!(tried, described, "a write is not tried here");

    let mut answers = Vec::new();
    for write in &writes {
        let (name, key) = (write.operation, format!("key-{}", write.operation));
        // Another request with this key is under way.
        let mut tx = stage.app.pool.begin().await.unwrap();
        let mut route = format!("{} {}", write.method, write.path);
        if PERSONAL.contains(&name) {
            route = persons_route(&route, stage.app.user);
        }
        let lock = lock_of(stage.app.tenant, &route, &key);
        sqlx::query("select pg_advisory_xact_lock($1)").bind(lock).execute(&mut *tx).await.unwrap();
        let meanwhile = send(&stage, write, &write.body, &key).await;
        assert!(meanwhile.headers().contains_key("retry-after"), "{name}: {meanwhile:?}");
        let (status, _, problem) = essence(meanwhile).await;
        assert_eq!((status, &problem["code"]), (409, &json!("idempotency_key_in_use")), "{name}: {problem}");
        tx.rollback().await.unwrap();

        let first = essence(send(&stage, write, &write.body, &key).await).await;
        assert!((200..300).contains(&first.0), "{name}: {first:?}");
        let again = send(&stage, write, &write.body, &key).await;
        let is_marked = again.headers().get("idempotent-replayed").is_some_and(|marked| marked == "true");
        assert_eq!(is_marked, first.1.is_some() || first.0 == 204, "{name}");
        assert_eq!(essence(again).await, first, "{name} is answered differently the second time");
        if !write.other.is_none() {
            let (status, _, problem) = essence(send(&stage, write, &write.other, &key).await).await;
            assert_eq!((status, &problem["code"]), (422, &json!("idempotency_key_reused")), "{name}: {problem}");
        }
        let kept: i64 = sqlx::query_scalar("select count(*) from idempotency_keys where key = $1")
            .bind(&key)
            .fetch_one(&stage.app.pool)
            .await
            .unwrap();
        assert_eq!(kept, 1, "{name}");
        answers.push(first);
    }

    // So it is days later, whatever has become of what each was about.
    for later in [
        "update idempotency_keys set created_at = now() - interval '6 days 23 hours'",
        "delete from account_consents",
        "delete from patreon_flows",
    ] {
        sqlx::query(later).execute(&stage.app.pool).await.unwrap();
    }
    for (write, first) in writes.iter().zip(&answers) {
        let key = format!("key-{}", write.operation);
        assert_eq!(
            essence(send(&stage, write, &write.body, &key).await).await,
            *first,
            "{} days later",
            write.operation
        );
    }
}
