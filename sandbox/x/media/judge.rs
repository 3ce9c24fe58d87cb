//! Looks at the uploaded bytes themselves (A5, A9): an image must be an image, a video a video X can play.

use serde_json::Value;

use crate::{
    exchange::Answer,
    x::{
        image, mp4, refusals,
        store::{Failure, Kind},
    },
};

/// A5: the largest animation.
const GIF_FRAMES: u32 = 350;
const GIF_WIDTH: u32 = 1280;
const GIF_HEIGHT: u32 = 1080;
const GIF_PIXELS: u64 = 300_000_000;
/// A5: the shortest video, the highest frame rate, the frame sizes in either orientation.
const SHORTEST_MS: u64 = 500;
const FRAME_RATE_MILLI: u64 = 60_000;
const SMALLEST_SIDE: u32 = 32;
const LONG_SIDE: u32 = 1280;
const SHORT_SIDE: u32 = 1024;

pub struct Verdict {
    pub content_type: String,
    pub width: u32,
    pub height: u32,
    pub duration_ms: u64,
    /// Found out while processing.
    pub failure: Option<Failure>,
    /// Found out only when it is posted.
    pub refused_at_post: bool,
}

pub fn judge(kind: Kind, bytes: &[u8]) -> Result<Verdict, Answer> {
    match kind {
        Kind::Image => still(bytes),
        Kind::Gif => animation(bytes),
        Kind::Video => Ok(video(bytes)),
        Kind::Subtitles => match std::str::from_utf8(bytes) {
            Ok(_) => Ok(verdict("text/srt", 0, 0)),
            Err(_) => Err(unrecognized()),
        },
    }
}

fn verdict(content_type: &str, width: u32, height: u32) -> Verdict {
    let content_type = String::from(content_type);
    Verdict { content_type, width, height, duration_ms: 0, failure: None, refused_at_post: false }
}

// A5: JPG, PNG, WEBP, still GIF; bytes that are none of them are no image, whatever they were called.
fn unrecognized() -> Answer {
    refusals::invalid_one("media", Value::Null, "media type unrecognized.")
}

fn still(bytes: &[u8]) -> Result<Verdict, Answer> {
    let image = image::read(bytes).ok_or_else(unrecognized)?;
    if image.frames > 1 {
        return Err(refusals::invalid_one(
            "media_category",
            "tweet_image",
            "An animated GIF needs the media_category tweet_gif.",
        ));
    }
    Ok(verdict(image.content_type, image.width, image.height))
}

fn animation(bytes: &[u8]) -> Result<Verdict, Answer> {
    let image = image::read(bytes).filter(|image| image.content_type == "image/gif").ok_or_else(unrecognized)?;
    let mut verdict = verdict(image.content_type, image.width, image.height);
    let pixels = u64::from(image.width) * u64::from(image.height) * u64::from(image.frames);
    if image.frames > GIF_FRAMES || image.width > GIF_WIDTH || image.height > GIF_HEIGHT || pixels > GIF_PIXELS {
        verdict.failure = Some(invalid("Gif exceeds the limits of 1280x1080, 350 frames and 300 million pixels")); // A5
    }
    Ok(verdict)
}

fn video(bytes: &[u8]) -> Verdict {
    let Some(video) = mp4::read(bytes) else {
        // A3: upload succeeds, processing fails.
        return Verdict { failure: Some(invalid("Unsupported video format")), ..verdict("video/mp4", 0, 0) };
    };
    let (long, short) = (video.width.max(video.height), video.width.min(video.height));
    let playable = video.is_h264 && video.sound_is_aac && short >= SMALLEST_SIDE && long <= short * 3;
    let failure = if !playable {
        Some(invalid("Unsupported video format")) // A5: H.264, AAC, 1:3 to 3:1
    } else if video.duration_ms < SHORTEST_MS {
        Some(invalid("Video is too short")) // A5: 0.5 s
    } else {
        None
    };
    Verdict {
        duration_ms: video.duration_ms,
        failure,
        // A3: "400 Your media IDs are invalid." when the frame rate or the frame is too large.
        refused_at_post: video.frame_rate_milli > FRAME_RATE_MILLI + 500 || long > LONG_SIDE || short > SHORT_SIDE,
        ..verdict("video/mp4", video.width, video.height)
    }
}

fn invalid(message: &str) -> Failure {
    Failure { code: 1, name: String::from("InvalidMedia"), message: String::from(message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x::{image::tests::tiny_png, mp4::tests::tiny_mp4};

    #[test]
    fn an_image_must_be_an_image() {
        assert_eq!(judge(Kind::Image, &tiny_png(10, 20)).map(|v| (v.width, v.height)).ok(), Some((10, 20)));
        assert!(judge(Kind::Image, b"<html>").is_err());
        assert!(judge(Kind::Gif, &tiny_png(10, 20)).is_err());
    }

    #[test]
    fn a_video_is_judged_while_processing_or_when_posted() {
        let failure = |file: &[u8]| judge(Kind::Video, file).ok().and_then(|v| v.failure).map(|f| f.message);
        assert_eq!(failure(&tiny_mp4(2_000, 60, b"avc1")), None);
        assert_eq!(failure(&tiny_mp4(2_000, 60, b"hvc1")).as_deref(), Some("Unsupported video format"));
        assert_eq!(failure(&tiny_mp4(400, 12, b"avc1")).as_deref(), Some("Video is too short"));
        assert_eq!(failure(b"nothing").as_deref(), Some("Unsupported video format"));
        let too_fast = judge(Kind::Video, &tiny_mp4(1_000, 120, b"avc1")).map(|v| (v.failure, v.refused_at_post));
        assert_eq!(too_fast.ok(), Some((None, true)));
    }
}
