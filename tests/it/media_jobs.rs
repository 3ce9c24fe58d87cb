//! Renditions as jobs: made once, shared, cancelled, fenced; and bytes that stay as long as somebody needs them.

use std::{sync::Arc, time::Duration};

use multivio::{
    ids::{JobId, MediaId},
    jobs::{Queue, State},
    media::{
        MediaService, PresetName,
        rendition_store::{self, Maker},
        service::OpenError,
        store::{self, Deleted},
        upkeep,
    },
};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    harness::{Api, App, Worker, eventually, wait_until},
    media_api::{upload, walk},
    media_clips::{Clips, X264, sources},
};

const SOON: Duration = Duration::from_secs(60);

async fn worker(app: &App) -> Worker {
    app.worker_with(Queue::Media, &[("MEDIA_X264_PRESET", "ultrafast"), ("MEDIA_THREADS", "1")]).await
}

fn service(app: &App) -> Arc<MediaService> {
    Arc::new(MediaService::new(&app.config(), app.pool.clone()).unwrap())
}

fn id(value: &Value) -> MediaId {
    value["id"].as_str().unwrap().parse().unwrap()
}

async fn transcode(api: &Api, media: MediaId, presets: &[&str]) -> Vec<String> {
    let (status, accepted) = api.post(&format!("/api/v1/media/{media}/transcode"), json!({ "presets": presets })).await;
    assert_eq!(status, 202, "{accepted}");
    accepted["jobs"].as_array().unwrap().iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
}

async fn ended(api: &Api, job: &str) -> Value {
    eventually(SOON, &format!("{job} to end"), || async move {
        let (_, row) = api.get(&format!("/api/v1/jobs/{job}?wait=5")).await;
        let state: Option<State> = serde_json::from_value(row["state"].clone()).ok();
        state.is_some_and(State::is_final).then_some(row)
    })
    .await
}

async fn clip_bytes(clips: &Clips, more: &str) -> Vec<u8> {
    let words = format!("{} {X264} -pix_fmt yuv444p -c:a aac -shortest {more}", sources("160x90", 0.6));
    std::fs::read(clips.make("clip.mp4", &words).await).unwrap()
}

#[tokio::test]
async fn a_rendition_is_made_once_and_shared_by_all_uploads_of_the_same_content() {
    let (app, clips) = (App::new().await, Clips::new());
    let (api, _worker) = tokio::join!(app.api(), worker(&app));
    let bytes = clip_bytes(&clips, "").await;
    let first = id(&upload(&api, "a.mp4", bytes.clone()).await.1);
    let jobs = transcode(&api, first, &["x_video", "thumbnail"]).await;
    let done = ended(&api, &jobs[0]).await;
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!((&done["result"]["action"], &done["result"]["reused"]), (&json!("transcode"), &json!(false)));
    ended(&api, &jobs[1]).await;

    let second = id(&upload(&api, "b.mp4", bytes).await.1);
    let again = ended(&api, &transcode(&api, second, &["x_video"]).await[0]).await;
    assert_eq!(again["result"]["reused"], true, "{again}");
    assert_eq!(again["result"]["rendition"], done["result"]["rendition"]);

    let service = service(&app);
    let opened = service.open_rendition(app.tenant, second, PresetName::XVideo).await.unwrap();
    assert_eq!((opened.mime.as_str(), Some(opened.size_bytes)), ("video/mp4", done["result"]["size_bytes"].as_u64()));
    let (_, view) = api.get(&format!("/api/v1/media/{second}")).await;
    let made = view["renditions"].as_array().unwrap().iter().find(|made| made["preset"] == "x_video").unwrap();
    assert!(made["checks"].as_u64().unwrap() > 20, "{made}");
    let thumbnail =
        api.request(reqwest::Method::GET, &format!("/api/v1/media/{first}/thumbnail")).send().await.unwrap();
    assert_eq!(
        (thumbnail.status().as_u16(), thumbnail.headers()["content-type"].to_str().unwrap()),
        (200, "image/jpeg")
    );
    let missing = service.open_rendition(app.tenant, second, PresetName::YoutubeVideo).await;
    assert!(matches!(missing, Err(OpenError::NotMade(_))));
}

