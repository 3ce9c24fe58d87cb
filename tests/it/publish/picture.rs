//! Pictures to publish.

use multivio::{
    ids::MediaId,
    media::{MediaService, store as media_store},
};

use super::Stage;

/// A real picture, this many pixels wide, uploaded as the media domain would; its id.
pub async fn upload(stage: &Stage, width: u32) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("picture.png");
    let made = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", &format!("testsrc2=s={width}x360"), "-frames:v", "1"])
        .arg(&path)
        .status()
        .expect("ffmpeg runs");
    assert!(made.success());
    let service = MediaService::new(&stage.app.config(), stage.app.pool.clone()).expect("the storage folder is made");
    let file = tokio::fs::File::open(&path).await.expect("the picture is there");
    let (arrived, probe) = service.receive(stage.app.tenant, file, u64::MAX).await.expect("it is a picture");
    let mut tx = stage.app.pool.begin().await.expect("the database answers");
    let id = keep(&mut tx, stage, &arrived, &probe).await;
    tx.commit().await.expect("it is kept");
    id.to_string()
}

async fn keep(
    tx: &mut sqlx::PgConnection,
    stage: &Stage,
    arrived: &multivio::media::upload::Arrived,
    probe: &multivio::media::probe::Probe,
) -> MediaId {
    let content =
        media_store::Content { sha256: &arrived.sha256, size_bytes: arrived.size_bytes, mime: arrived.kind.mime() };
    let object = media_store::keep(tx, stage.app.tenant, arrived.object, content).await.expect("it is kept");
    let row = media_store::insert_media(tx, stage.app.tenant, object.id, "picture.png", arrived.kind, probe).await;
    row.expect("it is listed").0
}
