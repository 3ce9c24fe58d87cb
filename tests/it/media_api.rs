//! `/api/v1/media` through the real API: files in, plans and bytes out, and every way to be refused.

use multivio::ids::TenantId;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::{
    harness::{Api, App},
    media_clips::{Clips, X264, sources},
};

/// Sends bytes as the part `file`.
pub async fn upload(api: &Api, name: &str, bytes: Vec<u8>) -> (u16, Value) {
    send(api, name, bytes, &[]).await
}

async fn send(api: &Api, name: &str, bytes: Vec<u8>, headers: &[(&'static str, &str)]) -> (u16, Value) {
    let form = Form::new().part("file", Part::bytes(bytes).file_name(name.to_owned()));
    let mut request = api.request(Method::POST, "/api/v1/media").multipart(form);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.expect("the API answers");
    let status = response.status().as_u16();
    (status, response.json().await.expect("every answer is JSON"))
}

async fn clip_bytes(clips: &Clips) -> Vec<u8> {
    std::fs::read(clips.clip("clip.mp4", "320x180", 0.6, "").await).unwrap()
}

#[tokio::test]
async fn an_upload_is_looked_at_listed_read_in_parts_and_deleted() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let bytes = clip_bytes(&clips).await;
    let (status, media) = upload(&api, "../../holiday.mp4", bytes.clone()).await;
    assert_eq!(status, 201, "{media}");
    assert_eq!((&media["name"], &media["mime"]), (&json!("holiday.mp4"), &json!("video/mp4")));
    assert_eq!((&media["video"]["width"], &media["video"]["frame_rate"]), (&json!(320), &json!(30.0)));
    let plans: Vec<_> =
        media["plans"].as_array().unwrap().iter().map(|plan| (&plan["platform"], &plan["action"])).collect();
    assert_eq!(plans[0], (&json!("X"), &json!("remux")));
    assert_eq!(plans[1], (&json!("Instagram"), &json!("refuse")), "too short for a reel");

    let path = format!("/api/v1/media/{}", media["id"].as_str().unwrap());
    assert_eq!(api.get(&path).await.1["sha256"], media["sha256"]);
    let (_, list) = api.get("/api/v1/media?limit=1").await;
    assert_eq!(list["items"][0]["id"], media["id"]);

    let whole = api.request(Method::GET, &format!("{path}/content")).send().await.unwrap();
    assert_eq!(whole.headers()["content-type"], "video/mp4");
    assert_eq!(whole.bytes().await.unwrap(), bytes);
    let part = api.request(Method::GET, &format!("{path}/content")).header("Range", "bytes=4-7").send().await.unwrap();
    assert_eq!(
        (part.status().as_u16(), part.headers()["content-range"].to_str().unwrap()),
        (206, format!("bytes 4-7/{}", bytes.len()).as_str())
    );
    assert_eq!(part.bytes().await.unwrap().as_ref(), b"ftyp");

    let stranger = app.token_for(TenantId::new(), &[multivio::http::Scope::Workspace]);
    let seen = api.client.get(format!("{}{path}", api.url)).bearer_auth(stranger).send().await.unwrap();
    assert_eq!(seen.status(), 404);
    assert_eq!(api.delete(&path).await.0, 204);
    assert_eq!(api.get(&path).await.0, 404);
}

#[tokio::test]
async fn what_is_no_media_is_refused_with_the_reason_and_leaves_nothing() {
    let (mut app, clips) = (App::new().await, Clips::new());
    app.set("MEDIA_MAX_UPLOAD_BYTES", "200000");
    let api = app.api().await;
    let cut = {
        let bytes = clip_bytes(&clips).await;
        bytes[..bytes.len() / 2].to_vec()
    };
    let refused: [(&str, Vec<u8>, u16, &str); 6] = [
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n".to_vec(), 415, "playlist"),
        ("concat.mp4", b"ffconcat version 1.0\nfile x\n".to_vec(), 415, "playlist"),
        ("junk.mp4", vec![7; 50_000], 415, "not a video"),
        ("empty.png", Vec::new(), 415, "empty"),
        ("cut.mp4", cut, 422, "damaged"),
        ("large.gif", [b"GIF89a".to_vec(), vec![0; 300_000]].concat(), 413, "200000"),
    ];
    for (name, bytes, status, word) in refused {
        let (answered, problem) = upload(&api, name, bytes).await;
        assert_eq!(answered, status, "{name}: {problem}");
        assert!(problem.to_string().contains(word), "{name}: {problem}");
    }
    let form = Form::new().part("picture", Part::bytes(b"GIF89a".as_slice()));
    let wrong = api.request(Method::POST, "/api/v1/media").multipart(form).send().await.unwrap();
    assert_eq!(wrong.status(), 422);
    assert_eq!(wrong.headers()["connection"], "close", "what was not read spoils the connection");
    let (status, _) = api.post("/api/v1/media", json!({ "file": "x" })).await;
    assert_eq!(status, 415);

    let left: i64 = sqlx::query_scalar("select count(*) from media_objects").fetch_one(&app.pool).await.unwrap();
    assert_eq!(left, 0, "what was refused is not kept");
}

#[tokio::test]
async fn the_same_key_gives_the_same_upload_and_equal_content_is_stored_once() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let bytes = clip_bytes(&clips).await;
    let key = [("Idempotency-Key", "upload-1")];
    let (_, first) = send(&api, "a.mp4", bytes.clone(), &key).await;
    let (status, again) = send(&api, "a.mp4", bytes.clone(), &key).await;
    assert_eq!((status, &again["id"]), (201, &first["id"]), "{again}");
    let (_, other) = upload(&api, "b.mp4", bytes).await;
    assert_ne!(other["id"], first["id"]);
    let objects: i64 = sqlx::query_scalar("select count(*) from media_objects").fetch_one(&app.pool).await.unwrap();
    assert_eq!(objects, 1);
    let files = walk(&app.folder().join("media"));
    assert_eq!(files.len(), 1, "{files:?}");
}