#[tokio::test]
async fn two_jobs_for_the_same_rendition_make_it_once() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let media = id(&upload(&api, "a.mp4", clip_bytes(&clips, "").await).await.1);
    let first = transcode(&api, media, &["youtube_video"]).await.remove(0);
    // A second job for the same, as a workflow would enqueue it that does not know the first.
    let second = JobId::new();
    sqlx::query(
        "insert into jobs select (jsonb_populate_record(j, jsonb_build_object('id', $2::uuid, 'unique_key', null))).* \
         from jobs j where j.id = $1",
    )
    .bind(first.parse::<JobId>().unwrap())
    .bind(second)
    .execute(&app.pool)
    .await
    .unwrap();
    let _workers = tokio::join!(worker(&app), worker(&app));
    let (a, b) = tokio::join!(ended(&api, &first), async { ended(&api, &second.to_string()).await });
    assert_eq!((&a["state"], &b["state"]), (&json!("succeeded"), &json!("succeeded")), "{a} {b}");
    assert_eq!(a["result"]["rendition"], b["result"]["rendition"]);
    let reused = [&a, &b].into_iter().filter(|job| job["result"]["reused"] == true).count();
    assert_eq!(reused, 1, "{a} {b}");
}

#[tokio::test]
async fn a_job_that_equal_uploads_share_outlives_the_one_it_was_made_for() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let bytes = clip_bytes(&clips, "").await;
    let first = id(&upload(&api, "a.mp4", bytes.clone()).await.1);
    let second = id(&upload(&api, "b.mp4", bytes).await.1);
    let job = transcode(&api, first, &["x_video"]).await.remove(0);
    assert_eq!(transcode(&api, second, &["x_video"]).await.remove(0), job, "they share it");
    assert_eq!(api.delete(&format!("/api/v1/media/{first}")).await.0, 204);
    let _worker = worker(&app).await;
    let done = ended(&api, &job).await;
    assert_eq!(done["state"], "succeeded", "{done}");
    assert!(service(&app).open_rendition(app.tenant, second, PresetName::XVideo).await.is_ok());
}

#[tokio::test]
async fn cancelling_a_transcode_ends_ffmpeg_and_leaves_no_file() {
    let (app, clips) = (App::new().await, Clips::new());
    let (api, _worker) = tokio::join!(app.api(), worker(&app));
    let words = format!("-f lavfi -i testsrc2=size=1280x720:rate=30:duration=60 {X264} -crf 45 -g 300");
    let bytes = std::fs::read(clips.make("long.mkv", &words).await).unwrap();
    let media = id(&upload(&api, "long.mkv", bytes).await.1);
    let job = transcode(&api, media, &["instagram_reel"]).await.remove(0);
    let scratch = app.folder().join("scratch");
    wait_until(SOON, "ffmpeg to write", || async { walk(&scratch).iter().any(|file| file.ends_with("rendition.mp4")) })
        .await;
    let running = ffmpegs(&scratch);
    assert!(!running.is_empty());
    api.post(&format!("/api/v1/jobs/{job}/cancel"), json!({})).await;
    assert_eq!(ended(&api, &job).await["state"], "cancelled");
    wait_until(Duration::from_secs(10), "ffmpeg to be gone", || async { ffmpegs(&scratch).is_empty() }).await;
    wait_until(Duration::from_secs(10), "its files to be gone", || async {
        walk(&scratch).iter().all(|file| file.extension().is_some_and(|extension| extension == "lock"))
    })
    .await;
}

#[tokio::test]
async fn stopping_a_worker_while_it_transcodes_ends_ffmpeg_and_uses_no_attempt() {
    let (app, clips) = (App::new().await, Clips::new());
    let settings = [("MEDIA_X264_PRESET", "ultrafast"), ("MEDIA_THREADS", "1"), ("WORKER_GRACE_SECONDS", "1")];
    let (api, mut worker) = tokio::join!(app.api(), app.worker_with(Queue::Media, &settings));
    let words = format!("-f lavfi -i testsrc2=size=1280x720:rate=30:duration=60 {X264} -crf 45 -g 300");
    let bytes = std::fs::read(clips.make("long.mkv", &words).await).unwrap();
    let media = id(&upload(&api, "long.mkv", bytes).await.1);
    let job: JobId = transcode(&api, media, &["instagram_reel"]).await.remove(0).parse().unwrap();
    let scratch = app.folder().join("scratch");
    wait_until(SOON, "ffmpeg to write", || async { walk(&scratch).iter().any(|file| file.ends_with("rendition.mp4")) })
        .await;
    assert!(!ffmpegs(&scratch).is_empty());
    let status = worker.program.stop(Duration::from_secs(12)).await;
    assert!(status.success(), "{status}");
    // Killed with it, at the latest; the system may still be taking it down.
    wait_until(Duration::from_secs(1), "ffmpeg to be gone", || async { ffmpegs(&scratch).is_empty() }).await;
    let row: (String, i16, i16, i16) =
        sqlx::query_as("select state::text, attempt, crashes, handbacks from jobs where id = $1")
            .bind(job)
            .fetch_one(&app.pool)
            .await
            .unwrap();
    assert_eq!(row, ("queued".into(), 0, 0, 1));
}

