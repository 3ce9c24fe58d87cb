use reqwest::multipart::{Form, Part};

use super::*;
use crate::x::test_files::{tiny_mp4, tiny_png};

fn part(bytes: &[u8]) -> Part {
    Part::bytes(bytes.to_vec()).file_name("media")
}

async fn initialize(sandbox: &Harness, user: &User, body: Value) -> (StatusCode, Value) {
    answered(sandbox.x("POST", "/2/media/upload/initialize", user).json(&body)).await
}

async fn append(sandbox: &Harness, user: &User, id: &str, index: usize, bytes: &[u8]) -> StatusCode {
    let form = Form::new().text("segment_index", index.to_string()).part("media", part(bytes));
    answered(sandbox.x("POST", &format!("/2/media/upload/{id}/append"), user).multipart(form)).await.0
}

async fn finalize(sandbox: &Harness, user: &User, id: &str) -> (StatusCode, Value) {
    answered(sandbox.x("POST", &format!("/2/media/upload/{id}/finalize"), user)).await
}

async fn status(sandbox: &Harness, user: &User, id: &str) -> Value {
    let path = format!("/2/media/upload?command=STATUS&media_id={id}");
    answered(sandbox.x("GET", &path, user)).await.1["data"]["processing_info"].clone()
}

/// Uploads a file in two segments.
async fn upload(sandbox: &Harness, user: &User, file: &[u8], media_type: &str) -> (String, Value) {
    let (code, begun) = initialize(sandbox, user, json!({"media_type": media_type, "total_bytes": file.len()})).await;
    assert_eq!(code, 200, "{begun}");
    let id = String::from(begun["data"]["id"].as_str().expect("an id"));
    let (first, second) = file.split_at(file.len() / 2);
    assert_eq!(append(sandbox, user, &id, 0, first).await, 200);
    assert_eq!(append(sandbox, user, &id, 1, second).await, 200);
    let (code, done) = finalize(sandbox, user, &id).await;
    assert_eq!(code, 200, "{done}");
    (id, done)
}

async fn settled(sandbox: &Harness, user: &User, id: &str) -> Value {
    for _ in 0..200 {
        let info = status(sandbox, user, id).await;
        if info["state"] == "succeeded" || info["state"] == "failed" {
            return info;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("processing never ended");
}

#[tokio::test]
async fn an_image_is_uploaded_described_posted_and_shown() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    let file = tiny_png(640, 480);
    let (id, done) = upload(&sandbox, &user, &file, "image/png").await;
    assert_eq!(done["data"]["image"], json!({"w": 640, "h": 480, "image_type": "image/png"}));
    assert!(done["data"].get("processing_info").is_none());
    let alt = json!({"id": id, "metadata": {"alt_text": {"text": "A lighthouse"}}});
    assert_eq!(answered(sandbox.x("POST", "/2/media/metadata", &user).json(&alt)).await.0, 200);
    let (code, made) = answered(sandbox.post(&user, &json!({"text": "Look", "media": {"media_ids": [id]}}))).await;
    assert_eq!(code, 201);
    assert!(made["data"]["text"].as_str().is_some_and(|text| text.starts_with("Look https://t.co/")));

    let posts = sandbox.control("GET", "/x/posts", Value::Null).await;
    let media = &posts[0]["media"][0];
    assert_eq!((&media["alt_text"], &media["width"]), (&json!("A lighthouse"), &json!(640)));
    let url = media["url"].as_str().expect("kept");
    let part = sandbox.http.get(url).header("range", "bytes=0-3").send().await.expect("bytes");
    assert_eq!((part.status().as_u16(), part.bytes().await.expect("bytes").as_ref()), (206, &file[..4]));
    let page = sandbox.http.get(posts[0]["permalink"].as_str().expect("a link")).send().await.expect("a page");
    assert!(page.text().await.expect("text").contains("alt=\"A lighthouse\""));
}

#[tokio::test]
async fn a_video_is_processed_before_it_can_be_posted() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    sandbox.set(json!({"processing_ms": 300})).await;
    let (id, done) = upload(&sandbox, &user, &tiny_mp4(2_000, 60, b"avc1"), "video/mp4").await;
    assert_eq!(done["data"]["processing_info"], json!({"state": "pending", "check_after_secs": 1}));
    let body = json!({"text": "Film", "media": {"media_ids": [id]}});
    let (code, refusal) = answered(sandbox.post(&user, &body)).await;
    assert_eq!((code.as_u16(), &refusal["errors"][0]["message"]), (400, &json!("Your media IDs are invalid.")));
    assert_eq!(settled(&sandbox, &user, &id).await["state"], "succeeded");
    assert_eq!(answered(sandbox.post(&user, &body)).await.0, 201);
}

