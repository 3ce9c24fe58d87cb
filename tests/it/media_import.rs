//! Files fetched from an address: they become uploads, and no address leads into a network of ours.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use multivio::{jobs::Queue, media::import_store};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    harness::{Api, App, Worker, eventually},
    identity::{call, get},
    media_clips::Clips,
};

const IMPORT: &str = "/api/v1/media/import";

/// What a server of this machine says to whoever comes.
#[derive(Clone)]
enum Says {
    File(Vec<u8>),
    /// Says how much there is, sends a part of it, and hangs up.
    Half(Vec<u8>),
    Endless,
    /// Of an address with "stuck" in it, a part and then nothing more.
    StuckOr(Vec<u8>),
    Head(String),
}

async fn server(says: Says) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let came = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&came);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let visit = count.fetch_add(1, Ordering::SeqCst);
            let says = says.clone();
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                let length = stream.read(&mut asked).await.unwrap_or(0);
                let is_stuck = String::from_utf8_lossy(&asked[..length]).contains("stuck");
                let head = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
                let answer = match says {
                    Says::StuckOr(bytes) if is_stuck => {
                        let _ = stream.write_all(&[head(bytes.len()), bytes[..100].to_vec()].concat()).await;
                        return std::future::pending().await;
                    }
                    Says::File(bytes) | Says::StuckOr(bytes) => [head(bytes.len()), bytes].concat(),
                    // The second time it is all there.
                    Says::Half(bytes) if visit > 0 => [head(bytes.len()), bytes].concat(),
                    Says::Half(bytes) => [head(bytes.len()), bytes[..bytes.len() / 2].to_vec()].concat(),
                    Says::Head(head) => head.into_bytes(),
                    Says::Endless => {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n\0\0\0\x20ftypisom").await;
                        while stream.write_all(&[0; 65536]).await.is_ok() {}
                        return;
                    }
                };
                let _ = stream.write_all(&answer).await;
            });
        }
    });
    (port, came)
}

struct Rig {
    app: App,
    api: Api,
    _ops: Worker,
    port: u16,
    came: Arc<AtomicUsize>,
}

impl Rig {
    async fn new(says: Says) -> Self {
        let (port, came) = server(says).await;
        let mut app = App::new().await;
        app.set("MEDIA_IMPORT_LOOPBACK_PORT", port.to_string()).set("MEDIA_MAX_UPLOAD_BYTES", "4000000");
        let api = app.api().await;
        let ops = app.worker(Queue::Ops).await;
        Self { app, api, _ops: ops, port, came }
    }

    /// Imports it, and gives the job once it has ended.
    async fn import(&self, path: &str, mut more: Value) -> Value {
        more["url"] = json!(format!("http://127.0.0.1:{}{path}", self.port));
        let (status, answer) = self.api.post(IMPORT, more).await;
        assert_eq!(status, 202, "{answer}");
        let job = format!("/api/v1/jobs/{}", answer["job_id"].as_str().unwrap());
        for _ in 0..3 {
            let (_, job) = self.api.get(&format!("{job}?wait=30")).await;
            if !job["finished_at"].is_null() {
                return job;
            }
        }
        panic!("{} goes on: {}", job, self.api.get(&job).await.1);
    }

    async fn fails(&self, code: &str) {
        let job = self.import("/clip.mp4", json!({})).await;
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{job}");
        let (_, listed) = self.api.get("/api/v1/media").await;
        assert_eq!(listed["items"], json!([]));
        let left: i64 = sqlx::query_scalar("select count(*) from media_imports where sealed is not null")
            .fetch_one(&self.app.pool)
            .await
            .unwrap();
        assert_eq!(left, 0, "the address is gone");
    }
}

async fn clip() -> Vec<u8> {
    let clips = Clips::new();
    std::fs::read(clips.clip("clip.mp4", "320x180", 0.6, "").await).unwrap()
}

