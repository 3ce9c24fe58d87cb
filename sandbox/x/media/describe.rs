//! What X says of a piece of media: the answer of finalize and status (A3).

use serde_json::{Value, json};

use crate::{
    clock,
    x::store::{Kind, Media, Stage, World},
};

/// The answer of finalize and status (A3): no `processing_info` means ready.
pub fn described(media: &Media, world: &World) -> Value {
    let now_ms = clock::now_ms();
    let mut data = json!({
        "id": media.id.to_string(), "media_key": media.key(), "size": media.total_bytes,
        "expires_after_secs": media.expires_ms.saturating_sub(now_ms) / 1000,
    });
    match media.kind {
        Kind::Image => data["image"] = json!({"w": media.width, "h": media.height, "image_type": media.content_type}),
        Kind::Gif | Kind::Video => data["video"] = json!({"video_type": media.content_type}),
        Kind::Subtitles => {}
    }
    if let Stage::Processing { started_ms, ends_ms, failure } = &media.stage {
        let elapsed_ms = now_ms.saturating_sub(*started_ms);
        let length_ms = ends_ms.map_or(u64::MAX, |ends_ms| ends_ms.saturating_sub(*started_ms));
        let check_after = world.settings.check_after_secs;
        // A3: pending, in_progress, then succeeded or failed.
        data["processing_info"] = if elapsed_ms < length_ms / 4 {
            json!({"state": "pending", "check_after_secs": check_after})
        } else if elapsed_ms < length_ms {
            let percent = elapsed_ms.saturating_mul(100) / length_ms;
            json!({"state": "in_progress", "check_after_secs": check_after, "progress_percent": percent})
        } else if let Some(failure) = failure {
            json!({"state": "failed", "error": {"code": failure.code, "name": failure.name, "message": failure.message}})
        } else {
            json!({"state": "succeeded", "progress_percent": 100})
        };
    }
    data
}