#[tokio::test]
async fn what_a_killed_worker_was_writing_is_gone_once_its_successor_runs() {
    let (app, clips) = (App::new().await, Clips::new());
    let (api, mut worker) = tokio::join!(app.api(), worker(&app));
    let words = format!("-f lavfi -i testsrc2=size=1280x720:rate=30:duration=60 {X264} -crf 45 -g 300");
    let bytes = std::fs::read(clips.make("long.mkv", &words).await).unwrap();
    let media = id(&upload(&api, "long.mkv", bytes).await.1);
    let job = transcode(&api, media, &["instagram_reel"]).await.remove(0);
    let scratch = app.folder().join("scratch");
    let half_done = || walk(&scratch).into_iter().find(|file| file.ends_with("rendition.mp4"));
    let left = eventually(SOON, "ffmpeg to write", || async { half_done() }).await;
    let former = worker.running().unwrap();
    worker.crash();
    wait_until(SOON, "a successor", || {
        let running = worker.running();
        async move { running.is_some_and(|pid| pid != former) }
    })
    .await;
    // The folder of the run, and the one of its process, which holds those of all its runs.
    let of_process = left.parent().and_then(std::path::Path::parent).unwrap().to_owned();
    assert_eq!(of_process.parent(), Some(scratch.canonicalize().unwrap().as_path()), "{}", left.display());
    // Its lock goes last.
    let lock = of_process.with_extension("lock");
    wait_until(SOON, "what was left to be gone", || async { !of_process.exists() && !lock.exists() }).await;
    api.post(&format!("/api/v1/jobs/{job}/cancel"), json!({})).await;
    ended(&api, &job).await;
}

/// Running programs that were told of a folder.
fn ffmpegs(folder: &std::path::Path) -> Vec<String> {
    let needle = folder.to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
    lines.filter(|line| line.contains("ffmpeg") && line.contains(&needle)).collect()
}

#[tokio::test]
async fn a_file_that_cannot_be_made_right_fails_once_and_says_why() {
    let (app, clips) = (App::new().await, Clips::new());
    let (api, _worker) = tokio::join!(app.api(), worker(&app));
    let words = format!("{} {X264} -pix_fmt yuv444p -c:a aac -movflags +faststart", sources("160x90", 4.0));
    let whole = std::fs::read(clips.make("whole.mp4", &words).await).unwrap();
    let media = id(&upload(&api, "half.mp4", whole[..whole.len() / 2].to_vec()).await.1);
    let failed = ended(&api, &transcode(&api, media, &["x_video"]).await[0]).await;
    assert_eq!((&failed["state"], &failed["error"]["code"]), (&json!("failed"), &json!("media_damaged")), "{failed}");
    let again = ended(&api, &transcode(&api, media, &["x_video"]).await[0]).await;
    assert_eq!(again["error"]["code"], "media_refused", "{again}");
    let opened = service(&app).open_rendition(app.tenant, media, PresetName::XVideo).await;
    assert!(matches!(opened, Err(OpenError::Refused { .. })));
}

/// Moves the day on.
async fn a_day_later(db: &PgPool) {
    sqlx::query(
        "update media_objects set created_at = created_at - interval '25 hours', \
         condemned_at = condemned_at - interval '25 hours'",
    )
    .execute(db)
    .await
    .unwrap();
}