#[tokio::test]
async fn a_file_at_an_address_becomes_an_upload_like_any_other() {
    let rig = Rig::new(Says::File(clip().await)).await;
    let job = rig.import("/films/my%20film.mp4?signature=a-signed-link", json!({})).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let media = format!("/api/v1/media/{}", job["result"]["media"].as_str().unwrap());
    let (status, media) = rig.api.get(&media).await;
    assert_eq!((status, &media["name"], &media["video"]["width"]), (200, &json!("my film.mp4"), &json!(320)));
    let named = rig.import("/films/1.mp4", json!({"name": "../holiday.mp4"})).await;
    let (_, named) = rig.api.get(&format!("/api/v1/media/{}", named["result"]["media"].as_str().unwrap())).await;
    assert_eq!((&named["name"], &named["sha256"]), (&json!("holiday.mp4"), &media["sha256"]));
    // A signed link is a key: it stands in no table and no log.
    let kept: Vec<String> = sqlx::query_scalar(
        "select to_jsonb(j)::text from jobs j union all select to_jsonb(i)::text from media_imports i \
         union all select to_jsonb(n)::text from job_notes n",
    )
    .fetch_all(&rig.app.pool)
    .await
    .unwrap();
    assert!(kept.iter().all(|row| !row.contains("a-signed-link")), "{kept:?}");
    assert!(!rig.api.program.log().contains("a-signed-link") && !rig._ops.program.log().contains("a-signed-link"));
}

#[tokio::test]
async fn a_file_that_broke_off_is_fetched_again() {
    let rig = Rig::new(Says::Half(clip().await)).await;
    let job = rig.import("/clip.mp4", json!({})).await;
    assert_eq!((&job["state"], rig.came.load(Ordering::SeqCst)), (&json!("succeeded"), 2), "{job}");
}

