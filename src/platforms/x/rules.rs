//! X's limits: of content, and of how often.

use std::time::Duration;

use crate::{
    platforms::{
        Budget, Content, ContentProblem, MediaKind, Platform, Scope,
        content::{ContentMedia, MediaFacts},
    },
    text,
};

const MEDIA_MAX: usize = 4;
const ALT_TEXT_MAX_CHARS: usize = 1000;
const IMAGE_MAX_BYTES: u64 = 5 << 20;
const ANIMATION_MAX_BYTES: u64 = 15 << 20;
const ANIMATION_MAX_SIDES: (u32, u32) = (1280, 1080);
const ANIMATION_MAX_FRAMES: u32 = 350;
const ANIMATION_MAX_PIXELS: u64 = 300_000_000;
const VIDEO_MIN_MS: u64 = 500;
/// An ordinary account's; those that pay may post longer ones.
const VIDEO_MAX_MS: u64 = 20 * 60 * 1000;
const VIDEO_MAX_RATIO: u32 = 3;
const IMAGE_TYPES: [&str; 4] = ["image/jpeg", "image/png", "image/webp", "image/gif"];

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// The published limits of creating a post, and the older one of 300 in 3 hours, which nobody has withdrawn.
pub const BUDGETS: &[Budget] = &[
    Budget {
        name: "posts_15_minutes",
        scope: Scope::Connection,
        limit: 100,
        window: Duration::from_secs(15 * MINUTE),
        observed: true,
    },
    Budget {
        name: "posts_3_hours",
        scope: Scope::Connection,
        limit: 300,
        window: Duration::from_secs(3 * HOUR),
        observed: false,
    },
    Budget {
        name: "app_posts_24_hours",
        scope: Scope::App,
        limit: 10_000,
        window: Duration::from_secs(24 * HOUR),
        observed: false,
    },
];

pub fn validate(content: &Content<'_>) -> Vec<ContentProblem> {
    let mut problems = Vec::new();
    if content.text.trim().is_empty() && content.media.is_empty() {
        problems.push(problem("empty", "text", "there is neither text nor media", "Write at least one character"));
    }
    problems.extend(text::measure(Platform::X, content.text).problems.into_iter().map(|found| ContentProblem {
        code: found.code,
        field: "text".to_owned(),
        message: found.message,
        remedy: "Change the text for X, or let it be optimised".to_owned(),
    }));
    problems.extend(together(content.media));
    for (index, media) in content.media.iter().enumerate() {
        let field = format!("media[{index}]");
        problems.extend(alone(media).into_iter().map(|(code, message, remedy)| problem(code, &field, message, remedy)));
        if media.alt_text.as_ref().is_some_and(|text| text.chars().count() > ALT_TEXT_MAX_CHARS) {
            let field = format!("{field}.alt_text");
            problems.push(problem("alt_text_too_long", &field, "is longer than 1000 characters", "Shorten it"));
        }
    }
    problems
}

fn together(media: &[ContentMedia]) -> Option<ContentProblem> {
    if media.len() > MEDIA_MAX {
        let message = format!("{} files, X allows {MEDIA_MAX}", media.len());
        return Some(problem("too_many_media", "media", message, "Remove some"));
    }
    let mixed = media.len() > 1 && media.iter().any(|media| media.facts.kind != MediaKind::Image);
    mixed.then(|| {
        let message = "X takes up to 4 images, or 1 animation, or 1 video, and no mix of them";
        problem("mixed_media", "media", message, "Keep the images, or the one animation or video")
    })
}

type Finding = (&'static str, String, &'static str);

/// Size and encoding of what a preset makes are the preset's business.
fn alone(media: &ContentMedia) -> Vec<Finding> {
    match media.facts.kind {
        MediaKind::Image | MediaKind::Animation if media.will_be_made => Vec::new(),
        MediaKind::Image => image(&media.facts),
        MediaKind::Animation => animation(&media.facts),
        MediaKind::Video => video(&media.facts),
    }
}

fn image(facts: &MediaFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    if !IMAGE_TYPES.contains(&facts.content_type.as_str()) {
        let message = format!("is {}; X takes JPEG, PNG, WebP and GIF", facts.content_type);
        found.push(("image_type", message, "Convert the image"));
    }
    if facts.size_bytes > IMAGE_MAX_BYTES {
        let message = format!("has {} bytes, X allows {IMAGE_MAX_BYTES} for an image", facts.size_bytes);
        found.push(("image_too_large", message, "Make the image smaller"));
    }
    found
}