pub fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_preset_that_cannot_be_made_is_refused_before_anything_is_queued() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let (_, media) = upload(&api, "clip.mp4", clip_bytes(&clips).await).await;
    let path = format!("/api/v1/media/{}/transcode", media["id"].as_str().unwrap());
    let (status, problem) = api.post(&path, json!({ "presets": ["x_video", "instagram_reel", "x_image"] })).await;
    assert_eq!(status, 422, "{problem}");
    let fields: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| error["field"].clone()).collect();
    assert_eq!(fields, ["presets[1]", "presets[2]"]);
    assert!(problem.to_string().contains("at least 3 s"), "{problem}");
    assert_eq!(api.post(&path, json!({ "presets": ["myspace"] })).await.0, 422);
    assert_eq!(api.post(&path, json!({ "presets": [] })).await.0, 422);

    let (status, accepted) = api.post(&path, json!({ "presets": ["x_video", "x_video"] })).await;
    assert_eq!((status, accepted["jobs"].as_array().map(Vec::len)), (202, Some(1)), "{accepted}");
    let (_, again) = api.post(&path, json!({ "presets": ["x_video"] })).await;
    assert_eq!(again["jobs"][0]["job_id"], accepted["jobs"][0]["job_id"]);
    assert_eq!(again["jobs"][0]["existing"], true);
    let (_, presets) = api.get("/api/v1/media/presets").await;
    assert_eq!(presets["items"].as_array().unwrap().len(), 5);
}

/// The process that takes a file in must not grow with it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_does_not_grow_with_the_file() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let small = clips.make("small.mp4", &format!("{} {X264} -c:a aac", sources("160x90", 0.5))).await;
    let mut bytes = std::fs::read(small).unwrap();
    upload(&api, "warm.mp4", bytes.clone()).await;
    let pid = api.program.id();
    let peak_kib = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells the peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak_kib();
    // A box of nothing at the end: 200 MB that every player skips.
    let padding = 200_000_000_u32;
    bytes.extend(padding.to_be_bytes());
    bytes.extend(b"free");
    bytes.resize(bytes.len() + padding as usize - 8, 0);
    let (status, media) = upload(&api, "padded.mp4", bytes).await;
    assert_eq!(status, 201, "{media}");
    let grown_mb = (peak_kib() - before) / 1024;
    assert!(grown_mb < 48, "grew by {grown_mb} MB for a file of 200 MB");
}