#[tokio::test]
async fn processing_fails_for_bad_files_and_on_order() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    sandbox.set(json!({"processing_ms": 0})).await;
    let (id, _) = upload(&sandbox, &user, b"this is not a video", "video/mp4").await;
    assert_eq!(
        settled(&sandbox, &user, &id).await["error"],
        json!({"code": 1, "name": "InvalidMedia", "message": "Unsupported video format"})
    );
    sandbox.fault(json!({"service": "x", "effect": {"processing_failed": {"message": "Out of tape"}}})).await;
    let (id, _) = upload(&sandbox, &user, &tiny_mp4(2_000, 60, b"avc1"), "video/mp4").await;
    assert_eq!(settled(&sandbox, &user, &id).await["error"]["message"], "Out of tape");
    sandbox.fault(json!({"service": "x", "effect": "processing_stuck"})).await;
    let (id, _) = upload(&sandbox, &user, &tiny_mp4(2_000, 60, b"avc1"), "video/mp4").await;
    assert_eq!(status(&sandbox, &user, &id).await["state"], "pending");
    sandbox.set(json!({"video_max_s": 1})).await;
    let (id, _) = upload(&sandbox, &user, &tiny_mp4(2_000, 60, b"avc1"), "video/mp4").await;
    let (code, refusal) = answered(sandbox.post(&user, &json!({"media": {"media_ids": [id]}}))).await;
    assert_eq!(code, 403);
    assert!(refusal["detail"].as_str().is_some_and(|text| text.contains("not allowed to post a video longer than")));
}

#[tokio::test]
async fn segments_must_fit_and_add_up() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    let file = tiny_png(10, 10);
    let (_, begun) = initialize(&sandbox, &user, json!({"media_type": "image/png", "total_bytes": file.len()})).await;
    let id = begun["data"]["id"].as_str().expect("an id");
    assert_eq!(append(&sandbox, &user, id, 1_000, &file).await, 400);
    assert_eq!(append(&sandbox, &user, id, 1, &file[10..]).await, 200);
    assert_eq!(
        finalize(&sandbox, &user, id).await.1["errors"][0]["message"],
        "Segments do not add up to provided total file size."
    );
    assert_eq!(append(&sandbox, &user, id, 0, &file).await, 400);
    // Sending a segment again replaces it, and base64 in JSON is as good as a form.
    use base64::{Engine, engine::general_purpose::STANDARD};
    for bytes in [&[0; 10][..], &file[..10]] {
        let body = json!({"segment_index": 0, "media": STANDARD.encode(bytes)});
        assert_eq!(
            answered(sandbox.x("POST", &format!("/2/media/upload/{id}/append"), &user).json(&body)).await.0,
            200
        );
    }
    assert_eq!(finalize(&sandbox, &user, id).await.0, 200);
    sandbox.set(json!({"segment_max_bytes": 5})).await;
    let (_, begun) = initialize(&sandbox, &user, json!({"media_type": "image/png", "total_bytes": file.len()})).await;
    let id = begun["data"]["id"].as_str().expect("an id");
    assert_eq!(append(&sandbox, &user, id, 0, &file).await, 413);
}

#[tokio::test]
async fn media_is_its_owner_s_and_dies_after_a_day() {
    let sandbox = Harness::start().await;
    let (ada, bob) = (sandbox.user(json!({})).await, sandbox.user(json!({})).await);
    let (id, _) = upload(&sandbox, &ada, &tiny_png(10, 10), "image/png").await;
    let body = json!({"text": "mine", "media": {"media_ids": [id]}});
    assert_eq!(answered(sandbox.post(&bob, &body)).await.0, 400);
    sandbox.set(json!({"media_lifetime_s": 0})).await;
    let (_, begun) = initialize(&sandbox, &ada, json!({"media_type": "image/png", "total_bytes": 5})).await;
    let expired = json!({"text": "late", "media": {"media_ids": [begun["data"]["id"]]}});
    assert_eq!(answered(sandbox.post(&ada, &expired)).await.0, 400);
}

#[tokio::test]
async fn kinds_of_media_do_not_mix() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    sandbox.set(json!({"processing_ms": 0})).await;
    let (image, _) = upload(&sandbox, &user, &tiny_png(10, 10), "image/png").await;
    let (video, _) = upload(&sandbox, &user, &tiny_mp4(2_000, 60, b"avc1"), "video/mp4").await;
    assert_eq!(answered(sandbox.post(&user, &json!({"media": {"media_ids": [image, video]}}))).await.0, 400);
    assert_eq!(answered(sandbox.post(&user, &json!({"media": {"media_ids": [video]}}))).await.0, 201);
    let wrong = json!({"media_type": "video/mp4", "media_category": "tweet_image", "total_bytes": 5});
    assert_eq!(initialize(&sandbox, &user, wrong).await.0, 400);
    let large = json!({"media_type": "image/png", "total_bytes": 5 * 1024 * 1024 + 1});
    assert_eq!(initialize(&sandbox, &user, large).await.0, 400);
}

#[tokio::test]
async fn a_small_image_goes_in_one_call() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    let send = |form: Form| answered(sandbox.x("POST", "/2/media/upload", &user).multipart(form));
    let file = tiny_png(10, 20);
    let (code, made) = send(Form::new().text("media_category", "tweet_image").part("media", part(&file))).await;
    assert_eq!((code.as_u16(), &made["data"]["image"]["h"]), (200, &json!(20)));
    assert_eq!(answered(sandbox.post(&user, &json!({"media": {"media_ids": [made["data"]["id"]]}}))).await.0, 201);
    assert_eq!(send(Form::new().part("media", part(&file))).await.0, 400);
    assert_eq!(send(Form::new().text("media_category", "tweet_image").part("media", part(b"<svg/>"))).await.0, 400);
    let old = Form::new().text("command", "INIT").text("media_category", "tweet_image").part("media", part(&file));
    assert_eq!(send(old).await.0, 400);
}