#[tokio::test]
async fn an_address_that_leads_into_a_private_network_is_told_from_no_other_and_not_followed() {
    let (secret, came) = server(Says::File(clip().await)).await;
    for to in [format!("http://127.0.0.1:{secret}/"), "https://localtest.me./".into(), "https://0x7f.1/".into()] {
        let head = format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
        let rig = Rig::new(Says::Head(head)).await;
        rig.fails("address_forbidden").await;
        assert!(rig._ops.program.log().contains("an address was not fetched"));
    }
    assert_eq!(came.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_is_too_large_or_no_media_or_not_there_is_refused_with_the_reason() {
    Rig::new(Says::Endless).await.fails("too_large").await;
    let large = "HTTP/1.1 200 OK\r\ncontent-length: 4000001\r\n\r\n";
    Rig::new(Says::Head(large.into())).await.fails("too_large").await;
    Rig::new(Says::File(b"<html>no film</html>".to_vec())).await.fails("unsupported_media_type").await;
    Rig::new(Says::Head("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".into())).await.fails("not_there").await;
}

#[tokio::test]
async fn an_address_that_may_not_be_asked_is_refused_at_the_door_with_its_field() {
    let (app, secret) = (App::new().await, server(Says::Endless).await);
    let api = app.api().await;
    let near = format!("http://127.0.0.1:{}/", secret.0);
    for url in [
        near.as_str(),
        "https://10.0.0.1/",
        "https://[::1]/",
        "https://2130706433/",
        "https://u:p@example.com/",
        "https://example.com:8443/",
        "http://example.com/",
        "file:///etc/passwd",
        "https://localhost/",
        "no address",
    ] {
        let (status, answer) = api.post(IMPORT, json!({"url": url})).await;
        assert_eq!((status, &answer["field"]), (422, &json!("url")), "{url}: {answer}");
    }
    assert_eq!(secret.1.load(Ordering::SeqCst), 0);
    let jobs: i64 =
        sqlx::query_scalar("select count(*) from jobs where kind = 'media_import'").fetch_one(&app.pool).await.unwrap();
    assert_eq!(jobs, 0);
}

#[tokio::test]
async fn a_worker_that_dies_in_the_middle_costs_time_and_makes_no_second_upload() {
    let (port, _) = server(Says::File(clip().await)).await;
    let mut app = App::new().await;
    app.set("MEDIA_IMPORT_LOOPBACK_PORT", port.to_string());
    let api = app.api().await;
    let (_, answer) = api.post(IMPORT, json!({"url": format!("http://127.0.0.1:{port}/a.mp4")})).await;
    let path = format!("/api/v1/jobs/{}", answer["job_id"].as_str().unwrap());
    let mut ops = app.worker(Queue::Ops).await;
    eventually(Duration::from_secs(30), "the import to begin", || async {
        (api.get(&path).await.1["state"] != "queued").then_some(())
    })
    .await;
    ops.crash();
    let mut done = Value::Null;
    for _ in 0..3 {
        done = api.get(&format!("{path}?wait=30")).await.1;
    }
    assert_eq!(done["state"], "succeeded", "{done}");
    let (_, listed) = api.get("/api/v1/media").await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
}

/// An installation whose workers run so many jobs of a lane at once, and a server that hangs now and then.
struct Slow {
    app: App,
    api: Api,
    port: u16,
    _ops: Worker,
}

impl Slow {
    async fn new(at_once: &str) -> Self {
        let (port, _) = server(Says::StuckOr(clip().await)).await;
        let mut app = App::new().await;
        app.set("MEDIA_IMPORT_LOOPBACK_PORT", port.to_string());
        let (api, ops) = (app.api().await, app.worker_with(Queue::Ops, &[("WORKER_CONCURRENCY", at_once)]).await);
        Self { app, api, port, _ops: ops }
    }

    async fn import(&self, token: &str, path: &str) -> String {
        let url = json!({"url": format!("http://127.0.0.1:{}{path}", self.port)});
        let (status, answer) = call(&self.api, token, None, Method::POST, IMPORT, Some(&url)).await;
        assert_eq!(status, 202, "{answer}");
        format!("/api/v1/jobs/{}", answer["job_id"].as_str().unwrap())
    }

    async fn is_stuck(&self, token: &str) -> String {
        let job = self.import(token, "/stuck.mp4").await;
        eventually(Duration::from_secs(30), "the slow import to run", || async {
            (get(&self.api, token, &job).await.1["state"] == "running").then_some(())
        })
        .await;
        job
    }
}

#[tokio::test]
async fn a_server_that_hangs_holds_up_the_imports_of_its_own_workspace_alone() {
    let slow = Slow::new("4").await;
    let (mine, (_, other)) = (slow.api.token.clone(), slow.app.token_of_another());
    slow.is_stuck(&mine).await;
    let behind = slow.import(&mine, "/clip.mp4").await;
    let theirs = slow.import(&other, "/clip.mp4").await;
    let (_, done) = get(&slow.api, &other, &format!("{theirs}?wait=20")).await;
    assert_eq!(done["state"], "succeeded", "{done}");
    let (_, waits) = slow.api.get(&behind).await;
    assert_eq!(waits["state"], "scheduled", "one of a workspace after another: {waits}");
}

#[tokio::test]
async fn imports_that_hang_hold_up_no_other_work() {
    let slow = Slow::new("1").await;
    slow.is_stuck(&slow.api.token).await;
    let (_, other) = slow.app.token_of_another();
    let (status, asked) = call(&slow.api, &other, None, Method::POST, "/api/v1/me/export", None).await;
    assert_eq!(status, 202, "{asked}");
    let job = format!("/api/v1/jobs/{}?wait=20", asked["job_id"].as_str().unwrap());
    let (_, done) = get(&slow.api, &other, &job).await;
    assert_eq!(done["state"], "succeeded", "{done}");
}

#[tokio::test]
async fn an_import_that_was_cancelled_or_killed_leaves_no_address() {
    let slow = Slow::new("2").await;
    let (mine, (_, other)) = (slow.api.token.clone(), slow.app.token_of_another());
    let job = slow.is_stuck(&mine).await;
    let waits = slow.import(&mine, "/clip.mp4").await;
    slow.is_stuck(&other).await;
    for job in [&job, &waits] {
        let (status, answer) = slow.api.post(&format!("{job}/cancel"), json!({})).await;
        assert!(matches!(status, 200 | 202), "{answer}");
    }
    eventually(Duration::from_secs(30), "both to be over", || async {
        let over = async |job: &str| !slow.api.get(job).await.1["finished_at"].is_null();
        (over(&job).await && over(&waits).await).then_some(())
    })
    .await;
    import_store::forget_ended(&slow.app.pool).await.unwrap();
    let kept = "select tenant_id = $1 from media_imports where sealed is not null";
    let kept: Vec<bool> = sqlx::query_scalar(kept).bind(slow.app.tenant).fetch_all(&slow.app.pool).await.unwrap();
    assert_eq!(kept, [false], "only the one that is still at work keeps its address");
    let old = "update media_imports set created_at = now() - interval '31 days'";
    sqlx::query(old).execute(&slow.app.pool).await.unwrap();
    import_store::forget_ended(&slow.app.pool).await.unwrap();
    let left: i64 = sqlx::query_scalar("select count(*) from media_imports").fetch_one(&slow.app.pool).await.unwrap();
    assert_eq!(left, 1);
}