fn animation(facts: &MediaFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.size_bytes > ANIMATION_MAX_BYTES {
        let message = format!("has {} bytes, X allows {ANIMATION_MAX_BYTES} for an animation", facts.size_bytes);
        found.push(("animation_too_large", message, "Make it smaller, or upload it as a video"));
    }
    let (max_width, max_height) = ANIMATION_MAX_SIDES;
    if facts.width > max_width || facts.height > max_height {
        let message = format!("is {}x{}, X allows {max_width}x{max_height}", facts.width, facts.height);
        found.push(("animation_dimensions", message, "Make it smaller, or upload it as a video"));
    }
    let frames = facts.frames.unwrap_or(1);
    let pixels = u64::from(facts.width) * u64::from(facts.height) * u64::from(frames);
    if frames > ANIMATION_MAX_FRAMES || pixels > ANIMATION_MAX_PIXELS {
        let message = format!("has {frames} frames and {pixels} pixels in all, X allows 350 and 300 million");
        found.push(("animation_too_long", message, "Shorten it, or upload it as a video"));
    }
    found
}

fn video(facts: &MediaFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    match facts.duration_ms {
        Some(ms) if ms < VIDEO_MIN_MS => {
            found.push((
                "video_too_short",
                format!("lasts {ms} ms, X wants at least {VIDEO_MIN_MS}"),
                "Use a longer video",
            ));
        }
        Some(ms) if ms > VIDEO_MAX_MS => {
            found.push(("video_too_long", format!("lasts {} s, X allows 20 minutes", ms / 1000), "Cut the video"));
        }
        Some(_) => {}
        None => found.push(("video_duration", "has no readable duration".to_owned(), "Upload the video again")),
    }
    let (long, short) = (facts.width.max(facts.height), facts.width.min(facts.height));
    if long > short.saturating_mul(VIDEO_MAX_RATIO) {
        let message = format!("is {}x{}, X takes shapes from 1:3 to 3:1", facts.width, facts.height);
        found.push(("video_shape", message, "Crop the video"));
    }
    found
}

fn problem(code: &'static str, field: &str, message: impl Into<String>, remedy: &str) -> ContentProblem {
    ContentProblem { code, field: field.to_owned(), message: message.into(), remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(kind: MediaKind, content_type: &str) -> ContentMedia {
        let facts = MediaFacts {
            kind,
            content_type: content_type.to_owned(),
            size_bytes: 1000,
            width: 640,
            height: 480,
            duration_ms: Some(1000),
            frames: Some(10),
        };
        ContentMedia { facts, will_be_made: false, alt_text: None }
    }

    fn codes(text: &str, media: &[ContentMedia]) -> Vec<&'static str> {
        validate(&Content { text, media }).into_iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn ordinary_content_passes() {
        assert!(codes("hello", &[]).is_empty());
        assert!(codes("", &vec![media(MediaKind::Image, "image/png"); 4]).is_empty());
        assert!(codes("", &[media(MediaKind::Video, "video/mp4")]).is_empty());
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let mut image = media(MediaKind::Image, "image/tiff");
        image.facts.size_bytes = IMAGE_MAX_BYTES + 1;
        image.alt_text = Some("a".repeat(1001));
        let found = codes(&"x".repeat(281), &[image, media(MediaKind::Video, "video/mp4")]);
        assert_eq!(found, ["too_long", "mixed_media", "image_type", "image_too_large", "alt_text_too_long"]);
    }

    #[test]
    fn nothing_at_all_is_no_post() {
        assert_eq!(codes(" \n", &[]), ["empty"]);
    }

    #[test]
    fn what_a_preset_mends_is_no_problem() {
        let mut image = media(MediaKind::Image, "image/tiff");
        image.facts.size_bytes = IMAGE_MAX_BYTES + 1;
        image.will_be_made = true;
        assert!(codes("", &[image]).is_empty());
    }

    #[test]
    fn five_images_are_one_too_many() {
        assert_eq!(codes("", &vec![media(MediaKind::Image, "image/png"); 5]), ["too_many_media"]);
    }

    #[test]
    fn an_animation_has_limits_of_its_own() {
        let mut gif = media(MediaKind::Animation, "image/gif");
        (gif.facts.width, gif.facts.frames) = (1281, Some(351));
        gif.facts.size_bytes = ANIMATION_MAX_BYTES + 1;
        let found = codes("", &[gif]);
        assert_eq!(found, ["animation_too_large", "animation_dimensions", "animation_too_long"]);
    }

    #[test]
    fn a_video_has_a_least_and_a_longest_duration_and_a_shape() {
        let mut video = media(MediaKind::Video, "video/mp4");
        video.facts.duration_ms = Some(VIDEO_MAX_MS + 1);
        (video.facts.width, video.facts.height) = (100, 301);
        assert_eq!(codes("", &[video.clone()]), ["video_too_long", "video_shape"]);
        video.facts.duration_ms = Some(499);
        (video.facts.width, video.facts.height) = (100, 300);
        assert_eq!(codes("", &[video.clone()]), ["video_too_short"]);
        video.facts.duration_ms = None;
        assert_eq!(codes("", &[video]), ["video_duration"]);
    }
}