/// M1.
#[tokio::test]
async fn bytes_stay_while_any_upload_has_them_and_go_a_day_after_the_last() {
    let (app, clips) = (App::new().await, Clips::new());
    let (api, service) = (app.api().await, service(&app));
    let bytes = clip_bytes(&clips, "").await;
    let first = id(&upload(&api, "a.mp4", bytes.clone()).await.1);
    let second = id(&upload(&api, "b.mp4", bytes.clone()).await.1);
    let readable = async |media: MediaId| api.get(&format!("/api/v1/media/{media}/content")).await.0 == 200;

    assert_eq!(api.delete(&format!("/api/v1/media/{first}")).await.0, 204);
    a_day_later(&app.pool).await;
    assert_eq!(upkeep::remove_unused(&app.pool, &service).await.unwrap().objects, 0);
    assert!(readable(second).await);

    // The last goes, and the content comes back within its day.
    api.delete(&format!("/api/v1/media/{second}")).await;
    assert_eq!(upkeep::remove_unused(&app.pool, &service).await.unwrap().objects, 0, "a day has not passed");
    let third = id(&upload(&api, "c.mp4", bytes).await.1);
    a_day_later(&app.pool).await;
    assert_eq!(upkeep::remove_unused(&app.pool, &service).await.unwrap().objects, 0);
    assert!(readable(third).await);

    api.delete(&format!("/api/v1/media/{third}")).await;
    a_day_later(&app.pool).await;
    assert_eq!(upkeep::remove_unused(&app.pool, &service).await.unwrap().objects, 1);
    assert_eq!(walk(&app.folder().join("media")), Vec::<std::path::PathBuf>::new());
}

/// M1, the other half: whoever takes a reference and whoever deletes cannot both have their way.
#[tokio::test]
async fn what_a_post_uses_cannot_be_deleted_and_what_is_deleted_cannot_be_used() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let media = id(&upload(&api, "a.mp4", clip_bytes(&clips, "").await).await.1);
    let post = Uuid::now_v7();
    let mut tx = app.pool.begin().await.unwrap();
    assert!(store::take_reference(&mut tx, app.tenant, media, "post", post).await.unwrap());
    // The post is not committed yet: the delete waits for it, and then sees it.
    let deleting = tokio::spawn({
        let (pool, tenant) = (app.pool.clone(), app.tenant);
        async move {
            let mut tx = pool.begin().await.unwrap();
            let deleted = store::delete(&mut tx, tenant, media).await.unwrap();
            tx.commit().await.unwrap();
            deleted
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!deleting.is_finished());
    tx.commit().await.unwrap();
    assert_eq!(deleting.await.unwrap(), Deleted::InUse);
    assert_eq!(api.delete(&format!("/api/v1/media/{media}")).await.0, 409);

    let mut tx = app.pool.begin().await.unwrap();
    assert_eq!(store::drop_references(&mut tx, "post", post).await.unwrap(), 1);
    tx.commit().await.unwrap();
    assert_eq!(api.delete(&format!("/api/v1/media/{media}")).await.0, 204);
    let mut tx = app.pool.begin().await.unwrap();
    assert!(!store::take_reference(&mut tx, app.tenant, media, "post", post).await.unwrap());
}

#[tokio::test]
async fn a_claim_is_held_by_one_maker_and_fenced_by_its_run() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let media = id(&upload(&api, "a.mp4", clip_bytes(&clips, "").await).await.1);
    let source = store::get(&app.pool, app.tenant, media).await.unwrap().unwrap().object_id;
    let claim =
        async |maker| rendition_store::claim(&app.pool, app.tenant, source, PresetName::XVideo, maker).await.unwrap();
    let first = Maker { job: JobId::new(), run: 1 };
    let rendition = claim(first).await.expect("nobody else makes it");
    let other = Maker { job: JobId::new(), run: 1 };
    assert_eq!(claim(other).await, None);
    // The same job, handed to another worker: the run before has lost it.
    let next = Maker { run: 2, ..first };
    assert_eq!(claim(next).await, Some(rendition));
    assert!(!rendition_store::renew(&app.pool, rendition, first).await.unwrap());
    assert!(rendition_store::renew(&app.pool, rendition, next).await.unwrap());
    assert_eq!(claim(first).await, None, "an older run cannot take it back");
    // Given back, or never renewed, it is anybody's.
    rendition_store::release(&app.pool, rendition, next).await.unwrap();
    assert_eq!(claim(other).await, Some(rendition));
    sqlx::query("update renditions set maker_until = now() - interval '1 second'").execute(&app.pool).await.unwrap();
    assert_eq!(claim(next).await, Some(rendition));
}
